//! Which method gets a batch across soonest, from rates measured on the batches before.
//!
//! In: the wire's state with each batch ([`EncodeHint`]), what classification left of it and how random that
//! looks; after each batch its payload and the time it took. Out: a [`Choice`] that says why. Promises: no
//! clock and no randomness inside, so the same inputs choose the same; a few additions per method and batch;
//! nothing is tried out on a batch that a guest waits for, and what trying out costs stays under a few
//! percent.
//!
//! The model: while batches follow each other, encoding and wire go on at once and the slower of the two counts;
//! for a batch that a guest waits for they add up, except for the time that the wire is busy with a backlog
//! anyway. Both are reckoned for what is left of this very batch, by rates of its kind. (Mixing methods so
//! that core and wire are both always busy gains nothing where so little is queued between them.)

use super::Method;
use super::rates::{Content, Kind, Own};

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
    /// How many senders share a core that encodes: 1 where each has one to itself.
    pub crowd: f32,
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
            crowd: 1.0,
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
    /// Its estimate is old and is being renewed.
    Probe,
}

/// Under this, and without pages, a batch goes as it is.
const SMALL_BYTES: usize = 1024;
/// Shorter batches tell little about speed.
const LEARN_BYTES_MIN: usize = 16 * 1024;
/// Weight of the newest batch in averages over all methods.
const NEWEST: f64 = 0.1;
/// What one core copies into the kernel's socket buffers, in bytes per second.
const TRANSMIT_BYTES_PER_S: f64 = 3e9;
/// What one core copies when the raw bytes cannot be sent from where they are.
const COPY_BYTES_PER_S: f64 = 8e9;
/// Weight of the faster of encoding and wire: of two equal maxima the smaller sum is better.
const HIDDEN_WEIGHT: f64 = 0.05;
/// What a byte on the wire costs beside its time where effort is aggressive, as a share of that time.
const BYTES_WEIGHT: f64 = 0.25;
/// The highest level of zstd where effort is light.
const LIGHT_LEVEL_MAX: i32 = 1;
/// What a batch has beside its sections, in bytes.
const FRAMING_BYTES: f64 = 60.0;
/// Batches from one probe to the next, whatever their methods.
const PROBE_SPACING: u64 = 16;
/// Batches until an estimate counts as old, at least and at most.
const PROBE_AFTER_MIN: f64 = 48.0;
const PROBE_AFTER_MAX: f64 = 8192.0;
/// A probe that takes `k` times as long as the best method waits `k - 1` times this many batches more; the
/// first one of a method, whose rates are guesses, fewer, but so many that a guest of a few hundred batches over a
/// fast line is not kept waiting for methods that are far too slow for it.
const PROBE_AFTER_PER_TIME: f64 = 600.0;
const PROBE_FIRST_PER_TIME: f64 = 300.0;

/// zstd levels worth telling apart, with the speed and the share left that are common on guests' pages.
const ZSTD_LEVELS: [(i32, f64, f64); 5] = [
    (1, 0.5e9, 0.36),
    (3, 0.25e9, 0.31),
    (6, 0.08e9, 0.30),
    (9, 0.055e9, 0.295),
    (12, 0.035e9, 0.29),
];

/// The method that others are compared with, zstd's first level: seconds by byte and share left.
const REFERENCE: (f64, f64) = (1.0 / 0.5e9, 0.36);

struct Arm {
    method: Method,
    level: i32,
    own: Own,
    used_at: u64,
}

/// What classification left of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classed {
    /// Bytes in its sections.
    pub(super) clear_bytes: usize,
    /// How random it looks.
    pub(super) kind: Kind,
    /// What classification took.
    pub(super) classify_s: f64,
}

/// The state behind the choice.
pub(super) struct Chooser {
    arms: Vec<Arm>,
    /// What the bytes at hand are like.
    content: Content,
    batches: u64,
    probed_at: u64,
    /// What classification took by raw byte, and how many bytes it left.
    classify_s: f64,
    clear_share: f64,
    /// The kind of the last batch.
    kind: Kind,
    /// The wire with the last batch.
    link: Option<f64>,
}

