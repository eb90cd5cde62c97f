//! Who changed which flag, and when: the last [`ENTRIES_MAX`] changes.
//!
//! In: a change that is about to be stored. Out: the row that goes to disk with it, in the same
//! transaction. Promise: bounded; the oldest entry gives its place to the newest.

use serde::{Deserialize, Serialize};

use super::rule::{NodeId, Percentage};
use crate::store::{Store, StoreError};

/// Entries kept.
pub const ENTRIES_MAX: u64 = 1_000;

/// Table of the entries.
pub const TABLE: &str = "flag_history";

/// What was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Change {
    /// A flag's switch or share.
    Set {
        /// Key of the flag.
        feature: String,
        /// Switch before.
        enabled_before: bool,
        /// Share before.
        percentage_before: Percentage,
        /// Switch now.
        enabled: bool,
        /// Share now.
        percentage: Percentage,
    },
    /// Nodes were kept out of a flag, or let in again.
    Exclude {
        /// Key of the flag.
        feature: String,
        /// Nodes named.
        nodes: Vec<NodeId>,
        /// Kept out (true) or let in again (false).
        excluded: bool,
    },
    /// The kill switch.
    ForceV1 {
        /// On or off.
        force_v1: bool,
    },
    /// The kill switch was found on in the data plane though no change of it was on disk.
    ForceV1Adopted,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts the changes of this node.
    pub number: u64,
    /// When, Unix milliseconds.
    pub at_unix_ms: u64,
    /// Who: the client's address, and the name it gave for itself, which nothing vouches for.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

impl Entry {
    /// The row's key: a ring of [`ENTRIES_MAX`] places.
    #[must_use]
    pub fn row(&self) -> String {
        format!("{:04}", self.number % ENTRIES_MAX)
    }
}

/// Every entry kept, the newest first.
///
/// # Errors
/// [`StoreError`].
pub fn read(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let rows = store.list_json::<Entry>(TABLE)?;
    let mut entries: Vec<Entry> = rows.into_iter().map(|(_, entry)| entry).collect();
    entries.sort_by_key(|entry| core::cmp::Reverse(entry.number));
    Ok(entries)
}
