//! The first cache line of a segment.
//!
//! In: the layout of the creator, or bytes of a stranger. Out: a complete header, or the first
//! thing that disagrees. It promises that a header is either whole or "not ready": the ABI
//! version is stored last.
//!
//! Little-endian, at these offsets: 0 magic (8), 8 abi (4), 12 creator pid (4), 16 layout hash
//! (8), 24 total length (8), 32 generation (8), 40 zero (24).

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::SegmentError;
use crate::mapping::Mapping;

/// Length of the header: the body begins here. A cache line, so that alignments up to 64 hold.
pub const HEADER_BYTES: usize = 64;

/// What both sides must agree on, as constants of their builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLayout {
    /// Which kind of segment.
    pub magic: u64,
    /// Version of its layout and meaning, from 1.
    pub abi: u32,
    /// [`layout_hash`] of its fields: catches drift that forgot the version.
    pub layout_hash: u64,
    /// Length behind the header, bytes.
    pub body_bytes: usize,
}

impl SegmentLayout {
    /// Header and body, bytes.
    pub(super) fn total_bytes(&self) -> Result<usize, SegmentError> {
        // Room for rounding up to a hugepage is part of the check, so that later sums cannot wrap.
        let limit = isize::MAX.unsigned_abs() - crate::mapping::HUGE_PAGE_BYTES;
        self.body_bytes
            .checked_add(HEADER_BYTES)
            .filter(|total| self.body_bytes > 0 && *total <= limit)
            .ok_or(SegmentError::BadLength {
                body_bytes: self.body_bytes,
            })
    }
}

/// Hash of a table of `(field, offset, size)`: FNV-1a, 64 bits, over each name, a zero byte, and
/// offset and size as 8 little-endian bytes.
///
/// Source: the FNV draft (draft-eastlake-fnv). It finds accidents, not attacks.
pub const fn layout_hash(fields: &[(&str, usize, usize)]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut field = 0;
    while field < fields.len() {
        let (name, offset, size) = fields[field];
        hash = fnv1a(hash, name.as_bytes());
        hash = fnv1a(hash, &[0]);
        hash = fnv1a(hash, &(offset as u64).to_le_bytes());
        hash = fnv1a(hash, &(size as u64).to_le_bytes());
        field += 1;
    }
    hash
}

const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Header {
    magic: AtomicU64,
    abi: AtomicU32,
    creator_pid: AtomicU32,
    layout_hash: AtomicU64,
    total_bytes: AtomicU64,
    generation: AtomicU64,
    zero: [AtomicU64; 3],
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES);
    assert!(offset_of!(Header, abi) == 8 && offset_of!(Header, creator_pid) == 12);
    assert!(offset_of!(Header, layout_hash) == 16 && offset_of!(Header, total_bytes) == 24);
    assert!(offset_of!(Header, generation) == 32 && offset_of!(Header, zero) == 40);
};

impl Header {
    /// The header of a mapped segment.
    pub(super) fn of(mapping: &Mapping) -> &Self {
        // Every mapping is at least a page, so a header fits; checked for the reader's peace.
        debug_assert!(mapping.bytes() >= HEADER_BYTES);
        // SAFETY: needed to see shared memory as a header. Sound because the mapping is
        // page-aligned and at least one page long, lives as long as the reference, and all
        // fields are atomics, for which every bit pattern and every foreign store is fine.
        unsafe { mapping.base().cast::<Self>().as_ref() }
    }

    pub(super) fn write(
        &self,
        layout: &SegmentLayout,
        total_bytes: usize,
        generation: u64,
        creator_pid: u32,
    ) {
        self.magic.store(layout.magic.to_le(), Ordering::Relaxed);
        self.creator_pid
            .store(creator_pid.to_le(), Ordering::Relaxed);
        self.layout_hash
            .store(layout.layout_hash.to_le(), Ordering::Relaxed);
        self.total_bytes
            .store((total_bytes as u64).to_le(), Ordering::Relaxed);
        self.generation.store(generation.to_le(), Ordering::Relaxed);
        // Release, partner of the fence in `verify`: who sees the version sees all of the above.
        self.abi.store(layout.abi.to_le(), Ordering::Release);
    }

    /// Compares each field once and returns generation and creator pid.
    pub(super) fn verify(
        &self,
        expected: &SegmentLayout,
        total_bytes: usize,
    ) -> Result<(u64, u32), SegmentError> {
        // A relaxed load and a fence instead of an acquire load: only relaxed loads are allowed
        // on memory that is mapped read-only.
        let abi = u32::from_le(self.abi.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if abi == 0 {
            return Err(SegmentError::NotReady);
        }
        let load = |word: &AtomicU64| u64::from_le(word.load(Ordering::Relaxed));
        let magic = load(&self.magic);
        if magic != expected.magic {
            return Err(SegmentError::WrongMagic {
                found: magic,
                expected: expected.magic,
            });
        }
        if abi != expected.abi {
            return Err(SegmentError::VersionMismatch {
                found: abi,
                expected: expected.abi,
            });
        }
        let hash = load(&self.layout_hash);
        if hash != expected.layout_hash {
            let expected = expected.layout_hash;
            return Err(SegmentError::LayoutMismatch {
                found: hash,
                expected,
            });
        }
        let length = load(&self.total_bytes);
        if length != total_bytes as u64 {
            let expected = total_bytes as u64;
            return Err(SegmentError::LengthMismatch {
                found: length,
                expected,
            });
        }
        let pid = u32::from_le(self.creator_pid.load(Ordering::Relaxed));
        Ok((load(&self.generation), pid))
    }
}
