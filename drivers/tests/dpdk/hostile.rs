//! A peer that sends anything: each frame is counted by what is wrong with it, nothing is given out
//! that was not a datagram, and the side goes on.

use std::time::{Duration, Instant};

use dwcp_drivers::dpdk::device::MemifRole;
use dwcp_drivers::dpdk::packet::Mac;
use dwcp_drivers::dpdk::packet::build::Headers;
use dwcp_drivers::dpdk::packet::parse::Dropped;
use dwcp_drivers::dpdk::port::PacketPort;
use dwcp_drivers::dpdk::queue::{Built, PacketQueue};

use crate::scene::{HELD_MAX, PATIENCE, Side, eal, given_socket, host, memif, plan, role, start};

const ROUNDS: u64 = 50;
/// Frames of each round.
const NOISE: u64 = 8;

/// A good frame for host 1, and the ways to spoil it: place, new value, what is wrong then.
fn damages() -> [(usize, u8, Dropped); 7] {
    [
        (13, 0x77, Dropped::OtherProtocol),
        (14, 0x4f, Dropped::Checksum),
        (14, 0x25, Dropped::BadHeader),
        (22, 0x01, Dropped::Checksum),
        (33, 0x63, Dropped::OtherHost),
        (36, 0x01, Dropped::OtherPort),
        (38, 0xff, Dropped::Short),
    ]
}

fn put(queue: &mut PacketQueue, frame: &[u8]) {
    let start = Instant::now();
    let mut fill = || {
        queue.build(|room| {
            room.get_mut(..frame.len())?.copy_from_slice(frame);
            Some(frame.len())
        })
    };
    while fill() != Built::Staged {
        assert!(start.elapsed() < PATIENCE, "the device takes nothing");
        std::thread::yield_now();
    }
}

fn attack() {
    let device = memif(&given_socket(), MemifRole::Client);
    let (mut port, mut seats) = PacketPort::open(eal(), &device, &plan()).unwrap();
    let mut queue = seats.pop().unwrap().sit().unwrap();
    let start = Instant::now();
    while !port.tend() {
        assert!(start.elapsed() < PATIENCE, "no link");
    }
    // Memif hears everything, so a broadcast address will do for the peer's.
    let from = (Mac([2, 0, 0, 0, 0, 9]), host(9, false));
    let headers = Headers::new(from, Mac::BROADCAST, host(1, false)).unwrap();
    let good = |number: u8| {
        let mut frame = vec![number; headers.len_bytes() + 100];
        headers.finish(&mut frame, 100).unwrap();
        frame
    };
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..ROUNDS {
        for (at, value, _) in damages() {
            let mut frame = good(0);
            frame[at] = value;
            put(&mut queue, &frame);
        }
        for _ in 0..NOISE {
            // Xorshift: noise of any length and content.
            let mut noise = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let bytes = 1 + noise() as usize % 4000;
            let mut frame: Vec<u8> = (0..bytes).map(|_| noise() as u8).collect();
            if let Some(group) = frame.first_mut() {
                // For somebody else, so that all of it has the same reason; but the shortest.
                *group &= 0xfe;
            }
            frame.resize(bytes.max(14), 0);
            put(&mut queue, &frame);
        }
        put(&mut queue, &good(round as u8));
        while queue.flush() > 0 {
            assert!(start.elapsed() < PATIENCE, "the device takes nothing");
            std::thread::yield_now();
        }
    }
    // The frames lie in shared memory that goes with this process.
    while queue.receive().is_empty() {
        assert!(start.elapsed() < PATIENCE, "the other side is not done");
        std::thread::yield_now();
    }
}

#[test]
fn garbage_is_counted_and_dropped() {
    if role().is_some() {
        return attack();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let mut near = Side::open(&memif(&socket, MemifRole::Server), &plan(), 1);
    let free = near.datagrams.free_packets();
    let test = "hostile::garbage_is_counted_and_dropped";
    let mut other = start(test, "attack", &socket);
    let (start, mut good) = (Instant::now(), Vec::new());
    while good.len() < ROUNDS as usize {
        assert!(start.elapsed() < PATIENCE, "{:?}", near.datagrams.counts());
        near.datagrams.recv(&mut |from, payload| {
            assert_eq!(from, host(9, false));
            assert_eq!(payload.len(), 100);
            good.push(payload[0]);
        });
    }
    assert!((0..ROUNDS as u8).eq(good), "the good ones, in order");
    let counts = *near.datagrams.counts();
    let sum = damages().len() as u64 * ROUNDS + NOISE * ROUNDS;
    assert_eq!(counts.dropped.total(), sum, "{counts:?}");
    for reason in Dropped::ALL {
        let mut expected = damages()
            .iter()
            .filter(|(_, _, damage)| *damage == reason)
            .count() as u64
            * ROUNDS;
        if reason == Dropped::OtherHost {
            expected += NOISE * ROUNDS;
        }
        assert_eq!(counts.dropped.of(reason), expected, "{reason:?}");
    }
    assert!(
        free - near.datagrams.free_packets() <= HELD_MAX,
        "packets leak"
    );
    // Any answer tells the attacker to end.
    near.ask(host(9, false), b"end", Duration::from_secs(1));
    assert!(other.wait().success());
}
