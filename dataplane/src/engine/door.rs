//! The thread that lets lanes in: it accepts and dials TCP connections and runs the handshake on them, over
//! TLS where `[tls]` says so.
//!
//! In: strangers, dial orders, sessions to expect, certificate files. Out: proven connections, each to the
//! worker that has its session; counts of those refused. Promises: a stranger holds a fixed amount of
//! memory and for a limited time, and at most so many at once; who does not prove itself reaches no
//! session; a worker never waits for a peer here; certificates that change are read anew, and touch no
//! session that runs.
//!
//! | module | what |
//! |---|---|
//! | [`stranger`] | one connection under handshake |
//! | [`lobby`] | all of them, and how many there may be |
//! | [`known`] | the sessions they come for |
//! | [`greet`] | the steps of the handshake |
//! | [`admission`] | which sessions a peer may bring lanes to |
//! | [`pool`] | which connections are kept ready for lanes |
//! | [`pooling`] | making them ready, and parking those of peers |
//! | [`error`] | why one is turned away |

mod admission;
mod error;
mod greet;
mod known;
mod lobby;
mod pool;
mod pooling;
mod stranger;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dwcp_api::door::Refusal;
use dwcp_api::{Failure, SessionId, monotonic_ns};
use dwcp_drivers::tcp::socket::{SocketTuning, tune};

use super::board::Board;
use super::budget::MemoryBudget;
use super::drivers::{Drivers, LaneEnd};
use super::mailbox::{Mailbox, Sender};
use super::messages::{Dial, Errand, Expected, LaneUp, Offer, ToDoor, ToWorker};
use super::path_choice::PathChoice;
use super::poller::{Poller, Token};
use super::sockets;
use crate::config::{PassiveTarget, PoolConfig};
use crate::tls::credentials::{Credentials, Reloaded};
use crate::transport::handshake::{Agreed, SessionParams, Way};
use crate::transport::wire::keys::Psk;
use crate::transport::{NodeId, Version};
use error::DoorError;
use known::Sessions;
use lobby::Lobby;
use pool::Pool;
use stranger::{Side, Stranger};

/// A handshake that is not done by then is given up.
const HANDSHAKE_LIMIT_NS: u64 = 5_000_000_000;
/// Who was turned away has so long to hear of it.
const SEE_OFF_NS: u64 = 1_000_000_000;
/// Deadlines are looked at this often.
const TICK_NS: u64 = 100_000_000;
/// Certificate files are looked at this often.
const FILES_EVERY_NS: u64 = 2_000_000_000;
/// Unsent bytes in the kernel, per lane: what lies there cannot be taken back.
const UNSENT_BYTES_MAX: u32 = 64 << 10;

const LISTENER: Token = Token(u64::MAX);
const MAIL: Token = Token(u64::MAX - 1);

/// See the module.
pub struct Door {
    psk: Psk,
    credentials: Option<Credentials>,
    files_ns: u64,
    node: NodeId,
    max_version: Version,
    offer: Offer,
    budget: MemoryBudget,
    listener: OwnedFd,
    targets: Vec<PassiveTarget>,
    mail: Mailbox<ToDoor>,
    workers: Vec<Sender<ToWorker>>,
    drivers: Drivers,
    board: Arc<Board>,
    next_worker: usize,
    sessions: Sessions,
    lobby: Lobby,
    pool: Pool,
    pool_looked_ns: u64,
    poller: Poller,
    paths: PathChoice,
}

