//! Why a stranger does not become a lane. In: what broke. Out: the failure that the API shows, and whether
//! dialling again is of any use.

use std::io;

use dwcp_api::Failure;

use crate::transport::handshake::{HandshakeError, RefuseReason};

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the peer closed the connection during the handshake")]
    Ended,
    #[error("the handshake took too long; check that a data plane listens there")]
    TooLate,
    #[error("{max} others are at the door and it did not get through in time", max = super::STRANGERS_MAX)]
    Crowded,
    #[error("the passive target's name is longer than 64 bytes; shorten it in both configurations")]
    TargetTooLong,
    #[error("the system has no random bytes to give")]
    NoRandom,
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
            Self::Handshake(HandshakeError::WrongKey) => (Failure::WrongKey, true),
            Self::Handshake(_) => (Failure::Protocol, false),
            Self::Refused { reason, verified } => match reason {
                // Without the key in common a refusal cannot be vouched for: the session decides
                // by what it knows already.
                RefuseReason::WrongKey => (Failure::WrongKey, true),
                RefuseReason::Busy => (Failure::PeerLost, false),
                RefuseReason::VersionMismatch => (Failure::VersionMismatch, *verified),
                _ => (Failure::Refused, *verified),
            },
        }
    }
}
