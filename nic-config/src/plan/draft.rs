//! A plan in the making: each setting of a profile beside what is there.
//!
//! In: a profile and the kernel's facts. Out: the changes, or everything that speaks against them.

use std::collections::BTreeMap;

use super::{Plan, PlanError, Refusal, guarded};
use crate::change::{self, Change, Line};
use crate::cores::CoreSet;
use crate::driver::{self, DriverState, VFIO};
use crate::interrupts;
use crate::inventory::{self, Interface, Nic};
use crate::kernel::{Kernel, KernelError, RingSizes};
use crate::limits::{self, Topology};
use crate::profile::{At, Bind, NicName, Nodes, Profile, QueueCores, Queues, Ring};
use crate::tree;

/// The difference. Whether the host can do without the NIC is asked only where all would be lost with the driver.
///
/// # Errors
/// [`PlanError`].
pub fn difference(kernel: &dyn Kernel, profile: &Profile) -> Result<Plan, PlanError> {
    let nics = inventory::all(kernel)?;
    let named = |nic: &&Nic| match &profile.nic.value {
        NicName::Pci(pci) => nic.pci == *pci,
        NicName::Interface(name) => nic.interfaces.iter().any(|one| one.name == *name),
    };
    let Some(nic) = nics.iter().find(named) else {
        return Err(PlanError::NoNic {
            line: profile.nic.line,
            name: match &profile.nic.value {
                NicName::Pci(pci) => pci.to_string(),
                NicName::Interface(name) => name.clone(),
            },
        });
    };
    let mut draft = Draft {
        kernel,
        profile,
        nic,
        topology: Topology::read(kernel)?,
        changes: Vec::new(),
        reboot: Vec::new(),
        notes: Vec::new(),
        refusals: Vec::new(),
    };
    draft.hugepages()?;
    draft.vfs()?;
    draft.link_settings()?;
    draft.driver()?;
    draft.isolated()?;
    if !draft.refusals.is_empty() {
        return Err(PlanError::Refused(draft.refusals));
    }
    Ok(Plan {
        nic: nic.pci,
        profile: profile.name.clone(),
        changes: draft.changes,
        reboot: draft.reboot,
        notes: draft.notes,
    })
}

/// A plan in the making.
struct Draft<'a> {
    kernel: &'a dyn Kernel,
    profile: &'a Profile,
    nic: &'a Nic,
    topology: Topology,
    changes: Vec<Change>,
    reboot: Vec<Line>,
    notes: Vec<String>,
    refusals: Vec<Refusal>,
}

