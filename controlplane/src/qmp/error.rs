//! What can go wrong with a monitor, and what to do about it.

use std::path::PathBuf;

/// A monitor that cannot be used, or that said no.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum QmpError {
    /// The path is outside the allowed directories.
    #[error("{0} is not below a directory that monitors may lie in")]
    Forbidden(PathBuf),
    /// There is no such socket.
    #[error("{path} cannot be opened: {problem}")]
    Missing {
        /// The path.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// Somebody else holds it, or it is no monitor.
    #[error("{0} does not answer")]
    Silent(PathBuf),
    /// The hypervisor closed it, or is gone.
    #[error("the monitor closed its connection: the hypervisor ended, or closed it")]
    Closed,
    /// No answer in time.
    #[error("the hypervisor did not answer {command} within {limit_ms} ms")]
    TimedOut {
        /// The command.
        command: &'static str,
        /// The deadline.
        limit_ms: u128,
    },
    /// The hypervisor refused the command.
    #[error("the hypervisor refused {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its own class of the error.
        class: String,
        /// Its own words.
        description: String,
    },
    /// Something that is no QMP.
    #[error("the monitor sent what is no QMP: {0}")]
    Garbled(String),
}

impl QmpError {
    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "qmp_forbidden",
            Self::Missing { .. } => "qmp_missing",
            Self::Silent(_) => "qmp_silent",
            Self::Closed => "qmp_closed",
            Self::TimedOut { .. } => "qmp_timed_out",
            Self::Refused { .. } => "qmp_refused",
            Self::Garbled(_) => "qmp_garbled",
        }
    }

    /// The HTTP status that says it best.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Forbidden(_) => 403,
            Self::Missing { .. } => 422,
            Self::Refused { .. } => 409,
            _ => 502,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "move the socket there, or add its directory to qmp_allowed_dirs",
            Self::Missing { .. } => {
                "start the hypervisor with -qmp unix:PATH,server=on,wait=off and give that path"
            }
            Self::Silent(_) => {
                "close the other client of this monitor (it serves one at a time), or give the hypervisor a second one"
            }
            Self::Closed => "look at the hypervisor's log; start it again if it ended",
            Self::TimedOut { .. } => {
                "look whether the hypervisor is stuck, on storage for instance"
            }
            Self::Refused { .. } => "do what the hypervisor's message says",
            Self::Garbled(_) => "give the path of a QMP monitor, not of a human one",
        }
    }
}
