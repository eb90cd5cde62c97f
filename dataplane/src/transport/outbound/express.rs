//! Batches that a guest waits for.
//!
//! In: batches marked as express. Out: which of them goes next. Promise: they find room in the window and
//! in a lane whatever else is on its way, and who sends none pays nothing for them.

use super::{BatchSeq, Outbound, State, slot_of};
use crate::transport::{FrameHandle, MAX_IN_FLIGHT};

/// Places in the window that only express batches take.
const EXPRESS_IN_FLIGHT: usize = 32;

impl<F: FrameHandle> Outbound<F> {
    /// Is there room for another batch, and for express batches behind it?
    #[must_use]
    pub fn can_push_beside_express(&self) -> bool {
        self.in_flight() < MAX_IN_FLIGHT - EXPRESS_IN_FLIGHT
    }

    /// From now on a lane is kept free of all but express batches and control frames, if there is one to
    /// spare.
    pub const fn keep_express_lane(&mut self) {
        self.lanes.keep_express_lane();
    }

    pub(super) fn oldest_express(&self) -> Option<BatchSeq> {
        if self.express_queued == 0 {
            return None;
        }
        (self.base.0..self.next.0).map(BatchSeq).find(|&seq| {
            let slot = &self.slots[slot_of(seq)];
            slot.meta.express && slot.state == State::Queued
        })
    }
}
