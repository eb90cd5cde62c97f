//! CUBIC, as RFC 9438 says it, in bytes.
//!
//! Comes in: acknowledgements and losses. Goes out: a window that grows along a cubic curve around the
//! size at which the path last lost. Slow start ends early when the round trip grows (HyStart++,
//! RFC 9406). A reduction for packets that were only late is taken back (RFC 9438, section 4.9.2).

use super::{Acked, Controller, Losses, WINDOW_INITIAL_DATAGRAMS, WINDOW_MIN_DATAGRAMS, rate};

/// Segments per cubic second.
const C: f64 = 0.4;
/// What is left of the window after a loss.
const BETA: f64 = 0.7;
/// Growth per round trip that is fair beside Reno, in segments, as long as the window is small.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// How much faster than one window per round trip packets go out, in percent: in slow start, then.
const PACING_SLOW_START_PERCENT: u64 = 200;
const PACING_PERCENT: u64 = 125;

/// What a loss took away, until it is known to have been one.
#[derive(Debug, Clone, Copy)]
struct Saved {
    window: f64,
    threshold: f64,
    last_max: f64,
    packets_lost: u32,
}

/// One lane's CUBIC.
pub(in crate::reliable) struct Cubic {
    datagram_bytes: f64,
    window: f64,
    /// Where slow start ends.
    threshold: f64,
    /// The window when the path last lost.
    last_max: f64,
    /// When this stretch of growth began.
    epoch_ns: Option<u64>,
    /// When the curve reaches `last_max`, seconds after the epoch's beginning.
    k_s: f64,
    /// What Reno would have by now.
    reno: f64,
    /// Packets sent until then belong to the last loss.
    recovery_ns: u64,
    saved: Option<Saved>,
    start: SlowStart,
    rtt_smoothed_ns: u64,
}

impl Cubic {
    pub(in crate::reliable) fn new(datagram_bytes: u64) -> Self {
        Self {
            datagram_bytes: datagram_bytes as f64,
            window: (WINDOW_INITIAL_DATAGRAMS * datagram_bytes) as f64,
            threshold: f64::INFINITY,
            last_max: 0.0,
            epoch_ns: None,
            k_s: 0.0,
            reno: 0.0,
            recovery_ns: 0,
            saved: None,
            start: SlowStart::default(),
            rtt_smoothed_ns: 0,
        }
    }

    fn window_min(&self) -> f64 {
        WINDOW_MIN_DATAGRAMS as f64 * self.datagram_bytes
    }

    fn begin_epoch(&mut self, now_ns: u64) {
        self.epoch_ns = Some(now_ns);
        self.reno = self.window;
        if self.window < self.last_max {
            self.k_s = ((self.last_max - self.window) / self.datagram_bytes / C).cbrt();
        } else {
            self.k_s = 0.0;
            self.last_max = self.window;
        }
    }

    /// The curve, in bytes.
    fn curve(&self, since_epoch_s: f64) -> f64 {
        let t = since_epoch_s - self.k_s;
        C * t * t * t * self.datagram_bytes + self.last_max
    }

    fn avoid(&mut self, acked: &Acked) {
        if self.epoch_ns.is_none() {
            self.begin_epoch(acked.now_ns);
        }
        let epoch_ns = self.epoch_ns.unwrap_or(acked.now_ns);
        let elapsed_s = acked.now_ns.saturating_sub(epoch_ns) as f64 / 1e9;
        let rtt_s = acked.rtt_smoothed_ns as f64 / 1e9;
        let bytes = acked.bytes as f64;
        let alpha = if self.reno < self.last_max {
            ALPHA
        } else {
            1.0
        };
        self.reno += alpha * self.datagram_bytes * bytes / self.window;
        if self.curve(elapsed_s) < self.reno {
            self.window = self.window.max(self.reno);
        } else {
            let ceiling = 1.5 * self.window;
            let target = self.curve(elapsed_s + rtt_s).clamp(self.window, ceiling);
            self.window += (target - self.window) * bytes / self.window;
        }
    }
}

impl Controller for Cubic {
    fn on_acked(&mut self, acked: &Acked) {
        self.rtt_smoothed_ns = acked.rtt_smoothed_ns;
        let slow = self.window < self.threshold;
        if slow && self.start.on_acked(acked) {
            self.threshold = self.window;
        }
        if acked.newest_sent_ns <= self.recovery_ns && self.recovery_ns > 0 {
            return;
        }
        if !acked.window_limited {
            // The window proves nothing while it is not used; the curve starts anew.
            self.epoch_ns = None;
        } else if slow {
            self.window += acked.bytes as f64 / self.start.divisor();
        } else {
            self.avoid(acked);
        }
    }

