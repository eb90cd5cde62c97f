//! What the wire carries while it is the bottleneck.
//!
//! In: bytes handed to the lanes so far, and whether something waited for them. Out: bytes a second. While
//! the wire was not the bottleneck its rate cannot be known: then a near path counts as a fast one and a
//! far path as a slow one. Promise: a pause of the hypervisor does not read as a slow wire.

/// A span shorter than this says nothing.
const SPAN_NS: u64 = 50_000_000;
/// After this long without being the bottleneck the wire counts as fast again.
const FORGET_NS: u64 = 3_000_000_000;
/// A path with a round trip of at least this is taken for a slow one until it was measured.
const FAR_RTT_US: u32 = 5_000;
/// What such a path is taken to carry, bytes a second.
const FAR_BYTES_PER_S: u64 = 25_000_000;
/// What a near path is taken to carry, bytes a second: more than any encoder makes.
const NEAR_BYTES_PER_S: u64 = 5_000_000_000;

/// See the module.
#[derive(Debug, Default)]
pub struct WireRate {
    span_start_ns: u64,
    span_start_bytes: u64,
    /// Something waited for the wire during the whole span so far.
    busy: bool,
    bytes_per_s: Option<u64>,
    measured_ns: u64,
    /// The path's own round trip, without queues; 0: not measured.
    rtt_min_us: u32,
}

impl WireRate {
    /// The smallest round trip that was measured on the path.
    pub const fn set_rtt_min(&mut self, rtt_min_us: u32) {
        self.rtt_min_us = rtt_min_us;
    }

    /// Looks at the wire: `sent_bytes` were taken by it so far; `waiting` says whether more waits.
    pub fn look(&mut self, now_ns: u64, sent_bytes: u64, waiting: bool) {
        if !waiting || !self.busy {
            self.busy = waiting;
            self.span_start_ns = now_ns;
            self.span_start_bytes = sent_bytes;
            if now_ns.saturating_sub(self.measured_ns) > FORGET_NS {
                self.bytes_per_s = None;
            }
            return;
        }
        let span_ns = now_ns.saturating_sub(self.span_start_ns);
        if span_ns < SPAN_NS {
            return;
        }
        let bytes = sent_bytes.saturating_sub(self.span_start_bytes);
        let sample = u128::from(bytes) * 1_000_000_000 / u128::from(span_ns);
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        self.bytes_per_s = Some(
            self.bytes_per_s
                .map_or(sample, |mean| mean - mean / 4 + sample / 4),
        );
        self.measured_ns = now_ns;
        self.span_start_ns = now_ns;
        self.span_start_bytes = sent_bytes;
    }

    /// Bytes a second; `None` before the path's round trip was measured.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<u64> {
        let guess = match self.rtt_min_us {
            0 => None,
            FAR_RTT_US.. => Some(FAR_BYTES_PER_S),
            _ => Some(NEAR_BYTES_PER_S),
        };
        self.bytes_per_s.or(guess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn only_a_wire_that_something_waits_for_is_measured() {
        let mut rate = WireRate::default();
        rate.set_rtt_min(100);
        for ms in 0..200 {
            rate.look(ms * MS, ms * 1_000, false);
        }
        assert_eq!(rate.bytes_per_s(), Some(NEAR_BYTES_PER_S));
        for ms in 200..400 {
            rate.look(ms * MS, ms * 25_000, true);
        }
        let measured = rate.bytes_per_s().unwrap();
        assert!((24_000_000..=26_000_000).contains(&measured), "{measured}");
        rate.look(10_000 * MS, 0, false);
        assert_eq!(rate.bytes_per_s(), Some(NEAR_BYTES_PER_S), "forgotten");
    }

    #[test]
    fn a_far_path_is_taken_for_slow_until_measured() {
        let mut rate = WireRate::default();
        assert_eq!(rate.bytes_per_s(), None);
        rate.set_rtt_min(80_000);
        assert_eq!(rate.bytes_per_s(), Some(FAR_BYTES_PER_S));
    }
}
