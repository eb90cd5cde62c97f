//! What can go wrong in the codec, one enum per operation.

use super::{MAX_BATCH_RAW_BYTES, StoreError};

/// Why a codec could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The page history.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// zstd levels out of order or out of range.
    #[error("zstd levels {min} to {max} are no range within 1 to 12: correct the codec settings")]
    ZstdLevels {
        /// The lower bound given.
        min: i32,
        /// The upper bound given.
        max: i32,
    },
    /// zstd could not set up a context in the memory that it had asked for.
    #[error("zstd could not set up a context: the zstd library does not fit this build, rebuild")]
    Zstd,
}

/// Why a batch was not encoded. Nothing was changed: neither the history nor what is chosen next.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More bytes than a batch may have.
    #[error("a batch of {raw_bytes} bytes exceeds {MAX_BATCH_RAW_BYTES}: cut it smaller")]
    BatchTooLarge {
        /// The batch's bytes.
        raw_bytes: usize,
    },
    /// The tokens do not add up to the bytes.
    #[error(
        "tokens of {token_bytes} bytes do not cover a batch of {raw_bytes}: pass exactly its tokens"
    )]
    TokensDoNotCover {
        /// The sum of the tokens.
        token_bytes: usize,
        /// The batch's bytes.
        raw_bytes: usize,
    },
    /// The output buffer is smaller than [`Encoder::max_encoded_len`](super::Encoder::max_encoded_len).
    #[error("an output buffer of {out_bytes} bytes is too small: give it {needed_bytes}")]
    OutputTooSmall {
        /// The buffer's bytes.
        out_bytes: usize,
        /// The bytes it must have.
        needed_bytes: usize,
    },
}

/// Why a payload was refused. The session must end: the two histories may differ from here on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// An earlier payload was refused.
    #[error(
        "an earlier batch was refused, so the page history is not the sender's: end the session"
    )]
    Poisoned,
    /// More bytes than a batch may have.
    #[error("a batch of {raw_bytes} bytes exceeds {MAX_BATCH_RAW_BYTES}: end the session")]
    BatchTooLarge {
        /// The batch's bytes.
        raw_bytes: usize,
    },
    /// The method byte is none of this version's.
    #[error("version {version} has no method {method}: end the session")]
    UnknownMethod {
        /// The version, 1 or 3.
        version: u8,
        /// The method byte.
        method: u8,
    },
    /// A section table that does not describe the payload.
    #[error("the payload's sections do not fit its length: end the session")]
    BadSections,
    /// A context of pages that the history does not hold, in a batch without history, or too large.
    #[error("a section refers to {pages} pages that the history does not offer: end the session")]
    BadContext {
        /// The pages asked for, those that it has among them.
        pages: u64,
    },
    /// Compressed bytes that do not decompress to the length announced.
    #[error("a section does not decompress to its length: end the session")]
    BadCompression,
    /// An operation that no encoder writes, or one cut short.
    #[error("the operation for byte {at} of the batch is not well formed: end the session")]
    BadOperation {
        /// Where in the batch's raw bytes it would have written.
        at: usize,
    },
    /// The payload describes more or fewer bytes than the batch has.
    #[error(
        "the payload describes another length than the batch's {raw_bytes} bytes: end the session"
    )]
    WrongLength {
        /// The batch's bytes.
        raw_bytes: usize,
    },
    /// A reference beyond the baselines that were agreed on.
    #[error("block {number} of baseline {baseline} was never agreed on: end the session")]
    UnknownBlock {
        /// Index of the baseline.
        baseline: u8,
        /// The block.
        number: u32,
    },
    /// A block of a baseline that cannot be read or is not what it was. Nothing was changed.
    #[error(
        "block {number} of baseline {baseline} is damaged here: ask for the batch in another encoding"
    )]
    MissingBlock {
        /// Index of the baseline.
        baseline: u8,
        /// The block.
        number: u32,
    },
    /// A reference to a page that the history does not hold, or in a batch without history.
    #[error(
        "byte {at} of the batch refers to a page that the history does not hold: end the session"
    )]
    MissingPage {
        /// Where in the batch's raw bytes the page would have gone.
        at: usize,
    },
}
