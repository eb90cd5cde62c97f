//! What the log says, applied to this node.
//!
//! In: the replicated state, as it changes. Out: changes of [`Flags`], and a throw of this node's kill
//! switch that the log does not know yet. Promise: each change of the log is applied in its order, once
//! or again to the same effect.

use std::collections::BTreeSet;
use std::time::Duration;

use dwcp_consensus::{Command, State};

use super::{Cluster, lost, unix_ms};
use crate::flags::{FlagError, Flags, NodeId, Percentage};
use crate::store::StoreError;

const TABLE: &str = "cluster";
const SEEN_ROW: &str = "force_generation";
/// How often a throw is brought to the log again that no quorum took.
const AGAIN: Duration = Duration::from_secs(1);

impl Cluster {
    /// Applies what the log says, for ever.
    pub(super) async fn follow(self) {
        loop {
            let pending = self.look().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "what the cluster decided is not applied here yet");
                true
            });
            let changed = self.changed.notified();
            if pending {
                let _ = tokio::time::timeout(AGAIN, changed).await;
            } else {
                changed.await;
            }
        }
    }

    /// Applies the present state; says whether something is left to do.
    async fn look(&self) -> Result<bool, FlagError> {
        let applying = self.applying.lock().await;
        // Under the lock: a release that was answered is in it.
        let state = self.replicator.local();
        if state.epoch == 0 {
            return Ok(false);
        }
        let this = self.clone();
        let applied = tokio::task::spawn_blocking(move || this.apply(&state));
        let unrecorded = applied.await.unwrap_or_else(|_| Err(lost()))?;
        drop(applying);
        if !unrecorded {
            return Ok(false);
        }
        let command = Command::Force {
            on: true,
            seen: 0,
            at_unix_ms: unix_ms(),
            by: self.flags.node().as_str().to_owned(),
        };
        let recorded = self.replicator.submit(command, AGAIN).await;
        if let Err(error) = &recorded {
            tracing::debug!(%error, "the kill switch is on here; the log does not know yet");
        }
        Ok(true)
    }

    /// Blocks for the disk. Says whether the kill switch is on here without the log's knowledge.
    fn apply(&self, state: &State) -> Result<bool, FlagError> {
        adopt_flags(&self.flags, state)?;
        let seen: u64 = self.store.get_json(TABLE, SEEN_ROW)?.unwrap_or(0);
        let here = self.flags.view().force_v1;
        if state.force.generation <= seen {
            return Ok(here && !state.force.on);
        }
        if state.force.on && !here {
            self.flags.throw_v1();
            self.flags.record_throw(&state.force.by)?;
        } else if !state.force.on && here {
            self.flags.release_v1(&state.force.by)?;
        }
        self.seen(state.force.generation)?;
        Ok(false)
    }

    /// Remembers which change of the kill switch was applied here.
    pub(super) fn seen(&self, generation: u64) -> Result<(), StoreError> {
        self.store.put_json(TABLE, SEEN_ROW, &generation)
    }
}

/// Makes the flags of this node those of the log; what the log does not know stays. Blocks for the disk.
pub(super) fn adopt_flags(flags: &Flags, state: &State) -> Result<(), FlagError> {
    for (feature, flag) in &state.flags {
        let value = flag.value.and_then(|value| {
            Some((
                value.enabled,
                Percentage::new(f64::from(value.share) / 1_000.0)?,
            ))
        });
        let excluded: BTreeSet<NodeId> = flag
            .excluded
            .iter()
            .filter_map(|name| NodeId::new(name))
            .collect();
        match flags.adopt(feature, value, &excluded, flag.generation, &flag.by) {
            // Another version's flag decides nothing here.
            Ok(()) | Err(FlagError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
