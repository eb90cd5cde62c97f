//! The thread at the border to the control plane.
//!
//! In: attaches on a UNIX SEQPACKET socket, commands from the ring, news from workers. Out: descriptors
//! and events to the control plane, orders to workers and the door. Promises: one control plane at a
//! time; every attach gets a ring of its own, so what a dead one left half-written is never read; with
//! nobody attached the data plane goes on alone and drops nothing but events.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use dwcp_api::attach::{BUSY_MAGIC, DROP_MAGIC, Escrow, GREETING_MAGIC, Greeting, KEEP_MAGIC};
use dwcp_api::command::{Command, CommandRecord, SessionLimits};
use dwcp_api::event::{Event, EventRecord};
use dwcp_api::layout::{
    COMMAND_PARK_OFFSET, COMMAND_RING_OFFSET, COMMAND_SLOTS, EVENT_PARK_OFFSET, EVENT_SLOTS,
    event_ring_offset, rings_layout,
};
use dwcp_api::text::Text;
use dwcp_api::{ABI_VERSION, Failure, LAYOUT_HASH, Role, SessionId, monotonic_ns};
use dwcp_baseline::Tenant;
use dwcp_hugepages::doorbell::{Doorbell, ParkFlag};
use dwcp_hugepages::ring::{Consumer, Producer, RingMem};
use dwcp_hugepages::scm;
use dwcp_hugepages::segment::{PeerAccess, Segment};
use zerocopy::IntoBytes;

use super::board::Board;
use super::mailbox::{Mailbox, Sender};
use super::messages::{DestinationOrder, Peer, SourceOrder, ToControl, ToWorker};
use super::poller::{Poller, Token};
use super::seats::Seats;
use crate::transport::sharing::Sharing;

/// The thread looks at its rings at least this often, so that a doorbell lost by a dying control plane
/// costs this much and not a command.
const WAIT_NS: u64 = 200_000_000;

const TENANT_TEXT: &str =
    "a tenant is 1 to 32 of a-z 0-9 - _ . and begins with a letter or a digit";
const PEER_TEXT: &str = "the peer must be address:port, as in 10.0.0.2:4790";

const LISTENER: Token = Token(1);
const PEER: Token = Token(2);
const DOORBELL: Token = Token(3);
const MAIL: Token = Token(4);

/// What the thread knows about this data plane.
#[derive(Debug)]
pub struct Identity {
    /// Random per start.
    pub instance: u64,
    /// Name of the node.
    pub node: String,
    /// Where peers connect.
    pub listen: String,
    /// Highest version, 1 or 3.
    pub max_version: u32,
}

/// One attached control plane.
struct Attached {
    socket: OwnedFd,
    commands: Consumer<CommandRecord>,
    events: Producer<EventRecord>,
    command_bell: Doorbell,
    event_bell: Doorbell,
    events_lost: u64,
}

struct Kept {
    role: Role,
    channel: u16,
    fd: OwnedFd,
}

/// The thread's state.
pub struct Control {
    identity: Identity,
    listener: OwnedFd,
    socket_path: PathBuf,
    board: Arc<Board>,
    mail: Mailbox<ToControl>,
    workers: Vec<Sender<ToWorker>>,
    owners: HashMap<SessionId, usize>,
    next_worker: usize,
    generation: u64,
    attached: Option<Attached>,
    escrow: HashMap<SessionId, Vec<Kept>>,
    poller: Poller,
    sharing: Box<Sharing>,
    divided_ns: u64,
    /// The kill switch as the workers were last woken for it: on, and since when.
    switch_seen: (bool, u64),
}

