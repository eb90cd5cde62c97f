//! QEMU guests whose memory checks itself.
//!
//! In: a [`GuestConfig`] and a host. Out: a running guest, or a QEMU that waits for one. Promise:
//! source and destination of one config have the same devices; a restored guest ticks before it is
//! handed out; QEMU dies with its `Guest`.

use crate::dir::{LabDir, cache_dir};
use crate::disk::DiskRoot;
use crate::image::{Image, ImageError, lock};
use crate::netns::Host;
use crate::procs::{Proc, ProcError};
use crate::qemu::{Accelerator, QemuVersion, kernel_flags, machine_flags};
use crate::qmp::{Qmp, QmpError};
use crate::ticks::{Serial, Side, TickLog};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// For what takes seconds; a watchdog for machines that are very slow.
const START_LIMIT: Duration = Duration::from_secs(60);
/// For what takes a time in proportion to memory.
const MEMORY_LIMIT: Duration = Duration::from_secs(600);
/// A migration to a file or over a shaped link must not meet QEMU's own limit, in bytes/s.
pub const UNLIMITED_BANDWIDTH: u64 = 12_500_000_000;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nothing to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// QEMU does not start.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// The monitor failed.
    #[error("{source}\n{log}")]
    Monitor {
        /// What failed.
        source: QmpError,
        /// What QEMU said.
        log: String,
    },
    /// A file or socket of the lab failed.
    #[error("{path}: {source}; is the disk full?")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The guest did not say what it should.
    #[error("the guest ended or did not say {expected:?} within {limit_s} s\n{log}")]
    Silent {
        /// The start of the line awaited.
        expected: String,
        /// The limit in seconds.
        limit_s: u64,
        /// The console and what QEMU said.
        log: String,
    },
    /// A migration to or from a file failed.
    #[error("the saved guest {path} cannot be used: {state}; remove the file and try again")]
    Saved {
        /// The file.
        path: PathBuf,
        /// QEMU's answer.
        state: String,
    },
}

/// A guest's machine and its load. Rate and hot set are set while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Memory of the machine in MiB.
    pub memory_mb: u32,
    /// Part of it that the load fills, in MiB; the kernel needs about 80.
    pub load_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Seed of the content.
    pub seed: u64,
    /// QEMU release.
    pub qemu: QemuVersion,
    /// Whether its memory lies on hugepages, which the machine must have free. What it is made of does
    /// not show in its stream: it moves to and from guests on ordinary pages.
    pub hugepages: bool,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            memory_mb: 512,
            load_mb: 384,
            vcpus: 1,
            seed: 7,
            qemu: QemuVersion::V10,
            hugepages: false,
        }
    }
}

impl GuestConfig {
    /// A guest of this size with three quarters of it filled, less when the kernel needs more.
    #[must_use]
    pub fn sized(memory_mb: u32) -> Self {
        let kernel_mb = (memory_mb / 4).max(112);
        let load_mb = memory_mb.saturating_sub(kernel_mb).max(8);
        Self {
            memory_mb,
            load_mb,
            ..Self::default()
        }
    }
}

/// What the guest found in its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Every byte equals the model.
    pub ok: bool,
    /// The guest's words: pages, checksum, edits, first bad page.
    pub line: String,
}

/// How a destination behaves once its guest arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The guest runs, as in a real migration.
    Run,
    /// It stays paused, so that both memories can be compared.
    Pause,
}

/// A QEMU process with its monitors and serial ports.
pub struct Guest {
    process: Proc,
    qmp: Qmp,
    serial: Serial,
    ticks: TickLog,
    side: Side,
    config: GuestConfig,
    disk: Option<DiskRoot>,
    dir: LabDir,
}

impl Guest {
    /// Boots a guest and waits until its memory is filled; about 6 s for 384 MiB under TCG.
    pub fn boot(host: Option<&Host>, config: GuestConfig) -> Result<Self, GuestError> {
        let mut guest = Self::start(host, config, None, Side::Source, &TickLog::new(), &[])?;
        guest.execute("cont", Value::Null)?;
        guest.wait_line(0, "READY", MEMORY_LIMIT)?;
        Ok(guest)
    }

