//! What may be asked of the replicated state, and what it answers.
//!
//! In: an operator's or a controller's wish. Out: a [`Request`] for the log. Promise: every length is
//! bounded by [`Command::check`] before a request is proposed, and again by each peer that receives one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::conf::{Epoch, NodeNumber, Peer};

/// Longest key of a flag or name of a node, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest name of who decided or asked, bytes.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Longest text of a decision, bytes.
pub const DECISION_BYTES_MAX: usize = 4 << 10;
/// Longest document, bytes.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 10;
/// Nodes that one command may name, and that one flag may exclude.
pub const NODES_MAX: usize = 1_024;
/// Flags that are kept.
pub const FLAGS_MAX: usize = 64;
/// Members of a cluster.
pub const MEMBERS_MAX: usize = 9;
/// Everybody, in [`FlagValue::share`].
pub const SHARE_ALL: u32 = 100_000;

/// Number of a client's session: the position at which the log opened it.
pub type SessionId = u64;

/// A command with the proof that it is run once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Session of the client; 0 with [`Command::OpenSession`], [`Command::Seal`] and [`Command::Open`].
    pub session: SessionId,
    /// Counts the client's requests, from 1; a retry bears the same number.
    pub number: u64,
    /// What to do.
    pub command: Command,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.session, self.number)
    }
}

/// A flag's switch and share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagValue {
    /// Off means v1 everywhere.
    pub enabled: bool,
    /// Share of the nodes, in thousandths of a percent.
    pub share: u32,
}

/// Something that was decided, with its grounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When, Unix milliseconds, by the decider's clock.
    pub at_unix_ms: u64,
    /// Who decided.
    pub by: String,
    /// What, and by which query, value and threshold.
    pub text: String,
    /// Key of the document it is about; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

/// A throw of the kill switch by one node: its number is above that of each earlier throw of that node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrowMark {
    /// Name of the node.
    pub node: String,
    /// Its number.
    pub number: u64,
}

/// The flag that a document steers, while it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    /// Key of the flag.
    pub feature: String,
    /// What the flag becomes; absent: it stays as it is.
    pub value: Option<FlagValue>,
    /// Nobody else changes the flag from now on (true), or everybody may again (false).
    pub held: bool,
}

/// One configuration of the virtual log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochDesc {
    /// Its number.
    pub epoch: Epoch,
    /// What orders its commands.
    pub engine: EngineKind,
    /// Who votes in it at its beginning.
    pub members: BTreeMap<NodeNumber, Peer>,
}

/// What orders the commands of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Raft: members may crash, and do not lie.
    Raft,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Begins a session; answered with [`Reply::Session`].
    OpenSession,
    /// Ends the session of the request.
    CloseSession,
    /// Sets a flag's switch and share.
    SetFlag {
        /// Key of the flag.
        feature: String,
        /// Its new value.
        value: FlagValue,
        /// When, Unix milliseconds, by the proposer's clock.
        at_unix_ms: u64,
        /// Who asked.
        by: String,
    },
    /// Keeps nodes out of a flag, or lets them in again.
    Exclude {
        /// Key of the flag.
        feature: String,
        /// Names of the nodes.
        nodes: Vec<String>,
        /// Out (true) or in again (false).
        excluded: bool,
        /// When, Unix milliseconds, by the proposer's clock.
        at_unix_ms: u64,
        /// Who asked.
        by: String,
    },
    /// The kill switch of the cluster.
    Force {
        /// Everything in v1 (true), or the flags decide (false).
        on: bool,
        /// Generation that a release undoes; a throw that came meanwhile is not undone.
        seen: u64,
        /// When, Unix milliseconds, by the proposer's clock.
        at_unix_ms: u64,
        /// Who asked.
        by: String,
        /// Which signed throw it records, if it was signed; one that is known already changes nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        throw: Option<ThrowMark>,
    },
    /// Changes a document, together with the flag that it steers and the decision that grounds it; all of it, or
    /// nothing if somebody else changed the document since it was read.
    Write {
        /// Key of the document.
        key: String,
        /// Version that was read; 0: there was none.
        expected: u64,
        /// What it says from now on.
        document: String,
        /// The flag that it steers.
        steer: Option<Steer>,
        /// Why.
        decision: Option<Decision>,
        /// When, Unix milliseconds, by the proposer's clock.
        at_unix_ms: u64,
        /// Who asked.
        by: String,
    },
    /// Keeps a decision and its grounds.
    Record {
        /// The decision.
        decision: Decision,
    },
    /// Ends the epoch. The first one wins; what the log holds after it is void.
    Seal {
        /// The epoch that follows.
        next: EpochDesc,
    },
    /// Begins the epoch: every member compares the state it began with.
    Open {
        /// BLAKE3 of the state, hexadecimal.
        state_hash: String,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; the position in the epoch.
    Done {
        /// Index in the epoch's log.
        index: u64,
    },
    /// The session begun.
    Session(SessionId),
    /// The state refuses it, whoever asks.
    Refused(String),
}

