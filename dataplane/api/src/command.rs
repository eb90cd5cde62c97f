//! What the control plane asks of the data plane. A command has an id; the data plane answers each id
//! with one [`crate::event::Event`], also when it is repeated after a restart.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::{Mode, SessionId, Version, closed_set};
use crate::text::{Text, TextError};

/// Longest path of a UNIX socket, in bytes.
pub const PATH_BYTES: usize = 104;
/// Longest name of a tenant, in bytes.
pub const TENANT_BYTES: usize = 32;
/// Longest `address:port` of a peer, in bytes.
pub const ADDRESS_BYTES: usize = 64;
/// Longest name of a node, in bytes.
pub const NODE_BYTES: usize = 64;

/// One slot of the command ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandRecord {
    id: u64,
    session: SessionId,
    kind: u32,
    verdict: u32,
    max_version: u32,
    mode: u32,
    window_limit_bytes: u64,
    store_bytes: u64,
    rate_limit_bytes_per_s: u64,
    resume_limit_ms: u64,
    path: Text<PATH_BYTES>,
    peer: Text<ADDRESS_BYTES>,
    tenant: Text<TENANT_BYTES>,
    peer_node: Text<NODE_BYTES>,
}

closed_set! {
    /// What to do with a source session whose outcome was open.
    Verdict {
        /// The destination does not run and never will: close, so that the source resumes.
        GuestStays = 1, "guest_stays";
        /// The destination runs: the source's hypervisor has been ended; close quietly.
        GuestMoved = 2, "guest_moved";
    }
}

/// Limits of one session; zero, or no name, means the data plane's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Bytes held between the two hypervisors, at most.
    pub window_limit_bytes: u64,
    /// Size of the mirrored page store.
    pub store_bytes: u64,
    /// Wire bytes a second, at most.
    pub rate_limit_bytes_per_s: u64,
    /// How long the link may be gone.
    pub resume_limit_ms: u64,
    /// Whose baselines it may use, and whose it adds to.
    pub tenant: Text<TENANT_BYTES>,
}

/// A command that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Listen on `listen` for the sending hypervisor and carry what it says to `peer`.
    OpenSource {
        /// The session to open.
        session: SessionId,
        /// UNIX socket to create.
        listen: Text<PATH_BYTES>,
        /// The peer data plane, `address:port`.
        peer: Text<ADDRESS_BYTES>,
        /// The node that must answer there; empty: any that proves itself.
        peer_node: Text<NODE_BYTES>,
        /// Highest version this session may use.
        max_version: Version,
        /// Limits.
        limits: SessionLimits,
    },
    /// Accept this session from a peer and deliver to the hypervisor listening on `connect`.
    OpenDestination {
        /// The session to accept.
        session: SessionId,
        /// UNIX socket of the receiving hypervisor.
        connect: Text<PATH_BYTES>,
        /// Limits.
        limits: SessionLimits,
    },
    /// Fail the session closed.
    Cancel {
        /// Which one.
        session: SessionId,
    },
    /// End a session that is undecided.
    Resolve {
        /// Which one.
        session: SessionId,
        /// Who runs the guest.
        verdict: Verdict,
    },
    /// Change the bandwidth limit of a running session; zero lifts it.
    Limit {
        /// Which one.
        session: SessionId,
        /// Wire bytes a second.
        rate_limit_bytes_per_s: u64,
    },
    /// Put a running session into a mode, from its next batch on.
    SetMode {
        /// Which one.
        session: SessionId,
        /// The mode.
        mode: Mode,
    },
    /// The peer of a source session is reached at another address from now on.
    Redirect {
        /// Which one.
        session: SessionId,
        /// The peer data plane, `address:port`.
        peer: Text<ADDRESS_BYTES>,
    },
    /// Forget a session that has ended, so that its slot can be used again.
    Forget {
        /// Which one.
        session: SessionId,
    },
}

