//! UDP payloads to and from socket addresses, on one worker's queue.
//!
//! Comes in: payloads to send, written straight into the device's memory; frames from anybody. Goes
//! out: payloads with their senders, lying where the device put them. Promises: a payload is copied
//! by neither side of this module; nothing waits: what cannot go now is refused; what is dropped is
//! counted by its reason. Datagrams may be lost, doubled and reordered, and a sender's address is what
//! the packet claims: the transport above has to expect that.
//!
//! The worker of queue `n` listens on UDP port `port_base + n`. Where the device's hash brings a
//! datagram to another worker's queue, that one passes it on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::packet::Mac;
use super::packet::build::{Headers, answer, question};
use super::packet::neighbours::{Neighbours, Route};
use super::packet::parse::{DropCounts, Dropped, Heard, Local, parse};
use super::queue::{Built, Burst, PacketQueue};

/// Destinations with headers at hand.
const PATHS_MAX: usize = 16;
/// After this a path's neighbour is looked up again.
const PATH_FRESH: Duration = Duration::from_millis(500);

/// One of this host's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that all hosts of the segment share.
    pub prefix_bits: u8,
    /// Who carries packets to other segments.
    pub gateway: Option<IpAddr>,
}

/// How a worker is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// This host in IPv4.
    pub v4: Option<Address>,
    /// This host in IPv6.
    pub v6: Option<Address>,
    /// UDP port of the worker of queue 0.
    pub port_base: u16,
    /// Queues of the port, all of them.
    pub queues: u16,
    /// Bytes of the longest IP packet on the way.
    pub mtu_bytes: u16,
}

/// An address or port that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NetError {
    /// No address at all.
    #[error("a worker needs an IPv4 or an IPv6 address")]
    NoAddress,
    /// An address in the wrong place, or none that a host can have.
    #[error("{0} is no address of a host here: give a unicast address of its own family")]
    BadAddress(IpAddr),
    /// A prefix that is too long.
    #[error("{ip}/{prefix_bits}: the prefix has more bits than the address")]
    BadPrefix {
        /// The address.
        ip: IpAddr,
        /// Its prefix.
        prefix_bits: u8,
    },
    /// A gateway on another segment.
    #[error("the gateway {gateway} is not on the segment of {ip}/{prefix_bits}")]
    FarGateway {
        /// The gateway.
        gateway: IpAddr,
        /// The address.
        ip: IpAddr,
        /// Its prefix.
        prefix_bits: u8,
    },
    /// Ports that do not exist.
    #[error("{queues} UDP ports from {port_base} on do not fit: choose a base of 1024 or more")]
    BadPorts {
        /// The first.
        port_base: u16,
        /// How many.
        queues: u16,
    },
    /// A longer packet than the port was opened for.
    #[error("packets of {wants} bytes were asked for and the port carries {has}")]
    Mtu {
        /// Asked for.
        wants: u16,
        /// The port's.
        has: usize,
    },
}

impl Address {
    fn validate(&self) -> Result<(), NetError> {
        let Self {
            ip,
            prefix_bits,
            gateway,
        } = *self;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(NetError::BadAddress(ip));
        }
        if u32::from(prefix_bits) > bits(ip) {
            return Err(NetError::BadPrefix { ip, prefix_bits });
        }
        match gateway {
            Some(gateway) if !self.on_segment(gateway) => Err(NetError::FarGateway {
                gateway,
                ip,
                prefix_bits,
            }),
            _ => Ok(()),
        }
    }

    fn on_segment(&self, other: IpAddr) -> bool {
        let number = |ip| match ip {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        if self.ip.is_ipv4() != other.is_ipv4() {
            return false;
        }
        let host_bits = bits(self.ip).saturating_sub(self.prefix_bits.into());
        let differ = number(self.ip) ^ number(other);
        differ.checked_shr(host_bits).unwrap_or(0) == 0
    }

    /// Whose Ethernet address a packet for `to` needs.
    fn next_hop(&self, to: IpAddr) -> Option<IpAddr> {
        if self.on_segment(to) {
            Some(to)
        } else {
            self.gateway
        }
    }
}

