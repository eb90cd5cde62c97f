//! A second process for a test that needs one. In: a test's name and a role. Out: that test again, in the role,
//! in a process that ends with its owner.

use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A watchdog's patience: longer than anything here takes on a busy machine or under an emulated processor.
pub const PATIENCE: Duration = Duration::from_secs(60);
const ROLE: &str = "DWCP_TEST_ROLE";

/// What the test that started this process wants of it; none in the first process.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// See the module.
pub struct Other(Child);

impl Other {
    /// This test again, in a role, by a command that ends in this program.
    pub fn run(mut command: Command, test: &str, role: &str) -> Self {
        command
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, role);
        Self(command.spawn().unwrap())
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// How it ended.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the other process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
