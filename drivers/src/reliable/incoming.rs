//! The bytes of a lane on their way in.
//!
//! Comes in: data sections in any order, once or often. Goes out: whole frames in order. Promises: each
//! byte is copied once, from the datagram into the frame that it belongs to, also when what lies before
//! it is missing; a length is checked before a buffer is taken; nothing beyond the promised window is
//! taken; memory is bounded, and when it runs out, the frame that everything waits for gets a
//! buffer before those behind it.

use std::collections::VecDeque;
use std::ops::Range;

use super::FRAMES_HELD_MAX;
use super::packet::DataHead;
use super::ranges::RangeSet;
use crate::MAX_FRAME_BYTES;
use crate::frame::{CLASS_BYTES, Frame, FrameMut, FramePools, PREFIX_BYTES, Relief};

/// Stretches of data with something missing before them.
const ISLANDS_MAX: usize = 512;
/// The least bound on what is taken beyond what was handed out: one frame, so that a lane never waits
/// for itself.
const WINDOW_MIN_BYTES: u64 = (MAX_FRAME_BYTES + PREFIX_BYTES) as u64;
/// With less than this left to send, the peer as good as waits for a larger window.
const WINDOW_LOW_BYTES: u64 = 16 << 10;

/// What became of a data section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in place, or was before.
    Kept,
    /// There is no memory for all of it: it must be sent again.
    NoMemory,
}

/// The peer breaks the rules: nothing that it says can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Violation {
    /// A frame of a length that no lane carries, or two frames in one place.
    BadLength { announced_bytes: u32 },
    /// The stream ends within a frame.
    Truncated,
    /// Data beyond the window, or that contradicts what is known.
    Nonsense,
}

/// A frame that is being filled.
struct Growing {
    /// Stream offset of its length.
    start: u64,
    len: u32,
    frame: FrameMut,
}

impl Growing {
    fn end(&self) -> u64 {
        self.start + (PREFIX_BYTES as u64) + u64::from(self.len)
    }
}

/// One lane's incoming stream.
pub(super) struct Incoming {
    pools: FramePools,
    window_max: u64,
    /// By `start`.
    frames: VecDeque<Growing>,
    /// Everything below is there.
    contiguous: u64,
    /// What is there beyond.
    islands: RangeSet,
    /// Frames below were handed out.
    delivered: u64,
    /// The end of the last byte that is there.
    highest: u64,
    /// The peer was ever allowed to send up to here.
    promised: u64,
    /// Where the stream ends, once the peer said so.
    end: Option<u64>,
    starved: Option<Relief>,
    /// Data was refused for want of memory since the last restart.
    refused: bool,
    restarts: u16,
    /// Recent payload bytes of a frame, once there was one.
    usual_len: Option<u64>,
}

impl Incoming {
    /// At most `window_max` bytes are taken beyond what was handed out.
    pub(super) fn new(pools: FramePools, window_max: u64) -> Self {
        let window_max = window_max.clamp(WINDOW_MIN_BYTES, u64::from(u32::MAX));
        Self {
            pools,
            window_max,
            frames: VecDeque::with_capacity(FRAMES_HELD_MAX),
            contiguous: 0,
            islands: RangeSet::new(ISLANDS_MAX),
            delivered: 0,
            highest: 0,
            promised: 0,
            end: None,
            starved: None,
            refused: false,
            restarts: 0,
            usual_len: None,
        }
    }

    /// Stream bytes that are there without a gap.
    pub(super) fn contiguous(&self) -> u64 {
        self.contiguous
    }

    /// How often data was forgotten or refused.
    pub(super) fn restarts(&self) -> u16 {
        self.restarts
    }

    /// Bytes beyond `contiguous` that there is memory for, told to the peer now.
    pub(super) fn promise_window(&mut self) -> u32 {
        let placed = self.frames.back().map_or(self.contiguous, Growing::end);
        let refused = self.refused && self.starved.is_some();
        let more = if refused {
            0
        } else {
            self.room_for_new_frames()
        };
        let limit = (placed + more).min(self.delivered + self.window_max);
        if limit <= self.highest + WINDOW_LOW_BYTES && self.starved.is_none() {
            // What comes back from now on is worth telling the peer of.
            self.starved = Some(self.pools.starve());
        }
        self.promised = self.promised.max(limit);
        // At most `window_max`, which is a `u32`.
        limit.saturating_sub(self.contiguous) as u32
    }

