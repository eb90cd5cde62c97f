//! When the next datagram may go out.
//!
//! Comes in: a rate, and what was sent. Goes out: yes, or when. Promises: over any time no more than
//! the rate allows and one burst; a poll loop that comes late makes up for it, up to that burst.

/// Bursts are what the rate carries in this time, within bounds.
const BURST_NS: f64 = 500_000.0;
const BURST_DATAGRAMS_MIN: f64 = 4.0;
const BURST_DATAGRAMS_MAX: f64 = 64.0;

/// A bucket of bytes that fills with time.
#[derive(Debug)]
pub(super) struct Pacer {
    datagram_bytes: f64,
    /// Bytes that may be sent now. Below zero after a datagram longer than what was left.
    budget_bytes: f64,
    filled_ns: u64,
    bytes_per_ns: Option<f64>,
}

impl Pacer {
    pub(super) fn new(datagram_bytes: usize) -> Self {
        Self {
            datagram_bytes: datagram_bytes as f64,
            budget_bytes: 0.0,
            filled_ns: 0,
            bytes_per_ns: None,
        }
    }

    /// The rate from now on; none for no limit.
    pub(super) fn set(&mut self, bytes_per_s: Option<u64>) {
        self.bytes_per_ns = bytes_per_s.map(|rate| rate.max(1) as f64 / 1e9);
    }

    /// Lets the time since the last call count.
    pub(super) fn fill(&mut self, now_ns: u64) {
        let Some(bytes_per_ns) = self.bytes_per_ns else {
            return;
        };
        let elapsed_ns = now_ns.saturating_sub(self.filled_ns) as f64;
        self.filled_ns = self.filled_ns.max(now_ns);
        let burst = (bytes_per_ns * BURST_NS).clamp(
            BURST_DATAGRAMS_MIN * self.datagram_bytes,
            BURST_DATAGRAMS_MAX * self.datagram_bytes,
        );
        self.budget_bytes = (self.budget_bytes + bytes_per_ns * elapsed_ns).min(burst);
    }

    pub(super) fn may_send(&self) -> bool {
        self.bytes_per_ns.is_none() || self.budget_bytes > 0.0
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        if self.bytes_per_ns.is_some() {
            self.budget_bytes -= bytes as f64;
        }
    }

    /// When the next datagram may go, if not now.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let bytes_per_ns = self.bytes_per_ns.filter(|_| !self.may_send())?;
        // One byte more, so that rounding does not leave it just short.
        let wait_ns = (1.0 - self.budget_bytes) / bytes_per_ns;
        Some(self.filled_ns.saturating_add(wait_ns as u64 + 1))
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
        pacer.set(Some(bytes_per_s));
        let mut now_ns = start_ns;
        while now_ns < start_ns + ns {
            pacer.fill(now_ns);
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
        pacer.fill(5);
        assert!(pacer.may_send() && pacer.due_ns().is_none());
        pacer.set(Some(3_000_000));
        pacer.fill(1_000_000_000);
        while pacer.may_send() {
            pacer.sent(1000);
        }
        let due_ns = pacer.due_ns().unwrap();
        pacer.fill(due_ns - 1000);
        assert!(!pacer.may_send());
        pacer.fill(due_ns);
        assert!(pacer.may_send());
        assert_eq!(pacer.due_ns(), None);
    }
}