    fn on_lost(&mut self, losses: &Losses) {
        if losses.newest_sent_ns <= self.recovery_ns && self.recovery_ns > 0 {
            if let Some(saved) = &mut self.saved {
                saved.packets_lost += losses.packets;
            }
            if !losses.persistent {
                return;
            }
        }
        self.saved = Some(Saved {
            window: self.window,
            threshold: self.threshold,
            last_max: self.last_max,
            packets_lost: losses.packets,
        });
        self.recovery_ns = losses.now_ns;
        self.epoch_ns = None;
        // Fast convergence: a window that shrinks from loss to loss makes room for newcomers.
        self.last_max = if self.window < self.last_max {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.threshold = (self.window * BETA).max(self.window_min());
        self.window = self.threshold;
        if losses.persistent {
            self.window = self.window_min();
            self.recovery_ns = 0;
            self.saved = None;
            self.start = SlowStart::default();
        }
    }

    fn on_spurious(&mut self, packets: u32) {
        let Some(saved) = &mut self.saved else { return };
        saved.packets_lost = saved.packets_lost.saturating_sub(packets);
        if saved.packets_lost == 0 {
            self.window = self.window.max(saved.window);
            self.threshold = saved.threshold;
            self.last_max = saved.last_max;
            self.recovery_ns = 0;
            self.epoch_ns = None;
            self.saved = None;
        }
    }

    fn window_bytes(&self) -> u64 {
        self.window as u64
    }

    fn pacing_bytes_per_s(&self) -> Option<u64> {
        let percent = if self.window < self.threshold {
            PACING_SLOW_START_PERCENT
        } else {
            PACING_PERCENT
        };
        (self.rtt_smoothed_ns > 0)
            .then(|| rate(self.window as u64 / 100 * percent, self.rtt_smoothed_ns))
    }

    fn name(&self) -> &'static str {
        "cubic"
    }
}

/// Samples of a round before its round trip counts.
const SAMPLES_MIN: u32 = 8;
/// Growth of the round trip that counts: an eighth, within these.
const GROWTH_NS_MIN: u64 = 4_000_000;
const GROWTH_NS_MAX: u64 = 16_000_000;
/// How much slower the careful part of slow start grows, and its rounds.
const CAREFUL_DIVISOR: f64 = 4.0;
const CAREFUL_ROUNDS: u32 = 5;

/// HyStart++: whether slow start begins to fill queues.
#[derive(Debug, Default)]
struct SlowStart {
    /// Packets sent after this end the round.
    round_ns: u64,
    samples: u32,
    min_ns: u64,
    last_min_ns: u64,
    /// Rounds left of the careful part, and the round trip that would end it as a false alarm.
    careful: Option<(u32, u64)>,
}

impl SlowStart {
    fn divisor(&self) -> f64 {
        if self.careful.is_some() {
            CAREFUL_DIVISOR
        } else {
            1.0
        }
    }

