//! WAN links between two hosts.
//!
//! In: two hosts and a [`LinkConfig`]. Out: addresses on both hosts and a line between them with
//! the given rate, delay, faults and queue, counted in IP bytes. Promise: settings change while
//! traffic flows; a cut line or a cut flow is silent, as a dead router is; the nth packet that a direction's
//! queue takes meets the same faults in every run with the same seed.

use crate::flows::{Flow, FlowState, FlowTable};
use crate::forwarder::{Counters, Forwarder, Settings, Shared, locked};
use crate::netns::{Host, NetnsError};
use crate::procs;
use crate::tun::Tun;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Why a link could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A host refused its device or address.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The forwarder could not start.
    #[error("cannot start the link's thread: {0}")]
    Start(#[from] io::Error),
    /// A shape that is not three or four numbers.
    #[error(
        "cannot read the link {0:?}; give RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS], e.g. \"200 40 0\""
    )]
    Shape(String),
}

/// How much longer a packet takes that others overtake.
pub const LATE_MS: u64 = 2;

/// What a line carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// IP packets. Faultless lines take segments longer than the MTU, which costs less.
    Ip,
    /// Ethernet frames, so that programs that bypass the kernel can be at its ends.
    Ethernet,
}

/// One direction of a line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Rate in Mbit/s of IP bytes; 0 is unlimited.
    pub rate_mbit: f64,
    /// One-way delay in milliseconds.
    pub delay_ms: f64,
    /// Packets lost at random, in percent.
    pub loss_percent: f64,
    /// Packets that come [`LATE_MS`] late at random, so that others overtake them, in percent.
    pub late_percent: f64,
    /// Packets that come twice at random, in percent.
    pub twice_percent: f64,
    /// How much waits in front of the line, in milliseconds of its rate; by default a round trip
    /// and 50 ms more.
    pub queue_ms: Option<f64>,
}

impl Shape {
    /// A line with the default queue.
    #[must_use]
    pub fn new(rate_mbit: f64, delay_ms: f64, loss_percent: f64) -> Self {
        Self {
            rate_mbit,
            delay_ms,
            loss_percent,
            late_percent: 0.0,
            twice_percent: 0.0,
            queue_ms: None,
        }
    }

    /// The same line, with so many packets late and so many twice.
    #[must_use]
    pub fn mangled(self, late_percent: f64, twice_percent: f64) -> Self {
        Self {
            late_percent,
            twice_percent,
            ..self
        }
    }

    /// Whether each packet meets a fate of its own.
    pub(crate) fn has_faults(&self) -> bool {
        self.loss_percent > 0.0 || self.late_percent > 0.0 || self.twice_percent > 0.0
    }

    /// The bandwidth-delay product, both delays equal; 0 without a rate limit.
    #[must_use]
    pub fn round_trip_bytes(&self) -> u64 {
        (self.rate_mbit * 1e6 / 8.0 * self.delay_ms * 2.0 / 1e3) as u64
    }

    /// The queue in force.
    #[must_use]
    pub fn queue_ms(&self) -> f64 {
        self.queue_ms.unwrap_or(2.0 * self.delay_ms + 50.0)
    }
}

impl FromStr for Shape {
    type Err = LinkError;

    /// Reads `RATE_MBIT DELAY_MS LOSS_PERCENT [QUEUE_MS]`.
    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = || LinkError::Shape(text.to_owned());
        let numbers: Vec<f64> = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| bad())?;
        // A day of delay bounds the arithmetic with times.
        let sane = numbers
            .iter()
            .all(|n| n.is_finite() && *n >= 0.0 && *n <= 86_400_000.0);
        match numbers[..] {
            [rate, delay, loss] if sane => Ok(Self::new(rate, delay, loss)),
            [rate, delay, loss, queue] if sane => Ok(Self {
                queue_ms: Some(queue),
                ..Self::new(rate, delay, loss)
            }),
            _ => Err(bad()),
        }
    }
}

/// A line between two hosts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LinkConfig {
    /// From the first host to the second.
    pub a_to_b: Shape,
    /// From the second host to the first.
    pub b_to_a: Shape,
    /// MTU of both ends in bytes.
    pub mtu_bytes: u32,
    /// Tells several links of a host apart: addresses are `10.99.<number>.1` and `.2`.
    pub number: u8,
    /// What it carries.
    pub layer: Layer,
    /// Decides which packets meet which fault.
    pub seed: u64,
}

impl LinkConfig {
    /// The same line both ways, MTU 1,500.
    #[must_use]
    pub fn symmetric(shape: Shape) -> Self {
        Self {
            a_to_b: shape,
            b_to_a: shape,
            mtu_bytes: 1_500,
            number: 1,
            layer: Layer::Ip,
            seed: 0,
        }
    }
}

/// IP bytes and packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// IP bytes that were sent over the line, headers included.
    pub wire_bytes: u64,
    /// Reads of the device: segments of up to 64 KiB count once.
    pub packets: u64,
    /// Lost at random.
    pub lost_packets: u64,
    /// Dropped because the queue was full.
    pub queue_dropped_packets: u64,
}

/// A running link.
pub struct WanLink {
    /// The address at the first host.
    pub a: Ipv4Addr,
    /// The address at the second host.
    pub b: Ipv4Addr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    thread_id: i32,
}

