//! How the program ends: one number for each outcome that a script may want to tell apart.

use std::process::ExitCode;

/// The list for `--help`.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    failed; the guest runs at the source, a NIC is as it was or not as its profile wants it
  2    wrong usage
  3    cancelled
  4    timed out
  5    refused by policy
  6    authentication failed
  7    control plane unreachable
  9    undecided: it is not known which side runs the guest
  130  interrupted (Ctrl-C)

Environment:
  DWCP_API         address of the control plane
  DWCP_CA          file with the authorities of control planes that speak TLS
  DWCP_TOKEN       the token itself
  DWCP_TOKEN_FILE  file that holds the token
  NO_COLOR         no colours";

/// An outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; the guest runs at the source.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Cancelled.
    Cancelled = 3,
    /// Timed out.
    TimedOut = 4,
    /// Refused by policy.
    Refused = 5,
    /// The token was not accepted.
    Authentication = 6,
    /// The control plane did not answer.
    Unreachable = 7,
    /// Nobody knows which side runs the guest.
    Undecided = 9,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
