//! Another encoding of a batch in its place: of one that waits, for a rollback, or of one that the peer has and
//! cannot use.
//!
//! In: a batch's number and its new frame. Out: the batch waits to be sent. Promise: what the path is known to
//! hold stays true.

use super::{Outbound, State, slot_of};
use crate::transport::{BatchSeq, FrameHandle, TransportError, Version};

impl<F: FrameHandle> Outbound<F> {
    /// Puts another encoding of the same raw bytes in the place of `seq`.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] unless `seq` waits to be sent.
    pub fn replace(
        &mut self,
        seq: BatchSeq,
        version: Version,
        frame: F,
    ) -> Result<(), TransportError> {
        let slot = &mut self.slots[slot_of(seq)];
        if seq < self.base || seq >= self.next || slot.state != State::Queued {
            return Err(TransportError::Misuse {
                what: "replaced a batch that is not queued",
            });
        }
        slot.meta.version = version;
        slot.frame = Some(frame);
        Ok(())
    }

    /// The peer has `seq` and cannot use it: another encoding of the same raw bytes goes out. Says whether the
    /// batch is still held to be in flight.
    pub fn send_again(&mut self, seq: BatchSeq, version: Version, frame: F) -> bool {
        let slot = &mut self.slots[slot_of(seq)];
        let may = !matches!(slot.state, State::Empty | State::Reserved) && !slot.meta.express;
        if !(self.base..self.next).contains(&seq) || !may {
            return false;
        }
        if let State::InFlight(lane) = slot.state {
            self.lanes.take_off_the_way(lane, slot.wire_bytes);
        }
        self.drop_hedge(seq);
        let slot = &mut self.slots[slot_of(seq)];
        if slot.state != State::Received && slot.times_sent > 0 {
            self.far.on_received(slot.first_wire_bytes);
        }
        // From here on it is a new frame on the path.
        slot.times_sent = 0;
        slot.state = State::Queued;
        slot.meta.version = version;
        slot.frame = Some(frame);
        self.first_queued = self.first_queued.min(seq);
        true
    }

    /// The oldest batch that the peer has not confirmed in sequence.
    #[must_use]
    pub const fn oldest_unconfirmed(&self) -> BatchSeq {
        self.base
    }
}
