//! Round trips of one lane.
//!
//! Comes in: numbers of requests that were handed to the device, and of those that it completed. Goes
//! out: how long a round trip takes. Promises: the clock is read twice for a sample, whatever is sent
//! meanwhile, and no system call is made.
//!
//! A reliable connection completes a request once the peer's device acknowledged it. So a sample holds
//! the way there and back, the time that a long frame takes to be written, and the time until this side
//! looked: the least of them is nearest to the path.

use std::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    timed: Option<(u64, Instant)>,
    /// 0: no sample yet.
    smoothed_us: u32,
    min_us: u32,
}

impl RoundTrip {
    /// This request is handed over next, and reports its completion. Before and not after: a device in
    /// software may be done when the hand-over is.
    pub(super) fn posting(&mut self, seq: u64) {
        if self.timed.is_none() {
            self.timed = Some((seq, Instant::now()));
        }
    }

    /// The device completed this request and all before it.
    pub(super) fn completed(&mut self, up_to: u64) {
        if let Some((_, since)) = self.timed.take_if(|(seq, _)| *seq <= up_to) {
            self.sample(since.elapsed().as_micros());
        }
    }

    /// Smoothed as TCP does it (RFC 6298), with a gain of 1/8.
    fn sample(&mut self, took_us: u128) {
        let took_us = u32::try_from(took_us).unwrap_or(u32::MAX).max(1);
        if self.smoothed_us == 0 {
            self.smoothed_us = took_us;
            self.min_us = took_us;
        } else {
            self.smoothed_us = self.smoothed_us - self.smoothed_us / 8 + took_us / 8;
            self.min_us = self.min_us.min(took_us);
        }
    }

    /// Smoothed, in microseconds; 0 before the first sample.
    pub(super) fn smoothed_us(&self) -> u32 {
        self.smoothed_us
    }

    /// The least so far, in microseconds; 0 before the first sample.
    pub(super) fn min_us(&self) -> u32 {
        self.min_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_request_is_timed_until_one_that_stands_for_it_completes() {
        let mut trip = RoundTrip::default();
        trip.posting(7);
        trip.completed(6);
        assert_eq!((trip.smoothed_us(), trip.min_us()), (0, 0), "not its own");
        std::thread::sleep(Duration::from_millis(2));
        // Does not start the clock anew.
        trip.posting(8);
        trip.completed(9);
        assert!(trip.min_us() >= 2_000 && trip.smoothed_us() == trip.min_us());
        let first = trip.min_us();
        trip.completed(10);
        assert_eq!(trip.smoothed_us(), first, "nothing was timed");
    }

    #[test]
    fn the_least_stays_and_the_mean_follows() {
        let mut trip = RoundTrip::default();
        for took_us in [800, 100, 900] {
            trip.sample(took_us);
        }
        assert_eq!(trip.min_us(), 100);
        assert_eq!(trip.smoothed_us(), 800 - 100 + 12 - 89 + 112);
        trip.sample(0);
        assert_eq!(trip.min_us(), 1, "0 would read as not measured");
    }
}
