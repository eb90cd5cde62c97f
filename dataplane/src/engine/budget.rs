//! What all sessions of a data plane may take together.
//!
//! In: what sessions ask for. Out: reservations. Promises: reservations never pass the limit, whichever workers make
//! them at once; one session gets half of what is left at most where it can do with less, so that something is left
//! for the next; what a reservation has is given back when it is dropped, and never twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module. A clone is the same budget.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit_bytes: u64,
    reserved_bytes: AtomicU64,
}

/// Bytes of a budget, given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Shared>,
    bytes: u64,
}

impl MemoryBudget {
    /// One of which nothing is reserved.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Shared {
            limit_bytes,
            reserved_bytes: AtomicU64::new(0),
        }))
    }

    /// All that there is.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// What is reserved now.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        self.0.reserved_bytes.load(Ordering::Relaxed)
    }

    /// Reserves memory for somebody who needs `least_bytes` and makes do with whatever room `fit` is told of: it answers
    /// what it takes and what it has chosen. `None`: not even the least is left.
    pub fn reserve<T>(
        &self,
        least_bytes: u64,
        fit: impl Fn(u64) -> Option<(u64, T)>,
    ) -> Option<(Reservation, T)> {
        let shared = &self.0;
        // Relaxed: the count bounds memory and orders nothing.
        let mut reserved = shared.reserved_bytes.load(Ordering::Relaxed);
        loop {
            let left = shared.limit_bytes.saturating_sub(reserved);
            let room = (left / 2).max(least_bytes.min(left));
            let (bytes, chosen) = fit(room)?;
            debug_assert!(bytes <= room);
            match shared.reserved_bytes.compare_exchange_weak(
                reserved,
                reserved + bytes,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    let budget = Arc::clone(shared);
                    return Some((Reservation { budget, bytes }, chosen));
                }
                Err(now) => reserved = now,
            }
        }
    }
}

impl Reservation {
    /// What it has.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.budget
            .reserved_bytes
            .fetch_sub(surplus, Ordering::Relaxed);
    }

    /// Takes `bytes` of it, or all, into a reservation of their own.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            budget: Arc::clone(&self.budget),
            bytes,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget
            .reserved_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Takes `most`, or what there is, but not less than `least`.
    fn ask(budget: &MemoryBudget, least: u64, most: u64) -> Option<Reservation> {
        let fit = |room: u64| (least <= room).then(|| (most.min(room), ()));
        budget
            .reserve(least, fit)
            .map(|(reservation, ())| reservation)
    }

    #[test]
    fn each_gets_half_of_what_is_left_and_the_least_as_long_as_it_is_there() {
        let budget = MemoryBudget::new(1000);
        let all: Vec<_> = std::iter::from_fn(|| ask(&budget, 100, 400)).collect();
        let bytes: Vec<_> = all.iter().map(Reservation::bytes).collect();
        assert_eq!(bytes, [400, 300, 150, 100]);
        assert_eq!(budget.reserved_bytes(), 950);
        drop(all);
        assert_eq!(budget.reserved_bytes(), 0);
        assert!(ask(&budget, 1001, 1001).is_none());
        assert_eq!(ask(&budget, 1000, 1000).unwrap().bytes(), 1000);
    }

    #[test]
    fn what_is_split_off_and_given_back_early_is_counted_once() {
        let budget = MemoryBudget::new(1000);
        let mut whole = ask(&budget, 0, 500).unwrap();
        let part = whole.split(200);
        assert_eq!(
            (whole.bytes(), part.bytes(), budget.reserved_bytes()),
            (300, 200, 500)
        );
        whole.shrink_to(100);
        whole.shrink_to(400);
        assert_eq!((whole.bytes(), budget.reserved_bytes()), (100, 300));
        assert_eq!(whole.split(u64::MAX).bytes(), 100);
        assert_eq!((whole.bytes(), budget.reserved_bytes()), (0, 200));
        drop((whole, part));
        assert_eq!(budget.reserved_bytes(), 0);
    }

    #[test]
    fn workers_at_once_never_pass_the_limit_and_leave_nothing_behind() {
        let budget = MemoryBudget::new(10_000);
        // Counts what is held from outside, too late at the beginning and too early at the end: never too high.
        let held = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..8_u64 {
                let (budget, held) = (budget.clone(), &held);
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..20_000 {
                        let most = 1 + (worker * 7_919 + round * 104_729) % 3_000;
                        if let Some(mut mine) = ask(&budget, most / 4, most) {
                            let now = held.fetch_add(mine.bytes(), Ordering::SeqCst) + mine.bytes();
                            assert!(now <= 10_000, "{now} bytes are held");
                            if round % 3 == 0 {
                                held.fetch_sub(mine.bytes() - mine.bytes() / 2, Ordering::SeqCst);
                                mine.shrink_to(mine.bytes() / 2);
                            }
                            kept.push(mine);
                        }
                        assert!(budget.reserved_bytes() <= 10_000);
                        if kept.len() > 3 || round % 5 == 0 {
                            for gone in kept.drain(..) {
                                held.fetch_sub(gone.bytes(), Ordering::SeqCst);
                                drop(gone);
                            }
                        }
                    }
                    for gone in kept {
                        held.fetch_sub(gone.bytes(), Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((budget.reserved_bytes(), held.into_inner()), (0, 0));
    }
}
