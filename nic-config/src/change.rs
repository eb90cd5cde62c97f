//! One step of a plan: a setting, what it was, what it becomes.
//!
//! In: a [`Change`]. Out: the setting changed, or put back. Promises: what was there is read again just
//! before a change is made, and is all that is needed to undo it; each change is read back, since the
//! kernel may take a value and do less; undoing what was never made, or was undone, changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cores::CoreSet;
use crate::driver::{self, DriverState, InterfaceState};
use crate::interrupts;
use crate::inventory::device_folder;
use crate::kernel::{ChannelCounts, Kernel, KernelError, Link, LinkChange, RingSizes};
use crate::pci::PciAddress;
use crate::tree;

/// A change of one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Pages of a NUMA node, or of the machine if it has no nodes.
    Hugepages {
        /// The node.
        node: Option<u32>,
        /// Size of a page in KiB.
        size_kib: u32,
        /// Pages before.
        from: u32,
        /// Pages after.
        to: u32,
    },
    /// Virtual functions.
    Vfs {
        /// Of this NIC.
        nic: PciAddress,
        /// Before.
        from: u32,
        /// After.
        to: u32,
        /// What some drivers reset together with the number.
        interfaces: Vec<InterfaceState>,
    },
    /// Largest packet, in bytes.
    Mtu {
        /// Of this interface.
        interface: String,
        /// Before.
        from: u32,
        /// After.
        to: u32,
    },
    /// Sizes of the rings.
    Rings {
        /// Of this interface.
        interface: String,
        /// Before.
        from: RingSizes,
        /// After.
        to: RingSizes,
    },
    /// Numbers of queues.
    Channels {
        /// Of this interface.
        interface: String,
        /// Before.
        from: ChannelCounts,
        /// After.
        to: ChannelCounts,
    },
    /// Offloads that change.
    Offloads {
        /// Of this interface.
        interface: String,
        /// Before.
        from: BTreeMap<String, bool>,
        /// After.
        to: BTreeMap<String, bool>,
    },
    /// Switched on or off.
    Up {
        /// This interface.
        interface: String,
        /// Before.
        from: bool,
        /// After.
        to: bool,
    },
    /// Cores that serve the queues.
    Interrupts {
        /// Of this NIC.
        nic: PciAddress,
        /// Each interrupt's cores before.
        from: BTreeMap<u32, CoreSet>,
        /// The cores that take turns after.
        to: CoreSet,
    },
    /// vfio-pci in place of the kernel's driver.
    Driver {
        /// For this NIC.
        nic: PciAddress,
        /// The driver before, and the settings that go with it.
        from: DriverState,
    },
}

/// A change as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The setting.
    pub setting: String,
    /// Its value before.
    pub from: String,
    /// Its value after.
    pub to: String,
    /// What has to be done by hand, if the change takes a restart of the machine.
    pub needs_reboot: Option<String>,
}

