//! One lane as a state machine: no clock, no socket, no thread of its own.
//!
//! Comes in: datagrams whose header fits, frames to send, the time. Goes out: frames, datagrams built in
//! place, and when to look again. Promises what [`crate::lane`] promises of one lane; a `plan` changes
//! nothing, so a port that has no room costs nothing.
//!
//! - `receive`: what a datagram does
//! - `transmit`: which datagram goes next, and its bytes
//! - `timers`: what happens when nothing comes

mod receive;
mod timers;
mod transmit;

use std::net::SocketAddr;

pub(super) use receive::Refusal;

use super::arrivals::Arrivals;
use super::congestion::{Acked, Controller, Losses, controller};
use super::endpoint::{Meeting, ReliableConfig, ReliableEndpoint};
use super::incoming::{Incoming, Violation};
use super::outgoing::{Outgoing, QueueLimits};
use super::pacer::Pacer;
use super::packet::{CLOSE_DATAGRAM_BYTES, Flags, Header, Kind, Setup, TAG_BYTES, Writer};
use super::rtt::Rtt;
use super::seal::Keys;
use super::sent::SentLog;
use super::setup::{Agreed, SetUp};
use crate::frame::{Frame, FramePools};
use crate::lane::{LaneClosed, LaneId, LaneStats, RefusedReason, WireBytes};

/// Where the end of the outgoing stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    /// More frames may come, or wait.
    Open,
    /// To be sent.
    Due,
    /// On its way.
    Sent,
    /// The peer has it.
    Acked,
}

/// The last datagram of a lane, said again to a peer that did not hear it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Farewell {
    pub(super) connection: u64,
    pub(super) peer: Option<SocketAddr>,
    pub(super) datagram: [u8; CLOSE_DATAGRAM_BYTES],
    pub(super) len: usize,
    /// Both sides finished: it is enough to say it once, and to answer. Once, for the peer may have held the
    /// end of its stream for lost and not know that it arrived, and nobody answers for a group that is gone.
    pub(super) finished: bool,
}

/// What a lane is to know of the network below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    /// Bytes of the longest datagram.
    pub(super) max_payload: u16,
    /// Content that was damaged on the way does not arrive.
    pub(super) finds_damage: bool,
}

/// One lane.
pub(super) struct Connection {
    pub(super) id: LaneId,
    number_of_connection: u64,
    peer: Option<SocketAddr>,
    setup: SetUp,
    keys: Option<Keys>,
    path_finds_damage: bool,
    /// The peer has the keys too.
    met: bool,
    /// Length of the longest datagram.
    datagram_bytes: usize,
    silence_max_ns: u64,

    outgoing: Outgoing,
    log: SentLog,
    rtt: Rtt,
    congestion: Box<dyn Controller>,
    /// What it allows on the way, in bytes of datagrams.
    window: u64,
    pacer: Pacer,
    /// Stream bytes that this side leaves unacknowledged, at most.
    window_max: u64,
    /// The peer has memory up to this stream offset.
    limit: u64,
    /// The number of the newest acknowledgement.
    newest_ack: Option<u64>,
    /// What it said.
    peer_restarts: u16,
    fin: Fin,
    finishing: bool,
    /// The last try to send found the window or the pace in its way.
    window_limited: bool,
    /// It found that the peer has no memory for more.
    held_by_peer: bool,
    /// Probes that may go beyond the window.
    probes: u8,
    ping: bool,
    timeouts: u32,
    asked_ns: u64,
    retransmits: u32,
    delivery_rate_bytes_per_s: u64,

    incoming: Incoming,
    arrivals: Arrivals,
    heard_ns: u64,

    /// A frame was refused since the last `Writable`.
    refused: bool,
    over: Option<LaneClosed>,
    /// Whether the lane is in the group's list of lanes to serve.
    pub(super) listed: bool,
}

