//! Lanes over a DPDK port: reliable ones, on one pair of queues for each worker.
//!
//! In: the table `[dpdk]`. Out: a port that runs, each worker's address, its queue, its lanes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dwcp_drivers::dpdk::carrier::Carrier;
use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig};
use dwcp_drivers::dpdk::device::{Device, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, EalError, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};
use dwcp_drivers::dpdk::queue::QueueSeat;
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};

use crate::config::{CongestionControl, DpdkConfig, DpdkDevice, Hugepages};
use crate::transport::handshake::{Guard, LaneSecret, Way};

/// One worker's lanes.
pub type Group = ReliableLanes<Carrier>;

/// What lies around an IP packet in a frame.
const AROUND_IP_BYTES: u16 = 14;
/// A silent peer is given up after this long; the session has its own, longer patience.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Packet buffers of a memif ring, as a power of two.
const MEMIF_RING_LOG2: u8 = 9;

/// A port that runs.
pub struct Opened {
    port: PacketPort,
    seats: Vec<QueueSeat>,
    net: NetConfig,
    address: SocketAddr,
    guard: Guard,
    lanes: ReliableConfig,
}

/// One worker's queue.
pub struct Seat {
    seat: QueueSeat,
    net: NetConfig,
    lanes: ReliableConfig,
}

impl Opened {
    /// Opens the port with a pair of queues for each worker.
    ///
    /// # Errors
    /// What cannot be had, with its cure.
    pub fn open(config: &DpdkConfig, hugepages: Hugepages, workers: usize) -> Result<Self> {
        let device = device(config);
        let eal = eal(config.memory_mib, hugepages, &device)?;
        let queues = u16::try_from(workers).context("more workers than queues")?;
        let plan = PortPlan {
            queues,
            mtu_bytes: config.mtu_bytes,
            ..PortPlan::default()
        };
        let (port, seats) = PacketPort::open(eal, &device, &plan)?;
        let address = Address {
            ip: config.address.ip,
            prefix_bits: config.address.prefix_bits,
            gateway: config.gateway,
        };
        let v4 = address.ip.is_ipv4();
        let net = NetConfig {
            v4: v4.then_some(address),
            v6: (!v4).then_some(address),
            port_base: config.port,
            queues,
            mtu_bytes: config.mtu_bytes,
        };
        Ok(Self {
            port,
            seats,
            net,
            address: SocketAddr::new(config.address.ip, config.port),
            guard: config.guard,
            lanes: ReliableConfig {
                lanes_max: crate::config::LANES_OF_A_WORKER,
                congestion: match config.congestion {
                    CongestionControl::Cubic => Congestion::Cubic,
                    CongestionControl::Bbr => Congestion::Bbr,
                },
                silence_max: SILENCE_MAX,
                ..ReliableConfig::default()
            },
        })
    }

    /// Where `worker` is reached.
    pub fn way(&self, worker: usize) -> Option<Way> {
        let number = u16::try_from(worker).ok()?;
        let port = self.address.port().checked_add(number)?;
        let address = SocketAddr::new(self.address.ip(), port);
        let guard = self.guard;
        (number < self.net.queues).then_some(Way::Dpdk { address, guard })
    }

    /// The queues, first to last.
    pub fn seats(&mut self) -> impl Iterator<Item = Seat> + use<> {
        let (net, lanes) = (self.net, self.lanes.clone());
        std::mem::take(&mut self.seats)
            .into_iter()
            .map(move |seat| Seat {
                seat,
                net,
                lanes: lanes.clone(),
            })
    }

    /// Looks after the link.
    pub fn tend(&mut self) {
        self.port.tend();
    }
}

impl Seat {
    /// The calling worker's lanes.
    ///
    /// # Errors
    /// What cannot be had, with its cure.
    pub fn group(self) -> Result<Group> {
        let datagrams = Datagrams::new(self.seat.sit()?, &self.net).context("[dpdk]")?;
        Ok(ReliableLanes::new(Carrier::new(datagrams), self.lanes)?)
    }
}

/// DPDK itself. Where hugepages are preferred and there are too few, a device of software gets ordinary
/// pages; one on the PCI bus needs memory that does not move.
fn eal(mib: u32, hugepages: Hugepages, device: &Device) -> Result<Eal> {
    let pci = matches!(device, Device::Pci { .. });
    let start = |memory| Eal::start(&EalConfig { memory, pci });
    if hugepages == Hugepages::Off {
        return Ok(start(Memory::Ordinary { mib })?);
    }
    match start(Memory::Huge { mib }) {
        Err(error @ EalError::NoHugepages { .. }) if hugepages == Hugepages::Prefer && !pci => {
            tracing::warn!(%error, "packets lie in ordinary pages");
            Ok(start(Memory::Ordinary { mib })?)
        }
        started => Ok(started?),
    }
}

fn device(config: &DpdkConfig) -> Device {
    let memif = |socket: &std::path::Path, role| {
        Device::Memif(Memif {
            socket: socket.to_owned(),
            role,
            frame_bytes: (config.mtu_bytes + AROUND_IP_BYTES).next_multiple_of(64),
            ring_log2: MEMIF_RING_LOG2,
        })
    };
    match &config.device {
        DpdkDevice::Pci(address) => Device::Pci {
            address: address.clone(),
        },
        DpdkDevice::AfXdp(interface) => Device::AfXdp {
            interface: interface.clone(),
        },
        DpdkDevice::MemifServer(socket) => memif(socket, MemifRole::Server),
        DpdkDevice::MemifClient(socket) => memif(socket, MemifRole::Client),
    }
}

/// One end of a lane; the side that dialled speaks first, to `peer`.
///
/// # Errors
/// None in this build.
#[expect(
    clippy::unnecessary_wraps,
    reason = "a build without DPDK has no endpoint to give"
)]
pub fn endpoint(
    peer: Option<SocketAddr>,
    secret: &LaneSecret,
    guard: Guard,
) -> Result<ReliableEndpoint> {
    let name = blake3::derive_key("dwcp lane over datagrams: connection", &secret.0);
    let mut connection = [0; 8];
    connection.copy_from_slice(&name[..8]);
    Ok(ReliableEndpoint {
        meeting: peer.map_or(Meeting::Accept, Meeting::Connect),
        connection: u64::from_le_bytes(connection),
        secret: blake3::derive_key("dwcp lane over datagrams: secret", &secret.0),
        protection: match guard {
            Guard::Datagrams => Protection::Tagged,
            Guard::Encrypted => Protection::Sealed,
            Guard::Headers => Protection::Headers,
        },
    })
}
