//! Which datagram a lane sends next, and its bytes.
//!
//! Comes in: the time, and room for a datagram. Goes out: a [`Plan`], and its bytes. Promises: a frame's
//! bytes are copied once, into the datagram; new data keeps to the window of the peer, of the path,
//! and to the pace; acknowledgements never wait for any of them.

use super::{Connection, Fin};
use crate::reliable::outgoing::Piece;
use crate::reliable::packet::{
    ACK_BYTES_MIN, ACK_RANGE_BYTES, ACK_RANGES_MAX, Ack, DATA_HEAD_BYTES, DataHead, FLOOR_BYTES,
    Flags, HEADER_BYTES, Header, Kind, TAG_BYTES, Writer,
};
use crate::reliable::seal::Keys;
use crate::reliable::sent::Carried;

/// The next datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reliable) enum Plan {
    /// HELLO or WELCOME.
    SetUp,
    /// A PACKET.
    Packet {
        /// With an acknowledgement.
        ack: bool,
        data: Option<Piece>,
        fin: bool,
        ping: bool,
    },
}

impl Plan {
    /// Whether more may follow soon. Nothing follows an acknowledgement.
    pub(in crate::reliable) fn is_work(&self) -> bool {
        match self {
            Self::SetUp => true,
            Self::Packet {
                data, fin, ping, ..
            } => data.is_some() || *fin || *ping,
        }
    }
}

