//! The sender's half: batches of raw bytes become payloads.
//!
//! In: the version of each batch, what is known about the wire, raw bytes and their tokens. Out: a
//! payload no longer than [`Encoder::max_encoded_len`], with the method byte and history flag that the
//! decoder needs. Promises: how a batch changes the page history depends on its pages and the history
//! flag only, never on version or method; a batch is refused before anything changes or not at all;
//! no allocation per batch.

use std::time::Instant;

use super::choice::Chooser;
use super::content_index::ContentIndex;
use super::items::{Items, check_cover};
use super::sections::{self, Sections, Squeeze};
use super::simd::Simd;
use super::zstd::Compressor;
use super::{
    Choice, ChoiceReason, CodecConfig, CodecError, CodecVersion, EncodeError, EncodeHint,
    MAX_BATCH_RAW_BYTES, Method, PAGE_BYTES, PageStore, v1, v3,
};
use crate::stream::Token;

/// What was in a batch, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeStats {
    /// Page bodies.
    pub pages: u64,
    /// ZERO records, and page bodies that were all zero.
    pub zero: u64,
    /// Pages sent as a reference to an equal stored page.
    pub dup: u64,
    /// Pages sent as a delta.
    pub delta: u64,
    /// Pages sent whole.
    pub literal: u64,
    /// Bytes outside pages and ZERO records.
    pub raw_bytes: u64,
}

/// An encoded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Payload bytes.
    pub len: usize,
    /// The method byte for the batch header.
    pub method: u8,
    /// The history flag for the batch header: whether the batch's pages enter the page history.
    pub history: bool,
    /// The payload is the raw bytes where they are, and the output buffer was not written. Only if
    /// [`EncodeHint::accepts_raw_as_is`].
    pub raw_as_is: bool,
    /// What was chosen, and why.
    pub choice: Choice,
    /// What was in the batch; zero if it passed through unread.
    pub stats: EncodeStats,
}

/// Encodes the batches of one direction of a session.
pub struct Encoder {
    store: PageStore,
    contents: ContentIndex,
    simd: Simd,
    sections: Sections,
    zstd: Compressor,
    chooser: Chooser,
}

impl Encoder {
    /// An encoder with an empty history.
    ///
    /// # Errors
    /// [`CodecError`], for settings out of bounds or memory that is not there.
    pub fn new(cfg: &CodecConfig) -> Result<Self, CodecError> {
        let (min, max) = (cfg.zstd_level_min, cfg.zstd_level_max);
        if min < 1 || min > max || max > 12 {
            return Err(CodecError::ZstdLevels { min, max });
        }
        let store = PageStore::new(cfg.store())?;
        Ok(Self {
            contents: ContentIndex::new(store.slots(), &cfg.key),
            store,
            simd: Simd::detect(),
            sections: Sections::new(Self::max_encoded_len(MAX_BATCH_RAW_BYTES)),
            zstd: Compressor::new(max).ok_or(CodecError::Zstd)?,
            chooser: Chooser::new(min, max),
        })
    }

    /// The most bytes that a payload for `raw_len` raw bytes takes: 24 a page for its operation and
    /// that of a raw stretch before it, and the section headers.
    pub const fn max_encoded_len(raw_len: usize) -> usize {
        raw_len + (raw_len / PAGE_BYTES + 1) * 24 + sections::OVERHEAD_BYTES
    }

    fn check(raw: &[u8], tokens: &[Token], out: &[u8]) -> Result<(), EncodeError> {
        if raw.len() > MAX_BATCH_RAW_BYTES {
            return Err(EncodeError::BatchTooLarge {
                raw_bytes: raw.len(),
            });
        }
        let needed_bytes = Self::max_encoded_len(raw.len());
        if out.len() < needed_bytes {
            return Err(EncodeError::OutputTooSmall {
                out_bytes: out.len(),
                needed_bytes,
            });
        }
        check_cover(raw, tokens)
    }

