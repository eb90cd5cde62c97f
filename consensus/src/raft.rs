//! The first engine: one epoch ordered by Raft.
//!
//! In: requests, barriers, changes of the members, peers' messages. Out: what became of them.
//! Promises: an election is preceded by the question whether it would be won; a read asks a quorum
//! whether the leader still leads; an engine whose disk failed answers nobody.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, ReadPolicy, SnapshotPolicy};

use crate::chain::Tuning;
use crate::command::{Outcome, Request};
use crate::conf::{Conf, Epoch, NodeNumber, Peer, Snapshot};
use crate::disk::Disk;
use crate::log::Log;
use crate::machine::{Machine, OnApply};
use crate::network::{Caller, Network};
use crate::plant::{Bug, planted};
use crate::status::{MemberView, Status};
use crate::vault::{Handover, Vault};
use crate::wire::{Answer, Appended, Change, Message};

/// Entries kept behind a snapshot, so that a member that was away for a moment needs none.
const ENTRIES_BEHIND: u64 = 200;

/// How long a member may take to take the lead over: some elections.
const TAKE_OVER: Duration = Duration::from_secs(2);
/// How long a new member may take to have the log.
const JOIN: Duration = Duration::from_secs(5);

/// One epoch.
pub(crate) struct RaftEngine<C: Conf> {
    raft: Raft<C, Machine>,
    log: Log,
    machine: Machine,
    caller: Caller,
    epoch: Epoch,
}

/// Why this member did not do it.
#[derive(Clone, Debug)]
pub(crate) enum NotDone {
    /// Another one leads, or nobody known.
    Elsewhere,
    /// It may still happen, or not.
    Unknown(String),
}

fn not_done<C: Conf>(error: RaftError<C, ClientWriteError<C>>) -> NotDone {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => NotDone::Elsewhere,
        other => NotDone::Unknown(other.to_string()),
    }
}

impl<C: Conf> RaftEngine<C> {
    /// Takes an epoch up where this member left it, or begins it.
    pub(crate) async fn start<D: Disk>(
        caller: Caller,
        disk: &D,
        vault: Vault,
        handover: &Handover,
        tuning: &Tuning,
        on_apply: OnApply,
    ) -> io::Result<Self> {
        let epoch = handover.desc.epoch;
        let id = caller.id;
        let config = Config {
            cluster_name: caller.cluster.as_ref().to_owned(),
            heartbeat_interval: tuning.heartbeat_ms,
            election_timeout_min: tuning.election_ms_min,
            election_timeout_max: tuning.election_ms_max,
            install_snapshot_timeout: 5_000,
            max_payload_entries: 256,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(tuning.entries_per_snapshot),
            max_in_snapshot_log_to_keep: ENTRIES_BEHIND.min(tuning.entries_per_snapshot),
            enable_pre_vote: Some(true),
            // Entries go to the followers while this member's own disk still writes them. A leader that went
            // on in its term after losing them would give their places to others.
            enable_leader_restore: Some(planted(Bug::LeaderRestored)),
            backoff: format!("{}ms", tuning.heartbeat_ms.max(20)),
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let log = Log::open(disk, &log_prefix(epoch))?;
        let machine = Machine::open(vault, &handover.genesis, on_apply)?;
        let network = Network {
            caller: caller.clone(),
            epoch,
        };
        let raft = Raft::new(id, config, network, log.clone(), machine.clone())
            .await
            .map_err(io::Error::other)?;
        if handover.desc.members.contains_key(&id) {
            // Every member writes the same first entry; one that has it already is told so.
            if let Err(RaftError::Fatal(error)) =
                raft.initialize(handover.desc.members.clone()).await
            {
                return Err(io::Error::other(error));
            }
        }
        Ok(Self {
            raft,
            log,
            machine,
            caller,
            epoch,
        })
    }

    /// Ends it; the files stay.
    pub(crate) async fn stop(&self) {
        let _ = self.raft.shutdown().await;
        self.machine.settled().await;
        self.log.close().await;
    }

    /// Removes the files of an epoch that is over.
    pub(crate) fn forget<D: Disk>(disk: &D, epoch: Epoch) -> io::Result<()> {
        Log::forget(disk, &log_prefix(epoch))
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    #[cfg(test)]
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Why it does not run any more, if so.
    pub(crate) fn failed(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string)
    }

    /// The leader that this member follows or is.
    pub(crate) fn leader(&self) -> Option<(NodeNumber, Peer)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let members = metrics.membership_config.membership();
        let peer = members.get_node(&leader)?;
        Some((leader, peer.clone()))
    }

