//! A network in memory: ports on any threads that hand each other datagrams, with faults on request.
//!
//! Comes in: datagrams, and a [`Mangler`] per port if faults are wanted. Goes out: the same at the port
//! that the address is bound to, as the mangler lets them. Promises: each datagram is written once and read
//! where it lies; no allocation after the ports were made; a port whose peer does not read has no
//! room, as on a ring between two processes.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam::queue::ArrayQueue;

use super::port::DatagramPort;
use crate::loopback::{Fate, Mangler};
use crate::wake::Waker;

/// Datagrams that lie before one port.
const INBOX_DATAGRAMS: usize = 1024;
/// Datagrams handed out in one burst.
const BURST: usize = 32;
/// Delayed datagrams that one port keeps; beyond that none is delayed.
const DELAYED_MAX: usize = 64;

struct Datagram {
    from: SocketAddr,
    len: usize,
    bytes: Box<[u8]>,
}

struct Inbox {
    arrived: ArrayQueue<Datagram>,
    waker: Waker,
    /// The port's worker may be asleep.
    parked: AtomicBool,
    /// The port is gone.
    closed: AtomicBool,
}

struct Shared {
    bound: Mutex<HashMap<SocketAddr, Arc<Inbox>>>,
    free: ArrayQueue<Datagram>,
    max_payload: usize,
    next_address: AtomicU16,
    delivered: AtomicU64,
    start: Instant,
}

impl Shared {
    fn bound(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Inbox>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, datagram: Datagram) {
        // Never full: it had room for every datagram there is.
        let _ = self.free.push(datagram);
    }
}

/// A network. A clone is the same one.
#[derive(Clone)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

impl MemoryNetwork {
    /// A network that carries up to `datagrams` datagrams of up to `max_payload` bytes at a time.
    #[must_use]
    pub fn new(datagrams: usize, max_payload: usize) -> Self {
        let free = ArrayQueue::new(datagrams.max(1));
        for _ in 0..datagrams.max(1) {
            let _ = free.push(Datagram {
                from: SocketAddr::from(([0, 0, 0, 0], 0)),
                len: 0,
                bytes: vec![0; max_payload].into_boxed_slice(),
            });
        }
        Self {
            shared: Arc::new(Shared {
                bound: Mutex::new(HashMap::new()),
                free,
                max_payload,
                next_address: AtomicU16::new(1),
                delivered: AtomicU64::new(0),
                start: Instant::now(),
            }),
        }
    }

