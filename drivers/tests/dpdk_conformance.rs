//! The conformance suite over DPDK ports: over memif between two ports of this process, or over the two
//! devices that `DWCP_DPDK_NEAR` and `DWCP_DPDK_FAR` name, `pci:ADDRESS` or `af_xdp:INTERFACE`, which must be
//! on one wire.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dwcp_drivers::conformance::Harness;
use dwcp_drivers::dpdk::carrier::Carrier;
use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig};
use dwcp_drivers::dpdk::device::{Device, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};
use dwcp_drivers::frame::{Frame, FramePools};
use dwcp_drivers::lane::{
    AddError, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, WireBytes,
};
use dwcp_drivers::reliable::port::DatagramPort;
use dwcp_drivers::reliable::{
    Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_drivers::wake::Waker;

const PORT: u16 = 4790;
const MEMORY_MIB: u32 = 192;
/// Between two looks at the link.
const TEND_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Near,
    Far,
}

impl Side {
    fn ip(self) -> IpAddr {
        [10, 79, 0, if self == Self::Near { 1 } else { 2 }].into()
    }

    fn device(self) -> Device {
        let variable = match self {
            Self::Near => "DWCP_DPDK_NEAR",
            Self::Far => "DWCP_DPDK_FAR",
        };
        let Ok(name) = std::env::var(variable) else {
            let role = match self {
                Self::Near => MemifRole::Server,
                Self::Far => MemifRole::Client,
            };
            return Device::Memif(Memif {
                socket: socket(),
                role,
                frame_bytes: 4224,
                ring_log2: 9,
            });
        };
        match name.split_once(':') {
            Some(("pci", address)) => Device::Pci {
                address: address.to_owned(),
            },
            Some(("af_xdp", interface)) => Device::AfXdp {
                interface: interface.to_owned(),
            },
            _ => panic!("{variable}={name}: pci:ADDRESS or af_xdp:INTERFACE"),
        }
    }
}

/// One for this process, in a folder that goes with it.
fn socket() -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| tempfile::tempdir().unwrap())
        .path()
        .join("memif.sock")
}

fn eal(device: &Device) -> Eal {
    let pci = matches!(device, Device::Pci { .. });
    let memory = if pci {
        Memory::Huge { mib: MEMORY_MIB }
    } else {
        Memory::Ordinary { mib: MEMORY_MIB }
    };
    Eal::start(&EalConfig { memory, pci }).unwrap()
}

/// One side's port and its queue. A thread opens it once: a device that was closed cannot be opened again in
/// one process.
struct Open {
    carrier: Option<Carrier>,
    port: Option<PacketPort>,
    tended: Instant,
}

thread_local! {
    static OPEN: RefCell<Vec<(Side, Shared)>> = const { RefCell::new(Vec::new()) };
}

/// A port that outlives the groups over it.
#[derive(Clone)]
struct Shared(Rc<RefCell<Open>>);

impl Shared {
    fn of(side: Side) -> Self {
        OPEN.with_borrow_mut(|open| {
            if let Some((_, known)) = open.iter().find(|(known, _)| *known == side) {
                return known.clone();
            }
            let new = Self(Rc::new(RefCell::new(Open::new(side))));
            open.push((side, new.clone()));
            new
        })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Carrier) -> R) -> R {
        let open = &mut *self.0.borrow_mut();
        if open.tended.elapsed() >= TEND_EVERY {
            open.tended = Instant::now();
            open.port.as_mut().unwrap().tend();
        }
        act(open.carrier.as_mut().unwrap())
    }
}

impl DatagramPort for Shared {
    fn max_payload(&self) -> usize {
        self.with(|carrier| carrier.max_payload())
    }

    fn finds_damage(&self) -> bool {
        self.with(|carrier| carrier.finds_damage())
    }

