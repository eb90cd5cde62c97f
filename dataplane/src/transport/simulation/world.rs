//! The simulated world: two ends of a session, their hypervisors, and what lies between.
//!
//! In: a [`Plan`], and perhaps a planted [`Bug`]. Out: how it ended, or the first thing that did not
//! hold and when. Promise: time passes only from one moment at which something happens to the next,
//! and the same plan gives the same run, step by step.

use std::collections::{BTreeMap, BTreeSet};

use super::super::inbound::{Accepted, Inbound, InboundConfig, Ready};
use super::super::outbound::{Outbound, OutboundConfig};
use super::super::wire::FrameKind;
use super::super::wire::batch::{BatchKind, DataHeader, parse_batch_layout};
use super::super::wire::control::{Ack, ControlFrame, ControlOpener, ControlSealer};
use super::super::wire::keys::{Direction, FrameKeys, Psk, SessionKey};
use super::super::*;
use super::bug::Bug;
use super::net::{Change, Net, SimFrame};
use super::plan::{DESTINATION, Event, MS, Plan, SOURCE};
use super::random::Random;
use super::streams::Stream;
use super::trace::Trace;
use super::truth::Broken;

const SIDES: [usize; 2] = [SOURCE, DESTINATION];
/// What may be read beyond the window for the first batch after a rollback.
const RESERVE_BYTES: u64 = 16 << 10;
/// No world needs nearly so many turns.
const TURNS_MAX: u64 = 2_000_000;

/// How a world ended, and what it met on the way.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct End {
    pub finished: bool,
    pub expired: bool,
    pub ended_at: Nanos,
    pub taken_bytes: u64,
    pub largest_held_bytes: u64,
    pub resent: u64,
    pub transcoded: u64,
    pub duplicates: u64,
    pub suspects: u64,
    pub redials: u64,
    pub lanes_lost: u64,
    pub turns: u64,
}

pub struct Side {
    pub outbound: Outbound<SimFrame>,
    pub inbound: Inbound<SimFrame>,
    pub expired: bool,
    /// When a frame last came or a lane rose, as the world knows it.
    pub heard_at: Nanos,
    pub(super) sealer: ControlSealer,
    opener: ControlOpener,
    pub(super) keys: FrameKeys,
    /// What each batch that the peer may lack was made of.
    pub(super) retained: BTreeMap<BatchSeq, DataHeader>,
    /// Batches that left at least once.
    pub(super) sent: BTreeSet<BatchSeq>,
    /// Batches that really came, by number.
    pub(super) came: Vec<bool>,
    pub(super) v3_allowed: bool,
    /// A lane went down in this turn.
    pub(super) lost_lane: bool,
    pub(super) pong: Option<Nanos>,
    pub(super) checked_at: Nanos,
    backlog_limit_bytes: usize,
    stopped_until: Nanos,
    /// Bytes that its hypervisor may take now, and when that was reckoned.
    may_take: (u64, Nanos),
}

pub struct World {
    pub plan: Plan,
    pub now: Nanos,
    pub sides: [Side; 2],
    /// By the side that sends, then by channel.
    pub streams: [Vec<Stream>; 2],
    pub last_progress: Nanos,
    pub end: End,
    pub trace: Trace,
    pub(super) bug: Option<Bug>,
    pub(super) random: Random,
    pub(super) net: Net,
    events_done: usize,
    pub(super) wanted_lanes: u16,
    /// Frames that come again: when, at which side.
    repeats: Vec<(Nanos, usize, SimFrame)>,
    came_now: Vec<SimFrame>,
    changes: Vec<Change>,
}

