//! From the bytes of a frame to what they mean for this host.
//!
//! Comes in: one Ethernet frame, as a stranger may have made it. Goes out: [`Heard`], or the first
//! reason to drop it. Promises: every length is checked against what is there; a UDP payload is given
//! out only when its addresses, lengths and checksums are right; nothing is copied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};

use zerocopy::FromBytes;

use super::Mac;
use super::checksum::{Sum, pseudo_v4, pseudo_v6};
use super::wire::{
    ARP_REPLY, ARP_REQUEST, Arp, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet,
    FRAGMENT_BITS, Ipv4, Ipv6, LinkOption, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_HOP_LIMIT,
    NEIGHBOUR_SOLICITATION, Neighbour, OPTION_SOURCE_LINK, OPTION_TARGET_LINK, PROTOCOL_ICMPV6,
    PROTOCOL_UDP, Udp,
};

const ETHERNET: usize = size_of::<Ethernet>();

/// Who this host is on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The UDP ports that it listens on.
    pub ports: RangeInclusive<u16>,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A UDP payload for one of our ports.
    Datagram {
        /// Who sent it, as the packet claims.
        from: SocketAddr,
        /// To which of our ports.
        to_port: u16,
        /// Where in the frame its payload lies.
        payload: Range<usize>,
    },
    /// Somebody asks for our Ethernet address.
    Asked {
        /// Who.
        ip: IpAddr,
        /// Where the answer goes.
        mac: Mac,
    },
    /// Somebody says what Ethernet address they have.
    Answered {
        /// Who.
        ip: IpAddr,
        /// What they have.
        mac: Mac,
    },
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dropped {
    /// It ends before its headers do, or announces more than there is.
    Short,
    /// It is for another Ethernet or IP address.
    OtherHost,
    /// Neither UDP nor a question about neighbours.
    OtherProtocol,
    /// A header's fixed fields are not what its standard says.
    BadHeader,
    /// Part of a packet: this host sends none and puts none together.
    Fragment,
    /// A checksum is wrong.
    Checksum,
    /// No host may send from such an address.
    BadSource,
    /// Nobody listens on its UDP port.
    OtherPort,
    /// Neighbour discovery that breaks its rules, as one from beyond a router does.
    BadNeighbour,
}

impl Dropped {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Short,
        Self::OtherHost,
        Self::OtherProtocol,
        Self::BadHeader,
        Self::Fragment,
        Self::Checksum,
        Self::BadSource,
        Self::OtherPort,
        Self::BadNeighbour,
    ];
}

/// Frames dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCounts([u64; Dropped::ALL.len()]);

impl DropCounts {
    /// One more.
    pub fn count(&mut self, reason: Dropped) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// How many for this reason.
    #[must_use]
    pub fn of(&self, reason: Dropped) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Reads one frame. `udp_checked`: the device has found its UDP checksum right.
///
/// # Errors
/// The first reason not to use it.
pub fn parse(frame: &[u8], local: &Local, udp_checked: bool) -> Result<Heard, Dropped> {
    let (ethernet, rest) = Ethernet::ref_from_prefix(frame).map_err(|_| Dropped::Short)?;
    let destination = Mac(ethernet.destination);
    if destination != local.mac && !destination.is_group() {
        return Err(Dropped::OtherHost);
    }
    if Mac(ethernet.source).is_group() {
        return Err(Dropped::BadSource);
    }
    match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => ipv4(rest, local, udp_checked),
        ETHERTYPE_IPV6 => ipv6(rest, local, udp_checked),
        ETHERTYPE_ARP => arp(rest, local),
        _ => Err(Dropped::OtherProtocol),
    }
}

fn ipv4(bytes: &[u8], local: &Local, udp_checked: bool) -> Result<Heard, Dropped> {
    let (header, _) = Ipv4::ref_from_prefix(bytes).map_err(|_| Dropped::Short)?;
    let header_bytes = usize::from(header.version_words & 0x0f) * 4;
    if header.version_words >> 4 != 4 || header_bytes < size_of::<Ipv4>() {
        return Err(Dropped::BadHeader);
    }
    let whole = bytes
        .get(..usize::from(header.total_bytes.get()))
        .ok_or(Dropped::Short)?;
    let (head, body) = whole.split_at_checked(header_bytes).ok_or(Dropped::Short)?;
    let (source, destination) = (
        Ipv4Addr::from(header.source),
        Ipv4Addr::from(header.destination),
    );
    if Some(destination) != local.v4 {
        return Err(Dropped::OtherHost);
    }
    if Sum::new().over(head).finish() != 0 {
        return Err(Dropped::Checksum);
    }
    if source.is_unspecified() || source.is_multicast() || source.is_broadcast() {
        return Err(Dropped::BadSource);
    }
    if header.fragment.get() & FRAGMENT_BITS != 0 {
        return Err(Dropped::Fragment);
    }
    if header.protocol != PROTOCOL_UDP {
        return Err(Dropped::OtherProtocol);
    }
    let (udp, segment) = udp(body)?;
    // RFC 768: zero says that the sender took no checksum.
    if !udp_checked && udp.checksum.get() != 0 {
        let sum = pseudo_v4(source, destination, PROTOCOL_UDP, udp.bytes.get());
        if sum.over(segment).finish() != 0 {
            return Err(Dropped::Checksum);
        }
    }
    datagram(source.into(), udp, ETHERNET + header_bytes, local)
}

