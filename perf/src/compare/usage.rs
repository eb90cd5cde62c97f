//! How much of a line was used. In: how many bytes the line had been given at many moments. Out: what it
//! sent over time, and the share of its rate used while there was data to send.
//!
//! A line takes bytes into a queue faster than it sends them, so what it was given says little; what it sent
//! is computed from that as a line works: at its rate while anything waits, not at all while nothing does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the line is asked.
const STEP: Duration = Duration::from_millis(5);
/// Bytes by which the bulk has begun: handshakes and announcements are less.
const BULK_BYTES: u64 = 64 << 10;
/// Resolution of what is drawn.
const SLOT_US: u64 = 100_000;
/// The same in seconds.
pub(super) const SLOT_S: f64 = SLOT_US as f64 / 1e6;

/// What a line had been given at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    /// Since the command to migrate.
    pub(super) at: Duration,
    /// From the source's host, since then.
    pub(super) bytes: u64,
}

/// Ends the asking, also when the work it goes along with panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks the line all the time while `work` goes on. A line that cannot be asked has no record.
pub(super) fn watch<T>(
    given_bytes: &(dyn Fn() -> Option<u64> + Sync),
    began: Instant,
    work: impl FnOnce() -> T,
) -> (T, Vec<Given>) {
    let record = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let Some(before) = given_bytes() else {
        return (work(), Vec::new());
    };
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let bytes = given_bytes().unwrap_or(before) - before;
                let at = began.elapsed();
                if let Ok(mut record) = record.lock() {
                    record.push(Given { at, bytes });
                }
                std::thread::sleep(STEP);
            }
        });
        let _stop = Stop(&stop);
        work()
    });
    (outcome, record.into_inner().unwrap_or_default())
}

/// What a line of this rate sent between each moment and the next.
struct Sent {
    from_us: u64,
    to_us: u64,
    bytes: f64,
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn sent(record: &[Given], rate_bytes_per_s: f64) -> Vec<Sent> {
    let mut waiting = record.first().map_or(0.0, |first| first.bytes as f64);
    record
        .windows(2)
        .map(|pair| {
            let (from_us, to_us) = (us(pair[0].at), us(pair[1].at));
            waiting += pair[1].bytes.saturating_sub(pair[0].bytes) as f64;
            let most = rate_bytes_per_s * to_us.saturating_sub(from_us) as f64 / 1e6;
            let bytes = waiting.min(most);
            waiting -= bytes;
            Sent {
                from_us,
                to_us,
                bytes,
            }
        })
        .collect()
}

/// The share of the line's rate that was used from the first bulk byte to the moment the guest stopped at
/// its source: bytes sent in that time over rate times that time. Whatever keeps the line waiting in between
/// counts against it: a window that is still small, an encoder, a hypervisor that looks for changed pages.
/// None when no bulk was seen before the stop.
pub(super) fn link_used(record: &[Given], rate_bytes_per_s: f64, stop: Duration) -> Option<f64> {
    let bulk = record.iter().find(|given| given.bytes >= BULK_BYTES)?;
    let (begin_us, end_us) = (us(bulk.at), us(stop));
    if begin_us >= end_us {
        return None;
    }
    let bytes: f64 = sent(record, rate_bytes_per_s)
        .iter()
        .filter(|sent| sent.from_us >= begin_us && sent.to_us <= end_us)
        .map(|sent| sent.bytes)
        .sum();
    let most = rate_bytes_per_s * (end_us - begin_us) as f64 / 1e6;
    Some(bytes / most)
}

/// What the line sent in each slot of [`SLOT_S`] since the command, in Mbit/s.
pub(super) fn timeline(record: &[Given], rate_bytes_per_s: f64) -> Vec<f64> {
    let mut slots = Vec::new();
    for sent in sent(record, rate_bytes_per_s) {
        let all_us = sent.to_us.saturating_sub(sent.from_us) as f64;
        let mut from_us = sent.from_us;
        while from_us < sent.to_us {
            let slot = from_us / SLOT_US;
            let to_us = sent.to_us.min((slot + 1) * SLOT_US);
            let slot = usize::try_from(slot).unwrap_or(usize::MAX);
            if slots.len() <= slot {
                slots.resize(slot + 1, 0.0);
            }
            let part = (to_us - from_us) as f64 / all_us;
            slots[slot] += sent.bytes * part * 8.0 / 1e6 / SLOT_S;
            from_us = to_us;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of one moment every 5 ms, from the bytes given in each.
    fn record(steps: impl IntoIterator<Item = u64>) -> Vec<Given> {
        let mut bytes = 0;
        let mut record = vec![Given {
            at: Duration::ZERO,
            bytes,
        }];
        for (index, step) in (1_u32..).zip(steps) {
            bytes += step;
            let at = STEP * index;
            record.push(Given { at, bytes });
        }
        record
    }

    const RATE: f64 = 20e6;
    /// What such a line sends in 5 ms.
    const FULL: u64 = 100_000;

    #[test]
    fn a_line_that_is_never_idle_is_used_in_full() {
        let used = link_used(&record([FULL; 400]), RATE, Duration::from_secs(2)).unwrap();
        assert!((used - 1.0).abs() < 0.01, "{used}");
    }

    #[test]
    fn half_of_the_time_is_half_of_the_line() {
        let steps = (0..400).map(|step| if (step / 50) % 2 == 0 { FULL } else { 0 });
        let used = link_used(&record(steps), RATE, Duration::from_secs(2)).unwrap();
        assert!((used - 0.5).abs() < 0.01, "{used}");
    }

    #[test]
    fn what_waits_in_the_queue_is_not_sent_yet() {
        // Two seconds' worth at once, the guest stops after one second.
        let steps = [FULL * 400].into_iter().chain([0; 399]);
        let record = record(steps);
        let used = link_used(&record, RATE, Duration::from_secs(1)).unwrap();
        assert!((used - 1.0).abs() < 0.01, "{used}");
        let drawn = timeline(&record, RATE);
        assert!(
            drawn[..19].iter().all(|mbit| (mbit - 160.0).abs() < 0.1),
            "{drawn:?}"
        );
    }

    #[test]
    fn what_is_drawn_is_all_that_was_sent_and_never_more_than_the_rate() {
        // Moments that fit no slot.
        let record: Vec<Given> = (0..300_u64)
            .map(|step| Given {
                at: Duration::from_micros(step * 7_300),
                bytes: step * 120_000,
            })
            .collect();
        let drawn = timeline(&record, RATE);
        assert!(drawn.iter().all(|mbit| *mbit <= 160.1), "{drawn:?}");
        let bytes = drawn.iter().sum::<f64>() * SLOT_S * 1e6 / 8.0;
        assert!((bytes - 299.0 * 120_000.0).abs() < 1.0, "{bytes}");
    }

    #[test]
    fn time_before_the_bulk_and_after_the_stop_counts_for_nothing() {
        let steps = (0..400).map(|step| if (200..300).contains(&step) { FULL } else { 0 });
        let stop = Duration::from_millis(1_500);
        let used = link_used(&record(steps), RATE, stop).unwrap();
        assert!((used - 1.0).abs() < 0.02, "{used}");
        assert_eq!(link_used(&record([0; 100]), RATE, stop), None);
        assert_eq!(link_used(&record([FULL; 9]), RATE, Duration::ZERO), None);
    }
}
