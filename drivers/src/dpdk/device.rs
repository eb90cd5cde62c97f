//! What a port stands on: a memif socket, a kernel interface for AF_XDP, a PCI device.
//!
//! Comes in: a [`Device`]. Goes out: it, attached to DPDK. Promises: what commonly goes wrong is
//! looked for first, because DPDK's own answer to all of it is "-1"; a device that is dropped is given
//! back.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Access, FlockOperation, Mode, OFlags, access, flock};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{CapabilitySet, capabilities};
use thiserror::Error;

use super::eal::Eal;

/// Which of the two ends of a memif socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemifRole {
    /// Makes the socket and waits for the other.
    Server,
    /// Comes to the socket, and brings the memory.
    Client,
}

/// A packet interface in memory that two processes share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memif {
    /// The UNIX socket by which they meet, in a folder that only they may enter: a stranger who
    /// connects can end the server's process.
    pub socket: PathBuf,
    /// Which end this is.
    pub role: MemifRole,
    /// Bytes of one packet buffer in the shared memory: the longest frame. The client's counts.
    pub frame_bytes: u16,
    /// Packet buffers a ring, as a power of two, 1 to 14. The client's counts.
    pub ring_log2: u8,
}

/// What a port stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// Shared memory.
    Memif(Memif),
    /// A kernel interface whose packets are taken before the kernel's own network sees them.
    AfXdp {
        /// Its name, in the network namespace of the calling thread.
        interface: String,
    },
    /// A device on the PCI bus.
    Pci {
        /// As `0000:03:00.0`.
        address: String,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memif(memif) => write!(f, "memif {}", memif.socket.display()),
            Self::AfXdp { interface } => write!(f, "AF_XDP on {interface}"),
            Self::Pci { address } => write!(f, "PCI device {address}"),
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The socket's path cannot be given to DPDK.
    #[error("{path}: a memif socket's path is absolute, has no comma and at most 107 bytes")]
    BadSocketPath {
        /// The path.
        path: PathBuf,
    },
    /// The socket's folder.
    #[error("{folder} cannot be written to ({cause}): make it, or let this user write to it")]
    SocketFolder {
        /// Which.
        folder: PathBuf,
        /// The kernel's reason.
        cause: std::io::Error,
    },
    /// The path is in use.
    #[error("{path} is in use by {by}: stop it, or choose another path")]
    SocketInUse {
        /// The path.
        path: PathBuf,
        /// By what.
        by: &'static str,
    },
    /// A figure that memif cannot have.
    #[error("memif {what} = {value} is outside {min}..={max}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// What it was.
        value: u32,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// No such interface.
    #[error("there is no interface {interface} in this network namespace")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// No such PCI device.
    #[error("there is no PCI device {address}: addresses look like 0000:03:00.0")]
    NoPciDevice {
        /// Its address.
        address: String,
    },
    /// The kernel drives it.
    #[error(
        "{address} is driven by {driver}: bind it to vfio-pci first (dwcpctl nic plan shows how)"
    )]
    KernelDriver {
        /// Its address.
        address: String,
        /// By which driver; `none` without one.
        driver: String,
    },
    /// Not allowed.
    #[error("{device} needs {needs}: run as root, or give that to this user")]
    NoPermission {
        /// Which device.
        device: String,
        /// What.
        needs: &'static str,
    },
    /// Something else.
    #[error("DPDK refuses {device} (errno {errno}): {cure}; its lines on standard error say more")]
    Refused {
        /// Which device.
        device: String,
        /// DPDK's answer, often just 1.
        errno: i32,
        /// What to look at.
        cure: &'static str,
    },
}

/// Held while a device comes or goes: EAL walks its lists of devices without a lock of its own, and one thread
/// does not find its device while another adds one.
fn hotplug() -> MutexGuard<'static, ()> {
    static HOTPLUG: Mutex<()> = Mutex::new(());
    HOTPLUG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where DPDK finds a device.
