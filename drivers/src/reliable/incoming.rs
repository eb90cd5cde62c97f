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
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{bytes_of, pools};
    use super::*;

    const WINDOW: u64 = 4 << 20;

    /// The stream of frames with these payload lengths, and where each begins.
    fn stream(lens: &[usize]) -> (Vec<u8>, Vec<u64>) {
        let (mut stream, mut starts) = (Vec::new(), Vec::new());
        for (seed, len) in lens.iter().enumerate() {
            starts.push(stream.len() as u64);
            stream.extend_from_slice(&(*len as u32).to_le_bytes());
            stream.extend_from_slice(&bytes_of(seed as u64, *len));
        }
        (stream, starts)
    }

    /// Hands `range` of the stream over as one packet would.
    fn give(
        incoming: &mut Incoming,
        lens: &[usize],
        range: Range<usize>,
        fin: bool,
    ) -> Result<Taken, Violation> {
        let (stream, starts) = stream(lens);
        let at = starts.partition_point(|start| *start <= range.start as u64);
        let at = at.saturating_sub(1);
        let head = DataHead {
            offset: range.start as u64,
            back: (range.start as u64 - starts[at]) as u32,
            frame_len: lens[at] as u32,
            len: range.len() as u16,
        };
        incoming.take(&head, &stream[range], fin)
    }

    fn incoming(pools: &FramePools) -> Incoming {
        let mut incoming = Incoming::new(pools.clone(), WINDOW);
        incoming.promise_window();
        incoming
    }

    /// Ranges of `len` bytes that cut no frame's length.
    fn cuts(lens: &[usize], len: usize) -> Vec<Range<usize>> {
        let (stream, starts) = stream(lens);
        let mut borders = vec![0];
        while let Some(last) = borders.last().copied().filter(|last| *last < stream.len()) {
            let mut next = (last + len).min(stream.len());
            for start in &starts {
                let start = *start as usize;
                if next > start && next < start + 5 {
                    next = if start > last { start } else { start + 5 };
                }
            }
            borders.push(next.min(stream.len()));
        }
        borders.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    proptest! {
        #[test]
        fn any_order_and_any_memory_gives_the_frames(
            lens in prop::collection::vec(1usize..3000, 1..10),
            len in 64usize..2000,
            order in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
            buffers in 1usize..12,
        ) {
            let pools = pools(buffers, buffers, 0);
            let mut incoming = incoming(&pools);
            let pieces = cuts(&lens, len);
            let mut order = order.iter().cycle();
            let mut got = 0;
            let mut missing: Vec<usize> = (0..pieces.len()).collect();
            let mut restarts = incoming.restarts();
            for _ in 0..100_000 {
                if got == lens.len() {
                    break;
                }
                if missing.is_empty() || incoming.restarts() != restarts {
                    restarts = incoming.restarts();
                    let from = incoming.contiguous() as usize;
                    missing = (0..pieces.len()).filter(|at| pieces[*at].end > from).collect();
                }
                let at = order.next().unwrap().index(missing.len());
                let piece = pieces[missing[at]].clone();
                let taken = give(&mut incoming, &lens, piece, false).unwrap();
                if taken == Taken::Kept {
                    missing.swap_remove(at);
                }
                while let Some(frame) = incoming.deliver() {
                    prop_assert_eq!(frame.bytes(), &bytes_of(got as u64, lens[got])[..]);
                    got += 1;
                }
                incoming.relieve();
                incoming.promise_window();
            }
            prop_assert_eq!(got, lens.len());
            prop_assert_eq!(pools.available().small + pools.available().medium, 2 * buffers);
        }

        #[test]
        fn hostile_data_never_panics_and_never_gives_a_frame_that_was_not_whole(
            packets in prop::collection::vec(
                (0u64..6000, 0u32..40, 0u32..1500, prop::collection::vec(0u8..3, 0..60), any::<bool>()),
                1..60,
            ),
        ) {
            let pools = pools(8, 2, 1);
            let mut incoming = incoming(&pools);
            for (offset, back, frame_len, data, fin) in packets {
                let head = DataHead { offset, back, frame_len, len: data.len() as u16 };
                if incoming.take(&head, &data, fin).is_err() {
                    break;
                }
                let whole = incoming.contiguous();
                while let Some(frame) = incoming.deliver() {
                    prop_assert!(incoming.delivered <= whole && frame.len() <= 1500);
                }
                prop_assert!(incoming.islands.len() <= ISLANDS_MAX);
            }
            incoming.clear();
            prop_assert_eq!(pools.available().small, 8);
        }
    }

    #[test]
    fn what_lies_behind_a_gap_is_in_place_when_the_gap_closes() {
        let lens = [4096, 4096, 4096];
        let pools = pools(0, 4, 0);
        let mut incoming = incoming(&pools);
        for at in [2, 1] {
            let range = at * 4100..(at + 1) * 4100;
            assert_eq!(give(&mut incoming, &lens, range, at == 2), Ok(Taken::Kept));
            assert!(incoming.deliver().is_none());
        }
        assert_eq!(pools.available().medium, 2);
        assert_eq!(give(&mut incoming, &lens, 0..4100, false), Ok(Taken::Kept));
        for seed in 0..3 {
            assert_eq!(incoming.has_ended(), Ok(false));
            assert!(incoming.has_whole_frame());
            assert_eq!(incoming.deliver().unwrap().bytes(), bytes_of(seed, 4096));
        }
        assert_eq!(incoming.has_ended(), Ok(true));
    }

    #[test]
    fn the_first_frame_gets_a_buffer_before_those_behind_it() {
        let lens = [1000, 1000, 1000];
        let pools = pools(2, 0, 0);
        let mut incoming = incoming(&pools);
        for at in [2, 1] {
            let range = at * 1004..(at + 1) * 1004;
            assert_eq!(give(&mut incoming, &lens, range, false), Ok(Taken::Kept));
        }
        assert_eq!(pools.available().small, 0);
        let before = incoming.restarts();
        assert_eq!(give(&mut incoming, &lens, 0..1004, false), Ok(Taken::Kept));
        assert_eq!(
            incoming.restarts(),
            before + 1,
            "the last one was forgotten"
        );
        assert!(incoming.deliver().is_some() && incoming.deliver().is_some());
        assert!(incoming.deliver().is_none());
        assert_eq!(incoming.contiguous(), 2008);
    }

    #[test]
    fn an_empty_pool_closes_the_window_and_relief_opens_it() {
        let lens = [100, 1500];
        let pools = pools(1, 0, 0);
        let mut incoming = incoming(&pools);
        assert_eq!(
            give(&mut incoming, &lens, 0..1608, false),
            Ok(Taken::NoMemory)
        );
        let held = incoming.deliver().unwrap();
        assert_eq!(incoming.contiguous(), 104, "the first frame counts");
        assert_eq!(incoming.promise_window(), 0);
        assert!(!incoming.relieve());
        drop(held);
        assert!(incoming.relieve());
        assert_eq!(incoming.restarts(), 1);
        let window = incoming.promise_window();
        assert!(window >= 5, "{window}");
        // The start of the frame shows its length, and the window follows.
        let start = 104..104 + window as usize;
        assert_eq!(give(&mut incoming, &lens, start, false), Ok(Taken::Kept));
        assert_eq!(incoming.promise_window(), 1504 - window);
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_found_out() {
        let pools = pools(4, 4, 4);
        let fresh = || incoming(&pools);
        let head = |offset, back, frame_len, len| DataHead {
            offset,
            back,
            frame_len,
            len,
        };
        let frame = |len: u32, bytes: usize| {
            let mut data = len.to_le_bytes().to_vec();
            data.resize(4 + bytes, 7);
            data
        };
        for announced_bytes in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
            let got = fresh().take(
                &head(0, 0, announced_bytes, 9),
                &frame(announced_bytes, 5),
                false,
            );
            assert_eq!(got, Err(Violation::BadLength { announced_bytes }));
        }
        let cases = [
            (head(0, 0, 6, 9), frame(5, 5), "two lengths"),
            (head(0, 0, 6, 2), vec![6, 0], "a length that is cut"),
            (head(2, 2, 6, 2), vec![6, 0], "a start within a length"),
            (head(3, 4, 6, 2), vec![6, 0], "a frame before the stream"),
            (head(10, 10, 6, 2), vec![6, 0], "data behind its frame"),
            (head(WINDOW, 0, 5, 9), frame(5, 5), "beyond the window"),
            (head(u64::MAX, 0, 5, 9), frame(5, 5), "beyond all numbers"),
        ];
        for (head, data, what) in cases {
            assert_eq!(
                fresh().take(&head, &data, false),
                Err(Violation::Nonsense),
                "{what}"
            );
        }
        // Two frames in one place.
        let mut incoming = fresh();
        incoming
            .take(&head(0, 0, 100, 14), &frame(100, 10), false)
            .unwrap();
        let got = incoming.take(&head(50, 0, 6, 9), &frame(6, 5), false);
        assert_eq!(got, Err(Violation::BadLength { announced_bytes: 6 }));
        // An end within a frame, before what is there, and two ends.
        let got = incoming.take(&head(20, 0, 0, 0), &[], true);
        assert_eq!(got, Err(Violation::Truncated));
        let got = incoming.take(&head(5, 0, 0, 0), &[], true);
        assert_eq!(got, Err(Violation::Nonsense));
        incoming.clear();
        let mut incoming = fresh();
        incoming.take(&head(200, 0, 0, 0), &[], true).unwrap();
        assert_eq!(
            incoming.take(&head(300, 0, 0, 0), &[], true),
            Err(Violation::Nonsense)
        );
        let got = incoming.take(&head(198, 0, 100, 14), &frame(100, 10), false);
        assert_eq!(got, Err(Violation::Nonsense), "data behind the end");
        assert_eq!(pools.available().small, 4);
    }
}
