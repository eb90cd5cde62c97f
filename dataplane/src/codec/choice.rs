//! Which method gets a batch across soonest, from rates measured on the batches before.
//!
//! In: the wire's state with each batch ([`EncodeHint`]), and after each batch its size, payload and
//! encode time. Out: a [`Choice`] that says why. Promises: no clock and no randomness inside, so the
//! same inputs choose the same; a few additions per method and batch; nothing is tried out on a batch
//! that a guest waits for, and what trying out costs stays under a few percent.
//!
//! The model: a batch of `n` raw bytes takes `n / speed` to encode and `n * ratio / link` on the wire.
//! While batches follow each other both go on at once and the slower of the two counts; for a batch
//! that a guest waits for they add up, except for the time that the wire is busy with a backlog anyway.

use super::Method;

/// What the caller knows about the wire and the machine when it encodes a batch.
#[derive(Clone, Copy, Debug)]
pub struct EncodeHint {
    /// Rate at which the wire took bytes while it had some to take; `None` until measured.
    pub link_bytes_per_s: Option<u64>,
    /// Encoded bytes that wait for the wire before this batch.
    pub backlog_bytes: u64,
    /// Cores with nothing to do, not counting the caller's. At 0 the kernel's transmit work is taken
    /// to run on the caller's core too.
    pub idle_cores_hint: u32,
    /// The guest stands still until this batch is across.
    pub latency_critical: bool,
    /// The caller can send the raw bytes from where they are: see
    /// [`Encoded::raw_as_is`](super::Encoded::raw_as_is).
    pub accepts_raw_as_is: bool,
    /// How much work bytes are worth on this path.
    pub effort: Effort,
}

/// How much work bytes are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Little: no compression beyond zstd's first level, whatever the wire seems to carry at the moment.
    Light,
    /// What the measured rates say.
    #[default]
    Measured,
    /// Much: of two ways that take about as long, the one with fewer bytes.
    Aggressive,
}

impl Default for EncodeHint {
    fn default() -> Self {
        Self {
            link_bytes_per_s: None,
            backlog_bytes: 0,
            idle_cores_hint: 1,
            latency_critical: false,
            accepts_raw_as_is: false,
            effort: Effort::default(),
        }
    }
}

/// What was chosen for a batch, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The method.
    pub method: Method,
    /// The compression level, for [`Method::Zstd`]; else 0.
    pub level: i32,
    /// Why.
    pub reason: ChoiceReason,
}

/// Why a method was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChoiceReason {
    /// Version 1 has one way.
    Version1,
    /// A few bytes without pages: nothing to gain.
    SmallBatch,
    /// The wire was not measured yet.
    LinkUnknown,
    /// Its estimate is the best.
    Soonest,
    /// Another is estimated a little better, too little to switch.
    Hysteresis,
    /// Its estimate is old and is being renewed.
    Probe,
}

/// Under this, and without pages, a batch goes as it is.
const SMALL_BYTES: usize = 1024;
/// Shorter batches tell little about speed.
const LEARN_BYTES_MIN: usize = 16 * 1024;
/// Weight of the newest batch in a method's averages.
const NEWEST: f64 = 0.25;
/// What one core copies into the kernel's socket buffers, in bytes per second.
const TRANSMIT_BYTES_PER_S: f64 = 3e9;
/// Another method must be this much better to be switched to.
const SWITCH_GAIN: f64 = 0.92;
/// Weight of the faster of encoding and wire: of two equal maxima the smaller sum is better.
const HIDDEN_WEIGHT: f64 = 0.05;
/// What a byte on the wire costs beside its time where effort is aggressive, as a share of that time.
const BYTES_WEIGHT: f64 = 0.25;
/// The highest level of zstd where effort is light.
const LIGHT_LEVEL_MAX: i32 = 1;
/// Batches from one probe to the next, whatever their methods.
const PROBE_SPACING: u64 = 16;
/// Batches until an estimate counts as old, at least and at most.
const PROBE_AFTER_MIN: f64 = 64.0;
const PROBE_AFTER_MAX: f64 = 8192.0;
/// A probe that takes `k` times as long as the best method waits `k` times this many batches.
const PROBE_AFTER_PER_COST: f64 = 50.0;

/// zstd levels worth telling apart.
const ZSTD_LEVELS: [i32; 4] = [1, 3, 6, 9];

struct Arm {
    method: Method,
    level: i32,
    encode_bytes_per_s: f64,
    ratio: f64,
    used_at: u64,
}