    fn now_ns(&self) -> u64 {
        self.with(|carrier| carrier.now_ns())
    }

    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        self.with(|carrier| carrier.recv(sink))
    }

    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool {
        self.with(|carrier| carrier.send(to, fill))
    }

    fn flush(&mut self) {
        self.with(Carrier::flush);
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None // as the carrier's
    }

    fn prepare_park(&mut self) -> bool {
        self.with(Carrier::prepare_park)
    }
}

impl Open {
    fn new(side: Side) -> Self {
        let device = side.device();
        let memif = matches!(device, Device::Memif(_));
        let plan = PortPlan {
            queues: 1,
            mtu_bytes: if memif { 4160 } else { 1500 },
            packets_per_queue: 8192,
        };
        // Of two ends of a memif socket in one process the server must come first.
        if memif && side == Side::Far {
            let start = Instant::now();
            while !socket().exists() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (port, mut seats) = PacketPort::open(eal(&device), &device, &plan).unwrap();
        let net = NetConfig {
            v4: Some(Address {
                ip: side.ip(),
                prefix_bits: 24,
                gateway: None,
            }),
            v6: None,
            port_base: PORT,
            queues: 1,
            mtu_bytes: plan.mtu_bytes,
        };
        let datagrams = Datagrams::new(seats.remove(0).sit().unwrap(), &net).unwrap();
        Self {
            carrier: Some(Carrier::new(datagrams)),
            port: Some(port),
            tended: Instant::now(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Both ends of a memif are in this one process: DPDK's thread, which tidies up after the end that
        // closes, must be done before the other closes.
        static CLOSING: Mutex<()> = Mutex::new(());
        let _alone = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
        self.carrier = None;
        self.port = None;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A group whose port is that of the side that its first lane is on.
struct Lanes {
    lanes: Option<ReliableLanes<Shared>>,
    /// What one without a lane sleeps on.
    nothing: Waker,
}

struct End {
    side: Side,
    endpoint: ReliableEndpoint,
}

impl LaneGroup for Lanes {
    type Endpoint = End;

    fn add(&mut self, end: End, pools: &FramePools) -> Result<LaneId, AddError> {
        let lanes = self.lanes.get_or_insert_with(|| {
            ReliableLanes::new(Shared::of(end.side), ReliableConfig::default()).unwrap()
        });
        lanes.add(end.endpoint, pools)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        self.lanes.submit(lane, frame)
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.lanes.poll(out)
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.lanes.backlog_bytes(lane)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.lanes.wire_bytes(lane)
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.lanes.stats(lane)
    }

    fn close(&mut self, lane: LaneId) {
        self.lanes.close(lane);
    }

    fn finish(&mut self, lane: LaneId) {
        self.lanes.finish(lane);
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lanes.park_fd().or(Some(self.nothing.as_fd()))
    }

    fn prepare_park(&mut self) -> bool {
        self.lanes.prepare_park()
    }
}

struct Dpdk;

impl Harness for Dpdk {
    type Lanes = Lanes;

    fn lanes(&self) -> Lanes {
        // Here and not with the first lane, so that what DPDK keeps open for good is open when a check
        // begins to count.
        eal(&Side::Near.device());
        Lanes {
            lanes: None,
            nothing: Waker::new().unwrap(),
        }
    }

    fn pair(&self) -> (End, End) {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // A memif needs no sum over the content of frames: the path without one is tested here.
        let protection = match Side::Near.device() {
            Device::Memif(_) => Protection::Headers,
            Device::AfXdp { .. } | Device::Pci { .. } => Protection::Sealed,
        };
        let end = |side: Side, meeting| End {
            side,
            endpoint: ReliableEndpoint {
                meeting,
                connection: number,
                secret: [number as u8; 32],
                protection,
            },
        };
        let far = SocketAddr::new(Side::Far.ip(), PORT);
        (
            end(Side::Near, Meeting::Connect(far)),
            end(Side::Far, Meeting::Accept),
        )
    }

    fn raw(&self) -> Option<(End, Box<dyn Write + Send>)> {
        None // datagrams have no bare byte stream below them
    }
}

dwcp_drivers::conformance_suite!(dpdk, super::Dpdk);
