//! The replicated truth, as the rest of the control plane sees it.
//!
//! In: commands, reads, changes of the members. Out: what became of them. Promise: nothing here tells
//! which engine orders the log, or what carries its messages.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::chain::Chain;
use crate::command::{Command, Reply, TooLong};
use crate::conf::{Conf, Epoch, NodeNumber, Peer};
use crate::disk::Disk;
use crate::state::State;
use crate::status::Status;
use crate::wire::{Boxed, Change};

/// Why something was not done, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A quorum did not answer in time.
    #[error(
        "no quorum agreed in time ({why}): it may still happen; see `dwcpctl cluster status` for the members that are missing"
    )]
    NoQuorum {
        /// What was last heard.
        why: String,
    },
    /// The state refuses it; nothing was changed.
    #[error("refused: {0}")]
    Refused(String),
    /// Its session was forgotten, so whether it ran is not known.
    #[error("its session was forgotten meanwhile: read the state before asking again")]
    Lost,
    /// Too long; it was not proposed.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Too few members of the next epoch answer; it was not sealed.
    #[error("only {ready} of the next epoch's {of} members answer: start the others first")]
    NotReady {
        /// Those who do.
        ready: usize,
        /// How many there are.
        of: usize,
    },
}

/// A log that a quorum agrees on, and the state it gives.
pub trait Replicator: Send + Sync + 'static {
    /// Runs a command once.
    fn submit(&self, command: Command, within: Duration) -> Boxed<Result<Reply, SubmitError>>;

    /// The state, with everything that was answered before.
    fn read(&self, within: Duration) -> Boxed<Result<State, SubmitError>>;

    /// The state as this member has it, perhaps old.
    fn local(&self) -> State;

    /// Ends the epoch and begins the next one with these members.
    fn seal(
        &self,
        members: BTreeMap<NodeNumber, Peer>,
        within: Duration,
    ) -> Boxed<Result<Epoch, SubmitError>>;

    /// Changes the members or the leader.
    fn change(&self, change: Change, within: Duration) -> Boxed<Result<(), SubmitError>>;

    /// This member's view of the cluster.
    fn status(&self) -> Status;

    /// Ends this member's part; its files stay, and may be opened again when this returns.
    fn stop(&self) -> Boxed<()>;
}

impl<C: Conf, D: Disk> Replicator for Chain<C, D> {
    fn submit(&self, command: Command, within: Duration) -> Boxed<Result<Reply, SubmitError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.submit(command, within).await })
    }

    fn read(&self, within: Duration) -> Boxed<Result<State, SubmitError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.read(within).await })
    }

    fn local(&self) -> State {
        self.inner.local()
    }

    fn seal(
        &self,
        members: BTreeMap<NodeNumber, Peer>,
        within: Duration,
    ) -> Boxed<Result<Epoch, SubmitError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.seal(members, within).await })
    }

    fn change(&self, change: Change, within: Duration) -> Boxed<Result<(), SubmitError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.change(change, within).await })
    }

    fn status(&self) -> Status {
        self.inner.status()
    }

    fn stop(&self) -> Boxed<()> {
        let chain = self.clone();
        Box::pin(async move { chain.stop().await })
    }
}
