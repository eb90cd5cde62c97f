//! A control plane for tests: attaches to a data plane, reads its session table, throws its switches,
//! gives it commands, and shows the raw memory to whoever wants to spoil it.
//!
//! In: the path of a control socket. Out: pictures of sessions, answers to commands. Promise: no wait is
//! without an end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has nothing better to do than to stop"
)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::attach::{BUSY_MAGIC, Escrow, GREETING_FDS, GREETING_MAGIC, Greeting};
use dwcp_api::command::{Command, CommandRecord};
use dwcp_api::door::{DoorCounters, Refusal};
use dwcp_api::event::{Event, EventRecord};
use dwcp_api::layout::{
    COMMAND_PARK_OFFSET, COMMAND_RING_OFFSET, COMMAND_SLOTS, DOOR_OFFSET, EVENT_PARK_OFFSET,
    EVENT_SLOTS, SESSION_STRIDE, SESSIONS_OFFSET, WORKER_STRIDE, event_ring_offset, rings_layout,
    stats_layout, switches_layout,
};
use dwcp_api::session::{SESSIONS_MAX, SessionSnapshot};
use dwcp_api::switches::{Component, Switches};
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{Failure, SessionId, Version, monotonic_ns};
use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::doorbell::Doorbell;
use dwcp_hugepages::ring::{Consumer, Producer, RingMem};
use dwcp_hugepages::scm::{ScmError, recv_with_fds};
use dwcp_hugepages::segment::{PeerAccess, Segment};
use dwcp_lab::watchdog::poll_until;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use zerocopy::FromBytes;

/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a data plane said to somebody who knocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// Another control plane is attached.
    Busy,
    /// It closed the socket, or nobody listens.
    Gone,
}

/// See the module.
pub struct Plane {
    /// The attach socket.
    pub socket: OwnedFd,
    /// The rings' memory.
    pub rings: Arc<Segment>,
    /// The writing side of the command ring.
    pub commands: Producer<CommandRecord>,
    /// Wakes the data plane.
    pub bell: Doorbell,
    greeting: Greeting,
    stats: Segment,
    switches: Segment,
    events: Consumer<EventRecord>,
    event_bell: Doorbell,
    next_id: u64,
    path: PathBuf,
}

/// A connected attach socket and nothing more.
#[must_use]
pub fn knock(path: &Path) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok()?;
    Some(socket)
}

impl Plane {
    /// Attaches, or says why not.
    ///
    /// # Errors
    /// [`Turned`].
    pub fn try_attach(path: &Path) -> Result<Self, Turned> {
        let socket = knock(path).ok_or(Turned::Gone)?;
        let mut packet = [0; size_of::<Greeting>()];
        let (bytes, fds) = poll_until(PATIENCE, || {
            match recv_with_fds(&socket, &mut packet, GREETING_FDS) {
                Err(ScmError::WouldBlock) => None,
                outcome => Some(outcome),
            }
        })
        .expect("no greeting")
        .map_err(|_| Turned::Gone)?;
        let greeting = Greeting::read_from_bytes(&packet[..bytes]).unwrap();
        if greeting.magic == BUSY_MAGIC {
            assert!(fds.is_empty(), "a stranger was given descriptors");
            return Err(Turned::Busy);
        }
        assert_eq!(greeting.magic, GREETING_MAGIC);
        let Ok([stats, switches, rings, command_bell, event_bell]) =
            <[OwnedFd; GREETING_FDS]>::try_from(fds)
        else {
            panic!("not five descriptors")
        };
        let stats = Segment::attach(stats, stats_layout(), PeerAccess::ReadOnly).unwrap();
        let switches = Segment::attach(switches, switches_layout(), PeerAccess::ReadWrite).unwrap();
        let rings = Segment::attach(rings, rings_layout(), PeerAccess::ReadWrite).unwrap();
        let rings = Arc::new(rings);
        let ring_at = |offset| RingMem::in_segment(Arc::clone(&rings), offset);
        let bell_at = |offset, fd| Doorbell::attach(rings.shared(offset).unwrap(), fd).unwrap();
        Ok(Self {
            commands: Producer::new(ring_at(COMMAND_RING_OFFSET), COMMAND_SLOTS).unwrap(),
            bell: bell_at(COMMAND_PARK_OFFSET, command_bell),
            events: Consumer::new(ring_at(event_ring_offset()), EVENT_SLOTS).unwrap(),
            event_bell: bell_at(EVENT_PARK_OFFSET, event_bell),
            socket,
            rings,
            greeting,
            stats,
            switches,
            // As in the product: an answer to somebody who went before is not taken for ours.
            next_id: monotonic_ns(),
            path: path.to_owned(),
        })
    }

