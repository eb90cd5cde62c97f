//! A device set up: its memory, its queues, its link.
//!
//! Comes in: a [`Device`] and a [`PortPlan`]. Goes out: a [`PacketPort`] for the cold side and one
//! [`QueueSeat`] per worker. Promises: what the plan asks and the device cannot is an error before
//! anything moves; a peer that left is looked for again by [`PacketPort::tend`]; dropping the port
//! stops the device while no worker is inside it, and its memory lives until the last queue is gone.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dpdk_sys::{rte_eth_conf, rte_eth_dev_info};
use thiserror::Error;

use super::device::{Attached, Device, DeviceError, MemifRole};
use super::eal::Eal;
use super::errno_text;
use super::exchange::Exchange;
use super::gate::Gate;
use super::packet::Mac;
use super::pool::{Pool, PoolError};
use super::queue::QueueSeat;

/// Ethernet header, a VLAN tag and the check sequence: what lies around the MTU on the wire.
const AROUND_MTU: u16 = 14 + 4 + 4;
/// Entries of a device's descriptor rings, where it lets us choose.
const RING_ENTRIES: u16 = 1024;
/// Between two attempts to reach a memif server.
const RETRY_EVERY: Duration = Duration::from_millis(300);

/// How a port is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Pairs of queues, one per worker.
    pub queues: u16,
    /// Bytes of the longest IP packet.
    pub mtu_bytes: u16,
    /// Packets of memory for each queue: what its rings hold, and a few bursts.
    pub packets_per_queue: u32,
}

impl Default for PortPlan {
    fn default() -> Self {
        Self {
            queues: 1,
            mtu_bytes: 1500,
            packets_per_queue: 4096,
        }
    }
}

/// Why a port did not open.
#[derive(Debug, Error)]
pub enum PortError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// More workers than queues.
    #[error("{device} has {has} pairs of queues and {wants} were asked for: use fewer workers")]
    Queues {
        /// Which device.
        device: String,
        /// What it has.
        has: u16,
        /// What was asked.
        wants: u16,
    },
    /// Longer packets than it carries.
    #[error("{device} carries packets of 576 to {most} bytes, not {wants}: set its MTU to fit")]
    Mtu {
        /// Which device.
        device: String,
        /// Its longest.
        most: u16,
        /// What was asked.
        wants: u16,
    },
    /// Less memory than one queue needs to run.
    #[error("{wants} packets a queue are too few: give it {least} or more")]
    Packets {
        /// What was asked.
        wants: u32,
        /// Least.
        least: u32,
    },
    /// The device said no.
    #[error("{device} does not {step} ({cause}): {cure}")]
    Refused {
        /// Which device.
        device: String,
        /// While doing what.
        step: &'static str,
        /// Its reason.
        cause: String,
        /// What to look at.
        cure: &'static str,
    },
}

/// What the device counted itself, since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCounts {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames dropped because no worker fetched them in time.
    pub rx_missed: u64,
    /// Frames dropped because there was no packet memory.
    pub rx_no_memory: u64,
    /// Frames received in error.
    pub rx_errors: u64,
}

/// What port and workers share. The order of the fields is the order in which they are given back:
/// packets before the pools that they belong to.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) exchange: Exchange,
    /// How often the link was seen to come or go: another host may be at its end now.
    pub(super) link_changes: AtomicU32,
    pub(super) gate: Arc<Gate>,
    pub(super) pools: Vec<Pool>,
}

/// A device that runs.
#[derive(Debug)]
pub struct PacketPort {
    name: String,
    mac: Mac,
    started: bool,
    /// A memif client: it goes to its server, again and again.
    calls: bool,
    tried: Instant,
    was_up: bool,
    shared: Arc<Shared>,
    // Last: given back after the port was closed.
    attached: Attached,
}

impl PacketPort {
    /// Attaches, sets up and starts a device. A memif client opens without its server; its link is
    /// down until [`PacketPort::tend`] finds one.
    ///
    /// # Errors
    /// See [`PortError`]; nothing of the device stays behind.
    pub fn open(
        eal: Eal,
        device: &Device,
        plan: &PortPlan,
    ) -> Result<(Self, Vec<QueueSeat>), PortError> {
        let least = 4 * super::queue::BURST as u32;
        if plan.packets_per_queue < least {
            let wants = plan.packets_per_queue;
            return Err(PortError::Packets { wants, least });
        }
        let name = device.to_string();
        let attached = Attached::new(eal, device)?;
        let setup = Setup {
            port: attached.port(),
            name: &name,
            device,
            plan,
        };
        let info = setup.info()?;
        setup.validate(&info)?;
        let pools = setup.pools()?;
        setup.configure(&info, &pools)?;
        let mac = setup.mac()?;
        let shared = Arc::new(Shared {
            exchange: Exchange::new(plan.queues),
            link_changes: AtomicU32::new(0),
            gate: Gate::new(plan.queues),
            pools,
        });
        let calls = matches!(device, Device::Memif(memif) if memif.role == MemifRole::Client);
        let mut port = Self {
            name,
            mac,
            started: false,
            calls,
            tried: Instant::now(),
            was_up: false,
            shared,
            attached,
        };
        match port.start() {
            Ok(()) => {}
            Err(_) if port.calls => {}
            Err(refused) => return Err(refused),
        }
        let frame_bytes_max = plan.mtu_bytes + 14;
        let seats = (0..plan.queues)
            .map(|queue| QueueSeat {
                shared: Arc::clone(&port.shared),
                port: port.attached.port(),
                queue,
                frame_bytes_max,
                mac,
                in_memory: matches!(device, Device::Memif(_)),
            })
            .collect();
        Ok((port, seats))
    }

