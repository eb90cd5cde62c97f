//! Datagrams over DPDK: the device's queues are polled by the worker itself, the kernel is not asked.
//!
//! Comes in: a device (a memif socket, a kernel interface for AF_XDP, a PCI address), our addresses,
//! UDP payloads. Goes out: the payloads that peers send, lying in the memory that the device wrote.
//! Promises: no system call, lock or allocation per burst; every refusal names its cure.
//!
//! - [`eal`]: DPDK's environment, once per process
//! - [`device`]: what a port stands on, checked before DPDK is asked for it
//! - [`port`]: a device set up, its memory, one pair of queues per worker
//! - [`gate`]: no device is taken apart while a worker is inside it
//! - [`pool`]: packet memory
//! - [`queue`]: the hot half: bursts in, bursts out
//! - [`packet`]: Ethernet, ARP, IPv4, IPv6, UDP
//! - [`carrier`]: the same as reliable lanes want it
//! - [`datagrams`]: payloads to and from socket addresses, on one worker's queue
//!
//! memif peers share memory and trust each other's ring descriptors: join only processes of one
//! owner by it.

pub mod carrier;
pub mod datagrams;
pub mod device;
pub mod eal;
mod exchange;
pub mod gate;
pub mod packet;
pub mod pool;
pub mod port;
pub mod queue;

use std::ffi::CStr;

/// DPDK's name for one of its error numbers, which are errno values and a few of its own.
fn errno_text(errno: i32) -> String {
    // SAFETY: needed to read DPDK's text; it returns a pointer to a string that is constant or
    // belongs to this thread, and it is copied before the thread can ask again.
    let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(errno)) };
    text.to_string_lossy().into_owned()
}

/// The calling thread's last error number in DPDK.
fn last_errno() -> i32 {
    // SAFETY: needed because it is a thread-local of a C library; the call reads it and nothing else.
    unsafe { dpdk_sys::dwcp_shim_errno() }
}
