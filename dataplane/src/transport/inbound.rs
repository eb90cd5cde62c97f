//! The receiving end of one direction: from frames in any order to batches in sequence.
//!
//! In: verified batch frames from any lane, reports of what the hypervisor took. Out: batches
//! strictly in sequence, each once, their channels' bytes without gap; what to acknowledge. Express
//! batches alone may be taken before those in front of them, never before their own channel's.
//! Promise: at most 256 batches, and never more raw bytes than the session's stated limit, wait
//! here or with the engine; a peer that sends more is cut off with an error.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use super::wire::batch::{BatchHeader, BatchKind, FLAG_EXPRESS, Marker, open_batch};
use super::wire::control::{Ack, MAX_ACK_CHANNELS, Sack};
use super::wire::keys::FrameKeys;
use super::{
    BatchSeq, CHANNEL_GUARANTEE_BYTES, ChannelId, FrameHandle, MAX_CHANNELS, MAX_IN_FLIGHT, Nanos,
    TransportError, Version,
};

/// What the handshake fixed for this direction.
#[derive(Debug, Clone)]
pub struct InboundConfig {
    /// Keys of the direction in which frames come.
    pub keys: FrameKeys,
    /// Highest version agreed.
    pub highest: Version,
    /// The negotiated window in raw bytes. The hard limit is this and 64 KiB for every channel
    /// that a session may have.
    pub window_limit_bytes: u64,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// New; `pop_ready` may have something now.
    Stored(BatchSeq),
    /// It had come already, over another lane or before a cut; dropped.
    Duplicate(BatchSeq),
}

/// A batch whose turn it is.
#[derive(Debug)]
pub struct Ready<F> {
    /// Its checked header.
    pub header: BatchHeader,
    /// The whole frame; the payload starts at [`super::wire::batch::BATCH_HEADER_BYTES`].
    pub frame: F,
}

/// What holds the sequence up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The batch that is missing.
    pub missing: BatchSeq,
    /// Batches that wait behind it.
    pub waiting_batches: usize,
    /// Their raw bytes.
    pub waiting_raw_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Channel {
    open: bool,
    half_closed: bool,
    /// Raw bytes handed up in sequence: where the next DATA must stand.
    handed_up_bytes: u64,
    delivered_bytes: u64,
    delivered_changed: bool,
}

/// The place of one batch in the sequence.
#[derive(Debug)]
enum Slot<F> {
    /// It has not come.
    Empty,
    /// It waits for its turn.
    Waiting(Ready<F>),
    /// It was taken before its turn.
    Taken,
}

/// See the module.
#[derive(Debug)]
pub struct Inbound<F> {
    config: InboundConfig,
    slots: Box<[Slot<F>]>,
    /// Express batches that wait, in the order they came.
    express: VecDeque<BatchSeq>,
    next_up: BatchSeq,
    /// The batch that was put back: in v3 it is of no use.
    put_back: Option<BatchSeq>,
    waiting_batches: usize,
    waiting_raw_bytes: u64,
    handed_up_bytes: u64,
    delivered_bytes: u64,
    channels: Box<[Channel]>,
    channels_seen: usize,
    ack_cursor: usize,
    ack_wanted: bool,
    ping: Option<(Nanos, Nanos)>,
    duplicates: u64,
}

impl<F: FrameHandle> Inbound<F> {
    /// All memory that it will ever use is taken here.
    #[must_use]
    pub fn new(config: InboundConfig) -> Self {
        Self {
            config,
            slots: (0..MAX_IN_FLIGHT).map(|_| Slot::Empty).collect(),
            express: VecDeque::with_capacity(MAX_IN_FLIGHT),
            next_up: BatchSeq(0),
            put_back: None,
            waiting_batches: 0,
            waiting_raw_bytes: 0,
            handed_up_bytes: 0,
            delivered_bytes: 0,
            channels: vec![Channel::default(); MAX_CHANNELS].into_boxed_slice(),
            channels_seen: 0,
            ack_cursor: 0,
            ack_wanted: false,
            ping: None,
            duplicates: 0,
        }
    }

    /// Lets the peer send on a channel that our own side opened: an OPEN opens both directions.
    ///
    /// # Errors
    /// [`TransportError::ChannelOpenTwice`], [`TransportError::Misuse`] for a number out of range.
    pub fn open_channel(&mut self, channel: ChannelId) -> Result<(), TransportError> {
        let index = usize::from(channel.0);
        let state = self.channels.get_mut(index).ok_or(TransportError::Misuse {
            what: "opened a channel that is out of range",
        })?;
        if state.open {
            return Err(TransportError::ChannelOpenTwice { channel });
        }
        state.open = true;
        self.channels_seen = self.channels_seen.max(index + 1);
        Ok(())
    }

