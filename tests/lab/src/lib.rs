//! The lab that end-to-end tests, the demo and the benchmarks stand on: hosts in network
//! namespaces, WAN links, QEMU guests whose memory checks itself. Linux, root, no KVM needed.
#![allow(clippy::cast_precision_loss, clippy::missing_errors_doc)]

pub mod content;
pub mod dir;
pub mod flows;
mod forwarder;
pub mod link;
pub mod netns;
pub mod procs;
mod tun;
pub mod watchdog;
