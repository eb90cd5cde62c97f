//! What can go wrong with a store, and what to do about it.

use std::path::PathBuf;

use crate::names::ManifestId;

/// Why something was not done. The store is as it was, or without what had to make room.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{path}: {source}; give the service this folder, readable and writable")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No room on the disk.
    #[error("{path}: the disk is full; free some space there, or lower baseline.max_bytes")]
    DiskFull {
        /// What was written.
        path: PathBuf,
    },
    /// More than the store may hold, with everything else given up.
    #[error(
        "{needed_bytes} bytes of new blocks do not fit into baseline.max_bytes = {max_bytes}: raise it"
    )]
    TooLarge {
        /// Bytes of new blocks so far.
        needed_bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// Somebody else writes to it.
    #[error("another process has been writing to the store at {path} for a while: try again later")]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// Nothing but zeros.
    #[error("there is no block in it that is not all zero, so it is of no use as a baseline")]
    Empty,
    /// No such manifest of this tenant.
    #[error("this tenant has no baseline {0}: list them for the ids")]
    Unknown(ManifestId),
    /// A manifest file that is not what was written.
    #[error("baseline {0} is damaged: it is of no use and will be removed; add its image again")]
    BadManifest(ManifestId),
    /// The image cannot be read.
    #[error("{path}: {source}; name a raw or qcow2 image that this service may read")]
    Image {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The image is of a kind that is not read.
    #[error("{path}: {why}")]
    BadImage {
        /// The image.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A program that is needed for the image is not there.
    #[error("{path} is a qcow2 image, and {program} is not installed: install Debian's qemu-utils")]
    NoTool {
        /// The image.
        path: PathBuf,
        /// The program.
        program: &'static str,
    },
    /// Stopped because the caller asked.
    #[error("stopped before it was done; nothing was kept")]
    Stopped,
    /// A write was to be the last one.
    #[cfg(test)]
    #[error("killed")]
    Killed,
}

impl StoreError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "baseline_io",
            Self::DiskFull { .. } => "baseline_disk_full",
            Self::TooLarge { .. } => "baseline_too_large",
            Self::Busy { .. } => "baseline_busy",
            Self::Empty => "baseline_empty",
            Self::Unknown(_) => "baseline_unknown",
            Self::BadManifest(_) => "baseline_damaged",
            Self::Image { .. } | Self::BadImage { .. } => "baseline_image",
            Self::NoTool { .. } => "baseline_no_tool",
            Self::Stopped => "baseline_stopped",
            #[cfg(test)]
            Self::Killed => "killed",
        }
    }
}
