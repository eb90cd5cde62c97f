//! Blocks, what they are known by, and how they are found.
//!
//! In: 4096 bytes. Out: a BLAKE3 digest, which is what a block is; a 64-bit hash under the store's secret,
//! which is only a hint. Promise: who does not know the secret cannot choose contents that share hashes.

use xxhash_rust::xxh3::xxh3_64_with_secret;

/// Bytes of a block: a guest page, and the usual block of a guest's file system.
pub const BLOCK_BYTES: usize = 4096;

/// A block.
pub type Block = [u8; BLOCK_BYTES];

/// BLAKE3 of a block.
pub type Digest = [u8; 32];

/// What a block is known by.
#[must_use]
pub fn digest(block: &Block) -> Digest {
    *blake3::hash(block).as_bytes()
}

/// Is it nothing but zeros?
#[must_use]
pub fn is_zero(block: &Block) -> bool {
    let (words, _) = block.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64])
}

/// Keys the fast hash of one store.
#[derive(Clone)]
pub struct Secret([u8; 192]);

impl Secret {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let mut secret = [0; 192];
        blake3::Hasher::new_keyed(key)
            .update(b"dwcp baseline block hash")
            .finalize_xof()
            .fill(&mut secret);
        Self(secret)
    }

    /// The fast hash.
    #[must_use]
    pub fn hash(&self, block: &Block) -> u64 {
        xxh3_64_with_secret(block, &self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
