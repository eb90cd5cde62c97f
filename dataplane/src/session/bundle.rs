//! The lanes of a session: dialling them, spreading over them, replacing what stalls, and the control
//! frames that keep both ends informed.
//!
//! In: lanes from the door, events of the driver, the transport's verdicts. Out: frames on lanes, dial
//! orders. Promises: the source dials, the destination accepts; a lane that is replaced is closed first;
//! while v1 is forced no v3 batch is handed to a lane, not even one that was sent before.

use std::net::SocketAddr;

use dwcp_api::{Failure, Role, SessionState, Stage, Version as ApiVersion, monotonic_ns};
use dwcp_drivers::lane::{LaneClosed, LaneGroup, LaneId};

use super::link::{Link, LinkOptions};
use super::loss::Loss;
use super::{Fault, Hands, Session, encoding};
use crate::engine::drivers::{LaneEndpoint, endpoint};
use crate::engine::messages::{LaneUp, Peer};
use crate::engine::routes::Route;
use crate::transport::handshake::Way;
use crate::transport::outbound::{SendStep, Verdict};
use crate::transport::wire::batch::{BatchKind, parse_batch_layout};
use crate::transport::wire::control::{ByeReason, ControlFrame, MAX_CONTROL_BYTES};
use crate::transport::{LaneIx, Nanos, Version};

/// Frames handed to lanes in one turn, so that other sessions get theirs.
const SENDS_PER_TURN: usize = 64;
/// Pause before a lane is dialled again.
const REDIAL_NS: u64 = 250_000_000;
/// Lanes are looked at this often.
const CHECK_EVERY_NS: u64 = 20_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Down { dial_at_ns: u64 },
    Dialling { since_ns: u64 },
    Up(LaneId, Way),
}

/// A session's lanes.
pub struct Bundle {
    pub(super) peer: Option<Peer>,
    /// How often any of them was dialled.
    pub(super) dials: u32,
    pub(super) slots: Vec<Slot>,
    /// What the network below each lane had sent again when it was last asked, and who was asked last.
    pub(super) retransmits: Vec<u32>,
    asked: usize,
    loss: Loss,
    /// What each lane is paced to; 0: not.
    pub(super) paced: Vec<u64>,
    checked_ns: u64,
    /// How many lanes are in use, and since when so many.
    pub(super) used: Option<u16>,
    pub(super) used_since_ns: u64,
    /// What lanes are to run over; TCP from the first time that another driver fails.
    pub(super) way: Way,
    pub(super) fallback: bool,
    /// When all lanes were last dialled anew because nothing was heard; 0: never.
    pub(super) redialled_ns: u64,
}

impl Bundle {
    /// A driver other than TCP that a lane which is up runs over.
    pub(super) fn driver_in_use(&self) -> Option<Way> {
        self.slots.iter().find_map(|slot| match slot {
            Slot::Up(_, way) if *way != Way::Tcp => Some(*way),
            _ => None,
        })
    }

    /// No lanes yet. `peer` is whom to dial; none at the destination. Lanes are to run over `way`, or,
    /// where it does not carry and `fallback` allows it, over TCP.
    pub const fn new(peer: Option<Peer>, way: Way, fallback: bool) -> Self {
        Self {
            peer,
            dials: 0,
            slots: Vec::new(),
            retransmits: Vec::new(),
            asked: 0,
            loss: Loss::new(),
            paced: Vec::new(),
            checked_ns: 0,
            used: None,
            used_since_ns: 0,
            way,
            fallback,
            redialled_ns: 0,
        }
    }

