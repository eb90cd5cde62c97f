//! The conformance suite over RDMA, and what only RDMA can break. Needs two RDMA devices, at 10.77.0.1
//! and 10.77.0.2 unless `DWCP_RDMA_NEAR` and `DWCP_RDMA_FAR` say other addresses: the virtual machine
//! of the lab has them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use dwcp_drivers::conformance::Harness;
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::rdma::{
    ConnectError, Connector, Endpoint, Listener, RdmaLanes, RdmaOptions, RdmaPort, TOKEN_BYTES,
};
use dwcp_hugepages::arena::BackingPolicy;

const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: [u8; TOKEN_BYTES] = *b"a token of just thirty-two bytes";

fn address(variable: &str, default: &str) -> SocketAddr {
    let ip: IpAddr = std::env::var(variable)
        .unwrap_or(default.to_owned())
        .parse()
        .unwrap();
    (ip, 0).into()
}

fn near() -> SocketAddr {
    address("DWCP_RDMA_NEAR", "10.77.0.1")
}

fn far() -> SocketAddr {
    address("DWCP_RDMA_FAR", "10.77.0.2")
}

fn port() -> RdmaPort {
    let mut port = RdmaPort::new(RdmaOptions {
        backing: BackingPolicy::Ordinary,
    });
    port.open(PortConfig::default()).unwrap();
    port.start().unwrap();
    port
}

/// One for the process, so that descriptors that stay open do not look like a leak.
fn shared() -> &'static (Connector, std::sync::Mutex<Listener>) {
    static SHARED: OnceLock<(Connector, std::sync::Mutex<Listener>)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let connector = port().connector().unwrap();
        let listener = connector.listen(far()).unwrap();
        (connector, listener.into())
    })
}

fn connected() -> (Endpoint, Endpoint) {
    let (connector, listener) = shared();
    let mut listener = listener.lock().unwrap();
    let (to, listener) = (listener.local_addr(), &mut *listener);
    std::thread::scope(|scope| {
        let far = scope.spawn(move || {
            let request = listener.next(PATIENCE).unwrap().unwrap();
            assert_eq!(request.token(), &TOKEN);
            request.accept(PATIENCE).unwrap()
        });
        let near = connector
            .connect(Some(near()), to, &TOKEN, PATIENCE)
            .unwrap();
        (near, far.join().unwrap())
    })
}

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
