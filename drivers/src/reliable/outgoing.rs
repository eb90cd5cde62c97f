//! The bytes of a lane on their way out.
//!
//! Comes in: frames, and how far the peer has them. Goes out: pieces of the stream, each copied straight
//! from its frames into the datagram. Promises: every byte is offered until the peer has it; a frame
//! is held until then and no longer; pieces never cut a frame's length; memory is bounded.

use std::collections::VecDeque;
use std::ops::Range;

use super::FRAMES_HELD_MAX;
use super::ranges::RangeSet;
use crate::frame::{Frame, PREFIX_BYTES};

/// Ranges to be sent again that are kept apart; beyond that they are joined with what is between.
const LOST_RANGES_MAX: usize = 512;
/// A frame is begun in the rest of a datagram if it ends there or the rest is this part of it.
const BEGIN_DIVISOR: usize = 16;

/// How much may wait on a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

struct Held {
    /// Stream offset of its length.
    start: u64,
    frame: Frame,
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.frame.wire().len() as u64
    }
}

/// A part of the stream that goes into one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: usize,
    /// How far before `offset` its first frame begins.
    pub(super) back: u32,
    /// Payload bytes of that frame.
    pub(super) frame_len: u32,
    /// It was sent before.
    pub(super) again: bool,
    /// Where that frame is.
    at: usize,
}

/// One lane's outgoing stream.
pub(super) struct Outgoing {
    limits: QueueLimits,
    /// Frames that the peer does not have, and those not sent yet.
    frames: VecDeque<Held>,
    /// The peer has everything below.
    base: u64,
    /// Everything from here on was never sent.
    next: u64,
    /// Where in `frames` `next` is.
    next_at: usize,
    /// The end of the last frame.
    end: u64,
    /// To be sent again.
    lost: RangeSet,
}

