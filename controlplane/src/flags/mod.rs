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
//! | [`history`] | who changed what, and when |

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_api::Version;
use dwcp_api::monotonic_ns;
use dwcp_api::switches::{Component, Switches};
use serde::{Deserialize, Serialize};

pub mod board;
pub mod bucket;
pub mod history;
pub mod rule;

pub use board::{NotAttached, SwitchBoard};
pub use rule::{Flag, NodeId, Percentage};

use crate::store::{Row, Store, StoreError};
use history::{Change, Entry};

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
    /// Grows each time the kill switch is thrown: a release that began before a throw must not undo it.
    throws: u64,
    /// Changes since the process began: to on, to off.
    changes: (u64, u64),
}

/// The kill switch as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Force {
    on: bool,
    /// Stamp of the last change, `CLOCK_MONOTONIC` nanoseconds.
    changed_ns: u64,
    /// Stamp of the last time it was switched on: tells a throw that was recorded from one that was not.
    thrown_ns: u64,
    changed_unix_ms: u64,
}

/// A flag as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct FlagView {
    /// Key of the flag.
    pub feature: &'static str,
    /// Its settings.
    #[serde(flatten)]
    pub flag: Flag,
    /// This release has the component in v3; if not, the flag is kept but decides nothing.
    pub available: bool,
    /// Where this node stands: it is in if its bucket lies below `percentage` × 1000.
    pub bucket: u32,
    /// What this node uses, the kill switch applied.
    pub version_here: &'static str,
}

/// All flags as the API shows them.
#[derive(Clone, Debug, Serialize)]
pub struct FlagsView {
    /// The node that `bucket` and `version_here` speak of.
    pub node: NodeId,
    /// The kill switch.
    pub force_v1: bool,
    /// When it was last changed, Unix milliseconds; 0: never.
    pub force_v1_changed_unix_ms: u64,
    /// A data plane is attached, so the words are in force.
    pub attached: bool,
    /// One per component.
    pub flags: Vec<FlagView>,
}

/// What became of a change of the kill switch.
#[derive(Clone, Debug, Serialize)]
pub struct ForceView {
    /// Its state now.
    pub force_v1: bool,
    /// The word is in the data plane's memory.
    pub applied: bool,
    /// From the arrival of the request to that store, microseconds; null if no data plane is attached.
    pub applied_us: Option<u64>,
    /// The change is on disk.
    pub persisted: bool,
    /// What else to know, in words.
    pub note: Option<String>,
}

