//! Reading big-endian fields off the front of the stream, and what a parser answers.
//!
//! In: a prefix of the stream; out: fields, or `None` when the prefix is too short.
//! Promises: never reads past the prefix. A parser changes its state only after its last read
//! succeeded, so `None` always means "ask again with more bytes".

use super::{LostSync, PageAddr, blocks::BlockTable, facts::StreamFacts};

/// Longest prefix that any parser needs to decide a step: one multifd packet header.
pub(super) const MAX_HEAD_BYTES: usize = 1344;

/// What comes next in the stream.
pub(super) enum Step {
    /// `head` bytes that were understood and `skip` bytes that need not be, all raw.
    Raw { head: usize, skip: u64 },
    /// A canonical page record. The parser is asked again if it cannot be consumed yet.
    Page { addr: PageAddr },
    /// A canonical zero record.
    Zero { addr: PageAddr },
    /// `head` raw bytes, then a page.
    Body { head: usize, addr: PageAddr },
    /// From here on nobody can know what the bytes mean, as expected.
    Opaque,
    /// From here on the parser does not know what the bytes mean.
    Lost(LostSync),
}

/// What comes next inside a section.
pub(super) enum Walk {
    /// More of the section.
    Step(Step),
    /// The payload ends after `head` bytes; the footer follows.
    End { head: usize },
}

impl From<LostSync> for Walk {
    fn from(reason: LostSync) -> Self {
        Self::Step(Step::Lost(reason))
    }
}

/// What parsers write to besides themselves.
pub(super) struct Env<'a> {
    pub blocks: &'a mut BlockTable,
    pub facts: &'a mut StreamFacts,
}

/// A read position in a prefix of the stream.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    /// Bytes read so far.
    pub fn pos(&self) -> usize {
        self.pos
    }

    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.pos..)?.get(..n)?;
        self.pos += n;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.pos..)?.first_chunk::<N>()?;
        self.pos += N;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn be16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn be32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn be64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind a one-byte length.
    pub fn counted(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(usize::from(len))
    }
}
