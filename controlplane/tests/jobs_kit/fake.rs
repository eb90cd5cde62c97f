//! A stand-in for the data plane: a process that serves attach with real segments, rings and
//! descriptors, and copies bytes between hypervisor and peer over one TCP connection per channel. It
//! can be told to lose what it carries and to call a session undecided, and it can be killed.

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dwcp_api::attach::{DROP_MAGIC, Escrow, GREETING_MAGIC, Greeting, KEEP_MAGIC};
use dwcp_api::command::{Command, CommandRecord, Verdict};
use dwcp_api::event::{Event, EventRecord};
use dwcp_api::layout::{
    COMMAND_PARK_OFFSET, COMMAND_RING_OFFSET, COMMAND_SLOTS, EVENT_PARK_OFFSET, EVENT_SLOTS,
    SESSION_STRIDE, SESSIONS_OFFSET, event_ring_offset, rings_layout, stats_layout,
    switches_layout,
};
use dwcp_api::session::{SESSIONS_MAX, SessionSnapshot};
use dwcp_api::switches::Switches;
use dwcp_api::text::Text;
use dwcp_api::{ABI_VERSION, Failure, LAYOUT_HASH, Role, SessionId, SessionState, monotonic_ns};
use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::doorbell::Doorbell;
use dwcp_hugepages::ring::{Consumer, Producer, RingMem};
use dwcp_hugepages::scm::{ScmError, recv_with_fds, send_with_fds};
use dwcp_hugepages::segment::{PeerAccess, Segment};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zerocopy::IntoBytes;

/// Bytes that pass before anything is swallowed.
const SWALLOW_AFTER_BYTES: u64 = 100_000;

#[derive(Default)]
struct Knobs {
    swallow_forward: AtomicBool,
    swallow_return: AtomicBool,
    stall: AtomicBool,
}

struct Session {
    slot: usize,
    snapshot: SessionSnapshot,
    path: String,
    hypervisor: Vec<UnixStream>,
    lanes: Vec<TcpStream>,
    open: usize,
}

struct Plane {
    stats: Segment,
    sessions: Mutex<HashMap<SessionId, Session>>,
    attached: Mutex<Option<(OwnedFd, Producer<EventRecord>, Doorbell)>>,
    knobs: Knobs,
    carried: AtomicU64,
}

/// The attach socket and what outlives one attach.
pub struct Door {
    socket: OwnedFd,
    switches: Arc<Segment>,
}

/// One attached control plane.
pub struct Guest {
    pub socket: OwnedFd,
    pub commands: Consumer<CommandRecord>,
    pub events: Producer<EventRecord>,
    pub bell: Doorbell,
    pub event_bell: Doorbell,
    pub rings: Arc<Segment>,
}

impl Door {
    pub fn open(attach: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(attach).unwrap()).unwrap();
        rustix::net::listen(&socket, 4).unwrap();
        let layout = switches_layout();
        let switches = Segment::create("switches", layout, 1, PeerAccess::ReadWrite).unwrap();
        Self {
            socket,
            switches: Arc::new(switches),
        }
    }

    pub fn words(&self) -> &Switches {
        self.switches.body().at(0).unwrap()
    }

    /// Waits for a control plane and greets it. `None` if it is gone again.
    pub fn admit(&self, stats: &Segment, change: impl FnOnce(&mut Greeting)) -> Option<Guest> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::accept_with(&self.socket, flags).unwrap();
        let mut greeting = Greeting {
            magic: GREETING_MAGIC,
            generation: 1,
            instance: 1,
            layout_hash: LAYOUT_HASH,
            abi: ABI_VERSION,
            pid: std::process::id(),
            workers: 1,
            max_version: 3,
            listen: Text::clipped("127.0.0.1:1"),
            node: Text::clipped("fake"),
        };
        let before = greeting.generation;
        change(&mut greeting);
        let generation = if greeting.generation == 0 {
            before
        } else {
            greeting.generation
        };
        let rings =
            Segment::create("rings", rings_layout(), generation, PeerAccess::ReadWrite).unwrap();
        let rings = Arc::new(rings);
        let ring = |offset| RingMem::in_segment(Arc::clone(&rings), offset);
        let commands = Consumer::new(ring(COMMAND_RING_OFFSET), COMMAND_SLOTS).unwrap();
        let events = Producer::new(ring(event_ring_offset()), EVENT_SLOTS).unwrap();
        let bell = Doorbell::with_flag(rings.shared(COMMAND_PARK_OFFSET).unwrap()).unwrap();
        let event_bell = Doorbell::with_flag(rings.shared(EVENT_PARK_OFFSET).unwrap()).unwrap();
        let fds = [
            stats.fd(),
            self.switches.fd(),
            rings.fd(),
            bell.fd(),
            event_bell.fd(),
        ];
        send_with_fds(&socket, greeting.as_bytes(), &fds).ok()?;
        Some(Guest {
            socket,
            commands,
            events,
            bell,
            event_bell,
            rings,
        })
    }
}