/// Why the border cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be made.
    #[error(
        "control socket {path}: {source}; check that the directory exists and that no other data plane uses it"
    )]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something else.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Control {
    /// Opens the border.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn new(
        identity: Identity,
        socket_path: PathBuf,
        board: Arc<Board>,
        mail: Mailbox<ToControl>,
        workers: Vec<Sender<ToWorker>>,
    ) -> Result<Self, ControlError> {
        let listener =
            super::sockets::listen_unix(&socket_path, rustix::net::SocketType::SEQPACKET).map_err(
                |source| ControlError::Socket {
                    path: socket_path.clone(),
                    source,
                },
            )?;
        let poller = Poller::new()?;
        poller.add_readable(&listener, LISTENER)?;
        poller.add_readable(mail.fd(), MAIL)?;
        Ok(Self {
            identity,
            listener,
            socket_path,
            board,
            mail,
            workers,
            owners: HashMap::new(),
            next_worker: 0,
            generation: 0,
            attached: None,
            escrow: HashMap::new(),
            poller,
            sharing: Box::default(),
            divided_ns: 0,
            switch_seen: (false, 0),
        })
    }

    /// Serves until `stop` says so.
    pub fn run(&mut self, stop: &dyn Fn() -> bool) {
        let mut more = false;
        while !stop() {
            let (mut knock, mut hangup) = (false, false);
            let wait_ns = if more { 0 } else { self.divide_links() };
            let waited = self.poller.wait(wait_ns, |ready| match ready.token {
                LISTENER => knock = true,
                PEER => hangup = true,
                _ => {}
            });
            if let Err(error) = waited {
                tracing::error!(%error, "the control thread cannot wait");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            if hangup {
                self.check_hangup();
            }
            if knock {
                self.accept();
            }
            self.read_mail();
            more = self.read_commands();
            // After the commands, which end with a look at the bell: a switch thrown from there on rings it again.
            self.wake_for_switch();
        }
        // Ours alone, made at start: a later data plane makes its own.
        let _ = std::fs::remove_file(&self.socket_path);
    }

    /// Wakes the workers once the kill switch has changed: one that waits for its peer would see that only when
    /// the peer answers.
    fn wake_for_switch(&mut self) {
        let Ok(words) = self.board.switches() else {
            return;
        };
        let view = words.read();
        let switch = (view.forced_v1, view.changed_ns);
        if std::mem::replace(&mut self.switch_seen, switch) != switch {
            self.workers.iter().for_each(Sender::ring);
        }
    }

    /// Divides links among the sessions that share them, when it is time. Says how long to rest.
    fn divide_links(&mut self) -> u64 {
        let seats = self.board.seats();
        if !seats.is_shared() {
            return WAIT_NS;
        }
        let now_ns = monotonic_ns();
        let since_ns = now_ns.saturating_sub(self.divided_ns);
        if since_ns < Seats::DIVIDE_EVERY_NS {
            return Seats::DIVIDE_EVERY_NS - since_ns;
        }
        self.divided_ns = now_ns;
        let switches = self.board.switches();
        let limit = switches.map_or(0, |words| words.link_limit_bytes_per_s());
        seats.divide(&mut self.sharing, limit, now_ns);
        Seats::DIVIDE_EVERY_NS
    }

    fn accept(&mut self) {
        let Ok(socket) = super::sockets::accept(&self.listener) else {
            return;
        };
        if self.attached.is_some() {
            self.check_hangup();
        }
        if self.attached.is_some() {
            let busy = self.greeting(BUSY_MAGIC);
            let _ = scm::send_with_fds(socket.as_fd(), busy.as_bytes(), &[]);
            return;
        }
        match self.greet(socket) {
            Ok(attached) => {
                tracing::info!(generation = self.generation, "a control plane attached");
                self.attached = Some(attached);
                self.resend_escrow();
            }
            Err(error) => tracing::warn!(%error, "a control plane could not be attached"),
        }
    }

    fn greeting(&self, magic: u64) -> Greeting {
        Greeting {
            magic,
            generation: self.generation,
            instance: self.identity.instance,
            layout_hash: LAYOUT_HASH,
            abi: ABI_VERSION,
            pid: std::process::id(),
            workers: u32::try_from(self.workers.len()).unwrap_or(u32::MAX),
            max_version: self.identity.max_version,
            listen: Text::clipped(&self.identity.listen),
            node: Text::clipped(&self.identity.node),
        }
    }

    fn greet(&mut self, socket: OwnedFd) -> anyhow::Result<Attached> {
        self.generation += 1;
        let rings = Arc::new(Segment::create(
            "dwcp-rings",
            rings_layout(),
            self.generation,
            PeerAccess::ReadWrite,
        )?);
        let command_bell = Doorbell::with_flag(rings.shared::<ParkFlag>(COMMAND_PARK_OFFSET)?)?;
        let event_bell = Doorbell::with_flag(rings.shared::<ParkFlag>(EVENT_PARK_OFFSET)?)?;
        let command_mem = RingMem::in_segment(Arc::clone(&rings), COMMAND_RING_OFFSET);
        let commands = Consumer::new(command_mem, COMMAND_SLOTS)?;
        let event_mem = RingMem::in_segment(Arc::clone(&rings), event_ring_offset());
        let events = Producer::new(event_mem, EVENT_SLOTS)?;
        let greeting = self.greeting(GREETING_MAGIC);
        let fds = [
            self.board.stats().fd(),
            self.board.switches_segment().fd(),
            rings.fd(),
            command_bell.fd(),
            event_bell.fd(),
        ];
        scm::send_with_fds(socket.as_fd(), greeting.as_bytes(), &fds)?;
        self.poller.add_readable(&socket, PEER)?;
        self.poller.add_readable(command_bell.fd(), DOORBELL)?;
        Ok(Attached {
            socket,
            commands,
            events,
            command_bell,
            event_bell,
            events_lost: 0,
        })
    }

    /// The control plane never sends on the socket: anything readable there is its end.
    fn check_hangup(&mut self) {
        let Some(attached) = &self.attached else {
            return;
        };
        let mut byte = [0u8; 64];
        let gone = match rustix::net::recv(
            &attached.socket,
            &mut byte,
            rustix::net::RecvFlags::DONTWAIT,
        ) {
            Ok((0, _)) => true,
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(_) => true,
        };
        if gone {
            self.detach("it closed its socket");
        }
    }

    fn detach(&mut self, why: &str) {
        if let Some(attached) = self.attached.take() {
            self.poller.remove(&attached.socket);
            self.poller.remove(attached.command_bell.fd());
            tracing::warn!(why, "the control plane is gone; sessions go on without it");
        }
    }

    /// Carries out what lies in the ring, one ring's worth at most, so that a control plane that never
    /// rests keeps nobody from the thread's other work. Says whether there may be more.
    fn read_commands(&mut self) -> bool {
        for _ in 0..COMMAND_SLOTS {
            let Some(attached) = self.attached.as_mut() else {
                return false;
            };
            attached.command_bell.drain();
            match attached.commands.pop() {
                Ok(Some(record)) => self.carry_out(&record),
                Ok(None) => {
                    // Parked from here on: a command published after this look rings the bell.
                    attached.command_bell.prepare_park();
                    match attached.commands.pop() {
                        Ok(Some(record)) => self.carry_out(&record),
                        Ok(None) => return false,
                        Err(error) => {
                            self.detach(&error.to_string());
                            return false;
                        }
                    }
                }
                Err(error) => {
                    self.detach(&error.to_string());
                    return false;
                }
            }
        }
        true
    }

    fn carry_out(&mut self, record: &CommandRecord) {
        let id = record.id();
        let command = match record.decode() {
            Ok(command) => command,
            Err(error) => {
                return self.answer(
                    id,
                    SessionId([0; 16]),
                    Failure::BadCommand,
                    &error.to_string(),
                );
            }
        };
        let (session, message) = match command {
            Command::OpenSource {
                session,
                listen,
                peer,
                peer_node,
                max_version,
                limits,
            } => {
                let Ok(address) = peer.as_str().parse() else {
                    return self.answer(id, session, Failure::BadCommand, PEER_TEXT);
                };
                let Some(tenant) = tenant_of(&limits) else {
                    return self.answer(id, session, Failure::BadCommand, TENANT_TEXT);
                };
                let node = Some(peer_node.as_str().to_owned()).filter(|name| !name.is_empty());
                let peer = Peer {
                    address,
                    target: None,
                    node,
                };
                let order = SourceOrder {
                    session,
                    listen: Some(PathBuf::from(listen.as_str())),
                    first: None,
                    peer,
                    max_version,
                    limits,
                    tenant,
                };
                (session, ToWorker::OpenSource(Box::new(order), Some(id)))
            }
            Command::OpenDestination {
                session,
                connect,
                limits,
            } => {
                let connect = PathBuf::from(connect.as_str());
                let Some(tenant) = tenant_of(&limits) else {
                    return self.answer(id, session, Failure::BadCommand, TENANT_TEXT);
                };
                let order = DestinationOrder {
                    room: None,
                    session,
                    connect,
                    limits,
                    tenant,
                };
                (
                    session,
                    ToWorker::OpenDestination(Box::new(order), Some(id)),
                )
            }
            Command::Cancel { session } => (session, ToWorker::Cancel(session, id)),
            Command::Resolve { session, verdict } => {
                (session, ToWorker::Resolve(session, verdict, id))
            }
            Command::Limit {
                session,
                rate_limit_bytes_per_s,
            } => (
                session,
                ToWorker::Limit(session, rate_limit_bytes_per_s, id),
            ),
            Command::SetMode { session, mode } => (session, ToWorker::SetMode(session, mode, id)),
            Command::Redirect { session, peer } => {
                let Ok(peer) = peer.as_str().parse() else {
                    return self.answer(id, session, Failure::BadCommand, PEER_TEXT);
                };
                (session, ToWorker::Redirect(session, peer, id))
            }
            Command::Forget { session } => (session, ToWorker::Forget(session, id)),
        };
        let opens = matches!(
            message,
            ToWorker::OpenSource(..) | ToWorker::OpenDestination(..)
        );
        let worker = match self.owners.get(&session) {
            Some(worker) => *worker,
            None if opens => {
                self.next_worker = (self.next_worker + 1) % self.workers.len();
                self.next_worker
            }
            // Nobody has it: any worker can say so.
            None => 0,
        };
        match self.workers[worker].send(message) {
            // Noted before it is carried out, so that a repeated command finds the same worker.
            Ok(()) if opens => _ = self.owners.insert(session, worker),
            Ok(()) => {}
            Err(error) => self.answer(id, session, Failure::Limit, &error.to_string()),
        }
    }

    fn answer(&mut self, command_id: u64, session: SessionId, failure: Failure, detail: &str) {
        self.tell(&Event::Answer {
            command_id,
            session,
            failure,
            detail: Text::clipped(detail),
        });
    }

    fn tell(&mut self, event: &Event) {
        let Some(attached) = self.attached.as_mut() else {
            return;
        };
        if attached
            .events
            .push(&EventRecord::encode(monotonic_ns(), event))
            .is_err()
        {
            // The session table has the facts; an event is only a hint to look.
            attached.events_lost += 1;
        }
        attached.event_bell.ring();
    }

    fn read_mail(&mut self) {
        self.mail.drain_wakeups();
        while let Some(message) = self.mail.receive() {
            match message {
                ToControl::Event(event) => self.tell(&event),
                ToControl::Opened { session, worker } => {
                    self.owners.insert(session, worker);
                }
                ToControl::Forgotten(session) => {
                    self.owners.remove(&session);
                }
                ToControl::Keep {
                    session,
                    role,
                    channel,
                    fd,
                } => {
                    let kept = Kept { role, channel, fd };
                    if let Some(attached) = &self.attached {
                        send_kept(&attached.socket, session, &kept);
                    }
                    self.escrow.entry(session).or_default().push(kept);
                }
                ToControl::Drop(session) => {
                    self.escrow.remove(&session);
                    if let Some(attached) = &self.attached {
                        let escrow = Escrow {
                            magic: DROP_MAGIC,
                            session,
                            channel: 0,
                            role: 0,
                        };
                        let _ = scm::send_with_fds(attached.socket.as_fd(), escrow.as_bytes(), &[]);
                    }
                }
            }
        }
    }

    fn resend_escrow(&self) {
        let Some(attached) = &self.attached else {
            return;
        };
        for (session, kept) in &self.escrow {
            for one in kept {
                send_kept(&attached.socket, *session, one);
            }
        }
    }
}

fn send_kept(socket: &OwnedFd, session: SessionId, kept: &Kept) {
    let escrow = Escrow {
        magic: KEEP_MAGIC,
        session,
        channel: u32::from(kept.channel),
        role: kept.role.code(),
    };
    if let Err(error) = scm::send_with_fds(socket.as_fd(), escrow.as_bytes(), &[kept.fd.as_fd()]) {
        tracing::warn!(%error, %session, "a descriptor could not be given in escrow");
    }
}
/// Whose baselines a session may use; nothing for a name that is none.
fn tenant_of(limits: &SessionLimits) -> Option<Tenant> {
    match limits.tenant.as_str() {
        "" => Some(Tenant::default()),
        name => Tenant::new(name),
    }
}
