//! All peers: whose samples are whose, overrides, changes.
//!
//! In: the session table, overrides. Out: each peer's mode, orders, changes with their reasons. Promises: sessions of
//! one peer are one path, whose bandwidth is what they carry together; at most [`PEERS_MAX`] peers are remembered,
//! and the one forgotten is the one seen longest ago.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Mode, PathLoad, SessionId};

use super::decider::{Decider, Decision, Sample};
use super::view::{self, ChangeView, ModesView, OverrideView, PeerView};
use super::{Figures, ModeError, Override};

/// Peers remembered.
pub const PEERS_MAX: usize = 256;
/// Changes of a peer remembered.
pub const CHANGES_MAX: usize = 8;
/// Samples of a peer are at least this far apart: with several sessions each has its own, and the window is to
/// cover the same time.
const APART_NS: u64 = 80_000_000;
/// Older figures of a session say nothing about now.
const FRESH_NS: u64 = 300_000_000;

/// One peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) decider: Decider,
    pub(super) decision: Option<Decision>,
    pub(super) said: Option<Override>,
    pub(super) changes: VecDeque<ChangeView>,
    pub(super) mode: Option<Mode>,
    sampled_ns: u64,
    seen_unix_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Peers {
    pub(super) peers: BTreeMap<IpAddr, Peer>,
    pub(super) all: Option<Override>,
    changes: [u64; 3],
}

/// Who a session's peer is; none before it is known.
pub(super) fn peer_of(session: &SessionSnapshot) -> Option<IpAddr> {
    let address: SocketAddr = session.peer.as_str().parse().ok()?;
    Some(address.ip().to_canonical())
}

fn runs(session: &SessionSnapshot) -> bool {
    session.state().is_some_and(|state| !state.is_final())
}

/// The running sessions of a peer.
pub(super) fn sessions_of(
    sessions: &[SessionSnapshot],
    peer: IpAddr,
) -> impl Iterator<Item = &SessionSnapshot> {
    sessions
        .iter()
        .filter(move |session| runs(session) && peer_of(session) == Some(peer))
}

/// What sessions say together of their path; none without a fresh sample of any.
fn sample(sessions: &[&SessionSnapshot], now_ns: u64) -> Option<Sample> {
    let mut all: Option<Sample> = None;
    for session in sessions {
        if session.path_samples == 0 || now_ns.saturating_sub(session.path_sampled_ns) > FRESH_NS {
            continue;
        }
        let load = session.path_load();
        let known = all.get_or_insert(Sample {
            rtt_us: session.path_rtt_us,
            load,
            bytes_per_s: 0,
        });
        known.rtt_us = known.rtt_us.min(session.path_rtt_us);
        // The fullest counts: where one has to wait, the path is full.
        if load.code() > known.load.code() {
            known.load = load;
        }
        if load != PathLoad::Idle {
            known.bytes_per_s = known.bytes_per_s.saturating_add(session.path_bytes_per_s);
        }
    }
    all
}

impl Peers {
    /// Takes the session table in; gives the changes.
    pub fn observe(&mut self, sessions: &[SessionSnapshot], now_unix_ms: u64) -> Vec<ChangeView> {
        let mut by_peer: BTreeMap<IpAddr, Vec<&SessionSnapshot>> = BTreeMap::new();
        for session in sessions.iter().filter(|session| runs(session)) {
            if let Some(peer) = peer_of(session) {
                by_peer.entry(peer).or_default().push(session);
            }
        }
        let mut changes = Vec::new();
        for (address, sessions) in by_peer {
            self.make_room(address);
            let peer = self.peers.entry(address).or_default();
            peer.seen_unix_ms = now_unix_ms;
            let newest_ns = sessions.iter().map(|session| session.path_sampled_ns).max();
            let newest_ns = newest_ns.unwrap_or(0);
            if newest_ns >= peer.sampled_ns.saturating_add(APART_NS)
                && let Some(sample) = sample(&sessions, newest_ns)
            {
                peer.sampled_ns = newest_ns;
                if let Some(decision) = peer.decider.take(sample) {
                    peer.decision = Some(decision);
                }
            }
            changes.extend(self.settle(address, now_unix_ms));
        }
        changes
    }

    /// The sessions that are not in the mode of their peer.
    #[must_use]
    pub fn orders(&self, sessions: &[SessionSnapshot]) -> Vec<(SessionId, Mode)> {
        let ordered = |session: &SessionSnapshot| {
            let mode = self.peers.get(&peer_of(session)?)?.mode?;
            (session.mode() != Some(mode)).then_some((session.id, mode))
        };
        let running = sessions.iter().filter(|session| runs(session));
        running.filter_map(ordered).collect()
    }

