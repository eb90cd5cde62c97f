//! The conformance suite, for every back end and every way in which it can run.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use dwcp_drivers::beside::{Beside, Either};
use dwcp_drivers::conformance::{Ends, Harness};
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::LaneGroup;
use dwcp_drivers::loopback::{LoopbackEndpoint, LoopbackLanes};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::tcp::{RecvMode, SendMode, SocketTuning, TcpLanes, TcpOptions, TcpPort, tune};
use dwcp_hugepages::arena::BackingPolicy;

struct Tcp {
    recv: RecvMode,
    send: SendMode,
    /// None: what the kernel gives.
    recv_buf_bytes: Option<u32>,
}

fn connected(recv_buf_bytes: Option<u32>) -> (TcpStream, TcpStream) {
    // Nearby is 127.0.0.1, far is 127.0.0.2: not the same address, so `SendMode::Auto` begins
    // without a copy and learns that the kernel copies here.
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    for end in [&near, &far] {
        let tuning = SocketTuning {
            recv_buf_bytes,
            ..SocketTuning::default()
        };
        tune(end, &tuning).unwrap();
    }
    // A lane works alike on a socket that somebody used without blocking before.
    near.set_nonblocking(true).unwrap();
    (near, far)
}

impl Harness for Tcp {
    type Lanes = TcpLanes;

    fn lanes(&self) -> TcpLanes {
        let options = TcpOptions {
            recv: self.recv,
            send: self.send,
            backing: BackingPolicy::Ordinary,
        };
        let mut port = TcpPort::new(options);
        port.open(PortConfig::default()).unwrap();
        if self.recv == RecvMode::Multishot && !port.capabilities().multishot_recv {
            println!("single shot instead: {:?}", port.capabilities().missing);
        }
        port.start().unwrap();
        port.lanes().unwrap()
    }

    fn pair(&self) -> (OwnedFd, OwnedFd) {
        let (near, far) = connected(self.recv_buf_bytes);
        (near.into(), far.into())
    }

    fn raw(&self) -> Option<(OwnedFd, Box<dyn Write + Send>)> {
        let (near, far) = connected(self.recv_buf_bytes);
        Some((near.into(), Box::new(far)))
    }
}

struct Loopback;

impl Harness for Loopback {
    type Lanes = LoopbackLanes;

    fn lanes(&self) -> LoopbackLanes {
        LoopbackLanes::new().unwrap()
    }

    fn pair(&self) -> (LoopbackEndpoint, LoopbackEndpoint) {
        LoopbackEndpoint::pair()
    }

    fn raw(&self) -> Option<(LoopbackEndpoint, Box<dyn Write + Send>)> {
        None
    }
}

/// Lanes of the second of two back ends, while the first has none.
struct Second;

impl Harness for Second {
    type Lanes = Beside<TcpLanes, Option<LoopbackLanes>>;

    fn lanes(&self) -> Self::Lanes {
        let tcp = Tcp {
            recv: RecvMode::SingleShot,
            send: SendMode::Auto,
            recv_buf_bytes: None,
        };
        Beside::new(tcp.lanes(), Some(LoopbackLanes::new().unwrap())).unwrap()
    }

    fn pair(&self) -> (Ends<Self>, Ends<Self>) {
        let (near, far) = LoopbackEndpoint::pair();
        (Either::Second(near), Either::Second(far))
    }

    fn raw(&self) -> Option<(Ends<Self>, Box<dyn Write + Send>)> {
        None
    }
}

/// Lanes of the first of two, while the second is not configured.
struct First;

impl Harness for First {
    type Lanes = Beside<TcpLanes, Option<LoopbackLanes>>;

    fn lanes(&self) -> Self::Lanes {
        let tcp = Tcp {
            recv: RecvMode::SingleShot,
            send: SendMode::Auto,
            recv_buf_bytes: None,
        };
        Beside::new(tcp.lanes(), None).unwrap()
    }

    fn pair(&self) -> (Ends<Self>, Ends<Self>) {
        let (near, far) = connected(None);
        (Either::First(near.into()), Either::First(far.into()))
    }

    fn raw(&self) -> Option<(Ends<Self>, Box<dyn Write + Send>)> {
        let (near, far) = connected(None);
        Some((Either::First(near.into()), Box::new(far)))
    }
}

dwcp_drivers::conformance_suite!(first_of_two, super::First);
dwcp_drivers::conformance_suite!(second_of_two, super::Second);
dwcp_drivers::conformance_suite!(loopback, super::Loopback);
dwcp_drivers::conformance_suite!(
    tcp_single_shot,
    super::Tcp {
        recv: super::RecvMode::SingleShot,
        send: super::SendMode::Copy,
        recv_buf_bytes: None
    }
);
dwcp_drivers::conformance_suite!(
    tcp_short_of_memory,
    super::Tcp {
        recv: super::RecvMode::SingleShot,
        send: super::SendMode::Copy,
        // Less than a long frame, which therefore never comes at once; more than a segment of
        // the loopback device, which would otherwise wait for its sender's probe.
        recv_buf_bytes: Some(128 << 10)
    }
);
dwcp_drivers::conformance_suite!(
    tcp_multishot,
    super::Tcp {
        recv: super::RecvMode::Multishot,
        send: super::SendMode::Auto,
        recv_buf_bytes: None
    }
);
dwcp_drivers::conformance_suite!(
    tcp_zero_copy,
    super::Tcp {
        recv: super::RecvMode::SingleShot,
        send: super::SendMode::ZeroCopy,
        recv_buf_bytes: None
    }
);

#[test]
fn a_connection_that_is_lost_before_it_is_a_lane_is_told_as_that() {
    let tcp = Tcp {
        recv: RecvMode::SingleShot,
        send: SendMode::Copy,
        recv_buf_bytes: None,
    };
    let (near, far) = connected(None);
    // Without patience the end is a reset, which arrives at once.
    rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
    drop(far);
    let pools = FramePools::new(&FramePoolsConfig {
        small: 1,
        medium: 0,
        large: 0,
        backing: BackingPolicy::Ordinary,
    })
    .unwrap();
    let refused = tcp.lanes().add(near.into(), &pools).unwrap_err();
    assert!(refused.is_connection_lost(), "{refused}");
    let (wrong, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = tcp.lanes().add(wrong.into(), &pools).unwrap_err();
    assert!(!refused.is_connection_lost(), "{refused}");
}