/// The state behind the choice.
pub(super) struct Chooser {
    arms: Vec<Arm>,
    current: usize,
    batches: u64,
    probed_at: u64,
}

impl Chooser {
    /// Knows nothing yet but common speeds. The levels are bounds, in order.
    pub(super) fn new(zstd_level_min: i32, zstd_level_max: i32) -> Self {
        let arm = |method, level, encode_bytes_per_s, ratio| Arm {
            method,
            level,
            encode_bytes_per_s,
            ratio,
            used_at: 0,
        };
        let mut arms = vec![
            arm(Method::Passthrough, 0, 8e9, 1.0),
            arm(Method::Stored, 0, 2e9, 0.95),
            arm(Method::Lz4, 0, 0.6e9, 0.55),
        ];
        let bounds = zstd_level_min..=zstd_level_max;
        let mut levels: Vec<i32> = ZSTD_LEVELS
            .into_iter()
            .filter(|level| bounds.contains(level))
            .collect();
        if levels.is_empty() {
            levels.push(zstd_level_min);
        }
        for level in levels {
            let speed = 0.35e9 / f64::from(level).powf(0.9);
            arms.push(arm(
                Method::Zstd,
                level,
                speed,
                0.45 - 0.01 * f64::from(level),
            ));
        }
        Self {
            arms,
            current: 2,
            batches: 0,
            probed_at: 0,
        }
    }

    /// Seconds that a raw byte takes with `arm`.
    fn cost(arm: &Arm, hint: &EncodeHint, link_bytes_per_s: f64, raw_len: f64) -> f64 {
        let free = arm.method == Method::Passthrough && hint.accepts_raw_as_is;
        let mut encode = if free {
            0.0
        } else {
            1.0 / arm.encode_bytes_per_s
        };
        let wire = arm.ratio / link_bytes_per_s;
        if hint.idle_cores_hint == 0 {
            encode += arm.ratio / TRANSMIT_BYTES_PER_S;
        }
        let bytes = if hint.effort == Effort::Aggressive {
            BYTES_WEIGHT * wire
        } else {
            0.0
        };
        if hint.latency_critical {
            let busy = hint.backlog_bytes as f64 / link_bytes_per_s / raw_len;
            encode.max(busy) + wire
        } else {
            encode.max(wire) + HIDDEN_WEIGHT * encode.min(wire) + bytes
        }
    }

    /// May a batch with this hint go by `arm`?
    const fn is_open(arm: &Arm, hint: &EncodeHint) -> bool {
        !matches!(hint.effort, Effort::Light) || arm.level <= LIGHT_LEVEL_MAX
    }

    /// Chooses for a batch of `raw_len` bytes.
    pub(super) fn choose(&mut self, hint: &EncodeHint, raw_len: usize, has_pages: bool) -> Choice {
        if raw_len <= SMALL_BYTES && !has_pages {
            let reason = ChoiceReason::SmallBatch;
            return Choice {
                method: Method::Passthrough,
                level: 0,
                reason,
            };
        }
        self.batches += 1;
        let Some(link) = hint.link_bytes_per_s else {
            let reason = ChoiceReason::LinkUnknown;
            let unknown = match hint.effort {
                Effort::Aggressive => Method::Zstd,
                Effort::Light | Effort::Measured => Method::Lz4,
            };
            // The levels are in order, and the first is the fastest.
            let level = self
                .arms
                .iter()
                .find(|arm| arm.method == unknown)
                .map_or(0, |arm| arm.level);
            return Choice {
                method: unknown,
                level,
                reason,
            };
        };
        let link = link.max(1) as f64;
        let cost = |arm: &Arm| Self::cost(arm, hint, link, raw_len.max(1) as f64);
        let mut best = 0;
        for (i, arm) in self.arms.iter().enumerate() {
            if Self::is_open(arm, hint) && cost(arm) < cost(&self.arms[best]) {
                best = i;
            }
        }
        let best_cost = cost(&self.arms[best]);
        let mut reason = ChoiceReason::Soonest;
        if best != self.current {
            // Where a guest waits there is no next batch for which staying would pay.
            let current = &self.arms[self.current];
            let switch = hint.latency_critical
                || !Self::is_open(current, hint)
                || best_cost < SWITCH_GAIN * cost(current);
            if switch {
                self.current = best;
            } else {
                reason = ChoiceReason::Hysteresis;
            }
        }
        let mut chosen = self.current;
        if !hint.latency_critical && self.batches >= self.probed_at + PROBE_SPACING {
            let old = self.arms.iter().enumerate().position(|(i, arm)| {
                let after = (PROBE_AFTER_PER_COST * cost(arm) / best_cost)
                    .clamp(PROBE_AFTER_MIN, PROBE_AFTER_MAX);
                // Passing through has nothing to learn.
                i != self.current
                    && Self::is_open(arm, hint)
                    && arm.method != Method::Passthrough
                    && (self.batches - arm.used_at) as f64 >= after
            });
            if let Some(old) = old {
                chosen = old;
                self.probed_at = self.batches;
                reason = ChoiceReason::Probe;
            }
        }
        let arm = &mut self.arms[chosen];
        arm.used_at = self.batches;
        Choice {
            method: arm.method,
            level: arm.level,
            reason,
        }
    }

