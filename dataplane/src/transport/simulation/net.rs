//! The lanes of a world: connections with a rate and a delay, which stall, are cut, and come back.
//!
//! In: frames put on a lane, what befalls lanes, the time. Out: frames in each lane's order, and
//! what each end learns of its lanes. Promise: a lane carries its frames in order and whole, as a
//! driver does; what is on a connection when it is lost is lost with it; one end may take a lost
//! connection for a living one for as long as nobody tells it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::{FrameHandle, LaneIx, Nanos};
use super::plan::{DESTINATION, Plan, SECOND, SOURCE};
use super::random::Random;

/// What the socket of a lane that does not move takes before it shows.
const SOCKET_BYTES: u64 = 64 << 10;

/// A frame, and the bytes that it would have on the wire.
#[derive(Debug, Clone)]
pub struct SimFrame {
    pub bytes: Arc<[u8]>,
    pub wire_bytes: u64,
}

impl SimFrame {
    /// A frame that is on the wire what it is here.
    pub fn whole(bytes: &[u8]) -> Self {
        Self {
            bytes: Arc::from(bytes),
            wire_bytes: bytes.len() as u64,
        }
    }
}

impl FrameHandle for SimFrame {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What one end learns of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Up(usize, LaneIx),
    Down(usize, LaneIx),
}

#[derive(Default)]
struct Pipe {
    free_at: Nanos,
    frames: VecDeque<(Nanos, SimFrame)>,
    stalled_until: Nanos,
    /// Put on it while it did not move.
    stuck_bytes: u64,
}

/// Pairs are by side; `pipes` by the side that sends.
#[derive(Default)]
struct Connection {
    open: [bool; 2],
    lost: bool,
    pipes: [Pipe; 2],
    notice_at: [Option<Nanos>; 2],
}

/// What the source knows of a lane; it alone dials.
#[derive(Clone, Copy)]
enum Slot {
    Down { dial_at: Nanos },
    Dialling { done_at: Nanos },
    Rising { at: Nanos },
    Up,
}

struct Lane {
    slot: Slot,
    connection: Connection,
    bytes_s: u64,
    extra_delay_ns: u64,
    dead_until: Nanos,
}

/// See the module.
pub struct Net {
    lanes: Vec<Lane>,
    gone_until: Nanos,
    delay_ns: u64,
    jitter_ns: u64,
}

impl Net {
    /// Nothing is dialled yet.
    pub fn new(plan: &Plan) -> Self {
        let lane = |index: u16| {
            let slower = match index + 1 == plan.lanes && index > 0 {
                true => plan.last_lane_slower,
                false => 1,
            };
            Lane {
                slot: Slot::Down { dial_at: Nanos(0) },
                connection: Connection::default(),
                bytes_s: plan.lane_bytes_s / slower,
                extra_delay_ns: plan.skew_ns * u64::from(index),
                dead_until: Nanos(0),
            }
        };
        Self {
            lanes: (0..plan.lanes).map(lane).collect(),
            gone_until: Nanos(0),
            delay_ns: plan.delay_ns,
            jitter_ns: plan.jitter_ns,
        }
    }

    pub fn is_gone(&self, now: Nanos) -> bool {
        now < self.gone_until
    }

    /// Dials what is down of the first `wanted` lanes.
    pub fn dial_missing(&mut self, wanted: u16, now: Nanos) {
        let dial_ns = 3 * self.delay_ns;
        for lane in self.lanes.iter_mut().take(usize::from(wanted)) {
            if matches!(lane.slot, Slot::Down { dial_at } if dial_at <= now) {
                let done_at = now.plus(dial_ns);
                lane.slot = Slot::Dialling { done_at };
            }
        }
    }