/// Why a change of a flag was refused.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// No such flag.
    #[error(
        "there is no flag {0:?}; the flags are dwcp_v3_amst, dwcp_v3_hde, dwcp_v3_pba, dwcp_v3_ass, dwcp_v3_acp and dwcp_v3_itp"
    )]
    Unknown(String),
    /// The exclusion list is full.
    #[error(
        "a flag excludes {limit} nodes at most, this would be {found}: lower its percentage instead"
    )]
    TooMany {
        /// Nodes that would be excluded.
        found: usize,
        /// How many may be.
        limit: usize,
    },
    /// The disk refused it; nothing was changed.
    #[error("nothing was changed: {0}")]
    Store(#[from] StoreError),
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
            attached: self.inner.board.with(&mut |_| ()).is_ok(),
            flags: Component::ALL
                .iter()
                .map(|of| self.view_of(&words, *of))
                .collect(),
        }
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

    /// Sends everything back to v1 at once: one store to shared memory, no disk, no waiting. Call
    /// [`Self::record_throw`] afterwards. Returns whether a data plane is attached.
    pub fn throw_v1(&self) -> bool {
        let mut words = self.words();
        // A repeat keeps the first stamp: what is measured is the way from the throw to the first v1 batch.
        if !words.force.on {
            words.changes.0 += 1;
            let now = monotonic_ns();
            words.force = Force {
                on: true,
                changed_ns: now,
                thrown_ns: now,
                changed_unix_ms: unix_ms(),
            };
        }
        words.throws += 1;
        let stamp = words.force.changed_ns;
        self.inner
            .board
            .with(&mut |switches| switches.force_v1(true, stamp))
            .is_ok()
    }

    /// Puts on disk that the kill switch was thrown. Blocks for one fsync.
    ///
    /// # Errors
    /// [`StoreError`]; the switch stays on all the same, and a restart of the control plane finds it on
    /// in the data plane.
    pub fn record_throw(&self, by: &str) -> Result<(), StoreError> {
        let mut next = self.disk();
        let force = self.words().force.clone();
        self.record(
            &mut next,
            FORCE_ROW,
            &force,
            Change::ForceV1 { force_v1: true },
            by,
        )
    }

    /// Lets the flags decide again: first on disk, then in memory. Blocks for one fsync. Returns
    /// whether it was applied to a data plane and, if a throw came in between, that it stays on.
    ///
    /// # Errors
    /// [`FlagError::Store`]; then nothing was changed.
    pub fn release_v1(&self, by: &str) -> Result<Released, FlagError> {
        let mut next = self.disk();
        let (throws, before) = {
            let words = self.words();
            (words.throws, words.force.clone())
        };
        let after = Force {
            on: false,
            changed_ns: monotonic_ns(),
            changed_unix_ms: unix_ms(),
            ..before
        };
        self.record(
            &mut next,
            FORCE_ROW,
            &after,
            Change::ForceV1 { force_v1: false },
            by,
        )?;
        let mut words = self.words();
        if words.throws != throws {
            // The thrower waits for the disk and records its throw after this.
            return Ok(Released {
                overtaken: true,
                applied: false,
            });
        }
        if words.force.on {
            words.changes.1 += 1;
        }
        words.force = after;
        let stamp = words.force.changed_ns;
        let applied = self
            .inner
            .board
            .with(&mut |switches| switches.force_v1(false, stamp))
            .is_ok();
        Ok(Released {
            overtaken: false,
            applied,
        })
    }

    /// Sets all words of a data plane that has just attached. Blocks for an fsync if it has to adopt a
    /// kill switch that was never recorded.
    ///
    /// # Errors
    /// [`NotAttached`] if it is gone again.
    pub fn apply_all(&self) -> Result<(), NotAttached> {
        let mut adopted = false;
        {
            let mut words = self.words();
            let versions: Vec<Version> = Component::ALL
                .iter()
                .zip(&words.flags)
                .map(|(of, flag)| flag.version(*of, &self.inner.node))
                .collect();
            let known = words.force.clone();
            let mut found = None;
            self.inner.board.with(&mut |switches: &Switches| {
                let view = switches.read();
                if view.forced_v1 && !known.on && view.changed_ns != known.thrown_ns {
                    found = Some(view.changed_ns);
                } else {
                    switches.force_v1(known.on, known.changed_ns);
                }
                for (of, version) in Component::ALL.iter().zip(&versions) {
                    switches.set_component(*of, *version);
                }
            })?;
            if let Some(stamp) = found {
                adopted = true;
                words.throws += 1;
                words.changes.0 += 1;
                words.force = Force {
                    on: true,
                    changed_ns: stamp,
                    thrown_ns: stamp,
                    changed_unix_ms: unix_ms(),
                };
            }
        }
        if adopted {
            tracing::warn!(
                "the data plane was found forced to v1 though that was never recorded; it stays so until `dwcpctl rollback --off`"
            );
            let mut next = self.disk();
            let force = self.words().force.clone();
            let recorded = self.record(
                &mut next,
                FORCE_ROW,
                &force,
                Change::ForceV1Adopted,
                "data plane",
            );
            if let Err(error) = recorded {
                tracing::error!(%error, "the adopted kill switch is not on disk");
            }
        }
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

/// What became of a release of the kill switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// It was thrown again meanwhile and stays on.
    pub overtaken: bool,
    /// The word is in the data plane's memory.
    pub applied: bool,
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
