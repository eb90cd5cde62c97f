//! What the kernel is asked for and told beyond reading files: writes to sysfs and procfs, links,
//! addresses, routes, rings, channels, offloads.
//!
//! In: a name and a value. Out: what the kernel says. Promise: an error names what was asked, what the
//! kernel answered and what to do. [`crate::linux`] is the real one; tests have a double, since no
//! driver fails, dies or comes back on request.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The kernel of this machine.
pub trait Kernel: Send + Sync {
    /// Where sysfs is mounted.
    fn sys(&self) -> &Path;
    /// Where procfs is mounted.
    fn proc(&self) -> &Path;
    /// Writes a value to an existing file of sysfs or procfs.
    ///
    /// # Errors
    /// [`KernelError::Write`].
    fn write(&self, path: &Path, value: &str) -> Result<(), KernelError>;
    /// All links of this network namespace.
    ///
    /// # Errors
    /// [`KernelError::Netlink`]; so do all that follow.
    fn links(&self) -> Result<Vec<Link>, KernelError>;
    /// All addresses.
    fn addresses(&self) -> Result<Vec<Address>, KernelError>;
    /// All routes of all tables that lead out of a link.
    fn routes(&self) -> Result<Vec<Route>, KernelError>;
    /// Changes a link.
    fn change_link(&self, interface: &str, change: &LinkChange) -> Result<(), KernelError>;
    /// Ring sizes; `None` if the driver has none to tell.
    fn rings(&self, interface: &str) -> Result<Option<Rings>, KernelError>;
    /// Sets the ring sizes.
    fn set_rings(&self, interface: &str, sizes: RingSizes) -> Result<(), KernelError>;
    /// Channels; `None` if the driver has none to tell.
    fn channels(&self, interface: &str) -> Result<Option<Channels>, KernelError>;
    /// Sets how many channels are in use.
    fn set_channels(&self, interface: &str, counts: ChannelCounts) -> Result<(), KernelError>;
    /// Offloads by the kernel's names, for example `rx-gro`.
    fn offloads(&self, interface: &str) -> Result<BTreeMap<String, Offload>, KernelError>;
    /// Switches offloads on and off.
    fn set_offloads(
        &self,
        interface: &str,
        wanted: &BTreeMap<String, bool>,
    ) -> Result<(), KernelError>;
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index, by which other answers name it.
    pub index: u32,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Smallest and largest MTU that the driver takes, if it says so.
    pub mtu_range: Option<(u32, u32)>,
    /// Switched on.
    pub up: bool,
    /// Hardware address.
    pub mac: String,
}

/// A change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Its MTU in bytes.
    Mtu(u32),
    /// On or off.
    Up(bool),
    /// Its name; it must be off.
    Name(String),
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix_len: u8,
    /// Others can reach it: neither of this host alone nor of this link alone.
    pub global: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The links that it may lead out of.
    pub interfaces: Vec<String>,
    /// It takes what no other route takes.
    pub default: bool,
}

/// Sizes of the rings, in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// For receiving.
    pub rx: u32,
    /// For sending.
    pub tx: u32,
}

/// Rings of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// As they are.
    pub now: RingSizes,
    /// As large as they can be.
    pub max: RingSizes,
}

/// Numbers of channels, that is of queues with their interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCounts {
    /// That only receive.
    pub rx: u32,
    /// That only send.
    pub tx: u32,
    /// That do both.
    pub combined: u32,
}

/// Channels of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// In use.
    pub now: ChannelCounts,
    /// As many as there can be.
    pub max: ChannelCounts,
}

impl Channels {
    /// The counts that give `queues` queues each way, by combined channels where the driver has them.
    #[must_use]
    pub const fn for_queues(&self, queues: u32) -> ChannelCounts {
        if self.max.combined > 0 {
            ChannelCounts {
                rx: 0,
                tx: 0,
                combined: queues,
            }
        } else {
            ChannelCounts {
                rx: queues,
                tx: queues,
                combined: 0,
            }
        }
    }

    /// Most queues each way.
    #[must_use]
    pub fn queues_max(&self) -> u32 {
        if self.max.combined > 0 {
            self.max.combined
        } else {
            self.max.rx.min(self.max.tx)
        }
    }
}

/// An offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// Switched on.
    pub on: bool,
    /// Cannot be switched.
    pub fixed: bool,
}

/// What the kernel refused, or could not tell.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}{}", cure(.source))]
    Read {
        /// File meant.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something unexpected.
    #[error(
        "{path} holds {found:?} where {wanted} is expected; check that it belongs to sysfs or procfs"
    )]
    Content {
        /// File meant.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A file cannot be written.
    #[error("cannot write {value:?} to {path}: {source}{}", cure(.source))]
    Write {
        /// File meant.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("cannot {what}: {source}{}{}", words(.said), cure(.source))]
    Netlink {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's own words, if it had any.
        said: Option<String>,
    },
    /// The kernel took a value and did not do it.
    #[error("{what}: {wanted} was asked for, but the kernel made it {found}; {cure}")]
    NotTaken {
        /// The setting.
        what: String,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
        /// What to do.
        cure: &'static str,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run it as root, with CAP_NET_ADMIN and a writable sysfs"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount sysfs and procfs writable",
        _ => "",
    }
}

fn words(said: &Option<String>) -> String {
    said.as_ref()
        .map_or_else(String::new, |words| format!(" ({words})"))
}
