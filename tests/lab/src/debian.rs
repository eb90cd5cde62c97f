//! Guests with an operating system, a disk and work of their own: what a benchmark moves when made-up
//! memory proves nothing.
//!
//! In: a folder for a cache, a [`Work`]. Out: guests in the middle of that work, all from one saved state.
//! Promises: the disk is built once, from Debian's packages; a guest is booted once, brought to its working
//! state, saved, and counts as saved only after a restored copy was seen working; what a guest writes later
//! touches neither. Beside its work each runs the load program with [`LOAD_MB`], so it ticks and checks that
//! part of its memory as any guest of the lab does; the rest is checked by the work itself, which says so.

use crate::dir::LabDir;
use crate::disk::{DiskRoot, Format, layer};
use crate::guest::{Guest, GuestConfig, GuestError};
use crate::image::{Image, ImageError, LOAD_SOURCES, build_program, lock, read};
use crate::netns::Host;
use crate::procs::{Proc, ProcError};
use crate::qemu::Accelerator;
use crate::ticks::{Side, TickLog};
use clap::ValueEnum;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Memory that checks itself, in MiB; the rest is the operating system's.
pub const LOAD_MB: u32 = 8;
const SCRIPTS: [&str; 3] = ["guests/build.sh", "guests/first.sh", "guests/init.sh"];
const REDIS_SOURCE: &str = "src/bin/dwcp-guest-redis.rs";
/// Packages are fetched and installed: minutes on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// A piece of work takes seconds under QEMU's translator.
pub const WORK_LIMIT: Duration = Duration::from_secs(120);

/// What a guest does all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Redis with 60,000 JSON values, 200 of which are read, checked and replaced each second.
    Redis,
    /// PostgreSQL under pgbench, scale 8, 20 transactions a second.
    Postgres,
    /// A compiler whose output is compared with what it made first.
    Build,
    /// Nothing but a sign of life each second.
    Idle,
}

impl Work {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Build => "build",
            Self::Idle => "idle",
        }
    }

    /// The machine it runs on.
    #[must_use]
    pub fn config(self) -> GuestConfig {
        GuestConfig {
            memory_mb: match self {
                Self::Redis | Self::Postgres => 1024,
                Self::Build | Self::Idle => 512,
            },
            load_mb: LOAD_MB,
            ..GuestConfig::default()
        }
    }
}

/// Why there is no such guest, or why it is not well.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// QEMU or the guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A program of the lab.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A tool.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// The disk was not built.
    #[error("the guests' disk was not built; the end of {log}:\n{end}")]
    Build {
        /// What the script said.
        log: PathBuf,
        /// The end of it.
        end: String,
    },
    /// The cache cannot be used.
    #[error("{path}: {source}; is the disk full? another folder may be given for the cache")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The work stopped.
    #[error("the guest's work did not go on within {limit_s} s: {said}")]
    Stopped {
        /// The limit in seconds.
        limit_s: u64,
        /// What it said last.
        said: String,
    },
    /// The work found what it had not written.
    #[error("the guest's work found its data damaged: {0}")]
    Damaged(String),
}

/// One saved guest.
#[derive(Clone, Debug)]
pub struct DebianGuest {
    work: Work,
    image: PathBuf,
    saved: PathBuf,
}

impl DebianGuest {
    /// Finds the saved guest in the cache, or builds the disk, boots and saves it. `say` is told what takes
    /// long.
    pub fn ensure(cache: &Path, work: Work, say: &dyn Fn(&str)) -> Result<Self, DebianError> {
        let cache = std::path::absolute(cache).map_err(cache_error(cache))?;
        let cache = cache.as_path();
        let _lock = lock(&cache.join("lock"))?;
        let mut sources = Vec::new();
        for source in SCRIPTS.iter().chain(&LOAD_SOURCES).chain([&REDIS_SOURCE]) {
            sources.extend(read(&own(source))?);
        }
        let hash = xxh3_64(&sources);
        let image = cache.join(format!("disk-{hash:016x}"));
        if !image.exists() {
            say("building the guests' disk from Debian's packages (a few minutes, once)");
            in_one_step(&image, build)?;
        }
        let config = work.config();
        let key = format!(
            "{config:?} {} {hash:x} {:?}",
            config.qemu.describe()?,
            Accelerator::probed(&Image::ensure()?)
        );
        let name = format!("{}-{:016x}", work.name(), xxh3_64(key.as_bytes()));
        let saved = cache.join(name);
        let guest = Self {
            work,
            image,
            saved: saved.clone(),
        };
        if !saved.exists() {
            in_one_step(&saved, |folder| guest.save(folder, say))?;
        }
        Ok(guest)
    }

    /// The image that its disk is a layer over, raw.
    #[must_use]
    pub fn golden_image(&self) -> PathBuf {
        self.image.join("disk.raw")
    }

    /// A running copy of the guest, some way into its work.
    /// `hugepages` is where its memory lies; the machine must have them free.
    pub fn restored(&self, host: Option<&Host>, hugepages: bool) -> Result<Guest, DebianError> {
        self.restore_from(&self.saved, host, hugepages)
    }

    fn restore_from(
        &self,
        folder: &Path,
        host: Option<&Host>,
        hugepages: bool,
    ) -> Result<Guest, DebianError> {
        let scratch = LabDir::new("disk").map_err(cache_error(Path::new("/tmp")))?;
        let disk = scratch.file("run.qcow2");
        layer(&folder.join("disk.qcow2"), Format::Qcow2, &disk)?;
        let root = self.root(disk, Some(Arc::new(scratch)));
        let state = folder.join("state");
        let config = GuestConfig {
            hugepages,
            ..self.work.config()
        };
        Ok(Guest::restored(host, config, Some(root), state)?)
    }