impl World {
    pub fn new(plan: Plan, bug: Option<Bug>, trace: Trace) -> Self {
        let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
        let epoch = SessionEpoch(0);
        let key = SessionKey::derive(&Psk([7; 32]), SessionId([5; 16]), a, b, epoch);
        let side = |sends: Direction, receives: Direction| {
            let (lanes, active) = (usize::from(plan.lanes), usize::from(plan.lanes_active));
            let mut limits = OutboundConfig::new(plan.window_limit_bytes, lanes, active);
            limits.lane_backlog_limit_bytes = plan.lane_backlog_bytes;
            limits.window_floor_bytes = plan.window_floor_bytes;
            limits.resume_limit_ns = plan.resume_limit_ns;
            let inbound = InboundConfig {
                keys: key.frame_keys(receives),
                highest: plan.agreed,
                window_limit_bytes: plan.window_limit_bytes,
            };
            let mut outbound = Outbound::new(limits, Nanos(0));
            outbound.expect_delay(2 * plan.delay_ns);
            if plan.express {
                outbound.keep_express_lane();
            }
            Side {
                outbound,
                inbound: Inbound::new(inbound),
                expired: false,
                heard_at: Nanos(0),
                sealer: ControlSealer::new(key.frame_keys(sends), epoch),
                opener: ControlOpener::new(key.frame_keys(receives), epoch),
                keys: key.frame_keys(sends),
                retained: BTreeMap::new(),
                sent: BTreeSet::new(),
                came: Vec::new(),
                v3_allowed: true,
                lost_lane: false,
                pong: None,
                checked_at: Nanos(0),
                backlog_limit_bytes: plan.lane_backlog_bytes,
                stopped_until: Nanos(0),
                may_take: (0, Nanos(0)),
            }
        };
        let streams = |from: usize| {
            let stream = Stream::new(plan.stream_bytes[from]);
            vec![stream; usize::from(plan.channels)]
        };
        Self {
            now: Nanos(0),
            sides: [
                side(Direction::ToAcceptor, Direction::ToInitiator),
                side(Direction::ToInitiator, Direction::ToAcceptor),
            ],
            streams: [streams(SOURCE), streams(DESTINATION)],
            last_progress: Nanos(0),
            end: End::default(),
            trace,
            bug,
            random: Random(plan.seed ^ 0x5EED),
            net: Net::new(&plan),
            events_done: 0,
            wanted_lanes: plan.lanes_active,
            repeats: Vec::new(),
            came_now: Vec::new(),
            changes: Vec::new(),
            plan,
        }
    }

    /// Until both sides know that all is done, or both have given up.
    pub fn run(&mut self) -> Result<End, Broken> {
        while !self.is_over() {
            self.end.turns += 1;
            Broken::unless(self.end.turns < TURNS_MAX, || "it never ends".into())?;
            self.now = self.next_moment();
            self.play_events();
            self.move_lanes()?;
            for side in SIDES {
                self.receive(side)?;
                self.hand_up(side)?;
                self.take(side)?;
            }
            for side in SIDES {
                if !self.sides[side].expired {
                    self.read_hypervisor(side)?;
                    self.send(side)?;
                    self.check_health(side);
                }
            }
            self.check()?;
        }
        self.end.expired = SIDES.iter().any(|&side| self.sides[side].expired);
        self.end.finished = !self.end.expired;
        self.end.ended_at = self.now;
        for side in SIDES {
            self.end.resent += self.sides[side].outbound.resent_batches();
            self.end.duplicates += self.sides[side].inbound.duplicates();
            let taken = self.streams[side].iter().map(|stream| stream.taken);
            self.end.taken_bytes += taken.sum::<u64>();
        }
        Ok(self.end.clone())
    }

    fn is_over(&self) -> bool {
        if self.sides.iter().all(|side| side.expired) {
            return true;
        }
        let all = |streams: &[Stream]| streams.iter().all(Stream::is_finished);
        let idle = |side: &Side| side.outbound.in_flight() == 0 && side.outbound.held_bytes() == 0;
        self.streams.iter().all(|streams| all(streams)) && self.sides.iter().all(idle)
    }

    /// The next moment at which anything may happen, a turn from now at the earliest.
    fn next_moment(&mut self) -> Nanos {
        let mut at = Nanos(u64::MAX);
        let mut sooner = |moment: Option<Nanos>| at = at.min(moment.unwrap_or(at));
        let event = self.plan.events.get(self.events_done);
        sooner(event.map(|(at_ns, _)| Nanos(*at_ns)));
        sooner(self.net.next_at());
        sooner(self.repeats.iter().map(|(at, ..)| *at).min());
        for side in SIDES {
            let state = &mut self.sides[side];
            sooner(Some(state.checked_at.plus(self.plan.check_every_ns)));
            if state.outbound.has_queued() {
                let limit_bytes = state.backlog_limit_bytes;
                sooner(self.net.room_at(side, limit_bytes, self.now));
            }
            sooner(Some(state.stopped_until).filter(|until| *until > self.now));
            for (index, stream) in self.streams[side].iter().enumerate() {
                let channel = ChannelId(index as u16);
                if stream.read < stream.total && state.outbound.may_read(channel) > 0 {
                    let enough = (stream.read + stream.wanted).min(stream.total);
                    let offered_at = stream.offered_at(&self.plan, enough);
                    sooner(Some(offered_at).filter(|at| *at > self.now));
                }
            }
            // A slow hypervisor takes a little every millisecond.
            let waits = self.streams[1 - side].iter().any(|stream| {
                stream.is_waiting() && stream.untaken_until <= self.now && state.may_take.0 == 0
            });
            sooner(waits.then(|| self.now.plus(MS)));
        }
        at.max(self.now.plus(self.plan.turn_ns))
    }

