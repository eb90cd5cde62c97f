//! Faults on a lane in memory.
//!
//! Comes in: each frame that is put on the wire. Goes out: its [`Fate`]. Promises: the same seed and
//! the same frames give the same faults.

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Pass,
    /// It never arrives.
    Drop,
    /// It arrives twice.
    Repeat,
    /// It arrives behind the frame that follows it, if one follows before the receiver looks.
    Swap,
    /// It arrives, and what is behind it, after this many looks of the receiver.
    Delay {
        /// Looks that find nothing.
        polls: u32,
    },
    /// One byte arrives changed.
    Corrupt {
        /// Which byte, modulo the frame's length.
        at: usize,
        /// The bits that change.
        xor: u8,
    },
    /// The lane ends here, for both sides, and what was on its way is lost.
    Cut,
}

/// Decides what becomes of each frame.
pub trait Mangler: Send {
    /// The fate of the next frame.
    fn frame(&mut self, bytes: &[u8]) -> Fate;
}

impl<F: FnMut(&[u8]) -> Fate + Send> Mangler for F {
    fn frame(&mut self, bytes: &[u8]) -> Fate {
        self(bytes)
    }
}

/// How often each fault happens, in frames per million. What is left of the million passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultRates {
    /// [`Fate::Drop`].
    pub drop_ppm: u32,
    /// [`Fate::Repeat`].
    pub repeat_ppm: u32,
    /// [`Fate::Swap`].
    pub swap_ppm: u32,
    /// [`Fate::Delay`], by 1 to 16 looks.
    pub delay_ppm: u32,
    /// [`Fate::Corrupt`], at any place.
    pub corrupt_ppm: u32,
    /// [`Fate::Cut`].
    pub cut_ppm: u32,
}

/// Faults at random, from a seed.
#[derive(Debug, Clone)]
pub struct FaultMangler {
    rates: FaultRates,
    state: u64,
}

impl FaultMangler {
    /// Faults at these rates; the seed decides which frames.
    #[must_use]
    pub fn new(seed: u64, rates: FaultRates) -> Self {
        Self { rates, state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood, 2014): a full period from any seed.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Mangler for FaultMangler {
    fn frame(&mut self, _bytes: &[u8]) -> Fate {
        let draw = (self.next() % 1_000_000) as u32;
        let detail = self.next();
        let rates = self.rates;
        let fates = [
            (rates.drop_ppm, Fate::Drop),
            (rates.repeat_ppm, Fate::Repeat),
            (rates.swap_ppm, Fate::Swap),
            (
                rates.delay_ppm,
                Fate::Delay {
                    polls: 1 + (detail % 16) as u32,
                },
            ),
            (
                rates.corrupt_ppm,
                Fate::Corrupt {
                    at: (detail >> 8) as usize,
                    xor: 1 << (detail % 8),
                },
            ),
            (rates.cut_ppm, Fate::Cut),
        ];
        let mut below = 0u32;
        for (rate_ppm, fate) in fates {
            below = below.saturating_add(rate_ppm);
            if draw < below {
                return fate;
            }
        }
        Fate::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_rates_are_kept() {
        let rates = FaultRates {
            drop_ppm: 100_000,
            corrupt_ppm: 200_000,
            cut_ppm: 300_000,
            ..FaultRates::default()
        };
        let run = |seed| {
            let mut mangler = FaultMangler::new(seed, rates);
            (0..10_000).map(|_| mangler.frame(b"x")).collect::<Vec<_>>()
        };
        let fates = run(7);
        assert_eq!(fates, run(7));
        assert_ne!(fates, run(8));
        let count = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count();
        assert!((800..1200).contains(&count(|fate| *fate == Fate::Drop)));
        assert!((1700..2300).contains(&count(|fate| matches!(fate, Fate::Corrupt { .. }))));
        assert!((2700..3300).contains(&count(|fate| *fate == Fate::Cut)));
        assert_eq!(count(|fate| *fate == Fate::Repeat), 0);
    }
}
