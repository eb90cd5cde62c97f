//! Virtual machines with a kernel of their own, for what needs modules that this machine lacks.
//!
//! In: a [`Shape`] and a shell script. Out: what the script said, line by line while it runs, and its
//! exit status. Promise: the machine sees this machine's files as they are and changes none (what it
//! writes lies in its memory and goes with it); it ends by a deadline; QEMU dies with its [`Vm`].
//!
//! Under QEMU's translator, so that it works wherever the lab does: the shared root is mounted some
//! 15 s after the start.

mod kernel;
mod shape;

use crate::dir::LabDir;
use crate::image::ImageError;
use crate::procs::{Proc, ProcError};
use kernel::Boot;
pub use shape::{E1000E, IGB, Shape};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Parts what the job said from its exit status, at the end of its output.
const STATUS_MARK: u8 = 0x1e;
/// Output beyond this is told to the listener and not kept.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// The status of a job that did not run, because the shape could not be set up.
const NOT_SET_UP: i32 = 125;

/// Why a job has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Nothing to boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// QEMU does not start.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// A file of the lab failed.
    #[error("{path}: {source}; is the disk full?")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The shape's modules or devices could not be set up.
    #[error("the virtual machine could not be set up; the job did not run\n{said}")]
    SetUp {
        /// What was said until then.
        said: String,
    },
    /// The machine stopped before the job ended.
    #[error("the virtual machine stopped before its job ended\n{log}")]
    Died {
        /// The console and what QEMU said.
        log: String,
    },
    /// The job did not end in time.
    #[error("the job did not end within {limit_s} s; give it longer or see where it hangs\n{log}")]
    Deadline {
        /// The limit in seconds.
        limit_s: u64,
        /// The end of what it said, the console, and what QEMU said.
        log: String,
    },
}

/// A machine and its limits.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// Its devices and modules.
    pub shape: Shape,
    /// Memory in MiB; what the job writes lies in it too.
    pub memory_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// From the start of QEMU to the end of the job.
    pub limit: Duration,
}

impl VmConfig {
    /// Two processors, 2 GiB and four minutes.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            memory_mb: 2048,
            vcpus: 2,
            limit: Duration::from_secs(240),
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status.
    pub status: i32,
    /// What it said on both outputs.
    pub said: String,
}

/// A virtual machine that runs one job.
pub struct Vm {
    process: Proc,
    dir: LabDir,
    end: Instant,
    limit: Duration,
    output: File,
    /// The part of the output that ended with a line break was told up to here.
    told_bytes: usize,
    said: Vec<u8>,
}

