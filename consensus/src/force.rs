//! The kill switch in the replicated state.
//!
//! In: throws, signed or not, and releases. Out: on or off, and which signed throws count no more. Promises: a
//! throw that is recorded twice, or after the release that undid it, changes nothing; a release undoes what its
//! asker had seen, and nothing that came meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::{NODES_MAX, Reply, ThrowMark};

/// The kill switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Force {
    /// Everything in v1.
    pub on: bool,
    /// Counts the changes.
    pub generation: u64,
    /// When it was last changed, Unix milliseconds by the proposer's clock.
    pub changed_unix_ms: u64,
    /// Who changed it last.
    pub by: String,
    /// The newest signed throw of each node that was recorded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thrown: BTreeMap<String, u64>,
    /// What the last release undid: a node's throws up to this number count no more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub released: BTreeMap<String, u64>,
}

impl Force {
    /// Changes it; gives the answer if that is all.
    pub(crate) fn change(
        &mut self,
        on: bool,
        seen: u64,
        throw: Option<&ThrowMark>,
    ) -> Option<Reply> {
        if !on && seen < self.generation {
            return Some(Reply::Refused(
                "the kill switch was thrown again meanwhile and stays on".to_owned(),
            ));
        }
        if on && let Some(throw) = throw {
            let at = |of: &BTreeMap<String, u64>| of.get(&throw.node).copied().unwrap_or(0);
            if throw.number <= at(&self.released) {
                return Some(Reply::Refused("that throw was released already".to_owned()));
            }
            if throw.number <= at(&self.thrown) {
                return Some(Reply::Done { index: 0 });
            }
            if !self.thrown.contains_key(&throw.node) && self.thrown.len() >= NODES_MAX {
                return Some(Reply::Refused(format!(
                    "throws of {NODES_MAX} nodes are kept at most"
                )));
            }
            self.thrown.insert(throw.node.clone(), throw.number);
        }
        if !on {
            self.released.clone_from(&self.thrown);
        }
        self.on = on;
        self.generation += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> ThrowMark {
        ThrowMark {
            node: "a".to_owned(),
            number,
        }
    }

    #[test]
    fn a_throw_is_recorded_once_and_not_after_its_release() {
        let mut force = Force::default();
        assert_eq!(force.change(true, 0, Some(&mark(5))), None);
        let again = force.change(true, 0, Some(&mark(5)));
        assert_eq!(again, Some(Reply::Done { index: 0 }));
        assert_eq!((force.on, force.generation), (true, 1));
        assert_eq!(force.change(false, 1, None), None);
        for old in [4, 5] {
            let late = force.change(true, 0, Some(&mark(old)));
            assert!(matches!(late, Some(Reply::Refused(_))));
        }
        assert!(!force.on);
        assert_eq!(force.change(true, 0, Some(&mark(6))), None);
        assert!(force.on);
        assert!(force.change(false, 2, None).is_some(), "6 came meanwhile");
        assert_eq!(force.released["a"], 5);
    }
}