    /// Is there room for an override of this peer?
    ///
    /// # Errors
    /// [`ModeError::TooMany`].
    pub fn check_room(&self, peer: Option<IpAddr>) -> Result<(), ModeError> {
        let Some(peer) = peer else { return Ok(()) };
        let said = |(_, known): &(&IpAddr, &Peer)| known.said.is_some();
        let count = self.peers.iter().filter(said).count();
        let has = self
            .peers
            .get(&peer)
            .is_some_and(|known| known.said.is_some());
        // Half of the places stay for peers that are measured.
        if !has && count >= PEERS_MAX / 2 {
            return Err(ModeError::TooMany(count));
        }
        Ok(())
    }

    /// Sets the override of one peer or of all, or takes it back; gives the changes.
    pub fn set(&mut self, peer: Option<IpAddr>, said: Option<Override>) -> Vec<ChangeView> {
        let now_unix_ms = super::unix_ms();
        let Some(address) = peer else {
            self.all = said;
            let all: Vec<IpAddr> = self.peers.keys().copied().collect();
            let settled = all
                .into_iter()
                .filter_map(|peer| self.settle(peer, now_unix_ms));
            return settled.collect();
        };
        if said.is_none() && !self.peers.contains_key(&address) {
            return Vec::new();
        }
        self.make_room(address);
        let peer = self.peers.entry(address).or_default();
        peer.said = said;
        self.settle(address, now_unix_ms).into_iter().collect()
    }

    /// Brings a peer into the mode that counts; a change if that is news.
    fn settle(&mut self, address: IpAddr, now_unix_ms: u64) -> Option<ChangeView> {
        let peer = self.peers.get_mut(&address)?;
        let Some((mode, by, reason)) = view::ruling(peer, self.all.as_ref()) else {
            // Sessions stay in the mode they are in until something is known.
            peer.mode = None;
            return None;
        };
        if peer.mode == Some(mode) {
            return None;
        }
        let change = ChangeView {
            peer: address,
            from: peer.mode.map(Mode::as_str),
            mode: mode.as_str(),
            by,
            reason,
            at_unix_ms: now_unix_ms,
        };
        peer.mode = Some(mode);
        if peer.changes.len() == CHANGES_MAX {
            peer.changes.pop_back();
        }
        peer.changes.push_front(change.clone());
        self.changes[place(mode)] += 1;
        Some(change)
    }

    /// Forgets the peer seen longest ago that nobody said anything about, if there is no room for this one.
    fn make_room(&mut self, address: IpAddr) {
        if self.peers.len() < PEERS_MAX || self.peers.contains_key(&address) {
            return;
        }
        let unsaid = self.peers.iter().filter(|(_, peer)| peer.said.is_none());
        let oldest = unsaid.min_by_key(|(_, peer)| peer.seen_unix_ms);
        if let Some(oldest) = oldest.map(|(address, _)| *address) {
            self.peers.remove(&oldest);
        }
    }

    /// What the API shows.
    #[must_use]
    pub fn view(&self, sessions: &[SessionSnapshot]) -> ModesView {
        let peers = self.peers.keys();
        ModesView {
            all: self.override_of_all(),
            peers: peers
                .filter_map(|peer| self.peer_view(*peer, sessions))
                .collect(),
        }
    }

    /// What the API shows of one peer.
    #[must_use]
    pub fn peer_view(&self, address: IpAddr, sessions: &[SessionSnapshot]) -> Option<PeerView> {
        let peer = self.peers.get(&address)?;
        Some(view::peer(address, peer, self.all.as_ref(), sessions))
    }

    /// The override of all peers.
    #[must_use]
    pub fn override_of_all(&self) -> Option<OverrideView> {
        self.all.as_ref().map(OverrideView::from)
    }

    /// What metrics count.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut peers = [0; 3];
        for mode in self.peers.values().filter_map(|peer| peer.mode) {
            peers[place(mode)] += 1;
        }
        Figures {
            changes: self.changes,
            peers,
        }
    }
}

/// Index in [`Mode::ALL`].
const fn place(mode: Mode) -> usize {
    match mode {
        Mode::Datacenter => 0,
        Mode::Internet => 1,
        Mode::Hybrid => 2,
    }
}

#[cfg(test)]
mod tests;
