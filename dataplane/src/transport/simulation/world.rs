//! The simulated world: two ends, lanes, hypervisors that write and take bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::inbound::{Inbound, InboundConfig};
use super::super::outbound::{BatchMeta, Outbound, OutboundConfig, SendStep, Verdict};
use super::super::wire::FrameKind;
use super::super::wire::batch::{
    BATCH_HEADER_BYTES, BatchKind, ChannelKind, DataHeader, MAX_MARKER_BYTES, Marker, seal_data,
    seal_marker,
};
use super::super::wire::control::{ControlFrame, ControlOpener, ControlSealer, MAX_CONTROL_BYTES};
use super::super::wire::keys::{Direction, FrameKeys, Psk, SessionKey};
use super::super::*;

const STEP_NS: u64 = 500_000;
/// Simulated time without a byte delivered after which a run counts as a deadlock.
const WATCHDOG_NS: u64 = 100_000_000_000;
const BATCH_BYTES: usize = 256 * 1024;

type Frame = Arc<[u8]>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Lanes are cut with all that they carry, and come back.
    Cuts,
    /// Lanes stop moving without being cut.
    Stalls,
    /// Frames come twice, the second time later and over another lane.
    Repeats,
    /// All lanes are silent, then cut when dialled anew, until the end of the span.
    Gone { at_ns: u64, for_ns: u64 },
}

#[derive(Debug, Clone)]
pub struct WorldConfig {
    pub seed: u64,
    pub channels: u16,
    pub channel_bytes: u64,
    pub lanes: u16,
    pub delay_ns: u64,
    pub lane_bytes_s: u64,
    pub window_limit_bytes: u64,
    pub faults: Vec<Fault>,
    pub flips: bool,
    pub barrier: bool,
    /// The receiver takes nothing before.
    pub blocked_until: Option<Nanos>,
}

