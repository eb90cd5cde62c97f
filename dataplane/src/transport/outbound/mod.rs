//! The sending end of one direction: sequence, lanes, resending, window.
//!
//! In: encoded batches in sequence, ACKs and PONGs, lanes that come and go, the time. Out: frames
//! with the lane to write each to, the bytes that may be read from the hypervisor, verdicts on
//! lanes and the link. Promise: every batch pushed stays here until the peer has it and goes out
//! again, express batches first and then the oldest, when its lane is lost or suspect; while `allow_v3` is false no v3 batch
//! is handed out, not even again; at most 256 batches are in flight.

mod again;
pub mod credit;
mod express;
pub mod far;
mod figures;
mod hedge;
pub mod lanes;
mod reserved;
pub mod silence;
mod step;
mod tuning;
pub mod window;

use super::wire::control::Ack;
use super::{
    BatchSeq, ChannelId, FrameHandle, LaneIx, MAX_IN_FLIGHT, Nanos, TransportError, Version,
};
use credit::Credit;
use far::FarPath;
use hedge::Hedges;
use lanes::{Lanes, SmoothedRtt};
use silence::Silence;
pub use step::{SendStep, Verdict};
use window::Window;

/// Pause between PINGs. Each is also answered by an ACK, so a lost ACK costs no longer than this; and while
/// nothing else flows they alone tell the path's round trip.
const PING_EVERY_NS: u64 = 100_000_000;
/// A batch this much older than one acknowledged since marks its lane as stalled.
const SUSPECT_AFTER_NS: u64 = 1_000_000_000;
/// The same while no batch was ever answered and the younger frame is only a PING: how long a
/// lane takes for a whole batch is not known yet, and a PING overtakes bulk on an idle lane.
const SUSPECT_BY_PING_NS: u64 = 3_000_000_000;

/// What the handshake and the operator fixed for this direction.
#[derive(Debug, Clone, Copy)]
pub struct OutboundConfig {
    /// Lanes that may ever exist.
    pub lanes_max: usize,
    /// Lanes in use at first; see [`Outbound::set_active_lanes`].
    pub lanes_active: usize,
    /// A lane with this backlog takes no more. Small, for what lies in a lane cannot be taken back
    /// when the lane stalls or the version changes.
    pub lane_backlog_limit_bytes: usize,
    /// The window never goes below; 1 MiB keeps a local link full.
    pub window_floor_bytes: u64,
    /// The negotiated window.
    pub window_limit_bytes: u64,
    /// Silence after which the session is given up.
    pub resume_limit_ns: u64,
}

impl OutboundConfig {
    /// The product's defaults for a negotiated window and number of lanes.
    #[must_use]
    pub fn new(window_limit_bytes: u64, lanes_max: usize, lanes_active: usize) -> Self {
        Self {
            lanes_max,
            lanes_active,
            lane_backlog_limit_bytes: 512 * 1024,
            window_floor_bytes: 1 << 20,
            window_limit_bytes,
            resume_limit_ns: 30_000_000_000,
        }
    }
}

/// What the queue must know of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMeta {
    /// Its channel.
    pub channel: ChannelId,
    /// Decoded bytes; 0 for markers.
    pub raw_len: u32,
    /// The format of its payload; [`Version::V1`] for markers.
    pub version: Version,
    /// When its first byte was read from the hypervisor: the window must cover encoding too.
    pub read_at: Nanos,
    /// It goes before all that waits, and the far end need not wait for what is in front of it.
    pub express: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    /// Its frame is being made: see [`Outbound::reserve`].
    Reserved,
    Queued,
    InFlight(LaneIx),
    Received,
}

#[derive(Debug)]
struct Slot<F> {
    state: State,
    frame: Option<F>,
    meta: BatchMeta,
    sent_at: Nanos,
    times_sent: u32,
    /// Of the frame as it was last sent, and as it first was.
    wire_bytes: u64,
    first_wire_bytes: u64,
    /// The lane of a second copy, while the first is in flight.
    hedge: Option<LaneIx>,
}

