//! TCP flows seen on a link, in the order in which they began.
//!
//! In: IPv4 packets. Out: which flow each belongs to and whether it is cut. Promise: malformed
//! packets belong to no flow; the table keeps at most [`MAX_FLOWS`] flows.

use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// Flows remembered; the ones after that pass uncounted.
const MAX_FLOWS: usize = 65_536;

/// One TCP connection, either direction: the smaller address first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Flow {
    /// One end.
    pub low: SocketAddrV4,
    /// The other end.
    pub high: SocketAddrV4,
}

/// What is known of one flow.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FlowState {
    /// The flow.
    pub flow: Flow,
    /// IP bytes seen, both directions.
    pub wire_bytes: u64,
    /// Ended by FIN or RST.
    pub closed: bool,
    order: usize,
}

/// Of what a slowed flow may send, this much may come at once: a few packets.
const SLOW_BURST_BYTES: f64 = 8_000.0;

/// How a flow is slowed: a token bucket that drops.
struct Slow {
    bytes_per_s: f64,
    left_bytes: f64,
    looked: Instant,
}

impl Slow {
    fn pass(&mut self, bytes: f64, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.looked).as_secs_f64() * self.bytes_per_s;
        self.left_bytes = (self.left_bytes + gained).min(SLOW_BURST_BYTES);
        self.looked = now;
        // A segment longer than what may come at once goes into debt.
        let passes = self.left_bytes > 0.0;
        if passes {
            self.left_bytes -= bytes;
        }
        passes
    }
}

#[derive(Default)]
pub(crate) struct FlowTable {
    flows: HashMap<Flow, FlowState>,
    cut: HashSet<Flow>,
    slow: HashMap<Flow, Slow>,
}

impl FlowTable {
    /// Counts a packet; false when its flow is cut.
    pub(crate) fn pass(&mut self, packet: &[u8], wire_bytes: u64) -> bool {
        let Some((flow, flags)) = parse(packet) else {
            return true;
        };
        if !self.cut.is_empty() && self.cut.contains(&flow) {
            return false;
        }
        if let Some(slow) = self.slow.get_mut(&flow)
            && !slow.pass(wire_bytes as f64, Instant::now())
        {
            return false;
        }
        let order = self.flows.len();
        if order >= MAX_FLOWS && !self.flows.contains_key(&flow) {
            return true;
        }
        let fresh = FlowState {
            flow,
            wire_bytes: 0,
            closed: false,
            order,
        };
        let state = self.flows.entry(flow).or_insert(fresh);
        state.wire_bytes += wire_bytes;
        state.closed |= flags & 0x05 != 0;
        true
    }

    /// Open flows with one end on `port`, oldest first.
    pub(crate) fn open(&self, port: u16) -> Vec<FlowState> {
        let on = |f: &Flow| f.low.port() == port || f.high.port() == port;
        let alive = |s: &&FlowState| !s.closed && on(&s.flow) && !self.cut.contains(&s.flow);
        let mut open: Vec<_> = self.flows.values().filter(alive).copied().collect();
        open.sort_by_key(|state| state.order);
        open
    }

    pub(crate) fn cut(&mut self, flow: Flow) {
        self.cut.insert(flow);
    }

    pub(crate) fn slow(&mut self, flow: Flow, bytes_per_s: u64) {
        let slow = Slow {
            bytes_per_s: bytes_per_s as f64,
            left_bytes: SLOW_BURST_BYTES,
            looked: Instant::now(),
        };
        self.slow.insert(flow, slow);
    }

    pub(crate) fn restore(&mut self) {
        self.cut.clear();
        self.slow.clear();
    }
}

/// IPv4 with TCP only (RFC 791, RFC 9293): addresses, ports and flags.
fn parse(packet: &[u8]) -> Option<(Flow, u8)> {
    let first = *packet.first()?;
    let header = usize::from(first & 15) * 4;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != 6 {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let port = |at: usize| {
        let bytes: [u8; 2] = packet.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    let a = SocketAddrV4::new(address(12)?, port(header)?);
    let b = SocketAddrV4::new(address(16)?, port(header + 2)?);
    let flags = *packet.get(header + 13)?;
    Some((
        Flow {
            low: a.min(b),
            high: a.max(b),
        },
        flags,
    ))
}

/// Bytes on the wire of a packet that the kernel will cut into segments of `gso_bytes`: each gets
/// a copy of the headers.
pub(crate) fn wire_bytes(packet: &[u8], header_bytes: usize, gso_bytes: usize) -> u64 {
    let length = packet.len();
    if gso_bytes == 0 || header_bytes == 0 || header_bytes >= length {
        return length as u64;
    }
    let segments = (length - header_bytes).div_ceil(gso_bytes);
    (length + (segments - 1) * header_bytes) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&[10, 99, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 99, 0, 2]);
        packet[20..22].copy_from_slice(&source.to_be_bytes());
        packet[22..24].copy_from_slice(&destination.to_be_bytes());
        packet[33] = flags;
        packet
    }

    #[test]
    fn a_cut_flow_is_stopped_and_the_others_pass() {
        let mut table = FlowTable::default();
        for source in [1001, 1000, 1002] {
            assert!(table.pass(&tcp(source, 7400, 2), 40));
        }
        assert!(table.pass(&tcp(1003, 22, 2), 40));
        assert!(table.pass(&tcp(1002, 7400, 1), 40));
        let open = table.open(7400);
        assert_eq!(open.len(), 2, "closed flows and other ports are left out");
        assert_eq!(open[0].flow.low.port(), 1001, "oldest first");
        table.cut(open[0].flow);
        assert!(!table.pass(&tcp(1001, 7400, 16), 40));
        assert!(table.pass(&tcp(1000, 7400, 16), 40));
        table.restore();
        assert!(table.pass(&tcp(1001, 7400, 16), 40));
    }

    #[test]
    fn a_slowed_flow_passes_what_it_may_and_the_others_all() {
        let mut table = FlowTable::default();
        let packet = tcp(1000, 7400, 16);
        assert!(table.pass(&packet, 1_500));
        table.slow(table.open(7400)[0].flow, 1_000);
        let passed = (0..100).filter(|_| table.pass(&packet, 1_500)).count();
        assert_eq!(passed, 6, "what may come at once");
        assert!(table.pass(&tcp(1001, 7400, 16), 1_500));
        table.restore();
        assert!(table.pass(&packet, 1_500));
    }

    #[test]
    fn long_segments_count_every_header() {
        assert_eq!(wire_bytes(&[0; 40 + 3000], 40, 1460), 3000 + 3 * 40);
        assert_eq!(wire_bytes(&[0; 60], 0, 0), 60);
    }

    #[test]
    fn malformed_packets_belong_to_no_flow() {
        for length in 0..40 {
            assert!(parse(&tcp(1, 2, 0)[..length.min(33)]).is_none());
        }
        let mut bad = tcp(1, 2, 0);
        bad[0] = 0x41;
        assert!(parse(&bad).is_none());
    }
}
