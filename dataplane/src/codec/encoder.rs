//! The sender's half: batches of raw bytes become payloads.
//!
//! In: the version of each batch, what is known about the wire, raw bytes and their tokens. Out: a
//! payload no longer than [`Encoder::max_encoded_len`], with the method byte and history flag that the
//! decoder needs. Promises: how a batch changes the page history depends on its pages and the history
//! flag only, never on version or method; a batch is refused before anything changes or not at all;
//! no allocation per batch.
//!
//! Two halves: [`Encoder::classify`] holds a batch against the history, one batch after the other;
//! [`Strand::squeeze`] makes the payload, on whatever core. [`Encoder::encode`] is both in one.

use std::sync::Arc;
use std::time::Instant;

use dwcp_baseline::Baseline;

use super::choice::{Chooser, Classed};
use super::content_index::ContentIndex;
use super::items::{Items, check_cover};
use super::known::KnownPages;
use super::rates::Kind;
use super::recent::Recent;
use super::sections::{self, Sections};
use super::simd::Simd;
use super::strand::Strand;
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
    /// Pages sent as a reference to a block of a baseline.
    pub known: u64,
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
    /// What the second half took.
    pub squeeze_ns: u64,
}

/// Pages of context for each page of a batch. A small batch has little of its own; the fastest levels make too
/// little of a context to be worth the time that it takes to index it.
const fn context_per_page(level: i32) -> u32 {
    match level {
        ..=1 => 0,
        2..=4 => 2,
        _ => 4,
    }
}

/// A batch that was held against the history: with its [`Sections`] all that its payload is made of.
#[derive(Clone, Copy, Debug)]
pub struct Classified {
    /// What was chosen, and why.
    pub choice: Choice,
    /// The history flag for the batch header.
    pub history: bool,
    /// The payload is the raw bytes where they are: nothing is left to do.
    pub raw_as_is: bool,
    /// What was in the batch; zero if it passes through unread.
    pub stats: EncodeStats,
    /// What this half took.
    pub classify_ns: u64,
    /// Bytes that are left to squeeze.
    clear_bytes: usize,
    kind: Kind,
}

impl Classified {
    fn classed(&self) -> Classed {
        Classed {
            clear_bytes: self.clear_bytes,
            kind: self.kind,
            classify_s: self.classify_ns as f64 / 1e9,
        }
    }
}

