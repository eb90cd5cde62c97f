//! A peer that is killed while frames flow both ways.

use std::net::SocketAddr;
use std::time::Duration;

use dwcp_drivers::conformance::check;
use dwcp_drivers::port::{Port, PortState};

use crate::scene::{PATIENCE, TOKEN, Worker, far, near, port, role, start};

/// What goes in a message, and what the peer's device writes.
const LENGTHS: [usize; 2] = [300, 70_000];
/// Frames that arrive before the peer is killed.
const FRAMES: u64 = 100;

/// Frames of every length, as many as are taken.
fn flood(worker: &mut Worker) {
    while LENGTHS.iter().all(|bytes| worker.offer(*bytes)) {}
    worker.turn();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The other process: floods until its end, which is to come from outside.
fn flood_to_the_end(to: SocketAddr) {
    let port = port();
    let connector = port.connector().unwrap();
    let endpoint = connector
        .connect(Some(far()), to, &TOKEN, PATIENCE)
        .unwrap();
    let mut worker = Worker::new(&port, endpoint);
    while worker.over.is_none() {
        flood(&mut worker);
    }
}

#[test]
fn a_killed_peer_ends_the_lane_and_nothing_is_lost() {
    const TEST: &str = "faults::a_killed_peer_ends_the_lane_and_nothing_is_lost";
    if let Some(to) = role() {
        return flood_to_the_end(to.parse().unwrap());
    }
    check(|| {
        let mut port = port();
        let connector = port.connector().unwrap();
        let listener = connector.listen(near()).unwrap();
        let mut held = None;
        for round in 0..3 {
            let mut other = start(TEST, &listener.local_addr().to_string());
            let request = listener.next(PATIENCE).unwrap().unwrap();
            let mut worker = Worker::new(&port, request.accept(PATIENCE).unwrap());
            while worker.got < FRAMES {
                flood(&mut worker);
            }
            other.kill();
            while worker.over.is_none() {
                flood(&mut worker);
            }
            worker.check_failed();
            drop(worker);
            let now = descriptors();
            assert_eq!(*held.get_or_insert(now), now, "round {round}");
        }
        drop((listener, connector));
        port.drain(Duration::ZERO).unwrap();
        port.close();
        assert_eq!(port.state(), PortState::Closed);
    });
}
