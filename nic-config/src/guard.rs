//! Keeps the host reachable.
//!
//! In: a NIC. Out: why it must not be touched, or nothing. Promise: the NIC that carries a default
//! route, and the one without which no address of this host could be reached from outside, are
//! refused, also when bonds, bridges or VLANs lie between the NIC and the route.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory;
use crate::kernel::{Kernel, KernelError};
use crate::pci::PciAddress;
use crate::tree;

/// Why a NIC is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needed {
    /// A default route leads out of this interface, which rests on the NIC.
    DefaultRoute(String),
    /// Only this interface, which rests on the NIC, has addresses that others can reach.
    OnlyManagement {
        /// The interface.
        interface: String,
        /// Its addresses.
        addresses: Vec<String>,
    },
}

/// Which interface lies on top of which.
struct Stack {
    uppers: BTreeMap<String, Vec<String>>,
    /// Interfaces with a device behind them, PCI or not.
    real: BTreeSet<String>,
}

impl Stack {
    fn read(kernel: &dyn Kernel) -> Result<Self, KernelError> {
        let folder = kernel.sys().join("class/net");
        let mut stack = Self {
            uppers: BTreeMap::new(),
            real: BTreeSet::new(),
        };
        for name in tree::names(&folder)? {
            let files = tree::names(&folder.join(&name))?;
            if files.iter().any(|file| file == "device") {
                stack.real.insert(name.clone());
            }
            let uppers = files.iter().filter_map(|file| file.strip_prefix("upper_"));
            stack
                .uppers
                .insert(name, uppers.map(str::to_owned).collect());
        }
        Ok(stack)
    }

    /// These interfaces and all that rest on them.
    fn above(&self, interfaces: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut next: Vec<String> = interfaces.into_iter().collect();
        while let Some(name) = next.pop() {
            // Seen before: a ring of interfaces ends here.
            if found.insert(name.clone()) {
                next.extend(self.uppers.get(&name).into_iter().flatten().cloned());
            }
        }
        found
    }
}

/// Asks whether the host needs a NIC to be reached, its virtual functions included.
///
/// # Errors
/// [`KernelError`].
pub fn needed(kernel: &dyn Kernel, pci: PciAddress) -> Result<Option<Needed>, KernelError> {
    let functions = inventory::virtual_functions(kernel, pci)?;
    let owners = inventory::owners(kernel)?;
    let own: BTreeSet<String> = owners
        .iter()
        .filter(|(_, owner)| **owner == pci || functions.contains(owner))
        .map(|(name, _)| name.clone())
        .collect();
    let stack = Stack::read(kernel)?;
    let touched = stack.above(own.iter().cloned());
    for route in kernel.routes()?.into_iter().filter(|route| route.default) {
        if let Some(name) = route
            .interfaces
            .into_iter()
            .find(|out| touched.contains(out))
        {
            return Ok(Some(Needed::DefaultRoute(name)));
        }
    }
    // What rests on another NIC as well might still be lost, so only what rests on others alone counts.
    let others = stack.above(stack.real.difference(&own).cloned());
    let addresses = kernel.addresses()?.into_iter();
    let global: Vec<_> = addresses
        .filter(|address| address.global && !address.address.is_loopback())
        .collect();
    let elsewhere = global.iter().any(|address| {
        others.contains(&address.interface) && !touched.contains(&address.interface)
    });
    let Some(first) = global
        .iter()
        .find(|address| touched.contains(&address.interface))
    else {
        return Ok(None);
    };
    if elsewhere {
        return Ok(None);
    }
    let interface = first.interface.clone();
    let addresses = global
        .iter()
        .filter(|address| address.interface == interface)
        .map(|address| address.address.to_string())
        .collect();
    Ok(Some(Needed::OnlyManagement {
        interface,
        addresses,
    }))
}
