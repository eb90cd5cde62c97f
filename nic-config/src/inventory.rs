//! The NICs of this machine.
//!
//! In: sysfs and netlink through a [`Kernel`]. Out: one [`Nic`] for each PCI network function, bound
//! to whatever driver, with its interfaces. Promise: nothing is changed; virtual interfaces are no NICs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::kernel::{Channels, Kernel, KernelError, Link, Offload, Rings};
use crate::pci::PciAddress;
use crate::tree;

/// Drivers whose NICs serve DPDK and RDMA while the kernel keeps them; without their driver they serve
/// nobody.
pub const BIFURCATED: &[&str] = &["mlx4_core", "mlx5_core", "mana"];

/// PCI base class of network controllers.
const CLASS_NETWORK: i64 = 0x02;

/// A PCI network function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Where it is.
    pub pci: PciAddress,
    /// Vendor and device, as in `8086:1592`.
    pub id: String,
    /// Its driver, if it has one.
    pub driver: Option<String>,
    /// The driver that alone may bind it, if one was set.
    pub driver_override: Option<String>,
    /// The driver serves DPDK and RDMA itself: it must stay.
    pub bifurcated: bool,
    /// NUMA node, if the machine tells.
    pub numa_node: Option<u32>,
    /// IOMMU group, without which vfio-pci cannot serve it.
    pub iommu_group: Option<u32>,
    /// Virtual functions, if it can have some.
    pub sriov: Option<Sriov>,
    /// The function that it is a part of, if it is a virtual one.
    pub physical: Option<PciAddress>,
    /// RDMA devices.
    pub rdma: Vec<String>,
    /// Network interfaces; none while a user-space driver has it.
    pub interfaces: Vec<Interface>,
}

/// Virtual functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sriov {
    /// As many as there are.
    pub vfs: u32,
    /// As many as there can be.
    pub vfs_max: u32,
}

/// A network interface of a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// Switched on.
    pub up: bool,
    /// Speed in Mbit/s, if there is a link.
    pub speed_mbps: Option<u32>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Smallest and largest MTU that the driver takes.
    pub mtu_range: Option<(u32, u32)>,
    /// Queues in use for receiving.
    pub rx_queues: u32,
    /// Queues in use for sending.
    pub tx_queues: u32,
    /// Channels, if the driver tells.
    pub channels: Option<Channels>,
    /// Rings, if the driver tells.
    pub rings: Option<Rings>,
    /// Offloads by the kernel's names.
    pub offloads: BTreeMap<String, Offload>,
    /// Its addresses that others can reach.
    pub addresses: Vec<String>,
}

/// Where a PCI device's files are.
#[must_use]
pub fn device_folder(kernel: &dyn Kernel, pci: PciAddress) -> PathBuf {
    kernel.sys().join("bus/pci/devices").join(pci.to_string())
}

/// Every NIC, by PCI address.
///
/// # Errors
/// [`KernelError`].
pub fn all(kernel: &dyn Kernel) -> Result<Vec<Nic>, KernelError> {
    let interfaces = Interfaces::read(kernel)?;
    let mut nics = Vec::new();
    for name in tree::names(&kernel.sys().join("bus/pci/devices"))? {
        let Ok(pci) = name.parse::<PciAddress>() else {
            continue;
        };
        let class = tree::number(&device_folder(kernel, pci).join("class"))?;
        if class.is_some_and(|class| class >> 16 == CLASS_NETWORK) {
            nics.push(nic(kernel, pci, &interfaces)?);
        }
    }
    Ok(nics)
}

fn nic(kernel: &dyn Kernel, pci: PciAddress, all: &Interfaces) -> Result<Nic, KernelError> {
    let folder = device_folder(kernel, pci);
    let word = |name: &str| tree::number(&folder.join(name)).map(Option::unwrap_or_default);
    let driver = tree::link(&folder.join("driver"))?;
    let address = |name: &str| {
        let link = tree::link(&folder.join(name))?;
        Ok::<_, KernelError>(link.and_then(|link| link.parse().ok()))
    };
    let sriov = match tree::count(&folder.join("sriov_totalvfs"))? {
        Some(vfs_max) if vfs_max > 0 => Some(Sriov {
            vfs: tree::count(&folder.join("sriov_numvfs"))?.unwrap_or(0),
            vfs_max,
        }),
        _ => None,
    };
    let mut interfaces = Vec::new();
    for name in all.of(pci) {
        interfaces.extend(all.interface(kernel, name)?);
    }
    Ok(Nic {
        pci,
        id: format!("{:04x}:{:04x}", word("vendor")?, word("device")?),
        bifurcated: driver
            .as_deref()
            .is_some_and(|driver| BIFURCATED.contains(&driver)),
        driver,
        // The kernel writes "(null)" where none is set.
        driver_override: tree::text(&folder.join("driver_override"))?
            .filter(|name| !name.is_empty() && name != "(null)"),
        numa_node: tree::count(&folder.join("numa_node"))?,
        iommu_group: tree::link(&folder.join("iommu_group"))?.and_then(|group| group.parse().ok()),
        sriov,
        physical: address("physfn")?,
        rdma: tree::names(&folder.join("infiniband"))?,
        interfaces,
    })
}