struct Place {
    lock: Option<OwnedFd>,
    bus: &'static CStr,
    name: CString,
    arguments: CString,
}

/// A device that DPDK holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Attached {
    bus: &'static CStr,
    name: CString,
    port: u16,
    /// Of the memif socket, as long as this process serves it.
    _lock: Option<OwnedFd>,
}

impl Attached {
    pub(super) fn new(_: Eal, device: &Device) -> Result<Self, DeviceError> {
        let (place, cure) = match device {
            Device::Memif(memif) => (memif_place(memif)?, "the driver librte_net_memif is needed"),
            Device::AfXdp { interface } => (
                af_xdp_place(interface)?,
                "the driver librte_net_af_xdp is needed, an MTU below 3,500, and no other XDP program",
            ),
            Device::Pci { address } => (
                pci_place(address)?,
                "EAL has to be started with PCI, and DPDK needs a driver for this device",
            ),
        };
        let refused = |errno: i32| DeviceError::Refused {
            device: device.to_string(),
            errno: -errno,
            cure,
        };
        let alone = hotplug();
        // SAFETY: needed to attach a device; all three are strings that end in zero and live until
        // the call returns, and EAL runs, as the caller's token proves.
        let result = unsafe {
            dpdk_sys::rte_eal_hotplug_add(
                place.bus.as_ptr(),
                place.name.as_ptr(),
                place.arguments.as_ptr(),
            )
        };
        drop(alone);
        if result < 0 {
            return Err(refused(result));
        }
        let mut attached = Self {
            bus: place.bus,
            name: place.name,
            port: 0,
            _lock: place.lock,
        };
        // SAFETY: needed to learn the port's number; the name ends in zero, and the number is
        // written to a field that is ours.
        let result = unsafe {
            dpdk_sys::rte_eth_dev_get_port_by_name(attached.name.as_ptr(), &raw mut attached.port)
        };
        if result < 0 {
            return Err(refused(result));
        }
        Ok(attached)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _alone = hotplug();
        // SAFETY: needed to give the device back; the strings are those that it was attached by,
        // and the port was closed by its owner, which drops this last.
        unsafe { dpdk_sys::rte_eal_hotplug_remove(self.bus.as_ptr(), self.name.as_ptr()) };
    }
}

/// A name for a device of software, new in this process.
fn software_name(driver: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{driver}{number}")
}

fn memif_place(memif: &Memif) -> Result<Place, DeviceError> {
    let bad_path = || DeviceError::BadSocketPath {
        path: memif.socket.clone(),
    };
    let path = memif.socket.to_str().ok_or_else(bad_path)?;
    let plain = |c: char| c.is_ascii_graphic() && c != ',';
    if !memif.socket.is_absolute() || path.len() > 107 || !path.chars().all(plain) {
        return Err(bad_path());
    }
    let within = |what, value: u32, min: u32, max: u32| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(DeviceError::OutOfRange {
            what,
            value,
            min,
            max,
        })
    };
    within("ring_log2", memif.ring_log2.into(), 1, 14)?;
    within("frame_bytes", memif.frame_bytes.into(), 256, 0xffff)?;
    let folder = memif.socket.parent().ok_or_else(bad_path)?;
    access(folder, Access::READ_OK | Access::WRITE_OK).map_err(|cause| {
        DeviceError::SocketFolder {
            folder: folder.to_owned(),
            cause: cause.into(),
        }
    })?;
    let role = match memif.role {
        MemifRole::Server => "server",
        MemifRole::Client => "client",
    };
    let arguments = format!(
        "role={role},socket-abstract=no,socket={path},bsize={},rsize={}",
        memif.frame_bytes, memif.ring_log2
    );
    let lock = match memif.role {
        MemifRole::Server => Some(claim_socket(&memif.socket)?),
        MemifRole::Client => None,
    };
    Ok(Place {
        lock,
        bus: c"vdev",
        name: CString::new(software_name("net_memif")).map_err(|_| bad_path())?,
        arguments: CString::new(arguments).map_err(|_| bad_path())?,
    })
}

