//! The round trip, estimated as RFC 9002, section 5, does.
//!
//! Comes in: samples, in nanoseconds. Goes out: a smoothed value, its variation, its minimum, and the
//! times that follow from them.

/// Clocks and schedulers are not finer than this.
pub(super) const GRANULARITY_NS: u64 = 1_000_000;
/// Probe timeout before there is a sample.
const PTO_INITIAL_NS: u64 = 50_000_000;

/// The path's round trip so far.
#[derive(Debug, Default)]
pub(super) struct Rtt {
    latest_ns: u64,
    smoothed_ns: u64,
    variation_ns: u64,
    min_ns: u64,
}

impl Rtt {
    /// Takes a sample of which the peer says that it waited `ack_delay_ns` before it answered.
    pub(super) fn sample(&mut self, sample_ns: u64, ack_delay_ns: u64) {
        let sample_ns = sample_ns.max(1);
        self.latest_ns = sample_ns;
        if self.smoothed_ns == 0 {
            self.min_ns = sample_ns;
            self.smoothed_ns = sample_ns;
            self.variation_ns = sample_ns / 2;
            return;
        }
        self.min_ns = self.min_ns.min(sample_ns);
        // A peer that exaggerates its delay must not make the path look shorter than it is.
        let adjusted_ns = if sample_ns >= self.min_ns.saturating_add(ack_delay_ns) {
            sample_ns - ack_delay_ns
        } else {
            sample_ns
        };
        let difference_ns = self.smoothed_ns.abs_diff(adjusted_ns);
        self.variation_ns = (3 * self.variation_ns + difference_ns) / 4;
        self.smoothed_ns = (7 * self.smoothed_ns + adjusted_ns) / 8;
    }

    /// The last sample; 0 before the first.
    pub(super) fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// 0 before the first sample.
    pub(super) fn smoothed_ns(&self) -> u64 {
        self.smoothed_ns
    }

    /// 0 before the first sample.
    pub(super) fn min_ns(&self) -> u64 {
        self.min_ns
    }

    /// How long to wait for an acknowledgement before asking for one.
    pub(super) fn pto_ns(&self, ack_delay_max_ns: u64) -> u64 {
        if self.smoothed_ns == 0 {
            return PTO_INITIAL_NS;
        }
        self.smoothed_ns + (4 * self.variation_ns).max(GRANULARITY_NS) + ack_delay_max_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_rfc() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.pto_ns(7), PTO_INITIAL_NS);
        rtt.sample(8_000_000, 5_000_000);
        assert_eq!((rtt.smoothed_ns(), rtt.min_ns()), (8_000_000, 8_000_000));
        assert_eq!(rtt.pto_ns(7), 8_000_000 + 16_000_000 + 7);
        rtt.sample(16_000_000, 4_000_000);
        assert_eq!(rtt.latest_ns(), 16_000_000);
        assert_eq!(rtt.smoothed_ns(), (7 * 8_000_000 + 12_000_000) / 8);
        assert_eq!(rtt.min_ns(), 8_000_000);
        // A delay that would bring the sample below the minimum is not believed.
        let before = rtt.smoothed_ns();
        rtt.sample(9_000_000, 5_000_000);
        assert_eq!(rtt.smoothed_ns(), (7 * before + 9_000_000) / 8);
    }

    #[test]
    fn hostile_delays_do_not_overflow() {
        let mut rtt = Rtt::default();
        rtt.sample(0, 0);
        rtt.sample(1000, u64::MAX);
        assert!(rtt.smoothed_ns() > 0);
    }
}
