//! Two processes over memif: datagrams both ways, and one of the two killed.

use std::time::{Duration, Instant};

use dwcp_drivers::dpdk::device::MemifRole;
use dwcp_drivers::dpdk::gate::waited_before_unmapping;
use dwcp_drivers::dpdk::packet::parse::DropCounts;
use dwcp_drivers::dpdk::port::PacketPort;

use crate::scene::{HELD_MAX, PATIENCE, Side, eal, given_socket, host, memif, plan, role, start};

#[test]
fn two_processes_exchange_datagrams() {
    if role().is_some() {
        let device = memif(&given_socket(), MemifRole::Client);
        return Side::open(&device, &plan(), 2).echo();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let mut near = Side::open(&memif(&socket, MemifRole::Server), &plan(), 1);
    assert!(!near.port.link_up(), "nobody is there yet");
    let free = near.datagrams.free_packets();
    let mut other = start("memif::two_processes_exchange_datagrams", "echo", &socket);
    near.converse(2);
    assert!(near.port.link_up());
    let (device, counts) = (near.port.counts(), *near.datagrams.counts());
    assert!(device.rx_frames >= counts.received && device.tx_frames >= counts.sent);
    near.ask(host(2, false), b"end", Duration::from_secs(1));
    assert!(other.wait().success());

    let counts = near.datagrams.counts();
    assert!(counts.questions >= 2, "one for each family: {counts:?}");
    assert_eq!(counts.dropped, DropCounts::default(), "{counts:?}");
    assert_eq!(counts.too_long, 0);
    let held = free - near.datagrams.free_packets();
    assert!(held <= HELD_MAX, "{held} packets did not come back");
}

#[test]
fn ports_come_and_go_on_several_threads_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let eal = eal();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let folder = folder.path();
            scope.spawn(move || {
                for nth in 0..8 {
                    let socket = folder.join(format!("{thread}-{nth}.sock"));
                    let device = memif(&socket, MemifRole::Server);
                    let opened = PacketPort::open(eal, &device, &plan());
                    assert!(opened.is_ok(), "{:?}", opened.err());
                }
            });
        }
    });
}

/// Under full load in both directions, so that the peer dies in the middle of a burst.
fn killed_under_load(test: &str, ours: MemifRole, theirs: MemifRole) {
    if role().is_some() {
        let mut side = Side::open(&memif(&given_socket(), theirs), &plan(), 2);
        return side.echo();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let (mut near, mut other);
    if ours == MemifRole::Server {
        near = Side::open(&memif(&socket, ours), &plan(), 1);
        other = start(test, "echo", &socket);
    } else {
        // The client comes before its server, and finds it.
        near = Side::open(&memif(&socket, ours), &plan(), 1);
        assert!(!near.port.link_up());
        other = start(test, "echo", &socket);
    }
    for round in 0..3u8 {
        let there = near.ask(host(2, false), &[round; 9], PATIENCE);
        assert!(there, "round {round}");
        flood(&mut near, Duration::from_millis(100));
        let waited = waited_before_unmapping();
        other.kill();
        flood(&mut near, Duration::from_millis(100));
        let gone = Instant::now();
        while near.port.tend() {
            assert!(gone.elapsed() < PATIENCE, "the link of a killed peer is up");
        }
        // The link is down a moment before its rings go.
        while waited_before_unmapping() == waited {
            assert!(gone.elapsed() < PATIENCE, "nobody waited for the worker");
        }
        other = start(test, "echo", &socket);
    }
    let back = near.ask(host(2, true), b"again", PATIENCE);
    assert!(back, "it does not come back");
    near.ask(host(2, false), b"end", Duration::from_secs(1));
    assert!(other.wait().success());
}

fn flood(side: &mut Side, duration: Duration) {
    let start = Instant::now();
    let most = side.datagrams.max_payload();
    while start.elapsed() < duration {
        for _ in 0..32 {
            side.datagrams.send(host(2, false), &mut |_| most);
        }
        side.datagrams.flush();
        side.datagrams.recv(&mut |_, _| {});
    }
}

#[test]
fn a_client_that_is_killed_is_taken_back() {
    let test = "memif::a_client_that_is_killed_is_taken_back";
    killed_under_load(test, MemifRole::Server, MemifRole::Client);
}

#[test]
fn a_server_that_is_killed_is_called_again() {
    let test = "memif::a_server_that_is_killed_is_called_again";
    killed_under_load(test, MemifRole::Client, MemifRole::Server);
}
