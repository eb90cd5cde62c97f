//! Any frame on the wire of a DPDK port: what is understood lies within the frame, is for this host, and is
//! understood again when it is built anew.
//!
//! Input: one byte of switches, then the frame. Bit 0: the device found the UDP checksum right. Bit 1: the
//! frame's checksums are mended first, as whoever made it could.
#![no_main]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use packet::Mac;
use packet::build::{Headers, answer};
use packet::checksum::{Sum, pseudo_v4, pseudo_v6};
use packet::neighbours::Neighbours;
use packet::parse::{Heard, Local, parse};

// Compiled from its source: the module needs nothing of DPDK, its crate does.
#[allow(dead_code, reason = "the device has callers for the rest")]
#[path = "../../../drivers/src/dpdk/packet/mod.rs"]
mod packet;

const ETHERNET: usize = 14;
const OURS: Mac = Mac([2, 0, 0, 0, 0, 2]);
const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn local() -> Local {
    Local {
        mac: OURS,
        v4: Some([10, 0, 0, 2].into()),
        v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
        ports: 4800..=4803,
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((switches, frame)) = input.split_first() else {
        return;
    };
    let mut frame = frame.to_vec();
    if switches & 2 != 0 {
        let _ = mend(&mut frame);
    }
    let local = local();
    let mut neighbours = Neighbours::new();
    let now = Instant::now();
    match parse(&frame, &local, switches & 1 != 0) {
        Ok(Heard::Datagram {
            from,
            to_port,
            payload,
        }) => {
            assert!(local.ports.contains(&to_port));
            assert!(!from.ip().is_unspecified() && !from.ip().is_multicast());
            let payload = frame.get(payload).expect("the payload lies in the frame");
            again(from, to_port, payload, &local);
        }
        Ok(Heard::Asked { ip, mac }) => {
            assert!(!mac.is_group(), "nobody answers to a group");
            neighbours.asked_by(ip, mac, now);
            let mut reply = [0; 128];
            let ours = match ip {
                IpAddr::V4(_) => local.v4.map(IpAddr::V4),
                IpAddr::V6(_) => local.v6.map(IpAddr::V6),
            };
            let ours = ours.expect("asked for what this host has");
            let length = answer(&mut reply, OURS, ours, (mac, ip)).expect("it fits");
            assert!(length <= reply.len());
        }
        Ok(Heard::Answered { ip, mac }) => {
            assert!(!mac.is_group(), "nothing is sent to a group");
            neighbours.answered(ip, mac, now);
        }
        Err(_) => {}
    }
});

/// The same payload in a frame of ours means the same.
fn again(from: SocketAddr, to_port: u16, payload: &[u8], local: &Local) {
    let ours = match from.ip() {
        IpAddr::V4(_) => local.v4.map(IpAddr::V4),
        IpAddr::V6(_) => local.v6.map(IpAddr::V6),
    };
    let to = SocketAddr::new(ours.expect("heard on an address of ours"), to_port);
    let headers = Headers::new((GATEWAY, from), OURS, to).expect("one family");
    let start = headers.len_bytes();
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    if headers.finish(&mut frame, payload.len()).is_none() {
        // What IPv6 carries without counting its own header may not fit a length that counts all.
        assert!(payload.len() > 65_000);
        return;
    }
    let expected = Heard::Datagram {
        from,
        to_port,
        payload: start..start + payload.len(),
    };
    assert_eq!(parse(&frame, local, false), Ok(expected));
}

/// Writes right checksums where the frame has them.
fn mend(frame: &mut [u8]) -> Option<()> {
    let ethertype = [*frame.get(12)?, *frame.get(13)?];
    let ip = frame.get_mut(ETHERNET..)?;
    match ethertype {
        [0x08, 0x00] => mend_v4(ip),
        [0x86, 0xdd] => mend_v6(ip),
        _ => None,
    }
}

fn mend_v4(ip: &mut [u8]) -> Option<()> {
    let head = usize::from(*ip.first()? & 15) * 4;
    let (header, body) = ip.split_at_mut_checked(head)?;
    let address = |at: usize| Some(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?.into());
    let (source, destination) = (address(12)?, address(16)?);
    set(header, 10, 0)?;
    let sum = Sum::new().over(header).finish();
    set(header, 10, sum)?;
    let bytes = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let segment = body.get_mut(..usize::from(bytes))?;
    set(segment, 6, 0)?;
    let sum = pseudo_v4(source, destination, 17, bytes).over(segment);
    set(segment, 6, sum.finish())
}

fn mend_v6(ip: &mut [u8]) -> Option<()> {
    let (header, body) = ip.split_at_mut_checked(40)?;
    let address = |at: usize| Some(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?.into());
    let (source, destination) = (address(8)?, address(24)?);
    let whole = u16::from_be_bytes([header[4], header[5]]);
    let (protocol, at) = match header[6] {
        17 => (17, 6),
        58 => (58, 2),
        _ => return None,
    };
    let bytes = if protocol == 17 {
        u16::from_be_bytes(*body.get(4..)?.first_chunk()?)
    } else {
        whole
    };
    let segment = body.get_mut(..usize::from(bytes))?;
    set(segment, at, 0)?;
    let sum = pseudo_v6(source, destination, protocol, bytes).over(segment);
    set(segment, at, sum.finish())
}

fn set(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}
