//! How often somebody may ask.
//!
//! In: who, and when. Out: yes, or how long to wait. Promises: a second's worth of requests may come at once, then
//! they come at the rate; at most [`CALLERS_MAX`] callers are remembered, and forgetting one never takes anything
//! from another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Callers remembered at once.
pub const CALLERS_MAX: usize = 4_096;

/// One bucket for each caller.
#[derive(Debug)]
pub struct Rates {
    per_s: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// At most `per_s` requests a second for each caller; 0: as many as they like.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        Self {
            per_s: f64::from(per_s),
            buckets: Mutex::default(),
        }
    }

    /// Takes one request of `who`'s.
    ///
    /// # Errors
    /// How long to wait before the next.
    pub fn take(&self, who: &str, now: Instant) -> Result<(), Duration> {
        if self.per_s == 0.0 {
            return Ok(());
        }
        let burst = self.per_s * 2.0;
        let filled = |bucket: &Bucket| {
            let since_s = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + since_s * self.per_s).min(burst)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS_MAX && !buckets.contains_key(who) {
            // A full bucket says the same as none.
            buckets.retain(|_, bucket| filled(bucket) < burst);
            if buckets.len() >= CALLERS_MAX {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(who.to_owned()).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        let tokens = filled(bucket);
        bucket.at = now;
        if tokens < 1.0 {
            bucket.tokens = tokens;
            return Err(Duration::from_secs_f64((1.0 - tokens) / self.per_s));
        }
        bucket.tokens = tokens - 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_for_itself() {
        let rates = Rates::new(10);
        let start = Instant::now();
        for _ in 0..20 {
            rates.take("a", start).unwrap();
        }
        let wait = rates.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(90));
        rates.take("b", start).unwrap();
        rates
            .take("a", start + wait + Duration::from_millis(1))
            .unwrap();
        rates.take("a", start + wait).unwrap_err();
        Rates::new(0).take("a", start).unwrap();
    }

    #[test]
    fn a_crowd_is_forgotten_before_it_fills_the_memory() {
        let rates = Rates::new(1);
        let start = Instant::now();
        for n in 0..CALLERS_MAX {
            rates.take(&n.to_string(), start).unwrap();
        }
        rates.take("late", start).unwrap_err();
        rates.take("0", start).unwrap();
        rates.take("late", start + Duration::from_secs(1)).unwrap();
        assert!(rates.buckets.lock().unwrap().len() <= 2);
    }
}
