//! One core's loop: every session it has gets a turn, again and again, until nothing is left to do.
//!
//! In: messages, readiness, events of the driver. Out: turns. Promises: a session never leaves its
//! worker; the hot path takes no lock and makes no allocation; without work the worker spins, yields and
//! parks as its idle policy says, and whatever ends the idleness ends the park.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use dwcp_api::event::Event;
use dwcp_api::switches::Switches;
use dwcp_api::text::Text;
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{Failure, Role, SessionId, monotonic_ns};
use dwcp_drivers::lane::{LaneEvent, LaneGroup, Polled};

use super::board::Board;
use super::idle::{Idle, Step};
use super::mailbox::{Mailbox, Sender};
use super::messages::{
    DestinationOrder, Expected, Offer, SourceOrder, ToControl, ToDoor, ToWorker,
};
use super::poller::Poller;
use super::routes::{Routes, Source};
use super::sockets;
use crate::config::{Config, PassiveSource};
use crate::session::{Fault, Hands, Session, SessionOptions};

/// Driver events taken in one turn.
const EVENTS_MAX: usize = 256;
/// Sessions look at their timers at least this often while any is open.
const TICK_NS: u64 = 5_000_000;
/// A worker without sessions wakes this often, to show that it lives.
const IDLE_TICK_NS: u64 = 500_000_000;
/// Readiness is looked at every so many turns even while there is work.
const POLL_EVERY_TURNS: u32 = 4;

/// See the module.
pub struct Worker<G: LaneGroup> {
    index: usize,
    config: Arc<Config>,
    offer: Offer,
    board: Arc<Board>,
    lanes: G,
    poller: Poller,
    routes: Routes,
    mail: Mailbox<ToWorker>,
    door: Sender<ToDoor>,
    control: Sender<ToControl>,
    sessions: Vec<(u32, Session)>,
    next_slot: u32,
    passive: Vec<(PassiveSource, OwnedFd)>,
    events: Vec<LaneEvent>,
    idle: Idle,
    stopping: bool,
}

/// What a worker is made of.
pub struct WorkerOptions {
    /// Its index.
    pub index: usize,
    /// The data plane's configuration.
    pub config: Arc<Config>,
    /// What sessions can agree to.
    pub offer: Offer,
    /// The shared segments.
    pub board: Arc<Board>,
    /// Its messages.
    pub mail: Mailbox<ToWorker>,
    /// To the door.
    pub door: Sender<ToDoor>,
    /// To the control thread.
    pub control: Sender<ToControl>,
    /// How it waits.
    pub idle: crate::config::IdlePolicy,
}

