//! What can go wrong between the planes, and what to do about it.

use dwcp_api::Failure;
use dwcp_api::text::TextError;
use dwcp_hugepages::doorbell::DoorbellError;
use dwcp_hugepages::ring::RingError;
use dwcp_hugepages::scm::ScmError;
use dwcp_hugepages::segment::SegmentError;

/// A call to the data plane that failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostError {
    /// There is no data plane, or not yet.
    #[error("no data plane is attached: {0}")]
    Disconnected(String),
    /// It takes commands too slowly.
    #[error("the command ring is full: the data plane does not take commands")]
    Full,
    /// It did not answer.
    #[error("the data plane did not answer within {0} s")]
    TimedOut(u64),
    /// It refused the command.
    #[error("the data plane refused ({failure}): {detail}")]
    Refused {
        /// Its reason.
        failure: Failure,
        /// Its words.
        detail: String,
    },
    /// A session's figures change faster than they can be copied.
    #[error("the session table could not be read whole")]
    Unreadable,
}

impl HostError {
    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Disconnected(_) => "data_plane_gone",
            Self::Full => "data_plane_full",
            Self::TimedOut(_) => "data_plane_timed_out",
            Self::Refused { failure, .. } => failure.as_str(),
            Self::Unreadable => "data_plane_unreadable",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Disconnected(_) => "start dwcp-dataplane and look at its log",
            Self::Full | Self::TimedOut(_) => {
                "look whether the data plane's workers get processor time"
            }
            Self::Refused { .. } => "do what the data plane's message says",
            Self::Unreadable => "ask again",
        }
    }
}

/// An attach that failed. The next one is tried by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    /// Nobody listens.
    #[error("{path}: {problem}; start dwcp-dataplane, or correct the attach path")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        problem: std::io::Error,
    },
    /// Another control plane is attached.
    #[error("another control plane is attached; stop it, this one keeps trying")]
    Busy,
    /// The socket.
    #[error("attach socket: {0}")]
    Socket(#[from] ScmError),
    /// Not our protocol.
    #[error("the first packet is no greeting ({0}); is this the attach socket of dwcp-dataplane?")]
    NoGreeting(&'static str),
    /// No greeting in time.
    #[error("no greeting within {0} s; the data plane is stuck")]
    Silent(u64),
    /// Another release.
    #[error(
        "the data plane speaks ABI {found}, this control plane {ours}; install both from one release"
    )]
    Abi {
        /// Its version.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// Another layout.
    #[error("the data plane's layout is {found:#x}, ours {ours:#x}; install both from one release")]
    Layout {
        /// Its hash.
        found: u64,
        /// Ours.
        ours: u64,
    },
    /// The rings are of another life than the greeting.
    #[error("the rings are of generation {found}, the greeting of {expected}; attach again")]
    Generation {
        /// In the rings' header.
        found: u64,
        /// In the greeting.
        expected: u64,
    },
    /// A number of workers that cannot be.
    #[error("the data plane claims {0} workers; install both from one release")]
    Workers(u32),
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A doorbell.
    #[error(transparent)]
    Doorbell(#[from] DoorbellError),
    /// The event loop.
    #[error("the event loop refused a descriptor: {0}; raise RLIMIT_NOFILE")]
    Loop(std::io::Error),
    /// A listen address or node name that holds nothing.
    #[error("the greeting has no {0}; install both from one release")]
    Empty(&'static str),
}

impl From<TextError> for HostError {
    fn from(error: TextError) -> Self {
        Self::Refused {
            failure: Failure::BadCommand,
            detail: error.to_string(),
        }
    }
}