    /// Boots a guest from a disk and waits until its own programs say `ready`; with a disk, the machine's
    /// kernel is the disk's and so is what fills its memory.
    pub fn boot_disk(config: GuestConfig, disk: DiskRoot, ready: &str) -> Result<Self, GuestError> {
        let log = TickLog::new();
        let mut guest = Self::start(None, config, Some(disk), Side::Source, &log, &[])?;
        guest.execute("cont", Value::Null)?;
        guest.wait_line(0, ready, MEMORY_LIMIT)?;
        Ok(guest)
    }

    /// The same guest from a file in the lab's cache, made at the first use; about a second.
    pub fn saved(host: Option<&Host>, config: GuestConfig) -> Result<Self, GuestError> {
        let file = saved_file(&config)?;
        {
            let _lock = lock(&file.with_extension("lock"))?;
            if !file.exists() {
                Self::boot(None, config)?.save_into(&file)?;
            }
        }
        Self::restored(host, config, None, file)
    }

    /// A guest from a file that [`Guest::save_into`] wrote. One with a disk gets the disk as it was then.
    pub fn restored(
        host: Option<&Host>,
        config: GuestConfig,
        disk: Option<DiskRoot>,
        file: PathBuf,
    ) -> Result<Self, GuestError> {
        let flags = ["-incoming", "defer"];
        let mut guest = Self::start(host, config, disk, Side::Source, &TickLog::new(), &flags)?;
        let uri = format!("exec:cat {}", file.display());
        guest.execute("migrate-incoming", json!({ "uri": uri }))?;
        let arrived = crate::watchdog::poll_until(MEMORY_LIMIT, || {
            match guest.qmp.query_status().as_deref() {
                Ok("inmigrate") => None,
                other => Some(other.is_ok_and(|state| state == "paused")),
            }
        });
        if arrived != Some(true) {
            let state = guest.said();
            return Err(GuestError::Saved { path: file, state });
        }
        guest.execute("cont", Value::Null)?;
        guest.wait_tick()?;
        Ok(guest)
    }

    /// A QEMU that waits for `migrate-incoming`, with the devices of `source`. It writes into the
    /// source's tick log, so that gaps span the switchover.
    pub fn start_incoming(
        host: Option<&Host>,
        source: &Guest,
        qemu: QemuVersion,
        arrival: Arrival,
    ) -> Result<Self, GuestError> {
        let config = GuestConfig {
            qemu,
            ..source.config
        };
        let flags: &[&str] = match arrival {
            Arrival::Run => &["-incoming", "defer"],
            Arrival::Pause => &["-incoming", "defer", "-S"],
        };
        let disk = source.disk.clone();
        Self::start(host, config, disk, Side::Destination, &source.ticks, flags)
    }

    fn start(
        host: Option<&Host>,
        config: GuestConfig,
        disk: Option<DiskRoot>,
        side: Side,
        ticks: &TickLog,
        flags: &[&str],
    ) -> Result<Self, GuestError> {
        let image = Image::ensure()?;
        let dir = LabDir::new("guest").map_err(|source| GuestError::File {
            path: "/tmp".into(),
            source,
        })?;
        let (program, version_flags) = config.qemu.arguments();
        let mut command = host.map_or_else(|| Command::new(&program), |h| h.command(&program));
        command
            .args(version_flags)
            .args(Accelerator::probed(&image).flags())
            .args(machine_flags())
            .args([
                "-m",
                &config.memory_mb.to_string(),
                "-smp",
                &config.vcpus.to_string(),
            ]);
        match &disk {
            None => command.args(kernel_flags(&image, config.load_mb, config.seed)),
            Some(disk) => command.args(disk.flags(config.load_mb, config.seed)),
        };
        if config.hugepages {
            command.args(hugepage_flags(config.memory_mb));
        }
        if flags.is_empty() {
            command.arg("-S");
        }
        command.args(flags);
        let chardev =
            |id: &str| format!("id={id},path={},server=on,wait=off", dir.file(id).display());
        for id in ["lab", "control"] {
            command.args(["-chardev", &format!("socket,{}", chardev(id))]);
            command.args(["-mon", &format!("chardev={id},mode=control")]);
        }
        let console = dir.file("console.log");
        command.args([
            "-chardev",
            &format!("file,id=console,path={}", console.display()),
        ]);
        command.args(["-serial", "chardev:console"]);
        command.args(["-chardev", &format!("socket,{}", chardev("ticks"))]);
        command.args(["-serial", "chardev:ticks"]);
        let process = Proc::spawn(command, &dir.file("qemu.log"))?;
        let log = || read_logs(&dir);
        let qmp = Qmp::connect(&dir.file("lab"), START_LIMIT)
            .map_err(|source| GuestError::Monitor { source, log: log() })?;
        let path = dir.file("ticks");
        let serial = Serial::connect(&path, side, ticks.clone(), START_LIMIT)
            .map_err(|source| GuestError::File { path, source })?;
        Ok(Self {
            process,
            qmp,
            serial,
            ticks: ticks.clone(),
            side,
            config,
            disk,
            dir,
        })
    }