impl<G: LaneGroup<Endpoint = OwnedFd>> Worker<G> {
    /// A worker with its lanes. The first worker serves the passive sockets.
    ///
    /// # Errors
    /// What the system said.
    pub fn new(options: WorkerOptions, lanes: G) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add_readable(options.mail.fd(), Routes::MAILBOX_TOKEN)?;
        if let Some(fd) = lanes.park_fd() {
            poller.add_readable(fd, Routes::LANES_TOKEN)?;
        }
        let mut passive = Vec::new();
        if options.index == 0 {
            for (index, source) in options.config.passive.iter().enumerate() {
                let listener =
                    sockets::listen_unix(&source.listen, rustix::net::SocketType::STREAM)?;
                let token = Routes::passive_token(u32::try_from(index).unwrap_or(u32::MAX));
                poller.add_readable(&listener, token)?;
                passive.push((source.clone(), listener));
            }
        }
        Ok(Self {
            index: options.index,
            idle: Idle::new(options.idle),
            config: options.config,
            offer: options.offer,
            board: options.board,
            lanes,
            poller,
            routes: Routes::default(),
            mail: options.mail,
            door: options.door,
            control: options.control,
            sessions: Vec::new(),
            next_slot: 0,
            passive,
            events: Vec::with_capacity(EVENTS_MAX),
            stopping: false,
        })
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// What broke the worker itself; a session's trouble stays the session's.
    pub fn run(&mut self) -> anyhow::Result<()> {
        let board = Arc::clone(&self.board);
        let counters = board.worker(self.index)?;
        let switches = board.switches()?;
        let mut turn: u32 = 0;
        while !self.stopping || self.sessions.iter().any(|(_, session)| !session.is_over()) {
            turn = turn.wrapping_add(1);
            let mut worked = self.read_mail(counters, switches);
            if turn.is_multiple_of(POLL_EVERY_TURNS) {
                worked |= self.look(0, counters, switches)?;
            }
            worked |= self.take_events(counters, switches);
            worked |= self.turn(counters, switches);
            let now_ns = monotonic_ns();
            counters.last_turn_ns.set(now_ns);
            if worked {
                counters.turns_busy.add(1);
                self.idle.found_work();
                continue;
            }
            // A look costs a system call, so it comes before the idle steps, not in busy turns.
            if self.look(0, counters, switches)? {
                self.idle.found_work();
                continue;
            }
            match self.idle.found_nothing(now_ns) {
                Step::Spin => {
                    counters.turns_spun.add(1);
                    std::hint::spin_loop();
                }
                Step::Yield => {
                    counters.turns_yielded.add(1);
                    std::thread::yield_now();
                }
                Step::Park => self.park(counters, switches)?,
            }
        }
        Ok(())
    }

    fn park(&mut self, counters: &WorkerCounters, switches: &Switches) -> anyhow::Result<()> {
        let someone_waits = self
            .sessions
            .iter()
            .any(|(_, session)| session.wants_turn());
        if someone_waits || !self.lanes.prepare_park() || !self.mail.is_empty() {
            return Ok(());
        }
        counters.parks.add(1);
        let timeout_ns = if self.sessions.is_empty() {
            IDLE_TICK_NS
        } else {
            TICK_NS
        };
        if self.look(timeout_ns, counters, switches)? {
            counters.wakeups.add(1);
            self.idle.found_work();
        }
        Ok(())
    }

