use super::*;
use proptest::prelude::*;

fn measured(rtt_us: u64, bytes_per_s: u64) -> Sample {
    Sample {
        rtt_us,
        load: PathLoad::Full,
        bytes_per_s,
    }
}

fn free(rtt_us: u64) -> Sample {
    Sample {
        rtt_us,
        load: PathLoad::Free,
        bytes_per_s: 1_000_000,
    }
}

fn idle(rtt_us: u64) -> Sample {
    Sample {
        rtt_us,
        load: PathLoad::Idle,
        bytes_per_s: 0,
    }
}

const GBIT: u64 = FAST_BYTES_PER_S;
const NEAR: Sample = Sample {
    rtt_us: 500,
    load: PathLoad::Full,
    bytes_per_s: 10 * GBIT,
};

/// What so many samples come to: mode and number of decisions.
fn after(decider: &mut Decider, sample: Sample, count: u64) -> (Option<Mode>, usize) {
    let decisions = (0..count).filter_map(|_| decider.take(sample)).count();
    (decider.mode(), decisions)
}

fn first(sample: Sample) -> Mode {
    let mut decider = Decider::default();
    after(&mut decider, sample, FIRST as u64).0.unwrap()
}

#[test]
fn thresholds_are_those_of_the_table_to_the_unit() {
    let cases = [
        (measured(NEAR_US - 1, GBIT + 1), Mode::Datacenter),
        (measured(NEAR_US, GBIT + 1), Mode::Hybrid),
        (measured(NEAR_US - 1, GBIT), Mode::Hybrid),
        (measured(NEAR_US - 1, GBIT - 1), Mode::Internet),
        (measured(FAR_US, GBIT), Mode::Hybrid),
        (measured(FAR_US, GBIT + 1), Mode::Hybrid),
        (measured(FAR_US + 1, 100 * GBIT), Mode::Internet),
        (measured(FAR_US, GBIT - 1), Mode::Internet),
        (measured(0, 0), Mode::Internet),
        (measured(u64::MAX, u64::MAX), Mode::Internet),
    ];
    for (sample, mode) in cases {
        assert_eq!(first(sample), mode, "{sample:?}");
    }
}

#[test]
fn without_a_bandwidth_the_round_trip_decides() {
    for sample in [free, idle] {
        assert_eq!(first(sample(NEAR_US - 1)), Mode::Datacenter);
        assert_eq!(first(sample(NEAR_US)), Mode::Hybrid);
        assert_eq!(first(sample(FAR_US)), Mode::Hybrid);
        assert_eq!(first(sample(FAR_US + 1)), Mode::Internet);
    }
}

#[test]
fn nothing_is_decided_before_the_third_sample() {
    let mut decider = Decider::default();
    assert_eq!(after(&mut decider, NEAR, FIRST as u64 - 1), (None, 0));
    assert_eq!(decider.rule(), Some(Rule::NearAndFast));
    let decision = decider.take(NEAR).unwrap();
    assert_eq!((decision.from, decision.to), (None, Mode::Datacenter));
    assert_eq!(
        (decision.rule, decision.samples),
        (Rule::NearAndFast, FIRST as u64)
    );
    assert_eq!(decision.medians.bandwidth, Bandwidth::Measured(10 * GBIT));
}

#[test]
fn a_changed_path_is_seen_when_half_of_the_window_is_new() {
    let mut decider = Decider::default();
    after(&mut decider, NEAR, 50);
    let far = measured(100_000, 25_000_000);
    assert_eq!(after(&mut decider, far, 4), (Some(Mode::Datacenter), 0));
    let decision = decider.take(far).unwrap();
    assert_eq!(
        (decision.from, decision.to, decision.rule),
        (Some(Mode::Datacenter), Mode::Internet, Rule::Far)
    );
    after(&mut decider, far, 50);
    let between = free(25_000);
    assert_eq!(after(&mut decider, between, 5), (Some(Mode::Internet), 0));
    assert_eq!(after(&mut decider, between, 1), (Some(Mode::Hybrid), 1));
}

#[test]
fn outliers_change_nothing() {
    let mut decider = Decider::default();
    after(&mut decider, NEAR, 20);
    for outlier in [measured(900_000, 1), measured(900_000, u64::MAX), idle(1)] {
        assert_eq!(after(&mut decider, outlier, 4), (Some(Mode::Datacenter), 0));
        assert_eq!(after(&mut decider, NEAR, 20), (Some(Mode::Datacenter), 0));
    }
}

#[test]
fn a_near_path_that_was_hardly_ever_the_bottleneck_is_not_thin() {
    let mut decider = Decider::default();
    for _ in 0..100 {
        after(&mut decider, free(300), 6);
        let (mode, _) = after(&mut decider, measured(300, 10_000_000), 4);
        assert_eq!(mode, Some(Mode::Datacenter));
    }
    assert!(matches!(
        decider.medians().unwrap().bandwidth,
        Bandwidth::AtLeast(_)
    ));
}

#[test]
fn a_pause_does_not_make_a_thin_path_wide() {
    let mut decider = Decider::default();
    let thin = measured(2_000, 30_000_000);
    assert_eq!(after(&mut decider, thin, 20).0, Some(Mode::Internet));
    assert_eq!(decider.rule(), Some(Rule::Thin));
    assert_eq!(
        after(&mut decider, idle(2_000), 500),
        (Some(Mode::Internet), 0)
    );
    assert_eq!(after(&mut decider, thin, 20), (Some(Mode::Internet), 0));
    assert_eq!(
        after(&mut decider, free(2_000), 20).0,
        Some(Mode::Datacenter)
    );
}

