//! BBR: keeps to the rate that the path delivers and the round trip that it has when empty.
//!
//! Comes in: acknowledgements with delivery rates, and losses. Goes out: a rate around the path's, and a
//! window of about two bandwidth-delay products. After Cardwell, Cheng, Gunn, Yeganeh and Jacobson,
//! "BBR: Congestion-Based Congestion Control" (ACM Queue 14-5, 2016), with two changes of its second
//! version: the round trip is probed at half a window, not at four packets, and a round that loses
//! more than [`LOSS_MAX_PERCENT`] lowers a ceiling on the window. Losses below that are held for noise.

use super::filter::WindowedMax;
use super::{
    Acked, Controller, Losses, WINDOW_INITIAL_DATAGRAMS, WINDOW_MIN_DATAGRAMS, product, rate,
};

/// 2 / ln 2, in percent: the least gain that doubles the rate every round.
const STARTUP_PERCENT: u64 = 289;
const DRAIN_PERCENT: u64 = 35;
/// Pacing in percent of the rate, a step per round trip: look for more, make up for it, cruise.
const CYCLE_PERCENT: [u64; 8] = [125, 75, 100, 100, 100, 100, 100, 100];
/// Window in percent of the bandwidth-delay product, once the path is known.
const WINDOW_PERCENT: u64 = 200;
/// Room for acknowledgements that come in lumps, in datagrams.
const LUMP_DATAGRAMS: u64 = 32;
/// Rounds that a rate counts.
const RATE_ROUNDS: u64 = 10;
/// Rounds without a quarter more: the path is full.
const FULL_ROUNDS: u32 = 3;
/// Age of the smallest round trip that makes it doubtful, and how long it is probed.
const RTT_AGE_NS: u64 = 10_000_000_000;
const RTT_PROBE_NS: u64 = 200_000_000;
/// Share of a round's packets whose loss is no noise any more.
const LOSS_MAX_PERCENT: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Doubles the rate every round.
    Startup,
    /// Empties the queue that this built.
    Drain,
    /// Keeps to the rate; step of the cycle, and when it began.
    Cruise { step: usize, since_ns: u64 },
    /// Lets queues drain so that the round trip shows.
    ProbeRtt { until_ns: u64 },
}

impl Mode {
    /// The cycle behind its first two steps: looking for more comes later.
    fn cruise(now_ns: u64) -> Self {
        Self::Cruise {
            step: 2,
            since_ns: now_ns,
        }
    }

    fn pacing_percent(self) -> u64 {
        match self {
            Self::Startup => STARTUP_PERCENT,
            Self::Drain => DRAIN_PERCENT,
            Self::Cruise { step, .. } => CYCLE_PERCENT[step],
            Self::ProbeRtt { .. } => 100,
        }
    }
}

/// One lane's BBR.
pub(in crate::reliable) struct Bbr {
    datagram_bytes: u64,
    mode: Mode,
    rate: WindowedMax,
    rtt_min_ns: u64,
    rtt_min_at_ns: u64,
    round: u64,
    /// The round ends when this much was delivered before a packet was sent.
    round_delivered: u64,
    delivered_at_round: u64,
    lost_in_round: u64,
    /// Best rate of startup, and the rounds since.
    full_rate: u64,
    full_rounds: u32,
    window: u64,
    ceiling: Option<u64>,
    pacing_bytes_per_s: Option<u64>,
}

impl Bbr {
    pub(in crate::reliable) fn new(datagram_bytes: u64) -> Self {
        Self {
            datagram_bytes,
            mode: Mode::Startup,
            rate: WindowedMax::new(RATE_ROUNDS),
            rtt_min_ns: 0,
            rtt_min_at_ns: 0,
            round: 0,
            round_delivered: 0,
            delivered_at_round: 0,
            lost_in_round: 0,
            full_rate: 0,
            full_rounds: 0,
            window: WINDOW_INITIAL_DATAGRAMS * datagram_bytes,
            ceiling: None,
            pacing_bytes_per_s: None,
        }
    }

    fn window_min(&self) -> u64 {
        WINDOW_MIN_DATAGRAMS * self.datagram_bytes
    }

    /// The bandwidth-delay product; none before there is a rate.
    fn product(&self) -> Option<u64> {
        (self.rate.get() > 0).then(|| product(self.rate.get(), self.rtt_min_ns))
    }

    fn path_is_full(&self) -> bool {
        self.full_rounds >= FULL_ROUNDS
    }

    /// Returns whether a round trip ended.
    fn count_round(&mut self, acked: &Acked) -> bool {
        if acked.prior_delivered < self.round_delivered {
            return false;
        }
        self.round_delivered = acked.delivered;
        self.round += 1;
        let delivered = acked.delivered - self.delivered_at_round;
        let all = delivered + self.lost_in_round;
        if self.lost_in_round * 100 > all * LOSS_MAX_PERCENT {
            self.ceiling = Some((self.window / 10 * 7).max(self.window_min()));
            self.full_rounds = FULL_ROUNDS;
        } else if let Some(ceiling) = self.ceiling {
            let raised = ceiling + ceiling / 4;
            self.ceiling = (raised < 2 * self.target()).then_some(raised);
        }
        self.delivered_at_round = acked.delivered;
        self.lost_in_round = 0;
        true
    }

