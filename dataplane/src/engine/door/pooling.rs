//! Connections that are ready before a session wants them: those that we dialled, and those of peers that are parked
//! here.
//!
//! In: the pool's orders, a lane to dial, a peer that asks for its connection to be parked. Out: lanes that come up one
//! round trip after they were wanted. Promises: who parks a connection has proven itself as for a lane, and there are
//! at most [`super::lobby::PARKED_MAX`], none of which takes a stranger's place; a parked connection opens nothing: its
//! lane is proven as on a fresh one, and its certificate is judged once more; certificates that are read anew let go
//! of what was parked before; a ready connection that turns out dead costs the lane a fresh dial and nothing else.

use std::os::fd::AsFd;
use std::time::Duration;

use dwcp_api::{Failure, SessionId, monotonic_ns};
use dwcp_drivers::lane::LaneStats;
use dwcp_drivers::tcp::socket::{deepen_if_far, learn_anew, stats};
use rustix::net::SendFlags;
use rustix::net::sockopt;

use super::error::DoorError;
use super::pool::{PAD_BYTES, PADDING_OF_ONE_BYTES, Seen};
use super::stranger::{Opening, Side, Stranger};
use super::{Door, HANDSHAKE_LIMIT_NS, fresh_bytes, params};
use crate::engine::messages::{Dial, Errand, Peer};
use crate::tls::TlsError;
use crate::transport::handshake::{
    Acceptor, Agreed, OPENING_PADDING_BYTES, Proof, Proven, RefuseReason, Way, pad,
};
use crate::transport::{BatchSeq, LaneIx, NodeId};

/// A peer's connection is parked here for so long at most.
const PARKED_NS: u64 = 3_600_000_000_000;
/// Padding that a parked connection may have: what this release sends, and as much again for the next.
const PADDING_MAX_BYTES: usize = 2 * PADDING_OF_ONE_BYTES;
/// A ready connection must answer the HELLO within this time and a few of its round trips.
const ANSWER_NS: u64 = 500_000_000;
/// Ready connections are looked at this often.
const LOOK_EVERY_NS: u64 = 20_000_000;
/// Below this round trip a window is wide soon enough by itself.
const FAR_RTT_US: u32 = 5_000;
/// What a packet carries at least, on any path that is of use.
const PACKET_BYTES: usize = 1200;
/// Congestion control whose window stays as it is while nothing is sent; others begin anew.
const KEEPS_ITS_WINDOW: &str = "bbr";

impl Door {
    /// Has the lane come up over a connection that is ready; gives the order back where there is none.
    pub(super) fn dial_ready(&mut self, mut dial: Box<Dial>) -> Option<Box<Dial>> {
        if dial.errand == Errand::Pool {
            return Some(dial);
        }
        self.pool.begins(dial.session, &dial.peer);
        if dial.errand != Errand::Lane || !self.pool.is_on() {
            return Some(dial);
        }
        let node = dial.peer.node.as_deref().map(NodeId::of_name);
        while let Some(id) = self.pool.take(dial.peer.address, node) {
            let Some(mut stranger) = self.lobby.take(id) else {
                continue;
            };
            stranger.side = Side::Securing(dial);
            match self.hello_on_ready(&mut stranger) {
                Ok(()) => {
                    self.lobby.put_back(id, stranger);
                    return None;
                }
                Err(error) => {
                    tracing::info!(peer = %stranger.peer, %error, "a ready connection is of no use");
                    dial = stranger.take_order()?;
                }
            }
        }
        self.count_miss();
        Some(dial)
    }

    fn hello_on_ready(&mut self, stranger: &mut Stranger) -> Result<(), DoorError> {
        self.check_again(stranger, false)?;
        let proof = match &stranger.tls {
            Some(tls) => Proof::Tls(tls.secret()?),
            None => {
                let session = stranger.dial().map(|dial| dial.session);
                let key = session.and_then(|session| self.sessions.our_key(session));
                key.map_or_else(
                    || Proof::Node(self.psk.clone()),
                    |key| Proof::Session(key.clone()),
                )
            }
        };
        let told = stats(&stranger.fd)?;
        if told.congestion_name() == KEEPS_ITS_WINDOW {
            // Its window stays. What it believes of the path ages while it waits, and it would empty its window amid
            // the session to see whether that still holds, at the same moment as all the others.
            learn_anew(&stranger.fd).map_err(std::io::Error::other)?;
        }
        let certified = stranger.node;
        self.say_hello(stranger, proof, certified)?;
        stranger.flush()?;
        let rtt_ns = u64::from(told.rtt_us) * 1_000;
        stranger.deadline_ns = monotonic_ns() + ANSWER_NS + 3 * rtt_ns;
        Ok(())
    }

