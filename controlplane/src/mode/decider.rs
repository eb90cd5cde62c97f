//! One peer's mode, from samples of the path to it.
//!
//! In: samples, one after the other. Out: the mode, and at each change a [`Decision`] that says why. Promises: no
//! clock inside, so the same samples decide the same; one outlier changes nothing; a path at a threshold does not
//! flap; a path that was never the bottleneck does not count as thin.
//!
//! What is compared with the thresholds are medians of the last [`WINDOW`] samples: of round trips, and of bandwidths
//! among those in which bytes flowed. A sample in which the path was not the bottleneck says that it carries more
//! than was asked of it, and counts as the widest; one in which nothing flowed says nothing, and the bandwidth stays
//! what it was. Three things keep a mode from flapping: the medians, a margin of a tenth that a threshold must be
//! passed by to leave a mode, and [`DWELL`] samples that a mode lasts at least.

use std::collections::VecDeque;

use dwcp_api::{Mode, PathLoad};
use serde::Serialize;

/// Samples that a median is taken of.
pub const WINDOW: usize = 10;
/// Samples before the first decision.
pub const FIRST: usize = 3;
/// Samples that a mode lasts at least.
pub const DWELL: u64 = 10;
/// Below this round trip a path may be a datacenter's, microseconds.
pub const NEAR_US: u64 = 10_000;
/// Above this one it is the internet's, microseconds.
pub const FAR_US: u64 = 50_000;
/// Above this it may be a datacenter's, below it is the internet's: 1 Gbit/s in bytes a second.
pub const FAST_BYTES_PER_S: u64 = 125_000_000;
/// By how much a threshold must be passed to leave a mode, in percent.
pub const MARGIN_PERCENT: u64 = 10;

/// One look at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Round trip, microseconds.
    pub rtt_us: u64,
    /// How `bytes_per_s` is to be read.
    pub load: PathLoad,
    /// What the path carried.
    pub bytes_per_s: u64,
}

/// What is known of a path's bandwidth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "known", content = "bytes_per_s", rename_all = "snake_case")]
pub enum Bandwidth {
    /// Nothing flowed yet.
    Nothing,
    /// It was not the bottleneck; it carried this much.
    AtLeast(u64),
    /// It was the bottleneck, and carried this much.
    Measured(u64),
}

/// Which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Round trip above [`FAR_US`]: internet.
    Far,
    /// Bandwidth under [`FAST_BYTES_PER_S`]: internet.
    Thin,
    /// Round trip under [`NEAR_US`], bandwidth above [`FAST_BYTES_PER_S`] or never the bottleneck: datacenter.
    NearAndFast,
    /// None of them: hybrid.
    Between,
}

impl Rule {
    /// The mode that follows from it.
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self {
            Self::Far | Self::Thin => Mode::Internet,
            Self::NearAndFast => Mode::Datacenter,
            Self::Between => Mode::Hybrid,
        }
    }
}

/// Medians of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Medians {
    /// Of the round trip, microseconds.
    pub rtt_us: u64,
    /// Of the bandwidth.
    pub bandwidth: Bandwidth,
}

/// A change of the mode, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The mode before; none at the first decision.
    pub from: Option<Mode>,
    /// The mode from now on.
    pub to: Mode,
    /// Which rule decided.
    pub rule: Rule,
    /// What it was applied to.
    pub medians: Medians,
    /// Samples so far.
    pub samples: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Decider {
    rtts_us: VecDeque<u64>,
    bandwidths: VecDeque<Bandwidth>,
    mode: Option<Mode>,
    samples: u64,
    decided_at: u64,
}

impl Decider {
    /// The mode; none before the first [`FIRST`] samples.
    #[must_use]
    pub const fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Samples taken in.
    #[must_use]
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    /// Takes a sample in; a decision when it changes the mode.
    pub fn take(&mut self, sample: Sample) -> Option<Decision> {
        self.samples += 1;
        push(&mut self.rtts_us, sample.rtt_us);
        match sample.load {
            PathLoad::Idle => {}
            PathLoad::Free => push(&mut self.bandwidths, Bandwidth::AtLeast(sample.bytes_per_s)),
            PathLoad::Full => push(
                &mut self.bandwidths,
                Bandwidth::Measured(sample.bytes_per_s),
            ),
        }
        if self.rtts_us.len() < FIRST {
            return None;
        }
        if self.mode.is_some() && self.samples < self.decided_at + DWELL {
            return None;
        }
        let medians = self.medians()?;
        let rule = rule(medians, self.mode);
        if Some(rule.mode()) == self.mode {
            return None;
        }
        let from = self.mode.replace(rule.mode());
        self.decided_at = self.samples;
        Some(Decision {
            from,
            to: rule.mode(),
            rule,
            medians,
            samples: self.samples,
        })
    }

    /// The medians; none without a sample.
    #[must_use]
    pub fn medians(&self) -> Option<Medians> {
        Some(Medians {
            rtt_us: median(&self.rtts_us, |rtt_us| *rtt_us)?,
            bandwidth: median(&self.bandwidths, |known| known.width())
                .unwrap_or(Bandwidth::Nothing),
        })
    }

    /// The rule that holds the present mode, by the present medians.
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        Some(rule(self.medians()?, self.mode))
    }
}

impl Bandwidth {
    /// In order: what was measured by its size, then what was never the bottleneck.
    const fn width(self) -> (bool, u64) {
        match self {
            Self::Nothing => (false, 0),
            Self::Measured(bytes_per_s) => (false, bytes_per_s),
            Self::AtLeast(bytes_per_s) => (true, bytes_per_s),
        }
    }
}

fn push<T>(window: &mut VecDeque<T>, value: T) {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(value);
}

/// The middle one; of two the greater.
fn median<T: Copy, K: Ord>(window: &VecDeque<T>, key: impl Fn(&T) -> K) -> Option<T> {
    let mut sorted: Vec<T> = window.iter().copied().collect();
    sorted.sort_by_key(key);
    sorted.get(sorted.len() / 2).copied()
}

/// Is `value` beyond `threshold`, seen from a mode that is `kept` by being beyond it, left by it, or neither?
const fn moved(threshold: u64, kept: Option<bool>, up: bool) -> u64 {
    let margin = threshold * MARGIN_PERCENT / 100;
    match kept {
        None => threshold,
        // Kept by being above it: held until it is well below; and so on.
        Some(kept) if kept == up => threshold - margin,
        Some(_) => threshold + margin,
    }
}

/// The rule for these medians in this mode.
#[must_use]
pub fn rule(medians: Medians, mode: Option<Mode>) -> Rule {
    let is = |of| mode.map(|mode| mode == of);
    let far_us = moved(FAR_US, is(Mode::Internet), true);
    let near_us = moved(NEAR_US, is(Mode::Datacenter), false);
    let thin = moved(FAST_BYTES_PER_S, is(Mode::Internet), false);
    let fast = moved(FAST_BYTES_PER_S, is(Mode::Datacenter), true);
    if medians.rtt_us > far_us {
        return Rule::Far;
    }
    let is_fast = match medians.bandwidth {
        Bandwidth::Measured(bytes_per_s) if bytes_per_s < thin => return Rule::Thin,
        Bandwidth::Measured(bytes_per_s) => bytes_per_s > fast,
        Bandwidth::AtLeast(_) | Bandwidth::Nothing => true,
    };
    if is_fast && medians.rtt_us < near_us {
        Rule::NearAndFast
    } else {
        Rule::Between
    }
}

#[cfg(test)]
mod tests;