fn bits(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// What became of a datagram to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It goes out with this burst, at the latest at [`Datagrams::flush`].
    Queued,
    /// `fill` wrote nothing.
    Nothing,
    /// The device takes no more now: poll, and try again.
    Busy,
    /// The destination's Ethernet address is being asked for: poll, and try again.
    Resolving,
    /// There is no way to this destination from here.
    Unreachable,
}

/// What a worker counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatagramCounts {
    /// Datagrams given out.
    pub received: u64,
    /// Datagrams handed to the device.
    pub sent: u64,
    /// Frames dropped, by reason.
    pub dropped: DropCounts,
    /// Frames dropped because they were longer than the MTU allows.
    pub too_long: u64,
    /// Datagrams passed on to the worker they were for.
    pub passed_on: u64,
    /// Datagrams lost on the way there, for its box was full.
    pub passed_on_lost: u64,
    /// Questions about neighbours, sent.
    pub questions: u64,
    /// Answers to such questions, sent.
    pub answers: u64,
}

/// The time as of the kernel's last tick, milliseconds ago at most: fine enough for neighbours, and a quarter of the
/// cost of a look at the clock, which a burst of few datagrams would feel.
struct CoarseClock {
    begun: Instant,
    begun_coarse: Duration,
}

impl CoarseClock {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            begun_coarse: Self::look(),
        }
    }

    fn look() -> Duration {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
    }

    #[inline]
    fn now(&self) -> Instant {
        self.begun + Self::look().saturating_sub(self.begun_coarse)
    }
}

struct Path {
    to: SocketAddr,
    headers: Headers,
    generation: u32,
    checked: Instant,
}

/// One worker's datagrams.
pub struct Datagrams {
    queue: PacketQueue,
    config: NetConfig,
    local: Local,
    own_port: u16,
    neighbours: Neighbours,
    paths: Vec<Path>,
    next_path: usize,
    clock: CoarseClock,
    now: Instant,
    link_changes: u32,
    counts: DatagramCounts,
}

impl Datagrams {
    /// Datagrams over this queue.
    ///
    /// # Errors
    /// The first thing in `config` that cannot be.
    pub fn new(queue: PacketQueue, config: &NetConfig) -> Result<Self, NetError> {
        let v4 = match config.v4.map(|address| (address, address.ip)) {
            None => None,
            Some((address, IpAddr::V4(ip))) => address.validate().map(|()| Some(ip))?,
            Some((_, ip)) => return Err(NetError::BadAddress(ip)),
        };
        let v6 = match config.v6.map(|address| (address, address.ip)) {
            None => None,
            Some((address, IpAddr::V6(ip))) => address.validate().map(|()| Some(ip))?,
            Some((_, ip)) => return Err(NetError::BadAddress(ip)),
        };
        if v4.is_none() && v6.is_none() {
            return Err(NetError::NoAddress);
        }
        let (port_base, queues) = (config.port_base, config.queues);
        let last = queues
            .checked_sub(1)
            .and_then(|more| port_base.checked_add(more))
            .filter(|_| port_base > 0 && queue.number() < queues)
            .ok_or(NetError::BadPorts { port_base, queues })?;
        let has = queue.frame_bytes_max() - 14;
        if usize::from(config.mtu_bytes) > has || config.mtu_bytes < 576 {
            let wants = config.mtu_bytes;
            return Err(NetError::Mtu { wants, has });
        }
        let local = Local {
            mac: queue.mac(),
            v4,
            v6,
            ports: port_base..=last,
        };
        Ok(Self {
            own_port: port_base + queue.number(),
            link_changes: queue.link_changes(),
            queue,
            config: *config,
            local,
            neighbours: Neighbours::new(),
            paths: Vec::with_capacity(PATHS_MAX),
            next_path: 0,
            clock: CoarseClock::new(),
            now: Instant::now(),
            counts: DatagramCounts::default(),
        })
    }

