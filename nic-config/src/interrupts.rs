//! Queues of a NIC and the cores that serve them.
//!
//! In: a PCI device and a set of cores. Out: its queue interrupts with the cores they go to. Promise:
//! queue n of each direction goes to the n-th core, the cores taking turns; interrupts that serve no
//! queue are left alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cores::CoreSet;
use crate::inventory::device_folder;
use crate::kernel::{Kernel, KernelError};
use crate::pci::PciAddress;
use crate::tree;

/// How drivers end the name of a queue's interrupt before its number: `eth0-TxRx-3`, `eth0-rx-0`,
/// `mlx5_comp3@pci:…`, `virtio0-input.1`.
const QUEUE_WORDS: &[&str] = &[
    "txrx", "tx-rx", "rxtx", "rx", "tx", "input", "output", "comp", "fp", "queue", "ntfy-blk",
    "mlx4",
];

/// The queue that an interrupt of this name serves.
fn queue_of(name: &str) -> Option<u32> {
    let name = name.split('@').next().unwrap_or(name);
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let queue = name[word.len()..].parse().ok()?;
    let word = word.trim_end_matches(['-', '.', '_']).to_ascii_lowercase();
    QUEUE_WORDS
        .iter()
        .any(|end| word.ends_with(end))
        .then_some(queue)
}

/// Where the cores of an interrupt are set.
#[must_use]
pub fn affinity_file(kernel: &dyn Kernel, interrupt: u32) -> PathBuf {
    kernel
        .proc()
        .join(format!("irq/{interrupt}/smp_affinity_list"))
}

/// The queue interrupts of a device, each with its queue. An interrupt has a handler, and so a name,
/// only while the interface is switched on.
///
/// # Errors
/// [`KernelError`].
pub fn queues(kernel: &dyn Kernel, pci: PciAddress) -> Result<BTreeMap<u32, u32>, KernelError> {
    let mut queues = BTreeMap::new();
    for interrupt in tree::names(&device_folder(kernel, pci).join("msi_irqs"))? {
        let Ok(interrupt) = interrupt.parse::<u32>() else {
            continue;
        };
        // Each handler has a folder of its name there.
        let handlers = tree::names(&kernel.proc().join(format!("irq/{interrupt}")))?;
        if let Some(queue) = handlers.iter().find_map(|name| queue_of(name)) {
            queues.insert(interrupt, queue);
        }
    }
    Ok(queues)
}

/// The cores that each queue interrupt goes to now.
///
/// # Errors
/// [`KernelError`].
pub fn affinities(
    kernel: &dyn Kernel,
    pci: PciAddress,
) -> Result<BTreeMap<u32, CoreSet>, KernelError> {
    let mut affinities = BTreeMap::new();
    for interrupt in queues(kernel, pci)?.into_keys() {
        if let Some(cores) = affinity(kernel, interrupt)? {
            affinities.insert(interrupt, cores);
        }
    }
    Ok(affinities)
}

/// The cores that an interrupt goes to; `None` if it is gone.
///
/// # Errors
/// [`KernelError`].
pub fn affinity(kernel: &dyn Kernel, interrupt: u32) -> Result<Option<CoreSet>, KernelError> {
    let path = affinity_file(kernel, interrupt);
    let Some(text) = tree::text(&path)? else {
        return Ok(None);
    };
    let cores = text.parse().map_err(|_| KernelError::Content {
        path,
        found: text.chars().take(60).collect(),
        wanted: "a list of cores",
    })?;
    Ok(Some(cores))
}

/// The one core that each queue interrupt should go to.
///
/// # Errors
/// [`KernelError`].
pub fn wanted(
    kernel: &dyn Kernel,
    pci: PciAddress,
    cores: &CoreSet,
) -> Result<BTreeMap<u32, CoreSet>, KernelError> {
    let queues = queues(kernel, pci)?.into_iter();
    Ok(queues
        .filter_map(|(interrupt, queue)| {
            let core = cores.of_queue(queue)?;
            Some((interrupt, CoreSet::from_iter([core])))
        })
        .collect())
}

/// irqbalance runs, which moves interrupts by its own rules.
///
/// # Errors
/// [`KernelError`].
pub fn irqbalance_runs(kernel: &dyn Kernel) -> Result<bool, KernelError> {
    for name in tree::names(kernel.proc())? {
        let process = name.bytes().all(|byte| byte.is_ascii_digit());
        let file = kernel.proc().join(&name).join("comm");
        if process && tree::text(&file)?.as_deref() == Some("irqbalance") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_are_told_apart() {
        for (name, queue) in [
            ("ens1f0-TxRx-12", Some(12)),
            ("ice-ens1-TxRx-0", Some(0)),
            ("eth0-rx-0", Some(0)),
            ("eth0-Tx-Rx-3", Some(3)),
            ("mlx5_comp7@pci:0000:3b:00.0", Some(7)),
            ("virtio0-input.1", Some(1)),
            ("eth0-fp-2", Some(2)),
            ("mlx5_async0@pci:0000:3b:00.0", None),
            ("i40e-0000:3b:00.0:misc", None),
            ("virtio0-config", None),
            ("eth0", None),
            ("smp_affinity_list", None),
            ("eth0-rx-", None),
            ("eth0-rx-99999999999", None),
        ] {
            assert_eq!(queue_of(name), queue, "{name}");
        }
    }
}
