//! A second copy of what everything behind it waits for.
//!
//! In: a far path with room on it and nothing new to send, batches that should have come by now. Out: a copy of
//! each over another lane, once. Promises: nothing is copied while the line is full, so a copy takes no other
//! byte's place; copies on the way are a small part of the window; the lane that has the first copy is watched as
//! if there were no second.
//!
//! A packet that a line loses at the end of what a lane has to say is missed by the network below only when its
//! timer runs out, some round trips later. At the switchover that is the guest's time, and before it the far end
//! can use nothing of what other lanes bring meanwhile.

use super::{Outbound, SendStep, State, slot_of};
use crate::transport::{BatchSeq, FrameHandle, LaneIx, Nanos, Version};

/// Pause between two looks for late batches.
const LOOK_EVERY_NS: u64 = 5_000_000;
/// Copies on the way at most, as a part of the window.
const PART_OF_WINDOW: u64 = 8;

/// What is known of copies.
#[derive(Debug, Default)]
pub(super) struct Hedges {
    on_the_way_bytes: u64,
    look_at: Nanos,
}

impl<F: FrameHandle> Outbound<F> {
    /// The oldest batch that is late, over another lane than before.
    pub(super) fn hedge(
        &mut self,
        now: Nanos,
        allow_v3: bool,
        backlog_bytes: &mut impl FnMut(LaneIx) -> usize,
    ) -> SendStep<F> {
        if now < self.hedges.look_at || !self.far.has_room() {
            return SendStep::Idle;
        }
        let late_ns = self.far.late_ns();
        let room = self.far.window_bytes() / PART_OF_WINDOW;
        for seq in (self.base.0..self.next.0).map(BatchSeq) {
            let slot = &self.slots[slot_of(seq)];
            let State::InFlight(lane) = slot.state else {
                continue;
            };
            let fits = self.hedges.on_the_way_bytes + slot.wire_bytes <= room;
            let may = allow_v3 || slot.meta.version == Version::V1;
            let late = now.since(slot.sent_at) > late_ns;
            if slot.hedge.is_some() || !fits || !may || !late {
                continue;
            }
            let limit_bytes = self.config.lane_backlog_limit_bytes;
            let other = self.lanes.choose_emptiest(limit_bytes, &mut |choice| {
                if choice == lane {
                    usize::MAX
                } else {
                    backlog_bytes(choice)
                }
            });
            let slot = &mut self.slots[slot_of(seq)];
            let (Some(other), Some(frame)) = (other, slot.frame.clone()) else {
                break;
            };
            slot.hedge = Some(other);
            slot.times_sent = slot.times_sent.saturating_add(1);
            self.lanes.add_on_the_way(other, slot.wire_bytes);
            self.hedges.on_the_way_bytes += slot.wire_bytes;
            self.resent_batches += 1;
            return SendStep::Send(other, frame);
        }
        self.hedges.look_at = now.plus(LOOK_EVERY_NS);
        SendStep::Idle
    }

    /// The copy of `seq` is no longer waited for. Says whether there was one.
    pub(super) fn drop_hedge(&mut self, seq: BatchSeq) -> bool {
        let slot = &mut self.slots[slot_of(seq)];
        let Some(lane) = slot.hedge.take() else {
            return false;
        };
        self.lanes.take_off_the_way(lane, slot.wire_bytes);
        let on_the_way = &mut self.hedges.on_the_way_bytes;
        *on_the_way = on_the_way.saturating_sub(slot.wire_bytes);
        true
    }
}