    /// The device's Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether the other side is there.
    #[must_use]
    pub fn link_up(&self) -> bool {
        // SAFETY: needed to ask the device; the port is attached, and nothing else is passed.
        self.started && unsafe { dpdk_sys::dwcp_shim_link_is_up(self.attached.port()) } != 0
    }

    /// Looks after the link; true when it is up. Call it from the cold side several times a second.
    /// A memif client whose server left calls again, at most every 300 ms; a memif server and all
    /// other devices find their peer again themselves. Workers learn that the link changed, and ask
    /// their neighbours anew.
    pub fn tend(&mut self) -> bool {
        let up = self.link_up();
        if up != self.was_up {
            self.was_up = up;
            // Read by workers, which need nothing else with it.
            self.shared.link_changes.fetch_add(1, Ordering::Relaxed);
        }
        if !up && self.calls && self.tried.elapsed() >= RETRY_EVERY {
            self.stop();
            // No server yet is the common case, and the next call tries again.
            let _ = self.start();
        }
        up
    }

    /// What the device counted; zeros where it does not count.
    #[must_use]
    pub fn counts(&self) -> DeviceCounts {
        let mut stats = MaybeUninit::<dpdk_sys::rte_eth_stats>::zeroed();
        // SAFETY: needed to ask the device; the counters are written to memory that is ours, and
        // zeros are a value of them should the call leave them alone.
        let stats = unsafe {
            dpdk_sys::rte_eth_stats_get(self.attached.port(), stats.as_mut_ptr());
            stats.assume_init()
        };
        DeviceCounts {
            rx_frames: stats.ipackets,
            tx_frames: stats.opackets,
            rx_missed: stats.imissed,
            rx_no_memory: stats.rx_nombuf,
            rx_errors: stats.ierrors,
        }
    }

    fn start(&mut self) -> Result<(), PortError> {
        self.tried = Instant::now();
        // SAFETY: needed to start the device; it is configured with all its queues, and stopped.
        let result = unsafe { dpdk_sys::rte_eth_dev_start(self.attached.port()) };
        if result < 0 {
            return Err(PortError::Refused {
                device: self.name.clone(),
                step: "start",
                cause: errno_text(-result),
                cure: "see DPDK's lines on standard error",
            });
        }
        self.started = true;
        self.shared.gate.open();
        Ok(())
    }

    fn stop(&mut self) {
        self.shared.gate.close();
        if self.started {
            self.started = false;
            // SAFETY: needed to stop the device; it is started, and the gate keeps workers out.
            unsafe { dpdk_sys::rte_eth_dev_stop(self.attached.port()) };
        }
    }
}

impl Drop for PacketPort {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: needed to give the device its end; it is stopped, and its workers stay outside,
        // for nobody opens the gate again.
        unsafe { dpdk_sys::rte_eth_dev_close(self.attached.port()) };
    }
}

/// A port on its way to be opened.
struct Setup<'a> {
    port: u16,
    name: &'a str,
    device: &'a Device,
    plan: &'a PortPlan,
}

