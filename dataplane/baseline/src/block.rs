//! Blocks and what they are known by.
//!
//! In: 4096 bytes. Out: a BLAKE3 digest, which is what a block is. Promise: two blocks of one digest are equal.

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
