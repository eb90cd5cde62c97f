//! How many lanes a session has: the controller's number, dialled, used, and let go of again.
//!
//! In: the switch, the path's round trip, how busy the lanes are. Out: lanes to dial, lanes to use, lanes
//! closed. Promises: the number follows the transport's switch; lanes that are not used any more are kept for
//! a while, and never closed while a guest waits for its switchover.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use dwcp_api::{Failure, Mode, SessionState, Version as ApiVersion};
use dwcp_drivers::lane::LaneGroup;

use super::bundle::{Bundle, Slot};
use super::path::PACED;
use super::{Fault, Hands, Session};
use crate::engine::messages::{Dial, Errand, ToDoor};
use crate::transport::LaneIx;
use crate::transport::handshake::Way;
use crate::transport::streams::{Load, PathKind};

/// A dial that was not answered after this long is given up and begun anew.
const DIAL_LIMIT_NS: u64 = 2_500_000_000;
/// A lane that was not needed for this long is closed.
const RETIRE_NS: u64 = 5_000_000_000;
/// Lanes are renewed on a path of at least this.
const RENEWED_US_MIN: u32 = 5_000;
/// When they take it for one of less than this part.
const STALE_PART: u32 = 4;
/// So many of them at once at most, so that the others carry on.
const RENEWED_MAX: usize = 16;
/// And no more than this part of them.
const RENEWED_PART: usize = 4;

impl Bundle {
    /// Has places for so many lanes at least.
    pub(super) fn ensure(&mut self, lanes: usize) {
        while self.slots.len() < lanes {
            self.slots.push(Slot::Down { dial_at_ns: 0 });
            self.retransmits.push(0);
            self.paced.push(0);
        }
    }

    /// Forgets all lanes but the first so many.
    pub(super) fn truncate(&mut self, lanes: usize) {
        self.slots.truncate(lanes);
        self.retransmits.truncate(lanes);
        self.paced.truncate(lanes);
    }
}

