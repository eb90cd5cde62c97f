//! One end of a reliable lane over a memif, alone in its process. In: a socket, a role. Out: what it
//! measured, as JSON. Promise: its worker never parks, as on a core of its own, so that each system call it
//! makes while it carries is one of the lane's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dwcp_drivers::dpdk::carrier::Carrier;
use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig};
use dwcp_drivers::dpdk::device::{Device, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};
use dwcp_drivers::dpdk::queue::QueueSeat;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::LaneGroup;
use dwcp_drivers::reliable::{
    Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;
use dwcp_lab::syscalls::SyscallCounter;
use serde::{Deserialize, Serialize};

use super::{ETHERNET_FRAME_BYTES, RING_BUFFER_BYTES, RING_LOG2};
use crate::bench::lanes::end::{self, Measured, Role, pin};

const PATIENCE: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_millis(300);
const UDP_PORT: u16 = 4790;
const MEMORY_MIB: u32 = 128;
/// More for each queue.
const QUEUE_MEMORY_MIB: u32 = 64;
/// Ethernet's header.
const AROUND_IP_BYTES: u16 = 14;
/// Frames of 4 KiB that wait on a lane: several bursts.
const QUEUE_FRAMES: u16 = 128;

/// What one end did.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Ended {
    pub(super) measured: Measured,
    /// Of the worker's thread, while it carried.
    pub(super) system_calls: u64,
    /// That this end sent.
    pub(super) datagrams: u64,
}

/// What a lane's datagrams are guarded by.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// A tag over what is not the frames' content
    Headers,
    /// A tag over all
    Datagrams,
    /// A tag over all, and encryption
    Encrypted,
}

impl Guard {
    /// As it is given on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::Datagrams => "datagrams",
            Self::Encrypted => "encrypted",
        }
    }
}

/// The command line of an end; for this program itself, not for people.
#[derive(clap::Args, Clone, Debug)]
pub struct DpdkEndArguments {
    /// What to do
    role: Role,
    /// Where the two meet
    socket: PathBuf,
    /// How long to send
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Length of each frame
    #[arg(long, default_value_t = 4 << 10)]
    frame_bytes: usize,
    /// Core to run on
    #[arg(long)]
    core: usize,
    /// What an eavesdropper may see and change
    #[arg(long, value_enum, default_value_t = Guard::Headers)]
    guard: Guard,
}

/// Runs one end, prints what it measured as JSON, and waits to be killed.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(arguments: &DpdkEndArguments) -> anyhow::Result<()> {
    let (mut port, mut seats) = open(arguments.role, &arguments.socket, 1)?;
    let seat = seats.pop().context("a port without a queue")?;
    wait_for_link(&mut port)?;
    pin(arguments.core)?;
    let protection = match arguments.guard {
        Guard::Headers => Protection::Headers,
        Guard::Datagrams => Protection::Tagged,
        Guard::Encrypted => Protection::Sealed,
    };
    let (mut group, pools) = (lanes(seat, arguments.role, 1)?, pools()?);
    let lane = group.add(endpoint(arguments.role, 0, protection), &pools)?;
    let mut counter = SyscallCounter::of_this_thread()?;
    let measured = match arguments.role {
        Role::Send => {
            let duration = Duration::from_secs_f64(arguments.seconds);
            let (frame_bytes, spin) = (arguments.frame_bytes, |_: &mut _| Rest::Spin.take());
            end::send(&mut group, lane, &pools, frame_bytes, duration, spin)
        }
        Role::Receive => end::receive(&mut group, |_| Rest::Spin.take()),
    }?;
    let ended = Ended {
        measured,
        system_calls: counter.since_last_look()?,
        datagrams: group.port().datagrams().counts().sent,
    };
    println!("{}", serde_json::to_string(&ended)?);
    linger(&mut group);
    loop {
        std::thread::park(); // until killed: what the other end has not read goes with this process
    }
}