    /// Lanes that are up.
    pub fn count_up(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Up(..)))
            .count()
    }

    /// Does it dial this peer for this passive target?
    pub fn dials(&self, peer: SocketAddr, target: &str) -> bool {
        self.peer
            .as_ref()
            .is_some_and(|known| known.address == peer && known.target.as_deref() == Some(target))
    }

    /// Dials another address from now on; says whether it is another, and nothing at an end that dials nobody.
    pub(super) fn redirect(&mut self, to: SocketAddr) -> Option<bool> {
        let peer = self.peer.as_mut()?;
        Some(std::mem::replace(&mut peer.address, to) != to)
    }

    fn lane_id(&self, lane: LaneIx) -> Option<LaneId> {
        match self.slots.get(usize::from(lane.0)) {
            Some(Slot::Up(id, _)) => Some(*id),
            _ => None,
        }
    }

    /// The lanes that are up.
    pub fn up(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Up(id, _) => Some(*id),
            _ => None,
        })
    }
}

impl Session {
    /// A lane proved itself at the door. The first one fixes what was agreed.
    pub fn on_lane_up<G: LaneGroup<Endpoint = LaneEndpoint>>(
        &mut self,
        lane_up: LaneUp,
        hands: &mut Hands<'_, G>,
    ) {
        if let Err(fault) = self.add_lane(lane_up, hands) {
            self.fail(&fault, hands);
        }
    }

    fn add_lane<G: LaneGroup<Endpoint = LaneEndpoint>>(
        &mut self,
        up: LaneUp,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        if self.is_over() {
            return Ok(());
        }
        let now = Nanos(hands.now_ns);
        let way = if self.is_source() {
            up.agreed.way.initiator
        } else {
            up.agreed.way.acceptor
        };
        if self.link.is_none() {
            let transport = hands.switches.read().amst;
            let lanes_active = match (up.agreed.version, transport) {
                (Version::V3, ApiVersion::V3) => up.agreed.params.lanes_v3,
                _ => up.agreed.params.lanes_v1,
            };
            let options = LinkOptions {
                is_source: self.is_source(),
                backing: self.backing,
                resume_limit_ns: self.resume_limit_ns,
                lanes_active,
                encoders: hands.encoders,
                worker: hands.worker,
            };
            let memory = self.memory.as_mut().ok_or_else(Fault::buffers)?;
            memory.settle(&options.size(&up.agreed.params))?;
            let link = Link::new(&up.agreed, &options, now)?;
            memory.note(&link);
            self.link = Some(link);
            self.picture.peer = dwcp_api::text::Text::clipped(&up.peer.to_string());
            self.sort_connections(hands);
        }
        let Some(link) = self.link.as_mut() else {
            return Ok(());
        };
        let index = usize::from(up.lane.0);
        if index >= usize::from(link.lanes_v1.max(link.lanes_v3)) {
            return Err(Fault::new(
                Failure::Protocol,
                "the peer opened a lane beyond those agreed",
            ));
        }
        self.bundle.ensure(index + 1);
        if let Slot::Up(old, _) = self.bundle.slots[index] {
            hands.routes.forget_lane(old);
            hands.lanes.close(old);
            link.outbound.lane_down(up.lane);
            self.picture.lanes_replaced += 1;
        }
        let end = endpoint(up.end, &up.agreed, self.role == Role::Source)
            .map_err(|error| Fault::new(Failure::System, error.to_string()))?;
        let id = match hands.lanes.add(end, &link.pools_in) {
            Ok(id) => id,
            // The peer closed it meanwhile, and dials again if it wants a lane.
            Err(error) if error.is_connection_lost() => {
                self.bundle.slots[index] = Slot::Down {
                    dial_at_ns: hands.now_ns + REDIAL_NS,
                };
                return Ok(());
            }
            Err(error) => {
                return Err(Fault::new(
                    Failure::System,
                    format!("a lane cannot be taken into service: {error}"),
                ));
            }
        };
        hands.routes.add_lane(
            id,
            Route {
                slot: self.slot,
                lane: up.lane,
            },
        );
        self.bundle.slots[index] = Slot::Up(id, way);
        self.picture.driver = way.code();
        self.bundle.retransmits[index] = 0;
        self.bundle.paced[index] = 0;
        link.outbound.lane_up(up.lane)?;
        link.outbound.heard(now);
        link.inbound.want_ack();
        if self.bundle.count_up() == 1 {
            // A batch that is cut before the path is known to be far would be in its lane for long.
            self.learn_delay(hands);
        }
        if matches!(
            self.state,
            SessionState::Waiting | SessionState::Reconnecting
        ) {
            let state = if self.destination_may_run {
                SessionState::Switchover
            } else if self.channels.is_empty() {
                SessionState::Waiting
            } else {
                SessionState::Active
            };
            self.set_state(state, Failure::None, "", hands);
        }
        Ok(())
    }

