//! What the unit tests of this module share.

use dwcp_hugepages::arena::BackingPolicy;

use crate::frame::{FramePools, FramePoolsConfig};

pub(super) fn pools(small: usize, medium: usize, large: usize) -> FramePools {
    FramePools::new(&FramePoolsConfig {
        small,
        medium,
        large,
        backing: BackingPolicy::Ordinary,
    })
    .unwrap()
}

/// `len` bytes that tell their seed and their place.
pub(super) fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
