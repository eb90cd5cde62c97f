//! Where a node stands in a rollout.
//!
//! In: a salt (the flag's key) and a node's name. Out: a bucket below [`BUCKETS`]. Promise: the same
//! on every host and for ever, so that raising a percentage only adds nodes, sequential names spread,
//! and two flags choose independently.
//!
//! `bucket = (mix(fnv1a64(salt ‖ 0x1F ‖ node)) × 100_000) >> 64`. FNV-1a alone is not enough: its high
//! bits hardly move between `node-000001` and `node-000002`, and the multiplication reads the high
//! bits. `mix` is the 64-bit finaliser of MurmurHash3 (Appleby, public domain). The salt comes first,
//! so that it has gone through every later step.

/// Buckets there are: a thousandth of a percent each.
pub const BUCKETS: u32 = 100_000;

/// Ends the salt; no node name holds it.
const SEPARATOR: u8 = 0x1F;

/// The bucket of a node under a salt. Frozen: another value would move nodes in and out of running
/// rollouts.
#[must_use]
pub fn bucket(salt: &str, node: &str) -> u32 {
    let bytes = salt.bytes().chain([SEPARATOR]).chain(node.bytes());
    let scaled = (u128::from(mix(fnv1a64(bytes))) * u128::from(BUCKETS)) >> 64;
    // The product of a u64 and 100_000, shifted by 64, is below 100_000.
    u32::try_from(scaled).unwrap_or(BUCKETS - 1)
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
fn fnv1a64(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// MurmurHash3's finaliser for 64 bits.
const fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [&str; 6] = [
        "dwcp_v3_amst",
        "dwcp_v3_hde",
        "dwcp_v3_pba",
        "dwcp_v3_ass",
        "dwcp_v3_acp",
        "dwcp_v3_itp",
    ];

    #[test]
    fn fnv_agrees_with_its_published_vectors() {
        assert_eq!(fnv1a64(b"".iter().copied()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64(b"a".iter().copied()), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a64(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn vectors_never_change() {
        // Computed by a second implementation, in Python with unbounded integers.
        for (salt, node, expected) in [
            ("dwcp_v3_amst", "node-000000", 31_332),
            ("dwcp_v3_amst", "node-000001", 54_094),
            ("dwcp_v3_amst", "host-a.example", 7_941),
            ("dwcp_v3_amst", "a", 93_746),
            ("dwcp_v3_hde", "node-000000", 37_037),
            ("dwcp_v3_hde", "node-000001", 26_301),
            ("dwcp_v3_hde", "host-a.example", 77_728),
            ("dwcp_v3_hde", "a", 39_662),
            ("dwcp_v3_itp", "node-000000", 52_869),
            ("dwcp_v3_itp", "node-000001", 55_214),
            ("dwcp_v3_itp", "ü", 92_069),
            ("dwcp_v3_itp", "", 45_074),
        ] {
            assert_eq!(bucket(salt, node), expected, "{salt} {node}");
        }
    }

    #[test]
    fn sequential_names_spread_evenly() {
        for flag in FLAGS {
            let mut counts = [0u32; 100];
            for id in 0..100_000 {
                counts[bucket(flag, &format!("node-{id:06}")) as usize / 1_000] += 1;
            }
            let chi2: f64 = counts
                .iter()
                .map(|count| (f64::from(*count) - 1_000.0).powi(2) / 1_000.0)
                .sum();
            // 99 degrees of freedom: mean 99, deviation 14. FNV-1a without the mix gives thousands.
            assert!(chi2 < 180.0, "{flag}: {chi2}");
        }
    }

    #[test]
    fn a_quarter_of_a_small_fleet_is_about_a_quarter() {
        let chosen = (0..100)
            .filter(|id| bucket("dwcp_v3_hde", &format!("node-{id:06}")) < 25_000)
            .count();
        assert!((10..=40).contains(&chosen), "{chosen}");
    }

    #[test]
    fn two_flags_at_ten_percent_share_about_one_percent() {
        for (first, second) in FLAGS
            .iter()
            .flat_map(|a| FLAGS.iter().map(move |b| (a, b)))
            .filter(|(a, b)| a < b)
        {
            let both = (0..100_000)
                .map(|id| format!("node-{id:06}"))
                .filter(|node| bucket(first, node) < 10_000 && bucket(second, node) < 10_000)
                .count();
            assert!((800..=1_200).contains(&both), "{first} {second}: {both}");
        }
    }
}
