//! XXH3 of a page with 256-bit and 512-bit instructions.
//!
//! In: a page and a secret. Out: the hash. Promise: constructed only where the processor was seen to have the
//! instructions. The algorithm is that of XXH3's specification for long inputs: eight sums of 64 bits, which
//! each 64 bytes are multiplied into under a stretch of the secret, and which are scrambled every 1024.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set1_epi64x,
    _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_xor_si256, _mm512_add_epi64, _mm512_loadu_si512, _mm512_mul_epu32, _mm512_set1_epi64,
    _mm512_shuffle_epi32, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::SECRET_BYTES;
use crate::block::{BLOCK_BYTES, Block};

const STRIPE_BYTES: usize = 64;
/// A stripe moves on in the secret by this.
const SECRET_STEP: usize = 8;
/// Stripes between two scrambles: as many as the secret has room for.
const STRIPES: usize = (SECRET_BYTES - STRIPE_BYTES) / SECRET_STEP;
/// Where the secret for a scramble, for the last stripe and for the end begins.
const SCRAMBLE_AT: usize = SECRET_BYTES - STRIPE_BYTES;
const LAST_AT: usize = SECRET_BYTES - STRIPE_BYTES - 7;
const MERGE_AT: usize = 11;

const PRIME32: [u64; 3] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];
const PRIME64: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];
const BEGIN: Sums = Sums([
    PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0],
]);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([u64; 8]);

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

/// Proof that the processor has AVX-512 F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx2 {
    pub(super) fn seen() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    pub(super) fn hash(self, page: &Block, secret: &[u8; SECRET_BYTES]) -> u64 {
        // SAFETY: code with other instructions is called from code without; `self` exists only where `seen` saw
        // that the processor has them.
        merge(unsafe { sums_avx2(page, secret) }, secret)
    }
}

impl Avx512 {
    pub(super) fn seen() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }

    pub(super) fn hash(self, page: &Block, secret: &[u8; SECRET_BYTES]) -> u64 {
        // SAFETY: as for AVX2.
        merge(unsafe { sums_avx512(page, secret) }, secret)
    }
}

/// The stripes of a page in order, each with where its secret begins and whether a scramble follows.
fn stripes(page: &Block) -> impl Iterator<Item = (&[u8; STRIPE_BYTES], usize, bool)> {
    let (all, _) = page.as_chunks::<STRIPE_BYTES>();
    all.iter().enumerate().map(|(nth, stripe)| {
        if nth + 1 == BLOCK_BYTES / STRIPE_BYTES {
            (stripe, LAST_AT, false)
        } else {
            let within = nth % STRIPES;
            (stripe, within * SECRET_STEP, within + 1 == STRIPES)
        }
    })
}

#[target_feature(enable = "avx2")]
fn sums_avx2(page: &Block, secret: &[u8; SECRET_BYTES]) -> Sums {
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8], at: usize) -> __m256i {
        let bytes = &bytes[at..at + 32];
        // SAFETY: a load through a pointer; the slice has the 32 bytes, and no alignment is asked for.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }
    let prime = _mm256_set1_epi64x(PRIME32[0] as i64);
    let mut sums = BEGIN;
    let (halves, _) = sums.0.as_chunks_mut::<4>();
    for (half, words) in halves.iter_mut().enumerate() {
        let at = half * 32;
        // SAFETY: a load through a pointer; four words are 32 bytes.
        let mut sum = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
        for (stripe, secret_at, scramble) in stripes(page) {
            let data = load(stripe, at);
            let keyed = _mm256_xor_si256(data, load(secret, secret_at + at));
            let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
            let crossed = _mm256_shuffle_epi32::<0b0100_1110>(data);
            sum = _mm256_add_epi64(sum, _mm256_add_epi64(product, crossed));
            if scramble {
                let mixed = _mm256_xor_si256(sum, _mm256_srli_epi64::<47>(sum));
                let mixed = _mm256_xor_si256(mixed, load(secret, SCRAMBLE_AT + at));
                let low = _mm256_mul_epu32(mixed, prime);
                let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
                sum = _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high));
            }
        }
        // SAFETY: a store through a pointer; four words are 32 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
    }
    sums
}

#[target_feature(enable = "avx512f")]
fn sums_avx512(page: &Block, secret: &[u8; SECRET_BYTES]) -> Sums {
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8], at: usize) -> __m512i {
        let bytes = &bytes[at..at + STRIPE_BYTES];
        // SAFETY: a load through a pointer; the slice has the 64 bytes, and no alignment is asked for.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }
    let prime = _mm512_set1_epi64(PRIME32[0] as i64);
    let mut sums = BEGIN;
    // SAFETY: a load through a pointer; eight words are 64 bytes.
    let mut sum = unsafe { _mm512_loadu_si512(sums.0.as_ptr().cast()) };
    for (stripe, secret_at, scramble) in stripes(page) {
        let data = load(stripe, 0);
        let keyed = _mm512_xor_si512(data, load(secret, secret_at));
        let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
        let crossed = _mm512_shuffle_epi32::<0b0100_1110>(data);
        sum = _mm512_add_epi64(sum, _mm512_add_epi64(product, crossed));
        if scramble {
            let mixed = _mm512_xor_si512(sum, _mm512_srli_epi64::<47>(sum));
            let mixed = _mm512_xor_si512(mixed, load(secret, SCRAMBLE_AT));
            let low = _mm512_mul_epu32(mixed, prime);
            let high = _mm512_mul_epu32(_mm512_srli_epi64::<32>(mixed), prime);
            sum = _mm512_add_epi64(low, _mm512_slli_epi64::<32>(high));
        }
    }
    // SAFETY: a store through a pointer; eight words are 64 bytes.
    unsafe { _mm512_storeu_si512(sums.0.as_mut_ptr().cast(), sum) };
    sums
}

fn merge(sums: Sums, secret: &[u8; SECRET_BYTES]) -> u64 {
    let (keys, _) = secret[MERGE_AT..].as_chunks::<8>();
    let mut hash = (BLOCK_BYTES as u64).wrapping_mul(PRIME64[0]);
    let (pairs, _) = sums.0.as_chunks::<2>();
    for (pair, key) in pairs.iter().zip(keys.as_chunks::<2>().0) {
        let [a, b] = [0, 1].map(|i| u128::from(pair[i] ^ u64::from_le_bytes(key[i])));
        let product = a * b;
        hash = hash.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    hash ^= hash >> 37;
    hash = hash.wrapping_mul(0x1656_6791_9e37_79f9);
    hash ^ hash >> 32
}