    /// Lets time pass for dials and for what ends have yet to learn.
    pub fn advance(&mut self, now: Nanos, random: &mut Random, changes: &mut Vec<Change>) {
        let gone_until = self.gone_until;
        let delay_ns = self.delay_ns;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let ix = LaneIx(index as u16);
            for side in [SOURCE, DESTINATION] {
                let due = lane.connection.notice_at[side].is_some_and(|at| at <= now);
                if !due {
                    continue;
                }
                lane.connection.notice_at[side] = None;
                let was_open = std::mem::take(&mut lane.connection.open[side]);
                lane.connection.pipes[1 - side].frames.clear();
                if side == SOURCE && (was_open || matches!(lane.slot, Slot::Rising { .. })) {
                    lane.slot = Slot::Down { dial_at: now };
                }
                if was_open {
                    changes.push(Change::Down(side, ix));
                }
            }
            let blocked_until = gone_until.max(lane.dead_until);
            // A dial into the void is tried again about every second.
            let mut again = || Slot::Dialling {
                done_at: blocked_until.plus(random.below(SECOND) + 3 * delay_ns),
            };
            match lane.slot {
                Slot::Dialling { done_at } if done_at <= now && now < blocked_until => {
                    lane.slot = again();
                }
                Slot::Dialling { done_at } if done_at <= now => {
                    if lane.connection.open[DESTINATION] {
                        changes.push(Change::Down(DESTINATION, ix));
                    }
                    lane.connection = Connection::default();
                    lane.connection.open[DESTINATION] = true;
                    changes.push(Change::Up(DESTINATION, ix));
                    let at = now.plus(delay_ns);
                    lane.slot = Slot::Rising { at };
                }
                Slot::Rising { at } if at <= now && now < gone_until => lane.slot = again(),
                Slot::Rising { at } if at <= now => {
                    lane.connection.open[SOURCE] = true;
                    lane.slot = Slot::Up;
                    changes.push(Change::Up(SOURCE, ix));
                }
                _ => {}
            }
        }
    }

    /// Is `lane` up in the eyes of `side`?
    pub fn is_open(&self, side: usize, lane: LaneIx) -> bool {
        self.lanes[usize::from(lane.0)].connection.open[side]
    }

    /// The source closes a lane. What it wrote before may still arrive.
    pub fn close_by_source(&mut self, lane: LaneIx, now: Nanos, random: &mut Random) {
        let is_gone = self.is_gone(now);
        let delay_ns = self.delay_ns;
        let lane = &mut self.lanes[usize::from(lane.0)];
        lane.slot = Slot::Down { dial_at: now };
        let connection = &mut lane.connection;
        connection.open[SOURCE] = false;
        connection.pipes[DESTINATION].frames.clear();
        let sent = &mut connection.pipes[SOURCE];
        if random.percent(50) {
            sent.frames.clear();
        }
        if !connection.lost && !is_gone && sent.stalled_until <= now {
            let last_at = sent.frames.back().map_or(now, |(at, _)| *at);
            let at = last_at.max(now.plus(delay_ns)).plus(1);
            connection.notice_at[DESTINATION] = Some(at);
        }
        connection.lost = true;
    }

    /// See [`super::plan::Event::CutLane`].
    pub fn cut_lane(
        &mut self,
        lane: LaneIx,
        noticed_after_ns: [Option<u64>; 2],
        dead_for_ns: u64,
        now: Nanos,
    ) {
        let lane = &mut self.lanes[usize::from(lane.0)];
        lane.dead_until = lane.dead_until.max(now.plus(dead_for_ns));
        lose(&mut lane.connection);
        lane.connection.notice_at = noticed_after_ns.map(|after| after.map(|ns| now.plus(ns)));
    }

    /// See [`super::plan::Event::StallLane`].
    pub fn stall_lane(&mut self, lane: LaneIx, from_side: usize, for_ns: u64, now: Nanos) {
        let pipe = &mut self.lanes[usize::from(lane.0)].connection.pipes[from_side];
        pipe.stalled_until = now.plus(for_ns);
    }

    /// See [`super::plan::Event::CutLink`].
    pub fn cut_link(&mut self, for_ns: u64, resets: bool, now: Nanos) {
        self.gone_until = now.plus(for_ns);
        for lane in &mut self.lanes {
            if resets {
                lose(&mut lane.connection);
            }
        }
    }

    /// See [`super::plan::Event::FallBack`].
    pub fn fall_back(&mut self, delay_ns: u64, lane_bytes_s: u64, now: Nanos) {
        self.delay_ns = delay_ns;
        for lane in &mut self.lanes {
            lose(&mut lane.connection);
            lane.connection.notice_at = [Some(now), Some(now.plus(delay_ns))];
            lane.bytes_s = lane_bytes_s;
            lane.extra_delay_ns = 0;
        }
    }

    /// Puts a frame on a lane that `from` holds for open; false when it is not.
    pub fn put(
        &mut self,
        from: usize,
        lane: LaneIx,
        frame: SimFrame,
        now: Nanos,
        random: &mut Random,
    ) -> bool {
        let is_gone = self.is_gone(now);
        let base_ns = self.delay_ns;
        let jitter_ns = random.below(1 + self.jitter_ns);
        let lane = &mut self.lanes[usize::from(lane.0)];
        if !lane.connection.open[from] {
            return false;
        }
        let lost = lane.connection.lost;
        let pipe = &mut lane.connection.pipes[from];
        pipe.stuck_bytes = match lost || is_gone || now < pipe.stalled_until {
            true => pipe.stuck_bytes + frame.wire_bytes,
            false => 0,
        };
        let write_ns = frame.wire_bytes * SECOND / lane.bytes_s;
        pipe.free_at = pipe.free_at.max(now).plus(write_ns);
        let delay_ns = base_ns + lane.extra_delay_ns + jitter_ns;
        let after = pipe.frames.back().map_or(Nanos(0), |(at, _)| *at);
        let arrives = pipe.free_at.plus(delay_ns).max(after);
        if !lost {
            pipe.frames.push_back((arrives, frame));
        }
        true
    }

    /// What a lane has not written yet.
    pub fn backlog_bytes(&self, from: usize, lane: LaneIx, now: Nanos) -> usize {
        let lane = &self.lanes[usize::from(lane.0)];
        let pipe = &lane.connection.pipes[from];
        let busy_ns = u128::from(pipe.free_at.since(now));
        let unwritten = (busy_ns * u128::from(lane.bytes_s) / u128::from(SECOND)) as u64;
        let stuck = match lane.connection.lost || self.is_gone(now) || now < pipe.stalled_until {
            true => pipe.stuck_bytes.saturating_sub(SOCKET_BYTES),
            false => 0,
        };
        unwritten.max(stuck) as usize
    }

    /// When a lane that is full now has room again.
    pub fn room_at(&self, from: usize, limit_bytes: usize, now: Nanos) -> Option<Nanos> {
        let open = self.lanes.iter().filter(|lane| lane.connection.open[from]);
        open.map(|lane| {
            let pipe = &lane.connection.pipes[from];
            let still_ns = limit_bytes as u64 * SECOND / lane.bytes_s;
            let written_at = Nanos(pipe.free_at.0.saturating_sub(still_ns)).plus(1);
            match lane.connection.lost {
                true if pipe.stuck_bytes > SOCKET_BYTES => Nanos(u64::MAX),
                _ if pipe.stuck_bytes > SOCKET_BYTES => {
                    let moves_at = pipe.stalled_until.max(self.gone_until);
                    moves_at.max(written_at)
                }
                _ => written_at,
            }
        })
        .filter(|at| *at > now)
        .min()
    }

    /// Takes what has arrived at `to`; lanes are asked in any order.
    pub fn arrived(&mut self, to: usize, now: Nanos, random: &mut Random, out: &mut Vec<SimFrame>) {
        if self.is_gone(now) {
            return;
        }
        let count = self.lanes.len();
        let first = random.below(count as u64) as usize;
        for step in 0..count {
            let connection = &mut self.lanes[(first + step) % count].connection;
            let pipe = &mut connection.pipes[1 - to];
            if !connection.open[to] || now < pipe.stalled_until {
                continue;
            }
            while let Some((_, frame)) = pipe.frames.pop_front_if(|(at, _)| *at <= now) {
                out.push(frame);
            }
        }
    }

    /// The next moment at which anything here changes.
    pub fn next_at(&self) -> Option<Nanos> {
        self.lanes
            .iter()
            .filter_map(|lane| self.lane_at(lane))
            .min()
    }

    fn lane_at(&self, lane: &Lane) -> Option<Nanos> {
        let slot_at = match lane.slot {
            Slot::Dialling { done_at } => Some(done_at),
            Slot::Rising { at } => Some(at),
            // The check of the lanes dials.
            Slot::Down { .. } | Slot::Up => None,
        };
        let [a, b] = lane.connection.notice_at;
        let head = |to: usize| {
            let pipe = &lane.connection.pipes[1 - to];
            let (at, _) = pipe.frames.front()?;
            let open = lane.connection.open[to];
            open.then(|| (*at).max(pipe.stalled_until).max(self.gone_until))
        };
        let moments = [slot_at, a, b, head(SOURCE), head(DESTINATION)];
        moments.into_iter().flatten().min()
    }
}

/// Nobody notices yet.
fn lose(connection: &mut Connection) {
    connection.lost = true;
    for pipe in &mut connection.pipes {
        pipe.frames.clear();
    }
}
