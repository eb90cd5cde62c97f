//! A device that is taken away from under its lanes. Run alone, by its name: whoever else has the device
//! open in this process keeps it from going.

use std::process::Command;
use std::time::Instant;

use dwcp_drivers::conformance::check;

use crate::scene::{PATIENCE, Worker, closed_port, far, joined, port};
use dwcp_drivers::port::{Port, PortConfig};

fn rdma(arguments: &str) -> Command {
    let mut command = Command::new("rdma");
    command.args(arguments.split_whitespace());
    command
}

#[test]
fn a_device_that_is_taken_away_ends_its_lanes() {
    check(|| {
        let port = port();
        let connector = port.connector().unwrap();
        let mut listener = connector.listen(far()).unwrap();
        let (near, far) = joined(&connector, &mut listener);
        let device = near.device().to_owned();
        let (mut near, mut far) = (Worker::new(&port, near), Worker::new(&port, far));
        let mut removal = None;
        while near.over.is_none() || far.over.is_none() {
            for side in [&mut near, &mut far] {
                side.offer(70_000);
                side.turn();
            }
            if near.got >= 50 && removal.is_none() {
                removal = Some(rdma(&format!("link delete {device}")).spawn().unwrap());
            }
        }
        near.check_failed();
        far.check_failed();
        drop((near, far, listener, connector, port));
        let mut removal = removal.unwrap();
        let start = Instant::now();
        while removal.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "something holds the device");
            std::thread::yield_now();
        }
        // A port that is opened now has the devices that are left.
        let mut port = closed_port();
        port.open(PortConfig::default()).unwrap();
        assert!(port.devices().all(|name| name != device));
        let back = rdma(&format!("link add {device} type rxe netdev veth0"));
        assert!({ back }.status().unwrap().success());
    });
}
