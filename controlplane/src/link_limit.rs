//! What all migrations of this host together may send.
//!
//! In: an operator's limit. Out: the word that every batch reads, and a row on disk. Promises: a limit is on
//! disk before it is in force; a data plane that attaches gets it; one that nobody ever set is left as the data
//! plane has it.

use serde::{Deserialize, Serialize};

use crate::flags::{NotAttached, SwitchBoard};
use crate::host::Host;
use crate::store::{Row, Store, StoreError};

const TABLE: &str = "link";
const ROW: &str = "limit";

/// The limit, as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkLimitView {
    /// Wire bytes a second of all migrations together; 0: no limit.
    pub bandwidth_limit_bytes_per_s: u64,
    /// Whether a data plane is attached that has it.
    #[serde(default, skip_deserializing)]
    pub in_force: bool,
}

/// See the module; a clone is the same.
#[derive(Clone)]
pub struct LinkLimit {
    store: Store,
    host: Host,
}

impl LinkLimit {
    /// Kept in `store`, in force at `host`.
    #[must_use]
    pub const fn new(store: Store, host: Host) -> Self {
        Self { store, host }
    }

    fn kept(&self) -> Result<Option<u64>, StoreError> {
        let row = self.store.get_json::<LinkLimitView>(TABLE, ROW)?;
        Ok(row.map(|row| row.bandwidth_limit_bytes_per_s))
    }

    fn word(&self) -> Option<u64> {
        let mut word = None;
        let read = &mut |switches: &dwcp_api::switches::Switches| {
            word = Some(switches.link_limit_bytes_per_s());
        };
        self.host.with(read).ok().and(word)
    }

    /// The limit. Blocks for a read of the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn view(&self) -> Result<LinkLimitView, StoreError> {
        let (kept, word) = (self.kept()?, self.word());
        let limit = kept.or(word).unwrap_or(0);
        Ok(LinkLimitView {
            bandwidth_limit_bytes_per_s: limit,
            in_force: word == Some(limit),
        })
    }

    /// Sets the limit; 0 lifts it. Blocks for one fsync.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was changed.
    pub fn set(&self, bytes_per_s: u64) -> Result<LinkLimitView, StoreError> {
        let row = LinkLimitView {
            bandwidth_limit_bytes_per_s: bytes_per_s,
            in_force: false,
        };
        self.store.put_rows(&[Row::new(TABLE, ROW, &row)?])?;
        let applied = self
            .host
            .with(&mut |switches| switches.set_link_limit(bytes_per_s));
        tracing::info!(bytes_per_s, ?applied, "limit of all migrations together");
        Ok(LinkLimitView {
            in_force: applied.is_ok(),
            ..row
        })
    }

    /// Sets the word of a data plane that has just attached.
    ///
    /// # Errors
    /// [`NotAttached`] if it is gone again.
    pub fn apply(&self) -> Result<(), NotAttached> {
        match self.kept() {
            Ok(Some(limit)) => self.host.with(&mut |words| words.set_link_limit(limit)),
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the limit of all migrations together is not known");
                Ok(())
            }
        }
    }
}
