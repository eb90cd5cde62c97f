//! What methods do with bytes of each kind: how long a byte takes and how much of it is left.
//!
//! In: guesses, then what batches took. Out: estimates by method and [`Kind`]. Promises: fixed memory; what one
//! method shows of the bytes at hand is true of all.
//!
//! A guest's memory changes its nature every few megabytes, and only one method sees it at a time. So what the
//! bytes are like is kept apart ([`Content`], which follows the newest batches) from how a method compares with
//! the reference ([`Own`], which hardly changes): a method takes `factor` times as long, and leaves
//! `ratio ^ power`, so that what cannot be compressed is left whole by all of them.

/// How random a batch looks, from text and tables to what is compressed or encrypted already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind(u8);

const KINDS: usize = 4;
/// Bits a byte, sampled, up to which a batch is of a kind; the last is above them all.
const KIND_BITS: [f32; KINDS - 1] = [4.0, 5.5, 7.5];
/// What is common with each kind, next to all of them.
const KIND_RATIO: [f64; KINDS] = [0.6, 0.9, 1.1, 1.6];
/// Samples of a batch at most, and bytes of each.
const SAMPLES: usize = 48;
const SAMPLE_BYTES: usize = 64;
/// Weight of the newest batch in what the bytes are like.
const NEWEST: f64 = 0.2;
/// And in how a method compares.
const NEWEST_OWN: f64 = 0.06;
/// And of the first: one batch may be unlike all others.
const FIRST: f64 = 0.5;
/// A batch that is further than this from the others before it tells of other bytes, not of the method.
const LIKE_S: f64 = 3.0;
/// See [`LIKE_S`].
const LIKE_RATIO: f64 = 1.5;
/// The least share left that is told apart.
const RATIO_MIN: f64 = 0.005;
/// Above this, what is left tells nothing of how methods compare.
const TELLING_RATIO_MAX: f64 = 0.85;
/// Bounds of powers.
const POWER_MIN: f64 = 0.2;
/// See [`POWER_MIN`].
const POWER_MAX: f64 = 3.0;
/// A batch that took so many times longer a byte than was known counts as if it had taken that: its thread had to
/// wait for a core. A method that became slow for good is known to be after a few batches all the same.
const SLOWER_MAX: f64 = 4.0;

impl Kind {
    /// All bytes alike.
    #[cfg(test)]
    pub(super) const LEAST: Self = Self(0);

    /// Of a batch, by the entropy of some of its bytes.
    pub(super) fn of(raw: &[u8]) -> Self {
        let mut counts = [0u16; 256];
        let mut samples = 0u32;
        // A little less than the batch, so that samples fall on other places of a page each time.
        let spacing = (raw.len().saturating_sub(SAMPLE_BYTES) / SAMPLES) | 1;
        for sample in raw.chunks(spacing).take(SAMPLES) {
            for &byte in &sample[..sample.len().min(SAMPLE_BYTES)] {
                counts[usize::from(byte)] += 1;
                samples += 1;
            }
        }
        let samples = samples as f32;
        let weighted = counts.iter().filter(|count| **count > 0);
        let bits: f32 = weighted
            .map(|&count| {
                let share = f32::from(count) / samples;
                -share * share.log2()
            })
            .sum();
        let above = KIND_BITS.iter().filter(|limit| bits > **limit).count();
        Self(above as u8)
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the reference does with bytes: seconds by byte and share left, and whether they were seen.
#[derive(Clone, Copy, Debug)]
struct Rate {
    s: f64,
    ratio: f64,
    seen: bool,
}

impl Rate {
    fn take(&mut self, s: f64, ratio: Option<f64>) {
        let newest = if self.seen { NEWEST } else { FIRST };
        let s = s.min(self.s * SLOWER_MAX);
        self.s += newest * (s - self.s);
        if let Some(ratio) = ratio {
            self.ratio += newest * (ratio - self.ratio);
        }
        self.seen = true;
    }
}

/// What the bytes at hand are like, in terms of a reference method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    all: Rate,
    kinds: [Rate; KINDS],
}

impl Content {
    /// Nothing was seen yet: the reference's common speed and ratio.
    pub(super) fn guessed(s: f64, ratio: f64) -> Self {
        let rate = |ratio| Rate {
            s,
            ratio,
            seen: false,
        };
        Self {
            all: rate(ratio),
            kinds: KIND_RATIO.map(|of_kind| rate(f64::min(1.0, ratio * of_kind))),
        }
    }

    /// What the reference does with bytes of this kind. One that was not seen is like the others.
    fn of(&self, kind: Kind) -> Rate {
        let own = self.kinds[kind.index()];
        if own.seen || !self.all.seen {
            return own;
        }
        let ratio = f64::min(1.0, self.all.ratio * KIND_RATIO[kind.index()]);
        Rate { ratio, ..self.all }
    }
}

/// How a method compares with the reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Of the reference's time.
    factor: f64,
    /// Of its ratio; 0 for a method that leaves all.
    power: f64,
    seen: bool,
}

impl Own {
    /// As the common speeds and ratios of both say.
    pub(super) fn guessed(s: f64, ratio: f64, reference: (f64, f64)) -> Self {
        Self {
            factor: s / reference.0,
            power: ratio.ln() / reference.1.ln(),
            seen: false,
        }
    }

