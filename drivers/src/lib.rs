//! What carries frames between two data planes.
//!
//! Comes in: opaque frames of at most [`MAX_FRAME_BYTES`]. Goes out: the same frames at the other
//! end of the lane, whole, identical and in order, or the news that the lane is closed.
//!
//! - [`frame`]: where frames live, and how they are shared without a copy
//! - [`port`]: the cold life of a back end (probe, validate, open, start, drain, close)
//! - [`lane`]: the hot life: one worker's lanes, driven by `poll`
//! - [`tcp`]: kernel TCP over io_uring
//! - [`beside`]: two back ends in one worker
//! - `rdma` (feature `rdma`): RDMA verbs
//! - [`loopback`]: lanes in memory, with faults on request, for tests of the layers above
//! - `dpdk` (feature of that name): datagrams over DPDK ports
//! - [`conformance`]: what every back end must pass
//! - `slots`: how a group finds its lanes by their ids
//! - [`wake`]: the file descriptor a parked worker sleeps on

pub mod beside;
pub mod conformance;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod frame;
pub mod lane;
pub mod loopback;
pub mod port;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod reliable;
mod slots;
pub mod tcp;
pub mod wake;

/// The longest frame that a lane carries, in bytes: one batch of 1 MiB of raw bytes that would not
/// shrink, and 64 KiB for its headers and tokens.
pub const MAX_FRAME_BYTES: usize = (1 << 20) + (64 << 10);
