//! Links, addresses and routes over rtnetlink. Numbers of messages and attributes are those of the
//! kernel's `linux/rtnetlink.h`, `linux/if_link.h` and `linux/if_addr.h`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::attributes::{Reader, Writer};
use super::socket::Socket;
use crate::kernel::{Address, KernelError, Link, LinkChange, Route};

const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;

/// `struct ifinfomsg`: family, type, index at 4, flags at 8, change mask at 12.
const LINK_HEADER_BYTES: usize = 16;
const LINK_UP: u32 = 1;
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MTU_MIN: u16 = 50;
const LINK_MTU_MAX: u16 = 51;

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index at 4.
const ADDRESS_HEADER_BYTES: usize = 8;
const ADDRESS_OF_NETWORK: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// Scopes from here on end at the link or the host.
const SCOPE_LINK: u8 = 253;

/// `struct rtmsg`: family, destination length, source length, tos, table, protocol, scope, type.
const ROUTE_HEADER_BYTES: usize = 12;
const ROUTE_OUT: u16 = 4;
const ROUTE_MULTIPATH: u16 = 9;
const ROUTE_UNICAST: u8 = 1;
/// `struct rtnexthop`: length, flags, hops, index at 4.
const HOP_HEADER_BYTES: usize = 8;

fn word(message: &[u8], offset: usize) -> Option<u32> {
    let bytes = message.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// All links.
pub fn links() -> Result<Vec<Link>, KernelError> {
    let answers = Socket::open(NETLINK_ROUTE)?.ask(
        "list the links",
        GET_LINK,
        NLM_F_DUMP,
        &[0; LINK_HEADER_BYTES],
    )?;
    Ok(answers.iter().filter_map(|answer| link(answer)).collect())
}

fn link(message: &[u8]) -> Option<Link> {
    let attributes = Reader::after(message, LINK_HEADER_BYTES);
    let mac: Vec<String> = attributes
        .get(LINK_ADDRESS)
        .unwrap_or_default()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let range = attributes
        .u32(LINK_MTU_MIN)
        .zip(attributes.u32(LINK_MTU_MAX));
    Some(Link {
        name: attributes.text(LINK_NAME)?,
        index: word(message, 4)?,
        mtu: attributes.u32(LINK_MTU)?,
        // A driver that states no limit has 0 here.
        mtu_range: range.filter(|(_, max)| *max > 0),
        up: word(message, 8)? & LINK_UP != 0,
        mac: mac.join(":"),
    })
}

fn names() -> Result<BTreeMap<u32, String>, KernelError> {
    let links = links()?.into_iter();
    Ok(links.map(|link| (link.index, link.name)).collect())
}

/// All addresses.
pub fn addresses() -> Result<Vec<Address>, KernelError> {
    let names = names()?;
    let answers = Socket::open(NETLINK_ROUTE)?.ask(
        "list the addresses",
        GET_ADDRESS,
        NLM_F_DUMP,
        &[0; ADDRESS_HEADER_BYTES],
    )?;
    let address = |message: &[u8]| {
        let attributes = Reader::after(message, ADDRESS_HEADER_BYTES);
        // On a point-to-point link the first is the other end's.
        let bytes = attributes
            .get(ADDRESS_LOCAL)
            .or_else(|| attributes.get(ADDRESS_OF_NETWORK))?;
        let address = match bytes.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            _ => return None,
        };
        Some(Address {
            interface: names.get(&word(message, 4)?)?.clone(),
            address,
            prefix_len: *message.get(1)?,
            global: *message.get(3)? < SCOPE_LINK,
        })
    };
    Ok(answers
        .iter()
        .filter_map(|answer| address(answer))
        .collect())
}

/// All unicast routes of all tables, IPv4 and IPv6.
pub fn routes() -> Result<Vec<Route>, KernelError> {
    let names = names()?;
    let answers = Socket::open(NETLINK_ROUTE)?.ask(
        "list the routes",
        GET_ROUTE,
        NLM_F_DUMP,
        &[0; ROUTE_HEADER_BYTES],
    )?;
    let route = |message: &[u8]| {
        if *message.get(7)? != ROUTE_UNICAST {
            return None;
        }
        let attributes = Reader::after(message, ROUTE_HEADER_BYTES);
        let mut interfaces: Vec<String> = attributes
            .u32(ROUTE_OUT)
            .into_iter()
            .chain(hops(attributes.get(ROUTE_MULTIPATH).unwrap_or_default()))
            .filter_map(|index| names.get(&index).cloned())
            .collect();
        interfaces.dedup();
        Some(Route {
            interfaces,
            default: *message.get(1)? == 0,
        })
    };
    Ok(answers.iter().filter_map(|answer| route(answer)).collect())
}

/// Indices of the links of a route with several next hops.
fn hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut indices = Vec::new();
    while let (Some(length), Some(index)) = (bytes.first_chunk(), word(bytes, 4)) {
        let length = usize::from(u16::from_ne_bytes(*length));
        if length < HOP_HEADER_BYTES {
            break;
        }
        indices.push(index);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    indices
}

/// Changes a link.
pub fn change_link(interface: &str, change: &LinkChange) -> Result<(), KernelError> {
    let attributes = Writer::default();
    // The kernel finds the link by its index, since a name here would be its new one.
    let Some(link) = links()?.into_iter().find(|link| link.name == interface) else {
        return Err(KernelError::Netlink {
            what: format!("find interface {interface}"),
            source: std::io::ErrorKind::NotFound.into(),
            said: None,
        });
    };
    let mut header = [0; LINK_HEADER_BYTES];
    header[4..8].copy_from_slice(&link.index.to_ne_bytes());
    let (what, attributes) = match change {
        LinkChange::Mtu(mtu) => (
            format!("set the MTU of {interface} to {mtu}"),
            attributes.u32(LINK_MTU, *mtu),
        ),
        LinkChange::Up(up) => {
            let flags = if *up { LINK_UP } else { 0 };
            header[8..12].copy_from_slice(&flags.to_ne_bytes());
            header[12..16].copy_from_slice(&LINK_UP.to_ne_bytes());
            let word = if *up { "on" } else { "off" };
            (format!("switch {interface} {word}"), attributes)
        }
        LinkChange::Name(name) => (
            format!("rename {interface} to {name}"),
            attributes.text(LINK_NAME, name),
        ),
    };
    let body = [&header[..], &attributes.finish()].concat();
    Socket::open(NETLINK_ROUTE)?
        .ask(&what, SET_LINK, 0, &body)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hops_of_a_route_are_found() {
        let hop = |length: u16, index: u32| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(index.to_ne_bytes());
            bytes.resize(usize::from(length).next_multiple_of(4).max(8), 0);
            bytes
        };
        let two = [hop(16, 7), hop(8, 9)].concat();
        assert_eq!(hops(&two), [7, 9]);
        assert_eq!(hops(&hop(0, 7)), Vec::<u32>::new(), "no endless loop");
    }

    proptest! {
        #[test]
        fn no_answer_is_trouble(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (link(&bytes), hops(&bytes));
        }
    }
}
