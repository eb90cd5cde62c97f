//! Counters and coherent groups with one writer and any number of readers.
//!
//! In: what the writer counts. Out: what readers in this or another process see. It promises that
//! the writer never waits and never does a read-modify-write on the bus, that readers only load
//! (a read-only mapping is enough), and that a writer that dies leaves the last whole value.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromBytes;

use crate::shared_pod::SharedPod;

mod seq_cell;

#[cfg(not(loom))]
pub use seq_cell::SeqCell;
pub use seq_cell::Stale;

/// A number that one writer changes and many read.
///
/// Two writers lose counts; nothing worse happens.
#[derive(Debug, Default, FromBytes)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

// SAFETY: needed by the trait. Sound because it is one atomic word.
unsafe impl SharedPod for Counter {}

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `count`, wrapping. For the single writer: a load and a store, not a locked add.
    #[inline]
    pub fn add(&self, count: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Replaces the value: for quantities that also fall, such as bytes held.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value. Relaxed: it says nothing about any other counter.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_and_wraps() {
        let counter = Counter::new();
        counter.add(3);
        counter.add(4);
        assert_eq!(counter.get(), 7);
        counter.set(u64::MAX);
        counter.add(2);
        assert_eq!(counter.get(), 1);
    }
}
