//! Sequenced batches over a bundle of lanes.
//!
//! In: encoded batches from the codec, whole frames from lanes, the time. Out: frames for lanes,
//! batches strictly in sequence, verdicts on lanes and on the link. Promise: what one end pushes
//! the other end hands up exactly once and in order, whatever lanes are cut, stalled or replaced,
//! or the session fails with a typed error; memory and bytes in flight stay under stated limits.
//!
//! Nothing here reads a clock or touches a socket: time is a [`Nanos`] argument, frames are any
//! [`FrameHandle`]. One [`outbound::Outbound`] and one [`inbound::Inbound`] make a session's end.

pub mod handshake;
pub mod ids;
pub mod inbound;
pub mod outbound;
pub mod sharing;
pub mod streams;
pub mod wire;

#[cfg(test)]
mod simulation;

use std::sync::Arc;

use dwcp_drivers::frame::Frame;

pub use dwcp_drivers::MAX_FRAME_BYTES;
pub use ids::{BatchSeq, ChannelId, LaneIx, Nanos, NodeId, SessionEpoch, SessionId, Version};

/// Batches that may be unacknowledged at once: the width of the SACK bitmap and of both rings.
pub const MAX_IN_FLIGHT: usize = 256;
/// Channels of a session: QEMU's main connection, 255 multifd ones and one for postcopy preempt,
/// rounded up. Channel numbers are below this.
pub const MAX_CHANNELS: usize = 260;
/// Raw bytes that every channel may hold whatever the others do. Without it a channel whose reader
/// waits for another channel (the multifd barrier) would starve that one and deadlock the guest.
pub const CHANNEL_GUARANTEE_BYTES: u64 = 64 * 1024;
/// Raw bytes in one batch at most.
pub const MAX_BATCH_RAW_BYTES: usize = 1 << 20;
/// Raw bytes in a batch that this side sends, at most: half, so that the buffers of a window take half the memory.
pub const SENT_BATCH_RAW_BYTES: usize = 512 << 10;

/// A whole frame that is cheap to clone: kept for resending while a lane writes it.
pub trait FrameHandle: Clone {
    /// The frame's bytes, batch header first.
    fn bytes(&self) -> &[u8];
}

impl FrameHandle for Frame {
    fn bytes(&self) -> &[u8] {
        Self::bytes(self)
    }
}

/// Frames without a driver, for tests.
impl FrameHandle for Arc<[u8]> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// What ends a session: the peer broke the protocol, or the engine misused a queue. Nothing was
/// handed up wrongly; the migration fails closed and the guest goes on at the source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The frame itself is wrong.
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// A batch lies further ahead than any honest sender may go.
    #[error(
        "batch {seq} is beyond the window that starts at {next}; end the session, the peer is faulty"
    )]
    BeyondWindow {
        /// The batch that came.
        seq: BatchSeq,
        /// The batch due next.
        next: BatchSeq,
    },
    /// The peer sent more than the negotiated window.
    #[error(
        "peer holds us to {held_bytes} raw bytes but the limit is {limit_bytes}; end the session, the peer ignores its window"
    )]
    WindowExceeded {
        /// Bytes held if the batch were taken.
        held_bytes: u64,
        /// The session's stated limit.
        limit_bytes: u64,
    },
    /// A v3 batch in a session that agreed on v1.
    #[error(
        "batch {seq} is {version:?} but the session agreed on at most {agreed:?}; end the session"
    )]
    VersionNotAgreed {
        /// The batch that came.
        seq: BatchSeq,
        /// Its version.
        version: Version,
        /// The highest version agreed.
        agreed: Version,
    },
    /// Data or a close for a channel that is not open in this direction.
    #[error("batch {seq} is for channel {channel}, which is not open; end the session")]
    ChannelNotOpen {
        /// The batch handed up next.
        seq: BatchSeq,
        /// Its channel.
        channel: ChannelId,
    },
    /// A second OPEN.
    #[error("channel {channel} was opened twice; end the session")]
    ChannelOpenTwice {
        /// The channel.
        channel: ChannelId,
    },
    /// The bytes of a channel do not follow one another.
    #[error(
        "batch {seq} puts channel {channel} at byte {got} instead of {expected}; end the session"
    )]
    OffsetMismatch {
        /// The batch handed up next.
        seq: BatchSeq,
        /// Its channel.
        channel: ChannelId,
        /// Where the channel stands.
        expected: u64,
        /// Where the batch says it stands.
        got: u64,
    },
    /// An acknowledgement of something never sent, or one that takes an earlier one back.
    #[error("acknowledgement is impossible ({what}); end the session, the peer is faulty")]
    BadAck {
        /// What does not fit.
        what: &'static str,
    },
    /// The engine pushed into a full window: it must ask `can_push` first.
    #[error("256 batches are in flight; wait for an acknowledgement before pushing")]
    InFlightFull,
    /// The engine read more from the hypervisor than `may_read` allowed.
    #[error(
        "read {read_bytes} bytes on channel {channel} where {allowed_bytes} were allowed; ask may_read before reading"
    )]
    CreditExceeded {
        /// The channel.
        channel: ChannelId,
        /// Bytes read.
        read_bytes: u64,
        /// Bytes that were allowed.
        allowed_bytes: u64,
    },
    /// The engine replaced or delivered something that is not there.
    #[error("{what}; this is a fault of the caller, end the session")]
    Misuse {
        /// What was asked.
        what: &'static str,
    },
}