/// What became of one position of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran, now or when its number was first seen.
    Ran(Reply),
    /// It came after the seal: void, ask in the next epoch.
    Sealed,
    /// The session is not known (any more), so whether it ran is not known either.
    NoSession,
    /// A later request of the session ran already.
    Old,
    /// No request: the log's own entry.
    Nothing,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A command that is not proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what} is {found} long, at most {limit} are kept: shorten it")]
pub struct TooLong {
    /// What is too long.
    pub what: String,
    /// Its length.
    pub found: usize,
    /// How long it may be.
    pub limit: usize,
}

impl Decision {
    fn check(&self) -> Result<(), TooLong> {
        within("by", self.by.len(), TEXT_BYTES_MAX)?;
        within("about", self.about.len(), NAME_BYTES_MAX)?;
        within("text", self.text.len(), DECISION_BYTES_MAX)
    }
}

impl Command {
    /// Checks every length.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn check(&self) -> Result<(), TooLong> {
        match self {
            Self::OpenSession | Self::CloseSession => Ok(()),
            Self::SetFlag { feature, by, .. } => {
                within("feature", feature.len(), NAME_BYTES_MAX)?;
                within("by", by.len(), TEXT_BYTES_MAX)
            }
            Self::Exclude {
                feature, nodes, by, ..
            } => {
                within("feature", feature.len(), NAME_BYTES_MAX)?;
                within("by", by.len(), TEXT_BYTES_MAX)?;
                within("nodes", nodes.len(), NODES_MAX)?;
                nodes
                    .iter()
                    .try_for_each(|node| within("node", node.len(), NAME_BYTES_MAX))
            }
            Self::Force { by, throw, .. } => {
                within("by", by.len(), TEXT_BYTES_MAX)?;
                let node = throw.as_ref().map_or(0, |throw| throw.node.len());
                within("node", node, NAME_BYTES_MAX)
            }
            Self::Write {
                key,
                document,
                steer,
                decision,
                by,
                ..
            } => {
                within("key", key.len(), NAME_BYTES_MAX)?;
                within("by", by.len(), TEXT_BYTES_MAX)?;
                within("document", document.len(), DOCUMENT_BYTES_MAX)?;
                let feature = steer.as_ref().map_or(0, |steer| steer.feature.len());
                within("feature", feature, NAME_BYTES_MAX)?;
                decision.as_ref().map_or(Ok(()), Decision::check)
            }
            Self::Record { decision } => decision.check(),
            Self::Seal { next } => {
                within("members", next.members.len(), MEMBERS_MAX)?;
                next.members
                    .values()
                    .try_for_each(|peer| within("address", peer.address.len(), TEXT_BYTES_MAX))
            }
            Self::Open { state_hash } => within("state_hash", state_hash.len(), NAME_BYTES_MAX),
        }
    }
}

fn within(what: &str, found: usize, limit: usize) -> Result<(), TooLong> {
    if found <= limit {
        return Ok(());
    }
    Err(TooLong {
        what: what.to_owned(),
        found,
        limit,
    })
}
