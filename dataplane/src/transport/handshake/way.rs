//! What a lane runs over: both sides' drivers and addresses, as the handshake carries them.
//!
//! In: what the dialling side wants, what the dialled side can do, bytes of any provenance. Out: one
//! driver for both, and where each is reached. Promises: a driver that was not asked for is never
//! answered with, but for TCP, which is the connection of the handshake itself and always there; an
//! address is there exactly when the driver needs one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::HandshakeError;

/// One side's end of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The connection on which the handshake runs.
    Tcp,
    /// Datagrams of a DPDK port.
    Dpdk {
        /// Where it is reached.
        address: SocketAddr,
        /// What this side wants them guarded by; [`Guard::agreed`] says what comes of both.
        guard: Guard,
    },
    /// Queue pairs of an RDMA device with this address.
    Rdma(SocketAddr),
}

/// What guards datagrams against who can write to the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// Nobody can change them or speak for a peer.
    #[default]
    Datagrams,
    /// Nobody can read them either.
    Encrypted,
    /// Nobody can speak for a peer; the frames' content is checked where they end, as that of TCP lanes is. For
    /// networks that only trusted hosts can write to.
    Headers,
}

impl Guard {
    /// What a lane has: the side that dialled may ask for more than usual, and for less only if the other side does.
    #[must_use]
    pub fn agreed(initiator: Self, acceptor: Self) -> Self {
        match (initiator, acceptor) {
            (Self::Headers, Self::Headers) => Self::Headers,
            (Self::Headers, _) => Self::Datagrams,
            (asked, _) => asked,
        }
    }
}

/// Both ends of a lane and a secret that only they know.
#[derive(Debug, Clone)]
pub struct LaneWay {
    /// The end of the side that dialled.
    pub initiator: Way,
    /// The end of the side that was dialled: the same driver.
    pub acceptor: Way,
    /// Made of everything that was said in this handshake, so of no other lane.
    pub secret: LaneSecret,
}

/// 32 bytes that both ends of one lane know and nobody else.
#[derive(Clone)]
pub struct LaneSecret(pub [u8; 32]);

impl std::fmt::Debug for LaneSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneSecret(hidden)")
    }
}

impl Way {
    /// Do both use one driver?
    #[must_use]
    pub fn fits(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    /// The driver's number, as [`dwcp_api::session::DRIVER_NAMES`] counts them.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Tcp => 0,
            Self::Dpdk { .. } => 1,
            Self::Rdma(_) => 2,
        }
    }

    /// The driver's name.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        dwcp_api::session::DRIVER_NAMES[self.code() as usize]
    }
}

const FLAG_ENCRYPTED: u8 = 1;
const FLAG_HEADERS: u8 = 2;

/// A [`Way`] as bytes; an IPv4 address is mapped into IPv6.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RawWay {
    /// 0 TCP, 1 DPDK, 2 RDMA.
    driver: u8,
    /// Of DPDK alone, at most one: bit 0 encrypted, bit 1 headers guarded only.
    flags: u8,
    ip: [u8; 16],
    port: U16,
}

impl RawWay {
    pub fn new(way: Way) -> Self {
        let (driver, address) = match way {
            Way::Tcp => (0, None),
            Way::Dpdk { address, .. } => (1, Some(address)),
            Way::Rdma(address) => (2, Some(address)),
        };
        let flags = match way {
            Way::Dpdk { guard, .. } => match guard {
                Guard::Datagrams => 0,
                Guard::Encrypted => FLAG_ENCRYPTED,
                Guard::Headers => FLAG_HEADERS,
            },
            _ => 0,
        };
        let ip = match address.map(|address| address.ip()) {
            None => [0; 16],
            Some(IpAddr::V4(ip)) => ip.to_ipv6_mapped().octets(),
            Some(IpAddr::V6(ip)) => ip.octets(),
        };
        let port = U16::new(address.map_or(0, |address| address.port()));
        Self {
            driver,
            flags,
            ip,
            port,
        }
    }

    pub fn parse(&self) -> Result<Way, HandshakeError> {
        let bad = || HandshakeError::BadField { field: "driver" };
        let ip = Ipv6Addr::from(self.ip);
        if self.driver == 0 {
            let none = ip.is_unspecified() && self.port.get() == 0 && self.flags == 0;
            return none.then_some(Way::Tcp).ok_or_else(bad);
        }
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() || self.port.get() == 0 {
            return Err(bad());
        }
        let address = SocketAddr::new(ip, self.port.get());
        let guard = match (self.driver, self.flags) {
            (2, 0) => return Ok(Way::Rdma(address)),
            (1, 0) => Guard::Datagrams,
            (1, FLAG_ENCRYPTED) => Guard::Encrypted,
            (1, FLAG_HEADERS) => Guard::Headers,
            _ => return Err(bad()),
        };
        Ok(Way::Dpdk { address, guard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_read_back_and_nonsense_does_not() {
        let v4: SocketAddr = "10.1.2.3:4791".parse().unwrap();
        let v6: SocketAddr = "[fd00::7]:9".parse().unwrap();
        let dpdk = |address, guard| Way::Dpdk { address, guard };
        for way in [
            Way::Tcp,
            dpdk(v4, Guard::Datagrams),
            dpdk(v6, Guard::Encrypted),
            dpdk(v6, Guard::Headers),
            Way::Rdma(v4),
        ] {
            assert_eq!(RawWay::new(way).parse(), Ok(way));
        }
        let good = RawWay::new(dpdk(v4, Guard::Datagrams));
        for bad in [
            RawWay { driver: 3, ..good },
            RawWay { driver: 0, ..good },
            RawWay { flags: 3, ..good },
            RawWay { flags: 4, ..good },
            RawWay {
                flags: 1,
                ..RawWay::new(Way::Rdma(v4))
            },
            RawWay {
                port: U16::new(0),
                ..good
            },
            RawWay {
                ip: [0; 16],
                ..good
            },
            RawWay {
                ip: [0xff; 16],
                ..good
            },
        ] {
            assert!(bad.parse().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn less_than_the_whole_datagram_is_guarded_only_where_both_sides_trust_the_wire() {
        use Guard::{Datagrams, Encrypted, Headers};
        for (initiator, acceptor, agreed) in [
            (Headers, Headers, Headers),
            (Headers, Datagrams, Datagrams),
            (Headers, Encrypted, Datagrams),
            (Datagrams, Headers, Datagrams),
            (Datagrams, Encrypted, Datagrams),
            (Encrypted, Headers, Encrypted),
        ] {
            assert_eq!(Guard::agreed(initiator, acceptor), agreed);
        }
    }
}