    /// A lane could not be made.
    pub fn on_lane_failed<G: LaneGroup>(
        &mut self,
        lane: LaneIx,
        over: Way,
        fault: &Fault,
        fatal: bool,
        hands: &mut Hands<'_, G>,
    ) {
        let index = usize::from(lane.0);
        if let Some(slot @ Slot::Dialling { .. }) = self.bundle.slots.get_mut(index) {
            *slot = Slot::Down {
                dial_at_ns: hands.now_ns + REDIAL_NS,
            };
        }
        if over != Way::Tcp {
            self.fall_back(over, &fault.detail);
        }
        // A peer that has proven the key cannot have lost it, nor become another: whoever says so now, cannot.
        let is_lie =
            matches!(fault.failure, Failure::WrongKey | Failure::WrongNode) && self.link.is_some();
        // A lane that comes too late for a peer that gave up is refused, which is not the reason.
        if fatal && !is_lie && !self.is_over() && !self.is_given_up() {
            self.fail(fault, hands);
        }
    }

    /// The driver lost a lane.
    pub fn on_lane_closed<G: LaneGroup>(
        &mut self,
        lane: LaneIx,
        id: LaneId,
        reason: LaneClosed,
        hands: &Hands<'_, G>,
    ) {
        let index = usize::from(lane.0);
        let way = match self.bundle.slots.get(index) {
            Some(Slot::Up(known, way)) if *known == id => *way,
            _ => return,
        };
        if way != Way::Tcp && reason != LaneClosed::Finished {
            self.fall_back(way, &reason.to_string());
        }
        self.bundle.slots[index] = Slot::Down {
            dial_at_ns: hands.now_ns,
        };
        if let Some(link) = self.link.as_mut() {
            link.outbound.lane_down(lane);
        }
        if !self.is_over() {
            self.picture.lanes_replaced += u64::from(self.is_source());
        }
    }

    /// Dials, sends, acknowledges. Says whether anything was sent.
    pub(super) fn pump_lanes<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<bool, Fault> {
        let stages = hands.stages;
        let _transport = stages.enter(Stage::Transport);
        let mut worked = self.probe_path(hands);
        worked |= self.send_batches(hands)?;
        worked |= self.send_control(hands);
        // An undecided session was given up: it waits for a verdict, not for its peer.
        if self.state == SessionState::Undecided {
            return Ok(worked);
        }
        if hands.now_ns.saturating_sub(self.bundle.checked_ns) >= CHECK_EVERY_NS {
            self.bundle.checked_ns = hands.now_ns;
            self.check_lanes(hands)?;
        }
        self.look_at_path(hands);
        Ok(worked)
    }

