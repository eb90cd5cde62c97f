//! What the wire carries, for the encoder.
//!
//! In: bytes handed to the lanes so far, whether something waited for them, and on a far path what it carried
//! at best. Out: bytes a second. While the wire is not the bottleneck its rate is not seen: a near path counts
//! as a fast one, and a far path as one that carries a little more than it did. Promise: a pause of the
//! hypervisor does not read as a slow wire, nor does the first second, in which a network finds out what the
//! path carries.

/// A span shorter than this says nothing.
const SPAN_NS: u64 = 50_000_000;
/// After this long without being the bottleneck the wire counts as fast again.
const FORGET_NS: u64 = 3_000_000_000;
/// A path with a round trip of at least this is taken for a slow one until it was measured.
const FAR_RTT_US: u32 = 5_000;
/// What such a path is taken to carry at least while it is not known, bytes a second.
const FAR_BYTES_PER_S: u64 = 25_000_000;
/// A far path for which nothing has waited for so long is not the bottleneck.
const FREE_NS: u64 = 200_000_000;
/// It is taken to carry so much of what it did.
const FREE_PERCENT: u64 = 125;
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
    waited_ns: u64,
    now_ns: u64,
    /// The path's own round trip, without queues; 0: not measured.
    rtt_min_us: u32,
    /// Of a far path: what it carried, and whether it may carry more than was seen.
    carried: Option<(u64, bool)>,
}

impl WireRate {
    /// The smallest round trip that was measured on the path, and what a far path carried at best, bytes a
    /// second, with whether it may carry more than was seen.
    pub const fn set_path(&mut self, rtt_min_us: u32, carried: Option<(u64, bool)>) {
        self.rtt_min_us = rtt_min_us;
        self.carried = carried;
    }

    /// Looks at the wire: `sent_bytes` were taken by it so far; `waiting` says whether more waits.
    pub fn look(&mut self, now_ns: u64, sent_bytes: u64, waiting: bool) {
        self.now_ns = now_ns;
        if waiting {
            self.waited_ns = now_ns;
        }
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
        match (self.rtt_min_us, self.carried) {
            (0, _) => self.bytes_per_s,
            (FAR_RTT_US.., Some((carried, may_carry_more))) => {
                Some(self.of_far(carried, may_carry_more))
            }
            (FAR_RTT_US.., None) => Some(self.bytes_per_s.unwrap_or(FAR_BYTES_PER_S)),
            _ => Some(self.bytes_per_s.unwrap_or(NEAR_BYTES_PER_S)),
        }
    }

    fn of_far(&self, carried: u64, may_carry_more: bool) -> u64 {
        let free = self.now_ns.saturating_sub(self.waited_ns) > FREE_NS;
        let carried = if free {
            carried.saturating_mul(FREE_PERCENT) / 100
        } else {
            carried
        };
        if may_carry_more || free {
            carried.max(FAR_BYTES_PER_S)
        } else {
            carried
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn only_a_wire_that_something_waits_for_is_measured() {
        let mut rate = WireRate::default();
        rate.set_path(100, None);
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
    fn a_far_path_is_taken_for_slow_until_it_carries_more() {
        let mut rate = WireRate::default();
        assert_eq!(rate.bytes_per_s(), None);
        rate.set_path(80_000, None);
        assert_eq!(rate.bytes_per_s(), Some(FAR_BYTES_PER_S));
        // It begins: what it carries so far says little.
        rate.look(0, 0, true);
        rate.set_path(80_000, Some((2_000_000, true)));
        assert_eq!(rate.bytes_per_s(), Some(FAR_BYTES_PER_S));
        rate.set_path(80_000, Some((60_000_000, true)));
        assert_eq!(rate.bytes_per_s(), Some(60_000_000));
        // It is known, and slow.
        rate.set_path(80_000, Some((2_000_000, false)));
        assert_eq!(rate.bytes_per_s(), Some(2_000_000));
        // Nothing has waited for it for a while: it carries a little more than it did, or the common rate.
        rate.set_path(80_000, Some((60_000_000, false)));
        rate.look(201 * MS, 0, false);
        assert_eq!(rate.bytes_per_s(), Some(75_000_000));
        rate.set_path(80_000, Some((2_000_000, false)));
        assert_eq!(rate.bytes_per_s(), Some(FAR_BYTES_PER_S));
    }
}
