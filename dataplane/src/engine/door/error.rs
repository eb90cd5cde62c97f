//! Why a stranger does not become a lane. In: what broke. Out: the failure that the API shows, whether
//! dialling again is of any use, and under what it is counted.

use std::io;

use dwcp_api::Failure;
use dwcp_api::door::Refusal;

use crate::tls::TlsError;
use crate::tls::peers::Flaw;
use crate::transport::handshake::{HandshakeError, RefuseReason};

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the peer closed the connection during the handshake")]
    Ended,
    #[error("the handshake took too long; check that a data plane listens there")]
    TooLate,
    #[error("others are at the door and it did not get through in time")]
    Crowded,
    #[error("the passive target's name is longer than 64 bytes; shorten it in both configurations")]
    TargetTooLong,
    #[error("the system has no random bytes to give")]
    NoRandom,
    #[error("the peer gives this lane another key than the session's first: end the session")]
    OtherKey,
    #[error("a lane over TLS says that it is proven by its session: the peer is broken")]
    ByBoth,
    #[error(
        "{} where node {expected} is expected: correct the address, or the expected name",
        found.as_ref().map_or_else(|| "another node answers".to_owned(), |found| format!("node {found} answers"))
    )]
    OtherNode {
        expected: String,
        found: Option<String>,
    },
    #[error("{reason}")]
    Refused {
        reason: RefuseReason,
        verified: bool,
    },
}

impl DoorError {
    /// The failure for the API, and whether dialling again is of no use.
    pub const fn verdict(&self) -> (Failure, bool) {
        match self {
            Self::Io(_) | Self::Ended | Self::TooLate | Self::Crowded => (Failure::PeerLost, false),
            Self::TargetTooLong => (Failure::BadCommand, true),
            Self::NoRandom => (Failure::System, false),
            Self::Handshake(HandshakeError::WrongKey)
            | Self::Tls(
                TlsError::Certificate(_) | TlsError::NoCertificate | TlsError::Refused(_),
            ) => (Failure::WrongKey, true),
            Self::OtherNode { .. } => (Failure::WrongNode, true),
            Self::Handshake(_) | Self::Tls(_) | Self::OtherKey | Self::ByBoth => {
                (Failure::Protocol, false)
            }
            Self::Refused { reason, verified } => match reason {
                // Without the key in common a refusal cannot be vouched for: the session decides
                // by what it knows already.
                RefuseReason::WrongKey | RefuseReason::TlsRequired => (Failure::WrongKey, true),
                RefuseReason::Busy => (Failure::PeerLost, false),
                RefuseReason::VersionMismatch => (Failure::VersionMismatch, *verified),
                _ => (Failure::Refused, *verified),
            },
        }
    }

    /// The peer has only let go of the connection, or nobody needed it.
    pub const fn is_farewell(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Ended | Self::TooLate)
    }

    /// Under what a peer that dialled us is counted.
    pub const fn refusal(&self) -> Refusal {
        match self {
            Self::TooLate => Refusal::TooLate,
            Self::Crowded => Refusal::Crowded,
            Self::Io(_) | Self::Ended => Refusal::Ended,
            Self::Tls(TlsError::NoCertificate) => Refusal::NoCertificate,
            Self::Tls(TlsError::Certificate(flaw)) => match flaw {
                Flaw::UnknownAuthority => Refusal::UnknownAuthority,
                Flaw::Expired => Refusal::Expired,
                Flaw::Revoked | Flaw::RevocationUnknown => Refusal::Revoked,
                Flaw::NotForMigration => Refusal::NotForMigration,
                Flaw::Broken => Refusal::BadCertificate,
            },
            Self::Refused { reason, .. } => refusal_for(*reason),
            _ => Refusal::Protocol,
        }
    }
}

/// Under what a refusal in words is counted.
pub const fn refusal_for(reason: RefuseReason) -> Refusal {
    match reason {
        RefuseReason::WrongKey => Refusal::WrongKey,
        RefuseReason::UnknownSession => Refusal::UnknownSession,
        RefuseReason::VersionMismatch => Refusal::Version,
        RefuseReason::TooManySessions | RefuseReason::Busy | RefuseReason::PoolFull => {
            Refusal::Busy
        }
        RefuseReason::PassiveTargetUnknown => Refusal::UnknownTarget,
        RefuseReason::SessionGone => Refusal::SessionGone,
        RefuseReason::TlsRequired => Refusal::TlsRequired,
        RefuseReason::NotYourSession => Refusal::NotItsSession,
        RefuseReason::WrongNode => Refusal::WrongNode,
    }
}
