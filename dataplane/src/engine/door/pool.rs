//! Which connections to peers are kept ready, when they are made, and how they come to know their path.
//!
//! In: sessions that go to peers, connections that were made, used and lost, what the kernel says of them, the time.
//! Out: whom to dial, the connection for a lane, how much padding goes where, what to close. Promises: to one peer
//! there are at most `pool.lanes`; nothing is dialled and no byte of padding sent to a peer while a session goes there;
//! padding is bounded for each connection and for each peer in [`PADDING_EVERY_NS`]; a peer that does not want it is
//! asked seldom; peers that are not listed are forgotten when no session went there for `pool.keep_s`.

use std::collections::HashMap;
use std::net::SocketAddr;

use dwcp_api::SessionId;

use crate::config::PoolConfig;
use crate::engine::messages::Peer;
use crate::transport::NodeId;

/// Bytes of one piece of padding. The receiving kernel widens its window for segments of at least 128 bytes; the
/// sending one counts packets, not bytes.
pub const PAD_BYTES: usize = 160;
/// A connection whose window has so many packets is warm. Each round of padding doubles it.
const WARM_PACKETS: u32 = 128;
/// Padding of one connection, at most.
pub const PADDING_OF_ONE_BYTES: usize = 48 << 10;
/// Rounds of one connection, at most.
const ROUNDS_MAX: u32 = 8;
/// Connections to one peer that are warmed at once.
const WARMING_AT_ONCE: usize = 8;
/// To one peer no more padding than all its connections may have once goes in this time, or from one session to the
/// next.
const PADDING_EVERY_NS: u64 = 600_000_000_000;
/// Peers that are not listed, at most.
const LEARNED_MAX: usize = 32;
/// The first pause after a failure; each one more doubles it.
const RETRY_NS: u64 = 1_000_000_000;
/// The longest, and that after a refusal.
const RETRY_MAX_NS: u64 = 60_000_000_000;

/// See the module.
pub struct Pool {
    config: PoolConfig,
    peers: HashMap<SocketAddr, Kept>,
    sessions: HashMap<SessionId, Going>,
    /// Of peers that were forgotten.
    dropped: Vec<u64>,
}

/// A session that begins here.
struct Going {
    to: SocketAddr,
    node: Option<String>,
    is_up: bool,
}

/// What is kept for one peer.
struct Kept {
    /// The node that must answer there.
    node: Option<String>,
    is_listed: bool,
    keep_until_ns: u64,
    ready: Vec<Ready>,
    dialling: usize,
    retry_at_ns: u64,
    failures: u32,
    padding_left: usize,
    padding_anew_ns: u64,
}

/// One connection.
struct Ready {
    id: u64,
    node: NodeId,
    warmth: Warmth,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Warmth {
    Growing {
        rounds: u32,
        bytes: usize,
    },
    /// As warm as it gets.
    Done,
}

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Packets that may be on the way.
    pub window_packets: u32,
    /// Something is on the way, or waits for it.
    pub is_busy: bool,
    /// The path is far, and an idle connection keeps its window.
    pub gains: bool,
}

impl Kept {
    fn new(node: Option<String>, is_listed: bool, lanes: u16) -> Self {
        Self {
            node,
            is_listed,
            keep_until_ns: u64::MAX,
            ready: Vec::new(),
            dialling: 0,
            retry_at_ns: 0,
            failures: 0,
            padding_left: usize::from(lanes) * PADDING_OF_ONE_BYTES,
            padding_anew_ns: 0,
        }
    }

    fn pause(&mut self, now_ns: u64) {
        let pause_ns = RETRY_NS << self.failures.min(6);
        self.failures += 1;
        self.retry_at_ns = now_ns + pause_ns.min(RETRY_MAX_NS);
    }
}

impl Pool {
    /// Empty, and to be filled for the peers that are listed.
    pub fn new(config: PoolConfig) -> Self {
        let listed = config.peers.iter().filter(|_| config.enabled);
        let kept = |address: &SocketAddr| (*address, Kept::new(None, true, config.lanes));
        Self {
            peers: listed.map(kept).collect(),
            config,
            sessions: HashMap::new(),
            dropped: Vec::new(),
        }
    }

