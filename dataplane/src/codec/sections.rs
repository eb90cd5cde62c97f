//! The payload of version 3: up to four sections, each compressed on its own.
//!
//! In: the four sections in the clear. Out: one byte with a bit for each section that is not empty,
//! then for each of those, in order: codec byte (0 stored, 1 LZ4, 2 zstd), length in the clear and
//! length here (both 32 bits, little endian), bytes. Promises: a section that does not shrink is stored,
//! so a payload is at most [`OVERHEAD_BYTES`] longer than its sections; on the way back the lengths in
//! the clear are summed and bounded before anything is decompressed.

use super::lz4;
use super::varint::Reader;
use super::zstd::{Compressor, Decompressor};
use super::{DecodeError, Encoder, MAX_BATCH_RAW_BYTES};

/// Presence byte and four headers.
pub(super) const OVERHEAD_BYTES: usize = 1 + SECTIONS * HEADER_BYTES;
const SECTIONS: usize = 4;
const HEADER_BYTES: usize = 9;

/// Under this a compressor's own header eats the gain.
const COMPRESS_BYTES_MIN: usize = 32;

const STORED: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;

/// What may be done to sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Squeeze {
    Nothing,
    Lz4,
    Zstd { level: i32 },
}

/// The sections of one batch, in the clear. Reused from batch to batch; never larger than at `new`.
/// [`Default`] has no room: it stands in while the true ones are lent.
#[derive(Default)]
pub struct Sections {
    /// The operations.
    pub(super) ops: Vec<u8>,
    /// For each page rebuilt from the history, in order: the slot it equals, or its delta.
    pub(super) patches: Vec<u8>,
    /// The raw stretches.
    pub(super) raw: Vec<u8>,
    /// The literal pages.
    pub(super) literals: Vec<u8>,
}

impl Sections {
    /// Empty, with room for any batch.
    pub fn new() -> Self {
        let capacity = Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES);
        let [ops, patches, raw, literals] = [(); 4].map(|()| Vec::with_capacity(capacity));
        Self {
            ops,
            patches,
            raw,
            literals,
        }
    }

    pub(super) fn clear(&mut self) {
        for section in [
            &mut self.ops,
            &mut self.patches,
            &mut self.raw,
            &mut self.literals,
        ] {
            section.clear();
        }
    }

    /// Writes the payload to `out`, which is at least [`OVERHEAD_BYTES`] longer than the sections.
    /// Answers its length.
    pub(super) fn write(&self, squeeze: Squeeze, zstd: &mut Compressor, out: &mut [u8]) -> usize {
        let sections = [&self.ops, &self.patches, &self.raw, &self.literals];
        let mut present = 0;
        let mut at = 1;
        for (i, section) in sections.into_iter().enumerate() {
            if section.is_empty() {
                continue;
            }
            present |= 1 << i;
            let (header, body) = out[at..].split_at_mut(HEADER_BYTES);
            let (codec, len) = write_body(section, squeeze, zstd, body);
            header[0] = codec;
            header[1..5].copy_from_slice(&(section.len() as u32).to_le_bytes());
            header[5..9].copy_from_slice(&(len as u32).to_le_bytes());
            at += HEADER_BYTES + len;
        }
        out[0] = present;
        at
    }
}

/// Codec byte and length of what was written to the head of `body`.
fn write_body(
    section: &[u8],
    squeeze: Squeeze,
    zstd: &mut Compressor,
    body: &mut [u8],
) -> (u8, usize) {
    if section.len() >= COMPRESS_BYTES_MIN {
        // Less room than the section: what does not shrink does not fit.
        let room = section.len() - section.len() / 64;
        let room = &mut body[..room];
        let packed = match squeeze {
            Squeeze::Nothing => None,
            Squeeze::Lz4 => lz4::compress(section, room).map(|len| (LZ4, len)),
            Squeeze::Zstd { level } => zstd.compress(level, section, room).map(|len| (ZSTD, len)),
        };
        if let Some(packed) = packed {
            return packed;
        }
    }
    body[..section.len()].copy_from_slice(section);
    (STORED, section.len())
}

/// The sections of a payload, in the clear.
pub(super) struct Opened<'a> {
    pub(super) ops: Reader<'a>,
    pub(super) patches: Reader<'a>,
    pub(super) raw: Reader<'a>,
    pub(super) literals: Reader<'a>,
}

/// Opens an untrusted payload. What is compressed is decompressed into `scratch`; together the
/// sections may have `clear_bytes_max`, which `scratch` must hold.
pub(super) fn open<'a>(
    payload: &'a [u8],
    clear_bytes_max: usize,
    zstd: &mut Decompressor,
    mut scratch: &'a mut [u8],
) -> Result<Opened<'a>, DecodeError> {
    let mut reader = Reader::new(payload);
    let present = reader.byte().ok_or(DecodeError::BadSections)?;
    if present >= 1 << SECTIONS {
        return Err(DecodeError::BadSections);
    }
    let mut budget = clear_bytes_max.min(scratch.len());
    let mut opened = [(); SECTIONS].map(|()| Reader::new(&[]));
    for (i, section) in opened.iter_mut().enumerate() {
        if present & 1 << i == 0 {
            continue;
        }
        let header = reader.bytes(HEADER_BYTES).ok_or(DecodeError::BadSections)?;
        let &[codec, a, b, c, d, e, f, g, h] = header else {
            return Err(DecodeError::BadSections);
        };
        let clear_len = u32::from_le_bytes([a, b, c, d]) as usize;
        let len = u32::from_le_bytes([e, f, g, h]) as usize;
        budget = budget
            .checked_sub(clear_len)
            .ok_or(DecodeError::BadSections)?;
        let body = reader.bytes(len).ok_or(DecodeError::BadSections)?;
        if codec == STORED {
            if len != clear_len {
                return Err(DecodeError::BadSections);
            }
            *section = Reader::new(body);
            continue;
        }
        let (clear, rest) = scratch.split_at_mut(clear_len);
        scratch = rest;
        match codec {
            LZ4 => lz4::decompress(body, clear),
            ZSTD => zstd.decompress(body, clear),
            _ => return Err(DecodeError::BadSections),
        }
        .ok_or(DecodeError::BadCompression)?;
        *section = Reader::new(clear);
    }
    if !reader.is_empty() {
        return Err(DecodeError::BadSections);
    }
    let [ops, patches, raw, literals] = opened;
    Ok(Opened {
        ops,
        patches,
        raw,
        literals,
    })
}
