//! Two ends of a session on a simulated bundle of lanes, in simulated time, from a seed.
//!
//! In: a [`plan::Plan`], written down here or drawn from a seed. Out: how the session ended, or the
//! first thing that did not hold. Lanes delay, stall, end unnoticed and come back; the whole link is
//! gone; frames are repeated; receivers are slow, stop, or wait for one another; the version switch
//! and the number of lanes change; a driver gives way to another. Promise: at every step of every
//! run each channel's bytes come out as they went in, once and in order; no more is held than the
//! stated limit and nothing counts as delivered that was not taken; the session never stands still;
//! nothing v3 leaves while that is forbidden; a session is given up when the link was gone for the
//! resume limit, and only then.
//!
//! One seed, told step by step:
//! `DWCP_SEED=4711 cargo test -p dwcp-dataplane --lib simulation::seeds::one_world -- --nocapture`

mod bug;
mod net;
mod plan;
mod random;
mod seeds;
mod sending;
mod streams;
mod trace;
mod truth;
mod world;

use super::*;
use plan::{DESTINATION, Event, MS, Plan, SECOND, SOURCE};
use trace::Trace;
use world::{End, World};

fn run(plan: Plan) -> End {
    let seed = plan.seed;
    let mut world = World::new(plan, None, Trace::off());
    let end = world.run();
    end.unwrap_or_else(|broken| panic!("seed {seed} at {:?}: {broken:?}", world.now))
}

#[test]
fn a_quiet_link_delivers_everything_without_resending() {
    let end = run(Plan::quiet(1));
    assert!(end.finished, "{end:?}");
    assert_eq!((end.resent, end.duplicates), (0, 0));
    assert_eq!(end.taken_bytes, 3 * (25 << 20));
}

#[test]
fn a_multifd_barrier_never_deadlocks() {
    for seed in 0..6 {
        let mut plan = Plan::quiet(seed);
        // Channel 0 takes nothing until every other channel's bytes were taken.
        plan.barrier = true;
        plan.channels = 6;
        plan.window_limit_bytes = 1 << 20;
        plan.stream_bytes = [4 << 20, 0];
        let cut = |lane| Event::CutLane {
            lane,
            noticed_after_ns: [Some(MS), Some(2 * MS)],
            dead_for_ns: 300 * MS,
        };
        plan.events = (0..4).map(|lane| (50 * MS, cut(lane))).collect();
        let end = run(plan);
        assert!(end.finished && end.resent > 0, "seed {seed}: {end:?}");
    }
}

#[test]
fn a_receiver_that_takes_nothing_for_a_minute_holds_the_source_back() {
    let mut plan = Plan::quiet(3);
    let limit = plan.window_limit_bytes + u64::from(plan.channels) * CHANNEL_GUARANTEE_BYTES;
    let stop = |channel| Event::StopTaking {
        channel,
        for_ns: 60 * SECOND,
    };
    plan.events = (0..3).map(|channel| (0, stop(channel))).collect();
    let end = run(plan);
    assert!(end.finished && end.ended_at.0 > 60 * SECOND, "{end:?}");
    assert!(end.largest_held_bytes <= limit, "{end:?}");
    assert!(end.largest_held_bytes >= 1 << 20, "{end:?}");
}

#[test]
fn a_link_that_is_gone_for_less_than_the_resume_limit_comes_back() {
    for gone_s in [3, 15, 28] {
        for resets in [false, true] {
            let mut plan = Plan::quiet(5);
            let for_ns = gone_s * SECOND;
            plan.events = vec![(100 * MS, Event::CutLink { for_ns, resets })];
            let end = run(plan);
            assert!(end.finished, "{gone_s} s: {end:?}");
            assert!(end.redials >= 1, "{end:?}");
            assert!(end.resent > 0, "{end:?}");
        }
    }
}

#[test]
fn a_link_that_is_gone_for_longer_ends_the_session() {
    let mut plan = Plan::quiet(5);
    let (for_ns, resets) = (40 * SECOND, false);
    plan.events = vec![(100 * MS, Event::CutLink { for_ns, resets })];
    let end = run(plan);
    assert!(!end.finished && end.expired, "{end:?}");
    assert!(end.ended_at.0 < 32 * SECOND, "{end:?}");
}

/// The peer is heard all the time, so the link is not silent.
#[test]
fn a_link_that_carries_one_way_only_is_dialled_anew() {
    for from_side in [SOURCE, DESTINATION] {
        let mut plan = Plan::quiet(8);
        let stall = |lane| Event::StallLane {
            lane,
            from_side,
            for_ns: u64::MAX,
        };
        plan.events = (0..4).map(|lane| (100 * MS, stall(lane))).collect();
        let end = run(plan);
        assert!(end.finished && end.redials > 0, "{from_side}: {end:?}");
    }
}

#[test]
fn a_driver_that_fails_gives_way_to_another() {
    let mut plan = Plan::quiet(6);
    let other = Event::FallBack {
        delay_ns: 20 * MS,
        lane_bytes_s: 20 << 20,
    };
    plan.events = vec![(100 * MS, other)];
    let end = run(plan);
    assert!(end.finished && end.resent > 0, "{end:?}");
    assert_eq!((end.lanes_lost, end.redials), (8, 0), "{end:?}");
}

#[test]
fn nothing_v3_leaves_after_the_switch_not_even_again() {
    let mut plan = Plan::quiet(7);
    let forbid = Event::AllowV3 {
        side: SOURCE,
        allowed: false,
    };
    let cut = |lane| Event::CutLane {
        lane,
        noticed_after_ns: [Some(0), Some(0)],
        dead_for_ns: 0,
    };
    plan.events = vec![(100 * MS, forbid)];
    plan.events.extend((0..4).map(|lane| (100 * MS, cut(lane))));
    let end = run(plan);
    assert!(end.finished && end.transcoded > 0, "{end:?}");
}

#[test]
fn throughput_fills_a_long_path_and_little_is_held_on_a_short_one() {
    // 4 lanes of 50 MiB/s: 200 MiB/s; 40 ms there and back.
    let mut long = Plan::quiet(9);
    long.delay_ns = 20 * MS;
    long.stream_bytes = [256 << 20, 0];
    long.channels = 1;
    long.window_limit_bytes = 64 << 20;
    let end = run(long.clone());
    let rate = end.taken_bytes as f64 / (end.ended_at.0 as f64 / 1e9);
    assert!(rate > 0.7 * (200 << 20) as f64, "{rate} {end:?}");
    let mut short = long;
    short.delay_ns = 50_000;
    let end = run(short);
    let rate = end.taken_bytes as f64 / (end.ended_at.0 as f64 / 1e9);
    assert!(rate > 0.8 * (200 << 20) as f64, "{rate} {end:?}");
    assert!(end.largest_held_bytes < 16 << 20, "{end:?}");
}