    /// Are connections kept at all?
    pub const fn is_on(&self) -> bool {
        self.config.enabled
    }

    /// Connections that are ready, to all peers.
    pub fn ready(&self) -> usize {
        self.peers.values().map(|kept| kept.ready.len()).sum()
    }

    fn is_busy(&self, address: SocketAddr) -> bool {
        self.sessions.values().any(|going| going.to == address)
    }

    /// A session goes to this peer, or goes there now.
    pub fn begins(&mut self, session: SessionId, peer: &Peer) {
        let going = self.sessions.entry(session).or_insert_with(|| Going {
            to: peer.address,
            node: peer.node.clone(),
            is_up: false,
        });
        going.to = peer.address;
    }

    /// It has a lane that the pool could have had ready.
    pub fn came_up(&mut self, session: SessionId) {
        if let Some(going) = self.sessions.get_mut(&session) {
            going.is_up = true;
        }
    }

    /// It is over: what it used is made anew.
    pub fn ends(&mut self, session: SessionId, now_ns: u64) {
        let Some(gone) = self.sessions.remove(&session) else {
            return;
        };
        if !gone.is_up || !self.config.enabled {
            return;
        }
        self.make_room(gone.to);
        let lanes = self.config.lanes;
        let fresh = || Kept::new(None, false, lanes);
        let kept = self.peers.entry(gone.to).or_insert_with(fresh);
        if !kept.is_listed {
            kept.keep_until_ns = now_ns + self.config.keep_s * 1_000_000_000;
        }
        kept.node = gone.node;
        (kept.failures, kept.retry_at_ns) = (0, now_ns);
        kept.padding_left = usize::from(lanes) * PADDING_OF_ONE_BYTES;
    }

    /// There is a place for one more peer: the one that would be forgotten first goes.
    fn make_room(&mut self, newcomer: SocketAddr) {
        let learned = self.peers.iter().filter(|(_, kept)| !kept.is_listed);
        if self.peers.contains_key(&newcomer) || learned.clone().count() < LEARNED_MAX {
            return;
        }
        let first = learned.min_by_key(|(_, kept)| kept.keep_until_ns);
        if let Some(address) = first.map(|(address, _)| *address) {
            self.forget(address);
        }
    }

    fn forget(&mut self, address: SocketAddr) {
        if let Some(kept) = self.peers.remove(&address) {
            self.dropped.extend(kept.ready.iter().map(|one| one.id));
        }
    }

    /// A connection for a lane to this peer, a warm one if there is one; where the node is named, to it.
    pub fn take(&mut self, address: SocketAddr, node: Option<NodeId>) -> Option<u64> {
        let ready = &mut self.peers.get_mut(&address)?.ready;
        let fits = |one: &Ready| node.is_none_or(|node| node == one.node);
        let warm = |one: &Ready| fits(one) && one.warmth == Warmth::Done;
        let index = ready.iter().position(warm);
        let index = index.or_else(|| ready.iter().position(fits))?;
        Some(ready.remove(index).id)
    }

    /// Whom to dial next, and the node that must answer there.
    pub fn next_dial(&mut self, now_ns: u64) -> Option<(SocketAddr, Option<String>)> {
        let lanes = usize::from(self.config.lanes);
        let due = |kept: &Kept| {
            // After a failure one shows whether the others are worth a try.
            let tries = kept.failures > 0 && kept.ready.is_empty();
            let lanes = if tries { 1 } else { lanes };
            kept.ready.len() + kept.dialling < lanes && kept.retry_at_ns <= now_ns
        };
        let sessions = &self.sessions;
        let is_busy = |address| sessions.values().any(|going| going.to == address);
        let mut peers = self.peers.iter_mut();
        let (address, kept) = peers.find(|(address, kept)| due(kept) && !is_busy(**address))?;
        kept.dialling += 1;
        Some((*address, kept.node.clone()))
    }

