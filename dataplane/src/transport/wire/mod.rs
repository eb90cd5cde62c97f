//! What a frame looks like on a lane, and how any change to it is noticed.
//!
//! In: bytes of one whole frame. Out: a checked view of it, or a [`WireError`]. A frame is either a
//! sequenced *batch* ([`batch`]) or an unsequenced *control frame* ([`control`]); the first byte
//! says which. All numbers are little-endian.
//!
//! What covers what: a batch's header is covered by an 8-byte keyed tag; the payload of a DATA
//! batch by the digest chain over its decoded bytes, which the engine checks before release; the
//! payload of OPEN, HALF_CLOSE, ABORT and BASELINE, and every control frame whole, by 16-byte keyed tags. The keys
//! ([`keys`]) differ by session, attempt and direction, so that a reflected frame or one of
//! another session is foreign; repeats are caught by the batch sequence and the control sequence.

pub mod baseline;
pub mod batch;
pub mod control;
pub mod keys;

use super::{ChannelId, SessionEpoch};

pub use batch::BATCH_HEADER_BYTES;

/// What a frame's first byte says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Sequenced: give it to `Inbound::on_batch`.
    Batch,
    /// Unsequenced: give it to `ControlOpener::open`.
    Control,
}

impl FrameKind {
    /// Reads the first byte only; nothing is verified yet.
    ///
    /// # Errors
    /// [`WireError::TooShort`] or [`WireError::UnknownKind`].
    pub fn peek(frame: &[u8]) -> Result<Self, WireError> {
        match frame.first() {
            None => Err(WireError::TooShort {
                frame_bytes: 0,
                needed_bytes: 1,
            }),
            Some(1..=5) => Ok(Self::Batch),
            Some(0x10..=0x13) => Ok(Self::Control),
            Some(&kind) => Err(WireError::UnknownKind { kind }),
        }
    }
}

/// Why a frame is not taken. Each one ends the session: lanes are reliable, so a bad frame means
/// a faulty peer or somebody on the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not even a header.
    #[error(
        "frame of {frame_bytes} bytes is shorter than the {needed_bytes} it needs; end the session"
    )]
    TooShort {
        /// What came.
        frame_bytes: usize,
        /// What such a frame needs.
        needed_bytes: usize,
    },
    /// Larger than any frame may be.
    #[error("frame of {frame_bytes} bytes is over the limit; end the session")]
    TooLong {
        /// What came.
        frame_bytes: usize,
    },
    /// The first byte names no frame kind.
    #[error(
        "frame kind {kind:#04x} is unknown; end the session, or bring both nodes to one release"
    )]
    UnknownKind {
        /// The byte.
        kind: u8,
    },
    /// The tag does not fit: changed on the way, forged, or keyed for another session.
    #[error(
        "frame does not carry this session's tag; end the session and check both nodes' keys and the path"
    )]
    BadTag,
    /// A field holds a value that no sender may write.
    #[error("field {field} holds {value}, which is not allowed; end the session")]
    BadField {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A control frame of another attempt at the session.
    #[error("control frame is of attempt {got:?}, the session is at {expected:?}; end the session")]
    WrongEpoch {
        /// The session's attempt.
        expected: SessionEpoch,
        /// The frame's.
        got: SessionEpoch,
    },
    /// A channel number over the limit.
    #[error("channel {channel} is over the limit of channels; end the session")]
    ChannelOutOfRange {
        /// The number.
        channel: ChannelId,
    },
    /// A text that is not UTF-8.
    #[error("the text of an ABORT is not UTF-8; end the session")]
    BadText,
    /// The caller's buffer does not fit what it asked to write.
    #[error(
        "buffer of {buffer_bytes} bytes cannot take a frame of {needed_bytes}; pass a larger one"
    )]
    BufferTooSmall {
        /// The buffer.
        buffer_bytes: usize,
        /// The frame.
        needed_bytes: usize,
    },
}
