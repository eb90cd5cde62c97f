//! Takes a NIC from its kernel driver for vfio-pci, and gives it back.
//!
//! In: a PCI address. Out: the NIC bound. Promise: [`DriverState`] holds what the kernel's driver
//! forgets when it loses the NIC, and [`give_back`] sets it again: the interface's name, state, MTU,
//! rings, queues and offloads. Both ways can be gone from any point in between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::change::{set_channels, set_mtu, set_offloads, set_rings, set_up};
use crate::inventory::{device_folder, interfaces_of};
use crate::kernel::{ChannelCounts, Kernel, KernelError, Link, LinkChange, RingSizes};
use crate::pci::PciAddress;
use crate::tree;

/// The driver that hands a NIC to user space.
pub const VFIO: &str = "vfio-pci";
/// How long a driver may take to show its interfaces. Real ones load firmware first.
const INTERFACE_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A NIC under its driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverState {
    /// The driver, if there is one.
    pub driver: Option<String>,
    /// The driver that alone might bind it, if one was set.
    pub driver_override: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceState>,
}

/// What an interface loses with its driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceState {
    name: String,
    mac: String,
    up: bool,
    mtu: u32,
    rings: Option<RingSizes>,
    channels: Option<ChannelCounts>,
    /// Those that can be switched.
    offloads: BTreeMap<String, bool>,
}

impl DriverState {
    /// Reads it.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn read(kernel: &dyn Kernel, pci: PciAddress) -> Result<Self, KernelError> {
        let folder = device_folder(kernel, pci);
        let over = tree::text(&folder.join("driver_override"))?;
        Ok(Self {
            driver: tree::link(&folder.join("driver"))?,
            // The kernel writes "(null)" where none is set.
            driver_override: over.filter(|name| !name.is_empty() && name != "(null)"),
            interfaces: interfaces(kernel, pci)?,
        })
    }
}

impl InterfaceState {
    fn read(kernel: &dyn Kernel, link: Link) -> Result<Self, KernelError> {
        let offloads = kernel.offloads(&link.name)?.into_iter();
        Ok(Self {
            rings: kernel.rings(&link.name)?.map(|rings| rings.now),
            channels: kernel.channels(&link.name)?.map(|channels| channels.now),
            offloads: offloads
                .filter(|(_, offload)| !offload.fixed)
                .map(|(name, offload)| (name, offload.on))
                .collect(),
            name: link.name,
            mac: link.mac,
            up: link.up,
            mtu: link.mtu,
        })
    }

    fn restore(&self, kernel: &dyn Kernel, now: &Link) -> Result<(), KernelError> {
        let name = &self.name;
        if now.name != *name {
            set_up(kernel, &now.name, false)?;
            kernel.change_link(&now.name, &LinkChange::Name(name.clone()))?;
        }
        set_mtu(kernel, name, self.mtu)?;
        if let Some(channels) = self.channels {
            set_channels(kernel, name, channels)?;
        }
        if let Some(rings) = self.rings {
            set_rings(kernel, name, rings)?;
        }
        set_offloads(kernel, name, &self.offloads)?;
        set_up(kernel, name, self.up)
    }
}

/// The interfaces of a NIC as they are.
///
/// # Errors
/// [`KernelError`].
pub fn interfaces(
    kernel: &dyn Kernel,
    pci: PciAddress,
) -> Result<Vec<InterfaceState>, KernelError> {
    let links = links_of(kernel, pci)?.into_iter();
    links
        .map(|link| InterfaceState::read(kernel, link))
        .collect()
}

/// Sets those interfaces of a NIC as they were that it still has.
///
/// # Errors
/// [`KernelError`].
pub fn restore(
    kernel: &dyn Kernel,
    pci: PciAddress,
    interfaces: &[InterfaceState],
) -> Result<(), KernelError> {
    for link in links_of(kernel, pci)? {
        if let Some(state) = interfaces.iter().find(|state| state.name == link.name) {
            state.restore(kernel, &link)?;
        }
    }
    Ok(())
}

fn links_of(kernel: &dyn Kernel, pci: PciAddress) -> Result<Vec<Link>, KernelError> {
    let own = interfaces_of(kernel, pci)?;
    let links = kernel.links()?.into_iter();
    Ok(links.filter(|link| own.contains(&link.name)).collect())
}

fn bound_to(kernel: &dyn Kernel, pci: PciAddress) -> Result<Option<String>, KernelError> {
    tree::link(&device_folder(kernel, pci).join("driver"))
}

fn set_override(
    kernel: &dyn Kernel,
    pci: PciAddress,
    driver: Option<&str>,
) -> Result<(), KernelError> {
    // An empty line takes the override away.
    let path = device_folder(kernel, pci).join("driver_override");
    kernel.write(&path, driver.unwrap_or(""))
}

fn unbind(kernel: &dyn Kernel, pci: PciAddress) -> Result<(), KernelError> {
    if bound_to(kernel, pci)?.is_none() {
        return Ok(());
    }
    let path = device_folder(kernel, pci).join("driver/unbind");
    kernel.write(&path, &pci.to_string())
}

fn probe(kernel: &dyn Kernel, pci: PciAddress, wanted: &str) -> Result<(), KernelError> {
    let path = kernel.sys().join("bus/pci/drivers_probe");
    kernel.write(&path, &pci.to_string())?;
    let found = bound_to(kernel, pci)?;
    if found.as_deref() == Some(wanted) {
        return Ok(());
    }
    Err(KernelError::NotTaken {
        what: format!("driver of {pci}"),
        wanted: wanted.to_owned(),
        found: found.unwrap_or_else(|| "none".to_owned()),
        cure: "load the driver with modprobe, and look at the kernel's log for what it says of the NIC",
    })
}

/// Binds a NIC to vfio-pci.
///
/// # Errors
/// [`KernelError`]; [`give_back`] leads back from wherever it stopped.
pub fn take(kernel: &dyn Kernel, pci: PciAddress) -> Result<(), KernelError> {
    set_override(kernel, pci, Some(VFIO))?;
    unbind(kernel, pci)?;
    probe(kernel, pci, VFIO)
}

/// Binds a NIC to the driver that it had, and sets its interfaces as they were.
///
/// # Errors
/// [`KernelError`]; may be called again.
pub fn give_back(
    kernel: &dyn Kernel,
    pci: PciAddress,
    state: &DriverState,
) -> Result<(), KernelError> {
    set_override(kernel, pci, state.driver_override.as_deref())?;
    if bound_to(kernel, pci)? != state.driver {
        unbind(kernel, pci)?;
        if let Some(driver) = &state.driver {
            probe(kernel, pci, driver)?;
        }
    }
    let began = Instant::now();
    for (index, interface) in state.interfaces.iter().enumerate() {
        let link = loop {
            let links = links_of(kernel, pci)?;
            // Some drivers make an address up at each start: then their order has to do.
            let same = links.iter().find(|link| link.mac == interface.mac);
            let complete = links.len() >= state.interfaces.len();
            let place = links.get(index).filter(|_| complete);
            if let Some(link) = same.or(place) {
                break link.clone();
            }
            if began.elapsed() > INTERFACE_TIME_MAX {
                return Err(KernelError::NotTaken {
                    what: format!("interfaces of {pci}"),
                    wanted: interface.name.clone(),
                    found: "none".to_owned(),
                    cure: "look at the kernel's log for what the driver says; then revert again",
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        interface.restore(kernel, &link)?;
    }
    Ok(())
}