impl Connection {
    pub(super) fn new(
        id: LaneId,
        endpoint: &ReliableEndpoint,
        config: &ReliableConfig,
        path: Path,
        nonce: [u8; 16],
        pools: &FramePools,
        now_ns: u64,
    ) -> Self {
        let max_payload = path.max_payload;
        let datagram_bytes = usize::from(max_payload);
        let window_max = config.window_bytes_max as u64;
        let mut incoming = Incoming::new(pools.clone(), window_max);
        let congestion = controller(config.congestion, datagram_bytes as u64);
        let own = Setup {
            max_payload,
            window: incoming.promise_window(),
            nonce,
        };
        // Twice the packets that a full window has, for acknowledgements and short packets between.
        let packets = 2 * config.window_bytes_max / datagram_bytes;
        Self {
            id,
            number_of_connection: endpoint.connection,
            peer: match endpoint.meeting {
                Meeting::Connect(peer) => Some(peer),
                Meeting::Accept => None,
            },
            setup: SetUp::new(endpoint, own, now_ns),
            keys: None,
            path_finds_damage: path.finds_damage,
            met: false,
            datagram_bytes,
            silence_max_ns: config.silence_max.as_nanos() as u64,
            outgoing: Outgoing::new(QueueLimits {
                frames: usize::from(config.queue_frames_max),
                bytes: config.queue_bytes_max,
            }),
            log: SentLog::new(packets.clamp(1024, 1 << 16)),
            rtt: Rtt::default(),
            window: congestion.window_bytes(),
            congestion,
            pacer: Pacer::new(datagram_bytes),
            window_max,
            limit: 0,
            newest_ack: None,
            peer_restarts: 0,
            fin: Fin::Open,
            finishing: false,
            window_limited: false,
            held_by_peer: false,
            probes: 0,
            ping: false,
            timeouts: 0,
            asked_ns: now_ns,
            retransmits: 0,
            delivery_rate_bytes_per_s: 0,
            incoming,
            arrivals: Arrivals::new(),
            heard_ns: now_ns,
            refused: false,
            over: None,
            listed: false,
        }
    }

