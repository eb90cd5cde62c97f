//! The lab that end-to-end tests, the demo and the benchmarks stand on: hosts in network
//! namespaces, WAN links, QEMU guests whose memory checks itself. Linux, root, no KVM needed.
//!
//! - [`netns`], [`link`], [`flows`]: hosts, cables, lines with rate, delay and loss
//! - [`guest`], [`qemu`], [`image`], [`qmp`], [`ticks`], [`content`]: guests and what they say
//! - [`debian`], [`disk`]: guests with a disk, an operating system and work of their own
//! - [`mitm`]: faults at exact bytes of TCP connections
//! - [`vm`]: a machine with a kernel of its own, for RDMA and VFIO, on this machine's file system
//! - [`direct`]: QEMU's own migration as the reference, and the measuring of any other
//! - [`stack`]: the product on a host: both planes, its API and its command line
//! - [`pki`]: certificates for its nodes
//! - [`demo`]: the main job beside QEMU's own, as a table
//! - [`syscalls`]: what a thread asks of the kernel, counted
//! - [`procs`], [`dir`], [`watchdog`]: nothing outlives a test, nothing hangs

pub mod content;
mod cpio;
pub mod debian;
pub mod demo;
pub mod dir;
pub mod direct;
pub mod disk;
pub mod flows;
mod forwarder;
pub mod guest;
pub mod image;
pub mod link;
pub mod mitm;
pub mod netns;
pub mod pki;
pub mod procs;
pub mod qemu;
pub mod qmp;
pub mod stack;
pub mod syscalls;
pub mod ticks;
mod tun;
pub mod vm;
pub mod watchdog;