    fn send_batches<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> Result<bool, Fault> {
        let mut sent = 0;
        let view = hands.switches.read();
        self.note_switch(view);
        if let Some(link) = self.link.as_mut() {
            link.fit_lane_backlog();
        }
        while sent < SENDS_PER_TURN && self.may_send(hands) {
            let Some(link) = self.link.as_mut() else {
                return Ok(false);
            };
            let (bundle, lanes) = (&self.bundle, &*hands.lanes);
            let backlog = |lane| {
                bundle
                    .lane_id(lane)
                    .map_or(usize::MAX, |id| lanes.backlog_bytes(id))
            };
            match link
                .outbound
                .poll_send(Nanos(monotonic_ns()), !view.forced_v1, backlog)
            {
                SendStep::Idle => break,
                SendStep::NeedsTranscode(seq) => encoding::transcode(link, seq)?,
                SendStep::Send(lane, frame) => {
                    let bytes = frame.bytes().len() as u64;
                    let header = parse_batch_layout(frame.bytes())?.header;
                    let Some(id) = self.bundle.lane_id(lane) else {
                        break;
                    };
                    let taken = {
                        let _lanes = hands.stages.enter(Stage::Lanes);
                        hands.lanes.submit(id, frame)
                    };
                    if taken.is_err() {
                        // The lane is full or just died: what it was given goes out again.
                        link.outbound.take_back(header.seq);
                        break;
                    }
                    sent += 1;
                    self.spend(bytes, hands);
                    self.picture.wire_bytes_sent += bytes;
                    hands.counters.wire_bytes_sent_total.add(bytes);
                    hands.counters.frames_sent_total.add(1);
                    if header.kind == BatchKind::Data {
                        self.note_sent(header.version, hands);
                    }
                }
            }
        }
        self.look_at_share(hands);
        if let Some(link) = self.link.as_mut() {
            let waiting = link.outbound.has_queued() || link.outbound.is_path_full();
            link.wire_rate
                .look(hands.now_ns, self.picture.wire_bytes_sent, waiting);
            let resent = link.outbound.resent_batches();
            let counted = std::mem::replace(&mut self.picture.batches_resent, resent);
            hands.counters.batches_resent_total.add(resent - counted);
            let held = link.outbound.held_bytes();
            self.picture.held_bytes_max = self.picture.held_bytes_max.max(held);
        }
        Ok(sent > 0)
    }

    pub(super) fn send_control<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> bool {
        let now = Nanos(hands.now_ns);
        let Some(link) = self.link.as_mut() else {
            return false;
        };
        let pong = self.pong.take().map(ControlFrame::Pong);
        let ack = link.inbound.ack_due(now).map(ControlFrame::Ack);
        let ping = link.outbound.ping_due(now).map(ControlFrame::Ping);
        let mut sent = false;
        for frame in [pong, ack, ping].into_iter().flatten() {
            sent |= self.send_control_frame(&frame, hands);
        }
        sent
    }

    /// Seals a control frame and hands it to the lane that will write it soonest. One that cannot be
    /// sent is lost, as on the wire: the next ACK says all of it again.
    pub(super) fn send_control_frame<G: LaneGroup>(
        &mut self,
        frame: &ControlFrame,
        hands: &mut Hands<'_, G>,
    ) -> bool {
        let Some(link) = self.link.as_mut() else {
            return false;
        };
        let (bundle, lanes) = (&self.bundle, &*hands.lanes);
        let backlog = |lane| {
            bundle
                .lane_id(lane)
                .map_or(usize::MAX, |id| lanes.backlog_bytes(id))
        };
        let Some(id) = link
            .outbound
            .control_lane(backlog)
            .and_then(|lane| bundle.lane_id(lane))
        else {
            return false;
        };
        let mut bytes = [0; MAX_CONTROL_BYTES];
        let length = link.sealer.seal(frame, &mut bytes);
        let Some(frame) = link.pools_out.copy(&bytes[..length]) else {
            return false;
        };
        if hands.lanes.submit(id, frame).is_err() {
            return false;
        }
        self.picture.wire_bytes_sent += length as u64;
        hands.counters.wire_bytes_sent_total.add(length as u64);
        hands.counters.frames_sent_total.add(1);
        true
    }

