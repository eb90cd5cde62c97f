//! What members say to each other, whatever carries it.
//!
//! In: an [`Envelope`]. Out: an [`Answer`]. Promise: nothing here names openraft's own message types,
//! so that its next version does not change what crosses the network.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::{Outcome, Request};
use crate::conf::{Entry, Epoch, LogId, NodeNumber, Peer, SnapshotMeta, Vote};
use crate::throw::Told;
use crate::vault::Handover;

/// Longest message, bytes of JSON.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// A future that may be kept anywhere.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A message and where it belongs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Name of the cluster: another one's messages are refused.
    pub cluster: String,
    /// Number of the sender.
    pub from: NodeNumber,
    /// Its name, which the carrier has checked, and where it listens, so that it can be asked back.
    pub sender: Peer,
    /// Who is meant.
    pub to: NodeNumber,
    /// Epoch of the sender.
    pub epoch: Epoch,
    /// What is asked.
    pub message: Message,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Raft: entries, or a sign of life.
    Append {
        /// The leader's vote.
        vote: Vote,
        /// What precedes the entries.
        previous: Option<LogId>,
        /// The entries.
        entries: Vec<Entry>,
        /// What is committed.
        commit: Option<LogId>,
    },
    /// Raft: an election, or the question whether one would be won.
    Elect {
        /// The candidate's vote.
        vote: Vote,
        /// The end of its log.
        last: Option<LogId>,
        /// The leader asked for it.
        transfer: bool,
        /// Only the question.
        pre: bool,
    },
    /// Raft: a state in place of entries.
    Snapshot {
        /// The leader's vote.
        vote: Vote,
        /// What the state contains.
        meta: SnapshotMeta,
        /// The state.
        state: String,
    },
    /// Raft: the leader asks one member to take over, and tells all.
    Transfer {
        /// The leader's vote.
        vote: Vote,
        /// Who is to lead.
        heir: NodeNumber,
        /// The end of its log.
        last: Option<LogId>,
    },
    /// A request for the leader.
    Propose(Request),
    /// How far must one have applied to read the newest state?
    Barrier,
    /// A change of the members, for the leader.
    Change(Change),
    /// How did the newest epoch you know begin?
    Handover,
    /// Are you there, and in this epoch?
    Ping,
    /// Throws of the kill switch that the asked one lacks, and what the asker knows; needs no log.
    Throws(Told),
    /// What do you count? Needs no log.
    Figures,
}

/// A change of the members or of the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Adds a member that votes once it has caught up.
    Add(NodeNumber, Peer),
    /// Removes a member.
    Remove(NodeNumber),
    /// Another member is to lead.
    Transfer(NodeNumber),
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To entries.
    Append(Appended),
    /// To an election.
    Elect {
        /// The answerer's vote.
        vote: Vote,
        /// Granted.
        granted: bool,
        /// The end of its log.
        last: Option<LogId>,
    },
    /// To a snapshot: the answerer's vote.
    Snapshot(Vote),
    /// To a transfer: taken or not.
    Transfer(Result<(), String>),
    /// To a request.
    Proposed(Outcome),
    /// To a barrier: apply up to this index.
    Barrier(Option<u64>),
    /// To a change of the members.
    Changed(Result<(), String>),
    /// To a question for a handover.
    Handover(Option<Handover>),
    /// To a ping.
    Here,
    /// To throws: those that the asker lacks, and what the answerer knows.
    Throws(Told),
    /// To a question for figures; their form is that of who counts.
    Figures(serde_json::Value),
    /// The answerer is in another epoch.
    Epoch(Epoch),
    /// Not now: the answerer does not lead, is starting or has failed.
    NotNow(String),
}

/// What became of entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Appended {
    /// All are in the log.
    All,
    /// Those up to here are.
    UpTo(Option<LogId>),
    /// What precedes them is not in the log.
    Conflict,
    /// There is a newer vote.
    Newer(Vote),
}

/// A message that was not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WireError {
    /// Nobody there.
    #[error("node {to} at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Who was meant.
        to: NodeNumber,
        /// Where.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Somebody else there, or nobody that we trust.
    #[error("node {to} at {address} was refused: {reason}; check the TLS files of both nodes")]
    Refused {
        /// Who was meant.
        to: NodeNumber,
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// What came is no answer.
    #[error("node {to} at {address} does not speak this protocol: {reason}")]
    Garbled {
        /// Who was meant.
        to: NodeNumber,
        /// Where.
        address: String,
        /// What is wrong.
        reason: String,
    },
}

/// Carries messages.
pub trait Wire: Send + Sync + 'static {
    /// Asks a peer, once; ends by itself when the answer cannot come any more.
    fn ask(&self, peer: &Peer, envelope: Envelope) -> Boxed<Result<Answer, WireError>>;
}

/// Answers messages.
pub trait Answerer: Send + Sync + 'static {
    /// Answers one message of a peer.
    fn answer(self: Arc<Self>, envelope: Envelope) -> Boxed<Answer>;
}