    /// Puts a request in the log and runs it.
    pub(crate) async fn propose(&self, request: Request) -> Result<Outcome, NotDone> {
        match self.raft.client_write(request).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(NotDone::Elsewhere)
            }
            Err(error) => Err(NotDone::Unknown(error.to_string())),
        }
    }

    /// Asks a quorum whether this member leads, and gives the index that a read must see.
    pub(crate) async fn barrier(&self) -> Result<Option<u64>, NotDone> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(Some(read.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                Err(NotDone::Elsewhere)
            }
            Err(error) => Err(NotDone::Unknown(error.to_string())),
        }
    }

    /// Returns when this member has applied an index.
    pub(crate) async fn applied(&self, index: Option<u64>, within: Duration) -> bool {
        if planted(Bug::ReadBeforeApplied) {
            return true;
        }
        let wait = self.raft.wait(Some(within));
        wait.applied_index_at_least(index, "read").await.is_ok()
    }

    /// Changes the members or the leader.
    pub(crate) async fn change(&self, change: Change) -> Result<(), NotDone> {
        let done = match change {
            Change::Add(id, peer) => return self.add(id, peer).await,
            Change::Remove(id) => {
                let voters = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
                self.raft.change_membership(voters, false).await
            }
            Change::Transfer(to) => return self.transfer(to).await,
        };
        done.map(drop).map_err(not_done)
    }

    /// Hands the lead over. From then on the engine takes no request until some member leads: one that cannot vote
    /// would never, and when the wanted one is down the others elect one among them.
    async fn transfer(&self, to: NodeNumber) -> Result<(), NotDone> {
        let now = self.raft.metrics().borrow_watched().clone();
        if !self.raft.is_leader() {
            return Err(NotDone::Elsewhere);
        }
        if to == now.id {
            return Ok(());
        }
        if !now.membership_config.voter_ids().any(|voter| voter == to) {
            let why = format!("node {to} is no member that votes; add it first");
            return Err(NotDone::Unknown(why));
        }
        let asked = self.raft.trigger().transfer_leader(to).await;
        asked.map_err(|error| NotDone::Unknown(error.to_string()))?;
        let is_over = |metrics: &RaftMetrics<C>| {
            metrics.current_term > now.current_term && metrics.current_leader.is_some()
        };
        let wait = self.raft.wait(Some(TAKE_OVER));
        let over = wait.metrics(is_over, "another leader").await;
        match over.ok().and_then(|metrics| metrics.current_leader) {
            Some(leader) if leader == to => Ok(()),
            _ => Err(NotDone::Unknown(format!(
                "node {to} did not take the lead: start it, then hand it the lead again"
            ))),
        }
    }

    /// Adds a member once it has the log. One that does not answer gets no vote: a majority that counts on it
    /// may be none.
    async fn add(&self, id: NodeNumber, peer: Peer) -> Result<(), NotDone> {
        let membership = self
            .raft
            .metrics()
            .borrow_watched()
            .membership_config
            .clone();
        if !membership.voter_ids().any(|voter| voter == id) {
            let there = self.caller.reach::<C>(id, &peer, self.epoch).await;
            there.map_err(|error| {
                NotDone::Unknown(format!("{error}; start the node there, then add it again"))
            })?;
            let address = peer.address.clone();
            let learned = self.raft.add_learner(id, peer, false).await;
            let learned = Some(learned.map_err(not_done)?.log_id);
            let wait = self.raft.wait(Some(JOIN));
            let has_log = |metrics: &RaftMetrics<C>| {
                let nodes = metrics.replication.as_ref();
                nodes
                    .and_then(|nodes| nodes.get(&id))
                    .is_some_and(|has| *has >= learned)
            };
            if wait.metrics(has_log, "a new member").await.is_err() {
                let node = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
                self.raft
                    .change_membership(node, false)
                    .await
                    .map_err(not_done)?;
                return Err(NotDone::Unknown(format!(
                    "the node at {address} does not take the log as node {id}: see its journal, then add it again"
                )));
            }
        }
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        let added = self.raft.change_membership(voters, false).await;
        added.map(drop).map_err(not_done)
    }

    /// Answers a peer of this epoch.
    pub(crate) async fn answer(&self, from: NodeNumber, message: Message) -> Answer {
        let answered = match message {
            Message::Append {
                vote,
                previous,
                entries,
                commit,
            } => {
                let rpc = AppendEntriesRequest {
                    vote,
                    prev_log_id: previous,
                    entries,
                    leader_commit: commit,
                };
                let appended = self.raft.append_entries(rpc).await;
                appended.map(|response| {
                    Answer::Append(match response {
                        AppendEntriesResponse::Success => Appended::All,
                        AppendEntriesResponse::PartialSuccess(last) => Appended::UpTo(last),
                        AppendEntriesResponse::Conflict => Appended::Conflict,
                        AppendEntriesResponse::HigherVote(vote) => Appended::Newer(vote),
                    })
                })
            }
            Message::Elect {
                vote,
                last,
                transfer,
                pre,
            } => {
                let mut rpc = VoteRequest::new(vote, last);
                rpc.leadership_transfer = transfer;
                let voted = if pre {
                    self.raft.pre_vote(rpc).await
                } else {
                    self.raft.vote(rpc).await
                };
                voted.map(|response| Answer::Elect {
                    vote: response.vote,
                    granted: response.vote_granted,
                    last: response.last_log_id,
                })
            }
            Message::Snapshot { vote, meta, state } => {
                let snapshot = Snapshot {
                    meta,
                    snapshot: state.into_bytes(),
                };
                let installed = self.raft.install_full_snapshot(vote, snapshot).await;
                installed
                    .map(|response| Answer::Snapshot(response.vote))
                    .map_err(RaftError::Fatal)
            }
            Message::Transfer { vote, heir, last } => {
                let rpc = TransferLeaderRequest::new(vote, heir, last);
                let taken = self.raft.handle_transfer_leader(rpc).await;
                taken
                    .map(|response| Answer::Transfer(response.map_err(|error| error.to_string())))
                    .map_err(RaftError::Fatal)
            }
            Message::Propose(request) => return self.proposed(request).await,
            Message::Barrier => {
                return match self.barrier().await {
                    Ok(index) => Answer::Barrier(index),
                    Err(why) => why.into_answer(),
                };
            }
            Message::Change(change) => {
                return match self.change(change).await {
                    Ok(()) => Answer::Changed(Ok(())),
                    Err(NotDone::Unknown(why)) => Answer::Changed(Err(why)),
                    Err(why) => why.into_answer(),
                };
            }
            Message::Ping | Message::Handover => return Answer::Here,
            Message::Throws(_) | Message::Figures => {
                return Answer::NotNow("the log does not answer that".to_owned());
            }
        };
        answered.unwrap_or_else(|error| {
            tracing::warn!(%error, from, "a message of a peer was not answered");
            Answer::NotNow("this member's log has failed; see its journal".to_owned())
        })
    }

    async fn proposed(&self, request: Request) -> Answer {
        if let Err(error) = request.command.check() {
            return Answer::NotNow(error.to_string());
        }
        match self.propose(request).await {
            Ok(outcome) => Answer::Proposed(outcome),
            Err(why) => why.into_answer(),
        }
    }

    /// What an operator wants to know.
    pub(crate) fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let voters: BTreeSet<NodeNumber> = members.voter_ids().collect();
        let matched = metrics.replication.clone().unwrap_or_default();
        let view = |id: &NodeNumber, peer: &Peer| MemberView {
            id: *id,
            name: peer.name.clone(),
            address: peer.address.clone(),
            voter: voters.contains(id),
            matched: matched
                .get(id)
                .and_then(|at| at.as_ref().map(|at| at.index)),
        };
        let (sealed, sessions) = self
            .machine
            .look(|state| (state.sealed.is_some(), state.sessions()));
        Status {
            id: metrics.id,
            epoch: self.epoch,
            role: format!("{:?}", metrics.state).to_lowercase(),
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_index: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            sealed,
            sessions,
            failed: metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string),
            members: members.nodes().map(|(id, peer)| view(id, peer)).collect(),
        }
    }

    /// A member as it was added.
    pub(crate) fn member(&self, id: NodeNumber) -> Option<Peer> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        members.get_node(&id).cloned()
    }
}

fn log_prefix(epoch: Epoch) -> String {
    format!("epoch{epoch:08x}-")
}

impl NotDone {
    fn into_answer(self) -> Answer {
        Answer::NotNow(match self {
            Self::Elsewhere => "it does not lead".to_owned(),
            Self::Unknown(why) => why,
        })
    }
}