    /// Encodes the next batch, by the method that gets it across soonest.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn encode(
        &mut self,
        version: CodecVersion,
        hint: &EncodeHint,
        raw: &[u8],
        tokens: &[Token],
        out: &mut [u8],
    ) -> Result<Encoded, EncodeError> {
        Self::check(raw, tokens, out)?;
        if version == CodecVersion::V1 {
            return Ok(self.encode_v1(raw, tokens, true, true, out));
        }
        let has_pages = tokens
            .iter()
            .any(|t| matches!(t, Token::Page { .. } | Token::Body { .. }));
        let choice = self.chooser.choose(hint, raw.len(), has_pages);
        let start = Instant::now();
        let encoded = self.encode_v3(choice, hint.accepts_raw_as_is, raw, tokens, out);
        if !encoded.raw_as_is {
            let encode_s = start.elapsed().as_secs_f64();
            self.chooser
                .observe(choice, raw.len(), encoded.len, encode_s);
        }
        Ok(encoded)
    }

    /// Encodes the next batch in version 3 by a method of the caller's choice, for measurements.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn encode_with(
        &mut self,
        choice: Choice,
        raw: &[u8],
        tokens: &[Token],
        out: &mut [u8],
    ) -> Result<Encoded, EncodeError> {
        Self::check(raw, tokens, out)?;
        Ok(self.encode_v3(choice, false, raw, tokens, out))
    }

    fn encode_v3(
        &mut self,
        choice: Choice,
        accepts_raw_as_is: bool,
        raw: &[u8],
        tokens: &[Token],
        out: &mut [u8],
    ) -> Encoded {
        let mut stats = EncodeStats::default();
        let squeeze = match choice.method {
            Method::Passthrough => {
                if !accepts_raw_as_is {
                    out[..raw.len()].copy_from_slice(raw);
                }
                return Encoded {
                    len: raw.len(),
                    method: Method::Passthrough.code(),
                    history: false,
                    raw_as_is: accepts_raw_as_is,
                    choice,
                    stats,
                };
            }
            Method::V1Stored | Method::V1Lz4 | Method::Stored => Squeeze::Nothing,
            Method::Lz4 => Squeeze::Lz4,
            Method::Zstd => Squeeze::Zstd {
                level: choice.level,
            },
        };
        self.sections.clear();
        let history = v3::History {
            store: &mut self.store,
            contents: &mut self.contents,
            simd: self.simd,
        };
        v3::encode(
            Items::new(raw, tokens),
            history,
            &mut self.sections,
            &mut stats,
        );
        let len = self.sections.write(squeeze, &mut self.zstd, out);
        let method = match squeeze {
            Squeeze::Nothing => Method::Stored,
            Squeeze::Lz4 => Method::Lz4,
            Squeeze::Zstd { .. } => Method::Zstd,
        };
        Encoded {
            len,
            method: method.code(),
            history: true,
            raw_as_is: false,
            choice,
            stats,
        }
    }

    /// Encodes a batch again that [`encode`](Self::encode) encoded before, in version 1 and so that
    /// the payload needs nothing of the history: the sender's has gone on since. `history` is the flag
    /// of the first encoding; with it the receiver's history changes as it would have then. The
    /// sender's is left alone.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn encode_detached_v1(
        &mut self,
        raw: &[u8],
        tokens: &[Token],
        history: bool,
        out: &mut [u8],
    ) -> Result<Encoded, EncodeError> {
        Self::check(raw, tokens, out)?;
        Ok(self.encode_v1(raw, tokens, history, false, out))
    }

    fn encode_v1(
        &mut self,
        raw: &[u8],
        tokens: &[Token],
        history: bool,
        attached: bool,
        out: &mut [u8],
    ) -> Encoded {
        let mut stats = EncodeStats::default();
        let ops = &mut self.sections.ops;
        ops.clear();
        let store = attached.then_some(&mut self.store);
        v1::encode(Items::new(raw, tokens), store, self.simd, ops, &mut stats);
        let (method, len) = v1::write(ops, out);
        let choice = Choice {
            method,
            level: 0,
            reason: ChoiceReason::Version1,
        };
        Encoded {
            len,
            method: method.code(),
            history,
            raw_as_is: false,
            choice,
            stats,
        }
    }

    /// The sender's page history.
    pub const fn store(&self) -> &PageStore {
        &self.store
    }

    /// The capacities that must never grow.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 4] {
        let Sections {
            ops,
            patches,
            raw,
            literals,
        } = &self.sections;
        [
            ops.capacity(),
            patches.capacity(),
            raw.capacity(),
            literals.capacity(),
        ]
    }
}
