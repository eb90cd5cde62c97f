//! What a datagram does to a lane.
//!
//! Comes in: a datagram with a header that parsed. Goes out: frames in place, packets settled, or the
//! reason why the datagram was dropped. Promises: nothing of a datagram counts before its tag and its
//! number were checked.

use std::net::SocketAddr;

use super::{Acked, Connection, Fin, Losses};
use crate::lane::LaneClosed;
use crate::reliable::arrivals::ACK_DELAY_MAX_NS;
use crate::reliable::incoming::{Taken, Violation};
use crate::reliable::packet::{Ack, AckRanges, DataHead, Flags, Header, Kind, Reader};
use crate::reliable::seal::Forged;

/// Probe timeouts in a row that make a loss persistent congestion (RFC 9002, section 7.6).
const TIMEOUTS_PERSISTENT: u32 = 3;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reliable) enum Refusal {
    /// Its tag is wrong.
    Forged,
    /// It came before, or is too old to tell.
    Replayed,
    /// Its tag is right and its content is not.
    Malformed,
    /// It came before there were keys for it.
    Early,
}

impl From<Forged> for Refusal {
    fn from(_: Forged) -> Self {
        Self::Forged
    }
}

impl Connection {
    /// Takes a datagram of this lane.
    pub(in crate::reliable) fn hear(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        header: &Header,
        datagram: &mut [u8],
    ) -> Result<(), Refusal> {
        if self.over.is_some() {
            return Ok(());
        }
        match header.kind {
            Kind::Hello | Kind::Welcome => self.hear_setup(now_ns, from, header, datagram),
            Kind::Close if header.flags.has(Flags::SETUP) => {
                self.setup.keys().open(header.number, datagram)?;
                self.closed_by_peer();
                Ok(())
            }
            Kind::Close | Kind::Done | Kind::Packet => self.hear_peer(now_ns, header, datagram),
        }
    }

    fn hear_setup(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        header: &Header,
        datagram: &mut [u8],
    ) -> Result<(), Refusal> {
        let body = self.setup.keys().open(header.number, datagram)?;
        if let Some(agreed) = self.setup.hear(now_ns, header.kind, body) {
            self.peer = self.peer.or(Some(from));
            self.heard_ns = now_ns;
            self.agree(agreed, now_ns);
        }
        Ok(())
    }

    fn hear_peer(
        &mut self,
        now_ns: u64,
        header: &Header,
        datagram: &mut [u8],
    ) -> Result<(), Refusal> {
        let keys = self.keys.as_ref().ok_or(Refusal::Early)?;
        if !self.arrivals.is_new(header.number) {
            return Err(Refusal::Replayed);
        }
        let body = keys.open(header.number, datagram)?;
        self.heard_ns = now_ns;
        self.met = true;
        match header.kind {
            Kind::Close => self.closed_by_peer(),
            Kind::Done => self.done_by_peer(),
            _ => return self.hear_packet(now_ns, header, body),
        }
        Ok(())
    }

    fn closed_by_peer(&mut self) {
        self.abort(LaneClosed::Failed {
            errno: libc::ECONNRESET,
        });
    }

    /// The peer has all that was sent, its end included, and this side acknowledged the peer's.
    fn done_by_peer(&mut self) {
        if self.fin != Fin::Open && self.outgoing.acknowledge(self.outgoing.end()) {
            self.fin = Fin::Acked;
            self.log.forget_flight();
        }
    }

    fn hear_packet(&mut self, now_ns: u64, header: &Header, body: &[u8]) -> Result<(), Refusal> {
        let mut reader = Reader(body);
        let floor_back = reader.u32().ok_or(Refusal::Malformed)?;
        let floor = header
            .number
            .checked_sub(u64::from(floor_back))
            .ok_or(Refusal::Malformed)?;
        let ack = if header.flags.has(Flags::ACK) {
            let mut ranges = AckRanges::EMPTY;
            let ack = Ack::parse(&mut reader, &mut ranges).ok_or(Refusal::Malformed)?;
            Some((ack, ranges))
        } else {
            None
        };
        let data = if header.flags.has(Flags::DATA) {
            Some(DataHead::parse(&mut reader).ok_or(Refusal::Malformed)?)
        } else {
            None
        };
        if !reader.0.is_empty() {
            return Err(Refusal::Malformed);
        }
        if let Some((ack, ranges)) = ack {
            self.hear_ack(now_ns, header.number, &ack, &ranges);
        }
        let mut kept = true;
        if let Some((head, bytes)) = data {
            match self
                .incoming
                .take(&head, bytes, header.flags.has(Flags::FIN))
            {
                Ok(taken) => kept = taken == Taken::Kept,
                Err(violation) => self.violated(violation),
            }
        }
        if kept {
            self.arrivals
                .note(now_ns, header.number, header.flags, floor);
        } else {
            // It comes again under another number; the peer is to hear how much room there is.
            self.arrivals.hurry();
        }
        Ok(())
    }

