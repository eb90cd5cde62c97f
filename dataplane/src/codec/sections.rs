//! The payload of version 3: up to six sections, each compressed on its own.
//!
//! In: the sections in the clear. Out: one byte with a bit for each section that is not empty, then for each
//! of those, in order: codec byte (0 stored, 1 LZ4, 2 zstd, 3 zstd with a context), length in the clear and
//! length here (both 32 bits, little endian), bytes. Codec 3 is for literals alone: its bytes begin with the
//! list of the pages of the history, as it was before this batch, which the frame may refer to (see
//! [`recent`](super::recent)). Promises: a section that does not shrink is stored, so a payload is at most
//! [`OVERHEAD_BYTES`] longer than its sections; on the way back the lengths in the clear are summed and
//! bounded before anything is decompressed.

use super::lz4;
use super::recent::{self, Recent};
use super::varint::Reader;
use super::zstd::{Compressor, Decompressor};
use super::{DecodeError, Encoder, MAX_BATCH_RAW_BYTES, PAGE_BYTES, PageStore};

/// Presence byte and headers.
pub(super) const OVERHEAD_BYTES: usize = 1 + SECTIONS * HEADER_BYTES;
const SECTIONS: usize = 6;
const HEADER_BYTES: usize = 9;
/// The section that may have a context.
const LITERALS: usize = 3;

/// Under this a compressor's own header eats the gain.
const COMPRESS_BYTES_MIN: usize = 32;

const STORED: u8 = 0;
const LZ4: u8 = 1;
const ZSTD: u8 = 2;
const ZSTD_CONTEXT: u8 = 3;

/// Before the pages of a context: they could begin like a dictionary of zstd's, which is more than a context.
const CONTEXT_HEAD: [u8; 8] = [0; 8];
/// The most bytes of a context.
pub(super) const CONTEXT_BYTES_MAX: usize =
    CONTEXT_HEAD.len() + recent::PAGES_MAX as usize * PAGE_BYTES;

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
    /// Where in the raw bytes each literal page begins.
    pub(super) places: Vec<u32>,
    /// The context, and behind it, if they were gathered, the literal pages that no filter was applied to.
    pub(super) literals: Vec<u8>,
    /// The literal pages are in `literals`; else only `places` says where they are.
    pub(super) are_gathered: bool,
    /// For each literal page, in order, the number of its filter; empty if there is none.
    pub(super) kinds: Vec<u8>,
    /// The literal pages that were filtered.
    pub(super) filtered: Vec<u8>,
    /// Pages in the context.
    context_pages: u32,
    /// What names them.
    context_list: Vec<u8>,
}

impl Sections {
    /// What they take.
    pub(super) fn bytes() -> usize {
        let capacity = Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES);
        let pages = MAX_BATCH_RAW_BYTES / PAGE_BYTES;
        let lists = pages * (size_of::<u32>() + 1) + recent::LIST_BYTES_MAX;
        5 * capacity + CONTEXT_BYTES_MAX + lists
    }

    /// What these take.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> usize {
        let bytes = [
            &self.ops,
            &self.patches,
            &self.raw,
            &self.literals,
            &self.kinds,
            &self.filtered,
            &self.context_list,
        ];
        let bytes: usize = bytes.map(Vec::capacity).iter().sum();
        bytes + self.places.capacity() * size_of::<u32>()
    }

    /// Empty, with room for any batch.
    pub fn new() -> Self {
        let capacity = Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES);
        let [ops, patches, raw, filtered] = [(); 4].map(|()| Vec::with_capacity(capacity));
        Self {
            ops,
            patches,
            raw,
            places: Vec::with_capacity(MAX_BATCH_RAW_BYTES / PAGE_BYTES),
            literals: Vec::with_capacity(CONTEXT_BYTES_MAX + capacity),
            are_gathered: false,
            kinds: Vec::with_capacity(MAX_BATCH_RAW_BYTES / PAGE_BYTES),
            filtered,
            context_pages: 0,
            context_list: Recent::list(),
        }
    }

    pub(super) fn clear(&mut self) {
        for section in [
            &mut self.ops,
            &mut self.patches,
            &mut self.raw,
            &mut self.literals,
            &mut self.kinds,
            &mut self.filtered,
        ] {
            section.clear();
        }
        self.places.clear();
        self.are_gathered = false;
        self.context_pages = 0;
        self.context_list.clear();
    }

    /// Takes the last of the `recent` pages, at most `pages`, as the context of the literals, of which there are
    /// none yet.
    pub(super) fn take_context(&mut self, store: &PageStore, recent: &Recent, pages: u32) {
        debug_assert!(self.literals.is_empty());
        self.literals.extend_from_slice(&CONTEXT_HEAD);
        let (list, context) = (&mut self.context_list, &mut self.literals);
        self.context_pages = recent.take(store, pages, list, context);
        self.literals.truncate(context_len(self.context_pages));
    }

    /// All bytes that are to be squeezed.
    pub(super) const fn clear_bytes(&self) -> usize {
        let literals = self.places.len() * PAGE_BYTES;
        self.ops.len() + self.patches.len() + self.raw.len() + literals
    }

    /// Brings the literal pages of a batch with these raw bytes together, unless they are.
    pub(super) fn gather(&mut self, raw: &[u8]) {
        if !self.are_gathered {
            self.literals.truncate(context_len(self.context_pages));
            for &at in &self.places {
                let at = at as usize;
                self.literals.extend_from_slice(&raw[at..at + PAGE_BYTES]);
            }
            self.are_gathered = true;
        }
    }

    /// Where the literals begin.
    pub(super) const fn context_len(&self) -> usize {
        context_len(self.context_pages)
    }

    /// Writes the payload to `out`, which is at least [`OVERHEAD_BYTES`] longer than the sections. `raw` are
    /// the batch's raw bytes. Answers the payload's length.
    pub(super) fn write(
        &mut self,
        squeeze: Squeeze,
        raw: &[u8],
        zstd: &mut Compressor,
        out: &mut [u8],
    ) -> usize {
        if squeeze != Squeeze::Nothing {
            self.gather(raw);
        }
        let (context, literals) = self.literals.split_at(self.context_len());
        let scattered = if self.are_gathered {
            &[][..]
        } else {
            &self.places[..]
        };
        let sections = [
            &self.ops[..],
            &self.patches,
            &self.raw,
            literals,
            &self.kinds,
            &self.filtered,
        ];
        let mut present = 0;
        let mut at = 1;
        for (i, section) in sections.into_iter().enumerate() {
            let (header, body) = out[at..].split_at_mut(HEADER_BYTES);
            if i == LITERALS && !scattered.is_empty() {
                let (pages, _) = body.as_chunks_mut::<PAGE_BYTES>();
                for (page, &at) in pages.iter_mut().zip(scattered) {
                    page.copy_from_slice(&raw[at as usize..at as usize + PAGE_BYTES]);
                }
                present |= 1 << i;
                let len = scattered.len() * PAGE_BYTES;
                put_header(header, STORED, len, len);
                at += HEADER_BYTES + len;
                continue;
            }
            if section.is_empty() {
                continue;
            }
            present |= 1 << i;
            let with_context = match squeeze {
                Squeeze::Zstd { level } if i == LITERALS && self.context_pages > 0 => {
                    self.write_with_context(level, context, section, zstd, body)
                }
                _ => None,
            };
            let (codec, len) =
                with_context.unwrap_or_else(|| write_body(section, squeeze, zstd, body));
            put_header(header, codec, section.len(), len);
            at += HEADER_BYTES + len;
        }
        out[0] = present;
        at
    }

    fn write_with_context(
        &self,
        level: i32,
        context: &[u8],
        section: &[u8],
        zstd: &mut Compressor,
        body: &mut [u8],
    ) -> Option<(u8, usize)> {
        let list = &self.context_list;
        let room = room(section).checked_sub(list.len())?;
        let (head, frame) = body.split_at_mut(list.len());
        let len = zstd.compress(level, context, section, &mut frame[..room])?;
        head.copy_from_slice(list);
        Some((ZSTD_CONTEXT, list.len() + len))
    }
}