    /// A connection that was dialled is ready. Says whether there is a place for it.
    pub fn made(&mut self, address: SocketAddr, id: u64, node: NodeId, now_ns: u64) -> bool {
        let Some(kept) = self.peers.get_mut(&address) else {
            return false;
        };
        if kept.retry_at_ns + RETRY_MAX_NS < now_ns {
            kept.failures = 0;
        }
        kept.dialling = kept.dialling.saturating_sub(1);
        let warmth = Warmth::Growing {
            rounds: 0,
            bytes: 0,
        };
        kept.ready.push(Ready { id, node, warmth });
        true
    }

    /// One that was dialled came to nothing; `refused`: because the peer does not want it.
    pub fn failed(&mut self, address: SocketAddr, refused: bool, now_ns: u64) {
        if let Some(kept) = self.peers.get_mut(&address) {
            kept.dialling = kept.dialling.saturating_sub(1);
            // Those that were dialled at once fail at once: that is one failure.
            if kept.retry_at_ns <= now_ns {
                kept.pause(now_ns);
            }
            if refused {
                kept.retry_at_ns = now_ns + RETRY_MAX_NS;
            }
        }
    }

    /// One that was ready is gone.
    pub fn lost(&mut self, id: u64, now_ns: u64) {
        for kept in self.peers.values_mut() {
            let before = kept.ready.len();
            kept.ready.retain(|one| one.id != id);
            if kept.ready.len() < before && kept.retry_at_ns <= now_ns {
                kept.pause(now_ns);
            }
        }
    }

    /// One of this peer's was dead when it was wanted: the others are not to be relied on either.
    pub fn distrust(&mut self, address: SocketAddr) {
        if let Some(kept) = self.peers.get_mut(&address) {
            self.dropped.extend(kept.ready.drain(..).map(|one| one.id));
        }
    }

    /// Connections to close.
    pub fn take_closed(&mut self, now_ns: u64) -> Vec<u64> {
        let over = |(address, kept): (&SocketAddr, &Kept)| {
            (kept.keep_until_ns < now_ns).then_some(*address)
        };
        let over: Vec<SocketAddr> = self.peers.iter().filter_map(over).collect();
        for address in over {
            if !self.is_busy(address) {
                self.forget(address);
            }
        }
        std::mem::take(&mut self.dropped)
    }

    /// Connections that are to be looked at because padding may be due.
    pub fn to_warm(&self) -> Vec<u64> {
        let peers = self.peers.iter();
        let quiet = peers.filter(|(address, _)| !self.is_busy(**address));
        let growing = |kept: &Kept| -> Vec<u64> {
            let growing = kept.ready.iter().filter(|one| one.warmth != Warmth::Done);
            growing.map(|one| one.id).take(WARMING_AT_ONCE).collect()
        };
        quiet.flat_map(|(_, kept)| growing(kept)).collect()
    }

    /// How many pieces of padding go over a connection now.
    pub fn padding(&mut self, id: u64, seen: Seen, now_ns: u64) -> usize {
        let mut all = self.peers.values_mut();
        let found = all.find_map(|kept| {
            let index = kept.ready.iter().position(|one| one.id == id)?;
            Some((kept, index))
        });
        let Some((kept, index)) = found else {
            return 0;
        };
        if kept.padding_anew_ns <= now_ns {
            kept.padding_anew_ns = now_ns + PADDING_EVERY_NS;
            kept.padding_left = usize::from(self.config.lanes) * PADDING_OF_ONE_BYTES;
        }
        let one = &mut kept.ready[index];
        let Warmth::Growing { rounds, bytes } = one.warmth else {
            return 0;
        };
        if seen.is_busy {
            return 0;
        }
        let pieces = seen.window_packets.min(WARM_PACKETS) as usize;
        let more = pieces * PAD_BYTES;
        let is_over = !seen.gains
            || seen.window_packets >= WARM_PACKETS
            || rounds >= ROUNDS_MAX
            || bytes + more > PADDING_OF_ONE_BYTES
            || more > kept.padding_left;
        if is_over {
            one.warmth = Warmth::Done;
            return 0;
        }
        one.warmth = Warmth::Growing {
            rounds: rounds + 1,
            bytes: bytes + more,
        };
        kept.padding_left -= more;
        pieces
    }
}

#[cfg(test)]
mod tests;
