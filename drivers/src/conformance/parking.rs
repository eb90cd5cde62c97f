//! Checks that a worker asleep on `park_fd` misses nothing.

use std::time::Duration;

use super::pressure::readable;
use super::{Harness, Side, pattern, pools};
use crate::lane::{LaneGroup, LaneId, Polled};

/// Polls until idle, then sleeps without a limit until the group has something.
fn turn_or_sleep<L: LaneGroup>(side: &mut Side<L>) {
    if side.turn() == Polled::Idle && side.group.prepare_park() {
        assert!(readable(side.group.park_fd().unwrap(), None));
    }
}

fn next<L: LaneGroup>(side: &mut Side<L>, lane: LaneId) -> Vec<u8> {
    while side.count(lane) == 0 {
        turn_or_sleep(side);
    }
    side.got.get_mut(&lane).unwrap().remove(0).bytes().to_vec()
}

/// Ping-pong, bursts and long frames between two workers that sleep whenever they can: a lost
/// wake-up hangs, and the watchdog sees it.
pub fn no_frame_waits_for_a_parked_worker<H: Harness>(harness: &H) {
    const PINGS: u64 = 500;
    const BURSTS: u64 = 30;
    const LONG: u64 = 20;
    /// Long ones and short ones in turn, each alone on its way.
    const MIXED: [usize; 6] = [700_000, 3, 40_000, 64, 100_000, 1];
    let (near, far) = harness.pair();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut side = Side::new(harness.lanes(), pools(64, 8, 8));
            let lane = side.add(near);
            for ping in 0..PINGS {
                if ping % 16 == 0 {
                    // Long enough for the other side to be asleep for sure.
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert!(side.offer(lane, &pattern(ping, 64)));
                assert_eq!(next(&mut side, lane), pattern(ping, 64));
            }
            for burst in 0..BURSTS {
                for at in 0..12 {
                    assert!(side.offer(lane, &pattern(burst * 100 + at, 500)));
                }
                for at in 0..12 {
                    assert_eq!(next(&mut side, lane), pattern(burst * 100 + at, 500));
                }
            }
            for seed in 0..LONG {
                assert!(side.offer(lane, &pattern(seed, 700_000)));
                assert!(next(&mut side, lane) == pattern(seed, 700_000));
            }
            for round in 0..LONG {
                for size in MIXED {
                    assert!(side.offer(lane, &pattern(round, size)));
                    assert!(next(&mut side, lane) == pattern(round, size));
                }
            }
            side.group.finish(lane);
            while !side.is_closed(lane) {
                turn_or_sleep(&mut side);
            }
        });
        scope.spawn(|| {
            let mut side = Side::new(harness.lanes(), pools(64, 8, 8));
            let lane = side.add(far);
            for _ in 0..PINGS + BURSTS * 12 + LONG + LONG * MIXED.len() as u64 {
                let bytes = next(&mut side, lane);
                while !side.offer(lane, &bytes) {
                    turn_or_sleep(&mut side);
                }
            }
            while !side.is_closed(lane) {
                turn_or_sleep(&mut side);
            }
        });
    });
}
