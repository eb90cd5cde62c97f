//! Two ends of a lane: both in this process, or one in another.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use dwcp_drivers::frame::{Available, FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::rdma::{
    Connector, Endpoint, Listener, RdmaLanes, RdmaOptions, RdmaPort, TOKEN_BYTES,
};
use dwcp_hugepages::arena::BackingPolicy;

use crate::other::Other;
pub use crate::other::{PATIENCE, role};

pub const TOKEN: [u8; TOKEN_BYTES] = *b"a token of just thirty-two bytes";
fn address(variable: &str, default: &str) -> SocketAddr {
    let ip: IpAddr = std::env::var(variable)
        .unwrap_or(default.to_owned())
        .parse()
        .unwrap();
    (ip, 0).into()
}

pub fn near() -> SocketAddr {
    address("DWCP_RDMA_NEAR", "10.77.0.1")
}

pub fn far() -> SocketAddr {
    address("DWCP_RDMA_FAR", "10.77.0.2")
}

pub fn closed_port() -> RdmaPort {
    RdmaPort::new(RdmaOptions {
        backing: BackingPolicy::Ordinary,
    })
}

pub fn port() -> RdmaPort {
    let mut port = closed_port();
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

/// Both ends, in this process.
pub fn connected() -> (Endpoint, Endpoint) {
    let (connector, listener) = shared();
    joined(connector, &mut listener.lock().unwrap())
}

/// Both ends, by this connector and this listener.
pub fn joined(connector: &Connector, listener: &mut Listener) -> (Endpoint, Endpoint) {
    let to = listener.local_addr();
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

/// This test again, in a role.
pub fn start(test: &str, role: &str) -> Other {
    let program = std::env::current_exe().unwrap();
    Other::run(Command::new(program), test, role)
}

/// The same, by a shell that prepares something and then runs `"$@"`.
pub fn prepared(script: &str, test: &str, role: &str) -> Other {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command.arg(std::env::current_exe().unwrap());
    Other::run(command, test, role)
}

fn pools() -> FramePools {
    FramePools::new(&FramePoolsConfig {
        small: 64,
        medium: 16,
        large: 16,
        backing: BackingPolicy::Ordinary,
    })
    .unwrap()
}

/// A worker with one lane.
pub struct Worker {
    pub group: RdmaLanes,
    pub lane: LaneId,
    sends: FramePools,
    pools: FramePools,
    all: [Available; 2],
    events: Vec<LaneEvent>,
    /// Frames that arrived.
    pub got: u64,
    /// How the lane ended.
    pub over: Option<LaneClosed>,
    start: Instant,
}

impl Worker {
    pub fn new(port: &RdmaPort, endpoint: Endpoint) -> Self {
        let (sends, pools) = (pools(), pools());
        let all = [sends.available(), pools.available()];
        let mut group = port.lanes().unwrap();
        let lane = group.add(endpoint, &pools).unwrap();
        Self {
            group,
            lane,
            sends,
            pools,
            all,
            events: Vec::with_capacity(64),
            got: 0,
            over: None,
            start: Instant::now(),
        }
    }

    /// Offers a frame of this length. False: no buffer, no room, or no lane.
    pub fn offer(&mut self, bytes: usize) -> bool {
        let Some(frame) = self.sends.take(bytes) else {
            return false;
        };
        let frame = frame.freeze(bytes).unwrap();
        self.group.submit(self.lane, frame).is_ok()
    }

    /// One turn, as a worker does that never parks.
    pub fn turn(&mut self) {
        assert!(self.start.elapsed() < PATIENCE, "nothing comes of it");
        self.group.poll(&mut self.events);
        for event in self.events.drain(..) {
            match event {
                LaneEvent::Frame { .. } => self.got += 1,
                LaneEvent::Closed { reason, .. } => self.over = Some(reason),
                LaneEvent::Writable { .. } => {}
            }
        }
    }

    /// The lane failed, says what helps, and every buffer came back.
    pub fn check_failed(&self) -> i32 {
        let Some(reason @ LaneClosed::Failed { errno }) = self.over else {
            panic!("{:?}", self.over)
        };
        assert!(reason.to_string().contains("reconnect"), "{reason}");
        let now = [self.sends.available(), self.pools.available()];
        assert_eq!(now, self.all, "buffers are lost");
        errno
    }
}
