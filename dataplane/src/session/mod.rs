//! One migration at one end: from the hypervisor's connections to the lanes and back.
//!
//! In: orders, connections, lanes, frames, time. Out: bytes for the hypervisor, frames for the lanes, a
//! picture of itself. Promises: bytes reach the hypervisor unchanged and in order or not at all; what
//! is held is bounded; a failure before the end of RAM closes at once, so that the guest goes on at the
//! source; a peer lost after it leaves the hypervisor waiting until somebody knows which side runs.
//!
//! | module | what |
//! |---|---|
//! | [`arriving`] | hypervisor connections, until each has its channel |
//! | [`channel`] | one hypervisor connection |
//! | [`link`] | the machinery that exists once both sides agree |
//! | [`memory`] | what that takes, and what fits into less |
//! | [`holding`] | that memory, until it is free again |
//! | [`token_lists`] | where tokens of batches are kept |
//! | [`forward`] | hypervisor → lanes |
//! | [`encoding`] | a batch's raw bytes → its sealed frame |
//! | [`baselines`] | blocks that both sides have on disk |
//! | [`aside`] | batches squeezed on other cores |
//! | [`path`] | samples of the path to the peer, and the mode that follows from them |
//! | [`path_floor`] | what the path takes without its queues |
//! | [`rate_limit`] | what an operator lets it send |
//! | [`receive`] | lanes → hypervisor |
//! | [`bundle`] | lanes: dialling, spreading, replacing, control frames |
//! | [`lane_count`] | how many lanes there are, and how fast each may be |
//! | [`driver`] | what lanes run over when a driver does not carry |
//! | [`ending`] | completing, failing, the undecided moment |
//! | [`share`] | its part of a link that others use too |
//! | [`wire_rate`] | how fast the wire is |
//! | [`loss`], [`moments`] | how much the network below sends again; when batches around a rollback left |
//! | [`fault`] | what ends a session |

mod arriving;
pub mod aside;
mod baselines;
pub mod bundle;
pub mod channel;
mod driver;
mod encoding;
mod ending;
mod fault;
mod forward;
mod holding;
mod lane_count;
pub mod link;
mod loss;
pub mod memory;
mod moments;
mod path;
mod path_floor;
mod rate_limit;
mod receive;
mod share;
#[cfg(test)]
mod testing;
mod token_lists;
mod wire_rate;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use dwcp_api::session::SessionSnapshot;
use dwcp_api::switches::Switches;
use dwcp_api::worker::WorkerCounters;
use dwcp_api::{Failure, Role, SessionId, SessionState, Stage};
use dwcp_baseline::Tenant;
use dwcp_drivers::frame::Frame;
use dwcp_drivers::lane::LaneGroup;
use dwcp_hugepages::arena::BackingPolicy;

pub use fault::Fault;
pub use holding::Holding;

use crate::config::PassiveSource;
use crate::engine::board::SessionCell;
use crate::engine::budget::Reservation;
use crate::engine::encoders::Encoders;
use crate::engine::keeper::Keeper;
use crate::engine::mailbox::Sender;
use crate::engine::messages::{Offer, Peer, ToControl, ToDoor, ToWorker};
use crate::engine::poller::Poller;
use crate::engine::routes::Routes;
use crate::engine::stages::StageClock;
use crate::stream::ChannelKind;
use crate::transport::handshake::Way;
use crate::transport::streams::{StreamLimits, Streams};
use crate::transport::wire::control::ByeReason;
use crate::transport::{ChannelId, Nanos};
use baselines::Baselines;
use bundle::Bundle;
use channel::Channel;
use link::Link;
use path::PathSampler;
use rate_limit::RateLimit;
use share::Share;

/// Pictures are published this often at least while something moves.
const PICTURE_EVERY_NS: u64 = 50_000_000;

/// What a session may touch while it is its turn.
pub struct Hands<'a, G: LaneGroup> {
    /// The worker's lanes.
    pub lanes: &'a mut G,
    /// Whose lane is whose.
    pub routes: &'a mut Routes,
    /// Readiness of descriptors.
    pub poller: &'a Poller,
    /// Dials and accepts.
    pub door: &'a Sender<ToDoor>,
    /// The border to the control plane.
    pub control: &'a Sender<ToControl>,
    /// The words that every batch reads.
    pub switches: &'a Switches,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
    /// Threads that squeeze batches beside it.
    pub encoders: &'a Encoders,
    /// The way back from them.
    pub worker: &'a Sender<ToWorker>,
    /// Where its time goes.
    pub stages: &'a StageClock,
    /// Now, `CLOCK_MONOTONIC` nanoseconds.
    pub now_ns: u64,
}