/// Takes the path for this process, and removes the socket that a killed one left there. Who holds it
/// is told by a lock on a file beside it, which the kernel drops with its process. Connecting would
/// tell too, but a memif server of DPDK ends its process when a client hangs up at once.
fn claim_socket(path: &Path) -> Result<OwnedFd, DeviceError> {
    let in_use = |by| DeviceError::SocketInUse {
        path: path.to_owned(),
        by,
    };
    let is_socket = |metadata: Metadata| metadata.file_type().is_socket();
    let there = path.symlink_metadata().ok().map(is_socket);
    if there == Some(false) {
        return Err(in_use("a file that is no socket"));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(beside, flags, Mode::RUSR | Mode::WUSR).map_err(|cause| {
        DeviceError::SocketFolder {
            folder: path.to_owned(),
            cause: cause.into(),
        }
    })?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| in_use("a running process"))?;
    // A file that is gone already is what was wanted.
    let _ = std::fs::remove_file(path);
    Ok(lock)
}

fn af_xdp_place(interface: &str) -> Result<Place, DeviceError> {
    let missing = || DeviceError::NoInterface {
        interface: interface.to_owned(),
    };
    // The kernel's own limit on names, and nothing that the argument string would cut at.
    let plain = |c: char| c.is_ascii_graphic() && c != ',' && c != '/';
    if interface.is_empty() || interface.len() > 15 || !interface.chars().all(plain) {
        return Err(missing());
    }
    let asking = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(|_| missing())?;
    rustix::net::netdevice::name_to_index(&asking, interface).map_err(|_| missing())?;
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if !has.contains(needed) {
        return Err(DeviceError::NoPermission {
            device: format!("AF_XDP on {interface}"),
            needs: "CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
        });
    }
    Ok(Place {
        lock: None,
        bus: c"vdev",
        name: CString::new(software_name("net_af_xdp")).map_err(|_| missing())?,
        arguments: CString::new(format!("iface={interface}")).map_err(|_| missing())?,
    })
}

/// Kernel drivers beside which DPDK works, on the same device.
const SHARED_WITH_KERNEL: &[&str] = &["mlx4_core", "mlx5_core", "mana"];
/// Drivers that hand a device to user space.
const HANDED_OVER: &[&str] = &["vfio-pci", "igb_uio", "uio_pci_generic"];

fn pci_place(address: &str) -> Result<Place, DeviceError> {
    let missing = || DeviceError::NoPciDevice {
        address: address.to_owned(),
    };
    if !address
        .chars()
        .all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.')
    {
        return Err(missing());
    }
    let device = Path::new("/sys/bus/pci/devices").join(address);
    if address.is_empty() || !device.exists() {
        return Err(missing());
    }
    let link_name = |name: &str| -> Option<String> {
        let target = std::fs::read_link(device.join(name)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    };
    let driver = link_name("driver").unwrap_or_else(|| "none".to_owned());
    let known = SHARED_WITH_KERNEL.contains(&driver.as_str());
    if !known && !HANDED_OVER.contains(&driver.as_str()) {
        return Err(DeviceError::KernelDriver {
            address: address.to_owned(),
            driver,
        });
    }
    if driver == "vfio-pci"
        && let Some(group) = link_name("iommu_group")
    {
        let node = Path::new("/dev/vfio").join(group);
        let without_iommu = !node.exists();
        if !without_iommu && access(&node, Access::READ_OK | Access::WRITE_OK).is_err() {
            return Err(DeviceError::NoPermission {
                device: format!("PCI device {address}"),
                needs: "its group in /dev/vfio",
            });
        }
    }
    Ok(Place {
        lock: None,
        bus: c"pci",
        name: CString::new(address).map_err(|_| missing())?,
        arguments: CString::default(),
    })
}
