//! 256-bit instructions.
//!
//! In and out: see the parent. Promise: called only where AVX2 and POPCNT were seen.

use std::arch::x86_64::{
    __m256i, _mm_sfence, _mm256_castsi256_pd, _mm256_cmpeq_epi8, _mm256_cmpeq_epi32,
    _mm256_cmpeq_epi64, _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_movemask_pd,
    _mm256_or_si256, _mm256_stream_si256, _mm256_testz_si256,
};

use super::{COMPARED_FROM, WordBitmap};
use crate::codec::Page;

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn columns(page: &Page, distance: usize) -> i32 {
    let now = page[COMPARED_FROM..].as_chunks::<32>().0;
    let before = page[COMPARED_FROM - distance..].as_chunks::<32>().0;
    let mut score = 0;
    for (now, before) in now.iter().zip(before) {
        let (now, before) = (load(now), load(before));
        let bytes = _mm256_movemask_epi8(_mm256_cmpeq_epi8(now, before));
        let words = _mm256_movemask_epi8(_mm256_cmpeq_epi32(now, before));
        score += bytes.count_ones() as i32 - words.count_ones() as i32;
    }
    score
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a 32-byte load through a pointer needs `unsafe`; the reference covers exactly the 32
    // bytes read, and the instruction asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
pub(super) fn differing_words(a: &Page, b: &Page) -> WordBitmap {
    let mut bitmap = WordBitmap::default();
    let (a, _) = a.as_chunks::<32>();
    let (b, _) = b.as_chunks::<32>();
    for (bits, (a, b)) in bitmap.iter_mut().zip(a.chunks(16).zip(b.chunks(16))) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let same = _mm256_cmpeq_epi64(load(a), load(b));
            let same = _mm256_movemask_pd(_mm256_castsi256_pd(same)) as u64;
            *bits |= (same ^ 0xf) << (4 * i);
        }
    }
    bitmap
}

#[target_feature(enable = "avx2")]
pub(super) fn is_zero(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<32>();
    blocks.chunks(4).all(|four| {
        let mut or = load(&four[0]);
        for block in &four[1..] {
            or = _mm256_or_si256(or, load(block));
        }
        _mm256_testz_si256(or, or) == 1
    })
}

/// May [`copy_past_caches`] write there?
pub(super) fn is_aligned(to: &Page) -> bool {
    to.as_ptr().addr().is_multiple_of(32)
}

/// `to` is aligned, or the copy panics.
#[target_feature(enable = "avx2")]
pub(super) fn copy_past_caches(from: &Page, to: &mut Page) {
    assert!(is_aligned(to), "the processor would refuse the store");
    let (from, _) = from.as_chunks::<32>();
    let (to, _) = to.as_chunks_mut::<32>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: a store through a pointer; the reference covers exactly the 32 bytes written, and is aligned.
        unsafe { _mm256_stream_si256(to.as_mut_ptr().cast(), load(from)) };
    }
    // Such stores wait in buffers of their own: nobody, this thread among them, may read there before this.
    _mm_sfence();
}