impl Chooser {
    /// Knows nothing yet but common speeds. The levels are bounds, in order.
    pub(super) fn new(zstd_level_min: i32, zstd_level_max: i32) -> Self {
        let arm = |method, level, bytes_per_s: f64, ratio| Arm {
            method,
            level,
            own: Own::guessed(1.0 / bytes_per_s, ratio, REFERENCE),
            used_at: 0,
        };
        let mut arms = vec![
            arm(Method::Stored, 0, 8e9, 1.0),
            arm(Method::Lz4, 0, 0.8e9, 0.5),
        ];
        let bounds = zstd_level_min..=zstd_level_max;
        let fits = |known: &&(i32, f64, f64)| bounds.contains(&known.0);
        for &(level, speed, ratio) in ZSTD_LEVELS.iter().filter(fits) {
            arms.push(arm(Method::Zstd, level, speed, ratio));
        }
        if arms.len() == 2 {
            let level = zstd_level_min;
            arms.push(arm(Method::Zstd, level, 0.5e9 / f64::from(level), 0.33));
        }
        Self {
            arms,
            content: Content::guessed(REFERENCE.0, REFERENCE.1),
            batches: 0,
            probed_at: 0,
            classify_s: 1.0 / 2e9,
            clear_share: 0.9,
            kind: Kind::default(),
            link: None,
        }
    }

    /// What a batch costs that takes so many seconds of a core and leaves so many bytes.
    fn cost(hint: &EncodeHint, link: f64, mut encode_s: f64, bytes: f64) -> f64 {
        let wire_s = bytes / link;
        if hint.idle_cores_hint == 0 {
            encode_s += bytes / TRANSMIT_BYTES_PER_S;
        }
        if hint.latency_critical {
            return encode_s.max(hint.backlog_bytes as f64 / link) + wire_s;
        }
        let dear = match hint.effort {
            Effort::Aggressive => BYTES_WEIGHT * wire_s,
            Effort::Light | Effort::Measured => 0.0,
        };
        encode_s.max(wire_s) + HIDDEN_WEIGHT * encode_s.min(wire_s) + dear
    }

    fn cost_of(&self, arm: &Arm, hint: &EncodeHint, link: f64, classed: &Classed) -> f64 {
        let (squeeze_s, ratio) = arm.own.of(&self.content, classed.kind);
        let clear = classed.clear_bytes as f64;
        let encode_s = (classed.classify_s + clear * squeeze_s) * f64::from(hint.crowd);
        Self::cost(hint, link, encode_s, clear * ratio + FRAMING_BYTES)
    }

    /// What a batch takes when encoding and wire go on at once.
    fn time_of(&self, arm: &Arm, link: f64, classed: &Classed) -> f64 {
        let (squeeze_s, ratio) = arm.own.of(&self.content, classed.kind);
        let clear = classed.clear_bytes as f64;
        let wire_s = (clear * ratio + FRAMING_BYTES) / link;
        wire_s.max(classed.classify_s + clear * squeeze_s)
    }

    /// Batches from one probe of an arm that is so many times slower than the best to the next.
    fn probe_after(arm: &Arm, slower: f64) -> f64 {
        let per_time = if arm.own.is_seen() {
            PROBE_AFTER_PER_TIME
        } else {
            PROBE_FIRST_PER_TIME
        };
        (PROBE_AFTER_MIN + per_time * (slower - 1.0)).clamp(PROBE_AFTER_MIN, PROBE_AFTER_MAX)
    }

    /// May a batch with this hint go by `arm`?
    const fn is_open(arm: &Arm, hint: &EncodeHint) -> bool {
        !matches!(hint.effort, Effort::Light) || arm.level <= LIGHT_LEVEL_MAX
    }

    /// The open arm of least cost, with it.
    fn best(&self, hint: &EncodeHint, link: f64, classed: &Classed) -> (usize, f64) {
        let open = self
            .arms
            .iter()
            .enumerate()
            .filter(|(_, arm)| Self::is_open(arm, hint));
        let costs = open.map(|(i, arm)| (i, self.cost_of(arm, hint, link, classed)));
        costs
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((0, f64::INFINITY))
    }