    /// Bytes of frames that have no buffer yet.
    fn room_for_new_frames(&self) -> u64 {
        let available = self.pools.available();
        let Some(usual_len) = self.usual_len else {
            let any = available.small + available.medium + available.large > 0;
            return if any { self.window_max } else { 0 };
        };
        let [small, medium, _] = CLASS_BYTES.map(|bytes| usual_len <= bytes as u64);
        let mut free = available.large;
        if medium {
            free += available.medium;
        }
        if small {
            free += available.small;
        }
        free as u64 * (usual_len + PREFIX_BYTES as u64)
    }

    /// Places the data of a packet.
    pub(super) fn take(
        &mut self,
        head: &DataHead,
        data: &[u8],
        fin: bool,
    ) -> Result<Taken, Violation> {
        let end = head
            .offset
            .checked_add(data.len() as u64)
            .ok_or(Violation::Nonsense)?;
        if end > self.promised {
            return Err(Violation::Nonsense);
        }
        self.check_end(end, fin)?;
        if end <= self.contiguous || data.is_empty() {
            return Ok(Taken::Kept);
        }
        let placed = self.place(head, data)?;
        if self.note(head.offset..placed).is_err() {
            return Ok(Taken::NoMemory);
        }
        if placed < end {
            self.refused = true;
            return Ok(Taken::NoMemory);
        }
        Ok(Taken::Kept)
    }

