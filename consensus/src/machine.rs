//! One epoch's state machine, as openraft wants it.
//!
//! In: committed entries, snapshots. Out: a [`State`] that others may look at. Promise: a snapshot is
//! on disk before openraft hears of it, and only then may the log be cut.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use crate::command::Outcome;
use crate::conf::{Conf, LogId, Snapshot, SnapshotMeta, StoredMembership};
use crate::plant::{Bug, planted};
use crate::state::State;
use crate::vault::Vault;

/// Called after each change of the state, with the index that changed it.
pub(crate) type OnApply = Arc<dyn Fn(&State, u64) + Send + Sync>;

/// The state machine; a clone is the same.
#[derive(Clone)]
pub(crate) struct Machine {
    applied: Arc<Mutex<Applied>>,
    vault: Vault,
    genesis: Arc<str>,
    on_apply: OnApply,
}

struct Applied {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// The state of an epoch: its snapshot if there is one, else what it began with.
    pub(crate) fn open(vault: Vault, genesis: &[u8], on_apply: OnApply) -> io::Result<Self> {
        let first = State::from_bytes(genesis)?;
        let mut applied = Applied {
            last: None,
            membership: StoredMembership::default(),
            state: first,
        };
        if let Some((meta, bytes)) = vault.snapshot(applied.state.epoch)? {
            applied = Applied {
                state: State::from_bytes(&bytes)?,
                last: meta.last_log_id,
                membership: meta.last_membership,
            };
        }
        Ok(Self {
            applied: Arc::new(Mutex::new(applied)),
            vault,
            genesis: State::hash(genesis).into(),
            on_apply,
        })
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        // A state that a panic left half changed ends the engine, which is not asked again.
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hash of the state the epoch began with.
    pub(crate) fn genesis_hash(&self) -> &str {
        &self.genesis
    }

    /// Looks at the state.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&State) -> T) -> T {
        at(&self.applied().state)
    }

    /// The state, and the index it stands at.
    pub(crate) fn state(&self) -> (State, Option<u64>) {
        let applied = self.applied();
        (applied.state.clone(), applied.last.map(|id| id.index))
    }

    /// Returns when nothing of it is being written any more.
    pub(crate) async fn settled(&self) {
        self.vault.settled().await;
    }

    fn snapshot_now(&self) -> (SnapshotMeta, State) {
        let applied = self.applied();
        let mut state = applied.state.clone();
        if planted(Bug::SessionsNotInSnapshot) {
            state.drop_sessions();
        }
        let mut last_log_id = applied.last;
        if planted(Bug::SnapshotWithoutLastIndex) {
            last_log_id = last_log_id.map(|id| LogId {
                index: id.index.saturating_sub(5),
                ..id
            });
        }
        let meta = SnapshotMeta {
            last_log_id,
            last_membership: applied.membership.clone(),
        };
        (meta, state)
    }
}

impl<C: Conf> RaftSnapshotBuilder<C> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, state) = self.snapshot_now();
        let snapshot = self.vault.keep_aside(meta.clone(), state).await?;
        Ok(Snapshot { meta, snapshot })
    }
}

impl<C: Conf> RaftStateMachine<C> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<C>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let index = entry.index();
            let outcome = {
                let mut applied = self.applied();
                applied.last = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => Outcome::Nothing,
                    EntryPayload::Normal(request) => {
                        let outcome = applied.state.apply(index, &self.genesis, &request);
                        (self.on_apply)(&applied.state, index);
                        outcome
                    }
                    EntryPayload::Membership(membership) => {
                        applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Outcome::Nothing
                    }
                }
            };
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        let diverged = self.look(|state| state.diverged.clone());
        diverged.map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> io::Result<()> {
        let state = State::from_bytes(&snapshot)?;
        self.vault.keep(state.epoch, meta, &snapshot)?;
        let mut applied = self.applied();
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.state = state;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        (self.on_apply)(&applied.state, index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let epoch = self.look(|state| state.epoch);
        let kept = self.vault.snapshot(epoch)?;
        Ok(kept.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