    /// Attaches; while another is just leaving, again.
    #[must_use]
    pub fn attach(path: &Path) -> Self {
        poll_until(PATIENCE, || Self::try_attach(path).ok()).expect("the data plane lets nobody in")
    }

    /// Hangs up without a word, as a control plane that dies.
    pub fn leave(&mut self) {
        // A socket connected to nobody takes the place of the one that is closed.
        let flags = SocketFlags::CLOEXEC;
        self.socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    }

    /// Hangs up and attaches anew.
    pub fn reattach(&mut self) {
        self.leave();
        *self = Self::attach(&self.path);
    }

    /// Grows with each attach.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.greeting.generation
    }

    /// Lets batches be v3, or sends everything back to v1.
    pub fn allow_v3(&self, on: bool) {
        let words = self.switches.body().at::<Switches>(0).unwrap();
        for component in [Component::Amst, Component::Hde] {
            words.set_component(component, Version::V3);
        }
        words.force_v1(!on, monotonic_ns());
    }

    /// The counters and the session table.
    #[must_use]
    pub const fn stats(&self) -> &Segment {
        &self.stats
    }

    /// The switch words.
    #[must_use]
    pub const fn switches(&self) -> &Segment {
        &self.switches
    }

    /// Every session in the table.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionSnapshot> {
        self.drop_kept();
        let cell = |slot| {
            let offset = SESSIONS_OFFSET + slot * SESSION_STRIDE;
            let cell = self
                .stats
                .body()
                .at::<SeqCell<SessionSnapshot>>(offset)
                .unwrap();
            cell.read().expect("the writer never rests")
        };
        (0..SESSIONS_MAX)
            .map(cell)
            .filter(|picture| !picture.is_free())
            .collect()
    }

    /// The session `id`, if it is in the table.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<SessionSnapshot> {
        self.sessions().into_iter().find(|picture| picture.id == id)
    }

    /// Waits for a session of which `wanted` holds.
    pub fn wait(&self, what: &str, wanted: impl Fn(&SessionSnapshot) -> bool) -> SessionSnapshot {
        poll_until(PATIENCE, || {
            self.sessions().into_iter().find(|picture| wanted(picture))
        })
        .unwrap_or_else(|| panic!("never came: {what}; there is {:#?}", self.sessions()))
    }

    /// Waits until `id` has ended.
    #[must_use]
    pub fn wait_over(&self, id: SessionId) -> SessionSnapshot {
        self.wait("its end", |picture| {
            picture.id == id && picture.state().is_some_and(|state| state.is_final())
        })
    }

    /// A counter of one worker.
    #[must_use]
    pub fn counter_of(&self, worker: usize, name: &str) -> u64 {
        let block = self
            .stats
            .body()
            .at::<WorkerCounters>(worker * WORKER_STRIDE)
            .unwrap();
        block.read().find(|(known, _)| *known == name).unwrap().1
    }

    /// How often a peer was refused for this reason.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.door().refused(refusal)
    }

    /// The counters of the door.
    #[must_use]
    pub fn door(&self) -> &DoorCounters {
        self.stats.body().at::<DoorCounters>(DOOR_OFFSET).unwrap()
    }

    /// Gives a command and waits for its answer.
    pub fn command(&mut self, command: &Command) -> (Failure, String) {
        let id = self.next_id;
        self.next_id += 1;
        self.push(&CommandRecord::encode(id, command));
        self.answer(id)
    }

    /// Puts a record into the command ring and rings.
    pub fn push(&mut self, record: &CommandRecord) {
        let pushed = poll_until(PATIENCE, || {
            let pushed = self.commands.push(record).ok();
            self.bell.ring();
            pushed
        });
        pushed.expect("the data plane takes no commands");
    }

    /// Waits for the answer to command `id`.
    pub fn answer(&mut self, id: u64) -> (Failure, String) {
        poll_until(PATIENCE, || {
            self.drop_kept();
            while let Some(record) = self.events.pop().unwrap() {
                if let Ok(Event::Answer {
                    command_id,
                    failure,
                    detail,
                    ..
                }) = record.decode()
                    && command_id == id
                {
                    return Some((failure, detail.as_str().to_owned()));
                }
            }
            self.event_bell.drain();
            None
        })
        .expect("a command was not answered")
    }

    /// Takes escrowed descriptors out of the socket and closes them.
    fn drop_kept(&self) {
        let mut packet = [0; size_of::<Escrow>()];
        while recv_with_fds(&self.socket, &mut packet, 1).is_ok() {}
    }
}
