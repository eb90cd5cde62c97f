//! A network in simulated time: links with a rate, a delay, a queue and faults.
//!
//! Comes in: what a link is like, datagrams, and how far time goes on. Goes out: the datagrams, when
//! they are due. Promises: the same seeds and the same calls give the same run; time stands still
//! between two calls of [`SimulatedNetwork::advance`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::port::DatagramPort;
use crate::loopback::{Fate, FaultMangler, FaultRates, Mangler};

/// How much longer a delayed datagram takes for each look of [`Fate::Delay`].
const LOOK_NS: u64 = 100_000;

/// One direction of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Longest datagram.
    pub max_payload: usize,
    /// How fast it carries bytes, each datagram with `overhead_bytes` of lower layers.
    pub rate_bytes_per_s: u64,
    /// Bytes of lower layers per datagram.
    pub overhead_bytes: u64,
    /// From one end to the other.
    pub delay_ns: u64,
    /// Bytes that wait before it; what comes beyond that is lost.
    pub queue_bytes: u64,
    /// A datagram that is overtaken takes this much longer.
    pub late_ns: u64,
    /// What happens to datagrams, in datagrams per million.
    pub faults: FaultRates,
}

/// What became of the datagrams of all links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Handed to a link.
    pub sent: u64,
    /// Lost by a fault.
    pub lost: u64,
    /// Lost because a queue was full.
    pub overflowed: u64,
    /// Handed over changed, twice, or late.
    pub mangled: u64,
}

#[derive(Default)]
struct World {
    now_ns: u64,
    /// By arrival, then by order of sending.
    flying: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    arrived: HashMap<SocketAddr, VecDeque<(SocketAddr, Vec<u8>)>>,
    carried: Carried,
}

impl World {
    fn fly(&mut self, arrival_ns: u64, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.sequence += 1;
        self.flying
            .insert((arrival_ns, self.sequence), (from, to, bytes));
    }
}

/// A network. A clone is the same one.
#[derive(Clone, Default)]
pub struct SimulatedNetwork {
    world: Rc<RefCell<World>>,
}

impl SimulatedNetwork {
    /// A port at `address` that sends over `link`; the seed decides which datagrams have faults.
    #[must_use]
    pub fn port(&self, address: SocketAddr, link: Link, seed: u64) -> SimulatedPort {
        let mut world = self.world.borrow_mut();
        world.arrived.insert(address, VecDeque::new());
        world.now_ns = world.now_ns.max(1);
        SimulatedPort {
            world: Rc::clone(&self.world),
            address,
            link,
            mangler: FaultMangler::new(seed, link.faults),
            free_ns: 0,
            cut: false,
        }
    }

    /// Lets time go on.
    pub fn advance(&self, ns: u64) {
        let mut world = self.world.borrow_mut();
        world.now_ns += ns;
        let now_ns = world.now_ns;
        while let Some(entry) = world.flying.first_entry() {
            if entry.key().0 > now_ns {
                break;
            }
            let (from, to, bytes) = entry.remove();
            if let Some(arrived) = world.arrived.get_mut(&to) {
                arrived.push_back((from, bytes));
            }
        }
    }

    /// The time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.world.borrow().now_ns
    }

    /// What became of the datagrams so far.
    #[must_use]
    pub fn carried(&self) -> Carried {
        self.world.borrow().carried
    }
}

/// One end of a path.
pub struct SimulatedPort {
    world: Rc<RefCell<World>>,
    address: SocketAddr,
    link: Link,
    mangler: FaultMangler,
    /// When the link has carried what was sent so far.
    free_ns: u64,
    cut: bool,
}

impl SimulatedPort {
    /// When a datagram of so many bytes that is sent now arrives. None: the queue is full.
    fn arrival_ns(&mut self, now_ns: u64, bytes: usize) -> Option<u64> {
        let ns_of = |bytes: u64| bytes * 1_000_000_000 / self.link.rate_bytes_per_s.max(1);
        let waiting_ns = self.free_ns.saturating_sub(now_ns);
        if waiting_ns > ns_of(self.link.queue_bytes) {
            return None;
        }
        let wire_ns = ns_of(bytes as u64 + self.link.overhead_bytes);
        self.free_ns = self.free_ns.max(now_ns) + wire_ns;
        Some(self.free_ns + self.link.delay_ns)
    }
}

impl DatagramPort for SimulatedPort {
    fn max_payload(&self) -> usize {
        self.link.max_payload
    }

    fn now_ns(&self) -> u64 {
        self.world.borrow().now_ns
    }

    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let mut count = 0;
        while count < 32 {
            let next = self
                .world
                .borrow_mut()
                .arrived
                .get_mut(&self.address)
                .and_then(VecDeque::pop_front);
            let Some((from, mut bytes)) = next else { break };
            sink(from, &mut bytes);
            count += 1;
        }
        count
    }

    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool {
        let mut bytes = vec![0; self.link.max_payload];
        let len = fill(&mut bytes).min(bytes.len());
        bytes.truncate(len);
        if bytes.is_empty() {
            return true;
        }
        let now_ns = self.now_ns();
        let fate = self.mangler.frame(&bytes);
        self.cut |= fate == Fate::Cut;
        let arrival_ns = self.arrival_ns(now_ns, len);
        let mut world = self.world.borrow_mut();
        world.carried.sent += 1;
        let Some(mut arrival_ns) = arrival_ns else {
            world.carried.overflowed += 1;
            return true;
        };
        if self.cut || fate == Fate::Drop {
            world.carried.lost += 1;
            return true;
        }
        world.carried.mangled += u64::from(fate != Fate::Pass);
        match fate {
            Fate::Repeat => world.fly(arrival_ns, self.address, to, bytes.clone()),
            Fate::Swap => arrival_ns += self.link.late_ns,
            Fate::Delay { polls } => arrival_ns += u64::from(polls) * LOOK_NS,
            Fate::Corrupt { at, xor } => bytes[at % len] ^= xor,
            Fate::Pass | Fate::Drop | Fate::Cut => {}
        }
        world.fly(arrival_ns, self.address, to, bytes);
        true
    }

    fn flush(&mut self) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn prepare_park(&mut self) -> bool {
        let world = self.world.borrow();
        world
            .arrived
            .get(&self.address)
            .is_none_or(VecDeque::is_empty)
    }
}