    /// An address that nobody has yet.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let port = self.shared.next_address.fetch_add(1, Ordering::Relaxed);
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Datagrams that ports received so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// A port with an address of its own.
    ///
    /// # Errors
    /// The kernel's, as a rule because the process is out of descriptors.
    pub fn port(&self) -> std::io::Result<MemoryPort> {
        let inbox = Arc::new(Inbox {
            arrived: ArrayQueue::new(INBOX_DATAGRAMS),
            waker: Waker::new()?,
            parked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let address = self.address();
        self.shared.bound().insert(address, Arc::clone(&inbox));
        Ok(MemoryPort {
            shared: Arc::clone(&self.shared),
            address,
            inbox,
            last: None,
            mangler: None,
            overtaken: None,
            delayed: VecDeque::with_capacity(DELAYED_MAX),
            cut: false,
        })
    }
}

/// One port of a [`MemoryNetwork`].
pub struct MemoryPort {
    shared: Arc<Shared>,
    address: SocketAddr,
    inbox: Arc<Inbox>,
    /// Where the last datagram went.
    last: Option<(SocketAddr, Arc<Inbox>)>,
    mangler: Option<Box<dyn Mangler>>,
    /// Waits for the next datagram, to go behind it.
    overtaken: Option<(SocketAddr, Datagram)>,
    /// Each with the polls that it still waits.
    delayed: VecDeque<(u32, SocketAddr, Datagram)>,
    cut: bool,
}

impl MemoryPort {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the port receive what is sent to `address` too.
    pub fn bind(&self, address: SocketAddr) {
        self.shared.bound().insert(address, Arc::clone(&self.inbox));
    }

    /// Lets what the port sends pass `mangler`. [`Fate::Delay`] counts this port's own receives, and a cut
    /// silences the port for good.
    #[must_use]
    pub fn mangled(mut self, mangler: Box<dyn Mangler>) -> Self {
        self.mangler = Some(mangler);
        self
    }

    fn inbox_at(&mut self, to: SocketAddr) -> Option<Arc<Inbox>> {
        if let Some((known, inbox)) = &self.last
            && *known == to
            && !inbox.closed.load(Ordering::Relaxed)
        {
            return Some(Arc::clone(inbox));
        }
        let inbox = self.shared.bound().get(&to).cloned()?;
        self.last = Some((to, Arc::clone(&inbox)));
        Some(inbox)
    }

    fn put(&mut self, to: SocketAddr, datagram: Datagram) {
        let lost = match self.inbox_at(to) {
            Some(inbox) => {
                let lost = inbox.arrived.push(datagram).err();
                // Pairs with the fence in `prepare_park`: either that side sees the datagram, or this
                // one sees that it sleeps.
                fence(Ordering::SeqCst);
                if inbox.parked.load(Ordering::Relaxed)
                    && inbox.parked.swap(false, Ordering::SeqCst)
                {
                    inbox.waker.wake();
                }
                lost
            }
            None => Some(datagram),
        };
        if let Some(lost) = lost {
            self.shared.give_back(lost);
        }
    }

    /// Sends a datagram on its way, as its fate wants it.
    fn route(&mut self, to: SocketAddr, mut datagram: Datagram) {
        let fate = match &mut self.mangler {
            Some(mangler) => mangler.frame(&datagram.bytes[..datagram.len]),
            None => Fate::Pass,
        };
        if self.cut {
            return self.shared.give_back(datagram);
        }
        match fate {
            Fate::Pass => self.put(to, datagram),
            Fate::Drop => self.shared.give_back(datagram),
            Fate::Repeat => {
                if let Some(mut again) = self.shared.free.pop() {
                    again.from = datagram.from;
                    again.len = datagram.len;
                    again.bytes[..datagram.len].copy_from_slice(&datagram.bytes[..datagram.len]);
                    self.put(to, again);
                }
                self.put(to, datagram);
            }
            Fate::Swap if self.overtaken.is_none() => {
                self.overtaken = Some((to, datagram));
                return;
            }
            Fate::Delay { polls } if self.delayed.len() < DELAYED_MAX => {
                self.delayed.push_back((polls, to, datagram));
            }
            Fate::Swap | Fate::Delay { .. } => self.put(to, datagram),
            Fate::Corrupt { at, xor } => {
                let at = at % datagram.len.max(1);
                datagram.bytes[at] ^= xor;
                self.put(to, datagram);
            }
            Fate::Cut => {
                self.cut = true;
                self.shared.give_back(datagram);
            }
        }
        self.release_overtaken();
    }

    fn release_overtaken(&mut self) {
        if let Some((to, late)) = self.overtaken.take() {
            self.put(to, late);
        }
    }

    /// Sends delayed datagrams whose time has come, or all.
    fn release_delayed(&mut self, all: bool) {
        for _ in 0..self.delayed.len() {
            if let Some((polls, to, datagram)) = self.delayed.pop_front() {
                if all || polls == 0 {
                    self.put(to, datagram);
                } else {
                    self.delayed.push_back((polls - 1, to, datagram));
                }
            }
        }
    }
}

impl DatagramPort for MemoryPort {
    fn max_payload(&self) -> usize {
        self.shared.max_payload
    }

    fn now_ns(&self) -> u64 {
        self.shared.start.elapsed().as_nanos() as u64 + 1
    }

    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        self.release_delayed(false);
        let mut count = 0;
        while count < BURST
            && let Some(mut datagram) = self.inbox.arrived.pop()
        {
            sink(datagram.from, &mut datagram.bytes[..datagram.len]);
            self.shared.give_back(datagram);
            count += 1;
        }
        let delivered = &self.shared.delivered;
        delivered.fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool {
        let full = self
            .inbox_at(to)
            .is_some_and(|inbox| inbox.arrived.is_full() && !inbox.closed.load(Ordering::Relaxed));
        if full {
            return false;
        }
        let Some(mut datagram) = self.shared.free.pop() else {
            return false;
        };
        datagram.from = self.address;
        datagram.len = fill(&mut datagram.bytes).min(datagram.bytes.len());
        if datagram.len == 0 {
            self.shared.give_back(datagram);
        } else {
            self.route(to, datagram);
        }
        true
    }

    fn flush(&mut self) {
        self.release_overtaken();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inbox.waker.as_fd())
    }

    fn prepare_park(&mut self) -> bool {
        self.release_delayed(true);
        self.inbox.waker.clear();
        self.inbox.parked.store(true, Ordering::Relaxed);
        // Pairs with the fence in `put`.
        fence(Ordering::SeqCst);
        self.inbox.arrived.is_empty()
    }
}

impl Drop for MemoryPort {
    fn drop(&mut self) {
        self.release_overtaken();
        self.release_delayed(true);
        self.inbox.closed.store(true, Ordering::Relaxed);
        let inbox = &self.inbox;
        self.shared
            .bound()
            .retain(|_, bound| !Arc::ptr_eq(bound, inbox));
        while let Some(datagram) = self.inbox.arrived.pop() {
            self.shared.give_back(datagram);
        }
    }
}