impl Change {
    /// The same change from what is there now.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn observed(&self, kernel: &dyn Kernel) -> Result<Self, KernelError> {
        let mut change = self.clone();
        match &mut change {
            Self::Hugepages {
                node,
                size_kib,
                from,
                ..
            } => *from = pages(kernel, *node, *size_kib)?,
            Self::Vfs {
                nic,
                from,
                interfaces,
                ..
            } => {
                *from = vfs(kernel, *nic)?;
                *interfaces = driver::interfaces(kernel, *nic)?;
            }
            Self::Mtu {
                interface, from, ..
            } => *from = link(kernel, interface)?.mtu,
            Self::Rings {
                interface, from, ..
            } => *from = rings(kernel, interface)?,
            Self::Channels {
                interface, from, ..
            } => *from = channels(kernel, interface)?,
            Self::Offloads {
                interface,
                from,
                to,
            } => *from = offloads(kernel, interface, to)?,
            Self::Up {
                interface, from, ..
            } => *from = link(kernel, interface)?.up,
            Self::Interrupts { nic, from, .. } => *from = interrupts::affinities(kernel, *nic)?,
            Self::Driver { nic, from } => *from = DriverState::read(kernel, *nic)?,
        }
        Ok(change)
    }

    /// Makes the change.
    ///
    /// # Errors
    /// [`KernelError`]; the setting may then be neither what it was nor what it should be.
    pub fn make(&self, kernel: &dyn Kernel) -> Result<(), KernelError> {
        match self {
            Self::Hugepages {
                node, size_kib, to, ..
            } => set_pages(kernel, *node, *size_kib, *to),
            Self::Vfs { nic, to, .. } => set_vfs(kernel, *nic, *to),
            Self::Mtu { interface, to, .. } => set_mtu(kernel, interface, *to),
            Self::Rings { interface, to, .. } => set_rings(kernel, interface, *to),
            Self::Channels { interface, to, .. } => set_channels(kernel, interface, *to),
            Self::Offloads { interface, to, .. } => set_offloads(kernel, interface, to),
            Self::Up { interface, to, .. } => set_up(kernel, interface, *to),
            Self::Interrupts { nic, to, .. } => spread(kernel, *nic, to),
            Self::Driver { nic, .. } => driver::take(kernel, *nic),
        }
    }

    /// Puts back what was there.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn undo(&self, kernel: &dyn Kernel) -> Result<(), KernelError> {
        match self {
            Self::Hugepages {
                node,
                size_kib,
                from,
                ..
            } => set_pages(kernel, *node, *size_kib, *from),
            Self::Vfs {
                nic,
                from,
                interfaces,
                ..
            } => {
                set_vfs(kernel, *nic, *from)?;
                driver::restore(kernel, *nic, interfaces)
            }
            Self::Mtu {
                interface, from, ..
            } => set_mtu(kernel, interface, *from),
            Self::Rings {
                interface, from, ..
            } => set_rings(kernel, interface, *from),
            Self::Channels {
                interface, from, ..
            } => set_channels(kernel, interface, *from),
            Self::Offloads {
                interface, from, ..
            } => set_offloads(kernel, interface, from),
            Self::Up {
                interface, from, ..
            } => set_up(kernel, interface, *from),
            Self::Interrupts { from, .. } => from
                .iter()
                .try_for_each(|(interrupt, cores)| set_affinity(kernel, *interrupt, cores)),
            Self::Driver { nic, from } => driver::give_back(kernel, *nic, from),
        }
    }

    /// The change touches the NIC, not only the host's memory.
    #[must_use]
    pub const fn touches_nic(&self) -> bool {
        !matches!(self, Self::Hugepages { .. })
    }

    /// The change as a person reads it.
    #[must_use]
    pub fn line(&self) -> Line {
        let of = |what: &str, interface: &str| format!("{what} of {interface}");
        let switch = |on: &bool| if *on { "on" } else { "off" }.to_owned();
        let (setting, from, to) = match self {
            Self::Hugepages {
                node,
                size_kib,
                from,
                to,
            } => (
                match node {
                    Some(node) => format!("hugepages of {size_kib} KiB on node {node}"),
                    None => format!("hugepages of {size_kib} KiB"),
                },
                from.to_string(),
                to.to_string(),
            ),
            Self::Vfs { from, to, .. } => (
                "virtual functions".to_owned(),
                from.to_string(),
                to.to_string(),
            ),
            Self::Mtu {
                interface,
                from,
                to,
            } => (of("mtu", interface), from.to_string(), to.to_string()),
            Self::Rings {
                interface,
                from,
                to,
            } => {
                let text = |sizes: &RingSizes| format!("rx {} tx {}", sizes.rx, sizes.tx);
                (of("rings", interface), text(from), text(to))
            }
            Self::Channels {
                interface,
                from,
                to,
            } => (of("queues", interface), queues(from), queues(to)),
            Self::Offloads {
                interface,
                from,
                to,
            } => {
                let text = |all: &BTreeMap<String, bool>| {
                    let words = all
                        .iter()
                        .map(|(name, on)| format!("{name} {}", switch(on)));
                    words.collect::<Vec<_>>().join(", ")
                };
                (of("offloads", interface), text(from), text(to))
            }
            Self::Up {
                interface,
                from,
                to,
            } => (of("state", interface), switch(from), switch(to)),
            Self::Interrupts { from, to, .. } => {
                let now: Vec<_> = from
                    .iter()
                    .map(|(interrupt, cores)| format!("{interrupt} on {cores}"))
                    .collect();
                let now = if now.is_empty() {
                    "as the driver sets them".to_owned()
                } else {
                    now.join(", ")
                };
                let to = format!("the queues in turn on cores {to}");
                ("interrupts".to_owned(), now, to)
            }
            Self::Driver { from, .. } => (
                "driver".to_owned(),
                from.driver.clone().unwrap_or_else(|| "none".to_owned()),
                driver::VFIO.to_owned(),
            ),
        };
        Line {
            setting,
            from,
            to,
            needs_reboot: None,
        }
    }
}

