//! Planted bugs: each proves that the simulation would see its like.
//!
//! In: the bug that a test plants in its thread. Out: whether a site is to misbehave. Promise: outside
//! tests the answer is the constant `false`, and the compiler takes the site away.

/// A way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A vote is kept in memory only.
    VoteNotSaved,
    /// The log is not synced before it is acknowledged.
    FsyncSkipped,
    /// An unreachable peer counts as a vote: elections by fewer than a majority.
    SilenceIsAVote,
    /// An unreachable peer counts as an acknowledgement: a quorum of n/2 commits.
    SilenceIsAnAck,
    /// A leader that restarts goes on in its term.
    LeaderRestored,
    /// Reads take what is here, without asking a quorum.
    StaleRead,
    /// A follower answers a read before it has applied what the leader had.
    ReadBeforeApplied,
    /// Commands after the seal run.
    SealIgnored,
    /// The next epoch begins without what the sealed one knew.
    GenesisEmpty,
    /// The session table is not handed over to the next epoch.
    SessionsNotHandedOver,
    /// A snapshot leaves the session table out.
    SessionsNotInSnapshot,
    /// A request that ran is run again.
    RetryRunsAgain,
    /// A client numbers its retry as a new request.
    RetryGetsNewNumber,
    /// A snapshot does not say what it contains, so the log runs over it again.
    SnapshotWithoutLastIndex,
    /// The log is cut before the snapshot is on disk.
    SnapshotNotSynced,
    /// What a new leader cuts off comes back after a restart.
    TruncateNotSaved,
    /// A segment is begun without the entries of the one it replaces.
    CheckpointWithoutEntries,
    /// A segment takes the place of another without what came while it was written.
    CheckpointTooOld,
    /// A record is read back without its checksum.
    ChecksumIgnored,
    /// A throw counts whoever signed it.
    ThrowUnsigned,
    /// A throw counts again after its release.
    ThrowReplayed,
    /// A throw counts though its node is no member.
    ThrowOfStranger,
    /// A throw counts though it was made for another cluster.
    ThrowElsewhere,
    /// A throw is sent to each peer once.
    ThrowSentOnce,
    /// A peer counts as knowing what was sent to it.
    ThrowSentIsKnown,
    /// Only a node's own throws are sent.
    ThrowNotRelayed,
    /// A silent peer is asked less and less often, without an end.
    ThrowPauseGrows,
    /// What a peer once knew it knows for ever.
    ThrowKnownForEver,
    /// A second throw of a node is taken for its first.
    ThrowSecondLost,
    /// A release undoes throws that it does not know.
    ReleaseOfAll,
    /// What a peer knows and does not show counts as released.
    ReleaseByPeer,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or takes it out.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.with(|cell| cell.set(bug));
}

/// Is this bug planted?
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.with(|cell| cell.get() == Some(bug))
}

/// Is this bug planted?
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
