//! What one lane sends.
//!
//! Comes in: frames, the peer's credits and buffers, completions. Goes out: messages and writes, in an
//! order that gives the frames their order. Promises: no more messages with frames are under way than
//! the peer has slots for, no more long frames than [`WRITES_MAX`] and no more of their bytes than may
//! wait; a frame that is being written is held until the device is done with it.
//!
//! The order: frames and announcements stand in messages as they were submitted, and messages arrive
//! in order. A write may overtake later messages; the receiver hands frames over by announcement.

use std::collections::VecDeque;

use super::memory::SLOTS;
use super::message::{Buffer, INLINE_BYTES_MAX, Writer, wire_bytes};
use super::queue_pair::WRITES_MAX;
use crate::frame::Frame;
use crate::lane::RefusedReason;

/// Messages with frames that may be under way; the peer keeps a slot for each. The rest of its slots
/// are for messages that answer something, and so are bounded by what they answer: an advertisement
/// per long frame of the peer's, a write per long frame of this side's, credits per half of the
/// credits, and the lane's end.
pub(super) const CREDITS: u8 = 24;
/// With so many bytes the device has enough to do. Announcements wait behind what the device has, so
/// the rest of the frames that have buffers wait here: the peer answers the announcements meanwhile.
const WRITING_BYTES: usize = 512 << 10;
/// And never fewer frames than this.
const WRITING_MIN: usize = 2;
const CREDIT_MESSAGES_MAX: usize = 4;
const END_MESSAGES_MAX: usize = 2;
const _: () = assert!(
    CREDITS as usize + 2 * WRITES_MAX + CREDIT_MESSAGES_MAX + END_MESSAGES_MAX <= SLOTS,
    "every message that a peer may send needs a slot"
);

/// A lane's limits: of what waits for the device, and once more of what the device writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

/// How far an announcement of the lane's end got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    No,
    /// With this request.
    Posted(u64),
    /// The peer's device has it.
    Arrived,
}

impl Said {
    fn completed(&mut self, up_to: u64) {
        if matches!(*self, Self::Posted(seq) if seq <= up_to) {
            *self = Self::Arrived;
        }
    }
}

/// A long frame that may be written now.
pub(super) struct Write {
    pub(super) frame: Frame,
    pub(super) to: Buffer,
    /// Counts the long frames of the lane.
    pub(super) number: u32,
}

/// A request that the device holds.
#[derive(Debug, Clone, Copy)]
struct Posted {
    /// Its number.
    seq: u64,
    /// Bytes of frames that went with it and all before it.
    sent_bytes: u64,
}

/// The peer gave more than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMuch;

pub(super) struct Outbox {
    limits: QueueLimits,
    queue: VecDeque<Frame>,
    /// Announced, without a buffer yet.
    announced: VecDeque<Frame>,
    buffers: VecDeque<Buffer>,
    /// Handed to the device.
    writing: VecDeque<(Posted, Frame)>,
    /// Messages that the device holds.
    messages: VecDeque<Posted>,
    next_slot: usize,
    credits: u8,
    written: u32,
    /// Of frames in `queue` and `announced`.
    backlog_bytes: usize,
    announced_bytes: usize,
    writing_bytes: usize,
    sent_bytes: u64,
    acked_bytes: u64,
    refused: bool,
    closing: bool,
    fin: Said,
    done: Said,
}

