//! What is wanted of a NIC, as a TOML profile.
//!
//! In: text. Out: a [`Profile`] whose values are each within what any NIC could take, with the line
//! that each came from. Promise: an unknown key, a value of the wrong kind or out of range, and keys
//! that contradict each other are refused with the line and the reason.
//!
//! ```toml
//! name = "migration-100g"
//!
//! [nic]                       # exactly one of the two
//! pci = "0000:3b:00.0"        # or: interface = "ens1f0np0"
//!
//! [driver]
//! bind = "kernel"             # or "vfio-pci", for DPDK; then [link] to [sriov] are the data plane's
//!
//! [link]
//! mtu = 9000                  # bytes
//! up = true
//!
//! [rings]                     # descriptors, or "max"
//! rx = 4096
//! tx = "max"
//!
//! [queues]
//! count = "cores"             # a number, or as many as `cores` lists
//! cores = "node"              # cores of the NIC's NUMA node, or a list of some of them: "2-9"
//!
//! [offloads]                  # by the kernel's names, as `dwcpctl nic list --json` shows them
//! rx-lro = false
//!
//! [sriov]
//! vfs = 4
//!
//! [hugepages]
//! size_kib = 2048
//! pages = 512                 # at least, on each of the nodes
//! nodes = "nic"               # the NIC's NUMA node, or a list: "0-1"
//!
//! [cores]
//! isolated = "2-9"            # checked and advised: it takes a restart
//! ```

mod parse;
mod raw;

use std::collections::BTreeMap;

use crate::cores::CoreSet;
use crate::pci::PciAddress;

pub use parse::PROFILE_BYTES_MAX;

/// A value and the line of the profile that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its line, from 1.
    pub line: usize,
}

/// A profile. What is absent is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name, for people.
    pub name: Option<String>,
    /// The NIC meant.
    pub nic: At<NicName>,
    /// Who shall drive it.
    pub bind: Option<At<Bind>>,
    /// Largest packet in bytes.
    pub mtu: Option<At<u32>>,
    /// Switched on or off.
    pub up: Option<At<bool>>,
    /// Ring for receiving.
    pub rx_ring: Option<At<Ring>>,
    /// Ring for sending.
    pub tx_ring: Option<At<Ring>>,
    /// Queues each way.
    pub queues: Option<At<Queues>>,
    /// Cores that serve the queues.
    pub queue_cores: Option<At<QueueCores>>,
    /// Offloads on and off.
    pub offloads: BTreeMap<String, At<bool>>,
    /// Virtual functions.
    pub vfs: Option<At<u32>>,
    /// Hugepages.
    pub hugepages: Option<Hugepages>,
    /// Cores that the scheduler should leave alone.
    pub isolated: Option<At<CoreSet>>,
}

/// How a NIC is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicName {
    /// By its place.
    Pci(PciAddress),
    /// By its interface.
    Interface(String),
}

/// Who drives a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// The kernel's driver for it.
    Kernel,
    /// vfio-pci, on behalf of a user-space driver.
    VfioPci,
}

/// Size of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// So many descriptors.
    Descriptors(u32),
    /// As many as the NIC takes.
    Max,
}

/// Number of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// So many.
    Count(u32),
    /// One for each core that serves them.
    Cores,
}

/// Cores for the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueCores {
    /// Those of the NIC's NUMA node.
    Node,
    /// These.
    List(CoreSet),
}

/// NUMA nodes for hugepages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// The NIC's.
    Nic,
    /// These.
    List(CoreSet),
}

/// Hugepages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hugepages {
    /// Size of a page in KiB.
    pub size_kib: At<u32>,
    /// Pages on each node, at least.
    pub pages: At<u32>,
    /// Where; at the line of the size if the profile does not say.
    pub nodes: At<Nodes>,
}

/// A profile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("profile line {line}: {problem}")]
pub struct ProfileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there, and what would be right.
    pub problem: String,
}