    fn play_events(&mut self) {
        while let Some((at_ns, event)) = self.plan.events.get(self.events_done) {
            if *at_ns > self.now.0 {
                return;
            }
            self.events_done += 1;
            let (now, event) = (self.now, event.clone());
            self.trace.note(now, || format!("event: {event:?}"));
            match event {
                Event::CutLane {
                    lane,
                    noticed_after_ns,
                    dead_for_ns,
                } => {
                    let lane = LaneIx(lane);
                    self.net.cut_lane(lane, noticed_after_ns, dead_for_ns, now);
                }
                Event::StallLane {
                    lane,
                    from_side,
                    for_ns,
                } => self.net.stall_lane(LaneIx(lane), from_side, for_ns, now),
                Event::CutLink { for_ns, resets } => self.net.cut_link(for_ns, resets, now),
                Event::FallBack {
                    delay_ns,
                    lane_bytes_s,
                } => self.net.fall_back(delay_ns, lane_bytes_s, now),
                Event::AllowV3 { side, allowed } => {
                    let state = &mut self.sides[side];
                    if state.v3_allowed && !allowed {
                        state.outbound.open_reserve(RESERVE_BYTES);
                    }
                    state.v3_allowed = allowed;
                }
                Event::ActiveLanes { side, lanes } => {
                    let outbound = &mut self.sides[side].outbound;
                    outbound.set_active_lanes(usize::from(lanes));
                    if side == SOURCE {
                        self.wanted_lanes = lanes;
                    }
                }
                Event::LaneBacklog { side, bytes } => {
                    self.sides[side].backlog_limit_bytes = bytes;
                    self.sides[side].outbound.set_lane_backlog_limit(bytes);
                }
                Event::StopTaking { channel, for_ns } => {
                    let stream = &mut self.streams[SOURCE][usize::from(channel)];
                    stream.untaken_until = now.plus(for_ns);
                }
                Event::StopDecoding { side, for_ns } => {
                    self.sides[side].stopped_until = now.plus(for_ns);
                }
            }
        }
    }

    fn move_lanes(&mut self) -> Result<(), Broken> {
        let mut changes = std::mem::take(&mut self.changes);
        self.net.advance(self.now, &mut self.random, &mut changes);
        for change in changes.drain(..) {
            self.trace.note(self.now, || format!("{change:?}"));
            match change {
                Change::Up(side, _) | Change::Down(side, _) if self.sides[side].expired => {}
                Change::Up(side, lane) => {
                    let state = &mut self.sides[side];
                    state.outbound.lane_up(lane)?;
                    state.outbound.heard(self.now);
                    state.heard_at = self.now;
                    if self.bug != Some(Bug::AckNotRepeated) {
                        state.inbound.want_ack();
                    }
                }
                Change::Down(side, lane) => self.lane_down(side, lane),
            }
        }
        self.changes = changes;
        Ok(())
    }

    pub(super) fn lane_down(&mut self, side: usize, lane: LaneIx) {
        self.end.lanes_lost += 1;
        self.sides[side].lost_lane = true;
        if self.bug != Some(Bug::LaneLossUntold) {
            self.sides[side].outbound.lane_down(lane);
        }
    }

    fn receive(&mut self, to: usize) -> Result<(), Broken> {
        let mut came = std::mem::take(&mut self.came_now);
        self.net.arrived(to, self.now, &mut self.random, &mut came);
        let again = self.plan.repeats_one_in;
        for frame in &came {
            if self.random.one_in(again) {
                let later = self.now.plus(self.random.below(1000 * MS));
                self.repeats.push((later, to, frame.clone()));
            }
        }
        if !self.net.is_gone(self.now) {
            let now = self.now;
            let due = |(at, side, _): &mut (Nanos, usize, SimFrame)| *at <= now && *side == to;
            came.extend(self.repeats.extract_if(.., due).map(|(.., frame)| frame));
        }
        for frame in came.drain(..) {
            if !self.sides[to].expired {
                self.on_frame(to, frame)?;
            }
        }
        self.came_now = came;
        Ok(())
    }