/// Which interface rests on which PCI device, and what netlink tells of each.
struct Interfaces {
    owners: BTreeMap<String, PciAddress>,
    links: BTreeMap<String, Link>,
    addresses: BTreeMap<String, Vec<String>>,
}

impl Interfaces {
    fn read(kernel: &dyn Kernel) -> Result<Self, KernelError> {
        let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for address in kernel.addresses()?.into_iter().filter(|one| one.global) {
            let text = format!("{}/{}", address.address, address.prefix_len);
            addresses.entry(address.interface).or_default().push(text);
        }
        let links = kernel.links()?.into_iter();
        Ok(Self {
            owners: owners(kernel)?,
            links: links.map(|link| (link.name.clone(), link)).collect(),
            addresses,
        })
    }

    fn of(&self, pci: PciAddress) -> impl Iterator<Item = &str> {
        self.owners
            .iter()
            .filter(move |(_, owner)| **owner == pci)
            .map(|(name, _)| name.as_str())
    }

    /// `None` if it went away, or belongs to another network namespace.
    fn interface(&self, kernel: &dyn Kernel, name: &str) -> Result<Option<Interface>, KernelError> {
        let Some(link) = self.links.get(name) else {
            return Ok(None);
        };
        let folder = kernel.sys().join("class/net").join(name);
        let queues = tree::names(&folder.join("queues"))?;
        let count = |prefix: &str| {
            let count = queues
                .iter()
                .filter(|name| name.starts_with(prefix))
                .count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        Ok(Some(Interface {
            name: name.to_owned(),
            mac: link.mac.clone(),
            up: link.up,
            // The kernel writes -1, or the same as an unsigned number, while there is no link.
            speed_mbps: tree::count(&folder.join("speed"))?.filter(|speed| *speed != u32::MAX),
            mtu: link.mtu,
            mtu_range: link.mtu_range,
            rx_queues: count("rx-"),
            tx_queues: count("tx-"),
            channels: kernel.channels(name)?,
            rings: kernel.rings(name)?,
            offloads: kernel.offloads(name)?,
            addresses: self.addresses.get(name).cloned().unwrap_or_default(),
        }))
    }
}

/// The PCI device behind each interface that has one directly behind it: the nearest on the way from
/// the interface to the root of the devices. So a virtio interface belongs to the PCI device that
/// carries its virtio device, and a USB one to the USB controller, which is no NIC.
///
/// # Errors
/// [`KernelError`].
pub fn owners(kernel: &dyn Kernel) -> Result<BTreeMap<String, PciAddress>, KernelError> {
    let folder = kernel.sys().join("class/net");
    let mut owners = BTreeMap::new();
    for name in tree::names(&folder)? {
        let Ok(device) = folder.join(&name).canonicalize() else {
            continue;
        };
        if let Some(pci) = nearest_pci(&device) {
            owners.insert(name, pci);
        }
    }
    Ok(owners)
}

fn nearest_pci(device: &Path) -> Option<PciAddress> {
    device
        .components()
        .rev()
        .filter_map(|part| part.as_os_str().to_str())
        .find_map(|part| part.parse().ok())
}

/// Names of the interfaces of a PCI device at this moment.
///
/// # Errors
/// [`KernelError`].
pub fn interfaces_of(kernel: &dyn Kernel, pci: PciAddress) -> Result<Vec<String>, KernelError> {
    let owners = owners(kernel)?.into_iter();
    Ok(owners
        .filter(|(_, owner)| *owner == pci)
        .map(|(name, _)| name)
        .collect())
}

/// The virtual functions of a PCI device.
///
/// # Errors
/// [`KernelError`].
pub fn virtual_functions(
    kernel: &dyn Kernel,
    pci: PciAddress,
) -> Result<Vec<PciAddress>, KernelError> {
    let folder = device_folder(kernel, pci);
    let mut functions = Vec::new();
    for name in tree::names(&folder)? {
        if name.starts_with("virtfn") {
            let link = tree::link(&folder.join(name))?;
            functions.extend(link.and_then(|link| link.parse::<PciAddress>().ok()));
        }
    }
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_pci_device_owns_an_interface() {
        let owner = |path: &str| nearest_pci(Path::new(path)).map(|pci| pci.to_string());
        let bridge = "/sys/devices/pci0000:00/0000:00:1c.0/0000:3b:00.1/net/ens1";
        assert_eq!(owner(bridge).as_deref(), Some("0000:3b:00.1"));
        let virtio = "/sys/devices/pci0000:00/0000:00:03.0/virtio2/net/eth0";
        assert_eq!(owner(virtio).as_deref(), Some("0000:00:03.0"));
        assert_eq!(owner("/sys/devices/virtual/net/br0"), None);
    }
}
