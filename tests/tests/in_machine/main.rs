//! What only a virtual machine of the lab has the devices for: streams between two data planes over software
//! RDMA and over emulated NICs driven by DPDK, and profiles on those NICs. Run inside one, by `rdma.rs` and
//! `dpdk.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod desk;
mod nics;

use std::process::Command;

use dwcp_dataplane::config::{
    CongestionControl, DpdkConfig, DpdkDevice, Driver, Hugepages, RdmaConfig,
};
use dwcp_dataplane::transport::handshake::Guard;
use dwcp_lab::vm::{E1000E, IGB};
use dwcp_tests::pair::{Pair, PairOptions};
use dwcp_tests::recorded;
use dwcp_tests::streams::{carry, carry_through, pages};

/// What the nodes say is shown when a test fails.
fn listen_to_the_nodes() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("debug")
        .with_test_writer()
        .try_init();
}

/// Under an emulated processor all takes longer.
const PAGES: u64 = 4_000;

/// Both nodes with an RDMA device.
fn over_rdma() -> Pair {
    listen_to_the_nodes();
    let at = |host: u8| RdmaConfig {
        listen: ([10, 77, 0, host], 0).into(),
    };
    Pair::start_with(PairOptions::default(), |a, b| {
        a.driver = Driver::Rdma;
        a.rdma = Some(at(1));
        b.rdma = Some(at(2));
    })
}

#[test]
fn rdma_streams_cross_two_devices() {
    let pair = over_rdma();
    for stream in [pages(1, PAGES), recorded::stream()] {
        assert_eq!(carry(&pair, &stream), ("rdma", 0));
    }
    pair.stop();
}

#[test]
fn rdma_a_peer_without_it_gets_tcp() {
    listen_to_the_nodes();
    let pair = Pair::start_with(PairOptions::default(), |a, _| {
        a.driver = Driver::Rdma;
        a.rdma = Some(RdmaConfig {
            listen: ([10, 77, 0, 1], 0).into(),
        });
    });
    assert_eq!(carry(&pair, &pages(2, 500)), ("tcp", 0));
    pair.stop();
}

/// The last of these by its name: the cable stays cut.
#[test]
fn rdma_when_queue_pairs_are_lost_the_session_goes_on_over_tcp() {
    let pair = over_rdma();
    let cut = || {
        let ip = Command::new("ip")
            .args(["link", "set", "veth0", "down"])
            .status();
        assert!(ip.unwrap().success());
    };
    assert_eq!(carry_through(&pair, &pages(4, PAGES), cut), ("tcp", 1));
    pair.stop();
}

#[test]
fn vfio_streams_cross_two_nics() {
    listen_to_the_nodes();
    let at = |device: &str, host: u8| DpdkConfig {
        device: DpdkDevice::Pci(device.to_owned()),
        address: format!("10.78.0.{host}/24").try_into().unwrap(),
        gateway: None,
        port: 4790,
        mtu_bytes: 1500,
        memory_mib: 128,
        guard: Guard::Headers,
        congestion: CongestionControl::Cubic,
    };
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        for node in [&mut *a, &mut *b] {
            node.hugepages = Hugepages::Prefer;
        }
        a.driver = Driver::Dpdk;
        a.dpdk = Some(at(E1000E, 1));
        b.dpdk = Some(at(IGB, 2));
    });
    for stream in [pages(3, PAGES), recorded::stream()] {
        assert_eq!(carry(&pair, &stream), ("dpdk", 0));
    }
    pair.stop();
}
