//! Child processes that never outlive the lab.
//!
//! In: a `Command`. Out: a [`Proc`] whose output goes to a log file. Promise: the child dies when
//! the `Proc` is dropped, when a test panics and when the lab's process is killed; its log is
//! printed when the test fails.

use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Why a process could not be started or awaited.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// The program is missing or not executable.
    #[error("cannot start {program}: {source}; is it installed (tests/lab/setup.sh)?")]
    Start {
        /// What was to run.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The log file could not be made.
    #[error("cannot write the log {path}: {source}; is the disk full?")]
    Log {
        /// The log file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The program ended with a failure.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// What ran.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last of what it said.
        output: String,
    },
    /// Waiting for the program failed or took too long.
    #[error("{program} did not end in time; its log is {log}")]
    Deadline {
        /// What ran.
        program: String,
        /// Where its output is.
        log: PathBuf,
    },
}

type SpawnJob = (Command, Sender<io::Result<Child>>);

/// The parent-death signal follows the parent *thread*, so one thread that lives as long as the
/// process starts all children; a test's helper thread may end without killing them.
fn spawner() -> &'static Sender<SpawnJob> {
    static SPAWNER: OnceLock<Sender<SpawnJob>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs): (Sender<SpawnJob>, Receiver<SpawnJob>) = channel();
        std::thread::spawn(move || {
            while let Ok((mut command, answer)) = jobs.recv() {
                // The asker waits for the answer; if it died, the child dies with the handle.
                if let Err(unheard) = answer.send(command.spawn())
                    && let Ok(mut child) = unheard.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        sender
    })
}

/// A running child process.
pub struct Proc {
    program: String,
    child: Child,
    log: PathBuf,
}

impl Proc {
    /// Starts `command` with both outputs in `log`.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self, ProcError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log_error = |source| ProcError::Log {
            path: log.to_path_buf(),
            source,
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(log_error)?;
        let copy = file.try_clone().map_err(log_error)?;
        command.stdin(Stdio::null()).stdout(file).stderr(copy);
        // SAFETY: needed because only the child itself can ask for its parent-death signal;
        // sound because the closure makes one async-signal-safe system call and no allocation.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let gone = || io::Error::other("the spawner thread ended");
        let start = |source| ProcError::Start {
            program: program.clone(),
            source,
        };
        let (answer, child) = channel();
        spawner()
            .send((command, answer))
            .map_err(|_| start(gone()))?;
        let child = child.recv().map_err(|_| start(gone()))?.map_err(start)?;
        Ok(Self {
            program,
            child,
            log: log.to_path_buf(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what the process said.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, ProcError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() >= end {
                let (program, log) = (self.program.clone(), self.log.clone());
                return Err(ProcError::Deadline { program, log });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal, for instance `Signal::STOP`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("no such process"))?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Kills it and collects its status.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Processor time used so far, all threads, in milliseconds.
    #[must_use]
    pub fn cpu_ms(&self) -> u64 {
        cpu_ms(&format!("/proc/{}/stat", self.child.id()))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "--- {} ({})\n{}",
                self.program,
                self.log.display(),
                tail(&self.log)
            );
        }
    }
}

/// Runs a short command to its end and returns what it printed.
pub fn run(mut command: Command) -> Result<String, ProcError> {
    let program = format!("{command:?}");
    let output = command.output().map_err(|source| ProcError::Start {
        program: program.clone(),
        source,
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let output_text = text(&output.stderr) + &text(&output.stdout);
        return Err(ProcError::Failed {
            program,
            status: output.status,
            output: output_text,
        });
    }
    Ok(text(&output.stdout))
}

/// User and system time of one `/proc/…/stat` file in milliseconds; 0 if it is gone.
pub(crate) fn cpu_ms(stat: &str) -> u64 {
    let text = fs::read_to_string(stat).unwrap_or_default();
    // Fields are counted from behind the command's name, which may hold spaces (proc(5)).
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let field = |index: usize| {
        fields
            .get(index)
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or(0)
    };
    (field(11) + field(12)) * 1000 / rustix::param::clock_ticks_per_second().max(1)
}

fn tail(log: &Path) -> String {
    let text = fs::read(log)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_gone_and_its_log_stays() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("sleep.log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; exec sleep 600"]);
        let process = Proc::spawn(command, &log).unwrap();
        let id = process.id();
        while !fs::read_to_string(&log).unwrap().contains("started") {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_helper_thread_that_ends_does_not_take_its_child_along() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut process = std::thread::spawn(move || {
            let mut command = Command::new("sleep");
            command.arg("600");
            Proc::spawn(command, &log).unwrap()
        })
        .join()
        .unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(process.ended().is_none());
    }
}
