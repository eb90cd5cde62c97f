//! Lists of processor cores, as the kernel writes them: `0-3,8`.
//!
//! In: such a text. Out: a set of core numbers. Promise: at most [`CORES_MAX`] cores, whatever the
//! text says.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Cores above this number are not taken; the largest machines have fewer.
pub const CORES_MAX: u32 = 8192;

/// A set of cores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreSet(BTreeSet<u32>);

/// Text that is no list of cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of cores: write numbers below {CORES_MAX} and ranges, as in 0-3,8")]
pub struct NoCoreSet(String);

impl CoreSet {
    /// The cores in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The core that serves queue `queue`: the cores take turns.
    #[must_use]
    pub fn of_queue(&self, queue: u32) -> Option<u32> {
        let turn = usize::try_from(queue).ok()?.checked_rem(self.0.len())?;
        self.0.iter().nth(turn).copied()
    }

    /// The cores that `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<u32> for CoreSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cores: I) -> Self {
        Self(cores.into_iter().collect())
    }
}

impl FromStr for CoreSet {
    type Err = NoCoreSet;

    fn from_str(text: &str) -> Result<Self, NoCoreSet> {
        parse(text.trim()).ok_or_else(|| NoCoreSet(text.chars().take(60).collect()))
    }
}

fn parse(text: &str) -> Option<CoreSet> {
    let mut cores = BTreeSet::new();
    if text.is_empty() {
        return Some(CoreSet(cores));
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let plain = text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<u32>().ok()).flatten()
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CORES_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(CoreSet(cores))
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cores = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cores.next() {
            let mut last = first;
            while let Some(next) = cores.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl TryFrom<String> for CoreSet {
    type Error = NoCoreSet;

    fn try_from(text: String) -> Result<Self, NoCoreSet> {
        text.parse()
    }
}

impl From<CoreSet> for String {
    fn from(cores: CoreSet) -> Self {
        cores.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_survives_its_text(cores in prop::collection::btree_set(0..CORES_MAX, 0..50)) {
            let set = CoreSet(cores);
            prop_assert_eq!(set.to_string().parse::<CoreSet>().unwrap(), set);
        }

        #[test]
        fn no_text_is_trouble(text in "[0-9,-]{0,12}") {
            if let Ok(set) = text.parse::<CoreSet>() {
                prop_assert!(set.iter().all(|core| core < CORES_MAX));
            }
        }
    }

    #[test]
    fn the_kernels_words_are_read() {
        let set: CoreSet = "0-2,8,10-11\n".parse().unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 8, 10, 11]);
        assert!("\n".parse::<CoreSet>().unwrap().is_empty());
        for bad in ["a", "1-", "-1", "3-1", "1,,2", "0-9999", "+1"] {
            assert!(bad.parse::<CoreSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn queues_take_turns() {
        let set: CoreSet = "4,6".parse().unwrap();
        let turns: Vec<_> = (0..4).filter_map(|queue| set.of_queue(queue)).collect();
        assert_eq!(turns, [4, 6, 4, 6]);
        assert_eq!(CoreSet::default().of_queue(0), None);
    }
}
