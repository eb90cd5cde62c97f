//! The kill switch: everything back to v1, and the way out of it.
//!
//! In: a throw, a release, a data plane that attaches. Out: the word in its memory and the row on disk.
//! Promise: the one ordering that matters. A throw stores the word first and the row after; a release
//! writes the row first and stores the word after, unless a throw came in between.

use std::sync::MutexGuard;

use dwcp_api::switches::{Component, Switches};
use dwcp_api::{Version, monotonic_ns};
use serde::{Deserialize, Serialize};

use super::history::Change;
use super::view::{FlagError, Released};
use super::{FORCE_ROW, Flags, NotAttached, unix_ms};
use crate::store::StoreError;

/// The kill switch as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Force {
    pub(super) on: bool,
    /// Stamp of the last change, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) changed_ns: u64,
    /// Stamp of the last time it was switched on: tells a throw that was recorded from one that was not.
    pub(super) thrown_ns: u64,
    pub(super) changed_unix_ms: u64,
}

/// A release that is on disk and not yet in memory.
pub(super) struct RecordedRelease<'a> {
    after: Force,
    /// Throws that had been seen before the disk was written.
    throws: u64,
    /// Held until it is applied, so that a throw meanwhile is recorded after it.
    _disk: MutexGuard<'a, u64>,
}

impl Flags {
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
        let board = &self.inner.board;
        let applied = board.with(&mut |switches| switches.force_v1(true, stamp));
        board.hurry();
        applied.is_ok()
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

    /// Throws so far: what [`Self::release_v1`] is told, so that it undoes none that came later.
    #[must_use]
    pub fn throws(&self) -> u64 {
        self.words().throws
    }

    /// Lets the flags decide again: first on disk, then in memory. Blocks for one fsync. Returns
    /// whether it was applied to a data plane and, if a throw came after `throws` were counted, that it stays on.
    ///
    /// # Errors
    /// [`FlagError::Store`]; then nothing was changed.
    pub fn release_v1(&self, by: &str, throws: u64) -> Result<Released, FlagError> {
        let recorded = self.record_release(by, throws)?;
        Ok(self.apply_release(recorded))
    }

    pub(super) fn record_release(
        &self,
        by: &str,
        throws: u64,
    ) -> Result<RecordedRelease<'_>, FlagError> {
        let mut next = self.disk();
        let before = self.words().force.clone();
        let after = Force {
            on: false,
            changed_ns: monotonic_ns(),
            changed_unix_ms: unix_ms(),
            ..before
        };
        let change = Change::ForceV1 { force_v1: false };
        self.record(&mut next, FORCE_ROW, &after, change, by)?;
        Ok(RecordedRelease {
            after,
            throws,
            _disk: next,
        })
    }

    pub(super) fn apply_release(&self, recorded: RecordedRelease<'_>) -> Released {
        let mut words = self.words();
        if words.throws != recorded.throws {
            // The thrower waits for the disk and records its throw after this.
            return Released {
                overtaken: true,
                applied: false,
            };
        }
        words.changes.1 += u64::from(words.force.on);
        words.force = recorded.after;
        let stamp = words.force.changed_ns;
        let board = &self.inner.board;
        let applied = board.with(&mut |switches| switches.force_v1(false, stamp));
        Released {
            overtaken: false,
            applied: applied.is_ok(),
        }
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
}
