//! One core's loop: every session it has gets a turn, again and again, until nothing is left to do.
//!
//! In: messages, readiness, events of the driver. Out: turns. Promises: a session never leaves its
//! worker; the hot path takes no lock and makes no allocation; without work the worker spins, yields and
//! parks as its idle policy says, and whatever ends the idleness ends the park.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use dwcp_api::switches::Switches;
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{SessionId, Stage, monotonic_ns};
use dwcp_drivers::lane::{LaneEvent, LaneGroup, Polled};

use super::board::Board;
use super::budget::MemoryBudget;
use super::drivers::LaneEndpoint;
use super::encoders::Encoders;
use super::idle::{Idle, Step};
use super::keeper::Keeper;
use super::mailbox::{Mailbox, Sender};
use super::messages::{Offer, ToControl, ToDoor, ToWorker};
use super::poller::Poller;
use super::routes::{Routes, Source};
use super::sockets;
use super::stages::StageClock;
use crate::config::{Config, PassiveSource};
use crate::session::{Hands, Holding, Session};
use crate::transport::handshake::Way;

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
    pub(super) index: usize,
    pub(super) config: Arc<Config>,
    pub(super) offer: Offer,
    pub(super) budget: MemoryBudget,
    /// Memory of sessions that are forgotten, which somebody holds yet.
    pub(super) leaving: Vec<Holding>,
    pub(super) way: Way,
    pub(super) board: Arc<Board>,
    lanes: G,
    pub(super) poller: Poller,
    routes: Routes,
    mail: Mailbox<ToWorker>,
    /// The sending end of its own mailbox: batches that were squeezed elsewhere ring it.
    pub(super) own: Sender<ToWorker>,
    pub(super) encoders: Encoders,
    pub(super) keeper: Option<Keeper>,
    pub(super) door: Sender<ToDoor>,
    pub(super) control: Sender<ToControl>,
    pub(super) sessions: Vec<(u32, Session)>,
    pub(super) next_slot: u32,
    pub(super) passive: Vec<(PassiveSource, OwnedFd)>,
    events: Vec<LaneEvent>,
    idle: Idle,
    stages: Rc<StageClock>,
    pub(super) stopping: bool,
}

/// What a worker is made of.
pub struct WorkerOptions {
    /// Its index.
    pub index: usize,
    /// The data plane's configuration.
    pub config: Arc<Config>,
    /// What sessions can agree to.
    pub offer: Offer,
    /// What they may take, with those of other workers.
    pub budget: MemoryBudget,
    /// What the lanes of sessions that begin here are to run over.
    pub way: Way,
    /// The shared segments.
    pub board: Arc<Board>,
    /// Its messages.
    pub mail: Mailbox<ToWorker>,
    /// The sending end of that mailbox.
    pub own: Sender<ToWorker>,
    /// Threads that squeeze batches beside it.
    pub encoders: Encoders,
    /// Threads that read and write baselines.
    pub keeper: Option<Keeper>,
    /// To the door.
    pub door: Sender<ToDoor>,
    /// To the control thread.
    pub control: Sender<ToControl>,
    /// How it waits.
    pub idle: crate::config::IdlePolicy,
}

impl<G: LaneGroup<Endpoint = LaneEndpoint>> Worker<G> {
    /// A worker with its lanes. The first worker serves the passive sockets.
    ///
    /// # Errors
    /// What the system said.
    pub fn new(options: WorkerOptions, lanes: G) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add_doorbell(options.mail.fd(), Routes::MAILBOX_TOKEN)?;
        if let Some(fd) = lanes.park_fd() {
            poller.add_doorbell(fd, Routes::LANES_TOKEN)?;
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
            budget: options.budget,
            leaving: Vec::new(),
            way: options.way,
            board: options.board,
            lanes,
            poller,
            routes: Routes::default(),
            mail: options.mail,
            own: options.own,
            encoders: options.encoders,
            keeper: options.keeper,
            door: options.door,
            control: options.control,
            sessions: Vec::new(),
            next_slot: 0,
            passive,
            events: Vec::with_capacity(EVENTS_MAX),
            stages: Rc::new(StageClock::new(monotonic_ns())),
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
            self.stages.end_turn(now_ns, worked, counters);
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
            self.stages.end_turn(monotonic_ns(), false, counters);
        }
        for (_, session) in &mut self.sessions {
            session.let_go();
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
        let sleep = (timeout_ns > 0).then(|| self.stages.park());
        self.poller.wait(timeout_ns, |event| {
            // As many as the poller takes in one wait.
            let _ = ready.try_push(event);
        })?;
        drop(sleep);
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

    pub(super) fn with_session<R>(
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
            encoders: &self.encoders,
            worker: &self.own,
            stages: &self.stages,
            now_ns: monotonic_ns(),
        };
        Some(act(session, &mut hands))
    }

    pub(super) fn slot_of(&self, id: SessionId) -> Option<u32> {
        self.sessions
            .iter()
            .find(|(_, session)| session.id() == id)
            .map(|(slot, _)| *slot)
    }

    fn take_events(&mut self, counters: &WorkerCounters, switches: &Switches) -> bool {
        let stages = Rc::clone(&self.stages);
        let _lanes = stages.enter(Stage::Lanes);
        let polled = self.lanes.poll(&mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { lane, frame } => {
                    let bytes = frame.bytes().len() as u64;
                    counters.wire_bytes_received_total.add(bytes);
                    counters.frames_received_total.add(1);
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
                        session.on_lane_closed(route.lane, lane, reason, hands);
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
        let (mut held_bytes, mut window_bytes) = (0, 0);
        for (_, session) in &mut self.sessions {
            let mut hands = Hands {
                lanes: &mut self.lanes,
                routes: &mut self.routes,
                poller: &self.poller,
                door: &self.door,
                control: &self.control,
                switches,
                counters,
                encoders: &self.encoders,
                worker: &self.own,
                stages: &self.stages,
                now_ns: monotonic_ns(),
            };
            worked |= session.turn(&mut hands);
            held_bytes += session.held_bytes();
            window_bytes += session.window_bytes();
        }
        if !self.leaving.is_empty() {
            self.leaving.retain(|memory| !memory.is_free());
        }
        if self.index == 0 {
            // Of all workers: one says it for them.
            let budget = &self.budget;
            counters.memory_reserved_bytes.set(budget.reserved_bytes());
            counters.memory_limit_bytes.set(budget.limit_bytes());
        }
        counters.held_bytes.set(held_bytes);
        counters.window_bytes.set(window_bytes);
        worked
    }

    fn read_mail(&mut self, counters: &WorkerCounters, switches: &Switches) -> bool {
        if self.mail.is_empty() {
            return false;
        }
        while let Some(message) = self.mail.receive() {
            self.take_message(message, counters, switches);
        }
        counters.sessions.set(self.sessions.len() as u64);
        counters
            .hugepage_fallbacks_total
            .set(dwcp_hugepages::arena::fallbacks_total());
        true
    }
}