const fn context_len(pages: u32) -> usize {
    if pages == 0 {
        0
    } else {
        CONTEXT_HEAD.len() + pages as usize * PAGE_BYTES
    }
}

fn put_header(header: &mut [u8], codec: u8, clear_len: usize, len: usize) {
    header[0] = codec;
    header[1..5].copy_from_slice(&(clear_len as u32).to_le_bytes());
    header[5..9].copy_from_slice(&(len as u32).to_le_bytes());
}

/// Less than the section: what does not shrink does not fit.
const fn room(section: &[u8]) -> usize {
    section.len() - section.len() / 64
}

/// Codec byte and length of what was written to the head of `body`.
fn write_body(
    section: &[u8],
    squeeze: Squeeze,
    zstd: &mut Compressor,
    body: &mut [u8],
) -> (u8, usize) {
    if section.len() >= COMPRESS_BYTES_MIN {
        let room = &mut body[..room(section)];
        let packed = match squeeze {
            Squeeze::Nothing => None,
            Squeeze::Lz4 => lz4::compress(section, room).map(|len| (LZ4, len)),
            Squeeze::Zstd { level } => zstd
                .compress(level, &[], section, room)
                .map(|len| (ZSTD, len)),
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
    pub(super) kinds: Reader<'a>,
    pub(super) filtered: Reader<'a>,
}

/// Opens an untrusted payload. What is compressed is decompressed into `scratch`; together the
/// sections may have `clear_bytes_max`, which `scratch` must hold beside a context. `store` is the history
/// before the batch, if it has one.
pub(super) fn open<'a>(
    payload: &'a [u8],
    clear_bytes_max: usize,
    store: Option<&PageStore>,
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
        let mut body = reader.bytes(len).ok_or(DecodeError::BadSections)?;
        if codec == STORED {
            if len != clear_len {
                return Err(DecodeError::BadSections);
            }
            *section = Reader::new(body);
            continue;
        }
        let mut context = &[][..];
        if codec == ZSTD_CONTEXT {
            if i != LITERALS {
                return Err(DecodeError::BadSections);
            }
            // What is decompressed lies right behind it.
            let (head, room) = scratch
                .split_first_chunk_mut()
                .ok_or(DecodeError::BadSections)?;
            *head = CONTEXT_HEAD;
            let mut list = Reader::new(body);
            let len = CONTEXT_HEAD.len() + recent::read(&mut list, store, room)?;
            body = list.rest();
            let (taken, rest) = scratch.split_at_mut(len);
            (context, scratch) = (&*taken, rest);
        }
        let (clear, rest) = scratch
            .split_at_mut_checked(clear_len)
            .ok_or(DecodeError::BadSections)?;
        scratch = rest;
        match codec {
            LZ4 => lz4::decompress(body, clear),
            ZSTD | ZSTD_CONTEXT => zstd.decompress(context, body, clear),
            _ => return Err(DecodeError::BadSections),
        }
        .ok_or(DecodeError::BadCompression)?;
        *section = Reader::new(clear);
    }
    if !reader.is_empty() {
        return Err(DecodeError::BadSections);
    }
    let [ops, patches, raw, literals, kinds, filtered] = opened;
    Ok(Opened {
        ops,
        patches,
        raw,
        literals,
        kinds,
        filtered,
    })
}