    fn hear_ack(&mut self, now_ns: u64, number: u64, ack: &Ack, ranges: &AckRanges) {
        let Ok(settled) = self.log.acknowledge(now_ns, ranges, self.rtt.min_ns()) else {
            return self.violated(Violation::Nonsense);
        };
        if !self.outgoing.acknowledge(ack.contiguous) {
            return self.violated(Violation::Nonsense);
        }
        if let Some(sent_ns) = settled.largest_sent_ns {
            let delay_ns = (u64::from(ack.delay_us) * 1000).min(ACK_DELAY_MAX_NS);
            self.rtt.sample(now_ns.saturating_sub(sent_ns), delay_ns);
        }
        if settled.fin {
            self.fin = Fin::Acked;
        }
        if settled.spurious > 0 {
            self.congestion.on_spurious(settled.spurious);
        }
        let mut persistent = self.timeouts >= TIMEOUTS_PERSISTENT;
        if settled.data || settled.fin {
            self.timeouts = 0;
        }
        if settled.bytes > 0 {
            self.probes = 0;
            if let Some(rate) = settled.rate {
                self.delivery_rate_bytes_per_s = rate.bytes_per_s;
            }
            self.congestion.on_acked(&Acked {
                now_ns,
                bytes: settled.bytes,
                newest_sent_ns: settled.newest_sent_ns,
                delivered: self.log.delivered(),
                prior_delivered: settled.prior_delivered,
                in_flight_bytes: self.log.in_flight_bytes(),
                rate: settled.rate,
                rtt_latest_ns: self.rtt.latest_ns(),
                rtt_smoothed_ns: self.rtt.smoothed_ns(),
                window_limited: self.window_limited,
            });
        }
        if self.newest_ack.is_none_or(|newest| number > newest) {
            self.newest_ack = Some(number);
            let limit = ack.contiguous.saturating_add(u64::from(ack.window));
            if limit > self.limit {
                // The timeouts were those of a closed window.
                persistent &= settled.data;
                self.timeouts = 0;
            }
            self.limit = limit;
            if ack.restarts != self.peer_restarts {
                self.peer_restarts = ack.restarts;
                self.send_again();
            }
        }
        self.find_lost(now_ns, persistent);
    }

    /// The peer forgot, or had no memory for, what lies beyond what it has for good.
    fn send_again(&mut self) {
        self.log.forget_flight();
        self.outgoing.lose_all();
        if self.fin == Fin::Sent {
            self.fin = Fin::Due;
        }
    }

    /// Queues again what is lost, and follows congestion control in what it says then.
    pub(super) fn find_lost(&mut self, now_ns: u64, persistent: bool) {
        let (outgoing, fin, limit) = (&mut self.outgoing, &mut self.fin, self.limit);
        let (mut refused_bytes, mut refused) = (0, 0);
        let lost = self.log.find_lost(now_ns, &self.rtt, |carried| {
            outgoing.lose(carried.offset..carried.offset + u64::from(carried.len));
            if carried.fin && *fin == Fin::Sent {
                *fin = Fin::Due;
            }
            if carried.len > 0 && carried.offset >= limit {
                // The peer had no memory for it: that says nothing of the path.
                refused_bytes += u64::from(carried.bytes);
                refused += 1;
            }
        });
        if lost.packets > refused {
            self.congestion.on_lost(&Losses {
                now_ns,
                bytes: lost.bytes - refused_bytes,
                packets: lost.packets - refused,
                newest_sent_ns: lost.newest_sent_ns,
                persistent,
            });
        }
        self.window = self.congestion.window_bytes();
        self.pacer.set(self.congestion.pacing_bytes_per_s());
    }
}
