//! How a batch is encoded: the versions and the method byte of the batch header.

use super::DecodeError;

/// The protocol version that a batch is encoded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodecVersion {
    /// Inline operations, XOR deltas, one LZ4 block a batch.
    V1,
    /// Sections, references, deltas, zstd or LZ4 or nothing.
    V3,
}

impl CodecVersion {
    /// The number in batch headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V3 => 3,
        }
    }
}

/// What was done to a batch. The discriminants are the method bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Method {
    /// Version 1, operations as they are.
    V1Stored = 1,
    /// Version 1, operations as one LZ4 block.
    V1Lz4 = 2,
    /// Version 3, the raw bytes; the history is neither read nor written.
    Passthrough = 16,
    /// Version 3, references and deltas, no compression.
    Stored = 17,
    /// Version 3, sections compressed by LZ4 where that shrinks them.
    Lz4 = 18,
    /// Version 3, sections compressed by zstd where that shrinks them.
    Zstd = 19,
}

impl Method {
    /// The method byte.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Does a general compressor run over the batch?
    pub const fn is_compressed(self) -> bool {
        matches!(self, Self::V1Lz4 | Self::Lz4 | Self::Zstd)
    }

    /// The method of a batch header.
    ///
    /// # Errors
    /// [`DecodeError::UnknownMethod`] when `version` has no such method.
    pub const fn from_code(version: CodecVersion, code: u8) -> Result<Self, DecodeError> {
        Ok(match (version, code) {
            (CodecVersion::V1, 1) => Self::V1Stored,
            (CodecVersion::V1, 2) => Self::V1Lz4,
            (CodecVersion::V3, 16) => Self::Passthrough,
            (CodecVersion::V3, 17) => Self::Stored,
            (CodecVersion::V3, 18) => Self::Lz4,
            (CodecVersion::V3, 19) => Self::Zstd,
            _ => {
                return Err(DecodeError::UnknownMethod {
                    version: version.number(),
                    method: code,
                });
            }
        })
    }
}
