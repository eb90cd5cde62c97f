//! Batches whose place in the sequence is fixed before their frame is made: several may be encoded at once.
//!
//! In: what is known of a batch before it is encoded; later its frame. Out: its place. Promises: nothing
//! waits for a frame that is being made, neither batches behind it nor markers; it counts as in flight from
//! the moment it has its place.

use super::{BatchMeta, Outbound, Slot, State, slot_of};
use crate::transport::{BatchSeq, FrameHandle, Nanos, TransportError};

impl<F: FrameHandle> Outbound<F> {
    /// Fixes the place of a batch whose frame comes later, by [`fill`](Self::fill).
    ///
    /// # Errors
    /// [`TransportError::InFlightFull`] unless [`Self::can_push`].
    pub fn reserve(&mut self, meta: BatchMeta, now: Nanos) -> Result<BatchSeq, TransportError> {
        let seq = self.place(meta, now)?;
        self.reserved += 1;
        Ok(seq)
    }

    /// Gives a batch its place in the sequence.
    pub(super) fn place(
        &mut self,
        meta: BatchMeta,
        now: Nanos,
    ) -> Result<BatchSeq, TransportError> {
        if !self.can_push() {
            return Err(TransportError::InFlightFull);
        }
        let seq = self.next;
        if self.base == seq {
            self.silence.begin(now);
        }
        self.window.on_push(
            u64::from(meta.raw_len),
            self.credit.held_bytes(),
            meta.read_at,
        );
        self.slots[slot_of(seq)] = Slot {
            state: State::Reserved,
            frame: None,
            meta,
            sent_at: now,
            times_sent: 0,
            wire_bytes: 0,
            first_wire_bytes: 0,
            hedge: None,
        };
        self.next = seq.next();
        Ok(seq)
    }

    /// Takes the frame of a batch that has its place.
    ///
    /// # Errors
    /// [`TransportError::BadAck`] if the peer has confirmed it already: it cannot have it.
    pub fn fill(&mut self, seq: BatchSeq, frame: F) -> Result<(), TransportError> {
        self.reserved = self.reserved.saturating_sub(1);
        let slot = &mut self.slots[slot_of(seq)];
        if seq < self.base || seq >= self.next || slot.state != State::Reserved {
            return Err(TransportError::BadAck {
                what: "it confirms batches that were never sent",
            });
        }
        slot.state = State::Queued;
        slot.frame = Some(frame);
        self.express_queued += usize::from(slot.meta.express);
        self.first_queued = self.first_queued.min(seq);
        Ok(())
    }

    /// Batches whose frames are being made.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.reserved
    }
}
