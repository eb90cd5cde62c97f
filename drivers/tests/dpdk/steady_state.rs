//! Once datagrams flow, they cost no allocation.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dwcp_drivers::dpdk::device::MemifRole;

use crate::counting::ALLOCATIONS;
use crate::scene::{PATIENCE, Side, given_socket, host, memif, plan, role, start};

#[test]
fn datagrams_cost_no_allocation() {
    if role().is_some() {
        let device = memif(&given_socket(), MemifRole::Client);
        return Side::open(&device, &plan(), 2).echo();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let mut near = Side::open(&memif(&socket, MemifRole::Server), &plan(), 1);
    let test = "steady_state::datagrams_cost_no_allocation";
    let mut other = start(test, "echo", &socket);
    let payload = [7; 4000];
    let mut exchange = |times: u16| {
        for _ in 0..times {
            for six in [false, true] {
                assert!(near.ask(host(2, six), &payload, PATIENCE));
            }
        }
    };
    exchange(10);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    exchange(500);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    near.ask(host(2, false), b"end", Duration::from_secs(1));
    assert!(other.wait().success());
}
