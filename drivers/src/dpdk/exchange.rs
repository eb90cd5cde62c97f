//! Hands frames to the worker that they are for.
//!
//! Comes in: packets that the device's hash brought to another worker's queue. Goes out: the same
//! packets at that worker, without a copy. Promises: a box holds a bounded number; a packet that finds
//! it full goes back to its pool, as if the network had lost it.

use crossbeam::queue::ArrayQueue;
use dpdk_sys::rte_mbuf;

use super::pool::give_back;

/// Packets that wait for one worker, at most.
const WAITING_MAX: usize = 256;

/// A packet between two workers.
#[derive(Debug)]
pub(super) struct Stray(*mut rte_mbuf);

// SAFETY: needed to move a packet from one worker to another; DPDK's packets belong to no thread, and
// a stray is its packet's only owner.
unsafe impl Send for Stray {}

impl Stray {
    /// # Safety
    /// The caller owns the packet and gives it away.
    pub(super) unsafe fn new(packet: *mut rte_mbuf) -> Self {
        Self(packet)
    }

    /// Gives the packet away.
    pub(super) fn into_packet(self) -> *mut rte_mbuf {
        let packet = self.0;
        std::mem::forget(self);
        packet
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // SAFETY: needed to give the packet back; a stray is its only owner, and ends here.
        unsafe { give_back(&mut [self.0]) };
    }
}

/// One box per queue.
#[derive(Debug)]
pub(super) struct Exchange {
    boxes: Box<[ArrayQueue<Stray>]>,
}

impl Exchange {
    pub(super) fn new(queues: u16) -> Self {
        Self {
            boxes: (0..queues).map(|_| ArrayQueue::new(WAITING_MAX)).collect(),
        }
    }

    /// Puts a packet into the box of `queue`; false when it was lost because the box is full.
    pub(super) fn pass_on(&self, queue: u16, stray: Stray) -> bool {
        self.boxes
            .get(usize::from(queue))
            .is_some_and(|waiting| waiting.push(stray).is_ok())
    }

    /// The next packet for the worker of `queue`.
    pub(super) fn next(&self, queue: u16) -> Option<Stray> {
        self.boxes.get(usize::from(queue))?.pop()
    }
}
