//! The encoder's second half: sections become a payload, on whatever core.
//!
//! In: a classified batch with its sections. Out: the payload. Promises: no allocation, and nothing
//! shared: a strand and the sections of a batch may be sent to another thread.

use std::time::Instant;

use super::encoder::elapsed_ns;
use super::sections::{Sections, Squeeze};
use super::zstd::Compressor;
use super::{
    Choice, Classified, CodecConfig, CodecError, EncodeError, Encoded, Encoder, Method, v1,
};

/// The compressors that one core works with. Batches that are given to the same strand are given in
/// batch order.
pub struct Strand {
    zstd: Compressor,
}

impl Strand {
    /// Takes the memory.
    ///
    /// # Errors
    /// [`CodecError::Zstd`].
    pub fn new(cfg: &CodecConfig) -> Result<Self, CodecError> {
        Ok(Self {
            zstd: Compressor::new(cfg.zstd_level_max).ok_or(CodecError::Zstd)?,
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
    /// [`Encoder::classify`] filled with it.
    ///
    /// # Errors
    /// [`EncodeError::OutputTooSmall`]; nothing was changed.
    pub fn squeeze(
        &mut self,
        classified: &Classified,
        raw: &[u8],
        sections: &Sections,
        out: &mut [u8],
    ) -> Result<Encoded, EncodeError> {
        let start = Instant::now();
        Self::check_room(raw.len(), out)?;
        let choice = classified.choice;
        let mut write = |squeeze| sections.write(squeeze, &mut self.zstd, out);
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
            Method::Zstd => {
                let level = choice.level;
                (Method::Zstd, write(Squeeze::Zstd { level }))
            }
        };
        Ok(Encoded {
            len,
            method: method.code(),
            history: classified.history,
            raw_as_is: classified.raw_as_is,
            choice: Choice { method, ..choice },
            stats: classified.stats,
            encode_ns: classified.classify_ns + elapsed_ns(start),
        })
    }
}
