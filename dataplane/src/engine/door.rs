//! The thread that lets lanes in: it accepts and dials TCP connections and runs the handshake on them.
//!
//! In: strangers, dial orders, sessions to expect. Out: proven connections, each to the worker that has
//! its session. Promises: a stranger holds a fixed amount of memory and for a limited time, and at most
//! so many at once; who does not prove the key reaches no session; a worker never waits for a peer here.

mod error;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use arrayvec::ArrayString;
use dwcp_api::{Failure, SessionId, monotonic_ns};
use dwcp_drivers::tcp::socket::{SocketTuning, tune};

use super::drivers::{Drivers, LaneEnd};
use super::mailbox::{Mailbox, Sender};
use super::messages::{DestinationOrder, Dial, Expected, LaneUp, Offer, ToDoor, ToWorker};
use super::path_choice::PathChoice;
use super::poller::{Poller, Token};
use super::sockets;
use crate::config::PassiveTarget;
use crate::transport::handshake::{
    Acceptor, AcceptorStep, Agreed, Answer, Initiator, InitiatorConfig, InitiatorStep, Join,
    MAX_MESSAGE_BYTES, Message, Proven, Purpose, RefuseReason, SessionParams, Way,
};
use crate::transport::wire::keys::Psk;
use crate::transport::{BatchSeq, NodeId, SessionEpoch, Version};
use error::DoorError;

/// A handshake that is not done by then is given up.
const HANDSHAKE_LIMIT_NS: u64 = 5_000_000_000;
/// Strangers at once; for one more, the one who came first goes.
const STRANGERS_MAX: usize = 256;
/// Sessions remembered after their end, so that a late lane learns that it is late.
const GONE_MAX: usize = 256;
/// Deadlines are looked at this often.
const TICK_NS: u64 = 100_000_000;
/// Unsent bytes in the kernel, per lane: what lies there cannot be taken back.
const UNSENT_BYTES_MAX: u32 = 64 << 10;

const LISTENER: Token = Token(u64::MAX);
const MAIL: Token = Token(u64::MAX - 1);

enum Side {
    Connecting(Box<Dial>),
    Initiator(Box<Initiator>, Box<Dial>),
    Acceptor(Box<Acceptor>),
    /// A last message is being written; then the connection is closed.
    TurnedAway,
    /// The last message is being written; then the connection is a lane.
    Welcomed(Box<Agreed>),
}

struct Stranger {
    fd: OwnedFd,
    side: Side,
    unsent: VecDeque<u8>,
    deadline_ns: u64,
    peer: SocketAddr,
}

/// See the module.
pub struct Door {
    psk: Psk,
    node: NodeId,
    max_version: Version,
    offer: Offer,
    listener: OwnedFd,
    targets: Vec<PassiveTarget>,
    mail: Mailbox<ToDoor>,
    workers: Vec<Sender<ToWorker>>,
    drivers: Drivers,
    next_worker: usize,
    expected: HashMap<SessionId, Known>,
    gone: VecDeque<SessionId>,
    strangers: HashMap<u64, Stranger>,
    next_stranger: u64,
    poller: Poller,
    refused: u64,
    paths: PathChoice,
}

#[derive(Clone, Copy)]
struct Known {
    worker: usize,
    offer: Offer,
}

/// What the door is made of.
pub struct DoorOptions {
    /// The shared key.
    pub psk: Psk,
    /// This node.
    pub node: NodeId,
    /// What this node can agree to.
    pub offer: Offer,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// Hypervisors that unannounced sessions may be delivered to.
    pub targets: Vec<PassiveTarget>,
    /// What lanes may run over; looked after here.
    pub drivers: Drivers,
    /// What decides over the rate of a TCP lane.
    pub paths: PathChoice,
}

