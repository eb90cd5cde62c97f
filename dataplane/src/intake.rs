//! Bytes from a hypervisor's connection, cut into batches.
//!
//! In: a non-blocking stream socket. Out: [`Cut`]s: up to [`SENT_BATCH_RAW_BYTES`] raw bytes, in place
//! behind room for a batch header, with their tokens. Promises: bytes leave in the order they came, each
//! once; nothing waits while the hypervisor is silent: a record that stopped half-way is let go when the
//! owner says the connection is idle. A batch's bytes are never copied, but for the start of a record
//! that is carried over to the next one.

use std::io;
use std::os::fd::AsFd;

use dwcp_drivers::frame::{FrameMut, FramePools};

use crate::stream::{BlockTable, ChannelKind, StreamFacts, TokenBuf, Tokeniser};
use crate::transport::SENT_BATCH_RAW_BYTES;
use crate::transport::wire::BATCH_HEADER_BYTES;

/// Bytes in front of the raw bytes in every cut: the batch header goes there.
pub const HEADROOM: usize = BATCH_HEADER_BYTES;

/// Tokens of one batch. A run of zero pages takes one each; a batch that has more is cut early.
pub const BATCH_TOKENS: usize = 16 * 1024;

/// A batch of at most this many bytes is copied out of the buffer it was read into.
const COPY_OUT_BYTES: usize = 32 * 1024;

/// Raw bytes ready to become one batch.
#[derive(Debug)]
pub struct Cut {
    /// Header room, then the raw bytes.
    pub frame: FrameMut,
    /// Raw bytes behind the header room.
    pub raw_bytes: usize,
    /// Where the first of them stands in the connection.
    pub offset: u64,
}

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// This many bytes; there may be more.
    Bytes(usize),
    /// Nothing for now.
    WouldBlock,
    /// The hypervisor will send no more.
    End,
    /// No buffer is free, or this batch is full: cut first.
    Full,
}

/// One connection's incoming side.
pub struct Intake {
    tokeniser: Tokeniser,
    fill: Option<FrameMut>,
    filled: usize,
    /// Bytes at the start of `fill` that already failed to make a token: no use asking again.
    stuck: usize,
    offset: u64,
    ended: bool,
}

impl Intake {
    /// The incoming side of a connection of this kind, at its first byte.
    #[must_use]
    pub fn new(kind: ChannelKind) -> Self {
        Self {
            tokeniser: Tokeniser::new(kind),
            fill: None,
            filled: 0,
            stuck: 0,
            offset: 0,
            ended: false,
        }
    }

    /// What the stream has shown so far.
    #[must_use]
    pub fn facts(&self) -> &StreamFacts {
        self.tokeniser.facts()
    }

    /// Bytes read and not yet cut.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.filled
    }

    /// Bytes read and not yet cut that a cut would take without breaking a record.
    #[must_use]
    pub const fn ready_bytes(&self) -> usize {
        self.filled - self.stuck
    }

    /// Bytes cut so far: the connection's length once it has ended.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Has the hypervisor ended its side?
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// The connection broke: what was read is carried, and nothing more comes.
    pub const fn note_broken(&mut self) {
        self.ended = true;
    }

    /// Reads once, at most `allowed` bytes.
    ///
    /// # Errors
    /// What the system said; a reset connection is an error, an orderly end is not.
    pub fn read(
        &mut self,
        fd: impl AsFd,
        allowed: usize,
        pools: &FramePools,
    ) -> io::Result<ReadOutcome> {
        if self.ended {
            return Ok(ReadOutcome::End);
        }
        if allowed == 0 {
            return Ok(ReadOutcome::Full);
        }
        self.make_room(allowed, pools);
        let Some(fill) = self.fill.as_mut() else {
            return Ok(ReadOutcome::Full);
        };
        let start = HEADROOM + self.filled;
        let room = fill.capacity().min(HEADROOM + SENT_BATCH_RAW_BYTES) - start;
        if room == 0 {
            return Ok(ReadOutcome::Full);
        }
        let end = start + room.min(allowed);
        match rustix::io::read(fd, &mut fill.payload_mut()[start..end]) {
            Ok(0) => {
                self.ended = true;
                Ok(ReadOutcome::End)
            }
            Ok(bytes) => {
                self.filled += bytes;
                Ok(ReadOutcome::Bytes(bytes))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                self.release_idle_buffer();
                Ok(ReadOutcome::WouldBlock)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a buffer, or a larger one if more may be read than fits. A connection that may hold little
    /// takes a buffer of that size, so that many of them do not use the large ones up.
    fn make_room(&mut self, allowed: usize, pools: &FramePools) {
        let want = HEADROOM + SENT_BATCH_RAW_BYTES.min(self.filled + allowed);
        match &mut self.fill {
            None => {
                let less = || pools.take(HEADROOM + COPY_OUT_BYTES);
                self.fill = pools.take(want).or_else(less);
            }
            Some(fill) if fill.capacity() < want => {
                if let Some(mut larger) = pools.take(want) {
                    let end = HEADROOM + self.filled;
                    larger.payload_mut()[..end].copy_from_slice(&fill.payload_mut()[..end]);
                    *fill = larger;
                }
            }
            Some(_) => {}
        }
    }

    /// Cuts the next batch, of at most `limit` bytes. `last` lets a record that stopped half-way go;
    /// otherwise it stays for the next cut. `None`: nothing to cut, or no buffer to carry the rest over to.
    pub fn cut(
        &mut self,
        last: bool,
        limit: usize,
        blocks: &mut BlockTable,
        tokens: &mut TokenBuf,
        pools: &FramePools,
    ) -> Option<Cut> {
        tokens.clear();
        if self.filled == 0 || (!last && self.ready_bytes() == 0) {
            return None;
        }
        // A small batch is copied out, so that it does not pin a large buffer until it is
        // acknowledged; a large one leaves in the buffer it was read into. Either way the buffer is
        // taken before the tokeniser may take a byte.
        let offered = self.filled.min(limit);
        let last = last && offered == self.filled;
        let copy_out = offered <= COPY_OUT_BYTES;
        let fill = self.fill.as_ref()?;
        let want = if copy_out {
            offered
        } else {
            fill.capacity() - HEADROOM
        };
        let mut other = pools.take(HEADROOM + want)?;
        let mut fill = self.fill.take()?;
        let raw = &mut fill.payload_mut()[HEADROOM..HEADROOM + self.filled];
        let consumed = self.tokeniser.feed(&raw[..offered], last, blocks, tokens);
        let rest = self.filled - consumed;
        // When the token list was full, or not all was offered, the rest is worth another look;
        // otherwise it is half a record.
        self.stuck = if tokens.room() == 0 || offered < consumed + rest {
            0
        } else {
            rest
        };
        if consumed == 0 {
            self.fill = Some(fill);
            return None;
        }
        let frame = if copy_out {
            other.payload_mut()[HEADROOM..HEADROOM + consumed].copy_from_slice(&raw[..consumed]);
            raw.copy_within(consumed.., 0);
            self.fill = (rest > 0).then_some(fill);
            other
        } else {
            other.payload_mut()[HEADROOM..HEADROOM + rest].copy_from_slice(&raw[consumed..]);
            self.fill = (rest > 0).then_some(other);
            fill
        };
        self.filled = rest;
        let cut = Cut {
            frame,
            raw_bytes: consumed,
            offset: self.offset,
        };
        self.offset += consumed as u64;
        Some(cut)
    }

    /// Gives the buffer back while nothing is in it, so that an idle connection holds none.
    fn release_idle_buffer(&mut self) {
        if self.filled == 0 {
            self.fill = None;
        }
    }
}