fn ipv6(bytes: &[u8], local: &Local, udp_checked: bool) -> Result<Heard, Dropped> {
    let (header, rest) = Ipv6::ref_from_prefix(bytes).map_err(|_| Dropped::Short)?;
    if header.version_flow.get() >> 28 != 6 {
        return Err(Dropped::BadHeader);
    }
    let body = rest
        .get(..usize::from(header.payload_bytes.get()))
        .ok_or(Dropped::Short)?;
    let (source, destination) = (
        Ipv6Addr::from(header.source),
        Ipv6Addr::from(header.destination),
    );
    let ours = local.v6.ok_or(Dropped::OtherHost)?;
    let to_us = destination == ours;
    if !to_us && destination != solicited_node(ours) {
        return Err(Dropped::OtherHost);
    }
    if source.is_unspecified() || source.is_multicast() {
        return Err(Dropped::BadSource);
    }
    match header.next {
        PROTOCOL_UDP if to_us => {
            let (udp, segment) = udp(body)?;
            if udp.checksum.get() == 0 {
                // RFC 8200, section 8.1: over IPv6 there is always one.
                return Err(Dropped::Checksum);
            }
            if !udp_checked {
                let sum = pseudo_v6(source, destination, PROTOCOL_UDP, udp.bytes.get());
                if sum.over(segment).finish() != 0 {
                    return Err(Dropped::Checksum);
                }
            }
            datagram(source.into(), udp, ETHERNET + size_of::<Ipv6>(), local)
        }
        PROTOCOL_ICMPV6 => neighbour(header, source, destination, body, ours),
        _ => Err(Dropped::OtherProtocol),
    }
}

/// The header, and header and payload together without padding.
fn udp(body: &[u8]) -> Result<(&Udp, &[u8]), Dropped> {
    let (udp, _) = Udp::ref_from_prefix(body).map_err(|_| Dropped::Short)?;
    let bytes = usize::from(udp.bytes.get());
    if bytes < size_of::<Udp>() {
        return Err(Dropped::BadHeader);
    }
    let segment = body.get(..bytes).ok_or(Dropped::Short)?;
    Ok((udp, segment))
}

/// `udp_at`: where in the frame the UDP header lies, which was found to be whole.
fn datagram(source: IpAddr, udp: &Udp, udp_at: usize, local: &Local) -> Result<Heard, Dropped> {
    let to_port = udp.destination.get();
    if !local.ports.contains(&to_port) {
        return Err(Dropped::OtherPort);
    }
    Ok(Heard::Datagram {
        from: SocketAddr::new(source, udp.source.get()),
        to_port,
        payload: udp_at + size_of::<Udp>()..udp_at + usize::from(udp.bytes.get()),
    })
}

fn arp(bytes: &[u8], local: &Local) -> Result<Heard, Dropped> {
    let (arp, _) = Arp::ref_from_prefix(bytes).map_err(|_| Dropped::Short)?;
    let ethernet_and_ipv4 = arp.hardware.get() == 1
        && arp.protocol.get() == ETHERTYPE_IPV4
        && arp.hardware_bytes == 6
        && arp.protocol_bytes == 4;
    if !ethernet_and_ipv4 {
        return Err(Dropped::BadHeader);
    }
    if Some(Ipv4Addr::from(arp.target_ip)) != local.v4 {
        return Err(Dropped::OtherHost);
    }
    let (ip, mac) = (Ipv4Addr::from(arp.sender_ip), Mac(arp.sender_mac));
    if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || mac.is_group() {
        return Err(Dropped::BadSource);
    }
    let ip = IpAddr::V4(ip);
    match arp.operation.get() {
        ARP_REQUEST => Ok(Heard::Asked { ip, mac }),
        ARP_REPLY => Ok(Heard::Answered { ip, mac }),
        _ => Err(Dropped::BadHeader),
    }
}

/// The rules for validity are those of RFC 4861, sections 7.1.1 and 7.1.2.
fn neighbour(
    header: &Ipv6,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    body: &[u8],
    ours: Ipv6Addr,
) -> Result<Heard, Dropped> {
    let (message, options) = Neighbour::ref_from_prefix(body).map_err(|_| Dropped::Short)?;
    if !matches!(
        message.kind,
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
    ) {
        return Err(Dropped::OtherProtocol);
    }
    let bytes = header.payload_bytes.get();
    let sum = pseudo_v6(source, destination, PROTOCOL_ICMPV6, bytes).over(body);
    if sum.finish() != 0 {
        return Err(Dropped::Checksum);
    }
    let target = Ipv6Addr::from(message.target);
    if header.hops != NEIGHBOUR_HOP_LIMIT || message.code != 0 || target.is_multicast() {
        return Err(Dropped::BadNeighbour);
    }
    if message.kind == NEIGHBOUR_SOLICITATION {
        if target != ours {
            return Err(Dropped::OtherHost);
        }
        let mac = link_option(options, OPTION_SOURCE_LINK)?;
        let ip = IpAddr::V6(source);
        Ok(Heard::Asked { ip, mac })
    } else {
        let mac = link_option(options, OPTION_TARGET_LINK)?;
        let ip = IpAddr::V6(target);
        Ok(Heard::Answered { ip, mac })
    }
}

/// The Ethernet address in the option of this kind. Options of no length would be read for ever, so
/// RFC 4861 has the whole message dropped.
fn link_option(mut options: &[u8], kind: u8) -> Result<Mac, Dropped> {
    let mut found = None;
    while let Some((head, _)) = options.split_first_chunk::<2>() {
        let bytes = usize::from(head[1]) * 8;
        let (option, rest) = options
            .split_at_checked(bytes)
            .filter(|_| bytes > 0)
            .ok_or(Dropped::BadNeighbour)?;
        if head[0] == kind
            && let Ok(link) = LinkOption::ref_from_bytes(option)
        {
            found = Some(Mac(link.mac));
        }
        options = rest;
    }
    found
        .filter(|mac| !mac.is_group())
        .ok_or(Dropped::BadNeighbour)
}

/// The group in which a host listens for questions about its address (RFC 4291, section 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}