/// Encodes the batches of one direction of a session.
pub struct Encoder {
    store: PageStore,
    contents: ContentIndex,
    known: KnownPages,
    recent: Recent,
    simd: Simd,
    chooser: Chooser,
    /// For [`encode`](Self::encode).
    sections: Sections,
    strand: Strand,
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
            known: KnownPages::default(),
            recent: Recent::new(),
            simd: Simd::detect(),
            chooser: Chooser::new(min, max),
            sections: Sections::new(),
            strand: Strand::new(cfg)?,
        })
    }

    /// What an encoder takes.
    pub fn bytes(store_bytes: usize, zstd_level_max: i32) -> usize {
        PageStore::bytes(store_bytes)
            + ContentIndex::bytes(store_bytes / PAGE_BYTES)
            + Recent::BYTES
            + Self::aside_bytes(zstd_level_max)
    }

    /// What a batch that is squeezed beside an encoder takes: sections and a strand.
    pub fn aside_bytes(zstd_level_max: i32) -> usize {
        Sections::bytes() + Strand::bytes(zstd_level_max)
    }

    /// What this one takes.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> usize {
        let history = self.store.taken_bytes() + self.contents.taken_bytes() + Recent::BYTES;
        history + self.sections.taken_bytes() + self.strand.taken_bytes()
    }

    /// From the next batch on pages may be sent as references to blocks of these, which the receiver has in this
    /// order; none: from the next batch on no more.
    pub fn use_baselines(&mut self, list: Vec<Arc<Baseline>>) {
        self.known = KnownPages::new(list);
    }

    /// The most bytes that a payload for `raw_len` raw bytes takes: 24 a page for its operation and
    /// that of a raw stretch before it, and the section headers.
    pub const fn max_encoded_len(raw_len: usize) -> usize {
        raw_len + (raw_len / PAGE_BYTES + 1) * 24 + sections::OVERHEAD_BYTES
    }

    fn check(raw: &[u8], tokens: &[Token]) -> Result<(), EncodeError> {
        if raw.len() > MAX_BATCH_RAW_BYTES {
            return Err(EncodeError::BatchTooLarge {
                raw_bytes: raw.len(),
            });
        }
        check_cover(raw, tokens)
    }

    /// Chooses the next batch's method and holds the batch against the history. Its payload is made of
    /// `sections`, by [`Strand::squeeze`]; what that took goes to [`learn`](Self::learn).
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn classify(
        &mut self,
        version: CodecVersion,
        hint: &EncodeHint,
        raw: &[u8],
        tokens: &[Token],
        sections: &mut Sections,
    ) -> Result<Classified, EncodeError> {
        Self::check(raw, tokens)?;
        if version == CodecVersion::V1 {
            return Ok(self.classify_v1(raw, tokens, true, true, sections));
        }
        let has_pages = tokens.iter().any(Token::is_page);
        let opened = self.chooser.open(hint, raw, has_pages);
        let as_is = hint.accepts_raw_as_is;
        let mut classified = self.classify_v3(opened, as_is, raw, tokens, sections);
        if classified.history {
            let classed = classified.classed();
            classified.choice = self.chooser.choose(opened, hint, raw.len(), &classed);
        }
        Ok(classified)
    }

    /// Classifies the next batch in version 3 for a method of the caller's choice, for measurements.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn classify_with(
        &mut self,
        choice: Choice,
        raw: &[u8],
        tokens: &[Token],
        sections: &mut Sections,
    ) -> Result<Classified, EncodeError> {
        Self::check(raw, tokens)?;
        Ok(self.classify_v3(choice, false, raw, tokens, sections))
    }

    /// Classifies a batch again that was classified before, for version 1 and so that the payload
    /// needs nothing of the history: the sender's has gone on since. `history` is the flag of the first
    /// encoding; with it the receiver's history changes as it would have then. The sender's is left
    /// alone.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was changed.
    pub fn classify_detached_v1(
        &mut self,
        raw: &[u8],
        tokens: &[Token],
        history: bool,
        sections: &mut Sections,
    ) -> Result<Classified, EncodeError> {
        Self::check(raw, tokens)?;
        Ok(self.classify_v1(raw, tokens, history, false, sections))
    }

    fn classify_v3(
        &mut self,
        mut choice: Choice,
        accepts_raw_as_is: bool,
        raw: &[u8],
        tokens: &[Token],
        sections: &mut Sections,
    ) -> Classified {
        let start = Instant::now();
        let mut stats = EncodeStats::default();
        sections.clear();
        if matches!(choice.method, Method::V1Stored | Method::V1Lz4) {
            choice.method = Method::Stored;
        }
        let passes = choice.method == Method::Passthrough;
        if !passes {
            if choice.method == Method::Zstd {
                let pages = tokens.iter().filter(|token| token.is_page()).count();
                let per_page = context_per_page(choice.level);
                sections.take_context(&self.store, &self.recent, per_page * pages as u32);
            }
            let history = v3::History {
                store: &mut self.store,
                contents: &mut self.contents,
                known: &mut self.known,
                recent: &mut self.recent,
                simd: self.simd,
            };
            sections.are_gathered = choice.method != Method::Stored;
            v3::encode(Items::new(raw, tokens), history, sections, &mut stats);
        }
        Classified {
            choice,
            history: !passes,
            raw_as_is: passes && accepts_raw_as_is,
            stats,
            clear_bytes: sections.clear_bytes(),
            kind: self.chooser.kind(),
            classify_ns: elapsed_ns(start),
        }
    }

    fn classify_v1(
        &mut self,
        raw: &[u8],
        tokens: &[Token],
        history: bool,
        attached: bool,
        sections: &mut Sections,
    ) -> Classified {
        let start = Instant::now();
        let mut stats = EncodeStats::default();
        sections.clear();
        let store = attached.then_some(&mut self.store);
        let items = Items::new(raw, tokens);
        v1::encode(items, store, self.simd, &mut sections.ops, &mut stats);
        Classified {
            choice: Choice {
                method: Method::V1Lz4,
                level: 0,
                reason: ChoiceReason::Version1,
            },
            history,
            raw_as_is: false,
            stats,
            clear_bytes: sections.clear_bytes(),
            kind: Kind::default(),
            classify_ns: elapsed_ns(start),
        }
    }

    /// Learns from a batch how fast its method was and how much it left.
    pub fn learn(&mut self, classified: &Classified, encoded: &Encoded) {
        if classified.history {
            let squeeze_s = encoded.squeeze_ns as f64 / 1e9;
            self.chooser.observe(
                encoded.choice,
                &classified.classed(),
                encoded.len,
                squeeze_s,
            );
        }
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
        let (classified, encoded) = self.compose(raw, out, |encoder, sections| {
            encoder.classify(version, hint, raw, tokens, sections)
        })?;
        self.learn(&classified, &encoded);
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
        let both = self.compose(raw, out, |encoder, sections| {
            encoder.classify_with(choice, raw, tokens, sections)
        });
        both.map(|(_, encoded)| encoded)
    }

    /// Encodes a batch again as [`classify_detached_v1`](Self::classify_detached_v1) says.
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
        let both = self.compose(raw, out, |encoder, sections| {
            encoder.classify_detached_v1(raw, tokens, history, sections)
        });
        both.map(|(_, encoded)| encoded)
    }

    /// Both halves, one after the other.
    fn compose(
        &mut self,
        raw: &[u8],
        out: &mut [u8],
        classify: impl FnOnce(&mut Self, &mut Sections) -> Result<Classified, EncodeError>,
    ) -> Result<(Classified, Encoded), EncodeError> {
        // Before anything changes.
        Strand::check_room(raw.len(), out)?;
        let mut sections = std::mem::take(&mut self.sections);
        let both = classify(self, &mut sections).and_then(|classified| {
            let squeezed = self.strand.squeeze(&classified, raw, &mut sections, out);
            squeezed.map(|encoded| (classified, encoded))
        });
        self.sections = sections;
        both
    }

    /// The sender's page history.
    pub const fn store(&self) -> &PageStore {
        &self.store
    }

    /// The page history, when nothing more is to be encoded.
    pub fn into_store(self) -> PageStore {
        self.store
    }

    /// The capacities that must never grow.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 7] {
        let sections = &self.sections;
        [
            sections.ops.capacity(),
            sections.patches.capacity(),
            sections.raw.capacity(),
            sections.places.capacity(),
            sections.literals.capacity(),
            sections.kinds.capacity(),
            sections.filtered.capacity(),
        ]
    }
}

/// Nanoseconds since `start`.
pub(super) fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