#[test]
fn a_mode_is_left_only_by_a_margin() {
    let tenth = |of: u64| of / 10;
    let cases = [
        (
            NEAR,
            measured(NEAR_US + tenth(NEAR_US) - 1, 2 * GBIT),
            Mode::Datacenter,
        ),
        (
            NEAR,
            measured(NEAR_US + tenth(NEAR_US), 2 * GBIT),
            Mode::Hybrid,
        ),
        (
            NEAR,
            measured(500, GBIT - tenth(GBIT) + 1),
            Mode::Datacenter,
        ),
        (NEAR, measured(500, GBIT - tenth(GBIT) - 1), Mode::Internet),
        (free(25_000), free(NEAR_US - tenth(NEAR_US)), Mode::Hybrid),
        (
            free(25_000),
            free(NEAR_US - tenth(NEAR_US) - 1),
            Mode::Datacenter,
        ),
        (free(25_000), free(FAR_US + tenth(FAR_US)), Mode::Hybrid),
        (
            free(25_000),
            free(FAR_US + tenth(FAR_US) + 1),
            Mode::Internet,
        ),
        (
            free(90_000),
            free(FAR_US - tenth(FAR_US) + 1),
            Mode::Internet,
        ),
        (free(90_000), free(FAR_US - tenth(FAR_US)), Mode::Hybrid),
        (
            measured(500, GBIT / 2),
            measured(500, GBIT + tenth(GBIT) - 1),
            Mode::Internet,
        ),
        (
            measured(500, GBIT / 2),
            measured(500, GBIT + tenth(GBIT) + 1),
            Mode::Datacenter,
        ),
    ];
    for (before, now, mode) in cases {
        let mut decider = Decider::default();
        after(&mut decider, before, 30);
        assert_eq!(
            after(&mut decider, now, 30).0,
            Some(mode),
            "{before:?} {now:?}"
        );
    }
}

#[test]
fn a_mode_lasts_for_its_dwell() {
    let mut decider = Decider::default();
    after(&mut decider, NEAR, FIRST as u64);
    // The next median is of another mode at once, and has to wait.
    let far = measured(200_000, GBIT);
    assert_eq!(
        after(&mut decider, far, DWELL - 1),
        (Some(Mode::Datacenter), 0)
    );
    assert_eq!(after(&mut decider, far, 1), (Some(Mode::Internet), 1));
}

fn sample() -> impl Strategy<Value = Sample> {
    let loads = prop::sample::select(PathLoad::ALL);
    (0u64..200_000, loads, 0u64..4 * GBIT).prop_map(|(rtt_us, load, bytes_per_s)| Sample {
        rtt_us,
        load,
        bytes_per_s,
    })
}

proptest! {
    /// Whatever comes: a decision changes the mode, names the rule it follows from, and comes after the dwell.
    #[test]
    fn decisions_follow_from_their_reason(samples in prop::collection::vec(sample(), 0..300)) {
        let mut decider = Decider::default();
        let mut decided_at: Option<u64> = None;
        for sample in samples {
            let before = decider.mode();
            match decider.take(sample) {
                None => prop_assert_eq!(decider.mode(), before),
                Some(decision) => {
                    prop_assert_eq!(decision.from, before);
                    prop_assert_ne!(Some(decision.to), before);
                    prop_assert_eq!(decider.mode(), Some(decision.to));
                    prop_assert_eq!(decision.rule, rule(decision.medians, before));
                    prop_assert_eq!(decision.rule.mode(), decision.to);
                    prop_assert!(decided_at.is_none_or(|at| decision.samples >= at + DWELL));
                    decided_at = Some(decision.samples);
                }
            }
            prop_assert!(decider.rtts_us.len() <= WINDOW && decider.bandwidths.len() <= WINDOW);
        }
    }

    /// What the path was is forgotten: the same samples for long enough come to the same mode, unless a margin holds it.
    #[test]
    fn a_steady_path_comes_to_its_mode_once(
        past in prop::collection::vec(sample(), 0..60),
        now in sample(),
    ) {
        let mut decider = Decider::default();
        past.into_iter().for_each(|sample| { decider.take(sample); });
        let settle = DWELL + WINDOW as u64;
        let (mode, decisions) = after(&mut decider, now, settle);
        prop_assert!(decisions <= 2, "{} decisions", decisions);
        // From here on nothing changes any more.
        prop_assert_eq!(after(&mut decider, now, 100), (mode, 0));
        let margin = |value: u64, threshold: u64| value.abs_diff(threshold) <= threshold / 10;
        let at_margin = margin(now.rtt_us, NEAR_US) || margin(now.rtt_us, FAR_US)
            || margin(now.bytes_per_s, GBIT);
        if now.load != PathLoad::Idle && !at_margin {
            prop_assert_eq!(mode, Some(first(now)));
        }
    }

    /// Fewer outliers than half the window, wherever they fall, change nothing.
    #[test]
    fn few_outliers_change_nothing(
        outliers in prop::collection::vec((0u64..10, sample()), 40),
    ) {
        let mut decider = Decider::default();
        after(&mut decider, NEAR, 20);
        let mut since_outliers: Vec<bool> = vec![false; WINDOW];
        for (gap, outlier) in outliers {
            after(&mut decider, NEAR, gap);
            since_outliers.extend(std::iter::repeat_n(false, gap as usize));
            let recent = &since_outliers[since_outliers.len() - WINDOW + 1..];
            if recent.iter().filter(|was| **was).count() < 4 {
                decider.take(outlier);
                since_outliers.push(true);
            }
            prop_assert_eq!(decider.mode(), Some(Mode::Datacenter));
        }
    }
}