    /// True: slow start is over.
    fn on_acked(&mut self, acked: &Acked) -> bool {
        if acked.newest_sent_ns >= self.round_ns {
            self.round_ns = acked.now_ns;
            self.last_min_ns = self.min_ns;
            (self.min_ns, self.samples) = (0, 0);
            if let Some((rounds, _)) = &mut self.careful {
                *rounds = rounds.saturating_sub(1);
                if *rounds == 0 {
                    return true;
                }
            }
        }
        if self.min_ns == 0 || acked.rtt_latest_ns < self.min_ns {
            self.min_ns = acked.rtt_latest_ns;
        }
        self.samples += 1;
        if self.samples < SAMPLES_MIN || self.last_min_ns == 0 {
            return false;
        }
        match self.careful {
            Some((_, before_ns)) if self.min_ns < before_ns => self.careful = None,
            Some(_) => {}
            None => {
                let growth_ns = (self.last_min_ns / 8).clamp(GROWTH_NS_MIN, GROWTH_NS_MAX);
                if self.min_ns >= self.last_min_ns + growth_ns {
                    self.careful = Some((CAREFUL_ROUNDS, self.min_ns));
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const DATAGRAM: u64 = 1000;

    /// One round trip of 100 ms in which a whole window is acknowledged, in ten parts.
    fn round(cubic: &mut Cubic, now_ns: &mut u64, rtt_ms: u64) {
        let window = cubic.window_bytes();
        for _ in 0..10 {
            *now_ns += 10 * MS;
            cubic.on_acked(&acked(*now_ns, window / 10, rtt_ms, true));
        }
    }

    fn acked(now_ns: u64, bytes: u64, rtt_ms: u64, window_limited: bool) -> Acked {
        Acked {
            now_ns,
            bytes,
            newest_sent_ns: now_ns.saturating_sub(rtt_ms * MS),
            delivered: 0,
            prior_delivered: 0,
            in_flight_bytes: 0,
            rate: None,
            rtt_latest_ns: rtt_ms * MS,
            rtt_smoothed_ns: rtt_ms * MS,
            window_limited,
        }
    }

    fn losses(now_ns: u64, newest_sent_ns: u64, packets: u32) -> Losses {
        Losses {
            now_ns,
            bytes: DATAGRAM * u64::from(packets),
            packets,
            newest_sent_ns,
            persistent: false,
        }
    }

    #[test]
    fn slow_start_doubles_and_idle_windows_do_not_grow() {
        let mut cubic = Cubic::new(DATAGRAM);
        let mut now_ns = 1000 * MS;
        assert_eq!(cubic.window_bytes(), 32 * DATAGRAM);
        assert_eq!(cubic.pacing_bytes_per_s(), None);
        round(&mut cubic, &mut now_ns, 100);
        assert!((60_000..=64_000).contains(&cubic.window_bytes()));
        assert_eq!(
            cubic.pacing_bytes_per_s().unwrap() / 1000,
            cubic.window_bytes() / 100 * 200 / 100
        );
        let before = cubic.window_bytes();
        cubic.on_acked(&acked(now_ns + MS, 10_000, 100, false));
        assert_eq!(cubic.window_bytes(), before);
    }

    #[test]
    fn a_growing_round_trip_ends_slow_start_without_a_loss() {
        let mut cubic = Cubic::new(DATAGRAM);
        let mut now_ns = 1000 * MS;
        for at in 0..40 {
            round(&mut cubic, &mut now_ns, 100 + 20 * at.min(6));
        }
        assert!(cubic.threshold.is_finite());
        assert!(cubic.window_bytes() < 10_000 * DATAGRAM);
        let mut level = Cubic::new(DATAGRAM);
        (0..8).for_each(|_| round(&mut level, &mut now_ns, 100));
        assert!(
            level.threshold.is_infinite(),
            "a level round trip is no sign"
        );
    }

    #[test]
    fn one_loss_per_round_and_the_curve_comes_back_to_where_it_lost() {
        let mut cubic = Cubic::new(DATAGRAM);
        let mut now_ns = 1000 * MS;
        for _ in 0..6 {
            round(&mut cubic, &mut now_ns, 100);
        }
        let full = cubic.window_bytes();
        cubic.on_lost(&losses(now_ns, now_ns - 100 * MS, 1));
        let cut = cubic.window_bytes();
        assert_eq!(cut, (full as f64 * BETA) as u64);
        cubic.on_lost(&losses(now_ns + 50 * MS, now_ns - MS, 20));
        assert_eq!(cubic.window_bytes(), cut, "the same congestion counts once");
        now_ns += 100 * MS;
        // RFC 9438: back at the old maximum after K seconds, flat around it, and faster beyond.
        let k_s = ((full - cut) as f64 / DATAGRAM as f64 / C).cbrt();
        let mut sizes = vec![cubic.window_bytes()];
        for _ in 0..(k_s * 10.0) as u64 {
            round(&mut cubic, &mut now_ns, 100);
            sizes.push(cubic.window_bytes());
        }
        let back = *sizes.last().unwrap() as f64 / full as f64;
        assert!((0.95..1.05).contains(&back), "{back}");
        let grown = |pair: &[u64]| pair[1] - pair[0];
        let steps: Vec<_> = sizes.windows(2).map(grown).collect();
        assert!(steps[2] > 4 * steps[steps.len() - 3], "concave: {steps:?}");
        for _ in 0..80 {
            round(&mut cubic, &mut now_ns, 100);
        }
        assert!(
            cubic.window_bytes() as f64 > 1.05 * full as f64,
            "convex beyond"
        );
    }

    #[test]
    fn late_packets_give_the_window_back_once_all_are_there() {
        let mut cubic = Cubic::new(DATAGRAM);
        let mut now_ns = 1000 * MS;
        round(&mut cubic, &mut now_ns, 100);
        let before = cubic.window_bytes();
        cubic.on_lost(&losses(now_ns, now_ns - 100 * MS, 2));
        cubic.on_lost(&losses(now_ns, now_ns - 90 * MS, 1));
        cubic.on_spurious(2);
        assert!(cubic.window_bytes() < before);
        cubic.on_spurious(1);
        assert_eq!(cubic.window_bytes(), before);
        cubic.on_lost(&losses(now_ns + MS, now_ns, 1));
        assert!(cubic.window_bytes() < before, "a real one counts");
    }

    #[test]
    fn silence_leaves_the_least_window_and_slow_start() {
        let mut cubic = Cubic::new(DATAGRAM);
        let mut now_ns = 1000 * MS;
        round(&mut cubic, &mut now_ns, 100);
        cubic.on_lost(&Losses {
            persistent: true,
            ..losses(now_ns, now_ns - 100 * MS, 5)
        });
        assert_eq!(cubic.window_bytes(), WINDOW_MIN_DATAGRAMS * DATAGRAM);
        round(&mut cubic, &mut now_ns, 100);
        assert!(cubic.window_bytes() > 7 * DATAGRAM);
        for _ in 0..100 {
            now_ns += MS;
            cubic.on_lost(&losses(now_ns, now_ns, 1));
        }
        assert_eq!(cubic.window_bytes(), WINDOW_MIN_DATAGRAMS * DATAGRAM);
    }
}