    fn root(&self, disk: PathBuf, scratch: Option<Arc<LabDir>>) -> DiskRoot {
        DiskRoot {
            kernel: self.image.join("vmlinuz"),
            initramfs: self.image.join("initramfs.cpio"),
            words: format!("dwcp.work={} random.trust_cpu=on", self.work.name()),
            disk,
            scratch,
        }
    }

    fn save(&self, folder: &Path, say: &dyn Fn(&str)) -> Result<(), DebianError> {
        let name = self.work.name();
        say(&format!(
            "booting the guest {name} and bringing it to work (some minutes, once)"
        ));
        let disk = folder.join("disk.qcow2");
        layer(&self.image.join("disk.raw"), Format::Raw, &disk)?;
        let guest = Guest::boot_disk(self.work.config(), self.root(disk, None), "WORKING")?;
        goes_on(guest.ticks(), Side::Source, 0, WORK_LIMIT)?;
        guest.save_into(&folder.join("state"))?;
        say(&format!("trying a copy of the saved guest {name}"));
        let copy = self.restore_from(folder, None, false)?;
        goes_on(copy.ticks(), Side::Source, 0, WORK_LIMIT)?;
        let verdict = copy.verify()?;
        if !verdict.ok {
            return Err(DebianError::Damaged(verdict.line));
        }
        Ok(())
    }
}

/// Waits until the work on `side` has said twice since `mark` that it goes on, the second time with more
/// done than the first.
///
/// # Errors
/// [`DebianError::Stopped`] at the limit, [`DebianError::Damaged`] as soon as anything was found wrong, then
/// or before, on either side.
pub fn goes_on(
    ticks: &TickLog,
    side: Side,
    mark: usize,
    limit: Duration,
) -> Result<(), DebianError> {
    let end = Instant::now() + limit;
    loop {
        for any in [Side::Source, Side::Destination] {
            if let Some(bad) = ticks.lines(any, 0, "WORK BAD").pop() {
                return Err(DebianError::Damaged(bad));
            }
        }
        let said = ticks.lines(side, mark, "WORK ");
        let counts: Vec<u64> = said.iter().filter_map(|l| l[5..].parse().ok()).collect();
        if counts.windows(2).any(|pair| pair[0] < pair[1]) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(DebianError::Stopped {
                limit_s: limit.as_secs(),
                said: said.last().cloned().unwrap_or_else(|| "nothing".to_owned()),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file of this crate's source.
fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn cache_error(path: &Path) -> impl FnOnce(io::Error) -> DebianError + use<> {
    let path = path.to_path_buf();
    move |source| DebianError::Cache { path, source }
}

/// Makes a folder whole or not at all; what an earlier attempt left is cleared away.
fn in_one_step(
    folder: &Path,
    make: impl FnOnce(&Path) -> Result<(), DebianError>,
) -> Result<(), DebianError> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(cache_error(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(cache_error(&partial))?;
    make(&partial)?;
    fs::rename(&partial, folder).map_err(cache_error(folder))
}

fn build(folder: &Path) -> Result<(), DebianError> {
    let programs = LabDir::new("programs").map_err(cache_error(Path::new("/tmp")))?;
    let (load, redis) = (programs.file("load"), programs.file("redis"));
    build_program(LOAD_SOURCES[1], &load)?;
    build_program(REDIS_SOURCE, &redis)?;
    let log = folder.join("build.log");
    let mut command = Command::new("sh");
    command
        .arg(own(SCRIPTS[0]))
        .args([folder, load.as_path(), redis.as_path()]);
    let status = Proc::spawn(command, &log)?.wait(BUILD_LIMIT)?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read(&log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(DebianError::Build { log, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("made-0123");
        let refuse = |path: &Path| {
            fs::write(path.join("half"), "x").unwrap();
            Err(DebianError::Damaged("on purpose".to_owned()))
        };
        assert!(in_one_step(&folder, refuse).is_err());
        assert!(!folder.exists());
        in_one_step(&folder, |path| {
            assert!(!path.join("half").exists(), "the last attempt's remains");
            fs::write(path.join("all"), "x").map_err(cache_error(path))
        })
        .unwrap();
        assert!(folder.join("all").exists());
    }

    #[test]
    fn work_that_stops_or_goes_wrong_is_seen() {
        let seen = |lines: &[&str], mark| {
            let log = TickLog::new();
            for line in lines {
                log.push(Side::Destination, line);
            }
            goes_on(&log, Side::Destination, mark, Duration::ZERO)
        };
        seen(&["T 1 1 0", "WORK 3", "WO", "WORK 4"], 0).unwrap();
        for stopped in [
            &["WORK 3"][..],
            &["WORK 3", "WORK 2"],
            &["WORK 3", "WORK 3"],
            &[],
        ] {
            let seen = seen(stopped, 0);
            assert!(matches!(seen, Err(DebianError::Stopped { .. })), "{seen:?}");
        }
        let earlier = seen(&["WORK 3", "WORK 4"], 2);
        assert!(
            matches!(earlier, Err(DebianError::Stopped { .. })),
            "{earlier:?}"
        );
        let bad = seen(&["WORK BAD customer:000007", "WORK 3", "WORK 4"], 1);
        assert!(matches!(bad, Err(DebianError::Damaged(_))), "{bad:?}");
    }
}