    /// Stops the guest and writes it into a file, from which it may be restored as often as wanted.
    pub fn save_into(mut self, file: &Path) -> Result<(), GuestError> {
        self.execute("stop", Value::Null)?;
        self.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": UNLIMITED_BANDWIDTH }),
        )?;
        let partial = file.with_extension("partial");
        let uri = format!("exec:cat > {}", partial.display());
        self.execute("migrate", json!({ "uri": uri }))?;
        let state = match self.qmp.wait_migration(MEMORY_LIMIT) {
            Ok(state) => state,
            Err(source) => {
                let log = self.said();
                return Err(GuestError::Monitor { source, log });
            }
        };
        if state["status"] != "completed" {
            return Err(GuestError::Saved {
                path: partial,
                state: state.to_string(),
            });
        }
        // QEMU closed its pipe; `cat` may still write, so QEMU is ended and its child waited for.
        self.process.kill();
        settled(&partial);
        fs::rename(&partial, file).map_err(|source| GuestError::File {
            path: partial,
            source,
        })
    }

    /// The guest's config.
    #[must_use]
    pub fn config(&self) -> GuestConfig {
        self.config
    }

    /// The lab's own monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Path of the second monitor, left to the control plane.
    #[must_use]
    pub fn control_monitor(&self) -> PathBuf {
        self.dir.file("control")
    }

    /// A directory of this QEMU's own, for instance for its migration socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The QEMU process.
    pub fn process(&mut self) -> &mut Proc {
        &mut self.process
    }

    /// Ticks of this guest, of both sides.
    #[must_use]
    pub fn ticks(&self) -> &TickLog {
        &self.ticks
    }

    /// Sets how many pages the guest changes per second.
    pub fn set_rate(&self, pages_per_s: u32) -> Result<(), GuestError> {
        self.ask(&format!("rate {pages_per_s}"), "DONE rate", START_LIMIT)
            .map(|_| ())
    }

    /// Sets over how many pages the changes spread; small values are hot.
    pub fn set_hot_pages(&self, pages: u32) -> Result<(), GuestError> {
        self.ask(&format!("hot {pages}"), "DONE hot", START_LIMIT)
            .map(|_| ())
    }

    /// Damages one bit of one page of the load, so that a test can see a verification fail.
    pub fn flip(&self, page: u32) -> Result<(), GuestError> {
        self.ask(&format!("flip {page}"), "DONE flip", START_LIMIT)
            .map(|_| ())
    }

    /// Lets the guest compare every byte of its load with the model.
    pub fn verify(&self) -> Result<Verdict, GuestError> {
        let line = self.ask("verify", "VERIFY", MEMORY_LIMIT)?;
        Ok(Verdict {
            ok: line.starts_with("VERIFY OK"),
            line,
        })
    }

    /// Waits for a tick of this side.
    pub fn wait_tick(&self) -> Result<(), GuestError> {
        match self.ticks.wait_tick(self.side, START_LIMIT) {
            Some(_) => Ok(()),
            None => Err(self.silent("T", START_LIMIT)),
        }
    }

    /// A hash of all guest memory. Meaningful while the guest is paused.
    pub fn memory_hash(&mut self) -> Result<u64, GuestError> {
        // The q35 machine moves what exceeds 2 GiB above 4 GiB when there are 2.75 GiB or more.
        let bytes = u64::from(self.config.memory_mb) << 20;
        let ranges: Vec<(u64, u64)> = if bytes < 0xb000_0000 {
            vec![(0, bytes)]
        } else {
            vec![(0, 1 << 31), (1 << 32, bytes - (1 << 31))]
        };
        let path = self.dir.file("memory");
        let mut hash = Xxh3Default::new();
        for (start, length) in ranges {
            let arguments = json!({ "val": start, "size": length, "filename": path });
            self.execute("pmemsave", arguments)?;
            hash_file(&path, &mut hash).map_err(|source| GuestError::File {
                path: path.clone(),
                source,
            })?;
            let _ = fs::remove_file(&path);
        }
        Ok(hash.finish())
    }

    /// Runs a command on the lab's monitor.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, GuestError> {
        match self.qmp.execute(command, arguments) {
            Ok(value) => Ok(value),
            Err(source) => Err(GuestError::Monitor {
                source,
                log: self.said(),
            }),
        }
    }

    /// What QEMU and the guest's console said.
    #[must_use]
    pub fn said(&self) -> String {
        read_logs(&self.dir)
    }

    fn ask(&self, line: &str, prefix: &str, limit: Duration) -> Result<String, GuestError> {
        // What is sent to the serial port of a guest that has not arrived yet is lost when it does.
        self.wait_tick()?;
        let mark = self.ticks.mark();
        let path = self.dir.file("ticks");
        self.serial
            .send(line)
            .map_err(|source| GuestError::File { path, source })?;
        self.wait_line(mark, prefix, limit)
    }

    fn wait_line(&self, mark: usize, prefix: &str, limit: Duration) -> Result<String, GuestError> {
        self.ticks
            .wait_line(self.side, mark, prefix, limit)
            .ok_or_else(|| self.silent(prefix, limit))
    }

    fn silent(&self, expected: &str, limit: Duration) -> GuestError {
        let (expected, log) = (expected.to_owned(), self.said());
        GuestError::Silent {
            expected,
            limit_s: limit.as_secs(),
            log,
        }
    }
}

