//! What can keep a process from being profiled, and what to do about it.

use std::io;

/// No profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The process has ended, or runs where this process cannot see it.
    #[error("process {pid} cannot be seen: {cause}")]
    Gone {
        /// Which.
        pid: u32,
        /// What the system said.
        cause: io::Error,
    },
    /// The kernel refuses to let us look at it.
    #[error(
        "the kernel does not let this process look at process {pid}: perf_event_paranoid is {paranoid}"
    )]
    Forbidden {
        /// Which.
        pid: u32,
        /// `/proc/sys/kernel/perf_event_paranoid`, or a question mark.
        paranoid: String,
    },
    /// The kernel has no perf events.
    #[error("this kernel has no perf events")]
    Missing,
    /// Too much is asked for at once.
    #[error("the kernel has no room for the sampling of process {pid}: {cause}")]
    NoRoom {
        /// Which.
        pid: u32,
        /// What the system said.
        cause: io::Error,
    },
    /// Something else in the kernel.
    #[error("sampling of process {pid} failed while {step}: {cause}")]
    Kernel {
        /// Which.
        pid: u32,
        /// While doing what.
        step: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// Its program cannot be read, so no function has a name.
    #[error("the program of process {pid} cannot be read: {reason}")]
    Program {
        /// Which.
        pid: u32,
        /// Why.
        reason: String,
    },
}

impl ProfileError {
    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "profile_process_gone",
            Self::Forbidden { .. } => "profile_forbidden",
            Self::Missing => "profile_unsupported",
            Self::NoRoom { .. } => "profile_no_room",
            Self::Kernel { .. } => "profile_failed",
            Self::Program { .. } => "profile_program_unreadable",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "look whether the data plane runs, in the same process namespace",
            Self::Forbidden { .. } => {
                "give dwcp-controlplane CAP_PERFMON and CAP_SYS_PTRACE (AmbientCapabilities= in its unit), or run both planes as one user with kernel.perf_event_paranoid at 2 or less"
            }
            Self::Missing => "use a kernel with CONFIG_PERF_EVENTS, or a container that allows it",
            Self::NoRoom { .. } => {
                "raise LimitMEMLOCK= and LimitNOFILE= of dwcp-controlplane, or kernel.perf_event_mlock_kb"
            }
            Self::Kernel { .. } => "ask again; if it stays so, report the bug with these words",
            Self::Program { .. } => {
                "give dwcp-controlplane CAP_SYS_PTRACE, or run both planes as one user"
            }
        }
    }

    /// The refusal behind a system call's error.
    pub(super) fn of(pid: u32, step: &'static str, cause: io::Error) -> Self {
        match cause.raw_os_error() {
            Some(libc::ESRCH) => Self::Gone { pid, cause },
            Some(libc::EACCES | libc::EPERM) => Self::Forbidden {
                pid,
                paranoid: std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                    .map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned()),
            },
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC) => {
                Self::NoRoom { pid, cause }
            }
            _ => Self::Kernel { pid, step, cause },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_errors_become_cures() {
        let of = |errno| ProfileError::of(1, "opening", io::Error::from_raw_os_error(errno)).code();
        assert_eq!(of(libc::ESRCH), "profile_process_gone");
        assert_eq!(of(libc::EACCES), "profile_forbidden");
        assert_eq!(of(libc::EPERM), "profile_forbidden");
        assert_eq!(of(libc::ENOSYS), "profile_unsupported");
        assert_eq!(of(libc::EMFILE), "profile_no_room");
        assert_eq!(of(libc::EIO), "profile_failed");
    }
}
