//! What the log says, applied to this node.
//!
//! In: the replicated state, as it changes. Out: changes of [`Flags`], and throws of the kill switch that the log
//! does not know yet. Promise: each change of the log is applied in its order, once
//! or again to the same effect.

use std::collections::BTreeSet;
use std::time::Duration;

use dwcp_consensus::command::ThrowMark;
use dwcp_consensus::throw::Throw;
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
        for command in &unrecorded {
            let recorded = self.replicator.submit(command.clone(), AGAIN).await;
            if let Err(error) = &recorded {
                tracing::debug!(%error, "the kill switch is on here; the log does not know yet");
            }
        }
        Ok(!unrecorded.is_empty())
    }

    /// Blocks for the disk. Gives what the log is to know of the kill switch.
    fn apply(&self, state: &State) -> Result<Vec<Command>, FlagError> {
        adopt_flags(&self.flags, state)?;
        self.throws.released(&state.force.released)?;
        let seen: u64 = self.store.get_json(TABLE, SEEN_ROW)?.unwrap_or(0);
        // In this order: a throw after the count is not undone, one before it is seen.
        let throws = self.flags.throws();
        let in_force = self.throws.are_in_force();
        let here = self.flags.view().force_v1;
        let by = &state.force.by;
        if state.force.on && !here && state.force.generation > seen {
            self.flags.throw_v1();
            self.flags.record_throw(by)?;
        } else if in_force && !here {
            // Kept by the process before this one, whose own row was not written.
            self.flags.throw_v1();
            self.flags.record_throw(self.flags.node().as_str())?;
        } else if !state.force.on && here && !in_force && state.force.generation > seen {
            self.flags.release_v1(by, throws)?;
        }
        if state.force.generation > seen {
            self.seen(state.force.generation)?;
        }
        let mut unrecorded: Vec<Command> = self
            .throws
            .unrecorded(state)
            .iter()
            .map(recording)
            .collect();
        // A state older than what was seen here says nothing about what is on here.
        let alone = here && !state.force.on && !in_force && state.force.generation == seen;
        if alone && self.throws.can_sign() {
            // Thrown, and the process died before it signed: that is a throw like any other.
            self.throws.begin().sign(self.flags.node().as_str());
            unrecorded.extend(self.throws.unrecorded(state).iter().map(recording));
        } else if alone {
            unrecorded.push(Command::Force {
                on: true,
                seen: 0,
                at_unix_ms: unix_ms(),
                by: self.flags.node().as_str().to_owned(),
                throw: None,
            });
        }
        Ok(unrecorded)
    }

    /// Remembers which change of the kill switch was applied here.
    pub(super) fn seen(&self, generation: u64) -> Result<(), StoreError> {
        self.store.put_json(TABLE, SEEN_ROW, &generation)
    }
}

/// The command that records a throw.
pub(super) fn recording(throw: &Throw) -> Command {
    Command::Force {
        on: true,
        seen: 0,
        at_unix_ms: throw.at_unix_ms,
        by: format!("{}: {}", throw.node, throw.by),
        throw: Some(ThrowMark {
            node: throw.node.clone(),
            number: throw.number,
        }),
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
