//! A stream as QEMU itself sent it, of a guest that ran and wrote meanwhile.
//!
//! In: nothing. Out: the stream, or the file that holds it. Promises: it is recorded once and kept beside what
//! cargo builds, under a name that tells QEMU's version; whoever finds a file there finds all of it. A process
//! in a virtual machine of the lab, which has no guests of its own, is told the file by [`FILE`].
#![allow(
    clippy::unwrap_used,
    reason = "a test has nothing better to do than to stop"
)]

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use dwcp_lab::guest::{Guest, GuestConfig};
use dwcp_lab::qemu::QemuVersion;
use serde_json::json;

/// The environment variable that names the file.
pub const FILE: &str = "DWCP_RECORDED_STREAM";

/// No smaller guest boots: the kernel and its first programs take most of it.
const GUEST: GuestConfig = GuestConfig {
    memory_mb: 128,
    load_mb: 16,
    vcpus: 1,
    seed: 11,
    qemu: QemuVersion::V10,
    hugepages: false,
};
/// Pages that it changes per second, and how fast it is sent: enough for several passes over memory.
const DIRTY_PAGES_PER_S: u32 = 1_000;
const BYTES_PER_S: u64 = 64 << 20;
/// Longer than it takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// The stream.
#[must_use]
pub fn stream() -> Vec<u8> {
    fs::read(file()).unwrap()
}

/// The file with the stream, recorded now if there is none.
#[must_use]
pub fn file() -> PathBuf {
    if let Some(told) = std::env::var_os(FILE) {
        return told.into();
    }
    // The program lies in `target/PROFILE/deps`.
    let program = std::env::current_exe().unwrap();
    let folder = program.ancestors().nth(3).unwrap().join("tmp");
    let version = GUEST.qemu.describe().unwrap();
    let version: String = version
        .chars()
        .take_while(|c| *c != '\n')
        .filter(|c| c.is_ascii_alphanumeric() || *c == '.')
        .collect();
    let path = folder.join(format!("recorded-{version}"));
    if !path.exists() {
        fs::create_dir_all(&folder).unwrap();
        let mut whole = tempfile::NamedTempFile::new_in(&folder).unwrap();
        whole.write_all(&record()).unwrap();
        whole.persist(&path).unwrap();
    }
    path
}

fn record() -> Vec<u8> {
    let mut guest = Guest::boot(None, GUEST).unwrap();
    guest.set_rate(DIRTY_PAGES_PER_S).unwrap();
    let socket = guest.dir().join("recorded");
    let listener = UnixListener::bind(&socket).unwrap();
    let parameters = json!({ "max-bandwidth": BYTES_PER_S });
    guest.execute("migrate-set-parameters", parameters).unwrap();
    let uri = format!("unix:{}", socket.display());
    guest.execute("migrate", json!({ "uri": uri })).unwrap();
    let (mut from, _) = listener.accept().unwrap();
    from.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut recorded = Vec::new();
    io::copy(&mut from, &mut recorded).unwrap();
    let state = guest.qmp().wait_migration(PATIENCE).unwrap();
    assert_eq!(state["status"], "completed", "{state}");
    let passes = state["ram"]["dirty-sync-count"].as_u64().unwrap();
    assert!(passes >= 3, "the guest did not write meanwhile: {state}");
    assert!(recorded.starts_with(b"QEVM"), "no stream of QEMU's");
    recorded
}
