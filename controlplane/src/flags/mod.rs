//! Feature flags, their rollout, and the kill switch of this node.
//!
//! In: an operator's changes. Out: the switch words in the data plane's shared memory, a row on disk
//! and an entry in the history. Promises:
//!
//! - A flag is on disk before it is in force, so a restart never loses what was seen working.
//! - `force_v1` on is the other way round: the store to shared memory comes first, and neither the
//!   disk nor another change in progress can delay it.
//! - At every attach all words are set again. A kill switch found on though no record of it was
//!   written (the disk had failed) stays on.
//!
//! | module | what |
//! |---|---|
//! | [`bucket`] | where a node stands in a rollout |
//! | [`rule`] | one flag and what it decides |
//! | [`board`] | the place where the switch words lie |
//! | [`evaluate`] | what a flag means for any node, and why |
//! | [`history`] | who changed what, and when |
//! | [`kill_switch`] | everything back to v1, and the way out of it |
//! | [`view`] | what the API says about them |

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_api::Version;
use dwcp_api::switches::Component;
use serde::Serialize;

pub mod board;
pub mod bucket;
pub mod evaluate;
pub mod history;
pub mod kill_switch;
pub mod rule;
pub mod view;

pub use board::{NotAttached, SwitchBoard};
pub use rule::{Flag, NodeId, Percentage};
pub use view::{FlagError, FlagView, FlagsView, ForceView, Released};

use crate::store::{Row, Store, StoreError};
use history::{Change, Entry};
use kill_switch::Force;

const TABLE: &str = "flags";
const FORCE_ROW: &str = "force_v1";

/// The flags of this node; a clone is the same set.
#[derive(Clone)]
pub struct Flags {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    node: NodeId,
    board: Box<dyn SwitchBoard>,
    /// What the words say or should say. Held over stores to memory only, never over the disk, so
    /// that the kill switch never waits for an fsync.
    words: Mutex<Words>,
    /// Orders the changes that go to disk; holds the number of the next history entry.
    disk: Mutex<u64>,
}

struct Words {
    flags: [Flag; 6],
    force: Force,
    /// Which change of each flag was adopted from the cluster last.
    adopted: [u64; 6],
    /// Grows each time the kill switch is thrown: a release that began before a throw must not undo it.
    throws: u64,
    /// Changes since the process began: to on, to off.
    changes: (u64, u64),
}

