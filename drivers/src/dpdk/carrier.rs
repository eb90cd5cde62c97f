//! What reliable lanes need of a network, over one worker's DPDK queue.
//!
//! Comes in: datagrams that a lane builds, and when to look for those that came. Goes out: the same, by
//! [`crate::reliable::port`]'s rules. Promise: a peer that cannot be reached holds up no other; what is built
//! for it is lost, as on a network that does not know it.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::datagrams::{Datagrams, Sent};
use crate::reliable::port::DatagramPort;

/// See the module.
pub struct Carrier {
    datagrams: Datagrams,
    /// What is built for a peer that cannot be reached goes here.
    nowhere: Box<[u8]>,
}

impl Carrier {
    /// Over these datagrams.
    #[must_use]
    pub fn new(datagrams: Datagrams) -> Self {
        let nowhere = vec![0; datagrams.max_payload()].into_boxed_slice();
        Self { datagrams, nowhere }
    }

    /// The datagrams below, for what they counted.
    #[must_use]
    pub fn datagrams(&self) -> &Datagrams {
        &self.datagrams
    }
}

impl DatagramPort for Carrier {
    fn max_payload(&self) -> usize {
        self.datagrams.max_payload()
    }

    fn finds_damage(&self) -> bool {
        self.datagrams.in_memory()
    }

    fn now_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // Both parts are positive on this clock.
        (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
    }

    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let frames = self.datagrams.recv(sink);
        // A side that only listens answers questions about its address all the same.
        self.flush();
        frames
    }

    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool {
        match self.datagrams.send(to, fill) {
            Sent::Queued | Sent::Nothing => true,
            Sent::Busy => false,
            Sent::Resolving | Sent::Unreachable => {
                fill(&mut self.nowhere);
                true
            }
        }
    }

    fn flush(&mut self) {
        // What the device does not take now goes first next time.
        let _ = self.datagrams.flush();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn prepare_park(&mut self) -> bool {
        true
    }
}