/// What the door is made of.
pub struct DoorOptions {
    /// The shared key; where no peer is let in by it, 32 random bytes.
    pub psk: Psk,
    /// Our certificate and whom we trust.
    pub credentials: Option<Credentials>,
    /// This node.
    pub node: NodeId,
    /// What this node can agree to.
    pub offer: Offer,
    /// What its sessions may take.
    pub budget: MemoryBudget,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// Hypervisors that unannounced sessions may be delivered to.
    pub targets: Vec<PassiveTarget>,
    /// What lanes may run over; looked after here.
    pub drivers: Drivers,
    /// What decides over the rate of a TCP lane.
    pub paths: PathChoice,
    /// Which connections are kept ready.
    pub pool: PoolConfig,
    /// Where it counts.
    pub board: Arc<Board>,
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
            credentials: options.credentials,
            files_ns: 0,
            node: options.node,
            max_version: wire_version(options.offer.max_version),
            offer: options.offer,
            budget: options.budget,
            listener,
            targets: options.targets,
            mail,
            workers,
            drivers: options.drivers,
            board: options.board,
            next_worker: 0,
            sessions: Sessions::default(),
            lobby: Lobby::default(),
            pool: Pool::new(options.pool),
            pool_looked_ns: 0,
            poller,
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
            self.look_at_files();
            self.tend_pool();
            self.drivers.tend();
            if let Ok(counters) = self.board.door() {
                counters.under_way.set(self.lobby.knocking() as u64);
                counters.pool_ready.set(self.pool.ready() as u64);
                counters.pool_parked.set(self.lobby.parked() as u64);
            }
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
                    self.expect(session, worker, offer);
                }
                ToDoor::Dial(dial) => self.dial(dial),
                ToDoor::Forget(session) => {
                    self.sessions.forget(session);
                    self.pool.ends(session, monotonic_ns());
                    self.lobby
                        .retain(|one| one.dial().is_none_or(|dial| dial.session != session));
                }
                ToDoor::ReadFiles => self.read_files(),
                ToDoor::Stop => return true,
            }
        }
        false
    }

    /// Without random bytes a session is not expected, and its lanes are refused.
    fn expect(&mut self, session: SessionId, worker: usize, offer: Offer) {
        match fresh_bytes() {
            Some(half) => self.sessions.expect(session, worker, offer, half),
            None => tracing::error!(%session, "the system has no random bytes to give"),
        }
    }

    fn accept(&mut self) {
        while let Ok(fd) = sockets::accept(&self.listener) {
            let Ok(peer) = sockets::peer_address(&fd) else {
                continue;
            };
            if let Some(stranger) = self.lobby.crowded_out(peer) {
                self.give_up(&stranger, &DoorError::Crowded);
            }
            self.admit(fd, Side::Silent, peer);
        }
    }

    fn dial(&mut self, dial: Box<Dial>) {
        if let Some(dial) = self.dial_ready(dial) {
            self.dial_anew(dial);
        }
    }

    fn dial_anew(&mut self, dial: Box<Dial>) {
        let peer = dial.peer.address;
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
        let id = self.lobby.next_id();
        if let Err(error) = self.poller.add_stream(&fd, Token(id)) {
            tracing::warn!(%peer, %error, "a connection cannot be watched");
            return;
        }
        let deadline_ns = monotonic_ns() + HANDSHAKE_LIMIT_NS;
        let stranger = Stranger {
            fd,
            tls: None,
            node: None,
            was_parked: false,
            side,
            unsent: VecDeque::new(),
            deadline_ns,
            peer,
        };
        self.lobby.add(stranger);
    }

    fn serve(&mut self, id: u64) {
        let Some(mut stranger) = self.lobby.take(id) else {
            return;
        };
        if matches!(stranger.side, Side::Ready) {
            if Self::is_still_ready(&mut stranger) {
                self.lobby.put_back(id, stranger);
            } else {
                self.pool.lost(id, monotonic_ns());
            }
            return;
        }
        let was_turned_away = matches!(stranger.side, Side::TurnedAway);
        match self.advance(&mut stranger) {
            Ok(Next::Wait) => {}
            Ok(Next::Close) => return,
            Ok(Next::Lane(agreed)) => {
                self.poller.remove(&stranger.fd);
                self.hand_over(*agreed, stranger);
                return;
            }
            Ok(Next::Ready(node)) => {
                self.note_ready(id, stranger, node);
                return;
            }
            Err(error) => {
                if self.dials_anew(&mut stranger, &error) {
                    return;
                }
                if !was_turned_away {
                    self.give_up(&stranger, &error);
                }
                // What TLS has to say about it still goes out; a peer that is gone hears nothing.
                let can_hear = matches!(error, DoorError::Tls(_)) && stranger.knocks();
                let said = stranger.flush();
                if !can_hear || said.is_err() || stranger.see_off() {
                    return;
                }
                stranger.side = Side::TurnedAway;
            }
        }
        if matches!(stranger.side, Side::TurnedAway) && !was_turned_away {
            stranger.deadline_ns = monotonic_ns() + SEE_OFF_NS;
        }
        self.lobby.put_back(id, stranger);
    }

    fn give_up(&mut self, stranger: &Stranger, error: &DoorError) {
        match stranger.dial() {
            Some(dial) => {
                let (failure, fatal) = error.verdict();
                self.dial_failed(dial, failure, &error.to_string(), fatal);
            }
            // It has been counted and told.
            None if matches!(stranger.side, Side::TurnedAway) => {}
            // It was not needed after all.
            None if stranger.is_parked() && error.is_farewell() => {}
            None => {
                self.count(error.refusal());
                tracing::warn!(peer = %stranger.peer, %error, "a stranger was turned away");
            }
        }
    }

    fn count(&self, refusal: Refusal) {
        if let Ok(counters) = self.board.door() {
            counters.count(refusal);
        }
    }

    fn note_admitted(&self) {
        if let Ok(counters) = self.board.door() {
            counters.admitted_total.add(1);
        }
    }

    fn look_at_files(&mut self) {
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(self.files_ns) < FILES_EVERY_NS {
            return;
        }
        self.files_ns = now_ns;
        if self.credentials.as_ref().is_some_and(Credentials::is_stale) {
            self.read_files();
        }
    }

    fn read_files(&mut self) {
        let Some(credentials) = &mut self.credentials else {
            return;
        };
        let outcome = credentials.reload();
        if outcome.is_ok() {
            self.let_go_of_secured();
        }
        let Ok(counters) = self.board.door() else {
            return;
        };
        match outcome {
            Ok(Reloaded::All) => {
                counters.reloads_total.add(1);
                tracing::info!("certificates were read anew; handshakes from now on use them");
            }
            Ok(Reloaded::TrustAlone(error)) => {
                counters.reloads_total.add(1);
                counters.reload_failures_total.add(1);
                tracing::error!(
                    %error,
                    "authorities and revocations were read anew and are in use; this node's own certificate \
                     and key stay as they were"
                );
            }
            Err(error) => {
                counters.reload_failures_total.add(1);
                tracing::error!(%error, "certificates stay as they were");
            }
        }
    }

    fn dial_failed(&mut self, dial: &Dial, failure: Failure, detail: &str, fatal: bool) {
        if dial.errand == Errand::Pool {
            self.pool_failed(dial, failure, detail);
            return;
        }
        let message = ToWorker::LaneFailed {
            session: dial.session,
            lane: dial.lane,
            over: Way::Tcp,
            failure,
            detail: format!("{}: {detail}", dial.peer.address),
            fatal,
        };
        let _ = self.workers[dial.worker].send(message);
    }

    fn hand_over(&mut self, agreed: Agreed, stranger: Stranger) {
        let session = SessionId(agreed.session.0);
        let (worker, dialled) = match stranger.dial() {
            Some(dial) => {
                self.note_up(dial, stranger.was_parked);
                (Some(dial.worker), true)
            }
            None => (self.sessions.get(session).map(|known| known.worker), false),
        };
        let Some(worker) = worker.map(|index| self.workers[index].clone()) else {
            return;
        };
        let end = match agreed.way.acceptor {
            Way::Tcp => {
                if stranger.was_parked {
                    // A lane has other ways to see that it is dead. Where this fails it ends by both.
                    let _ = pooling::keep_alive(&stranger.fd, false);
                }
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
        for mut stranger in self.lobby.late(monotonic_ns()) {
            if !self.dials_anew(&mut stranger, &DoorError::TooLate) {
                self.give_up(&stranger, &DoorError::TooLate);
            }
        }
    }
}

enum Next {
    Wait,
    Close,
    Lane(Box<Agreed>),
    /// To this node.
    Ready(NodeId),
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
        baselines: offer.baselines,
    }
}

const fn wire_version(version: dwcp_api::Version) -> Version {
    match version {
        dwcp_api::Version::V1 => Version::V1,
        dwcp_api::Version::V3 => Version::V3,
    }
}

fn fresh_bytes() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}
