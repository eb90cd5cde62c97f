//! What a session may send beside others: the limits of the operator, its part of the link, and who goes first.
//!
//! In: the limits, the words of the other sessions. Out: whether the next batch may leave. Promises: over any
//! second little more than each limit leaves; bulk waits while another session on the same link hands its guest
//! over; that session itself waits for the operator's limits alone.

use std::net::SocketAddr;

use dwcp_drivers::lane::LaneGroup;

use super::rate_limit::RateLimit;
use super::{Hands, Session};
use crate::engine::board::SessionCell;
use crate::engine::seats::Seat;

/// See the module. A destination has no seat: what it sends is answers.
pub(super) struct Share {
    seat: Option<Seat>,
    /// The part of the link that it was given, when it was ahead of others.
    part: RateLimit,
    waits: bool,
    looked_ns: u64,
    waited_ns: u64,
    pub(super) in_tail: bool,
}

impl Share {
    /// The share of a session that sends to `peer`; of a destination, none.
    pub(super) fn new(cell: &SessionCell, peer: Option<SocketAddr>, now_ns: u64) -> Self {
        Self {
            seat: peer.map(|peer| cell.seat(link_of(peer))),
            part: RateLimit::new(0, now_ns),
            waits: false,
            looked_ns: now_ns,
            waited_ns: 0,
            in_tail: false,
        }
    }

    /// May the next batch leave, as far as others are concerned? `limit` is that of all together.
    pub(super) fn allows(&self, limit: u64, now_ns: u64) -> bool {
        let Some(seat) = &self.seat else {
            return true;
        };
        let mine = self.in_tail || (self.part.allows(now_ns) && !seat.another_goes_first(now_ns));
        mine && seat.is_within(limit, now_ns)
    }

    /// A batch left.
    pub(super) fn spend(&mut self, bytes: u64, limit: u64, now_ns: u64) {
        if let Some(seat) = &self.seat {
            self.part.spend(bytes, now_ns);
            seat.spend(bytes, limit, now_ns);
        }
    }

    /// Tells the others how it stands, and hears what it may have.
    fn look(&mut self, sent_bytes: u64, waits: bool, now_ns: u64) {
        let Some(seat) = &self.seat else {
            return;
        };
        if self.waits {
            self.waited_ns += now_ns.saturating_sub(self.looked_ns);
        }
        self.waits = waits;
        self.looked_ns = now_ns;
        seat.note(sent_bytes, self.waited_ns);
        self.part.set(seat.rate(), now_ns);
    }
}

/// Sessions to the same host share a link, whatever the port.
fn link_of(peer: SocketAddr) -> u64 {
    match peer.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => u64::from(ip.to_bits()) | 1 << 63,
        std::net::IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            (bits >> 64) as u64 ^ bits as u64 | 1
        }
    }
}

impl Session {
    /// May the next batch leave now?
    pub(super) fn may_send<G: LaneGroup>(&self, hands: &Hands<'_, G>) -> bool {
        let limit = hands.switches.link_limit_bytes_per_s();
        let free = self.rate_limit.allows(hands.now_ns) && self.share.allows(limit, hands.now_ns);
        free && !self.path.floor.holds_back()
    }

    /// A batch of so many bytes left.
    pub(super) fn spend<G: LaneGroup>(&mut self, bytes: u64, hands: &Hands<'_, G>) {
        let limit = hands.switches.link_limit_bytes_per_s();
        self.rate_limit.spend(bytes, hands.now_ns);
        self.share.spend(bytes, limit, hands.now_ns);
    }

    /// Looks at what it shares, once a turn.
    pub(super) fn look_at_share<G: LaneGroup>(&mut self, hands: &Hands<'_, G>) {
        if !self.is_source() {
            return;
        }
        let Some(link) = self.link.as_mut() else {
            return;
        };
        // Pages that a guest waits for are behind whatever is on the way, and its batches are small.
        link.outbound.set_lean(self.in_postcopy);
        // Whatever holds it up, the line, its window or this worker: what others leave of it is of use.
        let unread = self.channels.iter().any(|channel| channel.readable);
        let waits = unread || link.outbound.has_queued();
        let sent_bytes = self.picture.wire_bytes_sent;
        self.share.look(sent_bytes, waits, hands.now_ns);
        if !self.share.in_tail && self.guest_stands_still() {
            self.share.in_tail = true;
            if let Some(seat) = &self.share.seat {
                seat.begin_tail(hands.now_ns);
            }
        }
    }

    /// Has the hypervisor stopped the guest, to send the rest of it?
    fn guest_stands_still(&self) -> bool {
        self.destination_may_run
            || self.channels.iter().any(|channel| {
                let facts = channel.intake.facts();
                facts.switchover_start_seen || facts.ram_end_begun
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_link_whatever_the_port_and_however_it_is_written() {
        let of = |text: &str| link_of(text.parse().unwrap());
        assert_eq!(of("10.0.0.2:4790"), of("10.0.0.2:1"));
        assert_eq!(of("10.0.0.2:1"), of("[::ffff:10.0.0.2]:1"));
        assert_ne!(of("10.0.0.2:1"), of("10.0.0.3:1"));
        assert_ne!(of("[fd00::1]:1"), of("[fd00::2]:1"));
        assert_ne!(of("0.0.0.0:1"), 0);
    }
}