    /// The certificate of a connection that was proven long ago.
    pub(super) fn check_again(
        &self,
        stranger: &Stranger,
        has_dialled: bool,
    ) -> Result<(), DoorError> {
        let (Some(tls), Some(credentials)) = (&stranger.tls, &self.credentials) else {
            return Ok(());
        };
        let judged = credentials.check_again(tls.chain(), has_dialled);
        judged.map_err(|flaw| TlsError::from(flaw).into())
    }

    /// A lane whose ready connection turned out dead is dialled as if there had been none. Says whether it was so.
    pub(super) fn dials_anew(&mut self, stranger: &mut Stranger, error: &DoorError) -> bool {
        let is_dead = matches!(
            error,
            DoorError::Io(_) | DoorError::Ended | DoorError::TooLate
        );
        if !is_dead || !stranger.was_parked {
            return false;
        }
        let Some(dial) = stranger.take_order() else {
            return false;
        };
        tracing::info!(peer = %stranger.peer, %error, "a ready connection was dead");
        self.pool.distrust(dial.peer.address);
        self.count_miss();
        self.dial_anew(dial);
        true
    }

    /// A connection that was dialled for the pool is ready.
    pub(super) fn note_ready(&mut self, id: u64, mut stranger: Stranger, node: NodeId) {
        let Some(dial) = stranger.take_order() else {
            return;
        };
        let now_ns = monotonic_ns();
        if !self.pool.made(dial.peer.address, id, node, now_ns) {
            return;
        }
        stranger.side = Side::Ready;
        stranger.deadline_ns = u64::MAX;
        self.park(&mut stranger);
        self.lobby.put_back(id, stranger);
    }

    /// What both ends do with a connection that waits.
    fn park(&mut self, stranger: &mut Stranger) {
        stranger.was_parked = true;
        self.paths.choose(&stranger.fd);
        let deepened = deepen_if_far(stranger.fd.as_fd()).map_err(|error| error.to_string());
        let alive = keep_alive(&stranger.fd, true).map_err(|error| error.to_string());
        if let Err(error) = deepened.and(alive) {
            tracing::warn!(peer = %stranger.peer, %error, "a parked connection is not set up as it should be");
        }
    }

    /// A ready connection was heard of: nothing should come. Says whether it is still good.
    pub(super) fn is_still_ready(stranger: &mut Stranger) -> bool {
        stranger.flush().is_ok() && matches!(stranger.opening(), Ok(Opening::Nothing))
    }

    /// A peer that has proven itself wants its connection parked.
    pub(super) fn answer_parking(
        &mut self,
        stranger: &mut Stranger,
        proven: Proven,
    ) -> Result<(), DoorError> {
        if !self.pool.is_on() || stranger.was_parked || !self.lobby.has_place(stranger.peer) {
            return self.refuse(stranger, RefuseReason::PoolFull);
        }
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        let (message, agreed) = acceptor.welcome(proven, BatchSeq(0), Way::Tcp)?;
        stranger.side = Side::Welcomed(Box::new(agreed));
        stranger.say(&message)
    }

    /// The same of a peer that TLS has proven.
    pub(super) fn answer_parking_tls(&mut self, stranger: &mut Stranger) -> Result<(), DoorError> {
        let nonce = fresh_bytes().ok_or(DoorError::NoRandom)?;
        let Side::Acceptor(acceptor) = &mut stranger.side else {
            return Ok(());
        };
        let (answer, proven) =
            acceptor.answer_at_once(self.max_version, params(&self.offer), nonce)?;
        self.answered(stranger, &answer)?;
        match proven {
            Some(proven) => self.answer_parking(stranger, proven),
            None => Ok(()),
        }
    }

    /// The HELLO of a parked connection has come.
    pub(super) fn wake(&self, stranger: &mut Stranger) -> Result<(), DoorError> {
        self.check_again(stranger, true)?;
        if let Side::Parked(acceptor) = std::mem::replace(&mut stranger.side, Side::TurnedAway) {
            stranger.side = Side::Acceptor(acceptor);
            stranger.deadline_ns = monotonic_ns() + HANDSHAKE_LIMIT_NS;
        }
        Ok(())
    }

    /// It was told so: from here on it waits.
    pub(super) fn park_peer(
        &mut self,
        stranger: &mut Stranger,
        agreed: &Agreed,
    ) -> Result<(), DoorError> {
        let proof = match &stranger.tls {
            Some(tls) => Proof::Tls(tls.secret()?),
            None => Proof::Node(self.psk.clone()),
        };
        let acceptor = Acceptor::parked(proof, agreed.acceptor, PADDING_MAX_BYTES);
        stranger.side = Side::Parked(Box::new(acceptor));
        stranger.deadline_ns = monotonic_ns() + PARKED_NS;
        self.park(stranger);
        Ok(())
    }