impl Vm {
    /// Boots a machine that runs `job` with bash in `folder`, which is a folder of this machine.
    pub fn start(config: &VmConfig, folder: &Path, job: &str) -> Result<Self, VmError> {
        let dir = LabDir::new("vm").map_err(|source| VmError::File {
            path: "/tmp".into(),
            source,
        })?;
        let boot = Boot::ensure(config.shape.modules())?;
        let file_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| VmError::File { path, source }
        };
        let set_up = format!("set -e\n{}", config.shape.set_up());
        let job = format!(
            "{}\ncd '{}' || exit\n{job}",
            config.shape.prelude(),
            folder.display()
        );
        let output = dir.file("output");
        for (name, text) in [("set-up", set_up.as_str()), ("job", &job), ("output", "")] {
            let path = dir.file(name);
            fs::write(&path, text).map_err(file_error(&path))?;
        }
        let command = command(config, &boot, &dir);
        let end = Instant::now() + config.limit;
        Ok(Self {
            process: Proc::spawn(command, &dir.file("qemu.log"))?,
            output: File::open(&output).map_err(file_error(&output))?,
            dir,
            end,
            limit: config.limit,
            told_bytes: 0,
            said: Vec::new(),
        })
    }

    /// Boots, runs the job to its end, and shows what it says on standard error.
    pub fn run(config: &VmConfig, folder: &Path, job: &str) -> Result<Outcome, VmError> {
        let shape = config.shape;
        Self::start(config, folder, job)?.wait(|line| eprintln!("vm {shape:?}: {line}"))
    }

    /// Waits for the end of the job and tells each line that it says.
    pub fn wait(mut self, mut tell: impl FnMut(&str)) -> Result<Outcome, VmError> {
        loop {
            // First this: what was written before the end is there after it.
            let ended = self.process.ended().is_some();
            self.read_on()?;
            if let Some((length, status)) = outcome(&self.said) {
                self.said.truncate(length);
                if self.told_bytes < length && !self.said.ends_with(b"\n") {
                    self.said.push(b'\n');
                }
                self.tell(&mut tell);
                let said = String::from_utf8_lossy(&self.said).into_owned();
                return match status {
                    NOT_SET_UP => Err(VmError::SetUp { said }),
                    status => Ok(Outcome { status, said }),
                };
            }
            self.tell(&mut tell);
            if ended {
                return Err(VmError::Died { log: self.log() });
            }
            if Instant::now() >= self.end {
                let limit_s = self.limit.as_secs();
                let log = self.log();
                return Err(VmError::Deadline { limit_s, log });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn read_on(&mut self) -> Result<(), VmError> {
        self.output
            .read_to_end(&mut self.said)
            .map_err(|source| VmError::File {
                path: self.dir.file("output"),
                source,
            })?;
        Ok(())
    }

    /// Tells whole lines, and forgets the oldest when there are too many.
    fn tell(&mut self, tell: &mut impl FnMut(&str)) {
        let fresh = &self.said[self.told_bytes..];
        let Some(last) = fresh.iter().rposition(|&byte| byte == b'\n') else {
            return;
        };
        for line in String::from_utf8_lossy(&fresh[..last]).lines() {
            tell(line);
        }
        self.told_bytes += last + 1;
        let surplus = self.said.len().saturating_sub(OUTPUT_BYTES_MAX);
        let surplus = surplus.min(self.told_bytes);
        self.said.drain(..surplus);
        self.told_bytes -= surplus;
    }

    fn log(&self) -> String {
        let mut log = String::new();
        for name in ["output", "console", "qemu.log"] {
            let text = fs::read(self.dir.file(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            log.push_str(&format!("--- {name}\n{last}\n"));
        }
        log
    }
}

/// The length of what was said and the exit status, once both are there in full.
fn outcome(output: &[u8]) -> Option<(usize, i32)> {
    let rest = output.strip_suffix(b"\n")?;
    let mark = rest.iter().rposition(|&byte| byte == STATUS_MARK)?;
    let status = std::str::from_utf8(&rest[mark + 1..]).ok()?.parse().ok()?;
    Some((mark, status))
}

fn command(config: &VmConfig, boot: &Boot, dir: &LabDir) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        // DPDK needs SSE 4.2, ciphers want AES instructions: all that the translator knows.
        .args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none"])
        .args(["-m", &config.memory_mb.to_string()])
        .args(["-smp", &config.vcpus.to_string()])
        .args(config.shape.flags())
        .arg("-kernel")
        .arg(&boot.kernel)
        .arg("-initrd")
        .arg(&boot.initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr \
             random.trust_cpu=on {} dwcp.scripts={}",
            config.shape.kernel_words(),
            dir.path().display()
        ))
        // Files of several file systems in one tree: their numbers must not meet.
        .args([
            "-fsdev",
            "local,id=shared,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared"]);
    for name in ["console", "output"] {
        let path = dir.file(name);
        command
            .arg("-chardev")
            .arg(format!("file,id={name},path={}", path.display()))
            .args(["-serial", &format!("chardev:{name}")]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_once_it_is_whole() {
        assert_eq!(outcome(b"a\nb\x1e0\n"), Some((3, 0)));
        assert_eq!(outcome(b"\x1e137\n"), Some((0, 137)));
        assert_eq!(outcome(b"a\x1e9\nb\x1e3\n"), Some((5, 3)));
        for partial in [
            &b""[..],
            b"a\n",
            b"a\x1e",
            b"a\x1e1",
            b"a\x1e\n",
            b"a\x1e1\nmore\n",
        ] {
            assert_eq!(outcome(partial), None, "{partial:?}");
        }
    }
}