    fn on_frame(&mut self, to: usize, frame: SimFrame) -> Result<(), Broken> {
        let now = self.now;
        let side = &mut self.sides[to];
        if FrameKind::peek(&frame.bytes)? == FrameKind::Control {
            let Some(control) = side.opener.open(&frame.bytes)? else {
                return Ok(());
            };
            side.heard_at = now;
            match control {
                ControlFrame::Ack(ack) => self.on_ack(to, &ack)?,
                ControlFrame::Ping(sent) => {
                    side.outbound.heard(now);
                    if self.bug != Some(Bug::AckNotRepeated) {
                        side.inbound.note_ping(sent, now);
                    }
                    side.pong = Some(sent);
                }
                ControlFrame::Pong(sent) => side.outbound.on_pong(sent, now),
                ControlFrame::Bye(_) => return Err(Broken::new("nobody says BYE here")),
            }
            return Ok(());
        }
        let accepted = side.inbound.on_batch(frame.clone())?;
        side.outbound.heard(now);
        side.heard_at = now;
        match accepted {
            Accepted::Stored(seq) => side.came[seq.0 as usize] = true,
            Accepted::Duplicate(_) if self.bug == Some(Bug::DuplicateReleased) => {
                let header = parse_batch_layout(&frame.bytes)?.header;
                self.release(to, &Ready { header, frame })?;
            }
            Accepted::Duplicate(_) => {}
        }
        Ok(())
    }

    fn on_ack(&mut self, to: usize, ack: &Ack) -> Result<(), Broken> {
        let [a, b] = &mut self.sides;
        let (side, peer) = if to == SOURCE { (a, b) } else { (b, a) };
        let retained = &mut side.retained;
        let before = side.outbound.in_flight();
        let mut early = None;
        side.outbound.on_ack(ack, self.now, |seq| {
            retained.remove(&seq);
            if !peer.came[seq.0 as usize] {
                early = early.or(Some(seq));
            }
        })?;
        if side.outbound.in_flight() < before {
            self.last_progress = self.now;
        }
        Broken::unless(early.is_none(), || {
            format!("{early:?} never came and is forgotten")
        })
    }

    fn hand_up(&mut self, to: usize) -> Result<(), Broken> {
        let side = &mut self.sides[to];
        if side.expired || side.stopped_until > self.now {
            return Ok(());
        }
        let mut ready = Vec::new();
        loop {
            while let Some(batch) = side.inbound.pop_express()? {
                ready.push(batch);
            }
            let Some(batch) = side.inbound.pop_ready()? else {
                break;
            };
            ready.push(batch);
        }
        if self.bug == Some(Bug::BatchesSwapped) && ready.len() > 1 {
            ready.swap(0, 1);
        }
        for batch in ready {
            self.release(to, &batch)?;
        }
        Ok(())
    }

    fn release(&mut self, to: usize, ready: &Ready<SimFrame>) -> Result<(), Broken> {
        let channel = ready.header.channel;
        let index = usize::from(channel.0);
        if ready.header.kind == BatchKind::Open {
            // An OPEN opens the way back too.
            self.sides[to].outbound.open_channel(channel)?;
            self.streams[to][index].open = true;
        }
        self.last_progress = self.now;
        self.streams[1 - to][index].on_batch(&ready.header, &ready.frame.bytes)
    }

    /// The hypervisor of `side` takes what it likes.
    fn take(&mut self, side: usize) -> Result<(), Broken> {
        let streams = &mut self.streams[1 - side];
        let state = &mut self.sides[side];
        let passed_ns = self.now.since(state.may_take.1).min(10 * MS);
        let more = u128::from(self.plan.take_bytes_s) * u128::from(passed_ns) / 1_000_000_000;
        let mut most = more as u64;
        let others_taken = streams
            .iter()
            .skip(1)
            .all(|stream| stream.taken == stream.total);
        for (index, stream) in streams.iter_mut().enumerate() {
            let waits = self.plan.barrier && side == DESTINATION && index == 0 && !others_taken;
            if waits || stream.untaken_until > self.now {
                continue;
            }
            let bytes = stream.take(most);
            most -= bytes;
            if bytes > 0 {
                self.last_progress = self.now;
                let lost = self.bug == Some(Bug::CreditLost) && self.random.one_in(20);
                if !lost {
                    let channel = ChannelId(index as u16);
                    state.inbound.note_delivered(channel, bytes)?;
                }
            }
        }
        state.may_take = (most, self.now);
        Ok(())
    }
}