impl Session {
    /// How many lanes there should be, and how many are used.
    pub(super) fn want_lanes<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) {
        let transport = hands.switches.read().amst;
        let wanted = self.lanes_for(transport, hands);
        if self.bundle.used != Some(wanted) {
            self.bundle.used = Some(wanted);
            self.bundle.used_since_ns = hands.now_ns;
            if let Some(link) = &mut self.link {
                link.outbound.set_active_lanes(usize::from(wanted));
            }
        }
        self.picture.lanes_wanted = if self.is_source() {
            u64::from(wanted)
        } else {
            // The other side decides over it.
            self.bundle.count_up() as u64
        };
        if self.is_source() {
            self.bundle.ensure(usize::from(wanted));
        }
    }

    fn lanes_for<G: LaneGroup>(&mut self, transport: ApiVersion, hands: &Hands<'_, G>) -> u16 {
        let Some(link) = &self.link else {
            return match transport {
                ApiVersion::V3 => self.streams.lanes().min(self.offer.lanes_v3),
                ApiVersion::V1 => self.offer.lanes_v1,
            };
        };
        let agreed = link.lanes_for(transport);
        let adaptive = transport == ApiVersion::V3 && link.version == crate::transport::Version::V3;
        if !adaptive || !self.is_source() {
            return agreed;
        }
        // Lanes of a device are queues of its own: more of them open no window.
        if self.bundle.way != Way::Tcp {
            return self.streams.lanes().min(agreed);
        }
        let rtt_ns = link.outbound.rtt_us().unwrap_or(0) * 1_000;
        let load = self.load(hands);
        let sent = self.picture.wire_bytes_sent;
        self.streams
            .look(hands.now_ns, sent, load, rtt_ns)
            .min(agreed)
    }

    /// Dials the lanes that there should be and are not.
    pub(super) fn dial_missing<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) {
        if self.is_given_up() {
            return;
        }
        let Some(peer) = &self.bundle.peer else {
            return;
        };
        let wanted = usize::try_from(self.picture.lanes_wanted).unwrap_or(usize::MAX);
        let versions = [self.offer.max_version, hands.switches.read().amst];
        for (index, slot) in self.bundle.slots.iter_mut().enumerate().take(wanted) {
            let due = match *slot {
                Slot::Up(..) => false,
                Slot::Down { dial_at_ns } => dial_at_ns <= hands.now_ns,
                Slot::Dialling { since_ns } => since_ns + DIAL_LIMIT_NS <= hands.now_ns,
            };
            if !due {
                continue;
            }
            self.bundle.dials = self.bundle.dials.saturating_add(1);
            let dial = Dial {
                attempt: self.bundle.dials,
                session: self.id,
                worker: self.worker,
                lane: LaneIx(index as u16),
                peer: peer.clone(),
                offer: self.offer,
                way: self.bundle.way,
                errand: Errand::of_lane(versions, self.bundle.way),
            };
            if hands.door.send(ToDoor::Dial(Box::new(dial))).is_ok() {
                *slot = Slot::Dialling {
                    since_ns: hands.now_ns,
                };
            }
        }
    }

    /// What holds the session up now.
    fn load<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) -> Load {
        let queued = match &mut self.link {
            Some(link) => link.outbound.has_queued(),
            None => return Load::Nothing,
        };
        if queued && !self.may_send(hands) {
            return Load::HeldBack;
        }
        let (mut up, mut full) = (0, 0);
        let used = usize::from(self.bundle.used.unwrap_or(0));
        for slot in self.bundle.slots.iter().take(used) {
            if let Slot::Up(id, _) = slot {
                up += 1;
                full += usize::from(hands.lanes.backlog_bytes(*id) > 0);
            }
        }
        if up > 0 && (queued || full * 2 >= up) {
            Load::Lanes
        } else {
            Load::Nothing
        }
    }

    /// What kind of path it is: by the mode, or while none is known by the smallest round trip that the network
    /// below measured.
    pub(super) fn note_path(&mut self, rtt_min_us: u32) {
        let kind = match self.picture.mode() {
            Some(Mode::Datacenter) => PathKind::Datacenter,
            Some(Mode::Hybrid) => PathKind::Hybrid,
            Some(Mode::Internet) => PathKind::Internet,
            None if rtt_min_us == 0 => return,
            None => PathKind::by_rtt(Some(u64::from(rtt_min_us))),
        };
        self.streams.set_kind(kind);
    }

    /// The dialling side closes lanes that have not been needed for a while.
    pub(super) fn retire_lanes<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let rested = hands.now_ns.saturating_sub(self.bundle.used_since_ns) >= RETIRE_NS;
        let Some(used) = self.bundle.used.map(usize::from) else {
            return;
        };
        let calm = rested && self.state == SessionState::Active;
        if !calm || !self.is_source() || self.bundle.slots.len() <= used {
            return;
        }
        for index in used..self.bundle.slots.len() {
            let Slot::Up(id, _) = self.bundle.slots[index] else {
                continue;
            };
            hands.routes.forget_lane(id);
            hands.lanes.close(id);
            if let Some(link) = self.link.as_mut() {
                link.outbound.lane_down(LaneIx(index as u16));
            }
        }
        self.bundle.truncate(used);
    }

    /// Dials some of those lanes anew whose connection takes the path for a fraction of what it is, `own_us`.
    ///
    /// The kernel remembers the least round trip of a connection for minutes, and BBR opens no window wider than what
    /// the path holds: on one that became longer that is a few packets. A fresh connection knows no better time.
    pub(super) fn renew_lanes<G: LaneGroup>(&mut self, own_us: u32, hands: &mut Hands<'_, G>) {
        if own_us < RENEWED_US_MIN || !self.is_source() {
            return;
        }
        let most = (self.bundle.count_up() / RENEWED_PART).max(1);
        let stale: ArrayVec<LaneIx, RENEWED_MAX> = self
            .bundle
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| match slot {
                Slot::Up(id, _) => Some((index, hands.lanes.stats(*id)?)),
                _ => None,
            })
            .filter(|(_, stats)| {
                let least_us = stats.rtt_min_us;
                stats.congestion_name() == PACED && (1..own_us / STALE_PART).contains(&least_us)
            })
            .map(|(index, _)| LaneIx(index as u16))
            .take(most.min(RENEWED_MAX))
            .collect();
        if stale.is_empty() {
            return;
        }
        tracing::info!(session = %self.id, lanes = stale.len(), own_us, "lanes take the path for a shorter one");
        for lane in stale {
            self.replace_lane(lane, hands);
        }
        self.streams.begin_anew();
    }

    /// The peer is reached elsewhere from now on: lanes that still stand are left, all are dialled anew.
    ///
    /// # Errors
    /// A [`Fault`] at an end that does not dial.
    pub fn redirect<G: LaneGroup>(
        &mut self,
        peer: SocketAddr,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        if self.is_over() || self.bundle.redirect(peer) == Some(false) {
            return Ok(());
        }
        if !self.is_source() {
            return Err(Fault::new(
                Failure::BadCommand,
                "a destination dials nobody: tell the source where it is",
            ));
        }
        tracing::info!(session = %self.id, %peer, "the peer is reached elsewhere");
        self.picture.peer = dwcp_api::text::Text::clipped(&peer.to_string());
        for index in 0..self.bundle.slots.len() {
            self.replace_lane(LaneIx(index as u16), hands);
            // A dial to the old address would be waited for.
            if let Slot::Dialling { .. } = self.bundle.slots[index] {
                self.bundle.slots[index] = Slot::Down { dial_at_ns: 0 };
            }
        }
        self.streams.begin_anew();
        Ok(())
    }

    /// Has what each lane sends spread out, where the operator limits the session: else a batch leaves at
    /// the speed of the device, and then nothing for as long as it should have taken.
    pub(super) fn pace_lanes<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let limit = self.rate_limit.bytes_per_s();
        let bundle = &mut self.bundle;
        for (slot, paced) in bundle.slots.iter().zip(&mut bundle.paced) {
            if let Slot::Up(id, _) = slot
                && *paced != limit
            {
                *paced = limit;
                hands.lanes.pace(*id, limit);
            }
        }
    }
}
