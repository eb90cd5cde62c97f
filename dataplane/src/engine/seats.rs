//! What the sessions of all workers tell each other about the links that they share.
//!
//! In: what each source session sent and how long it waited; that one hands its guest over. Out: the rate that
//! it may not pass for now, whether another goes first, what is left of the limit of all. Promises: a word
//! each, no lock; a worker writes its own sessions' words, the control thread the rates; a session that ended
//! leaves its seat empty.
//!
//! Every word stands alone, none says that another was written: all orderings are relaxed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam::utils::CachePadded;
use dwcp_api::session::SESSIONS_MAX;

use crate::transport::sharing::{Claim, LOOK_EVERY_NS, Sharing};

/// The bulk of others waits this long at most for a guest that is handed over: what it still has to send is a
/// fraction of a second's worth, and a peer that is lost meanwhile must not stop everybody.
const TAIL_NS: u64 = 1_000_000_000;
/// Unused allowance of the limit of all that may be spent at once, nanoseconds' worth.
const BURST_NS: u64 = 20_000_000;

#[derive(Debug, Default)]
struct Place {
    /// 0: empty.
    link: AtomicU64,
    sent_bytes: AtomicU64,
    waited_ns: AtomicU64,
    rate: AtomicU64,
    tail_until_ns: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub struct Seats {
    places: Box<[CachePadded<Place>]>,
    taken: AtomicUsize,
    /// When the limit of all lets the next byte go.
    free_at_ns: AtomicU64,
}

/// A source session's place, empty again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    index: usize,
}

impl Default for Seats {
    fn default() -> Self {
        Self {
            places: (0..SESSIONS_MAX).map(|_| CachePadded::default()).collect(),
            taken: AtomicUsize::new(0),
            free_at_ns: AtomicU64::new(0),
        }
    }
}

impl Seats {
    /// Takes the place with the number of a session's cell, which is that session's alone. `link` is any number
    /// but 0 that its sessions share.
    #[must_use]
    pub fn take(self: &Arc<Self>, index: usize, link: u64) -> Seat {
        let index = index % SESSIONS_MAX;
        let place = &self.places[index];
        place.sent_bytes.store(0, Relaxed);
        place.waited_ns.store(0, Relaxed);
        place.rate.store(0, Relaxed);
        place.tail_until_ns.store(0, Relaxed);
        place.link.store(link.max(1), Relaxed);
        self.taken.fetch_add(1, Relaxed);
        Seat {
            seats: Arc::clone(self),
            index,
        }
    }

    /// Is there anything to share?
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.taken.load(Relaxed) > 1
    }

    /// Gives each session its rate; the control thread calls it, [`LOOK_EVERY_NS`] apart. While all together
    /// are limited, the limit is the link that they share.
    pub fn divide(&self, sharing: &mut Sharing, limit: u64, now_ns: u64) {
        let mut claims = [None; SESSIONS_MAX];
        let mut rates = [0; SESSIONS_MAX];
        for (claim, place) in claims.iter_mut().zip(&self.places) {
            let link = place.link.load(Relaxed);
            *claim = (link != 0).then(|| Claim {
                link: if limit > 0 { 1 } else { link },
                sent_bytes: place.sent_bytes.load(Relaxed),
                waited_ns: place.waited_ns.load(Relaxed),
            });
        }
        sharing.look(now_ns, &claims, &mut rates);
        for (place, rate) in self.places.iter().zip(rates) {
            place.rate.store(rate, Relaxed);
        }
    }

    /// Time between two calls of [`Self::divide`].
    pub const DIVIDE_EVERY_NS: u64 = LOOK_EVERY_NS;

    fn spend(&self, bytes: u64, limit: u64, now_ns: u64) {
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(limit.max(1));
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let _ = self.free_at_ns.fetch_update(Relaxed, Relaxed, |free_at| {
            let start = free_at.max(now_ns.saturating_sub(BURST_NS));
            Some(start.saturating_add(cost))
        });
    }
}

