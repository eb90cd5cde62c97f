//! How large a window is: about one bandwidth-delay product, found while running.
//!
//! In: the moment at which each batch entered the path, and the bytes that have left it at each ACK. Out: the
//! window in bytes, between a floor and a limit. Promise: what is held beyond the path's own delay is small,
//! for at switchover all of it becomes downtime; on a path without delay it covers 20 ms at the measured rate.
//!
//! On a near path the path begins where a batch is read and ends where the far hypervisor takes it, and bytes
//! are the hypervisor's. On a far path it is the network alone, and bytes are those on the wire: see
//! [`super::far`]. The model is BBR's (Cardwell et al., ACM Queue 14/5, 2016), over bytes delivered to the
//! hypervisor instead of bytes acknowledged by a host: the window is gain × maximum of delivery
//! rate × minimum of time from read to
//! delivery. Gain 2 until the rate stops growing, then 1.3. The
//! minimum ages: without a fresh one for 10 s the window halves for a moment to drain the queue,
//! else the queue that the window makes would itself be taken for the path's delay.

use std::collections::VecDeque;

use super::super::Nanos;

const STARTUP_GAIN_PERCENT: u64 = 200;
const CRUISE_GAIN_PERCENT: u64 = 130;
const PROBE_GAIN_PERCENT: u64 = 50;
/// A round must beat the best rate before by this much to count as growth.
const GROWTH_PERCENT: u64 = 125;
/// On a near path the window covers this much time: processors there pause for longer than the path
/// delays, and a window of a few batches would stand still with them.
const SLACK_NS: u64 = 20_000_000;
const ROUNDS_WITHOUT_GROWTH: u32 = 3;
const DELAY_AGES_NS: u64 = 10_000_000_000;
const PROBE_MIN_NS: u64 = 200_000_000;
const RATE_HALF_WINDOW_NS: u64 = 1_000_000_000;
const RATE_HALF_WINDOW_NS_MAX: u64 = 4_000_000_000;
/// Batches under observation; more are pushed without one.
const MAX_SAMPLES: usize = 512;

#[derive(Debug, Clone, Copy)]
struct Sample {
    pushed_total: u64,
    at: Nanos,
    delivered_then: u64,
    delivered_at: Nanos,
    /// When the newest batch that had left the path by then had entered it.
    since: Nanos,
    /// The hypervisor had nothing more to give: the rate says nothing about the path.
    source_limited: bool,
}

