//! What one lane receives.
//!
//! Comes in: messages in slots, writes that arrived. Goes out: frames in the order in which they were
//! submitted, slots that may receive again, buffers to advertise. Promises: buffers are taken in the
//! order of the frames, so that a frame never waits for a buffer that a later one holds; no more is
//! remembered than slots and announcements that the peer is allowed.

use std::collections::VecDeque;

use super::memory::SLOTS;
use super::message::{
    Buffer, FRAMES_PER_MESSAGE_MAX, INLINE_BYTES_MAX, Malformed, Reader, Record, wire_bytes,
};
use super::outbox::CREDITS;
use super::queue_pair::WRITES_MAX;
use crate::MAX_FRAME_BYTES;
use crate::frame::{Frame, FrameMut, FramePools, Relief};
use crate::lane::{LaneClosed, LaneEvent, LaneId};

/// Frames that have their buffers and wait for the caller, at most, so that a caller who takes none
/// holds the peer up.
const READY_MAX: usize = 32;
/// Frames that a peer may have announced or sent, at most.
const ARRIVALS_MAX: usize = CREDITS as usize * FRAMES_PER_MESSAGE_MAX + WRITES_MAX + READY_MAX;

/// A frame on its way to the caller.
enum Arrival {
    /// In a slot.
    Short { slot: u8, at: u16, len: u16 },
    /// Announced; no buffer yet.
    Long { len: u32 },
    /// The peer is to write it.
    Landing { frame: FrameMut, len: u32 },
    /// Whole.
    Ready(Frame),
}

/// The peer broke the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation(pub(super) LaneClosed);

impl From<Malformed> for Violation {
    fn from(_: Malformed) -> Self {
        broken_rules()
    }
}

/// What the lane ends with when a peer does what none of ours does.
pub(super) fn broken_rules() -> Violation {
    Violation(LaneClosed::Failed {
        errno: libc::EPROTO,
    })
}

/// What a message says to the sending side.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    /// The peer has everything up to the fin.
    pub(super) done: bool,
}

/// What [`Inbox::take_buffers`] stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Everything that may have a buffer has one.
    All,
    /// The pools are empty; again after [`FramePools::relieved`].
    Starved(Relief),
}