impl WanLink {
    /// Makes the devices `wan<number>` and starts the line. With both ends at one host, for a program that has
    /// both, the second device is `wan<number>b`.
    pub fn start(a: &Host, b: &Host, config: LinkConfig) -> Result<Self, LinkError> {
        let [address_a, address_b] = [1, 2].map(|last| Ipv4Addr::new(10, 99, config.number, last));
        let device = format!("wan{}", config.number);
        let far = if a.name() == b.name() { "b" } else { "" };
        let (layer, mtu_bytes) = (config.layer, config.mtu_bytes);
        let tuns = [
            Tun::new(a, layer, &device, address_a, mtu_bytes)?,
            Tun::new(b, layer, &format!("{device}{far}"), address_b, mtu_bytes)?,
        ];
        let settings = Settings {
            shapes: [config.a_to_b, config.b_to_a],
            cut: [false; 2],
            stop: false,
        };
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            changed: AtomicBool::new(false),
            flows: Mutex::new(FlowTable::default()),
            counters: [Counters::default(), Counters::default()],
            wake,
        });
        let forwarder = Forwarder::new(tuns, config.layer, config.seed, Arc::clone(&shared));
        let (tell, told) = channel();
        let thread = std::thread::Builder::new()
            .name("dwcp-link".into())
            .spawn(move || {
                let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
                forwarder.run();
            })?;
        let thread_id = told.recv().unwrap_or(0);
        Ok(Self {
            a: address_a,
            b: address_b,
            shared,
            thread: Some(thread),
            thread_id,
        })
    }

    /// Changes both directions while traffic flows.
    pub fn set(&self, a_to_b: Shape, b_to_a: Shape) {
        self.change(|settings| settings.shapes = [a_to_b, b_to_a]);
    }

    /// Silences the line; what is under way is lost.
    pub fn cut(&self) {
        self.change(|settings| settings.cut = [true; 2]);
    }

    /// Silences one direction: what the first host sends, or what the second does. Each end then hears less
    /// than the other believes.
    pub fn cut_from(&self, second: bool) {
        self.change(|settings| settings.cut[usize::from(second)] = true);
    }

    /// Ends a cut, of the line, of a direction and of single flows.
    pub fn restore(&self) {
        locked(&self.shared.flows).restore();
        self.change(|settings| settings.cut = [false; 2]);
    }

    /// Open TCP flows with one end on `port`, oldest first.
    #[must_use]
    pub fn flows(&self, port: u16) -> Vec<FlowState> {
        locked(&self.shared.flows).open(port)
    }

    /// Silences the `index`-th open flow on `port`; `None` if there are fewer.
    pub fn cut_flow(&self, port: u16, index: usize) -> Option<Flow> {
        let mut flows = locked(&self.shared.flows);
        let flow = flows.open(port).get(index)?.flow;
        flows.cut(flow);
        Some(flow)
    }

    /// Slows the `index`-th open flow on `port` to so many bytes a second each way: what is more is lost.
    pub fn slow_flow(&self, port: u16, index: usize, bytes_per_s: u64) -> Option<Flow> {
        let mut flows = locked(&self.shared.flows);
        let flow = flows.open(port).get(index)?.flow;
        flows.slow(flow, bytes_per_s);
        Some(flow)
    }

    /// Silences every flow on `port` that is open now, as a router does that forgot them; new ones pass.
    /// Gives how many there were.
    pub fn forget_flows(&self, port: u16) -> usize {
        let mut flows = locked(&self.shared.flows);
        let open = flows.open(port);
        open.iter().for_each(|state| flows.cut(state.flow));
        open.len()
    }

    /// Gives one end of the line another address, of the same network, and takes the old one away. Gives the
    /// new one.
    pub fn change_address(&self, host: &Host, old: Ipv4Addr) -> Result<Ipv4Addr, LinkError> {
        let [a, b, number, last] = old.octets();
        let new = Ipv4Addr::new(a, b, number, last.wrapping_add(100));
        let device = format!("wan{number}");
        // The other way round the new one would go with the old, as one of the same network.
        host.ip(&format!("addr del {old}/24 dev {device}"))?;
        host.ip(&format!("addr add {new}/24 dev {device}"))?;
        Ok(new)
    }

    /// What went over the line since it started: from the first host, from the second.
    #[must_use]
    pub fn traffic(&self) -> [Traffic; 2] {
        [0, 1].map(|index: usize| {
            let counters = &self.shared.counters[index];
            Traffic {
                wire_bytes: counters.wire_bytes.load(Ordering::Relaxed),
                packets: counters.packets.load(Ordering::Relaxed),
                lost_packets: counters.lost_packets.load(Ordering::Relaxed),
                queue_dropped_packets: counters.queue_dropped_packets.load(Ordering::Relaxed),
            }
        })
    }

    /// IP bytes of both directions together.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.traffic()
            .iter()
            .map(|traffic| traffic.wire_bytes)
            .sum()
    }

    /// Processor time the line's thread has used, in milliseconds.
    #[must_use]
    pub fn cpu_ms(&self) -> u64 {
        procs::cpu_ms(&format!("/proc/self/task/{}/stat", self.thread_id))
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut locked(&self.shared.settings));
        self.shared.changed.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for WanLink {
    fn drop(&mut self) {
        self.change(|settings| settings.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_or_refused() {
        assert_eq!(
            "200 40 0".parse::<Shape>().unwrap(),
            Shape::new(200.0, 40.0, 0.0)
        );
        assert_eq!("200 40 0 10".parse::<Shape>().unwrap().queue_ms(), 10.0);
        assert_eq!(Shape::new(200.0, 40.0, 0.0).queue_ms(), 130.0);
        for bad in [
            "",
            "200 40",
            "200 40 x",
            "200 -1 0",
            "200 inf 0",
            "1 2 3 4 5",
        ] {
            assert!(bad.parse::<Shape>().is_err(), "{bad:?}");
        }
    }
}
