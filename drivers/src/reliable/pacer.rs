//! When the next datagram may go out.
//!
//! Comes in: a rate, and what was sent. Goes out: yes, or when. Promises: over any time no more than
//! the rate allows and one burst; a poll loop that comes late makes up for it, up to that burst.

/// Bursts are what the rate carries in this time, within bounds.
const BURST_NS: u64 = 500_000;
const BURST_DATAGRAMS_MIN: u64 = 4;
const BURST_DATAGRAMS_MAX: u64 = 64;

/// A bucket of bytes that fills with time.
#[derive(Debug)]
pub(super) struct Pacer {
    datagram_bytes: u64,
    /// Bytes that may be sent now. Below zero after a datagram longer than what was left.
    budget_bytes: i64,
    filled_ns: u64,
    bytes_per_s: Option<u64>,
}

impl Pacer {
    pub(super) fn new(datagram_bytes: u64) -> Self {
        Self {
            datagram_bytes,
            budget_bytes: 0,
            filled_ns: 0,
            bytes_per_s: None,
        }
    }

    /// Takes the rate from now on; none for no limit.
    pub(super) fn fill(&mut self, now_ns: u64, bytes_per_s: Option<u64>) {
        self.bytes_per_s = bytes_per_s;
        let Some(bytes_per_s) = bytes_per_s else {
            return;
        };
        let elapsed_ns = now_ns.saturating_sub(self.filled_ns);
        let gain = (u128::from(bytes_per_s) * u128::from(elapsed_ns) / 1_000_000_000) as u64;
        if gain == 0 && self.filled_ns > 0 {
            return; // less than a byte: leave the time for later
        }
        self.filled_ns = now_ns;
        let burst = (u128::from(bytes_per_s) * u128::from(BURST_NS) / 1_000_000_000) as u64;
        let burst = burst.clamp(
            BURST_DATAGRAMS_MIN * self.datagram_bytes,
            BURST_DATAGRAMS_MAX * self.datagram_bytes,
        ) as i64;
        let gain = i64::try_from(gain).unwrap_or(i64::MAX);
        self.budget_bytes = self.budget_bytes.saturating_add(gain).min(burst);
    }

    pub(super) fn may_send(&self) -> bool {
        self.bytes_per_s.is_none() || self.budget_bytes > 0
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        if self.bytes_per_s.is_some() {
            self.budget_bytes = self.budget_bytes.saturating_sub_unsigned(bytes);
        }
    }

    /// When the next datagram may go, if not now.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let bytes_per_s = self.bytes_per_s.filter(|_| !self.may_send())?.max(1);
        let missing = u128::from(self.budget_bytes.unsigned_abs() + 1);
        let wait_ns = missing * 1_000_000_000 / u128::from(bytes_per_s) + 1;
        Some(
            self.filled_ns
                .saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all it may for `ns`, in steps; returns the bytes and the largest burst.
    fn run(
        pacer: &mut Pacer,
        bytes_per_s: u64,
        start_ns: u64,
        ns: u64,
        step_ns: u64,
    ) -> (u64, u64) {
        let (mut all, mut largest) = (0, 0);
        let mut now_ns = start_ns;
        while now_ns < start_ns + ns {
            pacer.fill(now_ns, Some(bytes_per_s));
            let mut burst = 0;
            while pacer.may_send() {
                pacer.sent(1000);
                burst += 1000;
            }
            all += burst;
            largest = largest.max(burst);
            now_ns += step_ns;
        }
        (all, largest)
    }

    #[test]
    fn the_rate_is_kept_at_any_step() {
        for (rate, step_ns) in [
            (1_000_000, 10),
            (1_000_000, 3_000_000),
            (1_000_000_000, 777),
        ] {
            let mut pacer = Pacer::new(1000);
            run(&mut pacer, rate, 1_000_000_000, 50_000_000, step_ns);
            let (bytes, largest) = run(&mut pacer, rate, 1_050_000_000, 1_000_000_000, step_ns);
            let wrong = bytes.abs_diff(rate) as f64 / rate as f64;
            assert!(wrong < 0.01, "{rate} at {step_ns} ns: {bytes}");
            assert!(largest <= 65_000);
        }
    }

    #[test]
    fn a_pause_earns_one_burst_and_no_more() {
        let mut pacer = Pacer::new(1000);
        run(&mut pacer, 100_000_000, 1_000_000_000, 1_000_000, 1000);
        let (bytes, _) = run(&mut pacer, 100_000_000, 60_000_000_000, 1, 1);
        assert!(bytes <= 51_000, "{bytes}");
    }

    #[test]
    fn due_is_when_it_may() {
        let mut pacer = Pacer::new(1000);
        pacer.fill(5, None);
        assert!(pacer.may_send() && pacer.due_ns().is_none());
        pacer.fill(1_000_000_000, Some(3_000_000));
        while pacer.may_send() {
            pacer.sent(1000);
        }
        let due_ns = pacer.due_ns().unwrap();
        pacer.fill(due_ns - 1000, Some(3_000_000));
        assert!(!pacer.may_send());
        pacer.fill(due_ns, Some(3_000_000));
        assert!(pacer.may_send());
        assert_eq!(pacer.due_ns(), None);
    }
}
