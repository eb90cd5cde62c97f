//! When a migration turns into post-copy. In: `false`, `"after_first_pass"` or `{"after_ms": n}` of the REST
//! API. Out: whether it is time. Never, unless it was asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::qmp::MigrationInfo;

/// Longest wait that may be asked for, one day.
pub const AFTER_MS_MAX: u64 = 86_400_000;

/// When the guest goes to the destination and fetches the rest of its memory from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub enum Postcopy {
    /// Not at all: the guest goes when all its memory is there.
    #[default]
    Never,
    /// Once every page was sent for the first time.
    AfterFirstPass,
    /// So many milliseconds after the hypervisor began to send.
    AfterMs(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Switch(bool),
    Word(Word),
    After(After),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    AfterFirstPass,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    after_ms: u64,
}

impl TryFrom<Wire> for Postcopy {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        match wire {
            Wire::Switch(false) => Ok(Self::Never),
            Wire::Word(Word::AfterFirstPass) => Ok(Self::AfterFirstPass),
            Wire::After(After { after_ms }) if after_ms <= AFTER_MS_MAX => {
                Ok(Self::AfterMs(after_ms))
            }
            Wire::Switch(true) | Wire::After(_) => {
                Err("postcopy is false, \"after_first_pass\" or {\"after_ms\": at most one day}")
            }
        }
    }
}

impl From<Postcopy> for Wire {
    fn from(postcopy: Postcopy) -> Self {
        match postcopy {
            Postcopy::Never => Self::Switch(false),
            Postcopy::AfterFirstPass => Self::Word(Word::AfterFirstPass),
            Postcopy::AfterMs(after_ms) => Self::After(After { after_ms }),
        }
    }
}

impl Postcopy {
    /// Is the migration never to turn?
    #[must_use]
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }

    /// Is it time, so long after the hypervisor began to send?
    #[must_use]
    pub fn is_due(self, info: &MigrationInfo, sending: Duration) -> bool {
        match self {
            Self::Never => false,
            // The hypervisor counts a pass when it looks for what it is to send.
            Self::AfterFirstPass => info.rounds.is_some_and(|rounds| rounds >= 2),
            Self::AfterMs(after_ms) => sending >= Duration::from_millis(after_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_words_are_read_and_written_and_nothing_else() {
        for (text, postcopy) in [
            ("false", Postcopy::Never),
            ("\"after_first_pass\"", Postcopy::AfterFirstPass),
            ("{\"after_ms\":1500}", Postcopy::AfterMs(1500)),
        ] {
            let read: Postcopy = serde_json::from_str(text).unwrap();
            assert_eq!(read, postcopy);
            assert_eq!(serde_json::to_string(&postcopy).unwrap(), text);
        }
        for bad in [
            "true",
            "1",
            "\"now\"",
            "{\"after_ms\":86400001}",
            "{\"after_ms\":1,\"x\":2}",
            "{}",
            "null",
        ] {
            assert!(serde_json::from_str::<Postcopy>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_pass_is_over_when_the_second_begins() {
        let info = |rounds| MigrationInfo {
            rounds,
            ..MigrationInfo::default()
        };
        let second = Duration::from_secs(1);
        for (rounds, due) in [(None, false), (Some(1), false), (Some(2), true)] {
            assert_eq!(Postcopy::AfterFirstPass.is_due(&info(rounds), second), due);
            assert!(!Postcopy::Never.is_due(&info(rounds), second));
        }
        assert!(Postcopy::AfterMs(1000).is_due(&info(None), second));
        assert!(!Postcopy::AfterMs(1001).is_due(&info(None), second));
    }
}
