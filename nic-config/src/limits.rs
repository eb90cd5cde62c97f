//! What the machine can do: its cores and nodes, and whether a NIC can go to vfio-pci.
//!
//! In: sysfs. Out: facts, and reasons against. Promise: nothing is changed, and what would leave the
//! NIC or its neighbours without a driver is found beforehand.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cores::CoreSet;
use crate::driver::VFIO;
use crate::inventory::{self, Nic, device_folder};
use crate::kernel::{Kernel, KernelError};
use crate::tree;

/// PCI base class of bridges, which share a group without harm.
const CLASS_BRIDGE: i64 = 0x06;

/// Cores and NUMA nodes.
pub struct Topology {
    /// Cores that run.
    pub online: CoreSet,
    /// Cores of each node; empty if the machine has no nodes.
    pub nodes: BTreeMap<u32, CoreSet>,
}

impl Topology {
    /// Reads it.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn read(kernel: &dyn Kernel) -> Result<Self, KernelError> {
        let system = kernel.sys().join("devices/system");
        let mut nodes = BTreeMap::new();
        for name in tree::names(&system.join("node"))? {
            if let Some(Ok(node)) = name.strip_prefix("node").map(str::parse) {
                nodes.insert(
                    node,
                    cores(&system.join("node").join(&name).join("cpulist"))?,
                );
            }
        }
        Ok(Self {
            online: cores(&system.join("cpu/online"))?,
            nodes,
        })
    }

    /// The running cores near a node; all of them if the node is not known.
    #[must_use]
    pub fn near(&self, node: Option<u32>) -> CoreSet {
        let cores = node.and_then(|node| self.nodes.get(&node));
        let cores = cores.unwrap_or(&self.online);
        cores.without(&cores.without(&self.online))
    }
}

fn cores(path: &Path) -> Result<CoreSet, KernelError> {
    let text = tree::text(path)?.unwrap_or_default();
    text.parse().map_err(|_| KernelError::Content {
        path: path.to_owned(),
        found: text.chars().take(60).collect(),
        wanted: "a list of cores",
    })
}

/// The cores that the scheduler leaves alone since the machine started.
///
/// # Errors
/// [`KernelError`].
pub fn isolated(kernel: &dyn Kernel) -> Result<CoreSet, KernelError> {
    cores(&kernel.sys().join("devices/system/cpu/isolated"))
}

/// What speaks against giving a NIC to vfio-pci, each with its cure.
///
/// # Errors
/// [`KernelError`].
pub fn vfio(kernel: &dyn Kernel, nic: &Nic) -> Result<Vec<(String, String)>, KernelError> {
    let mut found = Vec::new();
    let pci = nic.pci;
    if nic.bifurcated {
        let driver = nic.driver.as_deref().unwrap_or_default();
        found.push((
            format!("{driver} serves DPDK and RDMA on {pci} itself and must keep it"),
            "write bind = \"kernel\"".to_owned(),
        ));
    }
    if !kernel.sys().join("bus/pci/drivers").join(VFIO).exists() {
        found.push((
            "the vfio-pci driver is not loaded".to_owned(),
            "load it: modprobe vfio-pci; for every start: echo vfio-pci > /etc/modules-load.d/vfio-pci.conf".to_owned(),
        ));
    }
    if nic.iommu_group.is_none() {
        found.push((
            format!("{pci} is in no IOMMU group, so vfio-pci cannot keep it to its memory"),
            "enable the IOMMU (VT-d, AMD-Vi) in the firmware, and with intel_iommu=on on the kernel's command line".to_owned(),
        ));
    }
    neighbours(kernel, nic, &mut found)?;
    if nic.sriov.is_some_and(|sriov| sriov.vfs > 0) {
        found.push((
            format!("{pci} has virtual functions, which go away with the driver"),
            "set their number to 0 first: a profile with vfs = 0 in [sriov]".to_owned(),
        ));
    }
    for interface in &nic.interfaces {
        let name = &interface.name;
        if !interface.addresses.is_empty() {
            found.push((
                format!("{name} on {pci} has addresses ({}), which go away with the driver", interface.addresses.join(", ")),
                format!("take it out of the host's network configuration, then: ip address flush dev {name}"),
            ));
        }
        let files = tree::names(&kernel.sys().join("class/net").join(name))?;
        let uppers: Vec<_> = files
            .iter()
            .filter_map(|file| file.strip_prefix("upper_"))
            .collect();
        if !uppers.is_empty() {
            found.push((
                format!("{} on top of {name} would lose it", uppers.join(", ")),
                format!("take {name} out of it first"),
            ));
        }
    }
    Ok(found)
}

/// Devices of the same IOMMU group must not stay with kernel drivers.
fn neighbours(
    kernel: &dyn Kernel,
    nic: &Nic,
    found: &mut Vec<(String, String)>,
) -> Result<(), KernelError> {
    let group = device_folder(kernel, nic.pci).join("iommu_group/devices");
    for name in tree::names(&group)? {
        let Ok(other) = name.parse() else { continue };
        if other == nic.pci {
            continue;
        }
        let folder = inventory::device_folder(kernel, other);
        let class = tree::number(&folder.join("class"))?;
        if class.is_some_and(|class| class >> 16 == CLASS_BRIDGE) {
            continue;
        }
        match tree::link(&folder.join("driver"))? {
            Some(driver) if driver != VFIO => found.push((
                format!(
                    "{other} is in the same IOMMU group as {} and bound to {driver}",
                    nic.pci
                ),
                format!("bind {other} to vfio-pci as well, or move the NIC to another slot"),
            )),
            _ => {}
        }
    }
    Ok(())
}
