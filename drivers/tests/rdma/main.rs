//! The conformance suite over RDMA, and what only RDMA can break. Needs two RDMA devices, at 10.77.0.1
//! and 10.77.0.2 unless `DWCP_RDMA_NEAR` and `DWCP_RDMA_FAR` say other addresses: the virtual machine
//! of the lab has them.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../counting/mod.rs"]
mod counting;
mod faults;
#[path = "../other/mod.rs"]
mod other;
mod refusals;
mod removal;
mod scene;
mod steady_state;

use std::io::Write;
use std::time::Duration;

use dwcp_drivers::conformance::Harness;
use dwcp_drivers::rdma::{ConnectError, Endpoint, RdmaLanes};

use scene::{PATIENCE, TOKEN, connected, far, near, port};

struct Rdma;

impl Harness for Rdma {
    type Lanes = RdmaLanes;

    fn lanes(&self) -> RdmaLanes {
        // A group needs the port only to be made.
        port().lanes().unwrap()
    }

    fn pair(&self) -> (Endpoint, Endpoint) {
        connected()
    }

    fn raw(&self) -> Option<(Endpoint, Box<dyn Write + Send>)> {
        None
    }
}

dwcp_drivers::conformance_suite!(rdma, super::Rdma);

#[test]
fn a_request_that_is_turned_away_says_so() {
    dwcp_drivers::conformance::check(|| {
        let connector = port().connector().unwrap();
        let mut listener = connector.listen(far()).unwrap();
        let to = listener.local_addr();
        std::thread::scope(|scope| {
            let asked = &mut listener;
            scope.spawn(move || asked.next(PATIENCE).unwrap().unwrap().reject());
            match connector.connect(Some(near()), to, &TOKEN, PATIENCE) {
                Err(ConnectError::Failed { what, .. }) => assert_eq!(what, "rejected"),
                Err(other) => panic!("{other}"),
                Ok(_) => panic!("connected"),
            }
        });
        assert!(listener.next(Duration::ZERO).unwrap().is_none());
    });
}

#[test]
fn nobody_at_the_address_is_an_error_with_the_step() {
    dwcp_drivers::conformance::check(|| {
        let connector = port().connector().unwrap();
        let mut nobody = far();
        nobody.set_port(9);
        let refused = connector.connect(Some(near()), nobody, &TOKEN, PATIENCE);
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains("connect failed"), "{refused}");
    });
}
