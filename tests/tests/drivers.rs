//! Two data planes in one process carry streams over lanes that are not TCP: what goes in comes out, and the
//! session says what it ran over.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use dwcp_dataplane::config::{Config, CongestionControl, DpdkConfig, DpdkDevice, Driver};
use dwcp_tests::pair::{Pair, PairOptions};
use dwcp_tests::streams::{carry, pages};

fn dpdk(device: DpdkDevice, address: &str, encrypt: bool) -> DpdkConfig {
    DpdkConfig {
        device,
        address: address.to_owned().try_into().unwrap(),
        gateway: None,
        port: 4790,
        mtu_bytes: 4160,
        memory_mib: 128,
        encrypt,
        congestion: CongestionControl::Cubic,
    }
}

/// Both nodes on one memif socket; the sending one prefers it.
fn over_memif(folder: &Path, encrypt: bool) -> impl FnOnce(&mut Config, &mut Config) {
    let socket = folder.join("memif.sock");
    move |a, b| {
        a.driver = Driver::Dpdk;
        a.dpdk = Some(dpdk(
            DpdkDevice::MemifClient(socket.clone()),
            "10.77.0.1/24",
            encrypt,
        ));
        b.dpdk = Some(dpdk(DpdkDevice::MemifServer(socket), "10.77.0.2/24", false));
    }
}

#[test]
fn a_stream_crosses_a_dpdk_port() {
    for encrypt in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::start_with(PairOptions::default(), over_memif(folder.path(), encrypt));
        assert_eq!(carry(&pair, &pages(1, 20_000)), ("dpdk", 0));
        pair.stop();
    }
}

#[test]
fn a_peer_without_the_driver_gets_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        over_memif(folder.path(), false)(a, b);
        b.dpdk = None;
    });
    assert_eq!(carry(&pair, &pages(2, 2_000)), ("tcp", 0));
    pair.stop();
}

#[test]
fn a_driver_that_does_not_carry_gives_way_to_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        over_memif(folder.path(), false)(a, b);
        // Nobody is at the other end of the sending node's wire.
        a.dpdk.as_mut().unwrap().device =
            DpdkDevice::MemifServer(folder.path().join("lonely.sock"));
    });
    let (driver, fallbacks) = carry(&pair, &pages(3, 2_000));
    assert_eq!(driver, "tcp");
    assert!(fallbacks > 0, "nobody says that it fell back");
    pair.stop();
}
