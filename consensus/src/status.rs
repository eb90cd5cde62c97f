//! What a member says about its cluster.
//!
//! In: an engine's figures. Out: plain data for an API. Promise: it is one member's view, which may be
//! old; `leader` is only who this member believes in.

use serde::Serialize;

use crate::conf::{Epoch, NodeNumber};

/// One member's view of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The member that says it.
    pub id: NodeNumber,
    /// The epoch it is in; 0 while it waits to be added to a cluster.
    pub epoch: Epoch,
    /// `leader`, `follower`, `candidate`, `learner` or `waiting`.
    pub role: String,
    /// Who leads.
    pub leader: Option<NodeNumber>,
    /// Raft's term.
    pub term: u64,
    /// End of the log.
    pub last_index: Option<u64>,
    /// Known to be committed.
    pub committed: Option<u64>,
    /// Applied to the state.
    pub applied: Option<u64>,
    /// Contained in the snapshot.
    pub snapshot: Option<u64>,
    /// The epoch is over and the next one is about to begin.
    pub sealed: bool,
    /// Client sessions open.
    pub sessions: usize,
    /// Why it does not take part, if so.
    pub failed: Option<String>,
    /// The members.
    pub members: Vec<MemberView>,
}

/// One member as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// Its number.
    pub id: NodeNumber,
    /// Name of the node.
    pub name: String,
    /// Where it listens for peers.
    pub address: String,
    /// It votes; otherwise it learns.
    pub voter: bool,
    /// How far its log agrees; known to the leader only.
    pub matched: Option<u64>,
}
