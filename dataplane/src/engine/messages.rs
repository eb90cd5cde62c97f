//! What the threads of one data plane tell each other. All of it is cold: sessions open and close,
//! lanes come and go. The stream itself never passes through here.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use dwcp_api::command::{SessionLimits, Verdict};
use dwcp_api::event::Event;
use dwcp_api::{Failure, Mode, Role, SessionId, Version};
use dwcp_baseline::{Baseline, Tenant};

use super::drivers::LaneEnd;
use super::room::Room;
use crate::transport::handshake::{Agreed, Way};
use crate::transport::{LaneIx, NodeId};

/// Whom the lanes of a session are dialled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer data plane.
    pub address: SocketAddr,
    /// Name of the passive target; `None` for a session that a control plane announced.
    pub target: Option<String>,
    /// The node that must answer; `None` takes any that proves itself.
    pub node: Option<String>,
}

/// How a session comes to be at the source.
#[derive(Debug)]
pub struct SourceOrder {
    /// The session.
    pub session: SessionId,
    /// Socket on which the hypervisor will connect; `None` if `first` is given.
    pub listen: Option<PathBuf>,
    /// The first connection, when a passive socket already accepted it.
    pub first: Option<OwnedFd>,
    /// The peer data plane.
    pub peer: Peer,
    /// Highest version.
    pub max_version: Version,
    /// Limits; zero means the default.
    pub limits: SessionLimits,
    /// Whose baselines it may use.
    pub tenant: Tenant,
}

/// How a session comes to be at the destination.
#[derive(Debug)]
pub struct DestinationOrder {
    /// The session.
    pub session: SessionId,
    /// The receiving hypervisor's socket.
    pub connect: PathBuf,
    /// Limits; zero means the default.
    pub limits: SessionLimits,
    /// Its memory, where the door has reserved it: for a session that nobody announced.
    pub room: Option<Room>,
    /// Whose baselines it may use.
    pub tenant: Tenant,
}

/// A lane that proved itself at the door.
#[derive(Debug)]
pub struct LaneUp {
    /// Whose lane.
    pub session: SessionId,
    /// Which of the bundle.
    pub lane: LaneIx,
    /// What the lane is made of.
    pub end: LaneEnd,
    /// What both sides agreed on.
    pub agreed: Agreed,
    /// The peer's node.
    pub peer_node: NodeId,
    /// The peer's address.
    pub peer: SocketAddr,
}

/// To a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// Open a source session; answer the command.
    OpenSource(Box<SourceOrder>, Option<u64>),
    /// Open a destination session; answer the command.
    OpenDestination(Box<DestinationOrder>, Option<u64>),
    /// Fail a session closed.
    Cancel(SessionId, u64),
    /// End an undecided session.
    Resolve(SessionId, Verdict, u64),
    /// Change a session's bandwidth limit.
    Limit(SessionId, u64, u64),
    /// Put a session into a mode.
    SetMode(SessionId, Mode, u64),
    /// The peer of a source session is reached elsewhere.
    Redirect(SessionId, SocketAddr, u64),
    /// Forget a session that has ended.
    Forget(SessionId, u64),
    /// The baselines of a session's tenant.
    Baselines(SessionId, Vec<Arc<Baseline>>),
    /// A lane is ready.
    LaneUp(Box<LaneUp>),
    /// A lane could not be made.
    LaneFailed {
        /// Whose lane.
        session: SessionId,
        /// Which of the bundle.
        lane: LaneIx,
        /// What it was to run over, where that is why.
        over: Way,
        /// Why.
        failure: Failure,
        /// What to do.
        detail: String,
        /// No use dialling again.
        fatal: bool,
    },

    /// End every session and stop.
    Stop,
}

/// To the control thread.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lies in a queue made at start, never on a hot path"
)]
pub enum ToControl {
    /// Tell the control plane.
    Event(Event),
    /// Keep a duplicate of a hypervisor's connection, and give one to the control plane.
    Keep {
        /// Whose connection.
        session: SessionId,
        /// Which end of the migration.
        role: Role,
        /// Which connection.
        channel: u16,
        /// The duplicate.
        fd: OwnedFd,
    },
    /// Let a session's duplicates go.
    Drop(SessionId),
    /// A worker has a session from now on: what concerns it goes there.
    Opened {
        /// The session.
        session: SessionId,
        /// Index of the worker.
        worker: usize,
    },
    /// No worker has this session any more, or none took it.
    Forgotten(SessionId),
}

/// To the door.
#[derive(Debug)]
pub enum ToDoor {
    /// Accept lanes of this session and send them to this worker.
    Expect(Box<Expected>),
    /// Dial one lane of a session.
    Dial(Box<Dial>),
    /// Refuse lanes of this session from now on and stop dialling it.
    Forget(SessionId),
    /// Read the certificate files again.
    ReadFiles,
    /// Stop.
    Stop,
}

/// A session that the door lets in.
#[derive(Debug)]
pub struct Expected {
    /// The session.
    pub session: SessionId,
    /// Index of the worker that has it.
    pub worker: usize,
    /// What this side can agree to.
    pub offer: Offer,
}

/// One lane to dial.
#[derive(Debug)]
pub struct Dial {
    /// The session.
    pub session: SessionId,
    /// Index of the worker that has it.
    pub worker: usize,
    /// Which lane of the bundle.
    pub lane: LaneIx,
    /// Which dial of the session, from 1 on.
    pub attempt: u32,
    /// Where to.
    pub peer: Peer,
    /// What this side offers.
    pub offer: Offer,
    /// What the lane is to run over.
    pub way: Way,
    /// What for.
    pub errand: Errand,
}

/// What a connection is dialled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// To be a lane; one that is ready will do.
    Lane,
    /// To be a lane; one that is ready will not do.
    FreshLane,
    /// To be ready for a lane.
    Pool,
}

impl Errand {
    /// Of a lane over `way`, of a session whose versions these are. v1 has every lane dialled, and a device needs
    /// no more than the handshake of the connection.
    #[must_use]
    pub fn of_lane(versions: [Version; 2], way: Way) -> Self {
        if versions == [Version::V3; 2] && way == Way::Tcp {
            Self::Lane
        } else {
            Self::FreshLane
        }
    }
}

/// One side's limits, before the two sides have agreed.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Highest version.
    pub max_version: Version,
    /// Page store, bytes.
    pub store_bytes: u64,
    /// Held bytes, at most.
    pub window_limit_bytes: u64,
    /// Lanes for a v1 transport.
    pub lanes_v1: u16,
    /// Lanes for a v3 transport, at most.
    pub lanes_v3: u16,
    /// This side keeps baselines.
    pub baselines: bool,
}

/// What one worker's lanes may run over beside TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways {
    /// Its DPDK port.
    pub dpdk: Option<Way>,
    /// Its RDMA device.
    pub rdma: Option<Way>,
}

impl Ways {
    /// Its end of a lane whose other end is `theirs`; TCP where it has no such driver.
    #[must_use]
    pub fn answer(&self, theirs: Way) -> Way {
        match theirs {
            Way::Tcp => None,
            Way::Dpdk { .. } => self.dpdk,
            Way::Rdma(_) => self.rdma,
        }
        .unwrap_or(Way::Tcp)
    }
}