    /// Takes readiness in, waiting for at most `timeout_ns`.
    fn look(
        &mut self,
        timeout_ns: u64,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> anyhow::Result<bool> {
        let mut ready: arrayvec::ArrayVec<_, 128> = arrayvec::ArrayVec::new();
        self.poller.wait(timeout_ns, |event| {
            // As many as the poller takes in one wait.
            let _ = ready.try_push(event);
        })?;
        let mut found = false;
        for event in ready {
            match Routes::source(event.token) {
                Source::Mailbox | Source::Lanes => found = true,
                Source::Passive(index) => {
                    self.take_passive(index as usize, counters, switches);
                    found = true;
                }
                Source::Session { slot, sub } => {
                    found = true;
                    self.with_session(slot, counters, switches, |session, hands| {
                        if sub == Routes::LISTENER {
                            session.on_knock(hands);
                        } else {
                            session.on_ready(sub, event.readable, event.writable, hands);
                        }
                    });
                }
            }
        }
        Ok(found)
    }

    fn with_session<R>(
        &mut self,
        slot: u32,
        counters: &WorkerCounters,
        switches: &Switches,
        act: impl FnOnce(&mut Session, &mut Hands<'_, G>) -> R,
    ) -> Option<R> {
        let (_, session) = self.sessions.iter_mut().find(|(known, _)| *known == slot)?;
        let mut hands = Hands {
            lanes: &mut self.lanes,
            routes: &mut self.routes,
            poller: &self.poller,
            door: &self.door,
            control: &self.control,
            switches,
            counters,
            now_ns: monotonic_ns(),
        };
        Some(act(session, &mut hands))
    }

    fn slot_of(&self, id: SessionId) -> Option<u32> {
        self.sessions
            .iter()
            .find(|(_, session)| session.id() == id)
            .map(|(slot, _)| *slot)
    }

    fn take_events(&mut self, counters: &WorkerCounters, switches: &Switches) -> bool {
        let polled = self.lanes.poll(&mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { lane, frame } => {
                    let bytes = frame.bytes().len() as u64;
                    counters.wire_bytes_received_total.add(bytes);
                    let Some(route) = self.routes.lane(lane) else {
                        continue;
                    };
                    self.with_session(route.slot, counters, switches, |session, hands| {
                        session.take_frame(frame, hands);
                    });
                }
                LaneEvent::Closed { lane, reason } => {
                    let Some(route) = self.routes.lane(lane) else {
                        continue;
                    };
                    self.routes.forget_lane(lane);
                    tracing::debug!(?reason, lane = route.lane.0, "a lane closed");
                    self.with_session(route.slot, counters, switches, |session, hands| {
                        session.on_lane_closed(route.lane, lane, hands);
                    });
                }
                LaneEvent::Writable { .. } => {}
            }
        }
        self.events = events;
        matches!(polled, Polled::Busy(_))
    }

    fn turn(&mut self, counters: &WorkerCounters, switches: &Switches) -> bool {
        let mut worked = false;
        let mut held_bytes = 0;
        for (_, session) in &mut self.sessions {
            let mut hands = Hands {
                lanes: &mut self.lanes,
                routes: &mut self.routes,
                poller: &self.poller,
                door: &self.door,
                control: &self.control,
                switches,
                counters,
                now_ns: monotonic_ns(),
            };
            worked |= session.turn(&mut hands);
            held_bytes += session.held_bytes();
        }
        counters.held_bytes.set(held_bytes);
        worked
    }

    fn answer(&self, command: Option<u64>, session: SessionId, outcome: Result<(), Fault>) {
        let (failure, detail) = match outcome {
            Ok(()) => (Failure::None, String::new()),
            Err(fault) => (fault.failure, fault.detail),
        };
        let Some(command_id) = command else {
            if failure != Failure::None {
                tracing::warn!(%session, %failure, detail, "a session could not be opened");
            }
            return;
        };
        let detail = Text::clipped(&detail);
        let event = Event::Answer {
            command_id,
            session,
            failure,
            detail,
        };
        if let Err(error) = self.control.send(ToControl::Event(event)) {
            tracing::error!(%error, "an answer was lost");
        }
    }

    fn read_mail(&mut self, counters: &WorkerCounters, switches: &Switches) -> bool {
        if self.mail.is_empty() {
            return false;
        }
        self.mail.drain_wakeups();
        while let Some(message) = self.mail.receive() {
            self.take_message(message, counters, switches);
        }
        counters.sessions.set(self.sessions.len() as u64);
        counters
            .hugepage_fallbacks_total
            .set(dwcp_hugepages::arena::fallbacks_total());
        true
    }

    fn take_message(&mut self, message: ToWorker, counters: &WorkerCounters, switches: &Switches) {
        let unknown = || {
            Err(Fault::new(
                Failure::BadCommand,
                "this data plane has no such session",
            ))
        };
        match message {
            ToWorker::OpenSource(order, command) => {
                let session = order.session;
                let outcome = self.open_source(*order, counters, switches);
                self.answer(command, session, outcome);
            }
            ToWorker::OpenDestination(order, command) => {
                let session = order.session;
                let outcome = self.open_destination(*order, counters);
                self.answer(command, session, outcome);
            }
            ToWorker::Cancel(id, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.cancel(hands)
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Resolve(id, verdict, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.resolve(verdict, hands)
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Limit(id, bytes_per_s, command) => {
                let outcome = self.slot_of(id).and_then(|slot| {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.set_rate_limit(bytes_per_s, hands.now_ns);
                        Ok(())
                    })
                });
                self.answer(Some(command), id, outcome.unwrap_or_else(unknown));
            }
            ToWorker::Forget(id, command) => {
                let outcome = self.forget(id, counters, switches);
                self.answer(Some(command), id, outcome);
            }
            ToWorker::LaneUp(lane_up) => {
                if let Some(slot) = self.slot_of(lane_up.session) {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.on_lane_up(*lane_up, hands);
                    });
                }
            }
            ToWorker::LaneFailed {
                session,
                lane,
                failure,
                detail,
                fatal,
            } => {
                if let Some(slot) = self.slot_of(session) {
                    let fault = Fault::new(failure, detail);
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.on_lane_failed(lane, &fault, fatal, hands);
                    });
                }
            }
            ToWorker::Stop => {
                self.stopping = true;
                let slots: Vec<u32> = self.sessions.iter().map(|(slot, _)| *slot).collect();
                let fault = Fault::new(Failure::Cancelled, "the data plane is being stopped");
                for slot in slots {
                    self.with_session(slot, counters, switches, |session, hands| {
                        session.fail(&fault, hands);
                    });
                }
            }
        }
    }

    fn forget(
        &mut self,
        id: SessionId,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<(), Fault> {
        let Some(slot) = self.slot_of(id) else {
            return Ok(());
        };
        let over = self.with_session(slot, counters, switches, |session, hands| {
            let over = session.is_over();
            if over {
                session.release_lanes(hands);
            }
            over
        });
        if over != Some(true) {
            return Err(Fault::new(
                Failure::BadCommand,
                "the session is still running: cancel it first",
            ));
        }
        self.sessions.retain(|(known, _)| *known != slot);
        counters.sessions.set(self.sessions.len() as u64);
        Ok(())
    }

    /// Is this session here already (a repeated command), and is there room for one more?
    fn admit(&mut self, id: SessionId, role: Role) -> Result<bool, Fault> {
        if let Some((_, known)) = self.sessions.iter().find(|(_, session)| session.id() == id) {
            if known.is_source() == (role == Role::Source) {
                return Ok(false);
            }
            return Err(Fault::new(
                Failure::BadCommand,
                "this session is open here with the other role; source and destination must be \
                 different data planes",
            ));
        }
        let running = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_over())
            .count();
        if running >= self.config.sessions_max {
            return Err(Fault::new(
                Failure::Limit,
                "sessions_max is reached; wait for a migration to end or raise it",
            ));
        }
        if self.sessions.len() >= dwcp_api::session::SESSIONS_MAX / 2 {
            // Nobody asked for the oldest ended one to be forgotten; its picture has been shown.
            if let Some(at) = self
                .sessions
                .iter()
                .position(|(_, session)| session.is_over())
            {
                self.sessions.remove(at);
            }
        }
        Ok(true)
    }

    fn offer_with(&self, limits: &dwcp_api::command::SessionLimits) -> Offer {
        let or = |asked: u64, own: u64| if asked == 0 { own } else { asked.min(own) };
        Offer {
            store_bytes: or(limits.store_bytes, self.offer.store_bytes),
            window_limit_bytes: or(limits.window_limit_bytes, self.offer.window_limit_bytes),
            ..self.offer
        }
    }

    fn open_source(
        &mut self,
        order: SourceOrder,
        counters: &WorkerCounters,
        switches: &Switches,
    ) -> Result<(), Fault> {
        if !self.admit(order.session, Role::Source)? {
            return Ok(());
        }
        let mut offer = self.offer_with(&order.limits);
        if order.max_version == dwcp_api::Version::V1 {
            offer.max_version = dwcp_api::Version::V1;
        }
        offer.digest = order.digest;
        let slot = self.next_slot;
        let (path, listener) = match order.listen {
            Some(path) => {
                let listener = sockets::listen_unix(&path, rustix::net::SocketType::STREAM)
                    .map_err(|error| {
                        Fault::new(
                            Failure::System,
                            format!(
                                "{}: {error}; give a path in an existing directory",
                                path.display()
                            ),
                        )
                    })?;
                self.poller
                    .add_readable(&listener, Routes::token(slot, Routes::LISTENER))?;
                (path, Some(listener))
            }
            None => (std::path::PathBuf::new(), None),
        };
        let options = SessionOptions {
            id: order.session,
            role: Role::Source,
            slot,
            worker: self.index,
            socket_path: path,
            listener,
            peer: Some((order.peer, order.target)),
            offer,
            backing: self.config.hugepages.policy(),
            resume_limit_ns: self.resume_limit_ns(&order.limits),
            setup_limit_ns: self.config.setup_limit_ms.saturating_mul(1_000_000),
            rate_limit_bytes_per_s: order.limits.rate_limit_bytes_per_s,
        };
        self.add_session(options, counters)?;
        if let Some(first) = order.first {
            self.with_session(slot, counters, switches, |session, hands| {
                session.take_connection(first, hands);
            });
        }
        Ok(())
    }

    fn open_destination(
        &mut self,
        order: DestinationOrder,
        counters: &WorkerCounters,
    ) -> Result<(), Fault> {
        if !self.admit(order.session, Role::Destination)? {
            return Ok(());
        }
        let offer = self.offer_with(&order.limits);
        let options = SessionOptions {
            id: order.session,
            role: Role::Destination,
            slot: self.next_slot,
            worker: self.index,
            socket_path: order.connect,
            listener: None,
            peer: None,
            offer,
            backing: self.config.hugepages.policy(),
            resume_limit_ns: self.resume_limit_ns(&order.limits),
            setup_limit_ns: self.config.setup_limit_ms.saturating_mul(1_000_000),
            rate_limit_bytes_per_s: order.limits.rate_limit_bytes_per_s,
        };
        self.add_session(options, counters)?;
        let expected = Expected {
            session: order.session,
            worker: self.index,
            offer,
        };
        self.door
            .send(ToDoor::Expect(Box::new(expected)))
            .map_err(|error| Fault::new(Failure::Limit, error.to_string()))
    }

    fn resume_limit_ns(&self, limits: &dwcp_api::command::SessionLimits) -> u64 {
        let asked_ms = limits.resume_limit_ms;
        let limit_ms = if asked_ms == 0 {
            self.config.resume_limit_ms
        } else {
            asked_ms
        };
        limit_ms.saturating_mul(1_000_000)
    }

    fn add_session(
        &mut self,
        options: SessionOptions,
        counters: &WorkerCounters,
    ) -> Result<(), Fault> {
        let cell = self.board.take_cell().ok_or_else(|| {
            Fault::new(
                Failure::Limit,
                "the session table is full: forget sessions that ended",
            )
        })?;
        let slot = options.slot;
        self.next_slot += 1;
        self.sessions
            .push((slot, Session::new(options, cell, monotonic_ns())));
        counters.sessions_opened_total.add(1);
        Ok(())
    }

    /// A hypervisor connected without being announced.
    fn take_passive(&mut self, index: usize, counters: &WorkerCounters, switches: &Switches) {
        while let Some((source, listener)) = self.passive.get(index) {
            let Ok(fd) = sockets::accept(listener) else {
                return;
            };
            let source = source.clone();
            // A connection joins the session that this socket has open; only when there is none, or
            // it is past its switchover, does a new one begin.
            let open = self
                .sessions
                .iter()
                .find(|(_, session)| session.takes_passive(&source));
            if let Some(slot) = open.map(|(slot, _)| *slot) {
                self.with_session(slot, counters, switches, |session, hands| {
                    session.take_connection(fd, hands);
                });
                continue;
            }
            let mut id = [0; 16];
            if getrandom::fill(&mut id).is_err() {
                tracing::error!("the system has no random bytes to give");
                return;
            }
            let order = SourceOrder {
                session: SessionId(id),
                listen: None,
                first: Some(fd),
                peer: source.peer,
                target: Some(source.target),
                max_version: self.offer.max_version,
                digest: self.offer.digest,
                limits: dwcp_api::command::SessionLimits::default(),
            };
            let outcome = self.open_source(order, counters, switches);
            self.answer(None, SessionId(id), outcome);
        }
    }
}
