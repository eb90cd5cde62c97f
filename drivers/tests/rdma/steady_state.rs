//! Once frames flow over a lane, its workers allocate nothing and ask the kernel for nothing, but for the
//! doorbells of a device in software, which are calls to write, and the looks for news of the connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use dwcp_drivers::conformance::check;
use dwcp_drivers::lane::{LaneClosed, LaneGroup, LaneStats};
use dwcp_lab::syscalls::SyscallCounter;

use crate::counting::ALLOCATIONS;
use crate::scene::{Worker, connected, port};

/// Short ones go in messages, many in one; long ones are announced and written.
const LENGTHS: [usize; 2] = [64, 60_000];
/// Frames before the first look at the counts, and between the two.
const WARM_UP: u64 = 500;
const COUNTED: u64 = 1_000;
/// Calls beside those that are counted as what they are for.
const FEW: u64 = 8;

/// Calls to write that this thread made.
fn writes() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("syscw:"));
    line.unwrap().trim().parse().unwrap()
}

/// What one side asked of the kernel.
struct Asked {
    doorbells: u64,
    others: u64,
    /// How often it may have looked for news: once a millisecond.
    looks: u64,
}

/// One side, which sends as fast as the lane takes and receives what the other sends.
struct Side<'a> {
    worker: Worker,
    bytes: usize,
    /// Sides that came to each meeting.
    meetings: &'a [AtomicUsize; 3],
}

impl Side<'_> {
    fn step(&mut self) {
        while self.worker.offer(self.bytes) {}
        self.worker.turn();
    }

    fn receive(&mut self, frames: u64) {
        let until = self.worker.got + frames;
        while self.worker.got < until {
            self.step();
        }
    }

    /// Goes on until the other side is as far: it may want frames of this one to get there.
    fn meet(&mut self, meeting: usize) {
        self.meetings[meeting].fetch_add(1, Ordering::AcqRel);
        while self.meetings[meeting].load(Ordering::Acquire) < 2 {
            self.step();
        }
    }

    /// Allocations of both sides while frames come.
    fn allocated(&mut self) -> u64 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        self.receive(COUNTED);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    }

    /// System calls of this side while frames come.
    fn asked(&mut self) -> Asked {
        let mut counter = SyscallCounter::of_this_thread().unwrap();
        let (before, start) = (writes(), Instant::now());
        counter.since_last_look().unwrap();
        self.receive(COUNTED);
        let all = counter.since_last_look().unwrap();
        let looks = u64::try_from(start.elapsed().as_millis()).unwrap() + 1;
        let doorbells = writes() - before;
        Asked {
            doorbells,
            others: all - doorbells,
            looks,
        }
    }

    fn run(mut self) -> (u64, Asked, LaneStats) {
        self.receive(WARM_UP);
        self.meet(0);
        let allocated = self.allocated();
        self.meet(1);
        let asked = self.asked();
        self.meet(2);
        let stats = self.worker.group.stats(self.worker.lane).unwrap();
        self.worker.group.finish(self.worker.lane);
        while self.worker.over.is_none() {
            self.worker.turn();
        }
        assert_eq!(self.worker.over, Some(LaneClosed::Finished));
        (allocated, asked, stats)
    }
}

#[test]
fn frames_cost_no_allocation_and_no_call_but_doorbells() {
    check(|| {
        for bytes in LENGTHS {
            let (near, far) = connected();
            let meetings = Default::default();
            let run = |endpoint| {
                let side = Side {
                    worker: Worker::new(&port(), endpoint),
                    bytes,
                    meetings: &meetings,
                };
                side.run()
            };
            let sides = std::thread::scope(|scope| {
                [near, far]
                    .map(|endpoint| scope.spawn(|| run(endpoint)))
                    .map(|side| side.join().unwrap())
            });
            for (allocated, asked, stats) in sides {
                println!(
                    "{COUNTED} frames of {bytes} bytes each way: {} doorbells, {} other calls, \
                     {} looks at most; round trip {} us, at least {} us",
                    asked.doorbells, asked.others, asked.looks, stats.rtt_us, stats.rtt_min_us
                );
                assert_eq!(allocated, 0, "allocations");
                assert!(
                    asked.others <= asked.looks + FEW,
                    "calls that are no doorbells"
                );
                assert!(stats.rtt_min_us > 0 && stats.rtt_us >= stats.rtt_min_us);
                assert!(stats.acked_bytes >= COUNTED * bytes as u64);
            }
        }
    });
}
