//! Planted bugs: what an end of a session could do wrong, done between the state machines.
//!
//! In: a choice. Out: nothing of its own; the world asks for it where the wrong thing would be done.
//! Promise: the product's code is as it is; each of these is found by few seeds, else the simulator
//! would not find the like in the product.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// An ACK confirms one batch more than came.
    AckBeforeArrival,
    /// Bytes count as delivered when they are handed up, not when the hypervisor took them.
    DeliveredBeforeTaken,
    /// A repeated batch is released again.
    DuplicateReleased,
    /// Two batches are released in the wrong order.
    BatchesSwapped,
    /// Now and then a delivery is not counted, and its credit never comes back.
    CreditLost,
    /// Only the shared window is read, not the guarantee of each channel.
    GuaranteeIgnored,
    /// A batch that must go out again after a lane was lost does not.
    ResendForgotten,
    /// After a loss batches go out again under the next number.
    ResumedFromWrongSeq,
    /// What was sent in v3 goes out again in v3 after the switch was thrown.
    V3ResentWhileForbidden,
    /// A batch is marked as re-encoded, and is not.
    TranscodeOnlyInName,
    /// A lost ACK is not repeated: neither a PING nor a new lane brings another.
    AckNotRepeated,
    /// The order to dial anew is not followed.
    RedialIgnored,
    /// A lane's end is not told to the transport.
    LaneLossUntold,
    /// Our own sending counts as having heard the peer.
    SilenceHidden,
}

impl Bug {
    pub const ALL: [Self; 14] = [
        Self::AckBeforeArrival,
        Self::DeliveredBeforeTaken,
        Self::DuplicateReleased,
        Self::BatchesSwapped,
        Self::CreditLost,
        Self::GuaranteeIgnored,
        Self::ResendForgotten,
        Self::ResumedFromWrongSeq,
        Self::V3ResentWhileForbidden,
        Self::TranscodeOnlyInName,
        Self::AckNotRepeated,
        Self::RedialIgnored,
        Self::LaneLossUntold,
        Self::SilenceHidden,
    ];
}
