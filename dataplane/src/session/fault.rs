//! What ends a session, in the words of the API: a failure code and what to do about it.

use dwcp_api::Failure;
use dwcp_drivers::frame::BadFrameLen;

use super::link::LinkError;
use crate::codec::{DecodeError, DigestMismatch, EncodeError};
use crate::transport::TransportError;
use crate::transport::wire::WireError;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[error("{failure}: {detail}")]
pub struct Fault {
    /// For programs.
    pub failure: Failure,
    /// For people.
    pub detail: String,
}

impl Fault {
    /// A fault with its explanation.
    pub fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
        }
    }

    /// Buffers that were counted on are not there.
    pub fn buffers() -> Self {
        Self::new(
            Failure::Limit,
            "the session's buffers are used up; raise window_limit_bytes or move fewer VMs at once",
        )
    }
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        let failure = match &error {
            TransportError::Wire(wire) => wire_failure(wire),
            _ => Failure::Protocol,
        };
        Self::new(failure, error.to_string())
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::new(wire_failure(&error), error.to_string())
    }
}

const fn wire_failure(error: &WireError) -> Failure {
    match error {
        WireError::BadTag => Failure::Corrupted,
        _ => Failure::Protocol,
    }
}

impl From<DigestMismatch> for Fault {
    fn from(error: DigestMismatch) -> Self {
        Self::new(Failure::Corrupted, error.to_string())
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::new(Failure::Corrupted, error.to_string())
    }
}

impl From<EncodeError> for Fault {
    fn from(error: EncodeError) -> Self {
        Self::new(Failure::System, error.to_string())
    }
}

impl From<BadFrameLen> for Fault {
    fn from(error: BadFrameLen) -> Self {
        Self::new(Failure::System, error.to_string())
    }
}

impl From<LinkError> for Fault {
    fn from(error: LinkError) -> Self {
        Self::new(Failure::Limit, error.to_string())
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::new(Failure::System, error.to_string())
    }
}