    pub(super) fn number_of_connection(&self) -> u64 {
        self.number_of_connection
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn agree(&mut self, agreed: Agreed, now_ns: u64) {
        self.keys = Some(if self.path_finds_damage {
            agreed.keys.without_sums()
        } else {
            agreed.keys
        });
        self.met = agreed.peer_has_keys;
        if agreed.datagram_bytes != self.datagram_bytes {
            self.datagram_bytes = agreed.datagram_bytes;
            self.pacer = Pacer::new(agreed.datagram_bytes);
        }
        self.limit = u64::from(agreed.window);
        if let Some(asked_ns) = agreed.asked_once_ns {
            self.rtt.sample(now_ns.saturating_sub(asked_ns), 0);
        }
    }

    /// Queues a frame, or gives it back.
    pub(super) fn submit(&mut self, frame: Frame) -> Result<(), (Frame, RefusedReason)> {
        if self.finishing || self.over.is_some() {
            return Err((frame, RefusedReason::Unknown));
        }
        self.outgoing.submit(frame).map_err(|frame| {
            self.refused = true;
            (frame, RefusedReason::Full)
        })
    }

    pub(super) fn finish(&mut self) {
        if !self.finishing {
            self.finishing = true;
            self.fin = Fin::Due;
        }
    }

    /// Ends the lane: what is queued is dropped, the peer is told by [`Connection::farewell`].
    pub(super) fn abort(&mut self, reason: LaneClosed) {
        if self.over.is_none() {
            self.over = Some(reason);
            self.outgoing.clear();
            self.incoming.clear();
        }
    }

    fn violated(&mut self, violation: Violation) {
        self.abort(match violation {
            Violation::BadLength { announced_bytes } => LaneClosed::BadLength { announced_bytes },
            Violation::Truncated => LaneClosed::Truncated,
            Violation::Nonsense => LaneClosed::Failed {
                errno: libc::EPROTO,
            },
        });
    }

    /// Why the lane is over, once it is.
    pub(super) fn over(&self) -> Option<LaneClosed> {
        self.over
    }

    /// Looks whether both sides finished. To be called after frames were handed out and datagrams sent.
    pub(super) fn end_if_finished(&mut self) {
        if self.over.is_some() {
            return;
        }
        match self.incoming.has_ended() {
            Err(violation) => self.violated(violation),
            Ok(false) => {}
            Ok(true) => {
                self.finish();
                let heard = self.outgoing.acked_bytes() == self.outgoing.end();
                // The peer waits for the acknowledgement of its end.
                if self.fin == Fin::Acked && heard && !self.arrivals.has_news() {
                    self.abort(LaneClosed::Finished);
                }
            }
        }
    }

    /// The next whole frame.
    pub(super) fn deliver(&mut self) -> Option<Frame> {
        self.incoming.deliver()
    }

    pub(super) fn has_whole_frame(&self) -> bool {
        self.incoming.has_whole_frame()
    }

    /// Whether somebody waits to hear that the queue has room, and it has.
    pub(super) fn is_writable_again(&self) -> bool {
        self.refused && !self.finishing && self.outgoing.is_low()
    }

    pub(super) fn told_writable(&mut self) {
        self.refused = false;
    }

    /// Looks whether a buffer came back that the lane waits for. True: there is something to send.
    pub(super) fn relieve(&mut self) -> bool {
        let relieved = self.incoming.relieve();
        if relieved {
            self.arrivals.hurry();
        }
        relieved
    }

    /// Whether the lane waits for a buffer.
    pub(super) fn is_starved(&self) -> bool {
        self.incoming.is_starved()
    }

    /// What the peer is to hear last.
    pub(super) fn farewell(&self, reason: LaneClosed) -> Farewell {
        let finished = reason == LaneClosed::Finished;
        let mut flags = Flags::default();
        let (keys, number) = match &self.keys {
            Some(keys) if self.met => (keys, self.log.next_number()),
            _ => {
                flags.set(Flags::SETUP);
                // Another number than HELLO and WELCOME have.
                (self.setup.keys(), 1)
            }
        };
        let header = Header {
            kind: if finished { Kind::Done } else { Kind::Close },
            flags,
            connection: self.number_of_connection,
            number,
        };
        let mut datagram = [0; CLOSE_DATAGRAM_BYTES];
        let mut writer = Writer::new(&mut datagram);
        header.write(&mut writer);
        writer.space(keys.cover_bytes());
        if !finished {
            let broken = !matches!(reason, LaneClosed::Local);
            writer.put(u16::from(broken).to_le_bytes());
        }
        let head = writer.written();
        let len = head + TAG_BYTES;
        keys.seal(number, head, &mut datagram[..len]);
        Farewell {
            connection: self.number_of_connection,
            peer: self.peer,
            datagram,
            len,
            finished,
        }
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.outgoing.unsent_bytes() as usize
    }

    pub(super) fn wire_bytes(&self) -> WireBytes {
        WireBytes {
            sent: self.outgoing.sent_bytes(),
            received: self.incoming.contiguous(),
        }
    }

    pub(super) fn stats(&self) -> LaneStats {
        let mut congestion = [0; 16];
        for (space, byte) in congestion.iter_mut().zip(self.congestion.name().bytes()) {
            *space = byte;
        }
        let us = |ns: u64| u32::try_from(ns / 1000).unwrap_or(u32::MAX);
        let window = self.window / self.datagram_bytes as u64;
        LaneStats {
            rtt_us: us(self.rtt.smoothed_ns()),
            rtt_min_us: us(self.rtt.min_ns()),
            retransmits: self.retransmits,
            delivery_rate_bytes_per_s: self.delivery_rate_bytes_per_s,
            is_app_limited: self.outgoing.unsent_bytes() == 0,
            acked_bytes: self.outgoing.acked_bytes(),
            unsent_bytes: u32::try_from(self.outgoing.unsent_bytes()).unwrap_or(u32::MAX),
            unacked_segments: self.log.in_flight(),
            cwnd_segments: u32::try_from(window).unwrap_or(u32::MAX),
            mss_bytes: self.datagram_bytes as u32,
            congestion,
        }
    }
}