impl Connection {
    /// What goes next, if anything goes now. Nothing counts as sent before [`Connection::write`].
    pub(in crate::reliable) fn plan(&mut self, now_ns: u64) -> Option<Plan> {
        if self.over.is_some() || self.peer.is_none() {
            return None;
        }
        if self.setup.due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            return Some(Plan::SetUp);
        }
        self.keys.as_ref()?;
        let data = self.next_data(now_ns);
        let at_the_end = match data {
            Some(piece) => piece.offset + piece.len as u64 == self.outgoing.end(),
            None => !self.wants_to_send_data(),
        };
        let fin = self.fin == Fin::Due && at_the_end && self.log.has_room_for_ack();
        // A probe without data to send is a question.
        let asks = (self.ping || self.probes > 0) && data.is_none() && !fin;
        let ping = asks && self.log.has_room_for_probe();
        let due = self.arrivals.is_due(now_ns) && self.log.has_room_for_ack();
        let ack_bytes = ACK_BYTES_MIN
            + ACK_RANGE_BYTES
                * self
                    .arrivals
                    .ranges()
                    .saturating_sub(1)
                    .min(ACK_RANGES_MAX - 1);
        let data_bytes = match data {
            Some(piece) => DATA_HEAD_BYTES + piece.len,
            None if fin => DATA_HEAD_BYTES,
            None => 0,
        };
        let fits = self.framing_bytes() + ack_bytes + data_bytes <= self.datagram_bytes;
        if due && !fits {
            // Data that fills its datagram goes without; the acknowledgement does not wait for less.
            return Some(Plan::Packet {
                ack: true,
                data: None,
                fin: false,
                ping: false,
            });
        }
        (due || data.is_some() || fin || ping).then_some(Plan::Packet {
            ack: fits && self.arrivals.has_news(),
            data,
            fin,
            ping,
        })
    }

    fn next_data(&mut self, now_ns: u64) -> Option<Piece> {
        self.held_by_peer = false;
        if !self.wants_to_send_data() {
            return None;
        }
        let in_flight = self.log.in_flight_bytes();
        if self.probes == 0 {
            self.pacer.fill(now_ns);
            self.window_limited = in_flight + self.datagram_bytes as u64 > self.window;
            if self.window_limited || !self.log.has_room_for_data() {
                return None;
            }
            if !self.pacer.may_send() {
                self.window_limited = true;
                return None;
            }
        } else if !self.log.has_room_for_probe() {
            return None;
        }
        let room = self.data_room();
        let limit = self.send_limit();
        // A scrap up to the peer's limit waits for more, while there is something to wait for.
        let piece = self.outgoing.next_piece(room, limit).filter(|piece| {
            let end = piece.offset + piece.len as u64;
            let scrap = end == limit && piece.len < room / 2 && end < self.outgoing.end();
            !scrap || in_flight == 0
        });
        self.held_by_peer = piece.is_none();
        piece
    }

    /// Bytes of data that fit into a datagram without an acknowledgement.
    fn data_room(&self) -> usize {
        self.datagram_bytes - self.framing_bytes() - DATA_HEAD_BYTES
    }

    /// Bytes of a PACKET that are neither data nor acknowledgement.
    fn framing_bytes(&self) -> usize {
        HEADER_BYTES + self.cover_bytes() + FLOOR_BYTES + TAG_BYTES
    }

    fn cover_bytes(&self) -> usize {
        self.keys.as_ref().map_or(0, Keys::cover_bytes)
    }

    /// No data goes beyond this stream offset.
    fn send_limit(&self) -> u64 {
        self.limit
            .min(self.outgoing.acked_bytes() + self.window_max)
    }

    /// Writes what was planned, and counts it as sent. Returns the datagram's length; 0: `buf` is shorter
    /// than the port promised.
    pub(in crate::reliable) fn write(&mut self, plan: &Plan, now_ns: u64, buf: &mut [u8]) -> usize {
        let Plan::Packet {
            ack,
            data,
            fin,
            ping,
        } = *plan
        else {
            return self.setup.write(now_ns, buf);
        };
        if buf.len() < self.datagram_bytes {
            return 0;
        }
        let number = self.log.next_number();
        let mut flags = Flags::default();
        if ack {
            flags.set(Flags::ACK);
        }
        if data.is_some() || fin {
            flags.set(Flags::DATA);
        }
        if fin {
            flags.set(Flags::FIN);
        }
        if ping {
            flags.set(Flags::PING);
        }
        if data.is_some_and(|piece| self.is_last_for_now(&piece)) || fin {
            flags.set(Flags::PROMPT);
        }
        let header = Header {
            kind: Kind::Packet,
            flags,
            connection: self.number_of_connection,
            number,
        };
        let mut writer = Writer::new(buf);
        header.write(&mut writer);
        writer.space(self.cover_bytes());
        let floor_back = u32::try_from(number - self.log.floor()).unwrap_or(u32::MAX);
        writer.put(floor_back.to_le_bytes());
        if ack {
            self.write_ack(now_ns, &mut writer);
        }
        if data.is_some() || fin {
            self.write_data_head(data.as_ref(), &mut writer);
        }
        let head = writer.written();
        if let Some(piece) = &data {
            self.outgoing.copy(piece, writer.space(piece.len));
        }
        let len = writer.written() + TAG_BYTES;
        if let Some(keys) = &self.keys {
            keys.seal(number, head, &mut buf[..len]);
        }
        self.count(plan, now_ns, len);
        len
    }

    /// Whether the sender has nothing to send behind this piece, or may not send it.
    fn is_last_for_now(&self, piece: &Piece) -> bool {
        let end = piece.offset + piece.len as u64;
        let in_flight = self.log.in_flight_bytes() + 2 * self.datagram_bytes as u64;
        end == self.outgoing.end()
            || end == self.send_limit()
            || in_flight > self.window
            || self.probes > 0
    }

    fn write_ack(&mut self, now_ns: u64, writer: &mut Writer<'_>) {
        let Some((largest, delay_us)) = self.arrivals.largest(now_ns) else {
            return;
        };
        let ack = Ack {
            largest,
            delay_us,
            contiguous: self.incoming.contiguous(),
            window: self.incoming.promise_window(),
            restarts: self.incoming.restarts(),
        };
        let room = ACK_BYTES_MIN + ACK_RANGE_BYTES * (ACK_RANGES_MAX - 1);
        ack.write(writer, self.arrivals.descending(), room);
        self.arrivals.told();
    }

    fn write_data_head(&self, data: Option<&Piece>, writer: &mut Writer<'_>) {
        let head = match data {
            Some(piece) => DataHead {
                offset: piece.offset,
                back: piece.back,
                frame_len: piece.frame_len,
                len: piece.len as u16,
            },
            None => DataHead {
                offset: self.outgoing.end(),
                back: 0,
                frame_len: 0,
                len: 0,
            },
        };
        head.write(writer);
    }

    fn count(&mut self, plan: &Plan, now_ns: u64, len: usize) {
        let Plan::Packet {
            data, fin, ping, ..
        } = *plan
        else {
            return;
        };
        if data.is_none() && !fin && !ping {
            return self.log.push_untracked();
        }
        let carried = Carried {
            offset: data.map_or(self.outgoing.end(), |piece| piece.offset),
            len: data.map_or(0, |piece| piece.len as u16),
            fin,
            bytes: len as u16,
        };
        self.log.push_tracked(now_ns, carried);
        if data.is_some() && !self.wants_to_send_data() {
            self.log.set_app_limited();
        }
        self.pacer.sent(len);
        self.asked_ns = now_ns;
        self.probes = self.probes.saturating_sub(1);
        self.ping &= !ping;
        if fin {
            self.fin = Fin::Sent;
        }
        if data.is_some_and(|piece| piece.again) {
            self.retransmits = self.retransmits.saturating_add(1);
        }
    }
}
