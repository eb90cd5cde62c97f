//! Why a request about a migration was refused. Each error has a word for programs, an HTTP status
//! and a cure for people.

use crate::host::HostError;
use crate::qmp::QmpError;

use super::peer::PeerError;
use super::sockets::SocketError;

/// A request that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A field of the request is wrong.
    #[error("field {field}: {problem}")]
    BadRequest {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No such migration.
    #[error("there is no migration {0} here")]
    Unknown(String),
    /// The guest already migrates.
    #[error("the hypervisor behind {qmp} already takes part in migration {session}")]
    Busy {
        /// Its QMP socket.
        qmp: String,
        /// The migration that has it.
        session: String,
    },
    /// The same session with another content.
    #[error("session {0} is already known here")]
    Duplicate(String),
    /// As many migrations as this host takes.
    #[error("{0} migrations already run on this host")]
    TooMany(usize),
    /// It has ended.
    #[error("migration {0} has already ended")]
    Ended(String),
    /// The guest is being handed over, or already was.
    #[error("migration {0} can no longer be cancelled: the destination has the guest")]
    TooLate(String),
    /// It is not known where the guest runs.
    #[error("migration {0} cannot be cancelled: it is not known yet where the guest runs")]
    Undecided(String),
    /// The hypervisor is not in the state that a migration needs.
    #[error("the hypervisor behind {qmp} is {found}, but {wanted} is needed")]
    WrongState {
        /// Its QMP socket.
        qmp: String,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The hypervisor lacks something.
    #[error("the hypervisor behind {qmp} {problem}")]
    Unsupported {
        /// Its QMP socket.
        qmp: String,
        /// What it lacks, or did not do.
        problem: String,
    },
    /// The hypervisor refuses post-copy.
    #[error("the hypervisor behind {qmp} refuses post-copy: {problem}")]
    NoPostcopy {
        /// Its QMP socket.
        qmp: String,
        /// Its words.
        problem: String,
    },
    /// There is nothing to recover.
    #[error("migration {id} is {state}: only one that is postcopy_paused can be recovered")]
    NotPaused {
        /// The migration.
        id: String,
        /// Where it stands.
        state: &'static str,
    },
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The data plane.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The destination's control plane.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A socket path.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The database.
    #[error("the job could not be written down: {0}")]
    Store(String),
    /// Random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(String),
}

impl JobError {
    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadRequest { .. } => "bad_request",
            Self::Unknown(_) => "unknown_migration",
            Self::Busy { .. } => "hypervisor_busy",
            Self::Duplicate(_) => "duplicate_session",
            Self::TooMany(_) => "too_many_migrations",
            Self::Ended(_) => "already_ended",
            Self::TooLate(_) => "too_late",
            Self::Undecided(_) => "undecided",
            Self::WrongState { .. } => "hypervisor_state",
            Self::Unsupported { .. } => "hypervisor_unsupported",
            Self::NoPostcopy { .. } => "postcopy_refused",
            Self::NotPaused { .. } => "not_paused",
            Self::Qmp(error) => error.code(),
            Self::Host(error) => error.code(),
            Self::Peer(error) => error.code(),
            Self::Socket(_) => "socket",
            Self::Store(_) => "store",
            Self::Random(_) => "system",
        }
    }

    /// The HTTP status that says it best.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::BadRequest { .. } => 400,
            Self::Unknown(_) => 404,
            Self::Busy { .. }
            | Self::Duplicate(_)
            | Self::Ended(_)
            | Self::TooLate(_)
            | Self::Undecided(_)
            | Self::NotPaused { .. }
            | Self::WrongState { .. } => 409,
            Self::Unsupported { .. } | Self::NoPostcopy { .. } => 422,
            Self::TooMany(_) | Self::Host(_) => 503,
            Self::Qmp(error) => error.http_status(),
            Self::Peer(_) => 502,
            Self::Socket(_) | Self::Store(_) | Self::Random(_) => 500,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Self::BadRequest { .. } => "correct the field and send the request again".to_owned(),
            Self::Unknown(_) => "list the migrations to see the ids that are known".to_owned(),
            Self::Busy { .. } => "wait for that migration to end, or cancel it".to_owned(),
            Self::Duplicate(_) => {
                "start again: each migration gets a session of its own".to_owned()
            }
            Self::TooMany(_) => "wait for one to end".to_owned(),
            Self::Ended(_) => "nothing: look at its result".to_owned(),
            Self::TooLate(_) => "let it complete, then migrate back".to_owned(),
            Self::Undecided(_) => {
                "bring the destination's control plane back: it says where the guest is".to_owned()
            }
            Self::WrongState { wanted, .. } => {
                format!("bring the hypervisor to that state first: {wanted}")
            }
            Self::Unsupported { .. } => {
                "use QEMU 7.2 or newer with the same machine and options on both hosts".to_owned()
            }
            Self::NoPostcopy { problem, .. } if problem.contains("serfault") => {
                "let that hypervisor use userfaultfd: start it with CAP_SYS_PTRACE, or give it access to \
                 /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1 on its host; or migrate without \
                 post-copy"
                    .to_owned()
            }
            Self::NoPostcopy { .. } => {
                "do what it says, for example leave multifd out; or migrate without post-copy".to_owned()
            }
            Self::NotPaused { .. } => {
                "nothing, if it moves; if it should be broken first, use `migrate-pause`".to_owned()
            }
            Self::Qmp(error) => error.cure().to_owned(),
            Self::Host(error) => error.cure().to_owned(),
            Self::Peer(error) => error.cure(),
            Self::Socket(_) => {
                "give the control plane a socket directory that it owns, with a short path"
                    .to_owned()
            }
            Self::Store(_) => "check the disk that holds the control plane's database".to_owned(),
            Self::Random(_) => "check the system".to_owned(),
        }
    }
}
