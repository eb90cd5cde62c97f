//! 512-bit instructions.
//!
//! In and out: see the parent. Promise: called only where AVX-512 F was seen. What few pages need stays with 256 bits.

use std::arch::x86_64::{
    __m512i, _mm_sfence, _mm512_cmpneq_epi64_mask, _mm512_loadu_si512, _mm512_or_si512,
    _mm512_stream_si512, _mm512_test_epi64_mask,
};

use super::WordBitmap;
use crate::codec::Page;

#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: a 64-byte load through a pointer needs `unsafe`; the reference covers exactly the 64
    // bytes read, and the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
pub(super) fn differing_words(a: &Page, b: &Page) -> WordBitmap {
    let mut bitmap = WordBitmap::default();
    let (a, _) = a.as_chunks::<64>();
    let (b, _) = b.as_chunks::<64>();
    for (bits, (a, b)) in bitmap.iter_mut().zip(a.chunks(8).zip(b.chunks(8))) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let differ = _mm512_cmpneq_epi64_mask(load(a), load(b));
            *bits |= u64::from(differ) << (8 * i);
        }
    }
    bitmap
}

#[target_feature(enable = "avx512f")]
pub(super) fn is_zero(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<64>();
    blocks.chunks(4).all(|four| {
        let mut or = load(&four[0]);
        for block in &four[1..] {
            or = _mm512_or_si512(or, load(block));
        }
        _mm512_test_epi64_mask(or, or) == 0
    })
}

/// May [`copy_past_caches`] write there?
pub(super) fn is_aligned(to: &Page) -> bool {
    to.as_ptr().addr().is_multiple_of(64)
}

/// `to` is aligned, or the copy panics.
#[target_feature(enable = "avx512f")]
pub(super) fn copy_past_caches(from: &Page, to: &mut Page) {
    assert!(is_aligned(to), "the processor would refuse the store");
    let (from, _) = from.as_chunks::<64>();
    let (to, _) = to.as_chunks_mut::<64>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: a store through a pointer; the reference covers exactly the 64 bytes written, and is aligned.
        unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), load(from)) };
    }
    // Such stores wait in buffers of their own: nobody, this thread among them, may read there before this.
    _mm_sfence();
}
