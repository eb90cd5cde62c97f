//! Proving, before the first frame of a lane, who is there and what both can do.
//!
//! In: bytes of a fresh connection, or what TLS made of them; a [`Proof`]; 32 random bytes; what this side
//! can agree to. Out: messages to send, and at the end an [`Agreed`] with the session's key, or a typed
//! refusal. Promise: without the proof nobody is authenticated, whatever they send, replay or reflect; a
//! change to any field on the way (the versions offered among them) fails the proof, so a session runs in
//! v1 only because one of the two nodes was told to, never because of the network; a pending handshake
//! holds a fixed amount of memory. Deadlines are the caller's.
//!
//! ```text
//! initiator                                   acceptor
//!    HELLO  offer, ids, nonce, proposal, way ─▶
//!    ◀────────── CHALLENGE  choice, id, nonce, answer     (or REFUSE)
//!    PROOF  MAC over HELLO, CHALLENGE ────────▶
//!    ◀────────── WELCOME  way, MAC over all of it         (or REFUSE)
//! ```
//!
//! HELLO carries a MAC by what proves the lane. Whoever recorded one can say it again, hence the CHALLENGE. Where the
//! acceptor can tell that it has not heard this HELLO before (it belongs to a session that was announced, and is a
//! later dial of its lane than any other), and over TLS (see [`proof`]), there is no PROOF, and WELCOME or REFUSE
//! follows the answer to HELLO at once: one round trip less.
//!
//! A connection whose handshake was for no session yet ([`Purpose::Pool`]) is parked after its WELCOME: what comes on it
//! next is a HELLO with everything that follows one, as on a fresh connection, and before that as many PADs as fit
//! into a fixed number of bytes. Before the HELLO of a fresh one there may be [`OPENING_PADDING_BYTES`] of them: on a far
//! path their acknowledgements widen the kernel's window by the time that the first batch is sent.
//!
//! Each message is its length (u16, little-endian) and a body of 1 to 1022 bytes. The MACs are
//! keyed BLAKE3 over a hash chain of all messages so far, their keys differ by sender and purpose.

mod acceptor;
mod initiator;
mod message;
pub mod proof;
mod way;

use arrayvec::{ArrayString, ArrayVec};

use super::wire::keys::{Direction, SessionKey};
use super::{BatchSeq, LaneIx, NodeId, SessionEpoch, SessionId, Version};

pub use acceptor::{Acceptor, AcceptorStep, Answer, Hello};
pub use initiator::{Initiator, InitiatorConfig, InitiatorStep};
pub use message::pad;
pub use proof::Proof;
pub use way::{Guard, LaneSecret, LaneWay, Way};

/// Bytes of a message at most, its length included.
pub const MAX_MESSAGE_BYTES: usize = 1024;
/// Bytes of a passive target's name at most.
pub const MAX_TARGET_BYTES: usize = 64;
/// Bytes of PADs at most before the HELLO of a fresh connection.
pub const OPENING_PADDING_BYTES: usize = 1440;
/// No session works with a smaller window than one of these batches.
pub const MIN_WINDOW_BYTES: u64 = 64 * 1024;

/// A message ready to be written, length first.
pub type Message = ArrayVec<u8, MAX_MESSAGE_BYTES>;

/// What a session may use. The initiator proposes, the acceptor answers with the lesser of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionParams {
    /// The page history that both ends mirror, in bytes.
    pub page_store_bytes: u64,
    /// The window's limit in raw bytes, at least [`MIN_WINDOW_BYTES`].
    pub window_limit_bytes: u64,
    /// Lanes while the transport is v1, at least 1.
    pub lanes_v1: u16,
    /// Lanes while the transport is v3, at least 1.
    pub lanes_v3: u16,
    /// Pages may be references to blocks that both sides keep on disk. A peer of an earlier release says nothing
    /// of it and is never asked.
    pub baselines: bool,
}

