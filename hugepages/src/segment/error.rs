//! Everything that can be wrong with a segment, one variant each.

use rustix::io::Errno;
use thiserror::Error;

/// Why a segment was not created, not attached, or an access was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// A system call failed.
    #[error("could not {step}: {source}; check the memory and descriptor limits of this process")]
    Os {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// A length of zero, or too large to map.
    #[error("a body of {body_bytes} bytes cannot be mapped; use 1 byte to {max} bytes",
            max = isize::MAX)]
    BadLength {
        /// The length in the layout.
        body_bytes: usize,
    },
    /// ABI version 0 means "not ready" in every segment.
    #[error("ABI version 0 is reserved for segments that are not ready; count from 1")]
    ReservedAbi,
    /// The file can be changed under us.
    #[error(
        "the descriptor has seals {found:#x}, not all of {required:#x}: refused, for it could \
             be cut short or rewritten; let the peer send a sealed memfd"
    )]
    NotSealed {
        /// `F_GET_SEALS` of the file; 0 if it is no memfd.
        found: u32,
        /// The seals that must be there.
        required: u32,
    },
    /// We want to write and the creator forbids it.
    #[error("the segment is sealed against writing; attach it read-only")]
    SealedReadOnly,
    /// The file is shorter or longer than the layout in whole pages.
    #[error(
        "the file has {found} bytes, the layout needs {expected} rounded up to whole pages: \
             cut short, or of another build"
    )]
    FileLength {
        /// Length of the file, bytes.
        found: u64,
        /// Header and body, bytes.
        expected: u64,
    },
    /// The creator has not finished, or died before it could.
    #[error(
        "the segment is not ready: its creator has not stored the ABI version; \
             ask the peer for a new one"
    )]
    NotReady,
    /// Another kind of segment.
    #[error("magic {found:#x} is not {expected:#x}: another kind of segment")]
    WrongMagic {
        /// In the header.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// Another ABI version.
    #[error("ABI version {found}, this build speaks {expected}; run both planes from one release")]
    VersionMismatch {
        /// In the header.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// Same version, other fields.
    #[error(
        "layout hash {found:#x}, this build has {expected:#x}: the ABI drifted without a new \
             version; run both planes from one release"
    )]
    LayoutMismatch {
        /// In the header.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// The header contradicts the layout.
    #[error("the header says {found} bytes, the layout {expected}")]
    LengthMismatch {
        /// In the header, bytes.
        found: u64,
        /// Header and body, bytes.
        expected: u64,
    },
    /// An access beyond the end of the body.
    #[error("{bytes} bytes at offset {offset} leave a body of {body_bytes} bytes")]
    OutOfBounds {
        /// Where the access begins.
        offset: usize,
        /// Its length; `usize::MAX` if it overflows.
        bytes: usize,
        /// Length of the body.
        body_bytes: usize,
    },
    /// An access that the type's alignment forbids.
    #[error("offset {offset} is not a multiple of {align}")]
    Misaligned {
        /// Where the access begins.
        offset: usize,
        /// What the type needs.
        align: usize,
    },
}

impl SegmentError {
    /// For `map_err`: ties an error number to what was tried.
    pub(super) fn os(step: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self::Os { step, source }
    }
}