/// The largest rate of the last one to two half windows.
#[derive(Debug, Clone, Copy, Default)]
struct MaxRate {
    current: u64,
    previous: u64,
    turned_at: Nanos,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Startup {
        best_rate: u64,
        stale_rounds: u32,
    },
    Cruise,
    /// The window is small; the queue made before still has to leave the path.
    Drain {
        resume_startup: bool,
    },
    /// The queue has left: what is read from `from` on shows the path's own delay.
    Probe {
        from: Nanos,
        least_ns: Option<u64>,
        resume_startup: bool,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Window {
    floor_bytes: u64,
    limit_bytes: u64,
    phase: Phase,
    samples: VecDeque<Sample>,
    rate: MaxRate,
    delay_ns: Option<u64>,
    delay_at: Nanos,
    pushed_total: u64,
    delivered_total: u64,
    delivered_at: Nanos,
    /// When the newest batch that has left the path had entered it.
    newest_at: Nanos,
    round_ends_at: u64,
}

impl Window {
    /// Starts at the floor; never leaves `floor_bytes..=limit_bytes` (the limit wins).
    #[must_use]
    pub fn new(floor_bytes: u64, limit_bytes: u64, now: Nanos) -> Self {
        Self {
            floor_bytes: floor_bytes.min(limit_bytes),
            limit_bytes,
            phase: Phase::Startup {
                best_rate: 0,
                stale_rounds: 0,
            },
            samples: VecDeque::with_capacity(MAX_SAMPLES),
            rate: MaxRate {
                turned_at: now,
                ..MaxRate::default()
            },
            delay_ns: None,
            delay_at: now,
            pushed_total: 0,
            delivered_total: 0,
            delivered_at: now,
            newest_at: now,
            round_ends_at: 0,
        }
    }

    /// A batch of `bytes`, the first of them at `at`, entered the path while `held_bytes` were held in all.
    pub fn on_push(&mut self, bytes: u64, held_bytes: u64, at: Nanos) {
        if self.pushed_total == self.delivered_total {
            // Nothing was under way: the pause before is not part of the path's rate.
            self.delivered_at = self.delivered_at.max(at);
            self.newest_at = self.newest_at.max(at);
        }
        self.pushed_total += bytes;
        if bytes > 0 && self.samples.len() < MAX_SAMPLES {
            self.samples.push_back(Sample {
                pushed_total: self.pushed_total,
                at,
                delivered_then: self.delivered_total,
                delivered_at: self.delivered_at,
                since: self.newest_at,
                source_limited: held_bytes < self.bytes() / 2,
            });
        }
    }

    /// The path is another one: its rate is found out as at the beginning.
    pub fn begin_anew(&mut self) {
        self.phase = Phase::Startup {
            best_rate: 0,
            stale_rounds: 0,
        };
        self.rate = MaxRate {
            turned_at: self.rate.turned_at,
            ..MaxRate::default()
        };
        self.samples.clear();
    }

    /// The path's delay is known from elsewhere: it is not looked for here for a while.
    pub const fn set_delay(&mut self, delay_ns: u64, now: Nanos) {
        self.delay_ns = Some(delay_ns);
        self.delay_at = now;
    }

    /// `total_bytes` have left the path since the session began.
    pub fn on_delivered(&mut self, total_bytes: u64, now: Nanos) {
        if total_bytes > self.delivered_total {
            self.delivered_total = total_bytes;
            self.delivered_at = now;
            let mut newest = None;
            while let Some(sample) = self
                .samples
                .pop_front_if(|sample| sample.pushed_total <= total_bytes)
            {
                self.on_delay(sample, now);
                newest = Some(sample);
            }
            if let Some(sample) = newest {
                self.newest_at = self.newest_at.max(sample.at);
                self.on_rate(sample, now);
            }
            self.on_round();
        }
        self.on_time(now);
    }

    fn on_delay(&mut self, sample: Sample, now: Nanos) {
        let delay_ns = now.since(sample.at).max(1);
        if self.delay_ns.is_none_or(|least| delay_ns <= least) {
            self.delay_ns = Some(delay_ns);
            self.delay_at = now;
        }
        if let Phase::Probe { from, least_ns, .. } = &mut self.phase
            && sample.at >= *from
        {
            *least_ns = Some(least_ns.map_or(delay_ns, |least| least.min(delay_ns)));
        }
    }

    fn on_rate(&mut self, sample: Sample, now: Nanos) {
        // Deliveries come in bursts; over less than one delay a burst would pass for the rate, and so would
        // what a far end that paused tells at once, unless it also entered the path in so short a time.
        let span_ns = now
            .since(sample.delivered_at)
            .max(sample.at.since(sample.since))
            .max(self.delay_ns.unwrap_or(1))
            .max(1);
        let bytes = u128::from(self.delivered_total - sample.delivered_then);
        let rate = u64::try_from(bytes * 1_000_000_000 / u128::from(span_ns)).unwrap_or(u64::MAX);
        let draining = matches!(self.phase, Phase::Drain { .. } | Phase::Probe { .. });
        if (sample.source_limited || draining) && rate <= self.rate.max() {
            return;
        }
        let half_ns = self
            .delay_ns
            .map_or(0, |delay_ns| delay_ns.saturating_mul(8))
            .clamp(RATE_HALF_WINDOW_NS, RATE_HALF_WINDOW_NS_MAX);
        if now.since(self.rate.turned_at) > half_ns {
            self.rate.previous = std::mem::take(&mut self.rate.current);
            self.rate.turned_at = now;
        }
        self.rate.current = self.rate.current.max(rate);
    }

    fn on_round(&mut self) {
        if self.delivered_total < self.round_ends_at {
            return;
        }
        self.round_ends_at = self.pushed_total;
        let rate = self.rate.max();
        if let Phase::Startup {
            best_rate,
            stale_rounds,
        } = self.phase
        {
            self.phase = if rate.saturating_mul(100) >= best_rate.saturating_mul(GROWTH_PERCENT) {
                Phase::Startup {
                    best_rate: rate,
                    stale_rounds: 0,
                }
            } else if stale_rounds + 1 < ROUNDS_WITHOUT_GROWTH {
                Phase::Startup {
                    best_rate,
                    stale_rounds: stale_rounds + 1,
                }
            } else {
                Phase::Cruise
            };
        }
    }

    fn on_time(&mut self, now: Nanos) {
        let under_way = self.pushed_total - self.delivered_total;
        match self.phase {
            Phase::Startup { .. } | Phase::Cruise => {
                let aged = now.since(self.delay_at) > DELAY_AGES_NS;
                if aged && under_way > 0 {
                    let resume_startup = matches!(self.phase, Phase::Startup { .. });
                    self.phase = Phase::Drain { resume_startup };
                }
            }
            Phase::Drain { resume_startup } if under_way <= self.bytes() => {
                self.phase = Phase::Probe {
                    from: now,
                    least_ns: None,
                    resume_startup,
                };
            }
            Phase::Probe {
                from,
                least_ns: Some(least_ns),
                resume_startup,
            } if now.since(from) > PROBE_MIN_NS => {
                self.delay_ns = Some(least_ns);
                self.delay_at = now;
                self.phase = if resume_startup {
                    Phase::Startup {
                        best_rate: 0,
                        stale_rounds: 0,
                    }
                } else {
                    Phase::Cruise
                };
            }
            Phase::Drain { .. } | Phase::Probe { .. } => {}
        }
    }

    /// The window now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let Some(delay_ns) = self.delay_ns else {
            return self.floor_bytes;
        };
        let gain_percent = match self.phase {
            Phase::Startup { .. } => STARTUP_GAIN_PERCENT,
            Phase::Cruise => CRUISE_GAIN_PERCENT,
            Phase::Drain { .. } | Phase::Probe { .. } => PROBE_GAIN_PERCENT,
        };
        let product = u128::from(self.rate.max()) * u128::from(delay_ns) * u128::from(gain_percent)
            / 100_000_000_000;
        let slack = match self.phase {
            Phase::Startup { .. } | Phase::Cruise => {
                u128::from(self.rate.max()) * u128::from(SLACK_NS) / 1_000_000_000
            }
            // The queue must drain, or its delay would be taken for the path's.
            Phase::Drain { .. } | Phase::Probe { .. } => 0,
        };
        u64::try_from(product.max(slack))
            .unwrap_or(u64::MAX)
            .clamp(self.floor_bytes, self.limit_bytes)
    }

