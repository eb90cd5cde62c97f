//! The one source of chance: SplitMix64.
//!
//! In: a seed. Out: numbers. Promise: a clone of the handle draws from the same stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone)]
pub(crate) struct Chance {
    state: Arc<AtomicU64>,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(AtomicU64::new(seed ^ 0x5851_f42d_4c95_7f2d)),
        }
    }

    pub(crate) fn next(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        // One thread: the order of draws is the order of the program.
        let mut z = self
            .state
            .fetch_add(step, Ordering::Relaxed)
            .wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True in so many cases out of a thousand.
    pub(crate) fn permille(&self, cases: u64) -> bool {
        self.below(1_000) < cases
    }

    pub(crate) fn micros(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }
}