    /// Seconds by byte, and share left, of bytes of this kind.
    pub(super) fn of(&self, content: &Content, kind: Kind) -> (f64, f64) {
        let base = content.of(kind);
        (base.s * self.factor, base.ratio.powf(self.power))
    }

    /// Are these more than guesses?
    pub(super) const fn is_seen(&self) -> bool {
        self.seen
    }

    /// The method took so long for each byte of this kind, and so much of them is left.
    pub(super) fn observe(&mut self, content: &mut Content, kind: Kind, s: f64, ratio: f64) {
        let ratio = ratio.clamp(RATIO_MIN, 1.0);
        let compresses = self.power > 0.0;
        let as_reference = compresses.then(|| ratio.powf(1.0 / self.power));
        let by_reference = s / self.factor;
        let base = content.of(kind);
        let newest = if self.seen { NEWEST_OWN } else { FIRST };
        if content.all.seen && is_like(by_reference, base.s, LIKE_S) {
            self.factor += newest * (s / base.s - self.factor);
        }
        if let Some(as_reference) =
            as_reference.filter(|ratio| ratio.max(base.ratio) < TELLING_RATIO_MAX)
            && content.all.seen
            && is_like(as_reference, base.ratio, LIKE_RATIO)
        {
            let power = (ratio.ln() / base.ratio.ln()).clamp(POWER_MIN, POWER_MAX);
            self.power += newest * (power - self.power);
        }
        self.seen = true;
        content.all.take(by_reference, as_reference);
        content.kinds[kind.index()].take(by_reference, as_reference);
    }
}

/// Is one about the other?
fn is_like(one: f64, other: f64, times: f64) -> bool {
    one < other * times && other < one * times
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: (f64, f64) = (2e-9, 0.36);

    fn reference() -> (Content, Own) {
        let (s, ratio) = REFERENCE;
        (
            Content::guessed(s, ratio),
            Own::guessed(s, ratio, REFERENCE),
        )
    }

    #[test]
    fn kinds_are_told_apart() {
        let text: Vec<u8> = (0..10_000).map(|i| b"{'key': 1234}"[i * i % 13]).collect();
        let mut state = 1u32;
        let noise: Vec<u8> = (0..10_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        assert_eq!(
            (Kind::of(&[]), Kind::of(&text), Kind::of(&noise)),
            (Kind(0), Kind(0), Kind(3))
        );
    }

    #[test]
    fn a_thread_that_waited_for_a_core_once_does_not_make_a_method_slow() {
        let (mut content, mut own) = reference();
        (0..50).for_each(|_| own.observe(&mut content, Kind(1), 4e-9, 0.2));
        own.observe(&mut content, Kind(1), 4e-6, 0.2);
        let after_one = own.of(&content, Kind(1)).0;
        assert!(after_one < 10e-9, "{after_one}");
        (0..40).for_each(|_| own.observe(&mut content, Kind(1), 40e-9, 0.2));
        let for_good = own.of(&content, Kind(1)).0;
        assert!(for_good > 36e-9, "{for_good}");
    }

    #[test]
    fn what_one_method_shows_of_the_bytes_is_true_of_all() {
        let (mut content, mut first) = reference();
        let mut second = Own::guessed(5e-9, 0.31, REFERENCE);
        let stored = Own::guessed(1e-10, 1.0, REFERENCE);
        for _ in 0..30 {
            first.observe(&mut content, Kind(1), 3e-9, 0.25);
            second.observe(&mut content, Kind(1), 8e-9, 0.2);
        }
        // The bytes change, and only the first sees it: now nothing can be compressed.
        (0..60).for_each(|_| first.observe(&mut content, Kind(1), 1e-9, 0.97));
        let (s, ratio) = second.of(&content, Kind(1));
        assert!((1.5e-9..5e-9).contains(&s), "{s}");
        assert!((0.93..0.99).contains(&ratio), "{ratio}");
        // And back again.
        (0..60).for_each(|_| first.observe(&mut content, Kind(1), 3e-9, 0.25));
        let (s, ratio) = second.of(&content, Kind(1));
        assert!((6e-9..10e-9).contains(&s), "{s}");
        assert!((0.17..0.23).contains(&ratio), "{ratio}");
        assert_eq!(stored.of(&content, Kind(1)).1, 1.0, "whatever comes");
    }

    #[test]
    fn what_is_left_whole_tells_nothing_of_what_could_be_left() {
        let (mut content, mut own) = reference();
        own.observe(&mut content, Kind(0), 3e-9, 0.3);
        let before = own.of(&content, Kind(0)).1;
        let mut stored = Own::guessed(1e-10, 1.0, REFERENCE);
        (0..50).for_each(|_| stored.observe(&mut content, Kind(0), 1e-10, 1.0));
        assert_eq!(own.of(&content, Kind(0)).1, before);
    }

    #[test]
    fn a_kind_that_was_not_seen_is_like_the_others() {
        let (mut content, mut own) = reference();
        assert_eq!(own.of(&content, Kind(1)), (2e-9, 0.36 * 0.9));
        (0..50).for_each(|_| own.observe(&mut content, Kind(1), 4e-9, 0.2));
        let (s, ratio) = own.of(&content, Kind(3));
        assert!(
            (s - 4e-9).abs() < 4e-10 && (ratio - 0.32).abs() < 0.04,
            "{s} {ratio}"
        );
    }
}