pub(super) struct Inbox {
    arrivals: VecDeque<Arrival>,
    /// How many arrivals from the front on have buffers.
    taken: usize,
    /// Frames that still lie in each slot.
    in_slot: [u8; SLOTS],
    /// Whether the message in the slot took a credit.
    counted: [bool; SLOTS],
    /// Slots that may receive again.
    free: Vec<u8>,
    /// Credits to give back.
    owed: u8,
    /// Messages with frames whose slots are taken.
    counted_held: u8,
    /// Long frames announced that did not arrive yet.
    awaited: usize,
    /// The number that the next write has.
    next_number: u32,
    received_bytes: u64,
    finished: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            arrivals: VecDeque::with_capacity(ARRIVALS_MAX),
            taken: 0,
            in_slot: [0; SLOTS],
            counted: [false; SLOTS],
            free: Vec::with_capacity(SLOTS),
            owed: 0,
            counted_held: 0,
            awaited: 0,
            next_number: 0,
            received_bytes: 0,
            finished: false,
        }
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The peer said that no frame follows.
    pub(super) fn finished(&self) -> bool {
        self.finished
    }

    /// Every frame was handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.arrivals.is_empty()
    }

    /// Takes a message that lies in `slot`. Credits and buffers that it brings are told to `tell`.
    pub(super) fn message(
        &mut self,
        slot: u8,
        bytes: &[u8],
        mut tell: impl FnMut(Told) -> Result<(), Violation>,
    ) -> Result<Said, Violation> {
        let (header, mut records) = Reader::new(bytes)?;
        tell(Told::Credits(header.credits_back))?;
        let index = usize::from(slot) % SLOTS;
        let mut said = Said::default();
        if header.counted {
            self.counted_held += 1;
            if self.counted_held + self.owed > CREDITS {
                return Err(broken_rules());
            }
        }
        self.counted[index] = header.counted;
        while let Some(record) = records.next()? {
            let frame = matches!(record, Record::Frame { .. } | Record::Long { .. });
            if frame && self.finished {
                return Err(broken_rules());
            }
            match record {
                Record::Frame { at, len } => {
                    self.in_slot[index] += 1;
                    self.arrivals.push_back(Arrival::Short { slot, at, len });
                }
                Record::Long { len } => {
                    let fits = usize::try_from(len).is_ok_and(|len| len <= MAX_FRAME_BYTES);
                    if !fits || len == 0 {
                        let announced_bytes = len;
                        return Err(Violation(LaneClosed::BadLength { announced_bytes }));
                    }
                    if len as usize <= INLINE_BYTES_MAX || self.awaited == WRITES_MAX {
                        return Err(broken_rules());
                    }
                    self.awaited += 1;
                    self.arrivals.push_back(Arrival::Long { len });
                }
                Record::Buffer(buffer) => tell(Told::Buffer(buffer))?,
                Record::Fin if self.awaited == 0 => self.finished = true,
                Record::Fin => return Err(broken_rules()),
                Record::Done => said.done = true,
            }
        }
        self.release_if_empty(slot);
        Ok(said)
    }

    /// Takes the word that the peer wrote a frame.
    pub(super) fn written(&mut self, slot: u8, bytes: usize, number: u32) -> Result<(), Violation> {
        self.free.push(slot);
        let waits = |arrival: &Arrival| matches!(arrival, Arrival::Landing { .. });
        let place = self
            .arrivals
            .iter_mut()
            .take(self.taken)
            .find(|arrival| waits(arrival));
        let (Some(place), true) = (place, number == self.next_number) else {
            return Err(broken_rules());
        };
        // What stands there for a moment is never seen.
        let gone = Arrival::Long { len: 0 };
        let Arrival::Landing { frame, len } = std::mem::replace(place, gone) else {
            return Err(broken_rules());
        };
        if bytes != len as usize {
            return Err(broken_rules());
        }
        *place = Arrival::Ready(frame.freeze(bytes).map_err(|_| broken_rules())?);
        self.next_number = number.wrapping_add(1);
        self.awaited -= 1;
        Ok(())
    }

    /// Takes buffers for frames, in order. `slots` shows what a message holds, `advertise` is told the
    /// buffers for long frames.
    pub(super) fn take_buffers<'a, E>(
        &mut self,
        pools: &FramePools,
        slots: impl Fn(u8) -> &'a [u8],
        mut advertise: impl FnMut(&mut FrameMut) -> Result<(), E>,
    ) -> Result<Taken, E> {
        while self.taken < READY_MAX
            && let Some(arrival) = self.arrivals.get_mut(self.taken)
        {
            let bytes = match arrival {
                Arrival::Short { len, .. } => usize::from(*len),
                Arrival::Long { len } => *len as usize,
                Arrival::Landing { .. } | Arrival::Ready(_) => 0,
            };
            let mut frame = match pools.take(bytes) {
                Some(frame) => frame,
                None => {
                    let since = pools.starve();
                    // Once more: a buffer that came back before `starve` woke nobody.
                    match pools.take(bytes) {
                        Some(frame) => frame,
                        None => return Ok(Taken::Starved(since)),
                    }
                }
            };
            match *arrival {
                Arrival::Short { slot, at, .. } => {
                    let at = usize::from(at);
                    let said = slots(slot).get(at..at + bytes).unwrap_or_default();
                    frame.payload_mut()[..said.len()].copy_from_slice(said);
                    // A buffer that was taken for these bytes holds them.
                    if let Ok(whole) = frame.freeze(bytes) {
                        *arrival = Arrival::Ready(whole);
                    }
                    let index = usize::from(slot) % SLOTS;
                    self.in_slot[index] = self.in_slot[index].saturating_sub(1);
                    self.release_if_empty(slot);
                }
                Arrival::Long { len } => {
                    advertise(&mut frame)?;
                    *arrival = Arrival::Landing { frame, len };
                }
                Arrival::Landing { .. } | Arrival::Ready(_) => {}
            }
            self.taken += 1;
        }
        Ok(Taken::All)
    }

    fn release_if_empty(&mut self, slot: u8) {
        let index = usize::from(slot) % SLOTS;
        if self.in_slot[index] > 0 {
            return;
        }
        self.free.push(slot);
        if std::mem::take(&mut self.counted[index]) {
            self.counted_held -= 1;
            self.owed += 1;
        }
    }

    /// Whether the next frame is whole.
    pub(super) fn has_ready(&self) -> bool {
        matches!(self.arrivals.front(), Some(Arrival::Ready(_)))
    }

    /// Hands frames over, at most `room`.
    pub(super) fn deliver(
        &mut self,
        lane: LaneId,
        room: &mut usize,
        out: &mut Vec<LaneEvent>,
    ) -> u32 {
        let mut count = 0;
        while *room > 0 && self.has_ready() {
            let Some(Arrival::Ready(frame)) = self.arrivals.pop_front() else {
                break;
            };
            self.taken -= 1;
            self.received_bytes += wire_bytes(frame.len()) as u64;
            *room -= 1;
            count += 1;
            out.push(LaneEvent::Frame { lane, frame });
        }
        count
    }

    /// Slots that may receive again.
    pub(super) fn take_free(&mut self) -> impl Iterator<Item = u8> + '_ {
        self.free.drain(..)
    }

    /// Whether so many credits are owed that the peer may wait for them.
    pub(super) fn owes_much(&self) -> bool {
        self.owed >= CREDITS / 2
    }

    /// Credits to give back, all of them. Their slots must be posted by now.
    pub(super) fn take_owed(&mut self) -> u8 {
        std::mem::take(&mut self.owed)
    }
}

/// What a message brings to the sending side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Credits(u8),
    Buffer(Buffer),
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
