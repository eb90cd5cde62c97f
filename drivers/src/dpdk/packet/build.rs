//! From an address to the headers in front of a payload, and the packets that find neighbours.
//!
//! Comes in: who sends, who shall receive, a buffer. Goes out: the length of the frame in that
//! buffer. Promises: what is built here is accepted by [`super::parse`]; a buffer that is too small
//! gives nothing rather than part of a packet.
//!
//! IPv4 datagrams carry no UDP checksum (RFC 768 allows that): the transport above has a tag or a better sum
//! over each one where the wire can damage it, and another would cost a pass over the payload. IPv6 demands one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::{U16, U32};

use super::Mac;
use super::checksum::{Sum, pseudo_v6};
use super::parse::solicited_node;
use super::wire::{
    ARP_REPLY, ARP_REQUEST, Arp, DONT_FRAGMENT, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
    Ethernet, Ipv4, Ipv6, LinkOption, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_HOP_LIMIT,
    NEIGHBOUR_SOLICITATION, Neighbour, OPTION_SOURCE_LINK, OPTION_TARGET_LINK, PROTOCOL_ICMPV6,
    PROTOCOL_UDP, SOLICITED_OVERRIDE, Udp,
};

/// Ethernet, IPv4 and UDP, in bytes.
pub const HEADERS_V4: usize = size_of::<Ethernet>() + size_of::<Ipv4>() + size_of::<Udp>();
/// Ethernet, IPv6 and UDP, in bytes.
pub const HEADERS_V6: usize = size_of::<Ethernet>() + size_of::<Ipv6>() + size_of::<Udp>();

const HOPS: u8 = 64;

/// The headers of every datagram to one destination: made once, copied in front of each payload,
/// with only lengths and checksums left to write.
#[derive(Debug, Clone)]
pub struct Headers {
    bytes: [u8; HEADERS_V6],
    family: Family,
}

