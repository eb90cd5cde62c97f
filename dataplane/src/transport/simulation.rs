//! Two ends of a session on a simulated bundle of lanes, in simulated time, from a seed.
//!
//! Lanes delay, stall, and are cut with all they carry; frames are repeated; receivers of channels
//! are slow or wait for one another; the version switch flips. What must hold in every run: each
//! channel's bytes come out as they went in, once and in order; no more is held than the stated
//! limit; the session never stands still for longer than its watchdog; nothing v3 leaves while
//! that is forbidden.

mod world;

use super::*;
use world::{Fault, World, WorldConfig};

const SECOND: u64 = 1_000_000_000;

fn config(seed: u64) -> WorldConfig {
    WorldConfig {
        seed,
        channels: 3,
        channel_bytes: 24 << 20,
        lanes: 4,
        delay_ns: 5_000_000,
        lane_bytes_s: 50 << 20,
        window_limit_bytes: 8 << 20,
        faults: Vec::new(),
        flips: false,
        barrier: false,
        blocked_until: None,
    }
}

#[test]
fn a_quiet_link_delivers_everything_without_resending() {
    let end = World::new(config(1)).run();
    assert!(end.finished, "{end:?}");
    assert_eq!((end.resent, end.duplicates), (0, 0));
}

#[test]
fn cuts_stalls_repeats_and_flips_lose_nothing() {
    let (mut resent, mut transcoded, mut duplicates, mut suspects) = (0, 0, 0, 0);
    for seed in 0..40 {
        let mut config = config(seed);
        config.flips = true;
        config.delay_ns = [50_000, 5_000_000, 100_000_000][(seed % 3) as usize];
        config.faults = vec![Fault::Stalls, Fault::Repeats];
        if seed % 2 == 0 {
            config.faults.push(Fault::Cuts);
        }
        let end = World::new(config).run();
        assert!(end.finished, "seed {seed}: {end:?}");
        assert_eq!(end.left_v3_while_forbidden, 0, "seed {seed}");
        resent += end.resent;
        transcoded += end.transcoded;
        duplicates += end.duplicates;
        suspects += end.suspects;
    }
    // The runs must have met what they are for.
    assert!(resent > 100 && transcoded > 10, "{resent} {transcoded}");
    assert!(duplicates > 100 && suspects > 3, "{duplicates} {suspects}");
}

#[test]
fn a_multifd_barrier_never_deadlocks() {
    for seed in 0..6 {
        let mut config = config(seed);
        // Channel 0 takes nothing until every other channel's bytes were taken.
        config.barrier = true;
        config.channels = 6;
        config.window_limit_bytes = 1 << 20;
        config.channel_bytes = 4 << 20;
        config.faults = vec![Fault::Cuts];
        let end = World::new(config).run();
        assert!(end.finished, "seed {seed}: {end:?}");
    }
}

#[test]
fn a_receiver_that_takes_nothing_for_a_minute_holds_the_source_back() {
    let mut config = config(3);
    config.blocked_until = Some(Nanos(60 * SECOND));
    let end = World::new(config).run();
    assert!(end.finished, "{end:?}");
    assert!(end.largest_held_bytes <= end.limit_bytes, "{end:?}");
    assert!(end.largest_held_bytes >= 1 << 20, "{end:?}");
}

#[test]
fn a_link_that_is_gone_for_less_than_the_resume_limit_comes_back() {
    for gone_s in [3, 15, 28] {
        let mut config = config(5);
        config.faults = vec![Fault::Gone {
            at_ns: SECOND / 10,
            for_ns: gone_s * SECOND,
        }];
        let end = World::new(config).run();
        assert!(end.finished, "{gone_s} s: {end:?}");
        assert!(end.redials >= 1, "{end:?}");
        assert!(end.resent > 0, "{end:?}");
    }
}

#[test]
fn a_link_that_is_gone_for_longer_ends_the_session() {
    let mut config = config(5);
    config.faults = vec![Fault::Gone {
        at_ns: SECOND / 10,
        for_ns: 40 * SECOND,
    }];
    let end = World::new(config).run();
    assert!(!end.finished && end.expired, "{end:?}");
}

#[test]
fn throughput_fills_a_long_path_and_little_is_held_on_a_short_one() {
    // 4 lanes of 50 MiB/s: 200 MiB/s; 40 ms there and back.
    let mut long = config(9);
    long.delay_ns = 20_000_000;
    long.channel_bytes = 256 << 20;
    long.channels = 1;
    long.window_limit_bytes = 64 << 20;
    let end = World::new(long).run();
    let rate = end.delivered_bytes as f64 / (end.ended_at.0 as f64 / 1e9);
    assert!(rate > 0.7 * (200 << 20) as f64, "{rate} {end:?}");
    let mut short = config(9);
    short.delay_ns = 50_000;
    short.channel_bytes = 256 << 20;
    short.channels = 1;
    short.window_limit_bytes = 64 << 20;
    let end = World::new(short).run();
    let rate = end.delivered_bytes as f64 / (end.ended_at.0 as f64 / 1e9);
    assert!(rate > 0.8 * (200 << 20) as f64, "{rate} {end:?}");
    assert!(end.largest_held_bytes < 16 << 20, "{end:?}");
}
