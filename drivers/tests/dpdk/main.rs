//! DPDK ports for real: two processes over memif, two network namespaces over AF_XDP, and what goes
//! wrong on the way. A test that needs a second process runs itself again in another role.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod af_xdp;
#[path = "../counting/mod.rs"]
mod counting;
mod hostile;
mod memif;
#[path = "../other/mod.rs"]
mod other;
mod refusals;
mod scene;
mod steady_state;
mod system_calls;