/// What a session is made of.
pub struct SessionOptions {
    /// Its id.
    pub id: SessionId,
    /// Our end.
    pub role: Role,
    /// Index in the worker's table, for tokens and routes.
    pub slot: u32,
    /// Index of the worker.
    pub worker: usize,
    /// Source: where the hypervisor connects. Destination: where the hypervisor listens.
    pub socket_path: PathBuf,
    /// Source: the socket at `socket_path`; none for a passive session.
    pub listener: Option<OwnedFd>,
    /// Source: whom to dial.
    pub peer: Option<Peer>,
    /// What we can agree to.
    pub offer: Offer,
    /// Source: what lanes are to run over.
    pub way: Way,
    /// Source: lanes run over TCP when that does not carry.
    pub driver_fallback: bool,
    /// The memory for what that comes to.
    pub memory: Reservation,
    /// Where arenas come from.
    pub backing: BackingPolicy,
    /// How long the link may be gone, nanoseconds.
    pub resume_limit_ns: u64,
    /// How long the beginning may take, nanoseconds.
    pub setup_limit_ns: u64,
    /// Wire bytes a second, at most; 0: no limit.
    pub rate_limit_bytes_per_s: u64,
    /// Source: how many lanes there may be.
    pub streams: StreamLimits,
    /// Whose baselines it may use.
    pub tenant: Tenant,
    /// Who reads and writes them.
    pub keeper: Option<Keeper>,
}

/// See the module.
pub struct Session {
    id: SessionId,
    role: Role,
    slot: u32,
    worker: usize,
    socket_path: PathBuf,
    listener: Option<OwnedFd>,
    offer: Offer,
    /// Until all of it is free.
    memory: Option<Holding>,
    backing: BackingPolicy,
    resume_limit_ns: u64,
    setup_deadline_ns: u64,
    state: SessionState,
    link: Option<Link>,
    bundle: Bundle,
    /// Index is the channel's number.
    channels: Vec<Channel>,
    /// Connections whose first bytes have not come yet, or that came before the link.
    unsorted: VecDeque<OwnedFd>,
    /// One of them waits for room at the transport, which nothing announces.
    sort_again: bool,
    pending_connects: VecDeque<(ChannelId, ChannelKind)>,
    turn: usize,
    /// The stream has shown the end of RAM, or cannot be understood: from now on the destination
    /// may run the guest although we do not know it.
    destination_may_run: bool,
    /// The destination runs the guest and fetches its memory.
    in_postcopy: bool,
    /// The source's hypervisor will not run the guest again, whatever becomes of its connections.
    postcopy_settled: bool,
    pong: Option<Nanos>,
    peer_bye: Option<ByeReason>,
    /// The peer gave up; its reason, which travels in sequence, is waited for until then.
    reason_due_ns: Option<u64>,
    linger_until_ns: u64,
    rate_limit: RateLimit,
    path: PathSampler,
    share: Share,
    streams: Streams,
    baselines: Baselines,
    picture: SessionSnapshot,
    published_ns: u64,
    cell: SessionCell,
}

impl Session {
    /// A session that waits for its hypervisor and its peer.
    pub fn new(options: SessionOptions, cell: SessionCell, now_ns: u64) -> Self {
        let picture = SessionSnapshot {
            id: options.id,
            role: u64::from(options.role.code()),
            state: u64::from(SessionState::Waiting.code()),
            opened_ns: now_ns,
            ..SessionSnapshot::FREE
        };
        let peer = options.peer.as_ref().map(|peer| peer.address);
        let share = Share::new(&cell, peer, now_ns);
        // Whoever is told that it is open finds it, however long the worker has to do before its first turn.
        cell.publish(&picture);
        Self {
            id: options.id,
            role: options.role,
            slot: options.slot,
            worker: options.worker,
            socket_path: options.socket_path,
            listener: options.listener,
            bundle: Bundle::new(options.peer, options.way, options.driver_fallback),
            offer: options.offer,
            memory: Some(Holding::new(options.memory)),
            backing: options.backing,
            resume_limit_ns: options.resume_limit_ns,
            setup_deadline_ns: now_ns.saturating_add(options.setup_limit_ns),
            state: SessionState::Waiting,
            link: None,
            channels: Vec::with_capacity(16),
            unsorted: VecDeque::new(),
            sort_again: false,
            pending_connects: VecDeque::new(),
            turn: 0,
            destination_may_run: false,
            in_postcopy: false,
            postcopy_settled: false,
            pong: None,
            peer_bye: None,
            reason_due_ns: None,
            linger_until_ns: u64::MAX,
            rate_limit: RateLimit::new(options.rate_limit_bytes_per_s, now_ns),
            path: PathSampler::new(now_ns),
            share,
            streams: Streams::new(options.streams),
            baselines: Baselines::new(options.tenant, options.keeper),
            picture,
            published_ns: 0,
            cell,
        }
    }

    /// Its id.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Where it stands.
    pub const fn state(&self) -> SessionState {
        self.state
    }

    /// Does this end read the guest?
    pub fn is_source(&self) -> bool {
        self.role == Role::Source
    }

    /// Nothing will change any more.
    pub const fn is_over(&self) -> bool {
        self.state.is_final()
    }

    /// Changes the bandwidth limit; 0 lifts it.
    pub fn set_rate_limit(&mut self, bytes_per_s: u64, now_ns: u64) {
        self.rate_limit = RateLimit::new(bytes_per_s, now_ns);
    }