/// The stats segment of a data plane.
pub fn stats() -> Segment {
    Segment::create("stats", stats_layout(), 1, PeerAccess::ReadOnly).unwrap()
}

/// Runs until it is killed. Orders come line by line on the standard input.
pub fn run(attach: &Path) {
    let plane = Arc::new(Plane {
        stats: stats(),
        sessions: Mutex::default(),
        attached: Mutex::default(),
        knobs: Knobs::default(),
        carried: AtomicU64::new(0),
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let orders = Arc::clone(&plane);
    thread::spawn(move || orders.obey());
    let lanes = Arc::clone(&plane);
    thread::spawn(move || {
        for lane in listener.incoming() {
            lanes.accept(lane.unwrap());
        }
    });
    plane.serve(attach, &listen);
}

impl Plane {
    fn obey(self: &Arc<Self>) {
        for line in std::io::stdin().lock().lines() {
            match line.unwrap().as_str() {
                "swallow forward" => self.knobs.swallow_forward.store(true, Ordering::SeqCst),
                "swallow return" => self.knobs.swallow_return.store(true, Ordering::SeqCst),
                "stall" => self.knobs.stall.store(true, Ordering::SeqCst),
                "flow" => self.knobs.stall.store(false, Ordering::SeqCst),
                "undecided" => {
                    let ids: Vec<_> = self.sessions.lock().unwrap().keys().copied().collect();
                    for id in ids {
                        self.change(id, |session| {
                            session.snapshot.ram_end = 1;
                            session.snapshot.state = SessionState::Undecided.code().into();
                        });
                    }
                }
                other => panic!("unknown order {other}"),
            }
            println!("obeyed");
        }
        // Whoever started us is gone.
        std::process::exit(0);
    }

    fn serve(self: &Arc<Self>, attach: &Path, listen: &str) {
        let door = Door::open(attach);
        let instance = monotonic_ns();
        for generation in 1.. {
            let Some(guest) = door.admit(&self.stats, |greeting| {
                greeting.generation = generation;
                greeting.instance = instance;
                greeting.listen = Text::new(listen).unwrap();
            }) else {
                continue;
            };
            let Guest {
                socket,
                mut commands,
                events,
                bell,
                event_bell,
                ..
            } = guest;
            let watch = socket.try_clone().unwrap();
            *self.attached.lock().unwrap() = Some((socket, events, event_bell));
            self.keep_all();
            loop {
                bell.prepare_park();
                match commands.pop().unwrap() {
                    Some(record) => {
                        bell.cancel_park();
                        self.command(&record, door.words());
                    }
                    None => {
                        bell.park(Duration::from_millis(20)).unwrap();
                    }
                }
                if matches!(recv_with_fds(&watch, &mut [0; 8], 0), Err(ScmError::Eof)) {
                    break;
                }
            }
            *self.attached.lock().unwrap() = None;
        }
    }

    fn command(self: &Arc<Self>, record: &CommandRecord, words: &Switches) {
        let command = record.decode().unwrap();
        let (session, failure) = match command {
            Command::OpenSource {
                session,
                listen,
                peer,
                ..
            } => {
                let version = words.component(dwcp_api::switches::Component::Hde);
                self.insert(session, Role::Source, listen.as_str(), version.code());
                let door = UnixListener::bind(listen.as_str()).unwrap();
                let (plane, peer) = (Arc::clone(self), peer.as_str().to_owned());
                thread::spawn(move || plane.take_hypervisor(session, &door, &peer));
                (session, Failure::None)
            }
            Command::OpenDestination {
                session, connect, ..
            } => {
                self.insert(session, Role::Destination, connect.as_str(), 1);
                (session, Failure::None)
            }
            Command::Cancel { session } => {
                // An undecided session takes a verdict, no cancel.
                let undecided = self.state(session) == Some(SessionState::Undecided);
                let failure = if undecided {
                    Failure::BadCommand
                } else {
                    self.close(session, Failure::Cancelled)
                };
                (session, failure)
            }
            Command::Resolve { session, verdict } => {
                let undecided = self.state(session) == Some(SessionState::Undecided);
                let failure = match verdict {
                    _ if !undecided => Failure::BadCommand,
                    Verdict::GuestStays | Verdict::GuestMoved => {
                        self.close(session, Failure::PeerLost)
                    }
                };
                (session, failure)
            }
            Command::Limit { session, .. } | Command::Redirect { session, .. } => {
                let known = self.state(session).is_some();
                (
                    session,
                    if known {
                        Failure::None
                    } else {
                        Failure::BadCommand
                    },
                )
            }
            Command::SetMode { session, mode } => {
                let known = self.state(session).is_some();
                self.change(session, |session| {
                    session.snapshot.mode = mode.code().into();
                    session.snapshot.mode_since_ns = monotonic_ns();
                });
                (
                    session,
                    if known {
                        Failure::None
                    } else {
                        Failure::BadCommand
                    },
                )
            }
            Command::Forget { session } => {
                let gone = self.sessions.lock().unwrap().remove(&session);
                if let Some(gone) = &gone {
                    self.cell(gone.slot).write(&SessionSnapshot::FREE);
                }
                (
                    session,
                    if gone.is_some() {
                        Failure::None
                    } else {
                        Failure::BadCommand
                    },
                )
            }
        };
        let detail = Text::clipped(if failure == Failure::None {
            ""
        } else {
            "the fake says no"
        });
        self.tell(&Event::Answer {
            command_id: record.id(),
            session,
            failure,
            detail,
        });
    }

    fn tell(&self, event: &Event) {
        if let Some((_, events, bell)) = &mut *self.attached.lock().unwrap() {
            let _ = events.push(&EventRecord::encode(monotonic_ns(), event));
            bell.ring();
        }
    }

    fn cell(&self, slot: usize) -> &SeqCell<SessionSnapshot> {
        self.stats
            .body()
            .at(SESSIONS_OFFSET + slot * SESSION_STRIDE)
            .unwrap()
    }

    fn insert(&self, id: SessionId, role: Role, path: &str, version: u32) {
        let mut sessions = self.sessions.lock().unwrap();
        let slot = (0..SESSIONS_MAX)
            .find(|slot| sessions.values().all(|session| session.slot != *slot))
            .unwrap();
        let mut snapshot = SessionSnapshot::FREE;
        snapshot.id = id;
        snapshot.role = role.code().into();
        snapshot.state = SessionState::Waiting.code().into();
        snapshot.batch_version = version.into();
        self.cell(slot).write(&snapshot);
        let path = path.to_owned();
        let session = Session {
            slot,
            snapshot,
            path,
            hypervisor: vec![],
            lanes: vec![],
            open: 0,
        };
        sessions.insert(id, session);
    }

    fn state(&self, id: SessionId) -> Option<SessionState> {
        self.sessions.lock().unwrap().get(&id)?.snapshot.state()
    }

    fn change(&self, id: SessionId, change: impl FnOnce(&mut Session)) {
        let mut sessions = self.sessions.lock().unwrap();
        let Some(session) = sessions.get_mut(&id) else {
            return;
        };
        let before = session.snapshot.state();
        change(session);
        self.cell(session.slot).write(&session.snapshot);
        let (role, state) = (
            session.snapshot.role().unwrap(),
            session.snapshot.state().unwrap(),
        );
        let failure = session.snapshot.failure();
        drop(sessions);
        if before != Some(state) {
            self.tell(&Event::State {
                session: id,
                role,
                state,
                failure,
                detail: Text::EMPTY,
            });
        }
    }

    /// Fails closed.
    fn close(&self, id: SessionId, failure: Failure) -> Failure {
        if self.state(id).is_none_or(SessionState::is_final) {
            return Failure::BadCommand;
        }
        self.end(id, SessionState::Failed, failure);
        Failure::None
    }

    fn end(&self, id: SessionId, state: SessionState, failure: Failure) {
        self.change(id, |session| {
            session.snapshot.state = state.code().into();
            session.snapshot.failure = failure.code().into();
            for hypervisor in session.hypervisor.drain(..) {
                let _ = hypervisor.shutdown(Shutdown::Both);
            }
            for lane in session.lanes.drain(..) {
                let _ = lane.shutdown(Shutdown::Both);
            }
        });
        self.packet(
            &Escrow {
                magic: DROP_MAGIC,
                session: id,
                channel: 0,
                role: 0,
            },
            None,
        );
        let sessions = self.sessions.lock().unwrap();
        if let Some(session) = sessions.get(&id)
            && session.snapshot.role() == Some(Role::Source)
        {
            let _ = std::fs::remove_file(&session.path);
        }
    }

    fn packet(&self, escrow: &Escrow, fd: Option<&UnixStream>) {
        if let Some((socket, ..)) = &*self.attached.lock().unwrap() {
            let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
            send_with_fds(socket, escrow.as_bytes(), &fds).unwrap();
        }
    }

    fn keep_all(&self) {
        let sessions = self.sessions.lock().unwrap();
        for (id, session) in &*sessions {
            for (channel, fd) in (0..).zip(&session.hypervisor) {
                let role = u32::try_from(session.snapshot.role).unwrap();
                self.packet(
                    &Escrow {
                        magic: KEEP_MAGIC,
                        session: *id,
                        channel,
                        role,
                    },
                    Some(fd),
                );
            }
        }
    }

    fn take_hypervisor(self: &Arc<Self>, id: SessionId, door: &UnixListener, peer: &str) {
        door.set_nonblocking(true).unwrap();
        while self.state(id).is_some_and(|state| !state.is_final()) {
            let Ok((hypervisor, _)) = door.accept() else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            hypervisor.set_nonblocking(false).unwrap();
            let mut lane = TcpStream::connect(peer).unwrap();
            lane.write_all(&id.0).unwrap();
            self.carry(id, hypervisor, lane);
        }
    }

    fn accept(self: &Arc<Self>, mut lane: TcpStream) {
        let mut id = [0; 16];
        lane.read_exact(&mut id).unwrap();
        let id = SessionId(id);
        let path = self
            .sessions
            .lock()
            .unwrap()
            .get(&id)
            .map(|session| session.path.clone());
        if let Some(path) = path {
            self.carry(id, UnixStream::connect(path).unwrap(), lane);
        }
    }

    fn carry(self: &Arc<Self>, id: SessionId, hypervisor: UnixStream, lane: TcpStream) {
        let (mut role, mut channel) = (0, 0);
        self.change(id, |session| {
            role = u32::try_from(session.snapshot.role).unwrap();
            channel = u32::try_from(session.hypervisor.len()).unwrap();
            session.hypervisor.push(hypervisor.try_clone().unwrap());
            session.lanes.push(lane.try_clone().unwrap());
            session.open += 2;
            session.snapshot.state = SessionState::Active.code().into();
            session.snapshot.channels += 1;
        });
        self.packet(
            &Escrow {
                magic: KEEP_MAGIC,
                session: id,
                channel,
                role,
            },
            Some(&hypervisor),
        );
        let source = role == Role::Source.code();
        let ends = (hypervisor.try_clone().unwrap(), lane.try_clone().unwrap());
        let plane = Arc::clone(self);
        thread::spawn(move || plane.copy(id, hypervisor, lane, source, true));
        let plane = Arc::clone(self);
        thread::spawn(move || plane.copy(id, ends.1, ends.0, source, false));
    }

    /// Copies one way until its end. `inward`: from the hypervisor here.
    fn copy<R: Read, W: Write + HalfClose>(
        &self,
        id: SessionId,
        mut from: R,
        mut to: W,
        source: bool,
        inward: bool,
    ) {
        let swallow = if inward == source {
            &self.knobs.swallow_forward
        } else {
            &self.knobs.swallow_return
        };
        let mut buf = vec![0; 65_536];
        let mut swallowed = false;
        while let Ok(length @ 1..) = from.read(&mut buf) {
            while self.knobs.stall.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            let carried = self.carried.fetch_add(length as u64, Ordering::SeqCst);
            // What was swallowed once stays incomplete for ever.
            swallowed |= source
                && swallow.load(Ordering::SeqCst)
                && (!inward || carried > SWALLOW_AFTER_BYTES);
            self.change(id, |session| {
                if inward {
                    session.snapshot.hypervisor_bytes_in += length as u64;
                    session.snapshot.wire_bytes_sent += length as u64;
                } else {
                    session.snapshot.hypervisor_bytes_out += length as u64;
                }
            });
            if !swallowed && to.write_all(&buf[..length]).is_err() {
                break;
            }
        }
        if swallowed || self.state(id) == Some(SessionState::Undecided) {
            return;
        }
        to.half_close();
        let mut done = false;
        self.change(id, |session| {
            session.open -= 1;
            done = session.open == 0 && !session.snapshot.state().unwrap().is_final();
        });
        if done {
            self.end(id, SessionState::Completed, Failure::None);
        }
    }
}

trait HalfClose {
    fn half_close(&self);
}

impl HalfClose for UnixStream {
    fn half_close(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl HalfClose for TcpStream {
    fn half_close(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}