    fn watch_for_a_full_path(&mut self, app_limited: bool) {
        if self.path_is_full() || app_limited {
            return;
        }
        if self.rate.get() >= self.full_rate + self.full_rate / 4 {
            self.full_rate = self.rate.get();
            self.full_rounds = 0;
        } else {
            self.full_rounds += 1;
        }
    }

    fn step(&mut self, acked: &Acked) {
        let product = self.product().unwrap_or(self.window);
        let now_ns = acked.now_ns;
        match self.mode {
            Mode::Startup if self.path_is_full() => self.mode = Mode::Drain,
            Mode::Drain if acked.in_flight_bytes <= product => self.mode = Mode::cruise(now_ns),
            Mode::Cruise { step, since_ns } => {
                let elapsed = now_ns.saturating_sub(since_ns) > self.rtt_min_ns;
                let done = match CYCLE_PERCENT[step] {
                    125 => {
                        let filled = acked.in_flight_bytes >= product / 4 * 5;
                        elapsed && (filled || self.lost_in_round > 0 || !acked.window_limited)
                    }
                    75 => elapsed || acked.in_flight_bytes <= product,
                    _ => elapsed,
                };
                if done {
                    self.mode = Mode::Cruise {
                        step: (step + 1) % CYCLE_PERCENT.len(),
                        since_ns: now_ns,
                    };
                }
            }
            Mode::ProbeRtt { until_ns } if now_ns >= until_ns => {
                self.rtt_min_at_ns = now_ns;
                self.mode = if self.path_is_full() {
                    Mode::cruise(now_ns)
                } else {
                    Mode::Startup
                };
            }
            _ => {}
        }
    }

    fn watch_the_round_trip(&mut self, acked: &Acked) {
        let old = acked.now_ns.saturating_sub(self.rtt_min_at_ns) > RTT_AGE_NS;
        if self.rtt_min_ns == 0 || acked.rtt_latest_ns <= self.rtt_min_ns || old {
            let known = self.rtt_min_ns > 0;
            self.rtt_min_ns = acked.rtt_latest_ns;
            self.rtt_min_at_ns = acked.now_ns;
            if old && known {
                let probe_ns = RTT_PROBE_NS.max(acked.rtt_smoothed_ns);
                self.mode = Mode::ProbeRtt {
                    until_ns: acked.now_ns + probe_ns,
                };
            }
        }
    }

    fn pace(&mut self, acked: &Acked) {
        let percent = self.mode.pacing_percent();
        let wanted = (self.rate.get() / 100 * percent).max(self.datagram_bytes);
        let before = self
            .pacing_bytes_per_s
            .unwrap_or_else(|| rate(self.window, acked.rtt_smoothed_ns) / 100 * STARTUP_PERCENT);
        // Until the path is full, a low rate tells of the sender, not of the path.
        self.pacing_bytes_per_s = Some(if self.path_is_full() {
            wanted
        } else {
            wanted.max(before)
        });
    }

    /// The window for the rate and the round trip.
    fn target(&self) -> u64 {
        let percent = match self.mode {
            Mode::Startup | Mode::Drain => STARTUP_PERCENT,
            Mode::Cruise { .. } => WINDOW_PERCENT,
            Mode::ProbeRtt { .. } => 50,
        };
        let lump = LUMP_DATAGRAMS * self.datagram_bytes;
        self.product()
            .map_or(u64::MAX / 4, |product| product / 100 * percent + lump)
            .max(self.window_min())
    }
}

impl Controller for Bbr {
    fn on_acked(&mut self, acked: &Acked) {
        let round_ended = self.count_round(acked);
        if let Some(sample) = acked.rate
            && (!sample.app_limited || sample.bytes_per_s >= self.rate.get())
        {
            self.rate.update(self.round, sample.bytes_per_s);
        }
        if round_ended {
            self.watch_for_a_full_path(acked.rate.is_none_or(|sample| sample.app_limited));
        }
        self.watch_the_round_trip(acked);
        self.step(acked);
        self.pace(acked);
        let target = self.target();
        if self.path_is_full() {
            self.window = target.min(self.window + acked.bytes);
        } else if self.window < target {
            self.window += acked.bytes;
        }
        self.window = self.window.max(self.window_min());
    }

    fn on_lost(&mut self, losses: &Losses) {
        self.lost_in_round += losses.bytes;
        if losses.persistent {
            self.window = self.window_min();
        }
    }

    fn on_spurious(&mut self, packets: u32) {
        let bytes = u64::from(packets) * self.datagram_bytes;
        self.lost_in_round = self.lost_in_round.saturating_sub(bytes);
    }

    fn window_bytes(&self) -> u64 {
        self.ceiling
            .map_or(self.window, |ceiling| ceiling.min(self.window))
    }

    fn pacing_bytes_per_s(&self) -> Option<u64> {
        self.pacing_bytes_per_s
    }

    fn name(&self) -> &'static str {
        "bbr"
    }
}
