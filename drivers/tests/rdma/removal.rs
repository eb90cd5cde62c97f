//! A device that is taken away from under its lanes. Run alone, by its name: libraries keep devices open
//! until their process ends, and this one waits until nobody has the device.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dwcp_drivers::conformance::check;
use dwcp_drivers::port::{Port, PortConfig};

use crate::scene::{PATIENCE, Worker, closed_port, far, joined, port, role, start};

/// The near end's.
const DEVICE: &str = "rxe0";

fn rdma(arguments: &str) -> Command {
    let mut command = Command::new("rdma");
    command.args(arguments.split_whitespace());
    command
}

/// Has lanes on the device, both ways busy, until it is taken away.
fn lose_the_device() {
    let port = port();
    let connector = port.connector().unwrap();
    let mut listener = connector.listen(far()).unwrap();
    let (near, far) = joined(&connector, &mut listener);
    assert_eq!(near.device(), DEVICE);
    let (mut near, mut far) = (Worker::new(&port, near), Worker::new(&port, far));
    let mut removal = None;
    while near.over.is_none() || far.over.is_none() {
        for side in [&mut near, &mut far] {
            side.offer(70_000);
            side.turn();
        }
        if near.got >= 50 && removal.is_none() {
            // It ends when this process has.
            removal = Some(rdma(&format!("link delete {DEVICE}")).spawn().unwrap());
        }
    }
    near.check_failed();
    far.check_failed();
}

#[test]
fn a_device_that_is_taken_away_ends_its_lanes() {
    if role().is_some() {
        return check(lose_the_device);
    }
    check(|| {
        let test = "removal::a_device_that_is_taken_away_ends_its_lanes";
        assert!(start(test, "loses").wait().success());
        let start = Instant::now();
        while Path::new("/sys/class/infiniband").join(DEVICE).exists() {
            assert!(start.elapsed() < PATIENCE, "something holds the device");
            std::thread::sleep(Duration::from_millis(10));
        }
        // A port that is opened now has the devices that are left.
        let mut port = closed_port();
        port.open(PortConfig::default()).unwrap();
        assert!(port.devices().all(|name| name != DEVICE));
        let added = rdma(&format!("link add {DEVICE} type rxe netdev veth0")).status();
        assert!(added.unwrap().success());
    });
}
