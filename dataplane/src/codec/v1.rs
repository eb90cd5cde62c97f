//! Version 1: operations with their bytes inline, and one LZ4 block around them.
//!
//! In: a batch's items, and the history or none. Out: operations; a page is all zero, a delta against
//! the stored copy of its address, or literal. Promises: the history changes as in version 3; without
//! a history nothing is read from it, so the receiver needs only what the payload holds.

use super::delta;
use super::encoder::EncodeStats;
use super::items::{Item, Items};
use super::lz4;
use super::ops::{BlockJump, Class, Op};
use super::rebuild::Rebuild;
use super::simd::Simd;
use super::varint::Reader;
use super::{DecodeError, Method, PAGE_BYTES, PageStore};

/// The length in the clear before an LZ4 block, 32 bits, little endian.
const LENGTH_BYTES: usize = 4;

/// Appends the operations of a batch to `ops`. `history` is read, and changed, if given.
pub(super) fn encode(
    items: Items<'_>,
    mut history: Option<&mut PageStore>,
    simd: Simd,
    ops: &mut Vec<u8>,
    stats: &mut EncodeStats,
) {
    for item in items {
        match item {
            Item::Raw(bytes) => {
                let count = bytes.len() as u64;
                Op {
                    class: Class::Raw,
                    header: false,
                    jump: None,
                    count,
                    block: BlockJump::default(),
                }
                .put(ops);
                ops.extend_from_slice(bytes);
                stats.raw_bytes += count;
            }
            Item::Zero { jump, .. } => {
                Op {
                    class: Class::Zero,
                    header: false,
                    jump,
                    count: 1,
                    block: BlockJump::default(),
                }
                .put(ops);
                stats.zero += 1;
            }
            Item::Page {
                addr,
                jump,
                header,
                page,
                ..
            } => {
                stats.pages += 1;
                let put = |class, ops: &mut _| {
                    Op {
                        class,
                        header,
                        jump,
                        count: 1,
                        block: BlockJump::default(),
                    }
                    .put(ops)
                };
                if simd.is_zero(page) {
                    put(Class::ZeroPage, ops);
                    stats.zero += 1;
                    continue;
                }
                let slot = history.as_mut().and_then(|store| store.find(addr));
                let old = history.as_ref().and_then(|store| store.page(slot?));
                let changed = old
                    .map(|old| (old, simd.differing_words(old, page)))
                    .filter(|(_, bitmap)| delta::changed_words(bitmap) <= delta::CHANGED_WORDS_MAX);
                if let Some((old, bitmap)) = changed {
                    put(Class::Delta, ops);
                    delta::put(ops, old, page, &bitmap);
                    stats.delta += 1;
                } else {
                    put(Class::Literal, ops);
                    ops.extend_from_slice(page);
                    stats.literal += 1;
                }
                if let Some(store) = &mut history {
                    store.insert_at(slot, addr, page);
                }
            }
        }
    }
}

/// Writes the payload for `ops` to `out`, which holds `ops` at least.
pub(super) fn write(ops: &[u8], out: &mut [u8]) -> (Method, usize) {
    // Less room than the operations: what does not shrink does not fit.
    if let Some(room) = ops.len().checked_sub(LENGTH_BYTES + 1) {
        let (length, block) = out.split_at_mut(LENGTH_BYTES);
        if let Some(len) = lz4::compress(ops, &mut block[..room]) {
            length.copy_from_slice(&(ops.len() as u32).to_le_bytes());
            return (Method::V1Lz4, LENGTH_BYTES + len);
        }
    }
    out[..ops.len()].copy_from_slice(ops);
    (Method::V1Stored, ops.len())
}

/// The operations of an untrusted payload. `scratch` holds those that were compressed.
pub(super) fn open<'a>(
    lz4_block: bool,
    payload: &'a [u8],
    clear_bytes_max: usize,
    scratch: &'a mut [u8],
) -> Result<Reader<'a>, DecodeError> {
    if !lz4_block {
        return Ok(Reader::new(payload));
    }
    let (length, block) = payload
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or(DecodeError::BadSections)?;
    let len = u32::from_le_bytes(*length) as usize;
    if len > clear_bytes_max {
        return Err(DecodeError::BadSections);
    }
    let clear = scratch.get_mut(..len).ok_or(DecodeError::BadSections)?;
    lz4::decompress(block, clear).ok_or(DecodeError::BadCompression)?;
    Ok(Reader::new(clear))
}

/// Carries out untrusted operations.
pub(super) fn decode(mut ops: Reader<'_>, mut to: Rebuild<'_>) -> Result<(), DecodeError> {
    while !ops.is_empty() {
        let op = Op::read(&mut ops).ok_or(to.malformed())?;
        to.check_fits(&op)?;
        if op.class == Class::Raw {
            to.bytes(ops.bytes(op.count as usize).ok_or(to.malformed())?)?;
            continue;
        }
        if op.count != 1 {
            return Err(to.malformed());
        }
        let addr = to.place(&op, 0)?;
        match op.class {
            Class::Zero => to.zero(addr)?,
            Class::ZeroPage => to.zero_page(addr, op.header)?,
            Class::Literal => to.page(addr, op.header, |page| {
                page.copy_from_slice(ops.bytes(PAGE_BYTES)?);
                Some(())
            })?,
            Class::Delta => {
                to.patched_page(addr, op.header, |page| delta::apply(&mut ops, page))?;
            }
            Class::Raw | Class::Same | Class::Copy | Class::Known => return Err(to.malformed()),
        }
    }
    to.finish()
}