impl SessionParams {
    /// What both can do.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            page_store_bytes: self.page_store_bytes.min(other.page_store_bytes),
            window_limit_bytes: self.window_limit_bytes.min(other.window_limit_bytes),
            lanes_v1: self.lanes_v1.min(other.lanes_v1),
            lanes_v3: self.lanes_v3.min(other.lanes_v3),
            baselines: self.baselines && other.baselines,
        }
    }
}

/// Who the session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A control plane announced the session's id at both ends.
    Expected,
    /// An unannounced session, to be delivered to the hypervisor that the acceptor knows by name.
    Passive {
        /// The name, 1 to [`MAX_TARGET_BYTES`] bytes.
        target: ArrayString<MAX_TARGET_BYTES>,
    },
    /// None yet: the connection is to be parked until a lane is wanted.
    Pool,
}

/// How the lane relates to the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// The session may begin with this lane.
    New,
    /// One more lane of a running session.
    Lane,
    /// A lane comes back after a cut; the session must still exist.
    Resume {
        /// The batch that the initiator hands up next: all below have come.
        next_seq: BatchSeq,
    },
}

/// What both sides know at the end of a handshake, each vouched for by the other.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// The session.
    pub session: SessionId,
    /// The attempt at it.
    pub epoch: SessionEpoch,
    /// The node that dialled.
    pub initiator: NodeId,
    /// The node that was dialled.
    pub acceptor: NodeId,
    /// Which lane of the bundle.
    pub lane: LaneIx,
    /// Which dial of that lane; a later one replaces an earlier one.
    pub lane_attempt: u32,
    /// How the lane relates to the session.
    pub join: Join,
    /// Who the session is for.
    pub purpose: Purpose,
    /// The highest version that both may use. For all lanes after the first the session's own
    /// version and parameters stand; these are what this handshake would have given.
    pub version: Version,
    /// What the session may use.
    pub params: SessionParams,
    /// The key of the session's frames.
    pub key: SessionKey,
    /// What the lane runs over.
    pub way: LaneWay,
}

/// What both sides know once the proof was given: the acceptor has still to say what the lane runs over.
#[derive(Debug)]
pub struct Proven {
    /// The session.
    pub session: SessionId,
    /// Who the session is for.
    pub purpose: Purpose,
    /// What the initiator wants the lane to run over.
    pub wanted: Way,
    agreed: Agreed,
}

impl Proven {
    fn of(agreed: Agreed) -> Self {
        Self {
            session: agreed.session,
            purpose: agreed.purpose.clone(),
            wanted: agreed.way.initiator,
            agreed,
        }
    }

    /// The session's key.
    #[must_use]
    pub const fn key(&self) -> &SessionKey {
        &self.agreed.key
    }

    /// The limits that the peer was answered with.
    #[must_use]
    pub const fn params(&self) -> &SessionParams {
        &self.agreed.params
    }

    /// Which lane.
    #[must_use]
    pub const fn lane(&self) -> LaneIx {
        self.agreed.lane
    }

    /// Which dial of that lane.
    #[must_use]
    pub const fn lane_attempt(&self) -> u32 {
        self.agreed.lane_attempt
    }

    /// The node that dialled.
    #[must_use]
    pub const fn peer(&self) -> NodeId {
        self.agreed.initiator
    }
}

/// Which end of the handshake one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Initiator,
    /// The one that was dialled.
    Acceptor,
}

impl Side {
    /// The direction of the frames that this side sends; the peer's is what it receives.
    #[must_use]
    pub fn sends(self) -> Direction {
        match self {
            Self::Initiator => Direction::ToAcceptor,
            Self::Acceptor => Direction::ToInitiator,
        }
    }

    /// The direction of the frames that this side receives.
    #[must_use]
    pub fn receives(self) -> Direction {
        match self {
            Self::Initiator => Direction::ToInitiator,
            Self::Acceptor => Direction::ToAcceptor,
        }
    }
}

