//! Two data planes in one process carry streams, made and recorded, over TCP and over lanes that are not TCP, and
//! over lines that are not good: what goes in comes out, and the session says what it ran over.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use dwcp_dataplane::config::{Config, CongestionControl, DpdkConfig, DpdkDevice, Driver};
use dwcp_dataplane::transport::handshake::Guard;
use dwcp_lab::link::{Layer, LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_tests::pair::{Pair, PairOptions};
use dwcp_tests::recorded;
use dwcp_tests::streams::{carry, pages};

fn dpdk(device: DpdkDevice, address: &str, guard: Guard) -> DpdkConfig {
    DpdkConfig {
        device,
        address: address.to_owned().try_into().unwrap(),
        gateway: None,
        port: 4790,
        mtu_bytes: 4160,
        memory_mib: 128,
        guard,
        congestion: CongestionControl::Cubic,
    }
}

/// Both nodes on one memif socket; the sending one prefers it, and asks for this guard.
fn over_memif(folder: &Path, guard: Guard) -> impl FnOnce(&mut Config, &mut Config) {
    let socket = folder.join("memif.sock");
    move |a, b| {
        a.driver = Driver::Dpdk;
        a.dpdk = Some(dpdk(
            DpdkDevice::MemifClient(socket.clone()),
            "10.77.0.1/24",
            guard,
        ));
        b.dpdk = Some(dpdk(
            DpdkDevice::MemifServer(socket),
            "10.77.0.2/24",
            Guard::Headers,
        ));
    }
}

/// Each node at one end of a wire whose ends AF_XDP takes over; the sending one prefers it.
fn over_af_xdp(
    ends: [&str; 2],
    congestion: CongestionControl,
) -> impl FnOnce(&mut Config, &mut Config) {
    let [near, far] = ends.map(str::to_owned);
    let at = move |interface, address| DpdkConfig {
        mtu_bytes: 1500,
        congestion,
        ..dpdk(DpdkDevice::AfXdp(interface), address, Guard::Headers)
    };
    move |a, b| {
        a.driver = Driver::Dpdk;
        a.dpdk = Some(at(near, "10.77.0.1/24"));
        b.dpdk = Some(at(far, "10.77.0.2/24"));
    }
}

#[test]
fn streams_cross_a_dpdk_port() {
    for (guard, stream) in [
        (Guard::Datagrams, pages(1, 20_000)),
        (Guard::Encrypted, recorded::stream()),
        (Guard::Headers, pages(2, 20_000)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::start_with(PairOptions::default(), over_memif(folder.path(), guard));
        assert_eq!(carry(&pair, &stream), ("dpdk", 0));
        pair.stop();
    }
}

#[test]
fn a_recorded_stream_crosses_tcp() {
    let pair = Pair::start(PairOptions::default());
    assert_eq!(carry(&pair, &recorded::stream()), ("tcp", 0));
    pair.stop();
}

#[test]
fn streams_cross_interfaces_that_af_xdp_took_over() {
    let stream = recorded::stream();
    let host = Host::new("xdp").unwrap();
    let _cable = Cable::folded(&host, 7).unwrap();
    let carried = host.enter(|| {
        let over = over_af_xdp(["lan7", "lan7b"], CongestionControl::Cubic);
        let pair = Pair::start_with(PairOptions::default(), over);
        for stream in [&pages(4, 5_000), &stream] {
            assert_eq!(carry(&pair, stream), ("dpdk", 0));
        }
        pair.stop();
    });
    carried.unwrap();
}

/// A recorded stream over a line that loses, delays and doubles so many packets.
fn crosses_a_bad_line(percent: f64, seed: u64, congestion: CongestionControl) {
    let stream = recorded::stream();
    let host = Host::new("bad").unwrap();
    let config = LinkConfig {
        layer: Layer::Ethernet,
        seed,
        ..LinkConfig::symmetric(Shape::new(400.0, 1.0, percent).mangled(percent, percent))
    };
    let link = WanLink::start(&host, &host, config).unwrap();
    let carried = host.enter(|| {
        let over = over_af_xdp(["wan1", "wan1b"], congestion);
        let pair = Pair::start_with(PairOptions::default(), over);
        assert_eq!(carry(&pair, &stream), ("dpdk", 0));
        pair.stop();
    });
    carried.unwrap();
    let traffic = link.traffic();
    assert!(
        traffic[0].lost_packets > 50,
        "the line was good: {traffic:?}"
    );
}

#[test]
fn a_recorded_stream_crosses_a_line_with_one_percent_of_each_fault() {
    crosses_a_bad_line(1.0, 1, CongestionControl::Cubic);
}

#[test]
fn a_recorded_stream_crosses_a_line_with_five_percent_of_each_fault() {
    crosses_a_bad_line(5.0, 2, CongestionControl::Bbr);
}

#[test]
fn a_peer_without_the_driver_gets_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        over_memif(folder.path(), Guard::Datagrams)(a, b);
        b.dpdk = None;
    });
    assert_eq!(carry(&pair, &pages(2, 2_000)), ("tcp", 0));
    pair.stop();
}

#[test]
fn a_driver_that_does_not_carry_gives_way_to_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        over_memif(folder.path(), Guard::Datagrams)(a, b);
        // Nobody is at the other end of the sending node's wire.
        a.dpdk.as_mut().unwrap().device =
            DpdkDevice::MemifServer(folder.path().join("lonely.sock"));
    });
    let (driver, fallbacks) = carry(&pair, &pages(3, 2_000));
    assert_eq!(driver, "tcp");
    assert!(fallbacks > 0, "nobody says that it fell back");
    pair.stop();
}