    /// Takes a batch frame from any lane.
    ///
    /// # Errors
    /// [`TransportError`]; the session must end.
    pub fn on_batch(&mut self, frame: F) -> Result<Accepted, TransportError> {
        let header = open_batch(&self.config.keys, frame.bytes())?.header;
        let (seq, next) = (header.seq, self.next_up);
        if seq < next {
            return Ok(self.duplicate(seq));
        }
        if seq.0 - next.0 >= MAX_IN_FLIGHT as u64 {
            return Err(TransportError::BeyondWindow { seq, next });
        }
        if self.has(seq) || (self.put_back == Some(seq) && header.version == Version::V3) {
            return Ok(self.duplicate(seq));
        }
        if header.version > self.config.highest {
            let (version, agreed) = (header.version, self.config.highest);
            return Err(TransportError::VersionNotAgreed {
                seq,
                version,
                agreed,
            });
        }
        let held_bytes = self.held_bytes() + u64::from(header.raw_len);
        if held_bytes > self.limit_bytes() {
            let limit_bytes = self.limit_bytes();
            return Err(TransportError::WindowExceeded {
                held_bytes,
                limit_bytes,
            });
        }
        self.waiting_batches += 1;
        self.waiting_raw_bytes += u64::from(header.raw_len);
        if header.flags & FLAG_EXPRESS != 0 {
            self.express.push_back(seq);
        }
        self.slots[slot_of(seq)] = Slot::Waiting(Ready { header, frame });
        self.ack_wanted = true;
        Ok(Accepted::Stored(seq))
    }

    fn duplicate(&mut self, seq: BatchSeq) -> Accepted {
        self.duplicates += 1;
        // The sender seems not to know that it came, so it is told again.
        self.ack_wanted = true;
        Accepted::Duplicate(seq)
    }

    /// The next batch in sequence, if it has come.
    ///
    /// # Errors
    /// [`TransportError`] when the batch does not fit its channel; the session must end.
    pub fn pop_ready(&mut self) -> Result<Option<Ready<F>>, TransportError> {
        loop {
            let slot = &mut self.slots[slot_of(self.next_up)];
            let ready = match std::mem::replace(slot, Slot::Empty) {
                Slot::Empty => return Ok(None),
                Slot::Waiting(ready) => Some(ready),
                Slot::Taken => None,
            };
            self.next_up = self.next_up.next();
            if let Some(ready) = ready {
                return self.hand_up(ready).map(Some);
            }
        }
    }

    /// An express batch whose channel has come that far, whatever is missing in front of it.
    ///
    /// # Errors
    /// [`TransportError`] when the batch does not fit its channel; the session must end.
    pub fn pop_express(&mut self) -> Result<Option<Ready<F>>, TransportError> {
        for _ in 0..self.express.len() {
            let Some(seq) = self.express.pop_front() else {
                break;
            };
            // What went up in its turn is no longer here.
            let Slot::Waiting(ready) = &self.slots[slot_of(seq)] else {
                continue;
            };
            if ready.header.seq != seq {
                continue;
            }
            let state = &self.channels[usize::from(ready.header.channel.0)];
            if !state.open || state.half_closed || state.handed_up_bytes != ready.header.offset {
                self.express.push_back(seq);
                continue;
            }
            let slot = &mut self.slots[slot_of(seq)];
            if let Slot::Waiting(ready) = std::mem::replace(slot, Slot::Taken) {
                return self.hand_up(ready).map(Some);
            }
        }
        Ok(None)
    }

    /// The DATA batch that [`Self::pop_ready`] just gave is of no use as it is: it counts as not come, and is
    /// waited for in v1. Call it before the next ACK is asked for.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] for any other batch.
    pub fn put_back(&mut self, header: &BatchHeader) -> Result<(), TransportError> {
        let raw_len = u64::from(header.raw_len);
        let state = self.channels.get_mut(usize::from(header.channel.0));
        let (Some(state), true) = (
            state.filter(|state| state.handed_up_bytes - state.delivered_bytes >= raw_len),
            header.kind == BatchKind::Data && header.seq.next() == self.next_up,
        ) else {
            return Err(TransportError::Misuse {
                what: "put back a batch that was not just handed up",
            });
        };
        state.handed_up_bytes -= raw_len;
        self.handed_up_bytes -= raw_len;
        self.next_up = header.seq;
        self.put_back = Some(header.seq);
        Ok(())
    }

    fn hand_up(&mut self, ready: Ready<F>) -> Result<Ready<F>, TransportError> {
        let raw_len = u64::from(ready.header.raw_len);
        self.waiting_batches -= 1;
        self.waiting_raw_bytes -= raw_len;
        self.advance_channel(&ready)?;
        self.handed_up_bytes += raw_len;
        Ok(ready)
    }

    fn advance_channel(&mut self, ready: &Ready<F>) -> Result<(), TransportError> {
        let BatchHeader {
            kind,
            channel,
            seq,
            offset,
            ..
        } = ready.header;
        match kind {
            BatchKind::Open => return self.open_channel(channel),
            BatchKind::Abort | BatchKind::Baseline => return Ok(()),
            BatchKind::Data | BatchKind::HalfClose => {}
        }
        let state = &mut self.channels[usize::from(channel.0)];
        if !state.open || state.half_closed {
            return Err(TransportError::ChannelNotOpen { seq, channel });
        }
        // HALF_CLOSE carries its total in the offset field, so one check serves both.
        if offset != state.handed_up_bytes {
            let expected = state.handed_up_bytes;
            return Err(TransportError::OffsetMismatch {
                seq,
                channel,
                expected,
                got: offset,
            });
        }
        state.handed_up_bytes += u64::from(ready.header.raw_len);
        state.half_closed = kind == BatchKind::HalfClose;
        Ok(())
    }