impl Outgoing {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            frames: VecDeque::with_capacity(FRAMES_HELD_MAX + limits.frames),
            base: 0,
            next: 0,
            next_at: 0,
            end: 0,
            lost: RangeSet::new(LOST_RANGES_MAX),
        }
    }

    /// Queues a frame, or gives it back when too much waits.
    pub(super) fn submit(&mut self, frame: Frame) -> Result<(), Frame> {
        let waiting = self.frames.len() - self.next_at;
        let bytes = frame.wire().len();
        let too_many = waiting >= self.limits.frames;
        let too_long = self.unsent_bytes() as usize + bytes > self.limits.bytes && waiting > 0;
        if too_many || too_long {
            return Err(frame);
        }
        self.frames.push_back(Held {
            start: self.end,
            frame,
        });
        self.end += bytes as u64;
        Ok(())
    }

    /// Whether a lane that was full has room worth telling of.
    pub(super) fn is_low(&self) -> bool {
        let waiting = self.frames.len() - self.next_at;
        waiting <= self.limits.frames / 2 && self.unsent_bytes() as usize <= self.limits.bytes / 2
    }

    /// Stream bytes that were never sent.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.end - self.next
    }

    /// Stream bytes that were sent, each counted once.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.next
    }

    /// Stream bytes that the peer has.
    pub(super) fn acked_bytes(&self) -> u64 {
        self.base
    }

    /// The end of the stream so far.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The peer has everything below `contiguous`. False: that was never sent.
    pub(super) fn acknowledge(&mut self, contiguous: u64) -> bool {
        if contiguous > self.next {
            return false;
        }
        if contiguous > self.base {
            self.base = contiguous;
            while self
                .frames
                .front()
                .is_some_and(|held| held.end() <= contiguous)
            {
                self.frames.pop_front();
                self.next_at -= 1;
            }
        }
        true
    }

    /// These bytes did not arrive.
    pub(super) fn lose(&mut self, range: Range<u64>) {
        let range = range.start.max(self.base)..range.end.min(self.next);
        if !range.is_empty() {
            self.lost.insert_or_widen(range);
        }
    }

    /// Everything that was sent and that the peer does not have for good goes out again.
    pub(super) fn lose_all(&mut self) {
        self.lost.clear();
        self.lose(self.base..self.next);
    }

    /// The next piece of at most `room` bytes that ends at or below `limit`. It counts as sent once
    /// [`Outgoing::copy`] is called.
    pub(super) fn next_piece(&mut self, room: usize, limit: u64) -> Option<Piece> {
        self.lost.remove_below(self.base);
        if let Some(lost) = self.lost.first() {
            let at = self.frames.partition_point(|held| held.end() <= lost.start);
            return self.cut(lost.start, at, lost.end.min(limit), room, true);
        }
        // A frame may be held only so far: the peer keeps as many in its reassembly.
        if self.next_at >= FRAMES_HELD_MAX {
            return None;
        }
        let limit = limit.min(self.end);
        self.cut(self.next, self.next_at, limit, room, false)
    }

    fn cut(&self, offset: u64, at: usize, limit: u64, room: usize, again: bool) -> Option<Piece> {
        let first = self.frames.get(at)?;
        let mut end = offset;
        let mut room_left = room as u64;
        for held in self
            .frames
            .range(at..)
            .take(FRAMES_HELD_MAX.saturating_sub(at))
        {
            let fits = limit.saturating_sub(end).min(room_left);
            let rest = held.end() - end;
            if end == held.start && fits < rest {
                // Only a part of this frame: beyond its length, and worth a second copy?
                let alone = end == offset;
                let part = if alone { 0 } else { room / BEGIN_DIVISOR };
                if fits <= part.max(PREFIX_BYTES) as u64 {
                    break;
                }
            }
            let taken = fits.min(rest);
            end += taken;
            room_left -= taken;
            if taken < rest {
                break;
            }
        }
        (end > offset).then(|| Piece {
            offset,
            len: (end - offset) as usize,
            back: (offset - first.start) as u32,
            frame_len: first.frame.len() as u32,
            again,
            at,
        })
    }

    /// Copies a piece's bytes, `buf.len()` of them, and counts it as sent.
    pub(super) fn copy(&mut self, piece: &Piece, buf: &mut [u8]) {
        let mut buf = buf;
        let mut skip = piece.back as usize;
        let mut at = piece.at;
        while !buf.is_empty()
            && let Some(held) = self.frames.get(at)
        {
            let wire = held.frame.wire().get(skip..).unwrap_or_default();
            let taken = wire.len().min(buf.len());
            let (now, later) = buf.split_at_mut(taken);
            now.copy_from_slice(&wire[..taken]);
            buf = later;
            if taken == wire.len() {
                skip = 0;
                at += 1;
            }
        }
        let end = piece.offset + piece.len as u64;
        if piece.again {
            self.lost.remove_below(end);
        } else {
            self.next = end;
            self.next_at = at;
        }
    }

    /// Whether anything waits to be sent again.
    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Drops all frames.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.next_at = 0;
        self.next = self.end;
        self.base = self.end;
        self.lost.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{bytes_of, pools};
    use super::*;

    const LIMITS: QueueLimits = QueueLimits {
        frames: 16,
        bytes: 1 << 20,
    };

    /// Sends one piece; returns it and its bytes.
    fn send(outgoing: &mut Outgoing, room: usize, limit: u64) -> Option<(Piece, Vec<u8>)> {
        let piece = outgoing.next_piece(room, limit)?;
        let mut bytes = vec![0; piece.len];
        outgoing.copy(&piece, &mut bytes);
        Some((piece, bytes))
    }

    proptest! {
        #[test]
        fn every_byte_goes_out_whatever_is_lost(
            lens in prop::collection::vec(1usize..4000, 1..12),
            rooms in prop::collection::vec(64usize..3000, 1..20),
            losses in prop::collection::vec(any::<bool>(), 1..20),
        ) {
            let pools = pools(16, 16, 0);
            let mut outgoing = Outgoing::new(LIMITS);
            let mut stream = Vec::new();
            for (seed, len) in lens.iter().enumerate() {
                let bytes = bytes_of(seed as u64, *len);
                stream.extend_from_slice(&(*len as u32).to_le_bytes());
                stream.extend_from_slice(&bytes);
                prop_assert!(outgoing.submit(pools.copy(&bytes).unwrap()).is_ok());
            }
            let starts: Vec<u64> = lens
                .iter()
                .scan(0, |end, len| { let start = *end; *end += 4 + *len as u64; Some(start) })
                .collect();
            let mut arrived = vec![false; stream.len()];
            let (mut rooms, mut losses) = (rooms.iter().cycle(), losses.iter().cycle());
            let mut lose_at_all = 200;
            while arrived.iter().any(|there| !there) {
                let Some((piece, bytes)) = send(&mut outgoing, *rooms.next().unwrap(), u64::MAX)
                else {
                    prop_assert!(false, "a stall");
                    break;
                };
                prop_assert!(!bytes.is_empty());
                let range = piece.offset as usize..piece.offset as usize + piece.len;
                prop_assert_eq!(&stream[range.clone()], &bytes[..]);
                let start = piece.offset - u64::from(piece.back);
                let frame = starts.binary_search(&start);
                prop_assert!(frame.is_ok_and(|at| lens[at] == piece.frame_len as usize));
                let end = range.end as u64;
                for border in [piece.offset, end] {
                    let inside = starts.iter().any(|start| border > *start && border < *start + 4);
                    prop_assert!(!inside, "a length is cut at {}", border);
                }
                if lose_at_all > 0 && *losses.next().unwrap() {
                    lose_at_all -= 1;
                    outgoing.lose(piece.offset..end);
                } else {
                    arrived[range].fill(true);
                    let contiguous = arrived.iter().take_while(|there| **there).count();
                    prop_assert!(outgoing.acknowledge(contiguous as u64));
                }
            }
            prop_assert!(outgoing.acknowledge(stream.len() as u64));
            prop_assert_eq!(pools.available().small + pools.available().medium, 32);
        }
    }

    #[test]
    fn a_frame_that_fits_ends_its_datagram_and_small_ones_share_it() {
        let pools = pools(64, 16, 0);
        let mut outgoing = Outgoing::new(LIMITS);
        for seed in 0..3 {
            outgoing
                .submit(pools.copy(&bytes_of(seed, 4096)).unwrap())
                .unwrap();
        }
        for at in 0..3u64 {
            let (piece, _) = send(&mut outgoing, 4106, u64::MAX).unwrap();
            assert_eq!((piece.offset, piece.len, piece.back), (at * 4100, 4100, 0));
        }
        for seed in 0..10 {
            outgoing
                .submit(pools.copy(&bytes_of(seed, 100)).unwrap())
                .unwrap();
        }
        let (piece, _) = send(&mut outgoing, 4106, u64::MAX).unwrap();
        assert_eq!(piece.len, 1040);
        assert_eq!(send(&mut outgoing, 4106, u64::MAX), None);
    }

    #[test]
    fn nothing_goes_beyond_a_limit() {
        let pools = pools(4, 4, 0);
        let mut outgoing = Outgoing::new(LIMITS);
        outgoing
            .submit(pools.copy(&bytes_of(1, 3000)).unwrap())
            .unwrap();
        assert_eq!(send(&mut outgoing, 1000, 4), None, "nothing but a length");
        assert_eq!(send(&mut outgoing, 1000, 500).unwrap().0.len, 500);
        assert_eq!(send(&mut outgoing, 1000, 500), None);
        outgoing.lose(0..500);
        assert_eq!(send(&mut outgoing, 1000, 0), None);
        let (piece, _) = send(&mut outgoing, 1000, 300).unwrap();
        assert_eq!((piece.offset, piece.len, piece.again), (0, 300, true));
        let (piece, _) = send(&mut outgoing, 1000, 900).unwrap();
        assert_eq!((piece.offset, piece.len, piece.again), (300, 200, true));
        assert_eq!(outgoing.unsent_bytes(), 2504);
        assert!(!outgoing.acknowledge(501), "never sent");
        assert!(outgoing.acknowledge(500));
    }

    #[test]
    fn what_waits_is_bounded_in_frames_and_bytes() {
        let pools = pools(64, 0, 4);
        let mut outgoing = Outgoing::new(LIMITS);
        for _ in 0..16 {
            outgoing.submit(pools.copy(b"x").unwrap()).unwrap();
        }
        assert!(outgoing.submit(pools.copy(b"x").unwrap()).is_err());
        assert!(!outgoing.is_low());
        outgoing.clear();
        assert_eq!(pools.available().small, 64);
        outgoing
            .submit(pools.copy(&vec![1; 1 << 20]).unwrap())
            .unwrap();
        assert!(outgoing.submit(pools.copy(b"x").unwrap()).is_err());
    }

    #[test]
    fn frames_on_the_way_are_bounded() {
        let pools = pools(FRAMES_HELD_MAX + 32, 0, 0);
        let mut outgoing = Outgoing::new(LIMITS);
        let capacity = outgoing.frames.capacity();
        let mut taken = 0;
        loop {
            while outgoing.submit(pools.copy(b"x").unwrap()).is_ok() {
                taken += 1;
            }
            if send(&mut outgoing, 1400, u64::MAX).is_none() {
                break;
            }
        }
        assert_eq!(outgoing.next_at, FRAMES_HELD_MAX);
        assert_eq!(taken, FRAMES_HELD_MAX + LIMITS.frames);
        assert_eq!(outgoing.frames.capacity(), capacity);
        assert!(outgoing.acknowledge(5));
        assert!(send(&mut outgoing, 1400, u64::MAX).is_some());
    }
}