    /// Bytes a second that leave the path at best.
    #[must_use]
    pub fn delivery_rate_bytes_s(&self) -> u64 {
        self.rate.max()
    }

    /// The path is known to carry no more than was seen.
    pub const fn end_startup(&mut self) {
        if matches!(self.phase, Phase::Startup { .. }) {
            self.phase = Phase::Cruise;
        }
    }

    /// Does the rate still grow, so that the path may carry more than was seen?
    #[must_use]
    pub const fn is_starting(&self) -> bool {
        matches!(
            self.phase,
            Phase::Startup { .. }
                | Phase::Drain {
                    resume_startup: true
                }
                | Phase::Probe {
                    resume_startup: true,
                    ..
                }
        )
    }
}

impl MaxRate {
    fn max(self) -> u64 {
        self.current.max(self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const FLOOR: u64 = 1 << 20;
    const LIMIT: u64 = 256 << 20;

    /// A source that always fills the window, a link of `rate` bytes a second with `delay_ns` both
    /// ways together. Returns (window at the end, bytes delivered, largest held).
    fn run(window: &mut Window, from: Nanos, span_ms: u64, rate: u64, delay_ns: u64) -> (u64, u64) {
        const BATCH: u64 = 64 * 1024;
        let mut in_link: VecDeque<(Nanos, u64)> = VecDeque::new();
        let mut link_free_at = from;
        let (mut pushed, mut delivered) = (window.pushed_total, window.delivered_total);
        let start = delivered;
        let mut largest_held = 0;
        for step in 0..span_ms * 10 {
            let now = from.plus(step * MS / 10);
            while let Some((_, bytes)) = in_link.pop_front_if(|(at, _)| *at <= now) {
                delivered += bytes;
                window.on_delivered(delivered, now);
            }
            while pushed - delivered + BATCH <= window.bytes() {
                pushed += BATCH;
                window.on_push(BATCH, pushed - delivered, now);
                let free = link_free_at.max(now).plus(BATCH * 1_000_000_000 / rate);
                link_free_at = free;
                in_link.push_back((free.plus(delay_ns), BATCH));
            }
            largest_held = largest_held.max(pushed - delivered);
        }
        for (at, bytes) in in_link {
            delivered += bytes;
            window.on_delivered(delivered, at);
        }
        (delivered - start, largest_held)
    }

    #[test]
    fn a_long_path_is_filled_and_little_more_is_held() {
        // 1 Gbit/s over 100 ms: 12.5 MB are on the path.
        let (rate, delay_ns) = (125_000_000, 100 * MS);
        let mut window = Window::new(FLOOR, LIMIT, Nanos(0));
        run(&mut window, Nanos(0), 5_000, rate, delay_ns);
        let (delivered, held) = run(&mut window, Nanos(6_000 * MS), 40_000, rate, delay_ns);
        assert!(delivered > rate * 40 * 85 / 100, "{delivered}");
        let product = rate / 10;
        assert!(held < product * 2, "{held}");
        assert!(window.bytes() > product, "{}", window.bytes());
    }

    #[test]
    fn a_path_without_delay_holds_the_slack_and_no_more() {
        let mut window = Window::new(FLOOR, LIMIT, Nanos(0));
        let rate = 1_000_000_000;
        let (delivered, held) = run(&mut window, Nanos(0), 20_000, rate, 50_000);
        assert!(delivered > rate * 20 * 95 / 100, "{delivered}");
        assert!(held <= rate / 40, "{held}: more than 25 ms");
    }

    #[test]
    fn the_window_follows_a_path_that_becomes_slower_and_longer() {
        let mut window = Window::new(FLOOR, LIMIT, Nanos(0));
        run(&mut window, Nanos(0), 5_000, 1_000_000_000, 20 * MS);
        assert!(window.bytes() > 10 << 20, "{}", window.bytes());
        let later = Nanos(6_000 * MS);
        let (rate, delay_ns) = (12_500_000, 200 * MS);
        run(&mut window, later, 40_000, rate, delay_ns);
        let (delivered, held) = run(&mut window, later.plus(41_000 * MS), 30_000, rate, delay_ns);
        assert!(delivered > rate * 30 * 80 / 100, "{delivered}");
        assert!(held < 8 << 20, "{held}");
    }

    #[test]
    fn never_over_the_limit_nor_under_the_floor() {
        let mut window = Window::new(FLOOR, 2 << 20, Nanos(0));
        let (_, held) = run(&mut window, Nanos(0), 3_000, 1_000_000_000, 100 * MS);
        assert!(held <= 2 << 20, "{held}");
        assert_eq!(Window::new(FLOOR, 1000, Nanos(0)).bytes(), 1000);
    }
}
