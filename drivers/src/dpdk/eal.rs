//! DPDK's environment (EAL): started once per process, for as long as the process lives.
//!
//! Comes in: how much memory of which kind, and whether PCI devices are wanted. Goes out: [`Eal`], the
//! proof that it runs. Promises: no device is taken that was not asked for; the affinity of the
//! process's threads is what it was; a second start with the same configuration is no error.
//!
//! EAL pins the thread that starts it and threads born of that one. So a thread of its own starts it,
//! allowed on every processor that the process may use, and ends. Its threads for control messages
//! keep that affinity.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::Mutex;

use rustix::thread::sched_getaffinity;
use thiserror::Error;

use super::errno_text;

/// Memory for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Hugepages of the machine, reserved by its administrator.
    Huge {
        /// How much at the start; more is taken when ports need it.
        mib: u32,
    },
    /// Ordinary pages: for tests, and for devices of software only.
    Ordinary {
        /// How much, once and for all.
        mib: u32,
    },
}

/// What EAL is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EalConfig {
    /// Memory for packets of all ports together.
    pub memory: Memory,
    /// Whether devices on the PCI bus may be opened.
    pub pci: bool,
}

/// Why EAL does not run.
#[derive(Debug, Error)]
pub enum EalError {
    /// Fewer hugepages are free than were asked for.
    #[error(
        "{needs_mib} MiB of hugepages are needed and {free_mib} MiB are free: reserve more \
         (sysctl vm.nr_hugepages), stop who holds them, or choose ordinary memory"
    )]
    NoHugepages {
        /// Asked for.
        needs_mib: u32,
        /// Free on this machine, of all sizes.
        free_mib: u64,
    },
    /// It runs, differently.
    #[error("DPDK runs in this process with {running:?}: restart the process to change that")]
    OtherConfig {
        /// With what.
        running: EalConfig,
    },
    /// A start that failed left it half made.
    #[error("DPDK failed to start in this process before and cannot be tried again: restart it")]
    Spoilt,
    /// No permission.
    #[error(
        "DPDK may not start ({cause}): run as root, or give this user the hugepages and /dev/vfio"
    )]
    NoPermission {
        /// DPDK's reason.
        cause: String,
    },
    /// Anything else.
    #[error("DPDK does not start ({cause}): its lines on standard error say at which step")]
    Refused {
        /// DPDK's reason.
        cause: String,
    },
    /// No thread to start it on.
    #[error("no thread to start DPDK on: {0}; raise the limit on threads")]
    Thread(std::io::Error),
}

/// EAL runs, and will until the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eal(());

enum State {
    Fresh,
    Running(EalConfig),
    Spoilt,
}

static STATE: Mutex<State> = Mutex::new(State::Fresh);

impl Eal {
    /// Starts EAL, or finds that it runs.
    ///
    /// # Errors
    /// See [`EalError`]; after [`EalError::NoHugepages`] it may be tried again.
    pub fn start(config: &EalConfig) -> Result<Self, EalError> {
        let mut state = STATE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match *state {
            State::Running(running) if running == *config => return Ok(Self(())),
            State::Running(running) => return Err(EalError::OtherConfig { running }),
            State::Spoilt => return Err(EalError::Spoilt),
            State::Fresh => {}
        }
        if let Memory::Huge { mib } = config.memory {
            enough_hugepages(mib)?;
        }
        let arguments = arguments(config);
        let started = std::thread::Builder::new()
            .name("dwcp-eal".into())
            .spawn(move || init(arguments))
            .map_err(EalError::Thread)?
            .join();
        let errno = match started {
            Ok(Ok(())) => {
                *state = State::Running(*config);
                return Ok(Self(()));
            }
            Ok(Err(errno)) => errno,
            Err(_) => libc::EFAULT,
        };
        *state = State::Spoilt;
        let cause = errno_text(errno);
        match (errno, config.memory) {
            (libc::EACCES | libc::EPERM, _) => Err(EalError::NoPermission { cause }),
            (libc::ENOMEM, Memory::Huge { mib }) => Err(EalError::NoHugepages {
                needs_mib: mib,
                free_mib: free_hugepages_mib(),
            }),
            _ => Err(EalError::Refused { cause }),
        }
    }
}

fn enough_hugepages(needs_mib: u32) -> Result<(), EalError> {
    let free_mib = free_hugepages_mib();
    if free_mib < u64::from(needs_mib) {
        return Err(EalError::NoHugepages {
            needs_mib,
            free_mib,
        });
    }
    Ok(())
}

fn free_hugepages_mib() -> u64 {
    let pools = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter();
    pools
        .flatten()
        .flatten()
        .filter_map(|pool| {
            let name = pool.file_name().into_string().ok()?;
            let page_kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let pages: u64 = read(&pool.path().join("free_hugepages"))?.parse().ok()?;
            Some(pages * page_kib / 1024)
        })
        .sum()
}

fn read(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// An address that no device has: with one device allowed, EAL leaves all others alone until they
/// are asked for by name.
const NO_DEVICE: &str = "ffff:ff:1f.7";

fn arguments(config: &EalConfig) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |parts: &[&str]| arguments.extend(parts.iter().map(|part| (*part).to_owned()));
    add(&["dwcp", "--no-telemetry", "--log-level=warning"]);
    add(&["--lcores", &format!("0@({})", allowed_processors())]);
    match config.memory {
        Memory::Huge { mib } => add(&["--in-memory", "-m", &mib.to_string()]),
        Memory::Ordinary { mib } => {
            let prefix = format!("dwcp-{}", std::process::id());
            add(&["--no-huge", "-m", &mib.to_string()]);
            add(&["--no-shconf", "--file-prefix", &prefix]);
        }
    }
    if config.pci {
        add(&["-a", NO_DEVICE]);
    } else {
        add(&["--no-pci", "--iova-mode=va"]);
    }
    arguments
}

/// As a list that EAL reads: `0,1,5`.
fn allowed_processors() -> String {
    let Ok(set) = sched_getaffinity(None) else {
        return "0".to_owned();
    };
    let numbers: Vec<String> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|number| set.is_set(*number))
        .map(|number| number.to_string())
        .collect();
    numbers.join(",")
}

/// DPDK's error number when it fails.
fn init(arguments: Vec<String>) -> Result<(), c_int> {
    let arguments: Result<Vec<CString>, _> = arguments.into_iter().map(CString::new).collect();
    let arguments = arguments.map_err(|_| libc::EINVAL)?;
    // EAL keeps pointers into its arguments and moves them about, so they live for ever.
    let pointers: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
    let pointers = Vec::leak(pointers);
    let count = c_int::try_from(pointers.len()).map_err(|_| libc::EINVAL)?;
    // SAFETY: needed to start DPDK; `pointers` holds `count` strings that end in zero and are never
    // freed, and the lock in `start` keeps any second call away.
    let result = unsafe { dpdk_sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    if result < 0 {
        return Err(super::last_errno());
    }
    Ok(())
}
