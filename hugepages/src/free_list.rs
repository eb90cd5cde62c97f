//! The free buffers of a pool, the last one returned first: it is the one that the processor's caches
//! still hold, and a pool larger than its use never touches the rest of its memory.
//!
//! In: numbers from 0 to a capacity, each given back by whoever took it. Out: one of them. It promises
//! no lock and no allocation, from any thread, and that no number is out twice.
//!
//! The algorithm is Treiber's stack (R. K. Treiber, Systems Programming: Coping with Parallelism, IBM
//! RJ 5118, 1986) over numbers instead of pointers. The head carries a tag that every change raises, so a
//! head that comes back with the same number is told from one that never changed.
//!
//! | store | ordering | partner |
//! |---|---|---|
//! | head, by `push` | Release | head, by `pop`, Acquire: it sees the link and what was done to the buffer |

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// See the module.
#[derive(Debug)]
pub struct FreeList {
    /// Tag in the upper half, number + 1 in the lower; 0 below: nothing is free.
    head: AtomicU64,
    /// For each free number the one below it, + 1.
    below: Box<[AtomicU32]>,
    /// How many are free; a figure for people, not for decisions.
    free: AtomicU64,
}

const NUMBER_MASK: u64 = u32::MAX as u64;

impl FreeList {
    /// All numbers below `capacity` are free; the lowest comes first.
    pub fn full(capacity: u32) -> Self {
        let list = Self {
            head: AtomicU64::new(0),
            below: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            free: AtomicU64::new(0),
        };
        (0..capacity).rev().for_each(|number| list.push(number));
        list
    }

    /// Takes a number.
    pub fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let number = u32::try_from(head & NUMBER_MASK).ok()?.checked_sub(1)?;
            // Another thread may take this number now and change its link: then the tag has changed
            // and what was read here is not used.
            let below = self.below.get(number as usize)?.load(Ordering::Relaxed);
            let next = next_tag(head) | u64::from(below);
            match self
                .head
                .compare_exchange_weak(head, next, Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => {
                    self.free.fetch_sub(1, Ordering::Relaxed);
                    return Some(number);
                }
                Err(now) => head = now,
            }
        }
    }

    /// Gives back a number that [`Self::pop`] gave.
    pub fn push(&self, number: u32) {
        let Some(link) = self.below.get(number as usize) else {
            return;
        };
        self.free.fetch_add(1, Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link.store((head & NUMBER_MASK) as u32, Ordering::Relaxed);
            let next = next_tag(head) | (u64::from(number) + 1);
            match self
                .head
                .compare_exchange_weak(head, next, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// How many are free at this moment.
    pub fn len(&self) -> usize {
        usize::try_from(self.free.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }
}

const fn next_tag(head: u64) -> u64 {
    ((head >> 32).wrapping_add(1) & NUMBER_MASK) << 32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn the_last_one_back_is_the_next_one_out() {
        let list = FreeList::full(3);
        assert_eq!((list.pop(), list.pop(), list.len()), (Some(0), Some(1), 1));
        list.push(0);
        assert_eq!(
            (list.pop(), list.pop(), list.pop()),
            (Some(0), Some(2), None)
        );
        assert_eq!(list.len(), 0);
    }

    #[test]
    fn no_number_is_out_twice_under_load() {
        const NUMBERS: u32 = 5;
        let list = FreeList::full(NUMBERS);
        let out: Vec<AtomicBool> = (0..NUMBERS).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        let Some(number) = list.pop() else { continue };
                        let taken = &out[number as usize];
                        assert!(!taken.swap(true, Ordering::AcqRel), "{number} is out twice");
                        taken.store(false, Ordering::Release);
                        list.push(number);
                    }
                });
            }
        });
        let mut left: Vec<u32> = std::iter::from_fn(|| list.pop()).collect();
        left.sort_unstable();
        assert_eq!(left, (0..NUMBERS).collect::<Vec<_>>());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    #[test]
    fn loom_free_list_gives_a_buffer_to_one_holder() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let list = Arc::new(FreeList::full(2));
            let buffers = Arc::new([UnsafeCell::new(0u32), UnsafeCell::new(0u32)]);
            let work = |list: &FreeList, buffers: &[UnsafeCell<u32>; 2]| {
                for _ in 0..2 {
                    if let Some(number) = list.pop() {
                        // Loom reports two holders of one cell as a data race.
                        // SAFETY: needed to touch the buffer as a holder does; sound if the list is.
                        buffers[number as usize].with_mut(|buffer| unsafe { *buffer += 1 });
                        list.push(number);
                    }
                }
            };
            let other = {
                let (list, buffers) = (Arc::clone(&list), Arc::clone(&buffers));
                loom::thread::spawn(move || work(&list, &buffers))
            };
            work(&list, &buffers);
            other.join().unwrap();
            assert_eq!(list.len(), 2);
        });
    }
}