/// A record that is no command.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// No such kind, verdict, version or mode.
    #[error(
        "field {field} holds {found}, which this data plane does not know: update it to the control plane's version"
    )]
    Unknown {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u32,
    },
    /// A path or an address is missing.
    #[error("field {0} is empty")]
    Missing(&'static str),
    /// A text does not fit.
    #[error(transparent)]
    Text(#[from] TextError),
}

const OPEN_SOURCE: u32 = 1;
const OPEN_DESTINATION: u32 = 2;
const CANCEL: u32 = 3;
const RESOLVE: u32 = 4;
const LIMIT: u32 = 5;
const FORGET: u32 = 6;
const SET_MODE: u32 = 7;
const REDIRECT: u32 = 8;

impl CommandRecord {
    /// The command's id, given back in its answer.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Writes a command into a record.
    #[must_use]
    pub fn encode(id: u64, command: &Command) -> Self {
        let mut record = Self {
            id,
            session: SessionId([0; 16]),
            kind: 0,
            verdict: 0,
            max_version: 0,
            mode: 0,
            window_limit_bytes: 0,
            store_bytes: 0,
            rate_limit_bytes_per_s: 0,
            resume_limit_ms: 0,
            path: Text::EMPTY,
            peer: Text::EMPTY,
            tenant: Text::EMPTY,
            peer_node: Text::EMPTY,
        };
        match command {
            Command::OpenSource {
                session,
                listen,
                peer,
                peer_node,
                max_version,
                limits,
            } => {
                record.kind = OPEN_SOURCE;
                record.peer_node = *peer_node;
                record.session = *session;
                record.path = *listen;
                record.peer = *peer;
                record.max_version = max_version.code();
                record.set_limits(limits);
            }
            Command::OpenDestination {
                session,
                connect,
                limits,
            } => {
                record.kind = OPEN_DESTINATION;
                record.session = *session;
                record.path = *connect;
                record.set_limits(limits);
            }
            Command::Cancel { session } => {
                record.kind = CANCEL;
                record.session = *session;
            }
            Command::Resolve { session, verdict } => {
                record.kind = RESOLVE;
                record.session = *session;
                record.verdict = verdict.code();
            }
            Command::Limit {
                session,
                rate_limit_bytes_per_s,
            } => {
                record.kind = LIMIT;
                record.session = *session;
                record.rate_limit_bytes_per_s = *rate_limit_bytes_per_s;
            }
            Command::SetMode { session, mode } => {
                record.kind = SET_MODE;
                record.session = *session;
                record.mode = mode.code();
            }
            Command::Redirect { session, peer } => {
                record.kind = REDIRECT;
                record.session = *session;
                record.peer = *peer;
            }
            Command::Forget { session } => {
                record.kind = FORGET;
                record.session = *session;
            }
        }
        record
    }

    fn set_limits(&mut self, limits: &SessionLimits) {
        self.window_limit_bytes = limits.window_limit_bytes;
        self.store_bytes = limits.store_bytes;
        self.rate_limit_bytes_per_s = limits.rate_limit_bytes_per_s;
        self.resume_limit_ms = limits.resume_limit_ms;
        self.tenant = limits.tenant;
    }

    fn limits(&self) -> SessionLimits {
        SessionLimits {
            window_limit_bytes: self.window_limit_bytes,
            store_bytes: self.store_bytes,
            rate_limit_bytes_per_s: self.rate_limit_bytes_per_s,
            resume_limit_ms: self.resume_limit_ms,
            tenant: self.tenant,
        }
    }

    /// Reads a record that came across the border.
    ///
    /// # Errors
    /// [`CommandError`] if any field is not what its kind needs.
    pub fn decode(&self) -> Result<Command, CommandError> {
        let unknown = |field, found| CommandError::Unknown { field, found };
        let session = self.session;
        match self.kind {
            OPEN_SOURCE => {
                if self.path.as_str().is_empty() {
                    return Err(CommandError::Missing("listen"));
                }
                if self.peer.as_str().is_empty() {
                    return Err(CommandError::Missing("peer"));
                }
                // What cannot be read must not pass for "any".
                if self.peer_node != Text::EMPTY && self.peer_node.as_str().is_empty() {
                    return Err(CommandError::Missing("peer_node"));
                }
                Ok(Command::OpenSource {
                    session,
                    listen: self.path,
                    peer: self.peer,
                    peer_node: self.peer_node,
                    max_version: Version::from_code(self.max_version)
                        .ok_or_else(|| unknown("max_version", self.max_version))?,
                    limits: self.limits(),
                })
            }
            OPEN_DESTINATION => {
                if self.path.as_str().is_empty() {
                    return Err(CommandError::Missing("connect"));
                }
                Ok(Command::OpenDestination {
                    session,
                    connect: self.path,
                    limits: self.limits(),
                })
            }
            CANCEL => Ok(Command::Cancel { session }),
            RESOLVE => Ok(Command::Resolve {
                session,
                verdict: Verdict::from_code(self.verdict)
                    .ok_or_else(|| unknown("verdict", self.verdict))?,
            }),
            LIMIT => Ok(Command::Limit {
                session,
                rate_limit_bytes_per_s: self.rate_limit_bytes_per_s,
            }),
            SET_MODE => Ok(Command::SetMode {
                session,
                mode: Mode::from_code(self.mode).ok_or_else(|| unknown("mode", self.mode))?,
            }),
            REDIRECT if self.peer.as_str().is_empty() => Err(CommandError::Missing("peer")),
            REDIRECT => Ok(Command::Redirect {
                session,
                peer: self.peer,
            }),
            FORGET => Ok(Command::Forget { session }),
            found => Err(unknown("kind", found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_reads_back() {
        let session = SessionId([3; 16]);
        let limits = SessionLimits {
            window_limit_bytes: 1,
            store_bytes: 2,
            rate_limit_bytes_per_s: 3,
            resume_limit_ms: 4,
            tenant: Text::new("team").unwrap(),
        };
        let commands = [
            Command::OpenSource {
                session,
                listen: Text::new("/run/a.sock").unwrap(),
                peer: Text::new("10.0.0.2:4790").unwrap(),
                peer_node: Text::new("host-b").unwrap(),
                max_version: Version::V3,
                limits,
            },
            Command::OpenDestination {
                session,
                connect: Text::new("/run/b.sock").unwrap(),
                limits,
            },
            Command::Cancel { session },
            Command::Resolve {
                session,
                verdict: Verdict::GuestMoved,
            },
            Command::Limit {
                session,
                rate_limit_bytes_per_s: 5,
            },
            Command::SetMode {
                session,
                mode: Mode::Hybrid,
            },
            Command::Redirect {
                session,
                peer: Text::new("10.0.0.3:4790").unwrap(),
            },
            Command::Forget { session },
        ];
        for command in commands {
            let record = CommandRecord::encode(17, &command);
            assert_eq!(record.id(), 17);
            assert_eq!(record.decode().unwrap(), command);
        }
    }

    #[test]
    fn garbage_is_a_typed_error() {
        let mut record = CommandRecord::encode(
            1,
            &Command::Cancel {
                session: SessionId([0; 16]),
            },
        );
        record.kind = 99;
        assert_eq!(
            record.decode(),
            Err(CommandError::Unknown {
                field: "kind",
                found: 99
            })
        );
        record.kind = SET_MODE;
        assert_eq!(
            record.decode(),
            Err(CommandError::Unknown {
                field: "mode",
                found: 0
            })
        );
        record.kind = OPEN_SOURCE;
        assert_eq!(record.decode(), Err(CommandError::Missing("listen")));
        record.path = Text::clipped("/run/a.sock");
        record.peer = Text::clipped("10.0.0.2:4790");
        record.max_version = Version::V3.code();
        assert!(record.decode().is_ok());
        record.peer_node = Text::read_from_bytes(&[0xff; NODE_BYTES]).unwrap();
        assert_eq!(record.decode(), Err(CommandError::Missing("peer_node")));
    }
}