    /// How random the batch looks that was opened last.
    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Is the next batch sent as it is, unread? Else a method that may well be chosen once it was
    /// classified.
    pub(super) fn open(&mut self, hint: &EncodeHint, raw: &[u8], has_pages: bool) -> Choice {
        let passed = |reason| Choice {
            method: Method::Passthrough,
            level: 0,
            reason,
        };
        if raw.len() <= SMALL_BYTES && !has_pages {
            return passed(ChoiceReason::SmallBatch);
        }
        self.batches += 1;
        self.link = hint.link_bytes_per_s.map(|link| link.max(1) as f64);
        let Some(link) = self.link else {
            let unknown = match hint.effort {
                Effort::Aggressive => Method::Zstd,
                Effort::Light | Effort::Measured => Method::Lz4,
            };
            // The levels are in order, and the first is the fastest.
            let arm = self.arms.iter().find(|arm| arm.method == unknown);
            return Choice {
                method: unknown,
                level: arm.map_or(0, |arm| arm.level),
                reason: ChoiceReason::LinkUnknown,
            };
        };
        self.kind = Kind::of(raw);
        let raw = raw.len().max(1) as f64;
        let expected = self.expected(raw);
        let copy_s = if hint.accepts_raw_as_is {
            0.0
        } else {
            raw / COPY_BYTES_PER_S
        };
        let (best, best_cost) = self.best(hint, link, &expected);
        let may_probe = !hint.latency_critical && self.batches >= self.probed_at + PROBE_SPACING;
        let arm = &self.arms[best];
        let slower = self.time_of(arm, link, &expected) * link / raw;
        let is_old = (self.batches - arm.used_at) as f64 >= Self::probe_after(arm, slower);
        if Self::cost(hint, link, copy_s, raw) > best_cost {
            return self.chosen(best, ChoiceReason::Soonest);
        }
        if may_probe && is_old {
            self.probed_at = self.batches;
            return self.chosen(best, ChoiceReason::Probe);
        }
        passed(ChoiceReason::Soonest)
    }

    /// What classification is expected to leave of so many raw bytes.
    fn expected(&self, raw: f64) -> Classed {
        Classed {
            clear_bytes: (raw * self.clear_share) as usize,
            kind: self.kind,
            classify_s: raw * self.classify_s,
        }
    }

    fn chosen(&self, arm: usize, reason: ChoiceReason) -> Choice {
        Choice {
            method: self.arms[arm].method,
            level: self.arms[arm].level,
            reason,
        }
    }

    /// Chooses for a batch that [`open`](Self::open) did not send as it is, now that it was classified.
    pub(super) fn choose(
        &mut self,
        opened: Choice,
        hint: &EncodeHint,
        raw_len: usize,
        classed: &Classed,
    ) -> Choice {
        if raw_len >= LEARN_BYTES_MIN {
            let raw = raw_len as f64;
            self.classify_s += NEWEST * (classed.classify_s / raw - self.classify_s);
            self.clear_share += NEWEST * (classed.clear_bytes as f64 / raw - self.clear_share);
        }
        let Some(link) = self.link else {
            return opened;
        };
        let (best, _) = self.best(hint, link, classed);
        let (mut chosen, mut reason) = (best, opened.reason);
        if !hint.latency_critical && self.batches >= self.probed_at + PROBE_SPACING {
            let best_s = self.time_of(&self.arms[best], link, classed);
            let old = self.arms.iter().enumerate().position(|(i, arm)| {
                let after = Self::probe_after(arm, self.time_of(arm, link, classed) / best_s);
                i != best
                    && Self::is_open(arm, hint)
                    && (self.batches - arm.used_at) as f64 >= after
            });
            if let Some(old) = old {
                self.probed_at = self.batches;
                (chosen, reason) = (old, ChoiceReason::Probe);
            }
        }
        self.arms[chosen].used_at = self.batches;
        self.chosen(chosen, reason)
    }

    /// Learns from a batch that was encoded as `choice` says: its sections had `clear_bytes` and squeezing them
    /// took `squeeze_s`.
    pub(super) fn observe(
        &mut self,
        choice: Choice,
        classed: &Classed,
        payload_len: usize,
        squeeze_s: f64,
    ) {
        if classed.clear_bytes < LEARN_BYTES_MIN {
            return;
        }
        let arm = |arm: &&mut Arm| arm.method == choice.method && arm.level == choice.level;
        if let Some(arm) = self.arms.iter_mut().find(arm) {
            let clear = classed.clear_bytes as f64;
            let (s, ratio) = (squeeze_s / clear, payload_len as f64 / clear);
            arm.own.observe(&mut self.content, classed.kind, s, ratio);
        }
    }
}

#[cfg(test)]
mod tests;