impl Door {
    /// Opens the door.
    ///
    /// # Errors
    /// What the system said, as a rule that the address is in use or not this host's.
    pub fn new(
        options: DoorOptions,
        mail: Mailbox<ToDoor>,
        workers: Vec<Sender<ToWorker>>,
    ) -> io::Result<Self> {
        let listener = sockets::listen_tcp(options.listen)?;
        let poller = Poller::new()?;
        poller.add_readable(&listener, LISTENER)?;
        poller.add_readable(mail.fd(), MAIL)?;
        Ok(Self {
            psk: options.psk,
            node: options.node,
            max_version: wire_version(options.offer.max_version),
            offer: options.offer,
            listener,
            targets: options.targets,
            mail,
            workers,
            drivers: options.drivers,
            next_worker: 0,
            expected: HashMap::new(),
            gone: VecDeque::with_capacity(GONE_MAX),
            strangers: HashMap::new(),
            next_stranger: 0,
            poller,
            refused: 0,
            paths: options.paths,
        })
    }

    /// Where peers connect: the port is the system's choice if it was given as 0.
    ///
    /// # Errors
    /// What the system said.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        sockets::local_address(&self.listener)
    }

    /// Serves until told to stop.
    pub fn run(&mut self) {
        let mut ready = Vec::with_capacity(128);
        loop {
            let mut knock = false;
            ready.clear();
            let waited = self.poller.wait(TICK_NS, |event| match event.token {
                LISTENER => knock = true,
                MAIL => {}
                token => ready.push(token.0),
            });
            if let Err(error) = waited {
                tracing::error!(%error, "the door cannot wait");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            if self.read_mail() {
                return;
            }
            if knock {
                self.accept();
            }
            for &id in &ready {
                self.serve(id);
            }
            self.expire();
            self.drivers.tend();
        }
    }

    fn read_mail(&mut self) -> bool {
        self.mail.drain_wakeups();
        while let Some(message) = self.mail.receive() {
            match message {
                ToDoor::Expect(expected) => {
                    let Expected {
                        session,
                        worker,
                        offer,
                    } = *expected;
                    self.expected.insert(session, Known { worker, offer });
                }
                ToDoor::Dial(dial) => self.dial(dial),
                ToDoor::Forget(session) => {
                    if self.expected.remove(&session).is_some() {
                        if self.gone.len() == GONE_MAX {
                            self.gone.pop_front();
                        }
                        self.gone.push_back(session);
                    }
                    self.strangers.retain(|_, stranger| match &stranger.side {
                        Side::Connecting(dial) | Side::Initiator(_, dial) => {
                            dial.session != session
                        }
                        _ => true,
                    });
                }
                ToDoor::Stop => return true,
            }
        }
        false
    }

    fn accept(&mut self) {
        while let Ok(fd) = sockets::accept(&self.listener) {
            let Ok(peer) = sockets::peer_address(&fd) else {
                continue;
            };
            self.make_room();
            let Some(nonce) = fresh_nonce() else { continue };
            let acceptor = Acceptor::new(self.psk.clone(), self.node, nonce);
            self.admit(fd, Side::Acceptor(Box::new(acceptor)), peer);
        }
    }

    /// When too many strangers stand in the door, the one who has stood there longest goes: an honest
    /// peer is through in a few round trips, so those who say nothing keep nobody out.
    fn make_room(&mut self) {
        let acceptors = || {
            let all = self.strangers.iter();
            all.filter(|(_, stranger)| matches!(stranger.side, Side::Acceptor(_)))
        };
        if acceptors().count() < STRANGERS_MAX {
            return;
        }
        let longest = acceptors().map(|(id, _)| *id).min();
        if let Some(stranger) = longest.and_then(|id| self.strangers.remove(&id)) {
            self.give_up(&stranger, &DoorError::Crowded);
        }
    }

    fn dial(&mut self, dial: Box<Dial>) {
        let peer = dial.peer;
        match sockets::dial_tcp(peer) {
            Ok(fd) => self.admit(fd, Side::Connecting(dial), peer),
            Err(error) => self.dial_failed(&dial, Failure::PeerLost, &error.to_string(), false),
        }
    }

    fn admit(&mut self, fd: OwnedFd, side: Side, peer: SocketAddr) {
        let tuning = SocketTuning {
            unsent_bytes_max: UNSENT_BYTES_MAX,
            ..SocketTuning::default()
        };
        if let Err(error) = tune(&fd, &tuning) {
            tracing::warn!(%peer, %error, "a lane's socket is not set up as it should be");
        }
        let id = self.next_stranger;
        self.next_stranger += 1;
        if let Err(error) = self.poller.add_stream(&fd, Token(id)) {
            tracing::warn!(%peer, %error, "a connection cannot be watched");
            return;
        }
        let deadline_ns = monotonic_ns() + HANDSHAKE_LIMIT_NS;
        let stranger = Stranger {
            fd,
            side,
            unsent: VecDeque::new(),
            deadline_ns,
            peer,
        };
        self.strangers.insert(id, stranger);
    }

    fn serve(&mut self, id: u64) {
        let Some(mut stranger) = self.strangers.remove(&id) else {
            return;
        };
        match self.advance(&mut stranger) {
            Ok(Next::Wait) => {
                self.strangers.insert(id, stranger);
            }
            Ok(Next::Close) => {}
            Ok(Next::Lane(agreed)) => {
                self.poller.remove(&stranger.fd);
                self.hand_over(*agreed, stranger);
            }
            Err(error) => self.give_up(&stranger, &error),
        }
    }

    fn give_up(&mut self, stranger: &Stranger, error: &DoorError) {
        match &stranger.side {
            Side::Connecting(dial) | Side::Initiator(_, dial) => {
                let (failure, fatal) = error.verdict();
                self.dial_failed(dial, failure, &error.to_string(), fatal);
            }
            _ => {
                self.refused += 1;
                tracing::warn!(peer = %stranger.peer, %error, "a stranger was turned away");
            }
        }
    }

    fn dial_failed(&self, dial: &Dial, failure: Failure, detail: &str, fatal: bool) {
        let message = ToWorker::LaneFailed {
            session: dial.session,
            lane: dial.lane,
            over: Way::Tcp,
            failure,
            detail: format!("{}: {detail}", dial.peer),
            fatal,
        };
        let _ = self.workers[dial.worker].send(message);
    }

    fn advance(&mut self, stranger: &mut Stranger) -> Result<Next, DoorError> {
        if let Side::Connecting(_) = stranger.side {
            if !sockets::is_connected(&stranger.fd)? {
                return Ok(Next::Wait);
            }
            let Side::Connecting(dial) = std::mem::replace(&mut stranger.side, Side::TurnedAway)
            else {
                return Ok(Next::Close);
            };
            let (initiator, hello) = self.initiator(&dial)?;
            stranger.side = Side::Initiator(Box::new(initiator), dial);
            stranger.unsent.extend(hello);
        }
        loop {
            if !flush(stranger)? {
                return Ok(Next::Wait);
            }
            match std::mem::replace(&mut stranger.side, Side::TurnedAway) {
                Side::TurnedAway => return Ok(Next::Close),
                Side::Welcomed(agreed) => return Ok(Next::Lane(agreed)),
                side => stranger.side = side,
            }
            let wanted = match &stranger.side {
                Side::Initiator(initiator, _) => initiator.wanted(),
                Side::Acceptor(acceptor) => acceptor.wanted(),
                _ => 0,
            };
            let mut bytes = [0u8; MAX_MESSAGE_BYTES];
            let wanted = wanted.clamp(1, MAX_MESSAGE_BYTES);
            let got = match rustix::io::read(&stranger.fd, &mut bytes[..wanted]) {
                Ok(0) => return Err(DoorError::Ended),
                Ok(got) => got,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Next::Wait),
                Err(error) => return Err(DoorError::Io(error.into())),
            };
            if let Some(next) = self.feed(stranger, &bytes[..got])? {
                return Ok(next);
            }
        }
    }

    fn initiator(&self, dial: &Dial) -> Result<(Initiator, Message), DoorError> {
        let purpose = match &dial.target {
            None => Purpose::Expected,
            Some(name) => Purpose::Passive {
                target: ArrayString::from(name).map_err(|_| DoorError::TargetTooLong)?,
            },
        };
        let config = InitiatorConfig {
            psk: self.psk.clone(),
            node: self.node,
            peer: None,
            session: crate::transport::SessionId(dial.session.0),
            epoch: SessionEpoch(0),
            lane: dial.lane,
            lane_attempt: 0,
            join: Join::New,
            purpose,
            highest: wire_version(dial.offer.max_version),
            params: params(&dial.offer),
            way: dial.way,
        };
        let nonce = fresh_nonce().ok_or(DoorError::NoRandom)?;
        Ok(Initiator::new(config, nonce))
    }

    /// Gives bytes to the handshake. The number read was what it wanted at most, so all are taken.
    fn feed(&mut self, stranger: &mut Stranger, bytes: &[u8]) -> Result<Option<Next>, DoorError> {
        match &mut stranger.side {
            Side::Initiator(initiator, _) => match initiator.feed(bytes)?.1 {
                None => Ok(None),
                Some(InitiatorStep::Send(message)) => {
                    stranger.unsent.extend(message);
                    Ok(None)
                }
                Some(InitiatorStep::Done { agreed, .. }) => Ok(Some(Next::Lane(Box::new(agreed)))),
                Some(InitiatorStep::Refused { reason, verified }) => {
                    Err(DoorError::Refused { reason, verified })
                }
            },
            Side::Acceptor(acceptor) => match acceptor.feed(bytes)?.1 {
                None => Ok(None),
                Some(AcceptorStep::Hello(hello)) => {
                    let session = SessionId(hello.session.0);
                    let offer = self
                        .expected
                        .get(&session)
                        .map_or(self.offer, |known| known.offer);
                    let highest = wire_version(offer.max_version).min(self.max_version);
                    match acceptor.challenge(highest, params(&offer))? {
                        Answer::Challenge(message) => stranger.unsent.extend(message),
                        Answer::VersionMismatch(message) => {
                            stranger.unsent.extend(message);
                            stranger.side = Side::TurnedAway;
                        }
                    }
                    Ok(None)
                }
                Some(AcceptorStep::WrongKey(message)) => {
                    self.refused += 1;
                    tracing::warn!(peer = %stranger.peer, "a stranger does not have the shared key");
                    stranger.unsent.extend(message);
                    stranger.side = Side::TurnedAway;
                    Ok(None)
                }
                Some(AcceptorStep::Proven(proven)) => {
                    match self.admission(&proven) {
                        Ok(worker) => {
                            let way = self.drivers.ways(worker).answer(proven.wanted);
                            let (message, agreed) = acceptor.welcome(proven, BatchSeq(0), way)?;
                            stranger.unsent.extend(message);
                            if let Way::Rdma(_) = way {
                                let lane =
                                    lane_up(agreed.clone(), stranger.peer, false, LaneEnd::Agreed);
                                self.drivers.expect(lane, self.workers[worker].clone());
                            }
                            stranger.side = Side::Welcomed(Box::new(agreed));
                        }
                        Err(reason) => {
                            self.refused += 1;
                            tracing::warn!(peer = %stranger.peer, %reason, "a peer was refused");
                            stranger.unsent.extend(acceptor.refuse(reason)?);
                            stranger.side = Side::TurnedAway;
                        }
                    }
                    Ok(None)
                }
            },
            _ => Ok(Some(Next::Close)),
        }
    }

    /// May a peer that has the key open this lane? Then with this worker.
    fn admission(&mut self, proven: &Proven) -> Result<usize, RefuseReason> {
        let session = SessionId(proven.session.0);
        if let Some(known) = self.expected.get(&session) {
            return Ok(known.worker);
        }
        if self.gone.contains(&session) {
            return Err(RefuseReason::SessionGone);
        }
        let Purpose::Passive { target } = &proven.purpose else {
            return Err(RefuseReason::UnknownSession);
        };
        let target = self
            .targets
            .iter()
            .find(|known| known.target == target.as_str())
            .ok_or(RefuseReason::PassiveTargetUnknown)?;
        self.next_worker = (self.next_worker + 1) % self.workers.len();
        let worker = self.next_worker;
        let order = DestinationOrder {
            session,
            connect: target.connect.clone(),
            limits: dwcp_api::command::SessionLimits::default(),
        };
        self.workers[worker]
            .send(ToWorker::OpenDestination(Box::new(order), None))
            .map_err(|_| RefuseReason::Busy)?;
        self.expected.insert(
            session,
            Known {
                worker,
                offer: self.offer,
            },
        );
        Ok(worker)
    }

    fn hand_over(&mut self, agreed: Agreed, stranger: Stranger) {
        let session = SessionId(agreed.session.0);
        let (worker, dialled) = match &stranger.side {
            Side::Initiator(_, dial) => (Some(dial.worker), true),
            _ => (self.expected.get(&session).map(|known| known.worker), false),
        };
        let Some(worker) = worker.map(|index| self.workers[index].clone()) else {
            return;
        };
        let end = match agreed.way.acceptor {
            Way::Tcp => {
                self.paths.choose(&stranger.fd);
                LaneEnd::Socket(stranger.fd)
            }
            Way::Dpdk { .. } => LaneEnd::Agreed,
            Way::Rdma(_) => {
                // The side that was dialled has waited for the connection since its WELCOME.
                if dialled {
                    let lane = lane_up(agreed, stranger.peer, true, LaneEnd::Agreed);
                    self.drivers.connect(lane, worker);
                }
                return;
            }
        };
        let lane = lane_up(agreed, stranger.peer, dialled, end);
        if let Err(error) = worker.send(ToWorker::LaneUp(Box::new(lane))) {
            tracing::error!(%error, "a lane was lost on its way to its worker");
        }
    }

    fn expire(&mut self) {
        let now_ns = monotonic_ns();
        let late: Vec<u64> = self
            .strangers
            .iter()
            .filter(|(_, stranger)| stranger.deadline_ns < now_ns)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(stranger) = self.strangers.remove(&id) {
                self.give_up(&stranger, &DoorError::TooLate);
            }
        }
    }
}

