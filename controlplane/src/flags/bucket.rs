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
            ("dwcp_v3_pba", "node-000000", 78_037),
            ("dwcp_v3_pba", "host-a.example", 64_723),
            ("dwcp_v3_ass", "node-000000", 80_696),
            ("dwcp_v3_ass", "host-a.example", 54_010),
            ("dwcp_v3_acp", "node-000000", 37_740),
            ("dwcp_v3_acp", "host-a.example", 60_401),
            ("dwcp_v3_itp", "host-a.example", 41_647),
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

    /// Names that say nothing of their order: SplitMix64.
    fn random_names(seed: u64) -> Vec<String> {
        let draw = |step: u64| {
            let mut z = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let names = (0..10_000).map(|at| format!("{:016x}", draw((seed << 32) + at)));
        names.collect()
    }

    fn fleets() -> [(&'static str, Vec<String>); 2] {
        let sequential = (0..10_000).map(|id| format!("node-{id:06}")).collect();
        [("sequential", sequential), ("random", random_names(1))]
    }

    /// How many standard deviations the share is off, at 1 to 99 %.
    fn deviations(flag: &str, fleet: &[String]) -> Vec<f64> {
        let mut at: Vec<u32> = fleet.iter().map(|node| bucket(flag, node)).collect();
        at.sort_unstable();
        let n = fleet.len() as f64;
        let off = (1..100_u32).map(|percent| {
            let chosen = at.partition_point(|it| *it < percent * 1_000) as f64;
            let p = f64::from(percent) / 100.0;
            (chosen - n * p) / (n * p * (1.0 - p)).sqrt()
        });
        off.collect()
    }

    #[test]
    fn the_share_of_ten_thousand_is_within_three_deviations_at_every_percentage() {
        for (kind, fleet) in fleets() {
            for flag in FLAGS {
                let all = deviations(flag, &fleet);
                let worst = all.iter().fold(0.0_f64, |worst, it| worst.max(it.abs()));
                assert!(worst <= 3.0, "{kind} {flag}: {worst}");
                let ends = |share: u32| fleet.iter().filter(|it| bucket(flag, it) < share).count();
                assert_eq!((ends(0), ends(BUCKETS)), (0, fleet.len()));
            }
        }
    }

    /// A throw of dice is beyond three deviations now and then: over many fleets, as often as dice are.
    #[test]
    fn over_many_fleets_the_share_strays_as_chance_does() {
        let (mut beyond, mut squares, mut count) = (0.0, 0.0, 0.0);
        for seed in 0..30 {
            let fleet = random_names(seed);
            for flag in FLAGS {
                for off in deviations(flag, &fleet) {
                    beyond += f64::from(u8::from(off.abs() > 3.0));
                    squares += off * off;
                    count += 1.0;
                }
            }
        }
        // Chance: 0.0027, and 1.
        assert!(beyond / count < 0.01, "{}", beyond / count);
        let spread = squares / count;
        assert!((0.8..1.25).contains(&spread), "{spread}");
    }

    #[test]
    fn of_ten_thousand_two_flags_at_ten_percent_share_one_percent() {
        for (kind, fleet) in fleets() {
            for (at, first) in FLAGS.iter().enumerate() {
                for second in &FLAGS[at + 1..] {
                    let in_both = |node: &&String| {
                        bucket(first, node) < 10_000 && bucket(second, node) < 10_000
                    };
                    let both = fleet.iter().filter(in_both).count();
                    assert!(
                        (70..=130).contains(&both),
                        "{kind} {first} {second}: {both}"
                    );
                }
            }
        }
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