    /// Learns from a batch that was encoded as `choice` says.
    pub(super) fn observe(
        &mut self,
        choice: Choice,
        raw_len: usize,
        payload_len: usize,
        encode_s: f64,
    ) {
        if raw_len < LEARN_BYTES_MIN || encode_s <= 0.0 {
            return;
        }
        let arm = |arm: &&mut Arm| arm.method == choice.method && arm.level == choice.level;
        if let Some(arm) = self.arms.iter_mut().find(arm) {
            // Averages of seconds and bytes per raw byte: times add up, speeds do not.
            let encode =
                NEWEST * encode_s / raw_len as f64 + (1.0 - NEWEST) / arm.encode_bytes_per_s;
            arm.encode_bytes_per_s = 1.0 / encode;
            let ratio = payload_len as f64 / raw_len as f64;
            arm.ratio = NEWEST * ratio + (1.0 - NEWEST) * arm.ratio;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 256 * 1024;

    /// True speed and ratio of a method on the data at hand.
    fn truth(choice: Choice) -> (f64, f64) {
        match (choice.method, choice.level) {
            (Method::Passthrough, _) => (8e9, 1.0),
            (Method::Stored, _) => (2e9, 0.9),
            (Method::Lz4, _) => (0.6e9, 0.5),
            (Method::Zstd, 1) => (0.35e9, 0.35),
            (Method::Zstd, 3) => (0.2e9, 0.33),
            _ => (0.04e9, 0.30),
        }
    }

    fn run(chooser: &mut Chooser, hint: &EncodeHint, batches: usize) -> Vec<Choice> {
        (0..batches)
            .map(|_| {
                let choice = chooser.choose(hint, BATCH, true);
                let (speed, ratio) = truth(choice);
                let encode_s = BATCH as f64 / speed;
                chooser.observe(choice, BATCH, (BATCH as f64 * ratio) as usize, encode_s);
                choice
            })
            .collect()
    }

    fn hint(link_bytes_per_s: u64) -> EncodeHint {
        EncodeHint {
            link_bytes_per_s: Some(link_bytes_per_s),
            ..EncodeHint::default()
        }
    }

    fn most_used(choices: &[Choice]) -> (Method, i32) {
        let count = |of: &Choice| {
            choices
                .iter()
                .filter(|c| (c.method, c.level) == (of.method, of.level))
                .count()
        };
        let most = choices.iter().max_by_key(|choice| count(choice)).unwrap();
        (most.method, most.level)
    }

    #[test]
    fn each_link_gets_its_method() {
        let cases = [
            (6_000_000_000, (Method::Passthrough, 0)),
            (1_600_000_000, (Method::Stored, 0)),
            (300_000_000, (Method::Lz4, 0)),
            (100_000_000, (Method::Zstd, 1)),
            (5_000_000, (Method::Zstd, 6)),
        ];
        for (link, expected) in cases {
            let mut chooser = Chooser::new(1, 6);
            run(&mut chooser, &hint(link), 200);
            let choices = run(&mut chooser, &hint(link), 500);
            assert_eq!(most_used(&choices), expected, "{link} bytes/s");
            let probes = choices
                .iter()
                .filter(|c| c.reason == ChoiceReason::Probe)
                .count();
            assert!(probes <= 500 / PROBE_SPACING as usize, "{probes} probes");
        }
    }

    #[test]
    fn follows_a_link_that_changes() {
        let mut chooser = Chooser::new(1, 3);
        run(&mut chooser, &hint(20_000_000), 300);
        let choices = run(&mut chooser, &hint(8_000_000_000), 20);
        assert_eq!(most_used(&choices), (Method::Passthrough, 0));
        let choices = run(&mut chooser, &hint(20_000_000), 20);
        assert_eq!(most_used(&choices).0, Method::Zstd);
    }

    #[test]
    fn a_waiting_guest_sees_no_probe_and_the_sum_counts() {
        // Pipelined, LZ4 hides behind the wire; one batch alone pays for both.
        let link = hint(1_000_000_000);
        let critical = EncodeHint {
            latency_critical: true,
            ..link
        };
        let mut chooser = Chooser::new(1, 3);
        run(&mut chooser, &link, 300);
        let choices = run(&mut chooser, &critical, 300);
        assert!(choices.iter().all(|c| c.reason != ChoiceReason::Probe));
        assert_eq!(most_used(&choices), (Method::Passthrough, 0));
        // Behind a backlog the wire is busy anyway, and fewer bytes win.
        let behind = EncodeHint {
            backlog_bytes: 4 << 20,
            ..critical
        };
        assert_eq!(most_used(&run(&mut chooser, &behind, 50)).0, Method::Zstd);
    }

    #[test]
    fn light_effort_bounds_the_level_at_once_and_for_probes_too() {
        let thin = hint(5_000_000);
        let light = EncodeHint {
            effort: Effort::Light,
            ..thin
        };
        let mut chooser = Chooser::new(1, 6);
        assert_eq!(most_used(&run(&mut chooser, &thin, 300)).1, 6);
        let choices = run(&mut chooser, &light, 2_000);
        assert!(choices.iter().all(|choice| choice.level <= LIGHT_LEVEL_MAX));
        assert_eq!(most_used(&run(&mut chooser, &thin, 300)).1, 6);
    }

    #[test]
    fn aggressive_effort_prefers_fewer_bytes_where_time_is_about_equal() {
        // Of this wire a byte needs 3.03 ns with LZ4; zstd 1 encodes one in 2.86 ns, too small a gain to switch.
        let equal = hint(165_000_000);
        let aggressive = EncodeHint {
            effort: Effort::Aggressive,
            ..equal
        };
        let of = |hint: &EncodeHint| {
            let mut chooser = Chooser::new(1, 6);
            // Long enough to know all, on a wire for LZ4.
            run(&mut chooser, &self::hint(300_000_000), 2_000);
            most_used(&run(&mut chooser, hint, 300)).0
        };
        assert_eq!((of(&equal), of(&aggressive)), (Method::Lz4, Method::Zstd));
        // Time still counts most.
        let fast = EncodeHint {
            effort: Effort::Aggressive,
            ..hint(6_000_000_000)
        };
        assert_eq!(of(&fast), Method::Passthrough);
        let unknown = EncodeHint {
            effort: Effort::Aggressive,
            ..EncodeHint::default()
        };
        let choice = Chooser::new(1, 6).choose(&unknown, BATCH, true);
        assert_eq!((choice.method, choice.level), (Method::Zstd, 1));
    }

    #[test]
    fn a_small_gain_does_not_switch() {
        let mut chooser = Chooser::new(1, 3);
        let equal = 1_030_000_000;
        let mut switches = 0;
        run(&mut chooser, &hint(equal), 200);
        let mut last = chooser.current;
        for i in 0..400 {
            let wobble = if i % 2 == 0 { 10_000_000 } else { 0 };
            run(&mut chooser, &hint(equal + wobble), 1);
            switches += usize::from(chooser.current != last);
            last = chooser.current;
        }
        assert!(switches <= 1, "{switches} switches");
    }

    #[test]
    fn learns_that_the_data_changed() {
        let mut chooser = Chooser::new(1, 3);
        let link = hint(400_000_000);
        assert_eq!(most_used(&run(&mut chooser, &link, 300)).0, Method::Lz4);
        // Now nothing compresses.
        let mut last = Method::Lz4;
        for _ in 0..2000 {
            let choice = chooser.choose(&link, BATCH, true);
            chooser.observe(choice, BATCH, BATCH, BATCH as f64 / truth(choice).0);
            last = choice.method;
        }
        assert!(
            matches!(last, Method::Passthrough | Method::Stored),
            "{last:?}"
        );
    }

    #[test]
    fn the_unknown_and_the_small() {
        let mut chooser = Chooser::new(1, 3);
        let choice = chooser.choose(&EncodeHint::default(), BATCH, true);
        assert_eq!(
            (choice.method, choice.reason),
            (Method::Lz4, ChoiceReason::LinkUnknown)
        );
        let choice = chooser.choose(&hint(1), 40, false);
        assert_eq!(choice.reason, ChoiceReason::SmallBatch);
        assert_eq!(choice.method, Method::Passthrough);
    }
}
