//! Word-wise page comparisons: where two pages differ, and whether a page is all zero.
//!
//! In: 4 KiB pages. Out: a bitmap of 512 bits (bit `i % 64` of word `i / 64` is set when the 64-bit
//! words `i` differ), counts, or a boolean. Promises: all forms answer the same, bit for bit; the form is chosen
//! once, at run time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

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
    Avx2(Seen),
    /// 512-bit ones, likewise.
    #[cfg(target_arch = "x86_64")]
    Avx512(Seen),
}

/// Proof that the CPU has the instructions: only [`Simd::all`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(());

impl Simd {
    /// The best form that this CPU runs.
    pub(super) fn detect() -> Self {
        Self::all().next().unwrap_or(Self::Scalar)
    }

    /// All forms that this CPU runs, the best first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = {
            let popcnt = is_x86_feature_detected!("popcnt");
            let avx2 = popcnt && is_x86_feature_detected!("avx2");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            [
                avx512.then_some(Self::Avx512(Seen(()))),
                avx2.then_some(Self::Avx2(Seen(()))),
            ]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide = [None];
        wide.into_iter().flatten().chain([Self::Scalar])
    }

    /// Bits of the words in which `a` and `b` differ.
    pub(super) fn differing_words(self, a: &Page, b: &Page) -> WordBitmap {
        match self {
            Self::Scalar => scalar::differing_words(a, b),
            // SAFETY: code with other instructions needs `unsafe` to call from code compiled without. `Seen`
            // exists only where `all` saw the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { avx2::differing_words(a, b) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => unsafe { avx512::differing_words(a, b) },
        }
    }

    /// For each distance of [`DISTANCES`], how many bytes equal the one so far before them, less those of
    /// whole 32-bit words that do, which a compressor finds anyway. High for tables of numbers.
    pub(super) fn columns(self, page: &Page) -> [i32; DISTANCES.len()] {
        match self {
            Self::Scalar => DISTANCES.map(|distance| scalar::columns(page, distance)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) | Self::Avx512(_) => DISTANCES.map(|distance| {
                // SAFETY: as in `differing_words`.
                unsafe { avx2::columns(page, distance) }
            }),
        }
    }

    /// Copies a page past the caches, to where it is not read soon: what was there need not be fetched first.
    pub(super) fn copy_past_caches(self, from: &Page, to: &mut Page) {
        match self {
            // SAFETY: as in `differing_words`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) if avx2::is_aligned(to) => unsafe { avx2::copy_past_caches(from, to) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) if avx512::is_aligned(to) => unsafe {
                avx512::copy_past_caches(from, to);
            },
            _ => to.copy_from_slice(from),
        }
    }

    /// Whether every byte of `page` is zero. Ends at the first block that is not.
    pub(super) fn is_zero(self, page: &Page) -> bool {
        match self {
            Self::Scalar => scalar::is_zero(page),
            // SAFETY: as in `differing_words`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { avx2::is_zero(page) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => unsafe { avx512::is_zero(page) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[repr(align(64))]
    struct Aligned([u8; 2 * PAGE_BYTES]);

    proptest! {
        #[test]
        fn all_forms_answer_the_same(
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
            let bitmap = Simd::Scalar.differing_words(&a, &b);
            for i in 0..PAGE_BYTES / 8 {
                let differs = a[i * 8..i * 8 + 8] != b[i * 8..i * 8 + 8];
                prop_assert_eq!(bitmap[i / 64] >> (i % 64) & 1 == 1, differs, "word {}", i);
            }
            let mut sparse = [0; PAGE_BYTES];
            for &(at, value) in edits.iter().take(edits.len() % 3) {
                sparse[at] = value;
            }
            for form in Simd::all() {
                prop_assert_eq!(bitmap, form.differing_words(&a, &b), "{:?}", form);
                prop_assert_eq!(Simd::Scalar.columns(&b), form.columns(&b), "{:?}", form);
                let mut to = Box::new(Aligned([1; 2 * PAGE_BYTES]));
                for at in [0, 64, 96, 3] {
                    let (before, page) = to.0.split_at_mut(at);
                    let (page, behind) = page.split_first_chunk_mut().unwrap();
                    form.copy_past_caches(&b, page);
                    prop_assert!(*page == b, "{:?}", form);
                    prop_assert!(before.iter().chain(&*behind).all(|&byte| byte == 1));
                    page.fill(1);
                }
                prop_assert_eq!(form.is_zero(&sparse), sparse.iter().all(|&b| b == 0), "{:?}", form);
            }
        }
    }
}
