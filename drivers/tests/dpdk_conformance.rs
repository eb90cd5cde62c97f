//! The conformance suite over DPDK ports: over memif between two ports of this process, or over the two
//! devices that `DWCP_DPDK_NEAR` and `DWCP_DPDK_FAR` name, `pci:ADDRESS` or `af_xdp:INTERFACE`, which must be
//! on one wire.
#![cfg(feature = "dpdk")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
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
    AddError, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason, WireBytes,
};
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

/// A group's port, opened when its first lane says which side it is on, and its lanes. The lanes go first.
struct Open {
    lanes: Option<ReliableLanes<Carrier>>,
    port: Option<PacketPort>,
    tended: Instant,
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
        let config = ReliableConfig::default();
        let lanes = ReliableLanes::new(Carrier::new(datagrams), config).unwrap();
        Self {
            lanes: Some(lanes),
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
        self.lanes = None;
        self.port = None;
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Lanes {
    open: Option<Open>,
    /// What one without a lane sleeps on.
    nothing: Waker,
}

impl Lanes {
    fn get(&self) -> Option<&ReliableLanes<Carrier>> {
        self.open.as_ref().and_then(|open| open.lanes.as_ref())
    }

    fn get_mut(&mut self) -> Option<&mut ReliableLanes<Carrier>> {
        self.open.as_mut().and_then(|open| open.lanes.as_mut())
    }
}

struct End {
    side: Side,
    endpoint: ReliableEndpoint,
}

impl LaneGroup for Lanes {
    type Endpoint = End;

    fn add(&mut self, end: End, pools: &FramePools) -> Result<LaneId, AddError> {
        let open = self.open.get_or_insert_with(|| Open::new(end.side));
        let lanes = open.lanes.as_mut().unwrap();
        lanes.add(end.endpoint, pools)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        match self.get_mut() {
            Some(lanes) => lanes.submit(lane, frame),
            None => Err(Refused {
                frame,
                reason: RefusedReason::Unknown,
            }),
        }
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        let Some(open) = &mut self.open else {
            return Polled::Idle;
        };
        if open.tended.elapsed() >= TEND_EVERY {
            open.tended = Instant::now();
            open.port.as_mut().unwrap().tend();
        }
        open.lanes.as_mut().unwrap().poll(out)
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.get().map_or(0, |lanes| lanes.backlog_bytes(lane))
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.get()
            .map_or_else(WireBytes::default, |lanes| lanes.wire_bytes(lane))
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.get().and_then(|lanes| lanes.stats(lane))
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(lanes) = self.get_mut() {
            lanes.close(lane);
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(lanes) = self.get_mut() {
            lanes.finish(lane);
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        match self.get() {
            Some(lanes) => lanes.park_fd(),
            None => Some(self.nothing.as_fd()),
        }
    }

    fn prepare_park(&mut self) -> bool {
        self.get_mut().is_none_or(LaneGroup::prepare_park)
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
            open: None,
            nothing: Waker::new().unwrap(),
        }
    }

    fn pair(&self) -> (End, End) {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let end = |side, meeting| End {
            side,
            endpoint: ReliableEndpoint {
                meeting,
                connection: number,
                secret: [number as u8; 32],
                protection: Protection::Sealed,
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