impl Draft<'_> {
    fn refuse(&mut self, line: usize, problem: impl Into<String>, cure: impl Into<String>) {
        self.refusals.push(Refusal {
            line: Some(line),
            problem: problem.into(),
            cure: cure.into(),
            guard: false,
        });
    }

    fn hugepages(&mut self) -> Result<(), KernelError> {
        let Some(wanted) = &self.profile.hugepages else {
            return Ok(());
        };
        let nodes: Vec<Option<u32>> = match &wanted.nodes.value {
            Nodes::List(nodes) => nodes.iter().map(Some).collect(),
            Nodes::Nic => match self.nic.numa_node {
                Some(node) => vec![Some(node)],
                // A machine that does not say where its NIC is has one node, or none at all.
                None if self.topology.nodes.contains_key(&0) => vec![Some(0)],
                None => vec![None],
            },
        };
        for node in nodes {
            if let Some(node) = node.filter(|node| !self.topology.nodes.contains_key(node)) {
                self.refuse(
                    wanted.nodes.line,
                    format!("this machine has no node {node}"),
                    "choose among those under /sys/devices/system/node, or write \"nic\"",
                );
                continue;
            }
            let size_kib = wanted.size_kib.value;
            let file = change::pages_file(self.kernel, node, size_kib);
            let Some(from) = tree::count(&file)? else {
                let place = node.map_or_else(String::new, |node| format!(" on node {node}"));
                self.refuse(
                    wanted.size_kib.line,
                    format!("this machine has no hugepages of {size_kib} KiB{place}"),
                    "choose a size that is listed under /sys/kernel/mm/hugepages",
                );
                continue;
            };
            // More are there for somebody else's sake.
            if from < wanted.pages.value {
                self.changes.push(Change::Hugepages {
                    node,
                    size_kib,
                    from,
                    to: wanted.pages.value,
                });
            }
        }
        Ok(())
    }

    fn vfs(&mut self) -> Result<(), KernelError> {
        let Some(wanted) = &self.profile.vfs else {
            return Ok(());
        };
        let most = self.nic.sriov.map_or(0, |sriov| sriov.vfs_max);
        if wanted.value > most {
            self.refuse(
                wanted.line,
                format!("{} has at most {most} virtual functions", self.nic.pci),
                "lower vfs, or enable SR-IOV in the machine's firmware",
            );
            return Ok(());
        }
        let from = self.nic.sriov.map_or(0, |sriov| sriov.vfs);
        if from == wanted.value {
            return Ok(());
        }
        for function in inventory::virtual_functions(self.kernel, self.nic.pci)? {
            let folder = inventory::device_folder(self.kernel, function);
            if tree::link(&folder.join("driver"))?.as_deref() == Some(VFIO) {
                self.refuse(
                    wanted.line,
                    format!("virtual function {function} is bound to vfio-pci, so a guest may have it, and another number takes all away first"),
                    "stop what uses it and unbind it, or keep the number",
                );
            }
        }
        self.changes.push(Change::Vfs {
            nic: self.nic.pci,
            from,
            to: wanted.value,
            interfaces: driver::interfaces(self.kernel, self.nic.pci)?,
        });
        Ok(())
    }

    /// The one interface that the settings of the link are for.
    fn interface(&mut self) -> Option<Interface> {
        let profile = self.profile;
        let lines = [
            profile.mtu.as_ref().map(|at| at.line),
            profile.up.as_ref().map(|at| at.line),
            profile.rx_ring.as_ref().map(|at| at.line),
            profile.tx_ring.as_ref().map(|at| at.line),
            profile.queues.as_ref().map(|at| at.line),
            profile.queue_cores.as_ref().map(|at| at.line),
            profile.offloads.values().map(|at| at.line).min(),
        ];
        let line = lines.into_iter().flatten().min()?;
        let named = |one: &&Interface| match &profile.nic.value {
            NicName::Interface(name) => one.name == *name,
            NicName::Pci(_) => true,
        };
        let found: Vec<_> = self.nic.interfaces.iter().filter(named).collect();
        match found[..] {
            [one] => Some(one.clone()),
            [] => {
                let driver = self.nic.driver.as_deref().unwrap_or("no driver");
                self.refuse(
                    line,
                    format!("{} has no interface: {driver} has it", self.nic.pci),
                    "bind it to its kernel driver first: `dwcpctl nic revert` if a plan bound it to vfio-pci",
                );
                None
            }
            _ => {
                self.refuse(
                    line,
                    format!("{} has several interfaces", self.nic.pci),
                    "name the one that is meant by `interface` in [nic]",
                );
                None
            }
        }
    }

    fn link_settings(&mut self) -> Result<(), KernelError> {
        let Some(interface) = self.interface() else {
            return Ok(());
        };
        self.mtu(&interface);
        self.rings(&interface);
        let cores = self.queue_cores();
        let queues_change = self.queues(&interface, cores.as_ref());
        self.offloads(&interface);
        let up = self.up(&interface);
        if let (Some(cores), Some(at)) = (cores, &self.profile.queue_cores) {
            self.interrupts(at.line, cores, up, interface.up, queues_change)?;
        }
        Ok(())
    }

    fn mtu(&mut self, interface: &Interface) {
        let Some(wanted) = &self.profile.mtu else {
            return;
        };
        if let Some((min, max)) = interface.mtu_range
            && !(min..=max).contains(&wanted.value)
        {
            self.refuse(
                wanted.line,
                format!("{} takes an MTU of {min} to {max}", interface.name),
                "choose one of these",
            );
        } else if interface.mtu != wanted.value {
            self.changes.push(Change::Mtu {
                interface: interface.name.clone(),
                from: interface.mtu,
                to: wanted.value,
            });
        }
    }

    fn rings(&mut self, interface: &Interface) {
        let (rx, tx) = (&self.profile.rx_ring, &self.profile.tx_ring);
        let Some(line) = rx.iter().chain(tx).map(|at| at.line).min() else {
            return;
        };
        let Some(rings) = interface.rings else {
            self.refuse(
                line,
                format!("the driver of {} has no ring sizes to set", interface.name),
                "remove [rings]",
            );
            return;
        };
        let mut size = |wanted: &Option<At<Ring>>, key: &str, now: u32, max: u32| match wanted {
            None => now,
            Some(At {
                value: Ring::Max, ..
            }) => max,
            Some(At {
                value: Ring::Descriptors(size),
                line,
            }) => {
                if *size > max {
                    let problem = format!("{key} of {} holds at most {max}", interface.name);
                    self.refuse(*line, problem, "lower it, or write \"max\"");
                }
                *size
            }
        };
        let to = RingSizes {
            rx: size(rx, "the ring rx", rings.now.rx, rings.max.rx),
            tx: size(tx, "the ring tx", rings.now.tx, rings.max.tx),
        };
        if to != rings.now {
            self.changes.push(Change::Rings {
                interface: interface.name.clone(),
                from: rings.now,
                to,
            });
        }
    }

    /// The cores meant, checked.
    fn queue_cores(&mut self) -> Option<CoreSet> {
        let wanted = self.profile.queue_cores.as_ref()?;
        let near = self.topology.near(self.nic.numa_node);
        let QueueCores::List(cores) = &wanted.value else {
            return Some(near);
        };
        let far = cores.without(&near);
        if far.is_empty() {
            return Some(cores.clone());
        }
        let place = match self.nic.numa_node {
            Some(node) => format!("node {node}, where {} is", self.nic.pci),
            None => "this machine".to_owned(),
        };
        self.refuse(
            wanted.line,
            format!("cores {far} are not among those of {place}"),
            format!("choose among {near}, or write \"node\""),
        );
        None
    }

    /// `true` if the number of queues changes.
    fn queues(&mut self, interface: &Interface, cores: Option<&CoreSet>) -> bool {
        let Some(At { value, line }) = &self.profile.queues else {
            return false;
        };
        let Some(channels) = interface
            .channels
            .filter(|channels| channels.queues_max() > 0)
        else {
            self.refuse(
                *line,
                format!(
                    "the driver of {} has no number of queues to set",
                    interface.name
                ),
                "remove count",
            );
            return false;
        };
        let most = channels.queues_max();
        let wanted = match (value, cores) {
            (Queues::Count(count), _) => *count,
            (Queues::Cores, Some(cores)) => {
                u32::try_from(cores.len()).map_or(most, |n| n.min(most))
            }
            // The cores were refused.
            (Queues::Cores, None) => return false,
        };
        if wanted > most {
            self.refuse(
                *line,
                format!("{} has at most {most} queues", interface.name),
                "lower count, or write \"cores\"",
            );
            return false;
        }
        let to = channels.for_queues(wanted);
        if to == channels.now {
            return false;
        }
        self.changes.push(Change::Channels {
            interface: interface.name.clone(),
            from: channels.now,
            to,
        });
        true
    }

    fn offloads(&mut self, interface: &Interface) {
        let (mut from, mut to) = (BTreeMap::new(), BTreeMap::new());
        for (name, wanted) in &self.profile.offloads {
            match interface.offloads.get(name) {
                None => self.refuse(
                    wanted.line,
                    format!("{} has no offload {name:?}", interface.name),
                    "use the kernel's names: `dwcpctl nic list --json` shows them",
                ),
                Some(offload) if offload.on == wanted.value => {}
                Some(offload) if offload.fixed => self.refuse(
                    wanted.line,
                    format!("the driver of {} does not switch {name}", interface.name),
                    "remove it",
                ),
                Some(offload) => {
                    from.insert(name.clone(), offload.on);
                    to.insert(name.clone(), wanted.value);
                }
            }
        }
        if !to.is_empty() {
            self.changes.push(Change::Offloads {
                interface: interface.name.clone(),
                from,
                to,
            });
        }
    }

    /// `true` if the interface will be on.
    fn up(&mut self, interface: &Interface) -> bool {
        let Some(wanted) = &self.profile.up else {
            return interface.up;
        };
        if wanted.value != interface.up {
            self.changes.push(Change::Up {
                interface: interface.name.clone(),
                from: interface.up,
                to: wanted.value,
            });
        }
        wanted.value
    }

    fn interrupts(
        &mut self,
        line: usize,
        cores: CoreSet,
        up_after: bool,
        up_now: bool,
        queues_change: bool,
    ) -> Result<(), KernelError> {
        let pci = self.nic.pci;
        if !up_after {
            self.refuse(
                line,
                format!("{pci} has no queue interrupts while its interface is off"),
                "switch it on: `up = true` in [link]",
            );
            return Ok(());
        }
        let from = interrupts::affinities(self.kernel, pci)?;
        if from.is_empty() && up_now {
            self.refuse(
                line,
                format!("no interrupt of {pci} is named after a queue"),
                "remove `cores` from [queues]",
            );
            return Ok(());
        }
        let differs = from != interrupts::wanted(self.kernel, pci, &cores)?;
        if differs || queues_change || !up_now {
            self.changes.push(Change::Interrupts {
                nic: pci,
                from,
                to: cores,
            });
        }
        if interrupts::irqbalance_runs(self.kernel)? {
            self.notes.push(
                "irqbalance runs here and may move the interrupts: stop it, or let it leave these alone"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn driver(&mut self) -> Result<(), KernelError> {
        let Some(At { value, line }) = &self.profile.bind else {
            return Ok(());
        };
        let driver = self.nic.driver.as_deref();
        match value {
            Bind::Kernel if driver.is_none_or(|driver| driver == VFIO) => {
                let now = driver.unwrap_or("no driver");
                self.refuse(
                    *line,
                    format!("{} is bound to {now}", self.nic.pci),
                    "give it back first: `dwcpctl nic revert` if a plan bound it",
                );
            }
            Bind::VfioPci if driver != Some(VFIO) => {
                // First of all: the cures below would cost a host its way out.
                if let Some(refusal) = guarded(self.kernel, self.nic.pci)? {
                    self.refusals.push(refusal);
                    return Ok(());
                }
                let found = limits::vfio(self.kernel, self.nic)?;
                for (problem, cure) in found {
                    self.refuse(*line, problem, cure);
                }
                for device in &self.nic.rdma {
                    self.notes
                        .push(format!("RDMA device {device} goes away with the driver"));
                }
                let from = DriverState::read(self.kernel, self.nic.pci)?;
                self.changes.push(Change::Driver {
                    nic: self.nic.pci,
                    from,
                });
            }
            Bind::Kernel | Bind::VfioPci => {}
        }
        Ok(())
    }

    fn isolated(&mut self) -> Result<(), KernelError> {
        let Some(wanted) = &self.profile.isolated else {
            return Ok(());
        };
        let unknown = wanted.value.without(&self.topology.online);
        if !unknown.is_empty() {
            let online = self.topology.online.clone();
            self.refuse(
                wanted.line,
                format!("this machine has no cores {unknown}"),
                format!("choose among {online}"),
            );
            return Ok(());
        }
        let now = limits::isolated(self.kernel)?;
        if !wanted.value.without(&now).is_empty() {
            let cores = &wanted.value;
            self.reboot.push(Line {
                setting: "isolated cores".to_owned(),
                from: if now.is_empty() { "none".to_owned() } else { now.to_string() },
                to: cores.to_string(),
                needs_reboot: Some(format!(
                    "add to the kernel's command line: isolcpus=managed_irq,domain,{cores} nohz_full={cores} rcu_nocbs={cores}"
                )),
            });
        }
        Ok(())
    }
}
