//! What a method does with bytes of each kind: how long a byte takes and how much of it is left.
//!
//! In: guesses, then what batches took. Out: estimates by [`Kind`]. Promises: a kind that a method has not seen
//! is estimated from what the method does with the others; fixed memory.

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
/// Weight of the newest batch.
const NEWEST: f64 = 0.2;
/// And of the first: one batch may be unlike all others.
const FIRST: f64 = 0.5;
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

/// Seconds by byte and share left, and whether they were seen.
#[derive(Clone, Copy, Debug)]
struct Rate {
    s: f64,
    ratio: f64,
    seen: bool,
}

impl Rate {
    fn take(&mut self, s: f64, ratio: f64) {
        let newest = if self.seen { NEWEST } else { FIRST };
        let s = s.min(self.s * SLOWER_MAX);
        self.s += newest * (s - self.s);
        self.ratio += newest * (ratio - self.ratio);
        self.seen = true;
    }
}

/// What leaves `ratio` of all bytes leaves of one kind; what leaves all leaves all of each.
fn scaled(ratio: f64, kind: usize) -> f64 {
    if ratio >= 0.99 {
        ratio
    } else {
        f64::min(1.0, ratio * KIND_RATIO[kind])
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    all: Rate,
    kinds: [Rate; KINDS],
}

impl Rates {
    /// Nothing was seen yet.
    pub(super) fn guessed(s: f64, ratio: f64) -> Self {
        let rate = |ratio| Rate {
            s,
            ratio,
            seen: false,
        };
        Self {
            all: rate(ratio),
            kinds: std::array::from_fn(|kind| rate(scaled(ratio, kind))),
        }
    }

    /// Seconds by byte, and share left, of bytes of this kind.
    pub(super) fn of(&self, kind: Kind) -> (f64, f64) {
        let own = self.kinds[kind.index()];
        if own.seen || !self.all.seen {
            return (own.s, own.ratio);
        }
        (self.all.s, scaled(self.all.ratio, kind.index()))
    }

    /// Are these more than guesses?
    pub(super) const fn is_seen(&self) -> bool {
        self.all.seen
    }

    /// Bytes of this kind took so long each, and so much of them is left.
    pub(super) fn observe(&mut self, kind: Kind, s: f64, ratio: f64) {
        self.all.take(s, ratio);
        self.kinds[kind.index()].take(s, ratio);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut rates = Rates::guessed(1e-9, 0.5);
        (0..50).for_each(|_| rates.observe(Kind(1), 4e-9, 0.2));
        rates.observe(Kind(1), 4e-6, 0.2);
        let after_one = rates.of(Kind(1)).0;
        assert!(after_one < 8e-9, "{after_one}");
        (0..20).for_each(|_| rates.observe(Kind(1), 40e-9, 0.2));
        let for_good = rates.of(Kind(1)).0;
        assert!(for_good > 38e-9, "{for_good}");
    }

    #[test]
    fn what_was_not_seen_follows_what_was() {
        let mut rates = Rates::guessed(1e-9, 0.5);
        assert_eq!(rates.of(Kind(1)), (1e-9, 0.45));
        for _ in 0..50 {
            rates.observe(Kind(1), 4e-9, 0.2);
        }
        let near = |(s, ratio): (f64, f64), expected: (f64, f64)| {
            (s - expected.0).abs() < 1e-13 && (ratio - expected.1).abs() < 1e-4
        };
        assert!(near(rates.of(Kind(1)), (4e-9, 0.2)), "{rates:?}");
        assert!(near(rates.of(Kind(3)), (4e-9, 0.2 * 1.6)), "{rates:?}");
        for _ in 0..50 {
            rates.observe(Kind(3), 1e-9, 1.0);
        }
        assert!(near(rates.of(Kind(3)), (1e-9, 1.0)), "{rates:?}");
        assert!(near(rates.of(Kind(1)), (4e-9, 0.2)), "{rates:?}");
    }
}
