//! Documents in the replicated state, and the flags that they steer.
//!
//! In: what a document is to say, and which version of it was read. Out: the next version, and the flag changed with
//! it. Promises: two who read the same version cannot both write; a flag that a document holds is changed by that
//! document alone; memory is bounded.

use serde::{Deserialize, Serialize};

use crate::command::{FLAGS_MAX, Reply, SHARE_ALL, Steer};
use crate::state::State;

/// Documents that are kept; of those that hold no flag, the oldest gives its place to a new one.
pub const DOCUMENTS_MAX: usize = 64;

/// A document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Counts its changes, from 1.
    pub version: u64,
    /// What it says; its form is its writer's.
    pub text: String,
    /// Key of the flag that it holds.
    pub steers: Option<String>,
    /// When it was last changed, Unix milliseconds by the proposer's clock.
    pub changed_unix_ms: u64,
    /// Who changed it last.
    pub by: String,
}

impl State {
    /// Key of the document that holds a flag.
    #[must_use]
    pub fn steered_by(&self, feature: &str) -> Option<&str> {
        let mut all = self.documents.iter();
        all.find(|(_, document)| document.steers.as_deref() == Some(feature))
            .map(|(key, _)| key.as_str())
    }

    /// Writes a document whose `version` is the one that was read.
    pub(crate) fn write(&mut self, key: &str, mut next: Document, steer: Option<&Steer>) -> Reply {
        let found = self.documents.get(key).map_or(0, |it| it.version);
        if found != next.version {
            return Reply::Refused(format!(
                "{key} is at version {found}, not {}: read it again",
                next.version
            ));
        }
        if let Some(steer) = steer {
            if let Some(other) = self.steered_by(&steer.feature).filter(|it| *it != key) {
                return Reply::Refused(format!(
                    "{} is steered by {other}: end that first",
                    steer.feature
                ));
            }
            let value = steer.value.filter(|value| value.share > SHARE_ALL);
            if let Some(value) = value {
                return Reply::Refused(format!("a share of {} is more than all", value.share));
            }
            let new = !self.flags.contains_key(&steer.feature);
            if new && self.flags.len() >= FLAGS_MAX {
                return Reply::Refused(format!("at most {FLAGS_MAX} flags are kept"));
            }
        }
        if found == 0 && self.documents.len() >= DOCUMENTS_MAX && !self.forget_one() {
            return Reply::Refused(format!(
                "{DOCUMENTS_MAX} documents are kept, and each holds a flag: end one first"
            ));
        }
        if let Some(steer) = steer {
            next.steers = steer.held.then(|| steer.feature.clone());
            if let Some(value) = steer.value {
                let (at, by) = (next.changed_unix_ms, next.by.clone());
                self.change(&steer.feature, at, &by, |flag| {
                    flag.value = Some(value);
                    Ok(())
                });
            }
        }
        next.version += 1;
        self.documents.insert(key.to_owned(), next);
        Reply::Done { index: 0 }
    }

    fn forget_one(&mut self) -> bool {
        let free = self.documents.iter().filter(|(_, it)| it.steers.is_none());
        let oldest = free.min_by_key(|(key, it)| (it.changed_unix_ms, *key));
        let Some(key) = oldest.map(|(key, _)| key.clone()) else {
            return false;
        };
        self.documents.remove(&key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, FlagValue, Outcome, Request};

    fn document(version: u64, at: u64) -> Document {
        Document {
            version,
            text: "x".to_owned(),
            steers: None,
            changed_unix_ms: at,
            by: "test".to_owned(),
        }
    }

    fn steer(share: u32, held: bool) -> Steer {
        Steer {
            feature: "f".to_owned(),
            value: Some(FlagValue {
                enabled: true,
                share,
            }),
            held,
        }
    }

    const fn done(reply: &Reply) -> bool {
        matches!(reply, Reply::Done { .. })
    }

    #[test]
    fn of_two_who_read_the_same_one_writes() {
        let mut state = State::new(1);
        assert!(done(&state.write(
            "a",
            document(0, 1),
            Some(&steer(10, true))
        )));
        assert!(done(&state.write(
            "a",
            document(1, 2),
            Some(&steer(20, true))
        )));
        let before = state.clone();
        let late = state.write("a", document(1, 3), Some(&steer(90, true)));
        assert!(!done(&late), "{late:?}");
        assert_eq!(state, before, "nothing of it");
        assert_eq!(state.flags["f"].value.map(|value| value.share), Some(20));
    }

    #[test]
    fn a_held_flag_is_changed_by_its_document_alone() {
        let mut state = State::new(1);
        state.apply(
            1,
            "",
            &Request {
                session: 0,
                number: 0,
                command: Command::OpenSession,
            },
        );
        let set = |state: &mut State, number| {
            let command = Command::SetFlag {
                feature: "f".to_owned(),
                value: FlagValue::default(),
                at_unix_ms: 0,
                by: String::new(),
            };
            let request = Request {
                session: 1,
                number,
                command,
            };
            matches!(
                state.apply(number, "", &request),
                Outcome::Ran(Reply::Done { .. })
            )
        };
        state.write("a", document(0, 1), Some(&steer(10, true)));
        assert!(!set(&mut state, 1));
        assert!(!done(&state.write(
            "b",
            document(0, 1),
            Some(&steer(5, true))
        )));
        assert!(done(&state.write(
            "a",
            document(1, 1),
            Some(&steer(0, false))
        )));
        assert!(set(&mut state, 2));
        assert!(done(&state.write(
            "b",
            document(0, 1),
            Some(&steer(5, true))
        )));
    }

    #[test]
    fn the_oldest_that_holds_nothing_gives_its_place() {
        let mut state = State::new(1);
        state.write("held", document(0, 0), Some(&steer(10, true)));
        for at in 1..=DOCUMENTS_MAX as u64 {
            let written = state.write(&format!("d{at:03}"), document(0, at), None);
            assert!(done(&written), "{written:?}");
        }
        assert_eq!(state.documents.len(), DOCUMENTS_MAX);
        assert!(state.documents.contains_key("held"));
        assert!(!state.documents.contains_key("d001"));
    }
}