impl Seat {
    /// What this session has sent since it began, and how long something waited meanwhile.
    pub fn note(&self, sent_bytes: u64, waited_ns: u64) {
        let place = &self.seats.places[self.index];
        place.sent_bytes.store(sent_bytes, Relaxed);
        place.waited_ns.store(waited_ns, Relaxed);
    }

    /// The rate that it may not pass for now, bytes a second; 0: none.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.seats.places[self.index].rate.load(Relaxed)
    }

    /// Is there another session that sends?
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.seats.is_shared()
    }

    /// Its guest stands still until it has sent what it has: the others on its link let it pass.
    pub fn begin_tail(&self, now_ns: u64) {
        let until = now_ns.saturating_add(TAIL_NS);
        let place = &self.seats.places[self.index];
        place.tail_until_ns.store(until, Relaxed);
    }

    /// Does a guest of another session on this link stand still now?
    #[must_use]
    pub fn another_goes_first(&self, now_ns: u64) -> bool {
        if !self.seats.is_shared() {
            return false;
        }
        let link = self.seats.places[self.index].link.load(Relaxed);
        self.seats.places.iter().enumerate().any(|(at, place)| {
            at != self.index
                && place.link.load(Relaxed) == link
                && place.tail_until_ns.load(Relaxed) > now_ns
        })
    }

    /// May anything leave under a limit of all sessions together? 0 is none.
    #[must_use]
    pub fn is_within(&self, limit: u64, now_ns: u64) -> bool {
        if limit == 0 {
            return true;
        }
        // A limit that was raised does not wait for what a lower one had spent.
        self.seats.free_at_ns.load(Relaxed) <= now_ns
    }

    /// So many bytes left, under a limit of all sessions together.
    pub fn spend(&self, bytes: u64, limit: u64, now_ns: u64) {
        if limit > 0 {
            self.seats.spend(bytes, limit, now_ns);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let place = &self.seats.places[self.index];
        place.link.store(0, Relaxed);
        place.tail_until_ns.store(0, Relaxed);
        self.seats.taken.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_guest_that_stands_still_goes_first_on_its_link_and_not_for_ever() {
        let seats = Arc::new(Seats::default());
        let first = seats.take(0, 7);
        assert!(!seats.is_shared());
        let (second, elsewhere) = (seats.take(1, 7), seats.take(2, 8));
        assert!(seats.is_shared() && !second.another_goes_first(1));
        first.begin_tail(100 * MS);
        assert!(second.another_goes_first(101 * MS));
        assert!(!first.another_goes_first(101 * MS) && !elsewhere.another_goes_first(101 * MS));
        assert!(!second.another_goes_first(100 * MS + TAIL_NS));
        first.begin_tail(5_000 * MS);
        drop(first);
        assert!(!second.another_goes_first(5_001 * MS), "it has ended");
    }

    #[test]
    fn all_together_stay_within_a_limit() {
        let seats = Arc::new(Seats::default());
        let two = [seats.take(0, 7), seats.take(1, 8)];
        let (limit, frame) = (10_000_000, 50_000);
        let mut sent = 0;
        for ms in 1_000..3_000 {
            for seat in &two {
                while seat.is_within(limit, ms * MS) {
                    seat.spend(frame, limit, ms * MS);
                    sent += frame;
                }
            }
        }
        assert!((19_500_000..=20_500_000).contains(&sent), "{sent}");
        assert!(two[0].is_within(0, 0), "lifted");
    }

    #[test]
    fn who_is_ahead_gets_a_rate_and_an_empty_seat_none() {
        let seats = Arc::new(Seats::default());
        let two = [seats.take(0, 7), seats.take(1, 7)];
        let mut sharing = Sharing::default();
        for look in 1..=30 {
            let now_ns = look * Seats::DIVIDE_EVERY_NS;
            two[0].note(look * 900_000, now_ns);
            two[1].note(look * 100_000, now_ns);
            seats.divide(&mut sharing, 0, now_ns);
        }
        assert!(two[0].rate() > 0 && two[1].rate() == 0);
        let [first, _] = two;
        drop(first);
        assert!(!seats.is_shared());
        assert_eq!(seats.take(0, 7).rate(), 0);
    }
}