    /// Bytes held between the hypervisors, as this end knows it.
    pub fn held_bytes(&self) -> u64 {
        self.link
            .as_ref()
            .map_or(0, |link| link.outbound.held_bytes())
    }

    /// The window in force at a source, hypervisor bytes; 0 at a destination.
    pub fn window_bytes(&self) -> u64 {
        match &self.link {
            Some(link) if self.is_source() && !self.is_over() => link.outbound.window_bytes(),
            _ => 0,
        }
    }

    /// A frame of this session came over one of its lanes.
    pub fn take_frame<G: LaneGroup>(&mut self, frame: Frame, hands: &mut Hands<'_, G>) {
        let stages = hands.stages;
        let _transport = stages.enter(Stage::Transport);
        if let Err(fault) = self.on_frame(frame, hands.now_ns) {
            self.fail(&fault, hands);
        }
    }

    /// Was this session begun by the passive socket that `source` describes, and does it still take
    /// connections?
    pub fn takes_passive(&self, source: &PassiveSource) -> bool {
        self.is_source()
            && matches!(self.state, SessionState::Waiting | SessionState::Active)
            && self.bundle.dials(source.peer, &source.target)
    }

    /// Lets go of lanes that still drain: the session is about to be forgotten. Answers the memory that somebody may
    /// hold a while yet.
    pub fn release_lanes<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> Option<Holding> {
        self.drop_lanes(hands);
        self.let_go();
        self.memory.take()
    }

    /// A channel's socket, or one without a channel yet, became ready.
    pub fn on_ready<G: LaneGroup>(
        &mut self,
        sub: u32,
        readable: bool,
        writable: bool,
        hands: &mut Hands<'_, G>,
    ) {
        if sub == Routes::UNSORTED {
            self.sort_connections(hands);
        } else if let Some(channel) = self.channels.get_mut(sub as usize) {
            channel.readable |= readable;
            channel.writable |= writable;
        }
    }

    /// One turn. Says whether there was work.
    pub fn turn<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> bool {
        if self.is_over() {
            return self.linger(hands);
        }
        match self.try_turn(hands) {
            Ok(worked) => {
                self.update_picture(hands.now_ns);
                worked
            }
            Err(fault) => {
                self.fail(&fault, hands);
                true
            }
        }
    }

    fn try_turn<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> Result<bool, Fault> {
        let mut worked = self.pump_receive(hands)?;
        worked |= self.pump_baselines()?;
        worked |= self.pump_release(hands)?;
        if self.state != SessionState::Undecided {
            self.check_reason(hands.now_ns)?;
        }
        self.sort_those_left(hands);
        if self.state != SessionState::Undecided && !self.is_given_up() {
            worked |= self.pump_forward(hands)?;
        }
        worked |= self.pump_lanes(hands)?;
        worked |= self.check_end(hands)?;
        Ok(worked)
    }

    /// Is something waiting that no descriptor will announce?
    pub fn wants_turn(&self) -> bool {
        !self.is_over() && self.channels.iter().any(|channel| channel.look_again)
    }

    pub(super) fn update_picture(&mut self, now_ns: u64) {
        // A short transfer is seen too: the last picture is published at once.
        if now_ns.saturating_sub(self.published_ns) < PICTURE_EVERY_NS && !self.is_over() {
            return;
        }
        self.published_ns = now_ns;
        if let Some(link) = &self.link {
            let picture = &mut self.picture;
            picture.held_bytes = link.outbound.held_bytes();
            // Those that have closed count: their share was used while they were open.
            picture.held_bytes_limit = link.held_limit_bytes(picture.channels);
            picture.window_bytes = link.outbound.window_bytes();
            picture.rtt_us = link.outbound.rtt_us().unwrap_or(0);
            picture.delivery_bytes_per_s = link.outbound.delivery_rate_bytes_s();
            picture.negotiated_version = link.version as u64;
        }
        self.picture.lanes_up = self.bundle.count_up() as u64;
        self.picture.state = u64::from(self.state.code());
        self.cell.publish(&self.picture);
    }

    fn set_state<G: LaneGroup>(
        &mut self,
        state: SessionState,
        failure: Failure,
        detail: &str,
        hands: &mut Hands<'_, G>,
    ) {
        if self.state == state {
            return;
        }
        self.state = state;
        let detail = dwcp_api::text::Text::clipped(detail);
        self.picture.failure = u64::from(failure.code());
        self.picture.detail = detail;
        if state.is_final() {
            self.picture.ended_ns = hands.now_ns;
        }
        self.published_ns = 0;
        self.update_picture(hands.now_ns);
        let event = dwcp_api::event::Event::State {
            session: self.id,
            role: self.role,
            state,
            failure,
            detail,
        };
        // The picture has the fact; the event only says to look.
        let _ = hands.control.send(ToControl::Event(event));
        tracing::info!(
            session = %self.id, role = %self.role, %state, %failure, detail = detail.as_str(),
            "session"
        );
    }
}