    /// The hypervisor took `bytes` more of `channel`.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] when that is more than was handed up.
    pub fn note_delivered(&mut self, channel: ChannelId, bytes: u64) -> Result<(), TransportError> {
        let what = "delivered more bytes than were handed up";
        let state = self
            .channels
            .get_mut(usize::from(channel.0))
            .filter(|state| bytes <= state.handed_up_bytes - state.delivered_bytes)
            .ok_or(TransportError::Misuse { what })?;
        if bytes > 0 {
            state.delivered_bytes += bytes;
            state.delivered_changed = true;
            self.delivered_bytes += bytes;
            self.ack_wanted = true;
        }
        Ok(())
    }

    /// A PING came; the next ACK echoes it.
    pub fn note_ping(&mut self, sent: Nanos, now: Nanos) {
        self.ping = Some((sent, now));
        self.ack_wanted = true;
    }

    /// Asks for an ACK although nothing changed: after a lane came up, for the last ACK may have
    /// been lost with another.
    pub fn want_ack(&mut self) {
        self.ack_wanted = true;
    }

    /// What to tell the sender, once after any number of changes.
    pub fn ack_due(&mut self, now: Nanos) -> Option<Ack> {
        if !std::mem::take(&mut self.ack_wanted) {
            return None;
        }
        let mut sack = Sack::default();
        for ahead in 0..MAX_IN_FLIGHT {
            if self.has(BatchSeq(self.next_up.0 + ahead as u64)) {
                sack.set(ahead);
            }
        }
        Some(Ack {
            next_seq: self.next_up,
            sack,
            total_delivered_bytes: self.delivered_bytes,
            echo: self.ping.map(|(sent, _)| sent),
            echo_held_ns: self.ping.map_or(0, |(_, came)| now.since(came)),
            delivered: self.delivered_entries(),
        })
    }

    fn has(&self, seq: BatchSeq) -> bool {
        !matches!(self.slots[slot_of(seq)], Slot::Empty)
    }

    /// Channels that changed first; then others in turn, for an earlier ACK may have been lost.
    fn delivered_entries(&mut self) -> ArrayVec<(ChannelId, u64), MAX_ACK_CHANNELS> {
        let mut entries = ArrayVec::new();
        let seen = self.channels_seen;
        let mut named = [false; MAX_CHANNELS];
        for changed_only in [true, false] {
            for step in 0..seen {
                let index = (self.ack_cursor + step) % seen;
                let state = &mut self.channels[index];
                let wanted = if changed_only {
                    state.delivered_changed
                } else {
                    state.open
                };
                if entries.is_full() || named[index] || !wanted {
                    continue;
                }
                state.delivered_changed = false;
                named[index] = true;
                entries.push((ChannelId(index as u16), state.delivered_bytes));
            }
        }
        if seen > 0 {
            self.ack_cursor = (self.ack_cursor + entries.len().max(1)) % seen;
        }
        // Changes that did not fit go out with the next poll.
        self.ack_wanted = self.channels[..seen]
            .iter()
            .any(|state| state.delivered_changed);
        entries
    }

    /// What holds the sequence up, if anything waits behind it.
    #[must_use]
    pub fn gap(&self) -> Option<Gap> {
        let blocked = self.waiting_batches > 0 && !self.has(self.next_up);
        blocked.then_some(Gap {
            missing: self.next_up,
            waiting_batches: self.waiting_batches,
            waiting_raw_bytes: self.waiting_raw_bytes,
        })
    }

    /// Raw bytes that came and that the hypervisor has not taken.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.waiting_raw_bytes + self.handed_up_bytes - self.delivered_bytes
    }

    /// The hard limit on [`Self::held_bytes`].
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.config
            .window_limit_bytes
            .saturating_add(CHANNEL_GUARANTEE_BYTES * MAX_CHANNELS as u64)
    }

    /// The batch that `pop_ready` gives next.
    #[must_use]
    pub fn next_seq(&self) -> BatchSeq {
        self.next_up
    }

    /// Batches that came more than once.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Have all opened channels been half-closed and every byte been delivered?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.channels[..self.channels_seen]
            .iter()
            .all(|state| !state.open || state.half_closed)
            && self.held_bytes() == 0
    }
}

impl<F> Ready<F>
where
    F: FrameHandle,
{
    /// The meaning of OPEN, HALF_CLOSE and ABORT; `None` for DATA. The frame was verified when it
    /// was taken in, so this only reads it again.
    #[must_use]
    pub fn marker(&self) -> Option<Marker<'_>> {
        super::wire::batch::parse_batch_layout(self.frame.bytes())
            .ok()?
            .marker
    }
}

fn slot_of(seq: BatchSeq) -> usize {
    (seq.0 % MAX_IN_FLIGHT as u64) as usize
}

#[cfg(test)]
mod tests;
