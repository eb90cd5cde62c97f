//! A small real guest: QEMU with a boot sector that keeps writing to memory.
//!
//! In: machine options; out: a running QEMU under QMP, and recordings of what it sends when it
//! migrates. A hang ends by the socket time-outs, and QEMU dies with its handle.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

const WATCHDOG: Duration = Duration::from_secs(90);
pub(super) const RAM_BYTES: usize = 64 << 20;
/// Where the boot sector writes: one word in each page, over and over.
pub(super) const BUSY: std::ops::Range<usize> = 0x1_0000..0x8_0000;

/// Increments the first word of every page in [`BUSY`], for ever.
const BOOT_SECTOR: [u8; 21] = [
    0xfa, // cli
    0xb8, 0x00, 0x10, // again: mov ax, 0x1000
    0x8e, 0xc0, // page: mov es, ax
    0x26, 0xff, 0x06, 0x00, 0x00, // inc word [es:0]
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x80, // cmp ax, 0x8000
    0x72, 0xf1, // jb page
    0xeb, 0xec, // jmp again
];

pub(super) struct Guest {
    child: Child,
    qmp: BufReader<UnixStream>,
    pub dir: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    /// Starts QEMU with `options` besides its memory, disk and control socket.
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("boot.img");
        // The firmware boots from nothing smaller than a cylinder.
        let mut image = vec![0; 1 << 20];
        image[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&disk, image).unwrap();
        let control = dir.path().join("qmp");
        let listener = UnixListener::bind(&control).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut child = Command::new("qemu-system-x86_64")
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-display",
                "none",
                "-nodefaults",
            ])
            .args(["-qmp", &format!("unix:{}", control.display())])
            .args([
                "-drive",
                &format!(
                    "format=raw,file.driver=file,file.filename={},file.locking=off",
                    disk.display()
                ),
            ])
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 must be installed for this test");
        let stream = wait_for("QEMU to connect", || {
            assert!(
                child.try_wait().unwrap().is_none(),
                "QEMU refused its options"
            );
            listener.accept().ok()
        });
        let (stream, _) = stream;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        let mut guest = Self {
            child,
            qmp: BufReader::new(stream),
            dir,
        };
        guest.qmp("qmp_capabilities", "{}");
        guest
    }

    /// As [`Self::start`], and waits until the boot sector runs.
    pub fn boot(options: &[&str]) -> Self {
        let mut guest = Self::start(options);
        wait_for("the boot sector", || {
            let word = guest.monitor("xp /1hx 0x7f000");
            (word.contains(": 0x") && !word.contains(": 0x0000")).then_some(())
        });
        guest
    }

    /// One QMP command; the reply as text.
    pub fn qmp(&mut self, command: &str, arguments: &str) -> String {
        let line = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}\n");
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut reply = String::new();
            assert!(self.qmp.read_line(&mut reply).unwrap() > 0, "QEMU is gone");
            assert!(!reply.starts_with("{\"error\""), "{command}: {reply}");
            if reply.starts_with("{\"return\"") {
                return reply;
            }
        }
    }

    fn monitor(&mut self, line: &str) -> String {
        self.qmp(
            "human-monitor-command",
            &format!("{{\"command-line\":\"{line}\"}}"),
        )
    }

    pub fn capabilities(&mut self, names: &[&str]) {
        let list: Vec<_> = names
            .iter()
            .map(|name| format!("{{\"capability\":\"{name}\",\"state\":true}}"))
            .collect();
        let arguments = format!("{{\"capabilities\":[{}]}}", list.join(","));
        self.qmp("migrate-set-capabilities", &arguments);
    }

    /// So slow that the boot sector is always faster: rounds go on until [`Self::let_converge`].
    pub fn never_converge(&mut self) {
        let slow = "{\"max-bandwidth\":2097152,\"downtime-limit\":1}";
        self.qmp("migrate-set-parameters", slow);
    }

    pub fn let_converge(&mut self) {
        let fast = "{\"max-bandwidth\":0,\"downtime-limit\":60000}";
        self.qmp("migrate-set-parameters", fast);
    }

    pub fn migrate(&mut self, to: &Path) {
        self.qmp("migrate", &format!("{{\"uri\":\"unix:{}\"}}", to.display()));
    }

    /// Waits for a number of migration passes over memory, or for the end if that comes first.
    pub fn wait_rounds(&mut self, rounds: u64) {
        wait_for("rounds", || {
            let reply = self.qmp("query-migrate", "{}");
            let over = reply.contains("\"status\": \"completed\"");
            (over || number(&reply, "dirty-sync-count")? >= rounds).then_some(())
        });
    }

    /// Waits for the end of the migration; QEMU's own numbers.
    pub fn wait_completed(&mut self) -> String {
        wait_for("completion", || {
            let reply = self.qmp("query-migrate", "{}");
            assert!(!reply.contains("\"status\": \"failed\""), "{reply}");
            reply.contains("\"status\": \"completed\"").then_some(reply)
        })
    }

    /// Guest memory as the machine sees it.
    pub fn memory(&mut self) -> Vec<u8> {
        let file = self.dir.path().join("memory");
        let arguments = format!(
            "{{\"val\":0,\"size\":{RAM_BYTES},\"filename\":\"{}\"}}",
            file.display()
        );
        self.qmp("pmemsave", &arguments);
        std::fs::read(file).unwrap()
    }
}

/// Asks again and again until there is an answer.
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..WATCHDOG.as_millis() / 20 {
        if let Some(answer) = ask() {
            return answer;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("watchdog: waited too long for {what}");
}

/// The first number called `name` in a reply.
pub(super) fn number(reply: &str, name: &str) -> Option<u64> {
    let (_, behind) = reply.split_once(&format!("\"{name}\": "))?;
    behind
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// What went over one connection.
pub(super) struct Recording {
    pub forward: Vec<u8>,
    pub backward: Vec<u8>,
}

/// Takes `connections` connections, passes them on to `to` if there is one, and records them.
pub(super) fn record(
    connections: usize,
    to: Option<PathBuf>,
) -> (tempfile::TempDir, PathBuf, JoinHandle<Vec<Recording>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("migration");
    let listener = UnixListener::bind(&path).unwrap();
    let recorder = thread::spawn(move || {
        let running: Vec<_> = (0..connections)
            .map(|_| {
                let (from, _) = listener.accept().unwrap();
                let to = to.as_ref().map(|to| UnixStream::connect(to).unwrap());
                let back = to.as_ref().map(|to| {
                    let (to, from) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                    thread::spawn(move || pass(to, Some(from)))
                });
                let forward = thread::spawn(move || pass(from, to));
                (forward, back)
            })
            .collect();
        running
            .into_iter()
            .map(|(forward, back)| Recording {
                forward: forward.join().unwrap(),
                backward: back.map(|back| back.join().unwrap()).unwrap_or_default(),
            })
            .collect()
    });
    (dir, path, recorder)
}

/// Copies until the end of the connection; what was copied.
fn pass(mut from: UnixStream, mut to: Option<UnixStream>) -> Vec<u8> {
    from.set_read_timeout(Some(WATCHDOG)).unwrap();
    let mut recorded = Vec::new();
    let mut buf = vec![0; 1 << 18];
    loop {
        let n = from.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        recorded.extend_from_slice(&buf[..n]);
        if let Some(to) = &mut to {
            to.write_all(&buf[..n]).unwrap();
        }
    }
    if let Some(to) = to {
        let _ = to.shutdown(Shutdown::Write);
    }
    recorded
}