#[derive(Debug, Default)]
pub struct End {
    pub finished: bool,
    pub expired: bool,
    pub ended_at: Nanos,
    pub delivered_bytes: u64,
    pub largest_held_bytes: u64,
    pub limit_bytes: u64,
    pub resent: u64,
    pub transcoded: u64,
    pub duplicates: u64,
    pub suspects: u64,
    pub redials: u64,
    pub left_v3_while_forbidden: u64,
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing faults, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True once in `n` calls.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The byte at `offset` of `channel`: any byte lost, doubled or swapped shows.
fn byte_at(channel: u16, offset: u64) -> u8 {
    let mixed = (offset ^ (u64::from(channel) << 56)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

/// One direction of one lane: a pipe with a rate and a delay, in order.
#[derive(Default)]
struct Pipe {
    free_at: Nanos,
    frames: VecDeque<(Nanos, Frame)>,
}

#[derive(Default)]
struct SimLane {
    up: bool,
    stalled_until: Nanos,
    /// When it is up again, if it is being dialled.
    dialled_until: Option<Nanos>,
    pipes: [Pipe; 2],
}

struct Side {
    outbound: Outbound<Frame>,
    inbound: Inbound<Frame>,
    sealer: ControlSealer,
    opener: ControlOpener,
    keys: FrameKeys,
}

#[derive(Default, Clone)]
struct SimChannel {
    opened: bool,
    closed: bool,
    read: u64,
    /// Handed up at the receiver and not yet taken.
    queued: VecDeque<u64>,
    handed_up: u64,
    taken: u64,
    close_seen: bool,
}

pub struct World {
    config: WorldConfig,
    now: Nanos,
    random: Random,
    /// 0 sends the stream, 1 receives it.
    sides: [Side; 2],
    lanes: Vec<SimLane>,
    channels: Vec<SimChannel>,
    /// Raw place of each batch that may have to be encoded again.
    retained: BTreeMap<BatchSeq, DataHeader>,
    v3_allowed: bool,
    last_progress: Nanos,
    repeats: Vec<(Nanos, Frame)>,
    end: End,
}

impl World {
    pub fn new(config: WorldConfig) -> Self {
        let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
        let epoch = SessionEpoch(0);
        let psk = Psk([7; 32]);
        let key = SessionKey::derive(&psk, SessionId([5; 16]), a, b, epoch);
        let side = |sends: Direction, receives: Direction| {
            let lanes = usize::from(config.lanes);
            let limits = OutboundConfig::new(config.window_limit_bytes, lanes, lanes);
            let inbound = InboundConfig {
                keys: key.frame_keys(receives),
                highest: Version::V3,
                window_limit_bytes: config.window_limit_bytes,
            };
            Side {
                outbound: Outbound::new(limits, Nanos(0)),
                inbound: Inbound::new(inbound),
                sealer: ControlSealer::new(key.frame_keys(sends), epoch),
                opener: ControlOpener::new(key.frame_keys(receives), epoch),
                keys: key.frame_keys(sends),
            }
        };
        let mut sides = [
            side(Direction::ToAcceptor, Direction::ToInitiator),
            side(Direction::ToInitiator, Direction::ToAcceptor),
        ];
        let mut lanes = Vec::new();
        for lane in 0..config.lanes {
            lanes.push(SimLane {
                up: true,
                ..SimLane::default()
            });
            for side in &mut sides {
                side.outbound.lane_up(LaneIx(lane)).unwrap();
            }
        }
        let limit_bytes =
            config.window_limit_bytes + u64::from(config.channels) * CHANNEL_GUARANTEE_BYTES;
        Self {
            now: Nanos(0),
            random: Random(config.seed),
            sides,
            lanes,
            channels: vec![SimChannel::default(); usize::from(config.channels)],
            retained: BTreeMap::new(),
            v3_allowed: true,
            last_progress: Nanos(0),
            repeats: Vec::new(),
            end: End {
                limit_bytes,
                ..End::default()
            },
            config,
        }
    }

    pub fn run(mut self) -> End {
        while !self.end.expired && !self.end.finished {
            self.now = self.now.plus(STEP_NS);
            self.inject_faults();
            self.read_hypervisor();
            self.receive();
            self.take();
            for side in 0..2 {
                self.send(side);
                self.check_health(side);
            }
            self.check_invariants();
        }
        self.end.ended_at = self.now;
        self.end.resent = self.sides[0].outbound.resent_batches();
        self.end.duplicates = self.sides[1].inbound.duplicates();
        self.end
    }

    fn has(&self, fault: Fault) -> bool {
        self.config.faults.contains(&fault)
    }

    fn is_gone(&self) -> bool {
        self.config.faults.iter().any(|fault| match *fault {
            Fault::Gone { at_ns, for_ns } => (at_ns..at_ns + for_ns).contains(&self.now.0),
            _ => false,
        })
    }

    fn inject_faults(&mut self) {
        if self.config.flips && self.random.one_in(100) {
            self.v3_allowed = !self.v3_allowed;
        }
        if self.config.flips && self.random.one_in(500) {
            let active = 1 + self.random.below(u64::from(self.config.lanes)) as usize;
            self.sides[0].outbound.set_active_lanes(active);
        }
        for lane in 0..self.lanes.len() {
            if self.has(Fault::Cuts) && self.lanes[lane].up && self.random.one_in(600) {
                let comes_back_ns = self.random.below(2_000_000_000);
                self.cut(lane, comes_back_ns);
            }
            if self.has(Fault::Stalls) && self.random.one_in(400) {
                let stalls_ns = self.random.below(6_000_000_000);
                self.lanes[lane].stalled_until = self.now.plus(stalls_ns);
            }
            let back = self.lanes[lane]
                .dialled_until
                .is_some_and(|until| until <= self.now);
            if back && !self.is_gone() {
                self.lanes[lane] = SimLane {
                    up: true,
                    ..SimLane::default()
                };
                for side in &mut self.sides {
                    side.outbound.lane_up(LaneIx(lane as u16)).unwrap();
                    side.inbound.want_ack();
                }
            }
        }
    }

    /// Both ends see the lane go, and what it carried is lost.
    fn cut(&mut self, lane: usize, comes_back_ns: u64) {
        let until = self.now.plus(comes_back_ns);
        self.lanes[lane] = SimLane {
            dialled_until: Some(until),
            ..SimLane::default()
        };
        for side in &mut self.sides {
            side.outbound.lane_down(LaneIx(lane as u16));
        }
    }

    fn read_hypervisor(&mut self) {
        for index in 0..self.channels.len() {
            let channel = ChannelId(index as u16);
            let side = &mut self.sides[0];
            if !self.channels[index].opened && side.outbound.can_push() {
                side.outbound.open_channel(channel).unwrap();
                side.inbound.open_channel(channel).unwrap();
                self.push_marker(channel, &Marker::Open(ChannelKind::Multifd));
                self.channels[index].opened = true;
            }
            while self.channels[index].opened && self.read_batch(index) {}
            let state = &self.channels[index];
            let all_read = state.read == self.config.channel_bytes;
            if all_read && !state.closed && self.sides[0].outbound.can_push() {
                let total_bytes = state.read;
                self.push_marker(
                    channel,
                    &Marker::HalfClose {
                        total_bytes,
                        digest: [0; 16],
                    },
                );
                self.channels[index].closed = true;
            }
        }
    }

    fn read_batch(&mut self, index: usize) -> bool {
        let channel = ChannelId(index as u16);
        let offset = self.channels[index].read;
        let outbound = &mut self.sides[0].outbound;
        let left = self.config.channel_bytes - offset;
        let most = outbound
            .may_read(channel)
            .min(BATCH_BYTES)
            .min(left as usize);
        if most == 0 || !outbound.can_push() {
            return false;
        }
        let raw_len = if self.random.one_in(4) {
            1 + self.random.below(most as u64)
        } else {
            most as u64
        };
        outbound.on_read(channel, raw_len as usize).unwrap();
        let version = if self.v3_allowed {
            Version::V3
        } else {
            Version::V1
        };
        let header = DataHeader {
            version,
            method: 0,
            flags: 0,
            channel,
            seq: outbound.next_seq(),
            offset,
            raw_len: raw_len as u32,
            digest: [0; 16],
        };
        let frame = encode(&self.sides[0].keys, &header);
        let meta = BatchMeta {
            channel,
            raw_len: header.raw_len,
            version,
            read_at: self.now,
        };
        let outbound = &mut self.sides[0].outbound;
        let seq = outbound.push(meta, frame, self.now).unwrap();
        self.retained.insert(seq, header);
        self.channels[index].read += raw_len;
        true
    }

    fn push_marker(&mut self, channel: ChannelId, marker: &Marker<'_>) {
        let side = &mut self.sides[0];
        let mut out = [0; MAX_MARKER_BYTES];
        let seq = side.outbound.next_seq();
        let n = seal_marker(&side.keys, seq, channel, marker, &mut out).unwrap();
        let (raw_len, version, read_at) = (0, Version::V1, self.now);
        let meta = BatchMeta {
            channel,
            raw_len,
            version,
            read_at,
        };
        side.outbound
            .push(meta, Arc::from(&out[..n]), self.now)
            .unwrap();
    }

    fn send(&mut self, from: usize) {
        loop {
            let lanes = &self.lanes;
            let (now, rate) = (self.now, self.config.lane_bytes_s);
            // What the pipe has not taken yet; a stalled one is full.
            let backlog = |lane: LaneIx| {
                let lane = &lanes[usize::from(lane.0)];
                let busy_ns = lane.pipes[from].free_at.since(now);
                (u128::from(busy_ns) * u128::from(rate) / 1_000_000_000) as usize
            };
            match self.sides[from]
                .outbound
                .poll_send(self.now, self.v3_allowed, backlog)
            {
                SendStep::Send(lane, frame) => {
                    let is_data = frame[0] == BatchKind::Data as u8;
                    let is_v3 = is_data && frame[1] == Version::V3 as u8;
                    self.end.left_v3_while_forbidden += u64::from(is_v3 && !self.v3_allowed);
                    self.put(from, lane, frame);
                }
                SendStep::NeedsTranscode(seq) => {
                    let header = self.retained.get_mut(&seq).unwrap();
                    header.version = Version::V1;
                    let frame = encode(&self.sides[from].keys, header);
                    self.sides[from]
                        .outbound
                        .replace(seq, Version::V1, frame)
                        .unwrap();
                    self.end.transcoded += 1;
                }
                SendStep::Idle => break,
            }
        }
        let now = self.now;
        let ping = self.sides[from]
            .outbound
            .ping_due(now)
            .map(ControlFrame::Ping);
        let ack = self.sides[from].inbound.ack_due(now).map(ControlFrame::Ack);
        for frame in [ping, ack].into_iter().flatten() {
            self.put_control(from, &frame);
        }
    }

    fn put_control(&mut self, from: usize, frame: &ControlFrame) {
        let side = &mut self.sides[from];
        let mut out = [0; MAX_CONTROL_BYTES];
        let n = side.sealer.seal(frame, &mut out);
        let lanes = &self.lanes;
        let backlog = |lane: LaneIx| lanes[usize::from(lane.0)].pipes[from].free_at.0 as usize;
        if let Some(lane) = side.outbound.control_lane(backlog) {
            self.put(from, lane, Arc::from(&out[..n]));
        }
    }

    fn put(&mut self, from: usize, lane: LaneIx, frame: Frame) {
        let lane = &mut self.lanes[usize::from(lane.0)];
        assert!(lane.up, "sent over a lane that is down");
        let pipe = &mut lane.pipes[from];
        let write_ns = frame.len() as u64 * 1_000_000_000 / self.config.lane_bytes_s;
        pipe.free_at = pipe.free_at.max(self.now).plus(write_ns);
        let jitter_ns = self.random.below(1 + self.config.delay_ns / 4);
        let arrives = pipe.free_at.plus(self.config.delay_ns + jitter_ns);
        let after = pipe.frames.back().map_or(Nanos(0), |(at, _)| *at);
        pipe.frames.push_back((arrives.max(after), frame));
    }

    fn receive(&mut self) {
        if self.is_gone() {
            return;
        }
        for to in 0..2 {
            let mut came = Vec::new();
            for lane in &mut self.lanes {
                if lane.stalled_until > self.now {
                    continue;
                }
                let pipe = &mut lane.pipes[1 - to];
                while let Some((_, frame)) = pipe.frames.pop_front_if(|(at, _)| *at <= self.now) {
                    came.push(frame);
                }
            }
            if to == 1 {
                let due = |(at, _): &mut (Nanos, Frame)| *at <= self.now;
                came.extend(self.repeats.extract_if(.., due).map(|(_, frame)| frame));
            }
            for frame in came {
                if to == 1 && self.has(Fault::Repeats) && self.random.one_in(20) {
                    let later = self.now.plus(self.random.below(1_000_000_000));
                    self.repeats.push((later, frame.clone()));
                }
                self.on_frame(to, frame);
            }
        }
    }

    fn on_frame(&mut self, to: usize, frame: Frame) {
        let now = self.now;
        let side = &mut self.sides[to];
        if FrameKind::peek(&frame).unwrap() == FrameKind::Control {
            match side.opener.open(&frame).unwrap() {
                Some(ControlFrame::Ack(ack)) => {
                    let retained = &mut self.retained;
                    let forget = |seq| {
                        if to == 0 {
                            retained.remove(&seq);
                        }
                    };
                    side.outbound.on_ack(&ack, now, forget).unwrap();
                }
                Some(ControlFrame::Ping(sent)) => {
                    side.outbound.heard(now);
                    side.inbound.note_ping(sent, now);
                    self.put_control(to, &ControlFrame::Pong(sent));
                }
                Some(ControlFrame::Pong(sent)) => side.outbound.on_pong(sent, now),
                Some(ControlFrame::Bye(_)) | None => {}
            }
            return;
        }
        side.outbound.heard(now);
        side.inbound.on_batch(frame).unwrap();
        while let Some(ready) = self.sides[to].inbound.pop_ready().unwrap() {
            let channel = ready.header.channel.0;
            let state = &mut self.channels[usize::from(channel)];
            match ready.header.kind {
                BatchKind::Open => {}
                BatchKind::Data => {
                    let payload = &ready.frame[BATCH_HEADER_BYTES..];
                    assert_eq!(ready.header.offset, state.handed_up);
                    // Every 61st byte: all of them would make the runs slow.
                    for (at, &byte) in payload.iter().enumerate().step_by(61) {
                        assert_eq!(byte, byte_at(channel, state.handed_up + at as u64));
                    }
                    state.handed_up += payload.len() as u64;
                    state.queued.push_back(payload.len() as u64);
                }
                BatchKind::HalfClose => state.close_seen = true,
                BatchKind::Abort => panic!("nobody aborts here"),
            }
        }
    }

    /// The far hypervisor takes what it likes.
    fn take(&mut self) {
        if self
            .config
            .blocked_until
            .is_some_and(|until| self.now < until)
        {
            self.last_progress = self.now;
            return;
        }
        let all = self.config.channel_bytes;
        for index in 0..self.channels.len() {
            let waits = self.config.barrier
                && index == 0
                && self.channels[1..].iter().any(|state| state.taken < all);
            let slow = index == 1 && !self.random.one_in(3);
            if waits || slow {
                continue;
            }
            let state = &mut self.channels[index];
            while let Some(bytes) = state.queued.pop_front() {
                state.taken += bytes;
                self.end.delivered_bytes += bytes;
                self.last_progress = self.now;
                let channel = ChannelId(index as u16);
                self.sides[1]
                    .inbound
                    .note_delivered(channel, bytes)
                    .unwrap();
            }
        }
        let all_taken = |state: &SimChannel| state.taken == all && state.close_seen;
        self.end.finished = self.channels.iter().all(all_taken);
    }

    fn check_health(&mut self, side: usize) {
        while let Some(verdict) = self.sides[side].outbound.poll_health(self.now) {
            match verdict {
                Verdict::Suspect(lane) => {
                    self.end.suspects += 1;
                    let comes_back_ns = 3 * self.config.delay_ns;
                    self.cut(usize::from(lane.0), comes_back_ns);
                }
                Verdict::Redial => {
                    self.end.redials += 1;
                    for lane in 0..self.lanes.len() {
                        if self.lanes[lane].up {
                            self.cut(lane, 3 * self.config.delay_ns);
                        }
                    }
                }
                Verdict::Expired => self.end.expired = true,
            }
        }
    }

    fn check_invariants(&mut self) {
        let held = self.sides[0].outbound.held_bytes();
        assert!(held <= self.end.limit_bytes, "{held} held");
        let there = self.sides[1].inbound.held_bytes();
        assert!(there <= held, "{there} held there, {held} known here");
        self.end.largest_held_bytes = self.end.largest_held_bytes.max(held);
        assert!(self.sides[0].outbound.in_flight() <= MAX_IN_FLIGHT);
        let still_ns = self.now.since(self.last_progress);
        assert!(
            still_ns < WATCHDOG_NS,
            "deadlock at {:?}: held {held}, window {}, gap {:?}, lanes up {}",
            self.now,
            self.sides[0].outbound.window_bytes(),
            self.sides[1].inbound.gap(),
            self.sides[0].outbound.lanes_up(),
        );
    }
}

fn encode(keys: &FrameKeys, header: &DataHeader) -> Frame {
    let mut frame = vec![0; BATCH_HEADER_BYTES + header.raw_len as usize];
    for (at, byte) in frame[BATCH_HEADER_BYTES..]
        .iter_mut()
        .enumerate()
        .step_by(61)
    {
        *byte = byte_at(header.channel.0, header.offset + at as u64);
    }
    seal_data(keys, header, &mut frame).unwrap();
    frame.into()
}