impl Outbox {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            queue: VecDeque::with_capacity(limits.frames),
            announced: VecDeque::with_capacity(WRITES_MAX),
            buffers: VecDeque::with_capacity(WRITES_MAX),
            writing: VecDeque::with_capacity(WRITES_MAX),
            messages: VecDeque::with_capacity(SLOTS),
            next_slot: 0,
            credits: CREDITS,
            written: 0,
            backlog_bytes: 0,
            announced_bytes: 0,
            writing_bytes: 0,
            sent_bytes: 0,
            acked_bytes: 0,
            refused: false,
            closing: false,
            fin: Said::No,
            done: Said::No,
        }
    }

    /// Frames that the device does not have yet.
    fn waiting(&self) -> usize {
        self.queue.len() + self.announced.len()
    }

    /// Whether another long frame has to wait until one of those under way arrived.
    fn is_busy(&self, bytes: usize) -> bool {
        let under_way = self.announced.len() + self.writing.len();
        let too_long = self.announced_bytes + self.writing_bytes + bytes > self.limits.bytes;
        under_way >= WRITES_MAX || (too_long && under_way > 0)
    }

    /// Queues a frame, or gives it back.
    pub(super) fn submit(&mut self, frame: Frame) -> Result<(), (Frame, RefusedReason)> {
        if self.closing {
            return Err((frame, RefusedReason::Unknown));
        }
        let bytes = wire_bytes(frame.len());
        let waiting = self.waiting();
        let too_long = self.backlog_bytes + bytes > self.limits.bytes && waiting > 0;
        if waiting >= self.limits.frames || too_long {
            self.refused = true;
            return Err((frame, RefusedReason::Full));
        }
        self.backlog_bytes += bytes;
        self.queue.push_back(frame);
        Ok(())
    }

    /// Takes no more frames; the fin follows those that are queued.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether there is room again that somebody waits for; asked once, said once.
    pub(super) fn writable(&self) -> bool {
        self.refused
            && !self.closing
            && self.waiting() <= self.limits.frames / 2
            && self.backlog_bytes <= self.limits.bytes / 2
    }

    /// The room was told of.
    pub(super) fn told_writable(&mut self) {
        self.refused = false;
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Of the sent bytes, those that the peer's device has.
    pub(super) fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    pub(super) fn fin(&self) -> Said {
        self.fin
    }

    pub(super) fn done(&self) -> Said {
        self.done
    }

    /// Credits came back.
    pub(super) fn credit(&mut self, back: u8) -> Result<(), TooMuch> {
        match self.credits.checked_add(back) {
            Some(credits) if credits <= CREDITS => {
                self.credits = credits;
                Ok(())
            }
            _ => Err(TooMuch),
        }
    }

    /// The peer has a buffer for the oldest long frame without one.
    pub(super) fn buffer(&mut self, buffer: Buffer) -> Result<(), TooMuch> {
        if self.buffers.len() >= self.announced.len() {
            return Err(TooMuch);
        }
        self.buffers.push_back(buffer);
        Ok(())
    }

    /// The slot for another message, if one is free.
    pub(super) fn free_slot(&self) -> Option<usize> {
        (self.messages.len() < SLOTS).then_some(self.next_slot)
    }

    /// Puts frames, announcements and the fin into a message, as many as fit.
    pub(super) fn fill(&mut self, message: &mut Writer<'_>) {
        while self.credits > 0
            && let Some(frame) = self.queue.front()
        {
            let bytes = frame.len();
            if bytes <= INLINE_BYTES_MAX {
                if !message.frame(frame.bytes()) {
                    return;
                }
                self.queue.pop_front();
                self.backlog_bytes -= wire_bytes(bytes);
                self.sent_bytes += wire_bytes(bytes) as u64;
                continue;
            }
            if self.is_busy(wire_bytes(bytes)) || !message.long(bytes as u32) {
                return;
            }
            self.announced_bytes += wire_bytes(bytes);
            self.announced.extend(self.queue.pop_front());
        }
    }

    /// Whether the fin may go: every frame is with the device.
    pub(super) fn wants_fin(&self) -> bool {
        self.closing && self.fin == Said::No && self.queue.is_empty() && self.announced.is_empty()
    }

    /// A message was handed to the device.
    pub(super) fn posted_message(&mut self, seq: u64, counted: bool, fin: bool, done: bool) {
        self.messages.push_back(self.posted(seq));
        self.next_slot = (self.next_slot + 1) % SLOTS;
        self.credits -= u8::from(counted);
        if fin {
            self.fin = Said::Posted(seq);
        }
        if done {
            self.done = Said::Posted(seq);
        }
    }

    /// The oldest long frame, if it has a buffer and the device has not enough to do.
    pub(super) fn next_write(&mut self) -> Option<Write> {
        if self.writing_bytes >= WRITING_BYTES && self.writing.len() >= WRITING_MIN {
            return None;
        }
        let to = self.buffers.pop_front()?;
        let frame = self.announced.pop_front()?;
        let number = self.written;
        self.written = number.wrapping_add(1);
        Some(Write { frame, to, number })
    }

    /// A write was handed to the device.
    pub(super) fn posted_write(&mut self, seq: u64, frame: Frame) {
        let bytes = wire_bytes(frame.len());
        self.backlog_bytes -= bytes;
        self.announced_bytes -= bytes;
        self.writing_bytes += bytes;
        self.sent_bytes += bytes as u64;
        self.writing.push_back((self.posted(seq), frame));
    }

    fn posted(&self, seq: u64) -> Posted {
        let sent_bytes = self.sent_bytes;
        Posted { seq, sent_bytes }
    }

    /// The device is done with this request and all before it.
    pub(super) fn completed(&mut self, up_to: u64) {
        while let Some(said) = self.messages.pop_front_if(|posted| posted.seq <= up_to) {
            self.acked_bytes = self.acked_bytes.max(said.sent_bytes);
        }
        while let Some((wrote, frame)) =
            self.writing.pop_front_if(|(posted, _)| posted.seq <= up_to)
        {
            self.acked_bytes = self.acked_bytes.max(wrote.sent_bytes);
            self.writing_bytes -= wire_bytes(frame.len());
        }
        self.fin.completed(up_to);
        self.done.completed(up_to);
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