    fn check_lanes<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> Result<(), Fault> {
        self.want_lanes(hands);
        self.retire_lanes(hands);
        self.pace_lanes(hands);
        self.learn_delay(hands);
        self.count_retransmits(hands);
        while let Some(verdict) = self
            .link
            .as_mut()
            .and_then(|link| link.outbound.poll_health(Nanos(hands.now_ns)))
        {
            match verdict {
                Verdict::Suspect(lane) => self.replace_lane(lane, hands),
                Verdict::Redial => {
                    self.set_state(SessionState::Reconnecting, Failure::None, "", hands);
                    self.doubt_driver(hands.now_ns);
                    self.streams.begin_anew();
                    for index in 0..self.bundle.slots.len() {
                        self.replace_lane(LaneIx(index as u16), hands);
                    }
                }
                Verdict::Expired => {
                    return Err(Fault::new(
                        Failure::PeerLost,
                        format!(
                            "nothing was heard from the peer for {} s; check the migration network \
                             and start the migration again",
                            self.resume_limit_ns / 1_000_000_000
                        ),
                    ));
                }
            }
        }
        self.dial_missing(hands);
        Ok(())
    }

    /// Learns how long the path is: from the kernel's own smallest sample, which knows nothing of queues or of a
    /// busy processor, nor of a path that became longer since.
    fn learn_delay<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) {
        let first = self.bundle.up().next();
        if let (Some(link), Some(id)) = (self.link.as_mut(), first)
            && let Some(stats) = hands.lanes.stats(id)
        {
            self.path.floor.note_below(stats.rtt_min_us);
            let floor_us = self.path.floor.us();
            link.outbound.expect_delay(u64::from(floor_us) * 1_000);
            let carried = link.outbound.carried_bytes_per_s();
            link.wire_rate.set_path(floor_us, carried);
            self.note_path(floor_us);
        }
    }

    /// Counts what the network below a lane sent again: one lane after the other, for it may cost a
    /// system call to know.
    fn count_retransmits<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) {
        let bundle = &mut self.bundle;
        bundle.asked = (bundle.asked + 1) % bundle.slots.len().max(1);
        let (Some(Slot::Up(id, _)), Some(seen)) = (
            bundle.slots.get(bundle.asked),
            bundle.retransmits.get_mut(bundle.asked),
        ) else {
            return;
        };
        if let Some(stats) = hands.lanes.stats(*id) {
            let before = std::mem::replace(seen, stats.retransmits);
            let more = stats.retransmits.saturating_sub(before);
            let counter = &hands.counters.lane_retransmits_total;
            counter.add(u64::from(more));
            let segments = self.picture.wire_bytes_sent / u64::from(stats.mss_bytes.max(1));
            let share = bundle.loss.look(hands.now_ns, u64::from(more), segments);
            if let Some(link) = self.link.as_mut() {
                link.outbound.expect_loss(share);
            }
        }
    }

    /// The dialling side closes a lane that does not move, so that it is dialled again. The other side
    /// can only wait for that.
    pub(super) fn replace_lane<G: LaneGroup>(&mut self, lane: LaneIx, hands: &mut Hands<'_, G>) {
        if self.bundle.peer.is_none() {
            return;
        }
        let Some(id) = self.bundle.lane_id(lane) else {
            return;
        };
        hands.routes.forget_lane(id);
        hands.lanes.close(id);
        self.bundle.slots[usize::from(lane.0)] = Slot::Down {
            dial_at_ns: hands.now_ns,
        };
        self.picture.lanes_replaced += 1;
        if let Some(link) = self.link.as_mut() {
            link.outbound.lane_down(lane);
        }
    }

    /// Tells the peer that it is over and lets the lanes drain.
    pub(super) fn part<G: LaneGroup>(&mut self, reason: ByeReason, hands: &mut Hands<'_, G>) {
        self.send_control_frame(&ControlFrame::Bye(reason), hands);
        let up: Vec<LaneId> = self.bundle.up().collect();
        for id in up {
            hands.lanes.finish(id);
        }
    }

    /// Closes what is left of the lanes.
    pub(super) fn drop_lanes<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let up: Vec<LaneId> = self.bundle.up().collect();
        for id in up {
            hands.routes.forget_lane(id);
            hands.lanes.close(id);
        }
        self.bundle.truncate(0);
    }
}
