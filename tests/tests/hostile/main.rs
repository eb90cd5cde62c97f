//! Strangers, liars and garbage at every border of a data plane: what must fail fails with its reason,
//! nothing unproven reaches a hypervisor, memory stays bounded, and a session beside it all arrives
//! byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acks;
mod baselines;
mod beside;
mod border;
mod crowd;
mod door;
mod hypervisor;
mod liar;
mod peer;
mod pool;
mod starve;
mod tls;
mod tls_strangers;
