//! One token: a piece of the stream with its meaning.
//!
//! In: nothing; out: the vocabulary between `stream` and `codec`.
//! Promises: `len()` is the exact number of stream bytes a token stands for, and `Page` and `Zero`
//! regenerate their header from the address alone.

use super::blocks::BlockId;

/// Bytes of one guest page. Streams with another target page size are carried as raw bytes.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a [`Token::Page`]: be64 header and the page.
pub const PAGE_RECORD_BYTES: usize = 8 + PAGE_BYTES;
/// Bytes of a [`Token::Zero`]: be64 header and one zero byte.
pub const ZERO_RECORD_BYTES: usize = 9;
/// Low bits of a canonical page header: PAGE | CONTINUE.
pub const PAGE_RECORD_FLAGS: u64 = 0x08 | 0x20;
/// Low bits of a canonical zero header: ZERO | CONTINUE.
pub const ZERO_RECORD_FLAGS: u64 = 0x02 | 0x20;
/// log2 of [`PAGE_BYTES`]: record flags live below it.
pub(super) const PAGE_BITS: u32 = 12;

/// Where a guest page lives: a RAM block of this session and a page number inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageAddr {
    /// The RAM block, numbered per session.
    pub block: BlockId,
    /// Offset inside the block divided by [`PAGE_BYTES`]; below 2^52.
    pub index: u64,
}

impl PageAddr {
    /// The header of the canonical page record (PAGE | CONTINUE) at this address.
    #[must_use]
    pub fn page_header(self) -> [u8; 8] {
        ((self.index << PAGE_BITS) | PAGE_RECORD_FLAGS).to_be_bytes()
    }

    /// All bytes of the canonical zero record (ZERO | CONTINUE, fill byte 0) at this address.
    #[must_use]
    pub fn zero_record(self) -> [u8; ZERO_RECORD_BYTES] {
        let mut record = [0; ZERO_RECORD_BYTES];
        let header = ((self.index << PAGE_BITS) | ZERO_RECORD_FLAGS).to_be_bytes();
        record[..8].copy_from_slice(&header);
        record
    }
}

/// A piece of the stream. The bytes of all tokens, one after the other, are the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Bytes without further meaning to the codec.
    Raw {
        /// Number of bytes, at least 1.
        len: u32,
    },
    /// A canonical page record: be64 (offset | PAGE | CONTINUE) and the page, 4104 bytes.
    Page {
        /// The page.
        addr: PageAddr,
    },
    /// A page whose header went out as raw bytes (record with a block name, multifd): 4096 bytes.
    Body {
        /// The page.
        addr: PageAddr,
    },
    /// A canonical zero record: be64 (offset | ZERO | CONTINUE) and a zero byte, 9 bytes.
    Zero {
        /// The page.
        addr: PageAddr,
    },
}

impl Token {
    /// Does it hold the body of a page?
    #[must_use]
    pub const fn is_page(&self) -> bool {
        matches!(self, Self::Page { .. } | Self::Body { .. })
    }

    /// Bytes of the stream that this token stands for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a token is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Raw { len } => *len as usize,
            Self::Page { .. } => PAGE_RECORD_BYTES,
            Self::Body { .. } => PAGE_BYTES,
            Self::Zero { .. } => ZERO_RECORD_BYTES,
        }
    }
}