/// Why an acceptor refuses, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum RefuseReason {
    /// The proof is not by the shared key.
    #[error(
        "the two nodes have different pre-shared keys, or somebody changed the handshake: compare the key files"
    )]
    WrongKey = 1,
    /// No such session.
    #[error("the peer was not told of this session: announce it at the destination first")]
    UnknownSession = 2,
    /// No version in common.
    #[error("the nodes have no version in common: allow v1 on both")]
    VersionMismatch = 3,
    /// No slot for a new session.
    #[error("the peer is at its limit of sessions: wait for one to end or raise the limit")]
    TooManySessions = 4,
    /// Too many handshakes, or shutting down.
    #[error("the peer is busy: dial again in a second")]
    Busy = 5,
    /// No such passive target.
    #[error(
        "the peer has no passive target of that name: compare the names in both configurations"
    )]
    PassiveTargetUnknown = 6,
    /// There was such a session, but no longer.
    #[error("the session has ended at the peer: end it here, the guest goes on at the source")]
    SessionGone = 7,
    /// A handshake without TLS from a network where it is needed.
    #[error(
        "the peer wants TLS from this address: add a [tls] table with this node's certificate, or take \
         this network into trusted_networks at both nodes"
    )]
    TlsRequired = 8,
    /// The session was begun by another node, or in another way.
    #[error("the session belongs to another node or was begun in another way: begin a new one")]
    NotYourSession = 9,
    /// The node's name is not that of its certificate.
    #[error(
        "the certificate is another node's: issue one for the name that `node` says in the configuration"
    )]
    WrongNode = 10,
    /// No more connections are kept for later.
    #[error(
        "the peer parks no more connections: lanes are dialled when they are wanted; lower pool.lanes to share its places"
    )]
    PoolFull = 11,
}

impl RefuseReason {
    fn from_wire(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WrongKey,
            2 => Self::UnknownSession,
            3 => Self::VersionMismatch,
            4 => Self::TooManySessions,
            5 => Self::Busy,
            6 => Self::PassiveTargetUnknown,
            7 => Self::SessionGone,
            8 => Self::TlsRequired,
            9 => Self::NotYourSession,
            10 => Self::WrongNode,
            11 => Self::PoolFull,
            _ => return None,
        })
    }
}

/// What ends a handshake without an agreement or a refusal. Close the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A length of zero or over the limit.
    #[error(
        "a handshake message announces {body_bytes} bytes, which is out of range: close; the peer is no dwcp data plane or broken"
    )]
    BadLength {
        /// What it announces.
        body_bytes: usize,
    },
    /// A message that is not due now, or not of the length its kind has.
    #[error(
        "a message of kind {kind} and {body_bytes} bytes is not what is due: close; bring both nodes to one release"
    )]
    Unexpected {
        /// Its kind.
        kind: u8,
        /// Its length.
        body_bytes: usize,
    },
    /// A field out of range.
    #[error("handshake field {field} is out of range: close; bring both nodes to one release")]
    BadField {
        /// The field.
        field: &'static str,
    },
    /// The acceptor's proof does not fit.
    #[error(
        "the peer does not prove that it has the shared key: close; compare the key files and check the path"
    )]
    WrongKey,
    /// The acceptor chose or answered what was not offered.
    #[error("the peer answers with {field} beyond what was proposed: close, the peer is faulty")]
    BeyondProposal {
        /// What it chose.
        field: &'static str,
    },
    /// Another node answers than the one that was dialled.
    #[error(
        "node {got:?} answers where {expected:?} was dialled: close; correct the peer's address"
    )]
    WrongPeer {
        /// The node that was dialled.
        expected: NodeId,
        /// The node that answers.
        got: NodeId,
    },
    /// Padding where there may be none, or more of it than there may be.
    #[error("the peer sends more padding than this connection may have: close, the peer is faulty")]
    TooMuchPadding,
    /// The caller asked for a step that is not due.
    #[error("this step of the handshake is not due: close, this is a fault of the caller")]
    OutOfTurn,
}

#[cfg(test)]
mod tests;
