//! The fast keyed hash of a page: XXH3 with 64 bits, for 4096 bytes and a secret of 192.
//!
//! In: a key, pages. Out: hashes, the same whatever the processor: the crate that everybody uses is the scalar
//! twin, and a property test holds the others to it. It chooses its instructions when a program is built; here
//! they are chosen at run time, which halves what a page costs and more. Promise: who does not know the key
//! cannot choose contents that share hashes; whoever gets a hint from it compares.

#[cfg(target_arch = "x86_64")]
mod x86;

use xxhash_rust::xxh3::xxh3_64_with_secret;

use crate::block::Block;

const SECRET_BYTES: usize = 192;

/// Keyed, for one purpose.
#[derive(Clone)]
pub struct PageHash {
    secret: [u8; SECRET_BYTES],
    form: Form,
}

/// Which instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
}

impl Form {
    /// All that this processor has, the best first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [
            x86::Avx512::seen().map(Self::Avx512),
            x86::Avx2::seen().map(Self::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let wide = [None];
        wide.into_iter().flatten().chain([Self::Scalar])
    }
}

impl PageHash {
    /// From 32 random bytes, for one purpose.
    #[must_use]
    pub fn new(key: &[u8; 32], purpose: &[u8]) -> Self {
        let mut secret = [0; SECRET_BYTES];
        blake3::Hasher::new_keyed(key)
            .update(purpose)
            .finalize_xof()
            .fill(&mut secret);
        let form = Form::all().next().unwrap_or(Form::Scalar);
        Self { secret, form }
    }

    /// The hash.
    #[must_use]
    pub fn of(&self, page: &Block) -> u64 {
        match self.form {
            Form::Scalar => xxh3_64_with_secret(page, &self.secret),
            #[cfg(target_arch = "x86_64")]
            Form::Avx2(seen) => seen.hash(page, &self.secret),
            #[cfg(target_arch = "x86_64")]
            Form::Avx512(seen) => seen.hash(page, &self.secret),
        }
    }
}

impl std::fmt::Debug for PageHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BLOCK_BYTES;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_form_answers_as_the_crate_does(
            key in any::<[u8; 32]>(),
            fill in any::<u8>(),
            bytes in proptest::collection::vec((0..BLOCK_BYTES, any::<u8>()), 0..100),
            noise in proptest::collection::vec(any::<u64>(), BLOCK_BYTES / 8),
            is_noise in any::<bool>(),
        ) {
            let mut page = [fill; BLOCK_BYTES];
            if is_noise {
                for (to, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(&noise) {
                    *to = word.to_le_bytes();
                }
            }
            for (at, byte) in bytes {
                page[at] = byte;
            }
            let mut hash = PageHash::new(&key, b"test");
            let expected = xxh3_64_with_secret(&page, &hash.secret);
            for form in Form::all() {
                hash.form = form;
                prop_assert_eq!(hash.of(&page), expected, "{:?}", form);
            }
        }
    }

    #[test]
    fn keys_and_purposes_hash_apart() {
        let page = [1; BLOCK_BYTES];
        let hashes = [([1; 32], b"a"), ([2; 32], b"a"), ([1; 32], b"b")]
            .map(|(key, purpose)| PageHash::new(&key, purpose).of(&page));
        assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2] && hashes[1] != hashes[2]);
    }
}