impl Setup<'_> {
    fn check(&self, step: &'static str, result: i32) -> Result<(), PortError> {
        if result >= 0 {
            return Ok(());
        }
        Err(PortError::Refused {
            device: self.name.to_owned(),
            step,
            cause: errno_text(-result),
            cure: "see DPDK's lines on standard error",
        })
    }

    fn info(&self) -> Result<rte_eth_dev_info, PortError> {
        let mut info = MaybeUninit::<rte_eth_dev_info>::zeroed();
        // SAFETY: needed to ask the device; the port is attached, and `info` is ours.
        let result = unsafe { dpdk_sys::rte_eth_dev_info_get(self.port, info.as_mut_ptr()) };
        self.check("say what it can", result)?;
        // SAFETY: needed to use what was written; the call succeeded, and all of it was zeroed.
        Ok(unsafe { info.assume_init() })
    }

    fn validate(&self, info: &rte_eth_dev_info) -> Result<(), PortError> {
        let has = info.max_rx_queues.min(info.max_tx_queues);
        let wants = self.plan.queues;
        if wants == 0 || wants > has {
            let device = self.name.to_owned();
            return Err(PortError::Queues { device, has, wants });
        }
        let most = match self.device {
            Device::Memif(memif) => memif.frame_bytes - 14,
            Device::AfXdp { .. } | Device::Pci { .. } => info.max_mtu,
        };
        let wants = self.plan.mtu_bytes;
        // Below 576 no IP host may be (RFC 791); above, a frame's length would not fit 16 bits.
        if !(576..=most.min(u16::MAX - 2048)).contains(&wants) {
            let device = self.name.to_owned();
            return Err(PortError::Mtu {
                device,
                most,
                wants,
            });
        }
        Ok(())
    }

    /// Devices on PCI count their receive buffers in steps of 1 KiB. AF_XDP wants a packet with all
    /// its headers to take between 2 and 4 KiB.
    fn room_bytes(&self) -> u16 {
        let frame = self.plan.mtu_bytes + AROUND_MTU;
        match self.device {
            Device::Pci { .. } => frame.next_multiple_of(1024),
            Device::Memif(_) => frame.next_multiple_of(64),
            Device::AfXdp { .. } => frame.next_multiple_of(64).max(2048),
        }
    }

    fn pools(&self) -> Result<Vec<Pool>, PortError> {
        // SAFETY: needed to ask where the device is; the port is attached.
        let socket = unsafe { dpdk_sys::rte_eth_dev_socket_id(self.port) };
        // A pool outlives its port while a queue has packets of it, and DPDK gives the port's number away again.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pool = |queue| {
            let name = format!("dwcp-{number}-{queue}");
            Pool::new(
                &name,
                self.plan.packets_per_queue,
                self.room_bytes(),
                socket,
            )
        };
        Ok((0..self.plan.queues).map(pool).collect::<Result<_, _>>()?)
    }

    fn configure(&self, info: &rte_eth_dev_info, pools: &[Pool]) -> Result<(), PortError> {
        // SAFETY: needed for a configuration with defaults; all of it is numbers, flags and pointers
        // for which zero is a value.
        let mut conf: rte_eth_conf = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: needed to read constants of the shim, which nothing writes.
        let (checksums, rss_udp) = unsafe {
            (
                dpdk_sys::dwcp_shim_rx_offload_checksum,
                dpdk_sys::dwcp_shim_rss_udp,
            )
        };
        conf.rxmode.offloads = info.rx_offload_capa & checksums;
        if matches!(self.device, Device::Pci { .. }) {
            conf.rxmode.mtu = self.plan.mtu_bytes.into();
        }
        let spread = info.flow_type_rss_offloads & rss_udp;
        if self.plan.queues > 1 && spread != 0 {
            conf.rxmode.mq_mode = dpdk_sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = spread;
        }
        let queues = self.plan.queues;
        // SAFETY: needed to configure; the port is attached and stopped, `conf` is whole, and it is
        // copied.
        let result =
            unsafe { dpdk_sys::rte_eth_dev_configure(self.port, queues, queues, &raw const conf) };
        self.check("take its configuration", result)?;
        let (mut rx_entries, mut tx_entries) = (RING_ENTRIES, RING_ENTRIES);
        // SAFETY: needed to fit the rings to the device; both numbers are ours.
        let result = unsafe {
            dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(
                self.port,
                &raw mut rx_entries,
                &raw mut tx_entries,
            )
        };
        self.check("take the length of its rings", result)?;
        // SAFETY: needed as above.
        let socket = unsafe { dpdk_sys::rte_eth_dev_socket_id(self.port) } as u32;
        for (queue, pool) in (0..queues).zip(pools) {
            // SAFETY: needed to set the queue up; the port is configured with it, null asks for the
            // driver's defaults, and the pool outlives the queue, for the port closes first.
            let result = unsafe {
                dpdk_sys::rte_eth_rx_queue_setup(
                    self.port,
                    queue,
                    rx_entries,
                    socket,
                    std::ptr::null(),
                    pool.as_ptr(),
                )
            };
            self.check("set up a receive queue", result)?;
            // SAFETY: as above.
            let result = unsafe {
                dpdk_sys::rte_eth_tx_queue_setup(
                    self.port,
                    queue,
                    tx_entries,
                    socket,
                    std::ptr::null(),
                )
            };
            self.check("set up a send queue", result)?;
        }
        if matches!(self.device, Device::AfXdp { .. }) {
            // SAFETY: needed so that the kernel's interface takes such packets; the port is
            // configured.
            let result = unsafe { dpdk_sys::rte_eth_dev_set_mtu(self.port, self.plan.mtu_bytes) };
            self.check("take its MTU", result)?;
        }
        // Questions about IPv6 neighbours go to groups. Devices that cannot choose hear all of them.
        // SAFETY: needed to hear them; the port is configured.
        unsafe { dpdk_sys::rte_eth_allmulticast_enable(self.port) };
        Ok(())
    }

    fn mac(&self) -> Result<Mac, PortError> {
        let mut address = dpdk_sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: needed to learn the address, which is written to memory that is ours.
        let result = unsafe { dpdk_sys::rte_eth_macaddr_get(self.port, &raw mut address) };
        self.check("say its Ethernet address", result)?;
        Ok(Mac(address.addr_bytes))
    }
}
