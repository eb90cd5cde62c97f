//! Word-wise page comparisons: where two pages differ, and whether a page is all zero.
//!
//! In: 4 KiB pages. Out: a bitmap of 512 bits (bit `i % 64` of word `i / 64` is set when the 64-bit
//! words `i` differ), counts, or a boolean. Promises: the AVX2 form and the scalar twin answer the same, bit
//! for bit; the form is chosen once, at run time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, _mm256_castsi256_pd, _mm256_cmpeq_epi8, _mm256_cmpeq_epi32, _mm256_cmpeq_epi64,
    _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_movemask_pd, _mm256_or_si256,
    _mm256_testz_si256,
};

use super::{PAGE_BYTES, Page};

/// Which 64-bit words of a page differ: 512 bits.
pub(super) type WordBitmap = [u64; PAGE_BYTES / 8 / 64];

/// Lengths of records, in bytes.
pub(super) const DISTANCES: [usize; 4] = [4, 8, 16, 24];
/// The bytes of a page that are compared with those before: from the largest distance, rounded up to a block.
const COMPARED_FROM: usize = 32;

/// The comparison routines of this CPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Simd {
    /// Portable code.
    Scalar,
    /// 256-bit integer instructions; constructed only after the CPU was seen to have them.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Seen),
}

/// Proof that the CPU has AVX2: only [`Simd::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2Seen(());

impl Simd {
    /// The best form that this CPU runs.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            return Self::Avx2(Avx2Seen(()));
        }
        Self::Scalar
    }

    /// Bits of the words in which `a` and `b` differ.
    pub(super) fn differing_words(self, a: &Page, b: &Page) -> WordBitmap {
        match self {
            Self::Scalar => differing_words_scalar(a, b),
            // SAFETY: AVX2 code needs `unsafe` to call from code compiled without AVX2. `Avx2Seen`
            // exists only where `detect` saw the feature.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { differing_words_avx2(a, b) },
        }
    }

    /// For each distance of [`DISTANCES`], how many bytes equal the one so far before them, less those of
    /// whole 32-bit words that do, which a compressor finds anyway. High for tables of numbers.
    pub(super) fn columns(self, page: &Page) -> [i32; DISTANCES.len()] {
        match self {
            Self::Scalar => DISTANCES.map(|distance| columns_scalar(page, distance)),
            // SAFETY: as in `differing_words`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => DISTANCES.map(|distance| unsafe { columns_avx2(page, distance) }),
        }
    }

    /// Whether every byte of `page` is zero. Ends at the first block that is not.
    pub(super) fn is_zero(self, page: &Page) -> bool {
        match self {
            Self::Scalar => is_zero_scalar(page),
            // SAFETY: as in `differing_words`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { is_zero_avx2(page) },
        }
    }
}

fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

fn differing_words_scalar(a: &Page, b: &Page) -> WordBitmap {
    let mut bitmap = WordBitmap::default();
    let (a, _) = a.as_chunks::<8>();
    let (b, _) = b.as_chunks::<8>();
    for (bits, (a, b)) in bitmap.iter_mut().zip(a.chunks(64).zip(b.chunks(64))) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            *bits |= u64::from(word(a) != word(b)) << i;
        }
    }
    bitmap
}

fn is_zero_scalar(page: &Page) -> bool {
    let (words, _) = page.as_chunks::<8>();
    words
        .chunks(8)
        .all(|eight| eight.iter().fold(0, |or, w| or | word(w)) == 0)
}

fn columns_scalar(page: &Page, distance: usize) -> i32 {
    let (now, before) = (&page[COMPARED_FROM..], &page[COMPARED_FROM - distance..]);
    let bytes = now.iter().zip(before).filter(|(a, b)| a == b).count();
    let words = now.as_chunks::<4>().0.iter().zip(before.as_chunks::<4>().0);
    bytes as i32 - 4 * words.filter(|(a, b)| a == b).count() as i32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn columns_avx2(page: &Page, distance: usize) -> i32 {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a 32-byte load through a pointer needs `unsafe`; the reference covers exactly the 32
    // bytes read, and the instruction asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn differing_words_avx2(a: &Page, b: &Page) -> WordBitmap {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn is_zero_avx2(page: &Page) -> bool {
    let (blocks, _) = page.as_chunks::<32>();
    blocks.chunks(4).all(|four| {
        let mut or = load(&four[0]);
        for block in &four[1..] {
            or = _mm256_or_si256(or, load(block));
        }
        _mm256_testz_si256(or, or) == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scalar_twin_answers_the_same(
            seed in any::<[u8; 32]>(),
            edits in proptest::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..200),
        ) {
            let mut a = [0; PAGE_BYTES];
            for (i, byte) in a.iter_mut().enumerate() {
                *byte = seed[i % 32] & seed[(i / 32) % 32];
            }
            let mut b = a;
            for &(at, value) in &edits {
                b[at] = value;
            }
            let best = Simd::detect();
            let bitmap = Simd::Scalar.differing_words(&a, &b);
            prop_assert_eq!(bitmap, best.differing_words(&a, &b));
            for i in 0..PAGE_BYTES / 8 {
                let differs = a[i * 8..i * 8 + 8] != b[i * 8..i * 8 + 8];
                prop_assert_eq!(bitmap[i / 64] >> (i % 64) & 1 == 1, differs, "word {}", i);
            }
            prop_assert_eq!(Simd::Scalar.columns(&b), best.columns(&b));
            let mut sparse = [0; PAGE_BYTES];
            for &(at, value) in edits.iter().take(edits.len() % 3) {
                sparse[at] = value;
            }
            prop_assert_eq!(Simd::Scalar.is_zero(&sparse), sparse.iter().all(|&b| b == 0));
            prop_assert_eq!(best.is_zero(&sparse), sparse.iter().all(|&b| b == 0));
        }
    }
}