/// See the module.
#[derive(Debug)]
pub struct Outbound<F> {
    config: OutboundConfig,
    slots: Box<[Slot<F>]>,
    /// Oldest batch that the peer has not confirmed in sequence.
    base: BatchSeq,
    next: BatchSeq,
    /// No slot before this is queued: where the search for the oldest begins.
    first_queued: BatchSeq,
    /// Express batches that wait for a lane: none as a rule, and then nobody looks for them.
    express_queued: usize,
    /// Batches whose frames are being made.
    reserved: usize,
    lanes: Lanes,
    credit: Credit,
    window: Window,
    far: FarPath,
    hedges: Hedges,
    /// See [`Self::open_reserve`].
    reserve_bytes: u64,
    batch_rtt: SmoothedRtt,
    ping_rtt: SmoothedRtt,
    /// When the youngest batch known to have come was sent, and the same for PINGs.
    newest_batch_sent: Option<Nanos>,
    newest_ping_sent: Option<Nanos>,
    silence: Silence,
    last_ping: Option<Nanos>,
    expired: bool,
    delivered_bytes: u64,
    resent_batches: u64,
}

impl<F: FrameHandle> Outbound<F> {
    /// All memory that it will ever use is taken here.
    #[must_use]
    pub fn new(config: OutboundConfig, now: Nanos) -> Self {
        let meta = BatchMeta {
            channel: ChannelId(0),
            raw_len: 0,
            version: Version::V1,
            read_at: now,
            express: false,
        };
        let slot = || Slot {
            state: State::Empty,
            frame: None,
            meta,
            sent_at: now,
            times_sent: 0,
            wire_bytes: 0,
            first_wire_bytes: 0,
            hedge: None,
        };
        Self {
            slots: (0..MAX_IN_FLIGHT).map(|_| slot()).collect(),
            base: BatchSeq(0),
            next: BatchSeq(0),
            first_queued: BatchSeq(0),
            express_queued: 0,
            reserved: 0,
            lanes: Lanes::new(config.lanes_max, config.lanes_active),
            credit: Credit::new(),
            window: Window::new(config.window_floor_bytes, config.window_limit_bytes, now),
            far: FarPath::new(config.window_floor_bytes, config.window_limit_bytes, now),
            hedges: Hedges::default(),
            reserve_bytes: 0,
            batch_rtt: SmoothedRtt::default(),
            ping_rtt: SmoothedRtt::default(),
            newest_batch_sent: None,
            newest_ping_sent: None,
            silence: Silence::new(now),
            last_ping: None,
            expired: false,
            delivered_bytes: 0,
            resent_batches: 0,
            config,
        }
    }

    /// Opens `channel` for reading from the hypervisor.
    ///
    /// # Errors
    /// See [`Credit::open_channel`].
    pub fn open_channel(&mut self, channel: ChannelId) -> Result<(), TransportError> {
        self.credit.open_channel(channel)
    }

    /// Bytes that may be read from the hypervisor's `channel` now.
    #[must_use]
    pub fn may_read(&self, channel: ChannelId) -> usize {
        let bytes = self.credit.may_read(channel, self.window_bytes());
        let beyond = self
            .credit
            .may_read(channel, self.config.window_limit_bytes)
            .min(self.reserve_bytes);
        usize::try_from(bytes.max(beyond)).unwrap_or(usize::MAX)
    }

