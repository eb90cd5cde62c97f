//! Memory that two planes, two threads and one NIC agree on.
//!
//! | module | what it is |
//! |---|---|
//! | [`arena`] | a block of hugepages, or of ordinary pages with the reason stated |
//! | [`pool`] | fixed-size buffers out of an arena, taken and returned without a lock |
//! | `free_list` | which buffers of a pool are free |
//! | [`segment`] | a sealed memfd with a checked header, shared between two processes |
//! | [`ring`] | single-producer single-consumer ring of fixed-size records |
//! | [`doorbell`] | how a parked consumer is woken, and only then |
//! | [`counters`] | single-writer counters and coherent groups of them |
//! | [`shared_pod`] | which types may lie in memory that somebody else writes |
//! | [`scm`] | file descriptors over a UNIX socket |
//! | [`sync`] | the atomics, replaced by loom's in a model check |
//!
//! The rule of the crate: whatever lies in shared memory was written by an enemy. It is copied
//! out once, checked, and only then used.

// Clippy knows test functions by itself, but not the helpers in modules that loom leaves out.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod arena;
pub mod counters;
pub mod doorbell;
pub mod pool;
pub mod ring;
pub mod scm;
pub mod segment;
pub mod shared_pod;
pub mod sync;

mod free_list;
mod huge_pool;
mod mapping;
