//! Where a worker's time goes.
//!
//! In: marks at the borders of stages. Out: nanoseconds by stage in the worker's counters. Promises: every
//! nanosecond since the clock began is counted once, in one stage or as idle or parked; a turn that found
//! no work is idle whatever it looked at; a mark costs one reading of the clock and two additions.
//!
//! `CLOCK_MONOTONIC` and not the processor's own counter: the kernel reads that same counter for us without
//! a system call, and its nanoseconds need no calibration and agree between cores. A mark costs about
//! 25 ns, and a batch of half a megabyte, which takes some hundred microseconds, meets about ten.

use std::cell::Cell;

use dwcp_api::monotonic_ns;
use dwcp_api::stage::{STAGES, Stage};
use dwcp_api::worker::WorkerCounters;

/// What a moment is charged to: a stage, or the sleep of a parked worker.
const PARKED: usize = STAGES;

/// See the module. Stays on its worker's thread.
#[derive(Debug)]
pub struct StageClock {
    since_ns: Cell<u64>,
    place: Cell<usize>,
    turn_ns: [Cell<u64>; STAGES + 1],
}

/// Until it is dropped, time goes to its stage; afterwards to the one before.
#[derive(Debug)]
#[must_use = "the stage ends when this is dropped"]
pub struct InStage<'c> {
    clock: &'c StageClock,
    before: usize,
}

impl StageClock {
    /// A clock that begins now, in [`Stage::Engine`].
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Self {
            since_ns: Cell::new(now_ns),
            place: Cell::new(Stage::Engine.code() as usize),
            turn_ns: [const { Cell::new(0) }; STAGES + 1],
        }
    }

    /// Begins `stage`, inside the one at hand.
    #[inline]
    pub fn enter(&self, stage: Stage) -> InStage<'_> {
        self.begin(stage.code() as usize)
    }

    /// The worker is about to sleep.
    #[inline]
    pub fn park(&self) -> InStage<'_> {
        self.begin(PARKED)
    }

    fn begin(&self, place: usize) -> InStage<'_> {
        InStage {
            before: self.switch(place, monotonic_ns()),
            clock: self,
        }
    }

    /// Charges the time until now to the place at hand, and goes on in `place`. Gives the one before.
    #[inline]
    fn switch(&self, place: usize, now_ns: u64) -> usize {
        let before = self.place.replace(place);
        let since_ns = self.since_ns.replace(now_ns);
        let spent = &self.turn_ns[before.min(PARKED)];
        spent.set(spent.get() + now_ns.saturating_sub(since_ns));
        before
    }

    /// A turn of the loop, or a pause after one, is over.
    pub fn end_turn(&self, now_ns: u64, found_work: bool, counters: &WorkerCounters) {
        self.switch(self.place.get(), now_ns);
        counters.parked_ns_total.add(self.turn_ns[PARKED].take());
        for stage in Stage::ALL {
            let spent_ns = self.turn_ns[stage.code() as usize].take();
            if spent_ns > 0 {
                let counter = if found_work {
                    counters.stage_ns(*stage)
                } else {
                    &counters.idle_ns_total
                };
                counter.add(spent_ns);
            }
        }
    }
}

impl Drop for InStage<'_> {
    #[inline]
    fn drop(&mut self) {
        self.clock.switch(self.before, monotonic_ns());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTAKE: usize = Stage::Intake.code() as usize;
    const CODEC: usize = Stage::Codec.code() as usize;

    #[test]
    fn a_stage_inside_another_is_not_counted_twice() {
        let (clock, counters) = (StageClock::new(100), WorkerCounters::default());
        let outer = clock.switch(INTAKE, 110);
        let inner = clock.switch(CODEC, 130);
        clock.switch(inner, 170);
        clock.switch(outer, 175);
        clock.end_turn(200, true, &counters);
        let spent = |stage| counters.stage_ns(stage).get();
        assert_eq!(spent(Stage::Intake), 20 + 5);
        assert_eq!(spent(Stage::Codec), 40);
        assert_eq!(spent(Stage::Engine), 10 + 25);
        assert_eq!(counters.idle_ns_total.get(), 0);
    }

    #[test]
    fn a_turn_without_work_is_idle_and_a_sleep_is_parked_whatever_it_found() {
        let (clock, counters) = (StageClock::new(0), WorkerCounters::default());
        let before = clock.switch(INTAKE, 10);
        clock.switch(before, 15);
        clock.end_turn(20, false, &counters);
        assert_eq!(counters.idle_ns_total.get(), 20);
        assert_eq!(counters.stage_ns(Stage::Intake).get(), 0);
        let before = clock.switch(PARKED, 25);
        clock.switch(before, 1_025);
        clock.end_turn(1_030, true, &counters);
        assert_eq!(counters.parked_ns_total.get(), 1_000);
        assert_eq!(counters.stage_ns(Stage::Engine).get(), 10);
    }

    #[test]
    fn every_nanosecond_is_counted_once() {
        let start_ns = monotonic_ns();
        let (clock, counters) = (StageClock::new(start_ns), WorkerCounters::default());
        for turn in 0..100u32 {
            for stage in Stage::ALL {
                let _outer = clock.enter(*stage);
                let _inner = clock.enter(Stage::Codec);
            }
            drop(clock.park());
            clock.end_turn(monotonic_ns(), turn.is_multiple_of(3), &counters);
        }
        let end_ns = monotonic_ns();
        clock.end_turn(end_ns, true, &counters);
        let busy: u64 = Stage::ALL.iter().map(|s| counters.stage_ns(*s).get()).sum();
        let all = busy + counters.idle_ns_total.get() + counters.parked_ns_total.get();
        assert_eq!(all, end_ns - start_ns);
        assert!(counters.stage_ns(Stage::Codec).get() > 0 && counters.idle_ns_total.get() > 0);
    }
}