    /// So many bytes may be read beyond what the window allows now, once, within the negotiated limit:
    /// for a batch that must not wait until the far hypervisor takes what it has.
    pub const fn open_reserve(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    /// `bytes` were read from the hypervisor's `channel`.
    ///
    /// # Errors
    /// [`TransportError::CreditExceeded`] when [`Self::may_read`] allowed less.
    pub fn on_read(&mut self, channel: ChannelId, bytes: usize) -> Result<(), TransportError> {
        let bytes = bytes as u64;
        let mut window = self.window_bytes();
        let allowed = self.credit.may_read(channel, window);
        if bytes > allowed && self.reserve_bytes >= bytes {
            window = self.config.window_limit_bytes;
            self.reserve_bytes = 0;
        }
        self.credit.on_read(channel, bytes, window)
    }

    /// Bytes of `channel` that the far hypervisor is known to have taken.
    #[must_use]
    pub fn delivered_bytes(&self, channel: ChannelId) -> u64 {
        self.credit.delivered_bytes(channel)
    }

    /// Is there room for another batch in flight?
    #[must_use]
    pub fn can_push(&self) -> bool {
        self.in_flight() < MAX_IN_FLIGHT
    }

    /// The sequence number that the next push gets; batches are sealed with it before.
    #[must_use]
    pub fn next_seq(&self) -> BatchSeq {
        self.next
    }

    /// Takes the batch sealed as [`Self::next_seq`].
    ///
    /// # Errors
    /// [`TransportError::InFlightFull`] unless [`Self::can_push`].
    pub fn push(
        &mut self,
        meta: BatchMeta,
        frame: F,
        now: Nanos,
    ) -> Result<BatchSeq, TransportError> {
        let seq = self.place(meta, now)?;
        let slot = &mut self.slots[slot_of(seq)];
        slot.state = State::Queued;
        slot.frame = Some(frame);
        self.express_queued += usize::from(meta.express);
        Ok(seq)
    }

    /// The next frame and its lane: oldest first, resent or new. `backlog_bytes` tells what a lane
    /// has not yet written.
    pub fn poll_send(
        &mut self,
        now: Nanos,
        allow_v3: bool,
        mut backlog_bytes: impl FnMut(LaneIx) -> usize,
    ) -> SendStep<F> {
        if self.expired {
            return SendStep::Idle;
        }
        let Some(seq) = self.oldest_express().or_else(|| self.oldest_queued()) else {
            return self.hedge(now, allow_v3, &mut backlog_bytes);
        };
        let slot = &mut self.slots[slot_of(seq)];
        if !allow_v3 && slot.meta.version == Version::V3 {
            return SendStep::NeedsTranscode(seq);
        }
        if slot.times_sent == 0 && !slot.meta.express && !self.far.may_send() {
            return SendStep::Idle;
        }
        let limit_bytes = self.config.lane_backlog_limit_bytes;
        let chosen = if slot.meta.express {
            self.lanes.choose_for_express(&mut backlog_bytes)
        } else if self.far.is_far() {
            // The network below takes far more than a lane's backlog shows: what the peer has not got yet
            // tells a slow lane from a fast one.
            self.lanes.choose_emptiest(limit_bytes, &mut backlog_bytes)
        } else {
            self.lanes.choose(limit_bytes, &mut backlog_bytes)
        };
        let (Some(frame), Some(lane)) = (slot.frame.clone(), chosen) else {
            return SendStep::Idle;
        };
        slot.state = State::InFlight(lane);
        self.express_queued -= usize::from(slot.meta.express);
        slot.sent_at = now;
        slot.wire_bytes = frame.bytes().len() as u64;
        self.lanes.add_on_the_way(lane, slot.wire_bytes);
        if slot.times_sent == 0 {
            slot.first_wire_bytes = slot.wire_bytes;
            self.far.on_sent(slot.wire_bytes, now);
        } else {
            self.resent_batches += 1;
        }
        slot.times_sent = slot.times_sent.saturating_add(1);
        SendStep::Send(lane, frame)
    }

    /// The lane would not take the frame that [`Self::poll_send`] just gave for it: the batch waits
    /// again.
    pub fn take_back(&mut self, seq: BatchSeq) {
        if self.drop_hedge(seq) {
            // The first copy is where it was.
            return;
        }
        let slot = &mut self.slots[slot_of(seq)];
        if let State::InFlight(lane) = slot.state
            && (self.base..self.next).contains(&seq)
        {
            slot.state = State::Queued;
            self.lanes.take_off_the_way(lane, slot.wire_bytes);
            slot.times_sent = slot.times_sent.saturating_sub(1);
            self.express_queued += usize::from(slot.meta.express);
            if slot.times_sent == 0 {
                self.far.on_taken_back(slot.first_wire_bytes);
            }
            self.first_queued = self.first_queued.min(seq);
        }
    }

    fn oldest_queued(&mut self) -> Option<BatchSeq> {
        let mut seq = self.first_queued.max(self.base);
        while seq < self.next && self.slots[slot_of(seq)].state != State::Queued {
            seq = seq.next();
        }
        self.first_queued = seq;
        (seq < self.next).then_some(seq)
    }

    /// The lane for a control frame: the one that will write it soonest. Lanes with a full backlog
    /// are taken too, for ACKs must flow.
    pub fn control_lane(
        &mut self,
        mut backlog_bytes: impl FnMut(LaneIx) -> usize,
    ) -> Option<LaneIx> {
        self.lanes.choose_for_control(&mut backlog_bytes)
    }

    /// Takes an ACK. `received` is told of each batch that the peer now has, once: the raw bytes
    /// kept for transcoding it may go.
    ///
    /// # Errors
    /// [`TransportError::BadAck`] for what cannot be true; the session must end.
    pub fn on_ack(
        &mut self,
        ack: &Ack,
        now: Nanos,
        mut received: impl FnMut(BatchSeq),
    ) -> Result<(), TransportError> {
        self.check_ack(ack)?;
        self.heard(now);
        let old_base = self.base;
        for seq in old_base.0..ack.next_seq.0 {
            self.on_received(BatchSeq(seq), now, &mut received);
            let slot = &mut self.slots[slot_of(BatchSeq(seq))];
            slot.state = State::Empty;
            self.far.on_confirmed(u64::from(slot.meta.raw_len));
        }
        self.base = ack.next_seq;
        for ahead in 0..self.in_flight() {
            if ack.sack.get(ahead) {
                self.on_received(BatchSeq(self.base.0 + ahead as u64), now, &mut received);
            }
        }
        for &(channel, total_bytes) in &ack.delivered {
            self.credit.on_delivered(channel, total_bytes)?;
        }
        self.delivered_bytes = ack.total_delivered_bytes;
        self.window.on_delivered(ack.total_delivered_bytes, now);
        self.far.on_ack(ack.total_delivered_bytes, now);
        if let Some(sent) = ack.echo {
            let answered = Nanos(now.0.saturating_sub(ack.echo_held_ns));
            self.on_echo(sent, answered, now);
        }
        Ok(())
    }

    fn check_ack(&self, ack: &Ack) -> Result<(), TransportError> {
        let past_end = ack
            .sack
            .highest()
            .is_some_and(|ahead| ack.next_seq.0.saturating_add(ahead as u64) >= self.next.0);
        let what = if ack.next_seq < self.base {
            "it takes back what an earlier one confirmed"
        } else if ack.next_seq > self.next || past_end {
            "it confirms batches that were never sent"
        } else if ack.total_delivered_bytes < self.delivered_bytes {
            "it takes back deliveries"
        } else if ack.total_delivered_bytes > self.credit.read_bytes() {
            "it confirms deliveries of bytes that were never read"
        } else {
            return Ok(());
        };
        Err(TransportError::BadAck { what })
    }

    fn on_received(&mut self, seq: BatchSeq, now: Nanos, received: &mut impl FnMut(BatchSeq)) {
        let slot = &mut self.slots[slot_of(seq)];
        if matches!(slot.state, State::Empty | State::Reserved | State::Received) {
            return;
        }
        // A batch sent twice does not tell which one was answered (Karn).
        if slot.times_sent == 1 {
            if let State::InFlight(lane) = slot.state {
                let in_time = now.since(slot.sent_at) <= SUSPECT_AFTER_NS;
                self.lanes.answered(lane, in_time);
            }
            self.batch_rtt.sample(slot.sent_at, now);
            self.newest_batch_sent = self.newest_batch_sent.max(Some(slot.sent_at));
        }
        if let State::InFlight(lane) = slot.state {
            self.lanes.take_off_the_way(lane, slot.wire_bytes);
        }
        self.drop_hedge(seq);
        let slot = &mut self.slots[slot_of(seq)];
        // Its first copy arrived after all, while it waited to go out again.
        self.express_queued -= usize::from(slot.meta.express && slot.state == State::Queued);
        slot.state = State::Received;
        slot.frame = None;
        if slot.times_sent > 0 {
            self.far.on_received(slot.first_wire_bytes);
        }
        self.silence.answered(now);
        received(seq);
    }

    /// Takes a PONG.
    pub fn on_pong(&mut self, sent: Nanos, now: Nanos) {
        self.heard(now);
        self.on_echo(sent, now, now);
    }

    fn on_echo(&mut self, sent: Nanos, answered: Nanos, now: Nanos) {
        // A moment that was never in a PING of ours proves nothing.
        if Some(sent) <= self.newest_ping_sent || Some(sent) > self.last_ping || sent > now {
            return;
        }
        self.newest_ping_sent = Some(sent);
        self.silence.answered(now);
        self.ping_rtt.sample(sent, answered);
    }

    /// The shortest round trip of a PING answered since this was last asked.
    pub const fn take_ping_ns(&mut self) -> Option<u64> {
        self.ping_rtt.take_least_ns()
    }

    /// Any verified frame of the session came, in either direction's sequence.
    pub fn heard(&mut self, now: Nanos) {
        self.silence.heard(now);
    }

    /// The timestamp to send in a PING, when one is due.
    pub fn ping_due(&mut self, now: Nanos) -> Option<Nanos> {
        if self
            .last_ping
            .is_some_and(|last| now.since(last) < PING_EVERY_NS)
        {
            return None;
        }
        self.last_ping = Some(now);
        Some(now)
    }

    /// The lane was joined (again) and may be written to.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] for a lane number out of range.
    pub fn lane_up(&mut self, lane: LaneIx) -> Result<(), TransportError> {
        // What the lane's earlier connection carried may be lost with it.
        self.requeue(lane);
        if self.lanes.up(lane) {
            return Ok(());
        }
        Err(TransportError::Misuse {
            what: "a lane came up that is out of range",
        })
    }

    /// The lane is gone; all that it may have lost goes out again over others.
    pub fn lane_down(&mut self, lane: LaneIx) {
        self.lanes.down(lane);
        self.requeue(lane);
    }

    fn requeue(&mut self, lane: LaneIx) {
        for seq in (self.base.0..self.next.0).rev().map(BatchSeq) {
            let slot = &mut self.slots[slot_of(seq)];
            if slot.hedge == Some(lane) {
                self.drop_hedge(seq);
            }
            let slot = &mut self.slots[slot_of(seq)];
            if slot.state == State::InFlight(lane) {
                self.drop_hedge(seq);
                let slot = &mut self.slots[slot_of(seq)];
                slot.state = State::Queued;
                self.lanes.take_off_the_way(lane, slot.wire_bytes);
                self.express_queued += usize::from(slot.meta.express);
                self.first_queued = self.first_queued.min(seq);
            }
        }
    }

    /// What needs the engine's hand. Call until `None`, a few times a second at least, after all
    /// frames that came were taken in.
    pub fn poll_health(&mut self, now: Nanos) -> Option<Verdict> {
        if self.expired {
            return None;
        }
        if self.silence.is_lost(self.config.resume_limit_ns, now) {
            self.expired = true;
            return Some(Verdict::Expired);
        }
        let waiting = self.base < self.next || self.last_ping > self.newest_ping_sent;
        let answer_ns = self.batch_rtt.ns().unwrap_or(0);
        if waiting && self.silence.redial_due(answer_ns, now) {
            return Some(Verdict::Redial);
        }
        self.find_stalled_lane()
    }

    fn find_stalled_lane(&mut self) -> Option<Verdict> {
        for seq in (self.base.0..self.next.0).map(BatchSeq) {
            let slot = &self.slots[slot_of(seq)];
            let State::InFlight(lane) = slot.state else {
                continue;
            };
            if self.lanes.count_up() < 2 {
                continue;
            }
            let patience = self.lanes.patience(lane);
            let least_ns = match self.batch_rtt.ns() {
                Some(mean_ns) => SUSPECT_AFTER_NS.max(mean_ns.saturating_mul(4)),
                None => SUSPECT_BY_PING_NS,
            };
            let answered = self.newest_batch_sent.max(self.newest_ping_sent);
            let late_ns = answered.map_or(0, |at| at.since(slot.sent_at));
            if late_ns <= least_ns.saturating_mul(patience) {
                continue;
            }
            if self.lanes.suspect(lane) {
                self.requeue(lane);
                return Some(Verdict::Suspect(lane));
            }
            if self.lanes.has_trusted() {
                // It was under suspicion already, and the last resort when this was sent.
                self.requeue(lane);
                return None;
            }
        }
        None
    }
}

fn slot_of(seq: BatchSeq) -> usize {
    (seq.0 % MAX_IN_FLIGHT as u64) as usize
}

#[cfg(test)]
mod tests;