fn read_logs(dir: &LabDir) -> String {
    let text = |name| {
        let bytes = fs::read(dir.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    format!(
        "qemu: {}\nconsole: {}",
        text("qemu.log"),
        text("console.log")
    )
}

fn hash_file(path: &Path, hash: &mut Xxh3Default) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        hash.update(&block[..count]);
    }
}

fn saved_file(config: &GuestConfig) -> Result<PathBuf, GuestError> {
    let image = Image::ensure()?;
    let accelerator = Accelerator::probed(&image);
    let config = GuestConfig {
        hugepages: false,
        ..*config
    };
    let key = format!(
        "{config:?} {} {:x} {accelerator:?}",
        config.qemu.describe()?,
        image.hash
    );
    Ok(cache_dir().join(format!("saved-{:016x}", xxh3_64(key.as_bytes()))))
}

/// Memory on hugepages under the name that ordinary memory has in the stream.
fn hugepage_flags(memory_mb: u32) -> [String; 4] {
    [
        "-object".into(),
        format!("memory-backend-memfd,id=pc.ram,size={memory_mb}M,hugetlb=on,hugetlbsize=2M"),
        "-machine".into(),
        "memory-backend=pc.ram".into(),
    ]
}

/// Waits until a file has kept its size for a while.
fn settled(path: &Path) {
    let size = || fs::metadata(path).map_or(0, |meta| meta.len());
    let mut last = 0;
    while size() != last {
        last = size();
        std::thread::sleep(Duration::from_millis(300));
    }
}