    fn check_end(&mut self, end: u64, fin: bool) -> Result<(), Violation> {
        match self.end {
            Some(known) if end > known || (fin && end != known) => Err(Violation::Nonsense),
            None if fin && end < self.highest => Err(Violation::Nonsense),
            None if fin && self.frames.back().is_some_and(|last| last.end() > end) => {
                Err(Violation::Truncated)
            }
            None if fin => {
                self.end = Some(end);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Copies `data` into its frames. Returns up to where.
    fn place(&mut self, head: &DataHead, data: &[u8]) -> Result<u64, Violation> {
        let mut at = head.offset;
        let mut start = at
            .checked_sub(u64::from(head.back))
            .ok_or(Violation::Nonsense)?;
        let mut announced_bytes = head.frame_len;
        let mut rest = data;
        loop {
            let len = announced_bytes as usize;
            if !(1..=MAX_FRAME_BYTES).contains(&len) {
                return Err(Violation::BadLength { announced_bytes });
            }
            let payload = start + PREFIX_BYTES as u64;
            let frame_end = payload + u64::from(announced_bytes);
            let skip = if at == start { PREFIX_BYTES } else { 0 };
            if at >= frame_end || (skip == 0 && at < payload) || rest.len() < skip {
                return Err(Violation::Nonsense);
            }
            let (prefix, behind) = rest.split_at(skip);
            if skip > 0 && prefix != announced_bytes.to_le_bytes() {
                return Err(Violation::Nonsense);
            }
            at += skip as u64;
            let taken = behind.len().min((frame_end - at) as usize);
            let (now, later) = behind.split_at(taken);
            if frame_end > self.contiguous {
                let Some(frame) = self.frame(start, announced_bytes)? else {
                    return Ok(start.max(head.offset));
                };
                let from = (at - payload) as usize;
                frame.payload_mut()[from..from + taken].copy_from_slice(now);
            }
            at += taken as u64;
            if later.is_empty() {
                return Ok(at);
            }
            let (length, _) = later.split_first_chunk().ok_or(Violation::Nonsense)?;
            announced_bytes = u32::from_le_bytes(*length);
            start = at;
            rest = later;
        }
    }

    /// The frame that begins at `start`, with a buffer from the pools if it has none yet. None: there
    /// is no buffer.
    fn frame(&mut self, start: u64, len: u32) -> Result<Option<&mut FrameMut>, Violation> {
        let bad = Violation::BadLength {
            announced_bytes: len,
        };
        let at = match self.frames.back() {
            Some(last) if last.start == start => self.frames.len() - 1,
            Some(last) if start < last.start => {
                self.frames.partition_point(|frame| frame.start < start)
            }
            _ => self.frames.len(),
        };
        if self
            .frames
            .get(at)
            .is_some_and(|frame| frame.start == start)
        {
            let frame = self.frames.get_mut(at).filter(|frame| frame.len == len);
            return frame.map(|growing| Some(&mut growing.frame)).ok_or(bad);
        }
        let end = start + PREFIX_BYTES as u64 + u64::from(len);
        let before = at.checked_sub(1).and_then(|before| self.frames.get(before));
        let overlaps = before.is_some_and(|before| before.end() > start)
            || self.frames.get(at).is_some_and(|behind| behind.start < end)
            || start < self.delivered;
        if overlaps {
            return Err(bad);
        }
        if self.end.is_some_and(|known| end > known) {
            return Err(Violation::Truncated);
        }
        // The frame that everything waits for.
        let head = start <= self.contiguous;
        let Some(frame) = self.buffer(len as usize, head) else {
            return Ok(None);
        };
        let usual_len = self.usual_len.unwrap_or(u64::from(len));
        self.usual_len = Some((7 * usual_len + u64::from(len)).div_ceil(8));
        let at = at.min(self.frames.len());
        self.frames.insert(at, Growing { start, len, frame });
        Ok(self.frames.get_mut(at).map(|growing| &mut growing.frame))
    }

    fn buffer(&mut self, len: usize, head: bool) -> Option<FrameMut> {
        if self.frames.len() >= FRAMES_HELD_MAX && !(head && self.forget_last()) {
            return None;
        }
        loop {
            if let Some(frame) = self.pools.take(len) {
                return Some(frame);
            }
            if head && self.forget_last() {
                continue;
            }
            if self
                .starved
                .is_some_and(|since| !self.pools.relieved(since))
            {
                return None;
            }
            // Once more: a buffer that came back before `starve` woke nobody.
            self.starved = Some(self.pools.starve());
            return self.pools.take(len);
        }
    }

    /// Gives up the last frame behind the one that everything waits for.
    fn forget_last(&mut self) -> bool {
        let Some(last) = self.frames.pop_back_if(|last| last.start > self.contiguous) else {
            return false;
        };
        self.islands.remove_from(last.start);
        self.highest = self.highest.min(last.start);
        self.restarts = self.restarts.wrapping_add(1);
        true
    }

    /// Notes what is in place.
    fn note(&mut self, range: Range<u64>) -> Result<(), super::ranges::Full> {
        if range.is_empty() {
            return Ok(());
        }
        let end = range.end;
        if range.start > self.contiguous {
            self.islands.insert(range)?;
            self.highest = self.highest.max(end);
            return Ok(());
        }
        self.contiguous = self.contiguous.max(end);
        self.highest = self.highest.max(end);
        while let Some(island) = self.islands.first().filter(|i| i.start <= self.contiguous) {
            self.contiguous = self.contiguous.max(island.end);
            self.islands.remove_below(self.contiguous);
        }
        Ok(())
    }

    /// The next whole frame.
    pub(super) fn deliver(&mut self) -> Option<Frame> {
        let contiguous = self.contiguous;
        let whole = self
            .frames
            .pop_front_if(|first| first.end() <= contiguous)?;
        self.delivered = whole.end();
        // The length was checked before the buffer was taken, so this does not fail.
        whole.frame.freeze(whole.len as usize).ok()
    }

    /// Whether [`Incoming::deliver`] would give a frame.
    pub(super) fn has_whole_frame(&self) -> bool {
        self.frames
            .front()
            .is_some_and(|first| first.end() <= self.contiguous)
    }

    /// Whether the peer ended the stream and all of it was handed out.
    ///
    /// # Errors
    /// It ended within a frame.
    pub(super) fn has_ended(&self) -> Result<bool, Violation> {
        match self.end {
            Some(end) if self.contiguous == end && !self.has_whole_frame() => {
                if self.delivered == end {
                    Ok(true)
                } else {
                    Err(Violation::Truncated)
                }
            }
            _ => Ok(false),
        }
    }

    /// Looks whether a buffer came back that the lane waited for. True: the peer is to hear of it.
    pub(super) fn relieve(&mut self) -> bool {
        if !self.starved.is_some_and(|since| self.pools.relieved(since)) {
            return false;
        }
        self.starved = None;
        if std::mem::take(&mut self.refused) {
            self.restarts = self.restarts.wrapping_add(1);
        }
        true
    }

    /// Whether the lane waits for a buffer.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.is_some()
    }

    /// Drops all frames.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.islands.clear();
        self.starved = None;
    }
}

#[cfg(test)]
mod tests;