/// Answers the other end for a while, which may not have heard that the lane was finished.
pub(crate) fn linger(group: &mut ReliableLanes<Carrier>) {
    let start = Instant::now();
    let mut events = Vec::new();
    while start.elapsed() < LINGER {
        group.poll(&mut events);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the other end is there.
pub(crate) fn wait_for_link(port: &mut PacketPort) -> anyhow::Result<()> {
    let start = Instant::now();
    while !port.tend() {
        ensure!(start.elapsed() < PATIENCE, "the other end does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A memif port with this many pairs of queues; the receiving end serves.
pub(crate) fn open(
    role: Role,
    socket: &Path,
    queues: u16,
) -> anyhow::Result<(PacketPort, Vec<QueueSeat>)> {
    let eal = Eal::start(&EalConfig {
        memory: Memory::Ordinary {
            mib: MEMORY_MIB + QUEUE_MEMORY_MIB * u32::from(queues),
        },
        pci: false,
    })?;
    let device = Device::Memif(Memif {
        socket: socket.to_owned(),
        role: match role {
            Role::Send => MemifRole::Client,
            Role::Receive => MemifRole::Server,
        },
        frame_bytes: RING_BUFFER_BYTES,
        ring_log2: RING_LOG2,
    });
    let plan = PortPlan {
        queues,
        mtu_bytes: ETHERNET_FRAME_BYTES - AROUND_IP_BYTES,
        ..PortPlan::default()
    };
    Ok(PacketPort::open(eal, &device, &plan)?)
}

/// The calling worker's lanes, on one of `queues` queues.
pub(crate) fn lanes(
    seat: QueueSeat,
    role: Role,
    queues: u16,
) -> anyhow::Result<ReliableLanes<Carrier>> {
    let net = NetConfig {
        v4: Some(Address {
            ip: address(role, 0).ip(),
            prefix_bits: 24,
            gateway: None,
        }),
        v6: None,
        port_base: UDP_PORT,
        queues,
        mtu_bytes: ETHERNET_FRAME_BYTES - AROUND_IP_BYTES,
    };
    let datagrams = Datagrams::new(seat.sit()?, &net)?;
    let config = ReliableConfig {
        queue_frames_max: QUEUE_FRAMES,
        ..ReliableConfig::default()
    };
    Ok(ReliableLanes::new(Carrier::new(datagrams), config)?)
}

/// Frames of 4 KiB for most of a ring, and no more: a sender that finds the ring full looks at its indices
/// again and again, and takes them from the receiver each time.
pub(crate) fn pools() -> anyhow::Result<FramePools> {
    Ok(FramePools::new(&FramePoolsConfig {
        small: 16,
        medium: (1 << RING_LOG2) * 3 / 4,
        large: 64,
        backing: BackingPolicy::PreferHuge,
    })?)
}

/// The end of the lane between the workers of this number.
pub(crate) fn endpoint(role: Role, worker: u16, protection: Protection) -> ReliableEndpoint {
    ReliableEndpoint {
        meeting: match role {
            Role::Send => Meeting::Connect(address(Role::Receive, worker)),
            Role::Receive => Meeting::Accept,
        },
        connection: u64::from(worker) + 1,
        secret: [7; 32],
        protection,
    }
}

fn address(role: Role, worker: u16) -> SocketAddr {
    let host = match role {
        Role::Send => 1,
        Role::Receive => 2,
    };
    SocketAddr::from(([10, 77, 0, host], UDP_PORT + worker))
}

/// What a worker does when its lanes have nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It looks again: the core is its own.
    Spin,
    /// It lets others run, and looks again.
    Yield,
}

impl Rest {
    /// Does it; a worker with a port that can only be polled never parks.
    #[allow(clippy::unnecessary_wraps, reason = "other ends may fail at it")]
    pub(crate) fn take(self) -> anyhow::Result<()> {
        if self == Self::Yield {
            std::thread::yield_now();
        }
        Ok(())
    }
}
