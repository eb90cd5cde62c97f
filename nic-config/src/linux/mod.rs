//! The real kernel: sysfs and procfs where they are mounted, netlink for the rest. No tool is run and
//! none's output is parsed.
//!
//! In: calls of [`Kernel`]. Out: the kernel's answers. Promise: each call is a question of its own on a
//! fresh socket of the calling thread's network namespace, so nothing is remembered that could be stale.
//!
//! | module | what |
//! |---|---|
//! | [`socket`] | requests and answers |
//! | [`attributes`] | their attributes |
//! | [`route`] | links, addresses, routes |
//! | [`ethtool`] | rings, channels, offloads |

mod attributes;
mod ethtool;
mod route;
mod socket;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::kernel::{
    Address, ChannelCounts, Channels, Kernel, KernelError, Link, LinkChange, Offload, RingSizes,
    Rings, Route,
};
use ethtool::Ethtool;

/// The kernel that this program runs on.
#[derive(Clone, Debug)]
pub struct Linux {
    sys: PathBuf,
    proc: PathBuf,
}

impl Linux {
    /// With sysfs and procfs mounted at these places: `/sys` and `/proc`, or wherever a container sees
    /// those of its host.
    #[must_use]
    pub fn new(sys: &Path, proc: &Path) -> Self {
        Self {
            sys: sys.to_owned(),
            proc: proc.to_owned(),
        }
    }
}

impl Default for Linux {
    fn default() -> Self {
        Self::new(Path::new("/sys"), Path::new("/proc"))
    }
}

impl Kernel for Linux {
    fn sys(&self) -> &Path {
        &self.sys
    }

    fn proc(&self) -> &Path {
        &self.proc
    }

    fn write(&self, path: &Path, value: &str) -> Result<(), KernelError> {
        let write = || {
            // One write, since each is an order of its own to sysfs; the file is never made, since a
            // missing one means that the kernel has no such setting.
            let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
            file.write_all(format!("{value}\n").as_bytes())
        };
        write().map_err(|source| KernelError::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        })
    }

    fn links(&self) -> Result<Vec<Link>, KernelError> {
        route::links()
    }

    fn addresses(&self) -> Result<Vec<Address>, KernelError> {
        route::addresses()
    }

    fn routes(&self) -> Result<Vec<Route>, KernelError> {
        route::routes()
    }

    fn change_link(&self, interface: &str, change: &LinkChange) -> Result<(), KernelError> {
        route::change_link(interface, change)
    }

    fn rings(&self, interface: &str) -> Result<Option<Rings>, KernelError> {
        Ethtool::open()?.rings(interface)
    }

    fn set_rings(&self, interface: &str, sizes: RingSizes) -> Result<(), KernelError> {
        Ethtool::open()?.set_rings(interface, sizes)
    }

    fn channels(&self, interface: &str) -> Result<Option<Channels>, KernelError> {
        Ethtool::open()?.channels(interface)
    }

    fn set_channels(&self, interface: &str, counts: ChannelCounts) -> Result<(), KernelError> {
        Ethtool::open()?.set_channels(interface, counts)
    }

    fn offloads(&self, interface: &str) -> Result<BTreeMap<String, Offload>, KernelError> {
        Ethtool::open()?.offloads(interface)
    }

    fn set_offloads(
        &self,
        interface: &str,
        wanted: &BTreeMap<String, bool>,
    ) -> Result<(), KernelError> {
        Ethtool::open()?.set_offloads(interface, wanted)
    }
}