enum Next {
    Wait,
    Close,
    Lane(Box<Agreed>),
}

fn flush(stranger: &mut Stranger) -> Result<bool, DoorError> {
    while !stranger.unsent.is_empty() {
        let (bytes, _) = stranger.unsent.as_slices();
        match rustix::net::send(
            &stranger.fd,
            bytes,
            rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
        ) {
            Ok(sent) => {
                stranger.unsent.drain(..sent);
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(DoorError::Io(error.into())),
        }
    }
    Ok(true)
}

fn lane_up(agreed: Agreed, peer: SocketAddr, dialled: bool, end: LaneEnd) -> LaneUp {
    LaneUp {
        session: SessionId(agreed.session.0),
        lane: agreed.lane,
        peer_node: if dialled {
            agreed.acceptor
        } else {
            agreed.initiator
        },
        end,
        peer,
        agreed,
    }
}

fn params(offer: &Offer) -> SessionParams {
    SessionParams {
        page_store_bytes: offer.store_bytes,
        window_limit_bytes: offer.window_limit_bytes,
        lanes_v1: offer.lanes_v1,
        lanes_v3: offer.lanes_v3,
    }
}

const fn wire_version(version: dwcp_api::Version) -> Version {
    match version {
        dwcp_api::Version::V1 => Version::V1,
        dwcp_api::Version::V3 => Version::V3,
    }
}

fn fresh_nonce() -> Option<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).ok()?;
    Some(nonce)
}