    /// The UDP port that this worker listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.own_port
    }

    /// The longest payload that every destination takes, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        let ip_bytes = if self.local.v6.is_some() { 40 } else { 20 };
        usize::from(self.config.mtu_bytes) - ip_bytes - 8
    }

    /// Datagrams go through memory that both ends share, and over no wire.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.queue.in_memory()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> &DatagramCounts {
        &self.counts
    }

    /// Packets of this worker's memory that nobody holds; for tests of what is given back.
    #[must_use]
    pub fn free_packets(&self) -> u32 {
        self.queue.free_packets()
    }

    /// Takes one burst from the device and gives each payload to `sink` with the sender that it
    /// claims. `sink` may write to the bytes; they are the device's again when it returns. Questions
    /// about this host's address are answered on the way. Returns how many frames there were, of any
    /// kind: 0 when idle.
    #[inline]
    pub fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        self.now = self.clock.now();
        let changes = self.queue.link_changes();
        if changes != self.link_changes {
            self.link_changes = changes;
            self.neighbours.doubt();
        }
        let burst = self.queue.receive();
        let mut frames = burst.len();
        self.read(burst, sink);
        if self.config.queues > 1 {
            let strays = self.queue.receive_strays();
            frames += strays.len();
            self.read(strays, sink);
        }
        frames
    }

    #[inline]
    fn read(&mut self, mut burst: Burst, sink: &mut impl FnMut(SocketAddr, &mut [u8])) {
        for at in 0..burst.len() {
            let Some(frame) = burst.frame(at) else {
                continue;
            };
            let Some(bytes) = frame.bytes else {
                self.counts.too_long += 1;
                continue;
            };
            match parse(bytes, &self.local, frame.udp_checked) {
                Ok(Heard::Datagram {
                    from,
                    to_port,
                    payload,
                }) if to_port == self.own_port => {
                    self.counts.received += 1;
                    if let Some(payload) = bytes.get_mut(payload) {
                        sink(from, payload);
                    }
                }
                Ok(Heard::Datagram { to_port, .. }) => {
                    let arrived = burst.pass_on(at, to_port - self.config.port_base);
                    self.counts.passed_on += u64::from(arrived);
                    self.counts.passed_on_lost += u64::from(!arrived);
                }
                Ok(Heard::Asked { ip, mac }) => self.answer(ip, mac),
                Ok(Heard::Answered { ip, mac }) => self.neighbours.answered(ip, mac, self.now),
                Err(reason) => self.counts.dropped.count(reason),
            }
        }
    }

    /// Builds one datagram in the device's memory: `fill` gets room for [`Datagrams::max_payload`]
    /// bytes and returns how many it wrote, 0 to send nothing. It is called only if the datagram can
    /// go. [`Datagrams::flush`] when the last one is built; a full burst goes by itself.
    #[inline]
    pub fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> Sent {
        let at = match self.path(to) {
            Ok(at) => at,
            Err(otherwise) => return otherwise,
        };
        let room = self.max_payload();
        let Some(path) = self.paths.get(at) else {
            return Sent::Unreachable;
        };
        let built = self.queue.build(|frame| {
            let headers = path.headers.len_bytes();
            let payload = frame.get_mut(headers..headers + room)?;
            let bytes = Some(fill(payload)).filter(|bytes| (1..=room).contains(bytes))?;
            path.headers.finish(frame, bytes)
        });
        match built {
            Built::Staged => {
                self.counts.sent += 1;
                Sent::Queued
            }
            Built::Nothing => Sent::Nothing,
            Built::Full => Sent::Busy,
        }
    }

    /// Hands what was built to the device. Returns how many it did not take: those go first next time.
    #[inline]
    pub fn flush(&mut self) -> usize {
        self.queue.flush()
    }

    /// The place of the headers for `to`, made when they are not there or may be out of date.
    #[inline]
    fn path(&mut self, to: SocketAddr) -> Result<usize, Sent> {
        let known = self.paths.iter().position(|path| path.to == to);
        if let Some(at) = known
            && let Some(path) = self.paths.get(at)
            && path.generation == self.neighbours.generation()
            && self.now.saturating_duration_since(path.checked) < PATH_FRESH
        {
            return Ok(at);
        }
        self.find_path(to, known)
    }

    #[cold]
    fn find_path(&mut self, to: SocketAddr, known: Option<usize>) -> Result<usize, Sent> {
        let (ours, next_hop) = self.way(to.ip()).ok_or(Sent::Unreachable)?;
        let mac = match self.neighbours.route(next_hop, self.now) {
            Route::Known(mac) => mac,
            Route::Stale(mac) => {
                self.ask(ours, next_hop);
                mac
            }
            Route::Ask => {
                self.ask(ours, next_hop);
                return Err(Sent::Resolving);
            }
            Route::Wait => return Err(Sent::Resolving),
        };
        let from = (self.local.mac, SocketAddr::new(ours, self.own_port));
        let path = Path {
            to,
            headers: Headers::new(from, mac, to).ok_or(Sent::Unreachable)?,
            generation: self.neighbours.generation(),
            checked: self.now,
        };
        if let Some(place) = known.and_then(|at| self.paths.get_mut(at)) {
            *place = path;
            return known.ok_or(Sent::Unreachable);
        }
        if self.paths.len() < PATHS_MAX {
            self.paths.push(path);
            return Ok(self.paths.len() - 1);
        }
        let at = self.next_path;
        self.next_path = (at + 1) % PATHS_MAX;
        if let Some(place) = self.paths.get_mut(at) {
            *place = path;
        }
        Ok(at)
    }

    /// Our address towards `to`, and who is the next to carry it.
    fn way(&self, to: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let address = if to.is_ipv4() {
            self.config.v4?
        } else {
            self.config.v6?
        };
        Some((address.ip, address.next_hop(to)?))
    }

    #[cold]
    fn ask(&mut self, ours: IpAddr, wanted: IpAddr) {
        let mac = self.local.mac;
        let built = self.queue.build(|frame| question(frame, mac, ours, wanted));
        self.counts.questions += u64::from(built == Built::Staged);
    }

    #[cold]
    fn answer(&mut self, asker: IpAddr, asker_mac: Mac) {
        let address = if asker.is_ipv4() {
            self.config.v4
        } else {
            self.config.v6
        };
        let Some(address) = address.filter(|address| address.on_segment(asker)) else {
            self.counts.dropped.count(Dropped::BadSource);
            return;
        };
        self.neighbours.asked_by(asker, asker_mac, self.now);
        let mac = self.local.mac;
        let built = self
            .queue
            .build(|frame| answer(frame, mac, address.ip, (asker_mac, asker)));
        self.counts.answers += u64::from(built == Built::Staged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn address(text: &str, prefix_bits: u8, gateway: Option<&str>) -> Address {
        Address {
            ip: text.parse().unwrap(),
            prefix_bits,
            gateway: gateway.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn packets_go_to_the_neighbour_or_to_the_gateway() {
        let here = address("10.1.2.3", 24, Some("10.1.2.254"));
        here.validate().unwrap();
        let hop = |text: &str| {
            here.next_hop(text.parse().unwrap())
                .map(|ip| ip.to_string())
        };
        assert_eq!(hop("10.1.2.77").as_deref(), Some("10.1.2.77"));
        assert_eq!(hop("10.1.3.77").as_deref(), Some("10.1.2.254"));
        let six = address("fd00::1", 64, None);
        assert!(six.on_segment("fd00::2".parse().unwrap()));
        assert_eq!(six.next_hop("fd01::2".parse().unwrap()), None);
        assert!(!six.on_segment("10.1.2.3".parse().unwrap()));
        let everywhere = address("10.1.2.3", 0, None);
        assert!(everywhere.on_segment("192.168.1.1".parse().unwrap()));
    }

    #[test]
    fn addresses_that_no_host_has_are_refused() {
        let refused = |text: &str, bits| address(text, bits, None).validate().unwrap_err();
        assert_eq!(
            refused("255.255.255.255", 24),
            NetError::BadAddress(Ipv4Addr::BROADCAST.into())
        );
        assert_eq!(
            refused("::", 64),
            NetError::BadAddress(Ipv6Addr::UNSPECIFIED.into())
        );
        assert!(matches!(
            refused("10.0.0.1", 33),
            NetError::BadPrefix { .. }
        ));
        let far = address("10.0.0.1", 24, Some("10.0.1.1"));
        assert!(matches!(far.validate(), Err(NetError::FarGateway { .. })));
    }
}