#[derive(Debug, Clone, Copy)]
enum Family {
    /// With the sum over the IP header as it is but for its length.
    V4(Sum),
    /// With the addresses that a UDP checksum covers.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Headers {
    /// Headers from one socket to another over the Ethernet address `next_hop`; none when one is
    /// IPv4 and the other IPv6.
    #[must_use]
    pub fn new(from: (Mac, SocketAddr), next_hop: Mac, to: SocketAddr) -> Option<Self> {
        let (mac, from) = from;
        let udp = Udp {
            source: U16::new(from.port()),
            destination: U16::new(to.port()),
            bytes: U16::ZERO,
            checksum: U16::ZERO,
        };
        let ethernet = |ethertype| Ethernet {
            destination: next_hop.0,
            source: mac.0,
            ethertype: U16::new(ethertype),
        };
        let mut bytes = [0; HEADERS_V6];
        let family = match (from.ip(), to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = Ipv4 {
                    version_words: 0x45,
                    traffic: 0,
                    total_bytes: U16::ZERO,
                    identification: U16::ZERO,
                    fragment: U16::new(DONT_FRAGMENT),
                    hops: HOPS,
                    protocol: PROTOCOL_UDP,
                    checksum: U16::ZERO,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                let ethernet = ethernet(ETHERTYPE_IPV4);
                put(
                    &mut bytes,
                    &[ethernet.as_bytes(), ip.as_bytes(), udp.as_bytes()],
                )?;
                Family::V4(Sum::new().over(ip.as_bytes()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6 {
                    version_flow: U32::new(6 << 28),
                    payload_bytes: U16::ZERO,
                    next: PROTOCOL_UDP,
                    hops: HOPS,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                let ethernet = ethernet(ETHERTYPE_IPV6);
                put(
                    &mut bytes,
                    &[ethernet.as_bytes(), ip.as_bytes(), udp.as_bytes()],
                )?;
                Family::V6(source, destination)
            }
            _ => return None,
        };
        Some(Self { bytes, family })
    }

    /// How many bytes lie in front of the payload.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match self.family {
            Family::V4(_) => HEADERS_V4,
            Family::V6(..) => HEADERS_V6,
        }
    }

    /// Writes the headers in front of a payload of `payload_bytes` that lies in `frame` already,
    /// [`Headers::len_bytes`] from its start. Returns the frame's length; none when `frame` or the
    /// packet's length field is too small.
    #[must_use]
    pub fn finish(&self, frame: &mut [u8], payload_bytes: usize) -> Option<usize> {
        const ETHERNET: usize = size_of::<Ethernet>();
        const AT_V4: usize = ETHERNET + size_of::<Ipv4>();
        const AT_V6: usize = ETHERNET + size_of::<Ipv6>();
        let headers = self.len_bytes();
        let end = headers.checked_add(payload_bytes)?;
        let frame = frame.get_mut(..end)?;
        let ip_bytes = u16::try_from(end - ETHERNET).ok()?;
        frame
            .get_mut(..headers)?
            .copy_from_slice(self.bytes.get(..headers)?);
        let mut set = |at: usize, value: u16| -> Option<()> {
            *frame.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
            Some(())
        };
        match self.family {
            Family::V4(sum) => {
                set(ETHERNET + 2, ip_bytes)?;
                set(ETHERNET + 10, sum.over(&ip_bytes.to_be_bytes()).finish())?;
                set(AT_V4 + 4, ip_bytes - size_of::<Ipv4>() as u16)?;
            }
            Family::V6(source, destination) => {
                let udp_bytes = ip_bytes - size_of::<Ipv6>() as u16;
                set(ETHERNET + 4, udp_bytes)?;
                set(AT_V6 + 4, udp_bytes)?;
                let sum = pseudo_v6(source, destination, PROTOCOL_UDP, udp_bytes);
                let checksum = sum.over(frame.get(AT_V6..)?).finish();
                // RFC 768: a sum of zero is sent as its other form, for zero says "none".
                let checksum = if checksum == 0 { 0xffff } else { checksum };
                *frame.get_mut(AT_V6 + 6..)?.first_chunk_mut()? = checksum.to_be_bytes();
            }
        }
        Some(end)
    }
}

/// Asks everybody for the Ethernet address of `wanted`. Returns the frame's length.
#[must_use]
pub fn question(frame: &mut [u8], mac: Mac, ours: IpAddr, wanted: IpAddr) -> Option<usize> {
    match (ours, wanted) {
        (IpAddr::V4(ours), IpAddr::V4(wanted)) => {
            let to = (Mac::BROADCAST, Mac::default());
            arp(frame, ARP_REQUEST, (mac, ours), to, wanted)
        }
        (IpAddr::V6(ours), IpAddr::V6(wanted)) => {
            let group = solicited_node(wanted);
            let [.., a, b, c] = group.octets();
            let message = (NEIGHBOUR_SOLICITATION, 0, wanted, OPTION_SOURCE_LINK);
            let to = (Mac([0x33, 0x33, 0xff, a, b, c]), group);
            neighbour(frame, (mac, ours), to, message)
        }
        _ => None,
    }
}

/// Tells `asker` our Ethernet address. Returns the frame's length.
#[must_use]
pub fn answer(frame: &mut [u8], mac: Mac, ours: IpAddr, asker: (Mac, IpAddr)) -> Option<usize> {
    match (ours, asker) {
        (IpAddr::V4(ours), (asker, IpAddr::V4(ip))) => {
            arp(frame, ARP_REPLY, (mac, ours), (asker, asker), ip)
        }
        (IpAddr::V6(ours), (asker, IpAddr::V6(ip))) => {
            let message = (
                NEIGHBOUR_ADVERTISEMENT,
                SOLICITED_OVERRIDE,
                ours,
                OPTION_TARGET_LINK,
            );
            neighbour(frame, (mac, ours), (asker, ip), message)
        }
        _ => None,
    }
}

/// `to`: the Ethernet destination, and the address in the packet.
fn arp(
    frame: &mut [u8],
    operation: u16,
    from: (Mac, Ipv4Addr),
    to: (Mac, Mac),
    target: Ipv4Addr,
) -> Option<usize> {
    let ethernet = Ethernet {
        destination: to.0.0,
        source: from.0.0,
        ethertype: U16::new(ETHERTYPE_ARP),
    };
    let arp = Arp {
        hardware: U16::new(1),
        protocol: U16::new(ETHERTYPE_IPV4),
        hardware_bytes: 6,
        protocol_bytes: 4,
        operation: U16::new(operation),
        sender_mac: from.0.0,
        sender_ip: from.1.octets(),
        target_mac: to.1.0,
        target_ip: target.octets(),
    };
    put(frame, &[ethernet.as_bytes(), arp.as_bytes()])
}

/// `message`: kind, flags, target, kind of the option with our Ethernet address.
fn neighbour(
    frame: &mut [u8],
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
    message: (u8, u32, Ipv6Addr, u8),
) -> Option<usize> {
    const BYTES: u16 = (size_of::<Neighbour>() + size_of::<LinkOption>()) as u16;
    let ethernet = Ethernet {
        destination: to.0.0,
        source: from.0.0,
        ethertype: U16::new(ETHERTYPE_IPV6),
    };
    let ip = Ipv6 {
        version_flow: U32::new(6 << 28),
        payload_bytes: U16::new(BYTES),
        next: PROTOCOL_ICMPV6,
        hops: NEIGHBOUR_HOP_LIMIT,
        source: from.1.octets(),
        destination: to.1.octets(),
    };
    let option = LinkOption {
        kind: message.3,
        units: 1,
        mac: from.0.0,
    };
    let mut body = Neighbour {
        kind: message.0,
        code: 0,
        checksum: U16::ZERO,
        flags: U32::new(message.1),
        target: message.2.octets(),
    };
    let sum = pseudo_v6(from.1, to.1, PROTOCOL_ICMPV6, BYTES)
        .over(body.as_bytes())
        .over(option.as_bytes());
    body.checksum = U16::new(sum.finish());
    let parts = [
        ethernet.as_bytes(),
        ip.as_bytes(),
        body.as_bytes(),
        option.as_bytes(),
    ];
    put(frame, &parts)
}

/// Writes headers one behind the other; returns their length, none when `frame` is too small.
fn put(frame: &mut [u8], headers: &[&[u8]]) -> Option<usize> {
    let mut at = 0;
    for header in headers {
        frame
            .get_mut(at..)?
            .get_mut(..header.len())?
            .copy_from_slice(header);
        at += header.len();
    }
    Some(at)
}
