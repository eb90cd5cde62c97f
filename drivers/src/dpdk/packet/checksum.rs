//! The Internet checksum (RFC 1071): the one's complement of the one's-complement sum of 16-bit words.
//!
//! Comes in: byte slices in the order in which they lie in the packet. Goes out: the checksum.
//! Promises: any length, any alignment; only the last slice may have an odd length.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A sum under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// This sum and `bytes`; an odd last byte counts as if a zero followed.
    #[must_use]
    pub fn over(self, bytes: &[u8]) -> Self {
        // Words of 8 bytes are added in native order: the sum is the same in each order up to a swap
        // of its bytes, which `finish` undoes (RFC 1071, section 2 (B)). Four sums side by side, so
        // that no addition waits for the one before. Halves of 32 bits in sums of 64: no carry is
        // lost below 2^32 words, and no packet has as many.
        let mut lanes = [0u64; 4];
        let mut rows = bytes.chunks_exact(16);
        for row in &mut rows {
            for (lane, word) in lanes.iter_mut().zip(row.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = lanes.iter().sum::<u64>();
        let (pairs, last) = rows.remainder().as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [odd] = last {
            sum += u64::from(u16::from_ne_bytes([*odd, 0]));
        }
        Self(fold_once(self.0) + fold_once(sum))
    }

    /// This sum and a number, as it would lie in the packet.
    #[must_use]
    pub fn over_u32(self, value: u32) -> Self {
        self.over(&value.to_be_bytes())
    }

    /// The checksum as a number; 0 when what was summed holds a right checksum.
    #[must_use]
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::from_be_bytes((sum as u16).to_ne_bytes())
    }
}

/// Keeps sums far from overflow.
fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The sum over the pseudo header of IPv4 (RFC 768).
#[must_use]
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, bytes: u16) -> Sum {
    Sum::new()
        .over(&source.octets())
        .over(&destination.octets())
        .over_u32(u32::from(protocol))
        .over_u32(u32::from(bytes))
}

/// The sum over the pseudo header of IPv6 (RFC 8200, section 8.1).
#[must_use]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, bytes: u16) -> Sum {
    Sum::new()
        .over(&source.octets())
        .over(&destination.octets())
        .over_u32(u32::from(protocol))
        .over_u32(u32::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn slowly(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().over(&bytes).finish(), !0xddf2);
    }

    proptest! {
        #[test]
        fn equal_to_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert_eq!(Sum::new().over(&bytes).finish(), slowly(&bytes));
        }

        #[test]
        fn a_sum_may_be_taken_in_parts(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            cut in 0usize..300,
        ) {
            let cut = (cut * 2).min(bytes.len() / 2 * 2);
            let (near, far) = bytes.split_at(cut);
            prop_assert_eq!(Sum::new().over(near).over(far).finish(), slowly(&bytes));
        }

        #[test]
        fn a_message_with_its_checksum_sums_to_zero(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..600),
        ) {
            let whole = bytes.len() / 2 * 2;
            bytes[..2].fill(0);
            let checksum = Sum::new().over(&bytes[..whole]).finish();
            bytes[..2].copy_from_slice(&checksum.to_be_bytes());
            prop_assert_eq!(Sum::new().over(&bytes[..whole]).finish(), 0);
        }
    }
}
