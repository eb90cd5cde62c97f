//! One end of a reliable lane over a kernel interface that DPDK took over. In: the interface, a role, a
//! congestion control. Out: what was measured of the frames that were handed up. Promise: it rests when the lane
//! has nothing to do.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dwcp_drivers::dpdk::carrier::Carrier;
use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig};
use dwcp_drivers::dpdk::device::Device;
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};
use dwcp_drivers::lane::{LaneEvent, LaneGroup, Polled};
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};

use super::end::{Measured, Meter, PIECE_BYTES, Role};
use crate::bench::lanes::end::{pools, rest};

const PORT: u16 = 4790;
const MTU_BYTES: u16 = 1500;
const MEMORY_MIB: u32 = 128;
const EVENTS_MAX: usize = 256;
/// Between two looks at the link.
const TEND_EVERY: Duration = Duration::from_millis(50);

fn ip(role: Role) -> IpAddr {
    let host = match role {
        Role::Send => 1,
        Role::Receive => 2,
    };
    [10, 77, 0, host].into()
}

pub(super) fn run(interface: &str, role: Role, congestion: &str) -> anyhow::Result<Measured> {
    let congestion = match congestion {
        "cubic" => Congestion::Cubic,
        "bbr" => Congestion::Bbr,
        other => bail!("lanes know cubic and bbr, not {other}"),
    };
    let eal = Eal::start(&EalConfig {
        memory: Memory::Ordinary { mib: MEMORY_MIB },
        pci: false,
    })?;
    let device = Device::AfXdp {
        interface: interface.to_owned(),
    };
    let plan = PortPlan {
        queues: 1,
        mtu_bytes: MTU_BYTES,
        packets_per_queue: 8192,
    };
    let (mut port, mut seats) = PacketPort::open(eal, &device, &plan)?;
    let queue = seats.pop().context("a port without a queue")?.sit()?;
    let net = NetConfig {
        v4: Some(Address {
            ip: ip(role),
            prefix_bits: 24,
            gateway: None,
        }),
        v6: None,
        port_base: PORT,
        queues: 1,
        mtu_bytes: MTU_BYTES,
    };
    let carrier = Carrier::new(Datagrams::new(queue, &net)?);
    let config = ReliableConfig {
        congestion,
        ..ReliableConfig::default()
    };
    let mut group = ReliableLanes::new(carrier, config)?;
    let pools = pools()?;
    let endpoint = ReliableEndpoint {
        meeting: match role {
            Role::Send => Meeting::Connect(SocketAddr::new(ip(Role::Receive), PORT)),
            Role::Receive => Meeting::Accept,
        },
        connection: 1,
        secret: [7; 32],
        protection: Protection::Tagged,
    };
    let lane = group.add(endpoint, &pools)?;
    let frame = pools
        .copy(&vec![0x5a; PIECE_BYTES])
        .context("no buffer of this length")?;
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let (mut meter, mut tended) = (Meter::new(), Instant::now());
    loop {
        if matches!(role, Role::Send) {
            while group.submit(lane, frame.clone()).is_ok() {}
        }
        if group.poll(&mut events) == Polled::Idle {
            rest(&mut group)?;
        }
        if tended.elapsed() >= TEND_EVERY {
            tended = Instant::now();
            port.tend();
        }
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => {
                    let got = frame.bytes();
                    ensure!(
                        got.len() == PIECE_BYTES && got.iter().all(|byte| *byte == 0x5a),
                        "a frame came that nobody sent"
                    );
                    if let Some(measured) = meter.count(Instant::now()) {
                        return Ok(measured);
                    }
                }
                LaneEvent::Closed { reason, .. } => bail!("the lane closed: {reason}"),
                LaneEvent::Writable { .. } => {}
            }
        }
    }
}