fn queues(counts: &ChannelCounts) -> String {
    let kinds = [
        (counts.combined, "combined"),
        (counts.rx, "rx"),
        (counts.tx, "tx"),
    ];
    let words: Vec<_> = kinds
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(" ")
    }
}

/// Reads the setting back.
fn taken<T: PartialEq>(
    what: impl Into<String>,
    wanted: &T,
    found: &T,
    text: impl Fn(&T) -> String,
    cure: &'static str,
) -> Result<(), KernelError> {
    if wanted == found {
        return Ok(());
    }
    Err(KernelError::NotTaken {
        what: what.into(),
        wanted: text(wanted),
        found: text(found),
        cure,
    })
}

const DRIVER_CURE: &str = "the driver does not do it: choose a value that it takes";

fn absent(what: String) -> KernelError {
    KernelError::Netlink {
        what,
        source: std::io::ErrorKind::NotFound.into(),
        said: None,
    }
}

fn missing(path: PathBuf) -> KernelError {
    KernelError::Read {
        path,
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// Where the number of hugepages is set.
#[must_use]
pub fn pages_file(kernel: &dyn Kernel, node: Option<u32>, size_kib: u32) -> PathBuf {
    let folder = match node {
        Some(node) => format!("devices/system/node/node{node}/hugepages"),
        None => "kernel/mm/hugepages".to_owned(),
    };
    let file = format!("{folder}/hugepages-{size_kib}kB/nr_hugepages");
    kernel.sys().join(file)
}

fn pages(kernel: &dyn Kernel, node: Option<u32>, size_kib: u32) -> Result<u32, KernelError> {
    let path = pages_file(kernel, node, size_kib);
    tree::count(&path)?.ok_or_else(|| missing(path))
}

fn set_pages(
    kernel: &dyn Kernel,
    node: Option<u32>,
    size_kib: u32,
    to: u32,
) -> Result<(), KernelError> {
    if pages(kernel, node, size_kib)? != to {
        kernel.write(&pages_file(kernel, node, size_kib), &to.to_string())?;
    }
    taken(
        format!("hugepages of {size_kib} KiB"),
        &to,
        &pages(kernel, node, size_kib)?,
        ToString::to_string,
        "free memory (or what uses the pages) and try again, or reserve them at boot with hugepages=",
    )
}

fn vfs(kernel: &dyn Kernel, nic: PciAddress) -> Result<u32, KernelError> {
    let path = device_folder(kernel, nic).join("sriov_numvfs");
    tree::count(&path)?.ok_or_else(|| missing(path))
}

fn set_vfs(kernel: &dyn Kernel, nic: PciAddress, to: u32) -> Result<(), KernelError> {
    let path = device_folder(kernel, nic).join("sriov_numvfs");
    let now = vfs(kernel, nic)?;
    if now == to {
        return Ok(());
    }
    // The kernel goes from one number to another by way of none.
    if now > 0 {
        kernel.write(&path, "0")?;
    }
    if to > 0 {
        kernel.write(&path, &to.to_string())?;
    }
    taken(
        "virtual functions",
        &to,
        &vfs(kernel, nic)?,
        ToString::to_string,
        DRIVER_CURE,
    )
}

fn link(kernel: &dyn Kernel, interface: &str) -> Result<Link, KernelError> {
    let mut links = kernel.links()?.into_iter();
    links
        .find(|link| link.name == interface)
        .ok_or_else(|| absent(format!("find interface {interface}")))
}

/// Sets the MTU if it differs.
pub(crate) fn set_mtu(kernel: &dyn Kernel, interface: &str, to: u32) -> Result<(), KernelError> {
    if link(kernel, interface)?.mtu != to {
        kernel.change_link(interface, &LinkChange::Mtu(to))?;
    }
    let now = link(kernel, interface)?.mtu;
    let what = format!("mtu of {interface}");
    taken(what, &to, &now, ToString::to_string, DRIVER_CURE)
}

/// Switches an interface if it differs.
pub(crate) fn set_up(kernel: &dyn Kernel, interface: &str, to: bool) -> Result<(), KernelError> {
    if link(kernel, interface)?.up == to {
        return Ok(());
    }
    kernel.change_link(interface, &LinkChange::Up(to))
}

fn rings(kernel: &dyn Kernel, interface: &str) -> Result<RingSizes, KernelError> {
    let rings = kernel.rings(interface)?;
    let rings = rings.ok_or_else(|| absent(format!("find the rings of {interface}")))?;
    Ok(rings.now)
}

/// Sets the ring sizes if they differ.
pub(crate) fn set_rings(
    kernel: &dyn Kernel,
    interface: &str,
    to: RingSizes,
) -> Result<(), KernelError> {
    if rings(kernel, interface)? != to {
        kernel.set_rings(interface, to)?;
    }
    taken(
        format!("rings of {interface}"),
        &to,
        &rings(kernel, interface)?,
        |sizes| format!("rx {} tx {}", sizes.rx, sizes.tx),
        "drivers round ring sizes: choose the one it was made",
    )
}

fn channels(kernel: &dyn Kernel, interface: &str) -> Result<ChannelCounts, KernelError> {
    let channels = kernel.channels(interface)?;
    let channels = channels.ok_or_else(|| absent(format!("find the channels of {interface}")))?;
    Ok(channels.now)
}

/// Sets the numbers of channels if they differ.
pub(crate) fn set_channels(
    kernel: &dyn Kernel,
    interface: &str,
    to: ChannelCounts,
) -> Result<(), KernelError> {
    if channels(kernel, interface)? != to {
        kernel.set_channels(interface, to)?;
    }
    let now = channels(kernel, interface)?;
    let what = format!("queues of {interface}");
    taken(what, &to, &now, queues, DRIVER_CURE)
}

/// The states of those offloads that `like` names.
fn offloads(
    kernel: &dyn Kernel,
    interface: &str,
    like: &BTreeMap<String, bool>,
) -> Result<BTreeMap<String, bool>, KernelError> {
    let all = kernel.offloads(interface)?.into_iter();
    Ok(all
        .filter(|(name, _)| like.contains_key(name))
        .map(|(name, offload)| (name, offload.on))
        .collect())
}

/// Switches those offloads that differ.
pub(crate) fn set_offloads(
    kernel: &dyn Kernel,
    interface: &str,
    to: &BTreeMap<String, bool>,
) -> Result<(), KernelError> {
    if offloads(kernel, interface, to)? != *to {
        kernel.set_offloads(interface, to)?;
    }
    taken(
        format!("offloads of {interface}"),
        to,
        &offloads(kernel, interface, to)?,
        |all| format!("{all:?}"),
        "some offloads need others: set those as well",
    )
}

fn set_affinity(kernel: &dyn Kernel, interrupt: u32, cores: &CoreSet) -> Result<(), KernelError> {
    let now = interrupts::affinity(kernel, interrupt)?;
    // An interrupt that is gone has no cores to set.
    if now.is_none_or(|now| now == *cores) {
        return Ok(());
    }
    let path = interrupts::affinity_file(kernel, interrupt);
    kernel.write(&path, &cores.to_string())
}

fn spread(kernel: &dyn Kernel, nic: PciAddress, cores: &CoreSet) -> Result<(), KernelError> {
    let wanted = interrupts::wanted(kernel, nic, cores)?;
    if wanted.is_empty() {
        return Err(KernelError::NotTaken {
            what: format!("interrupts of {nic}"),
            wanted: format!("queues on cores {cores}"),
            found: "a NIC without queue interrupts".to_owned(),
            cure: "switch the interface on with `up = true`, since drivers ask for interrupts then",
        });
    }
    for (interrupt, cores) in &wanted {
        set_affinity(kernel, *interrupt, cores)?;
    }
    let text = |all: &BTreeMap<u32, CoreSet>| {
        let words = all
            .iter()
            .map(|(interrupt, cores)| format!("{interrupt} on {cores}"));
        words.collect::<Vec<_>>().join(", ")
    };
    taken(
        format!("interrupts of {nic}"),
        &wanted,
        &interrupts::affinities(kernel, nic)?,
        text,
        "something else moves them: stop irqbalance, or make it leave them alone",
    )
}
