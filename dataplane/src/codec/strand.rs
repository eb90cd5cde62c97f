//! The encoder's second half: sections become a payload, on whatever core.
//!
//! In: a classified batch with its sections. Out: the payload. Promises: no allocation, and nothing
//! shared: a strand and the sections of a batch may be sent to another thread.

use std::time::Instant;

use super::encoder::elapsed_ns;
use super::sections::{Sections, Squeeze};
use super::simd::Simd;
use super::zstd::{Compressor, compressor_bytes};
use super::{
    Choice, Classified, CodecConfig, CodecError, EncodeError, Encoded, Encoder, Method, PAGE_BYTES,
    Page, filter, v1,
};

/// The compressors that one core works with. Nothing stays in it from one batch to the next, so batches may be given to
/// any strand in any order.
pub struct Strand {
    zstd: Compressor,
    simd: Simd,
    /// The page at hand, filtered.
    filtered: Box<Page>,
}

/// Below this level of zstd it does not pay to try filters out.
const FILTER_LEVEL_MIN: i32 = 2;
/// From this level on a look at a few pages costs little beside what the search for what is not there would. If
/// they are random, the fastest level is left: it runs over such bytes quickly, and still finds what is in a context.
const LOOK_LEVEL_MIN: i32 = 5;
/// So many, spread over the batch.
const LOOK_PAGES: usize = 8;

impl Strand {
    /// What a strand for levels up to `level_max` takes.
    pub(super) fn bytes(level_max: i32) -> usize {
        compressor_bytes(level_max) + PAGE_BYTES
    }

    /// What this one takes.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> usize {
        self.zstd.taken_bytes() + size_of_val(&*self.filtered)
    }

    /// Takes the memory.
    ///
    /// # Errors
    /// [`CodecError::Zstd`].
    pub fn new(cfg: &CodecConfig) -> Result<Self, CodecError> {
        Ok(Self {
            zstd: Compressor::new(cfg.zstd_level_max).ok_or(CodecError::Zstd)?,
            simd: Simd::detect(),
            filtered: Box::new([0; PAGE_BYTES]),
        })
    }

    pub(super) const fn check_room(raw_len: usize, out: &[u8]) -> Result<(), EncodeError> {
        let needed_bytes = Encoder::max_encoded_len(raw_len);
        if out.len() < needed_bytes {
            return Err(EncodeError::OutputTooSmall {
                out_bytes: out.len(),
                needed_bytes,
            });
        }
        Ok(())
    }

    /// Writes the payload of a batch to `out`. `raw` are its raw bytes, and `sections` those that
    /// [`Encoder::classify`] filled with it, which are used up.
    ///
    /// # Errors
    /// [`EncodeError::OutputTooSmall`]; nothing was changed.
    pub fn squeeze(
        &mut self,
        classified: &Classified,
        raw: &[u8],
        sections: &mut Sections,
        out: &mut [u8],
    ) -> Result<Encoded, EncodeError> {
        let start = Instant::now();
        Self::check_room(raw.len(), out)?;
        let choice = classified.choice;
        if choice.method == Method::Zstd && choice.level >= FILTER_LEVEL_MIN {
            sections.gather(raw);
            self.filter(sections);
        }
        let mut level = choice.level;
        if level >= LOOK_LEVEL_MIN && self.is_random(&sections.literals[sections.context_len()..]) {
            level = 1;
        }
        let mut write = |squeeze| sections.write(squeeze, raw, &mut self.zstd, out);
        let (method, len) = match choice.method {
            Method::Passthrough => {
                if !classified.raw_as_is {
                    out[..raw.len()].copy_from_slice(raw);
                }
                (Method::Passthrough, raw.len())
            }
            Method::V1Stored | Method::V1Lz4 => v1::write(&sections.ops, out),
            Method::Stored => (Method::Stored, write(Squeeze::Nothing)),
            Method::Lz4 => (Method::Lz4, write(Squeeze::Lz4)),
            Method::Zstd => (Method::Zstd, write(Squeeze::Zstd { level })),
        };
        Ok(Encoded {
            len,
            method: method.code(),
            history: classified.history,
            raw_as_is: classified.raw_as_is,
            choice: Choice { method, ..choice },
            stats: classified.stats,
            squeeze_ns: elapsed_ns(start),
        })
    }

    /// Are these pages, of which there are some, such that no compressor makes anything of one alone?
    fn is_random(&mut self, pages: &[u8]) -> bool {
        let (pages, _) = pages.as_chunks::<PAGE_BYTES>();
        let mut packed = [0; PAGE_BYTES - PAGE_BYTES / 64];
        pages.len() >= LOOK_PAGES
            && pages
                .iter()
                .step_by(pages.len() / LOOK_PAGES)
                .all(|page| self.zstd.compress(1, &[], page, &mut packed).is_none())
    }

    /// Takes the literal pages that a filter makes smaller out of the others.
    fn filter(&mut self, sections: &mut Sections) {
        let start = sections.context_len();
        let (mut from, mut to) = (start, start);
        while let Some(page) = sections.literals[from..].first_chunk::<PAGE_BYTES>() {
            if let Some(filter) =
                filter::choose(page, self.simd, &mut self.zstd, &mut self.filtered)
            {
                sections.kinds.push(filter.number());
                sections.filtered.extend_from_slice(&*self.filtered);
            } else {
                sections.kinds.push(0);
                if to < from {
                    sections.literals.copy_within(from..from + PAGE_BYTES, to);
                }
                to += PAGE_BYTES;
            }
            from += PAGE_BYTES;
        }
        sections.literals.truncate(to);
        if sections.filtered.is_empty() {
            sections.kinds.clear();
        }
    }
}