impl Flags {
    /// Reads the flags of this node, or begins with the initial ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        store: Store,
        node: NodeId,
        board: Box<dyn SwitchBoard>,
    ) -> Result<Self, StoreError> {
        let mut flags: [Flag; 6] =
            core::array::from_fn(|index| Flag::initial(Component::ALL[index]));
        for (flag, of) in flags.iter_mut().zip(Component::ALL) {
            if let Some(kept) = store.get_json(TABLE, rule::key(*of))? {
                *flag = kept;
            }
        }
        let force = store
            .get_json::<Force>(TABLE, FORCE_ROW)?
            .unwrap_or_default();
        let next = history::read(&store)?
            .first()
            .map_or(0, |entry| entry.number + 1);
        let words = Mutex::new(Words {
            flags,
            force,
            adopted: [0; 6],
            throws: 0,
            changes: (0, 0),
        });
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                node,
                board,
                words,
                disk: Mutex::new(next),
            }),
        })
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        // A holder that died cannot have left the words half changed: each is one store.
        self.inner
            .words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, u64> {
        self.inner
            .disk
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The node whose flags these are.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// Every flag and the kill switch.
    #[must_use]
    pub fn view(&self) -> FlagsView {
        let words = self.words();
        FlagsView {
            node: self.inner.node.clone(),
            force_v1: words.force.on,
            force_v1_changed_unix_ms: words.force.changed_unix_ms,
            in_force: self.in_force(&words),
            flags: Component::ALL
                .iter()
                .map(|of| self.view_of(&words, *of))
                .collect(),
        }
    }

    /// Reads the words back. A data plane that has just attached has other ones for a moment.
    fn in_force(&self, words: &Words) -> bool {
        let mut same = false;
        let read = self.inner.board.with(&mut |switches| {
            same = switches.is_forced_v1() == words.force.on
                && Component::ALL.iter().zip(&words.flags).all(|(of, flag)| {
                    // Behind the kill switch the words of the components do not show.
                    words.force.on || switches.component(*of) == flag.version(*of, &self.inner.node)
                });
        });
        read.is_ok() && same
    }

    /// How often the kill switch was switched on, and off, since this process began.
    #[must_use]
    pub fn switch_changes(&self) -> (u64, u64) {
        self.words().changes
    }

    /// One flag.
    ///
    /// # Errors
    /// [`FlagError::Unknown`].
    pub fn get(&self, feature: &str) -> Result<FlagView, FlagError> {
        let of = known(feature)?;
        Ok(self.view_of(&self.words(), of))
    }

    fn view_of(&self, words: &Words, of: Component) -> FlagView {
        let flag = words.flags[of.code() as usize].clone();
        let version = if words.force.on {
            Version::V1
        } else {
            flag.version(of, &self.inner.node)
        };
        FlagView {
            feature: rule::key(of),
            available: rule::is_available(of),
            bucket: bucket::bucket(rule::key(of), self.inner.node.as_str()),
            version_here: version.as_str(),
            flag,
        }
    }

    /// Changes a flag's switch, its share or both. Blocks for one fsync.
    ///
    /// # Errors
    /// [`FlagError`]; then nothing was changed.
    pub fn set(
        &self,
        feature: &str,
        enabled: Option<bool>,
        percentage: Option<Percentage>,
        by: &str,
    ) -> Result<FlagView, FlagError> {
        let of = known(feature)?;
        let mut next = self.disk();
        let before = self.words().flags[of.code() as usize].clone();
        let after = Flag {
            enabled: enabled.unwrap_or(before.enabled),
            percentage: percentage.unwrap_or(before.percentage),
            changed_unix_ms: unix_ms(),
            ..before.clone()
        };
        let change = Change::Set {
            feature: feature.to_owned(),
            enabled_before: before.enabled,
            percentage_before: before.percentage,
            enabled: after.enabled,
            percentage: after.percentage,
        };
        self.commit_flag(&mut next, of, after, change, by)
    }

    /// Keeps nodes out of a flag, or lets them in again. Blocks for one fsync.
    ///
    /// # Errors
    /// [`FlagError`]; then nothing was changed.
    pub fn exclude(
        &self,
        feature: &str,
        nodes: &[NodeId],
        excluded: bool,
        by: &str,
    ) -> Result<FlagView, FlagError> {
        let of = known(feature)?;
        let mut next = self.disk();
        let before = self.words().flags[of.code() as usize].clone();
        let mut list: BTreeSet<NodeId> = before.excluded_nodes.clone();
        for node in nodes {
            if excluded {
                list.insert(node.clone());
            } else {
                list.remove(node);
            }
        }
        if list.len() > rule::EXCLUDED_MAX {
            return Err(FlagError::TooMany {
                found: list.len(),
                limit: rule::EXCLUDED_MAX,
            });
        }
        let after = Flag {
            excluded_nodes: list,
            changed_unix_ms: unix_ms(),
            ..before
        };
        let change = Change::Exclude {
            feature: feature.to_owned(),
            nodes: nodes.to_vec(),
            excluded,
        };
        self.commit_flag(&mut next, of, after, change, by)
    }

    /// Makes a flag what the cluster agreed on, unless something newer was adopted. Blocks for one fsync
    /// if that changes anything.
    ///
    /// # Errors
    /// [`FlagError`]; then nothing was changed.
    pub fn adopt(
        &self,
        feature: &str,
        value: Option<(bool, Percentage)>,
        excluded: &BTreeSet<NodeId>,
        generation: u64,
        by: &str,
    ) -> Result<(), FlagError> {
        let of = known(feature)?;
        let mut next = self.disk();
        let before = {
            let words = self.words();
            if words.adopted[of.code() as usize] >= generation {
                return Ok(());
            }
            words.flags[of.code() as usize].clone()
        };
        let (enabled, percentage) = value.unwrap_or((before.enabled, before.percentage));
        let mut after = before.clone();
        if (enabled, percentage) != (before.enabled, before.percentage) {
            after.enabled = enabled;
            after.percentage = percentage;
            after.changed_unix_ms = unix_ms();
            let change = Change::Set {
                feature: feature.to_owned(),
                enabled_before: before.enabled,
                percentage_before: before.percentage,
                enabled,
                percentage,
            };
            self.commit_flag(&mut next, of, after.clone(), change, by)?;
        }
        for (out, nodes) in [
            (true, excluded.difference(&before.excluded_nodes)),
            (false, before.excluded_nodes.difference(excluded)),
        ] {
            let nodes: Vec<NodeId> = nodes.cloned().collect();
            if nodes.is_empty() {
                continue;
            }
            for node in &nodes {
                if out {
                    after.excluded_nodes.insert(node.clone());
                } else {
                    after.excluded_nodes.remove(node);
                }
            }
            after.changed_unix_ms = unix_ms();
            let change = Change::Exclude {
                feature: feature.to_owned(),
                nodes,
                excluded: out,
            };
            self.commit_flag(&mut next, of, after.clone(), change, by)?;
        }
        self.words().adopted[of.code() as usize] = generation;
        Ok(())
    }

    fn commit_flag(
        &self,
        next: &mut u64,
        of: Component,
        after: Flag,
        change: Change,
        by: &str,
    ) -> Result<FlagView, FlagError> {
        self.record(next, rule::key(of), &after, change, by)?;
        let mut words = self.words();
        let version = after.version(of, &self.inner.node);
        words.flags[of.code() as usize] = after;
        // Without a data plane the flag is kept, and set at the next attach.
        let _ = self
            .inner
            .board
            .with(&mut |switches| switches.set_component(of, version));
        Ok(self.view_of(&words, of))
    }

    /// Writes a row and its history entry in one transaction.
    fn record(
        &self,
        next: &mut u64,
        key: &str,
        value: &impl Serialize,
        change: Change,
        by: &str,
    ) -> Result<(), StoreError> {
        let entry = Entry {
            number: *next,
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
            change,
        };
        let rows = [
            Row::new(TABLE, key, value)?,
            Row::new(history::TABLE, &entry.row(), &entry)?,
        ];
        self.inner.store.put_rows(&rows)?;
        *next += 1;
        Ok(())
    }

    /// The changes kept, the newest first. Blocks for a read of the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn history(&self) -> Result<Vec<Entry>, StoreError> {
        history::read(&self.inner.store)
    }
}

fn known(feature: &str) -> Result<Component, FlagError> {
    rule::component(feature).ok_or_else(|| FlagError::Unknown(feature.chars().take(64).collect()))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
