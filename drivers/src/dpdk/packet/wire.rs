//! The headers as types: what lies in a packet, byte for byte, in network order.
//!
//! Formats: Ethernet II (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), UDP (RFC 768),
//! neighbour solicitation and advertisement (RFC 4861, sections 4.3 and 4.4).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Protocol number of UDP in IPv4 and IPv6.
pub const PROTOCOL_UDP: u8 = 17;
/// Next header of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// ARP: who has this address?
pub const ARP_REQUEST: u16 = 1;
/// ARP: I have.
pub const ARP_REPLY: u16 = 2;
/// ICMPv6 type: who has this address?
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type: I have.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Option of a solicitation: the asker's Ethernet address.
pub const OPTION_SOURCE_LINK: u8 = 1;
/// Option of an advertisement: the Ethernet address that was asked for.
pub const OPTION_TARGET_LINK: u8 = 2;
/// Hop limit of neighbour discovery: a packet that crossed a router has less (RFC 4861, 7.1).
pub const NEIGHBOUR_HOP_LIMIT: u8 = 255;

/// Ethernet II, without a VLAN tag.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Ethernet {
    /// To whom.
    pub destination: [u8; 6],
    /// From whom.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: U16,
}

/// ARP for IPv4 over Ethernet.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Arp {
    /// 1 for Ethernet.
    pub hardware: U16,
    /// [`ETHERTYPE_IPV4`].
    pub protocol: U16,
    /// 6.
    pub hardware_bytes: u8,
    /// 4.
    pub protocol_bytes: u8,
    /// [`ARP_REQUEST`] or [`ARP_REPLY`].
    pub operation: U16,
    /// Who sends.
    pub sender_mac: [u8; 6],
    /// Who sends.
    pub sender_ip: [u8; 4],
    /// Who is asked for; zero in a request.
    pub target_mac: [u8; 6],
    /// Who is asked for.
    pub target_ip: [u8; 4],
}

/// IPv4 without options.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Ipv4 {
    /// Version 4, and the header's length in words of 4 bytes.
    pub version_words: u8,
    /// Differentiated services and congestion bits.
    pub traffic: u8,
    /// Header and payload, in bytes.
    pub total_bytes: U16,
    /// Of use to fragments only.
    pub identification: U16,
    /// Flags and offset: see [`FRAGMENT_BITS`] and [`DONT_FRAGMENT`].
    pub fragment: U16,
    /// Routers left.
    pub hops: u8,
    /// What follows.
    pub protocol: u8,
    /// Over the header.
    pub checksum: U16,
    /// From whom.
    pub source: [u8; 4],
    /// To whom.
    pub destination: [u8; 4],
}

/// Of [`Ipv4::fragment`]: more fragments, or not the first. Any of these set: part of a packet.
pub const FRAGMENT_BITS: u16 = 0x3fff;
/// Of [`Ipv4::fragment`]: routers must drop rather than cut.
pub const DONT_FRAGMENT: u16 = 0x4000;

/// IPv6 without extension headers.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Ipv6 {
    /// Version 6, traffic class, flow label.
    pub version_flow: U32,
    /// What follows this header, in bytes.
    pub payload_bytes: U16,
    /// What follows.
    pub next: u8,
    /// Routers left.
    pub hops: u8,
    /// From whom.
    pub source: [u8; 16],
    /// To whom.
    pub destination: [u8; 16],
}

/// UDP.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Udp {
    /// From which port.
    pub source: U16,
    /// To which port.
    pub destination: U16,
    /// Header and payload, in bytes.
    pub bytes: U16,
    /// Over pseudo header, header and payload; zero in IPv4: none.
    pub checksum: U16,
}

/// Neighbour solicitation or advertisement, up to its options.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct Neighbour {
    /// [`NEIGHBOUR_SOLICITATION`] or [`NEIGHBOUR_ADVERTISEMENT`].
    pub kind: u8,
    /// 0.
    pub code: u8,
    /// Over pseudo header and message.
    pub checksum: U16,
    /// Of an advertisement: router, solicited, override. Zero in a solicitation.
    pub flags: U32,
    /// Who is asked for.
    pub target: [u8; 16],
}

/// The one option that both messages carry here: an Ethernet address.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct LinkOption {
    /// [`OPTION_SOURCE_LINK`] or [`OPTION_TARGET_LINK`].
    pub kind: u8,
    /// 1: in units of 8 bytes, these two fields counted.
    pub units: u8,
    /// The address.
    pub mac: [u8; 6],
}

/// Of [`Neighbour::flags`]: an answer to a question, which replaces what is known.
pub const SOLICITED_OVERRIDE: u32 = 0x6000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_long_as_their_standards_say() {
        let lengths = [
            size_of::<Ethernet>(),
            size_of::<Arp>(),
            size_of::<Ipv4>(),
            size_of::<Ipv6>(),
            size_of::<Udp>(),
            size_of::<Neighbour>(),
            size_of::<LinkOption>(),
        ];
        assert_eq!(lengths, [14, 28, 20, 40, 8, 24, 8]);
    }
}