    /// Closes what is over, dials what is missing, warms what is cold.
    pub(super) fn tend_pool(&mut self) {
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(self.pool_looked_ns) < LOOK_EVERY_NS {
            return;
        }
        self.pool_looked_ns = now_ns;
        for id in self.pool.take_closed(now_ns) {
            self.lobby.take(id);
        }
        while let Some((address, node)) = self.pool.next_dial(now_ns) {
            let Some(random) = fresh_bytes() else {
                self.pool.failed(address, false, now_ns);
                break;
            };
            let mut session = SessionId([0; 16]);
            session.0.copy_from_slice(&random[..16]);
            self.dial_anew(Box::new(Dial {
                session,
                worker: 0,
                lane: LaneIx(0),
                attempt: 1,
                peer: Peer {
                    address,
                    target: None,
                    node,
                },
                offer: self.offer,
                way: Way::Tcp,
                errand: Errand::Pool,
            }));
        }
        for id in self.pool.to_warm() {
            self.warm(id, now_ns);
        }
    }

    fn warm(&mut self, id: u64, now_ns: u64) {
        let Some(mut stranger) = self.lobby.take(id) else {
            return;
        };
        let Ok(stats) = stats(&stranger.fd) else {
            self.pool.lost(id, now_ns);
            return;
        };
        let seen = Seen {
            window_packets: stats.cwnd_segments,
            is_busy: stats.unacked_segments > 0 || stats.unsent_bytes > 0,
            gains: is_far(&stats) && stats.congestion_name() == KEEPS_ITS_WINDOW,
        };
        let pieces = self.pool.padding(id, seen, now_ns);
        match send_padding(&mut stranger, pieces) {
            Ok(()) => {
                let bytes = (pieces * PAD_BYTES) as u64;
                if let Ok(counters) = self.board.door() {
                    counters.pool_padding_bytes_total.add(bytes);
                }
                self.lobby.put_back(id, stranger);
            }
            Err(error) => {
                tracing::info!(peer = %stranger.peer, %error, "a ready connection was lost");
                self.pool.lost(id, now_ns);
            }
        }
    }

    /// Why the pool has one connection less than it should.
    pub(super) fn pool_failed(&mut self, dial: &Dial, failure: Failure, detail: &str) {
        let address = dial.peer.address;
        tracing::debug!(%address, detail, "no connection for the pool");
        let refused = failure != Failure::PeerLost;
        self.pool.failed(address, refused, monotonic_ns());
    }

    /// Lets go of everything that was made with certificates that have changed since.
    pub(super) fn let_go_of_secured(&mut self) {
        let now_ns = monotonic_ns();
        let waits = |one: &Stranger| matches!(one.side, Side::Ready | Side::Parked(_));
        for id in self.lobby.which(|one| waits(one) && one.tls.is_some()) {
            self.lobby.take(id);
            self.pool.lost(id, now_ns);
        }
    }

    /// A lane that was dialled is up.
    pub(super) fn note_up(&mut self, dial: &Dial, was_ready: bool) {
        if dial.errand == Errand::Lane {
            self.pool.came_up(dial.session);
        }
        if was_ready && let Ok(counters) = self.board.door() {
            counters.pool_hits_total.add(1);
        }
    }

    fn count_miss(&self) {
        if let Ok(counters) = self.board.door() {
            counters.pool_misses_total.add(1);
        }
    }
}

/// Whether a path is so long that its window takes a while to be wide.
const fn is_far(stats: &LaneStats) -> bool {
    stats.rtt_min_us >= FAR_RTT_US
}

/// What goes before the HELLO of a fresh lane on a far path: by the time that its first batch is sent, the kernel's
/// window is twice as wide. v1 and the lanes of devices go without.
pub(super) fn open_wide(stranger: &mut Stranger) -> Result<(), DoorError> {
    let is_lane = stranger
        .dial()
        .is_some_and(|dial| dial.errand == Errand::Lane);
    if !is_lane || stranger.was_parked {
        return Ok(());
    }
    let told = stats(&stranger.fd)?;
    if !is_far(&told) {
        return Ok(());
    }
    // HELLO, and what TLS has yet to say before it, must not wait for a wider window.
    let said = 1 + stranger.unsent.len().div_ceil(PACKET_BYTES) + told.unacked_segments as usize;
    let room = (told.cwnd_segments as usize).saturating_sub(said);
    send_padding(stranger, room.min(OPENING_PADDING_BYTES / PAD_BYTES))
}

/// Each piece is a packet of its own: the kernel's window counts those.
fn send_padding(stranger: &mut Stranger, pieces: usize) -> Result<(), DoorError> {
    let piece = pad(PAD_BYTES);
    for _ in 0..pieces {
        stranger.say(&piece)?;
        if !stranger.flush_with(SendFlags::EOR)? {
            break;
        }
    }
    Ok(())
}

/// Has the kernel notice that a connection on which nothing is said has died, or not any more.
pub(super) fn keep_alive(socket: impl AsFd, on: bool) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_socket_keepalive(socket, on)
}
