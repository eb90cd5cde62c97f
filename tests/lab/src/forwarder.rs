//! The thread behind a link: moves packets between two TUN or TAP devices as a slow line would.
//!
//! In: packets from either device, [`Shape`]s, cuts. Out: the same packets, later, in order but for
//! those that are to be overtaken, once or twice, or not at all. Promise: a line's rate, delay, faults
//! and queue are each direction's own; packets wait in bounded queues; the thread sleeps when nothing
//! is due.

use crate::flows::{FlowTable, wire_bytes};
use crate::link::{LATE_MS, Layer, Shape};
use crate::tun::{HEADER_BYTES, MAX_PACKET_BYTES, Tun};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Packets read from one device before the other gets its turn.
const BURST_PACKETS: usize = 64;
/// Packets due this soon are sent at once: fewer wake-ups, well below any delay that is set.
const COALESCE: Duration = Duration::from_micros(100);
/// Bytes of an Ethernet header, which do not count on the line.
const ETHERNET_BYTES: usize = 14;

/// What one direction has done. Written by the forwarder, read by anyone; the values stand alone,
/// hence relaxed.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) wire_bytes: AtomicU64,
    pub(crate) packets: AtomicU64,
    pub(crate) lost_packets: AtomicU64,
    pub(crate) queue_dropped_packets: AtomicU64,
}

/// What a link's handle and its thread share.
pub(crate) struct Shared {
    pub(crate) settings: Mutex<Settings>,
    /// Set with release after `settings` was written; pairs with the swap in `Forwarder::run`.
    pub(crate) changed: AtomicBool,
    pub(crate) flows: Mutex<FlowTable>,
    pub(crate) counters: [Counters; 2],
    pub(crate) wake: OwnedFd,
}

#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) shapes: [Shape; 2],
    /// Each direction, from the first host and from the second.
    pub(crate) cut: [bool; 2],
    pub(crate) stop: bool,
}

struct Waiting {
    due: Instant,
    packet: Box<[u8]>,
}

struct Direction {
    shape: Shape,
    queue: VecDeque<Waiting>,
    /// Those that are overtaken: each due later than it should be.
    late: VecDeque<Waiting>,
    /// When the line has sent all it accepted.
    line_free: Instant,
    random: u64,
}

pub(crate) struct Forwarder {
    tuns: [Tun; 2],
    layer: Layer,
    seed: u64,
    shared: Arc<Shared>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forwarder {
    pub(crate) fn new(tuns: [Tun; 2], layer: Layer, seed: u64, shared: Arc<Shared>) -> Self {
        Self {
            tuns,
            layer,
            seed,
            shared,
        }
    }

    pub(crate) fn run(&self) {
        // The default slack of 50 us would be added to every delay. Failure costs accuracy only.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let mut settings = *locked(&self.shared.settings);
        let now = Instant::now();
        let mut directions = [0, 1].map(|index: usize| Direction {
            shape: settings.shapes[index],
            queue: VecDeque::new(),
            late: VecDeque::new(),
            line_free: now,
            // Never zero, from which the generator does not move.
            random: 0x1234_5678 + index as u64 + (self.seed << 32),
        });
        self.allow_segments(&settings);
        let mut scratch = vec![0; MAX_PACKET_BYTES];
        loop {
            if self.shared.changed.swap(false, Ordering::Acquire) {
                settings = *locked(&self.shared.settings);
                if settings.stop {
                    return;
                }
                self.allow_segments(&settings);
                let news = settings.shapes.into_iter().zip(settings.cut);
                for (direction, (shape, cut)) in directions.iter_mut().zip(news) {
                    direction.shape = shape;
                    if cut {
                        direction.queue.clear();
                        direction.late.clear();
                    }
                }
            }
            let mut more = false;
            for (index, direction) in directions.iter_mut().enumerate() {
                more |= self.take(index, direction, settings.cut[index], &mut scratch);
            }
            let horizon = Instant::now() + COALESCE;
            for (index, direction) in directions.iter_mut().enumerate() {
                while let Some(packet) = direction.next(horizon) {
                    self.tuns[1 - index].write(&packet);
                }
            }
            if !more {
                self.sleep(&directions);
            }
        }
    }

    /// A fault must hit packets as the wire has them, not segments of 64 KiB; a program that bypasses the
    /// kernel takes no segments either.
    fn allow_segments(&self, settings: &Settings) {
        for (tun, shape) in self.tuns.iter().zip(settings.shapes) {
            // Failure leaves packets at the MTU: slower, still right.
            let _ = tun.set_segmentation(self.layer == Layer::Ip && !shape.has_faults());
        }
    }

    /// Reads a burst from one device into its queue; true when there may be more.
    fn take(&self, index: usize, direction: &mut Direction, cut: bool, scratch: &mut [u8]) -> bool {
        let counters = &self.shared.counters[index];
        let mut flows = None;
        for _ in 0..BURST_PACKETS {
            let Ok(Some(length)) = self.tuns[index].read(scratch) else {
                return false;
            };
            if cut || length <= HEADER_BYTES {
                continue;
            }
            let (header, packet) = scratch[..length].split_at(HEADER_BYTES);
            let packet = match self.layer {
                Layer::Ip => packet,
                Layer::Ethernet => packet.get(ETHERNET_BYTES..).unwrap_or_default(),
            };
            let bytes = wire_length(header, packet);
            let flows = flows.get_or_insert_with(|| locked(&self.shared.flows));
            if !flows.pass(packet, bytes) {
                continue;
            }
            match direction.accept(bytes) {
                Fate::Due(due) => direction.put(due, scratch[..length].into()),
                Fate::Lost => {
                    counters.lost_packets.fetch_add(1, Ordering::Relaxed);
                }
                Fate::QueueFull => {
                    counters
                        .queue_dropped_packets
                        .fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            counters.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
            counters.packets.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn sleep(&self, directions: &[Direction; 2]) {
        let next = directions
            .iter()
            .flat_map(|d| [d.queue.front(), d.late.front()])
            .flatten()
            .map(|w| w.due)
            .min();
        let limit = next.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [
            PollFd::new(&self.tuns[0], PollFlags::IN),
            PollFd::new(&self.tuns[1], PollFlags::IN),
            PollFd::new(&self.shared.wake, PollFlags::IN),
        ];
        let _ = poll(&mut fds, timeout.as_ref());
        if !fds[2].revents().is_empty() {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
    }
}

enum Fate {
    Due(Instant),
    Lost,
    QueueFull,
}

impl Direction {
    /// The line is a rate-limited sender behind a queue, then a fixed delay. Lost packets were
    /// sent, hence take their time on the line.
    fn accept(&mut self, bytes: u64) -> Fate {
        let now = Instant::now();
        let start = self.line_free.max(now);
        if self.shape.rate_mbit > 0.0 {
            if (start - now).as_secs_f64() * 1e3 > self.shape.queue_ms() {
                return Fate::QueueFull;
            }
            let sending_s = bytes as f64 * 8.0 / (self.shape.rate_mbit * 1e6);
            self.line_free = start + Duration::from_secs_f64(sending_s);
        } else {
            self.line_free = now;
        }
        if self.strikes(self.shape.loss_percent) {
            return Fate::Lost;
        }
        Fate::Due(self.line_free + Duration::from_secs_f64(self.shape.delay_ms / 1e3))
    }

    /// Whether a fault that strikes so many packets strikes this one.
    fn strikes(&mut self, percent: f64) -> bool {
        // xorshift64 (Marsaglia 2003): repeatable from run to run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        percent > 0.0 && (self.random >> 11) as f64 / (1_u64 << 53) as f64 * 100.0 < percent
    }

    /// Has a packet wait until it is due, or longer; once or twice.
    fn put(&mut self, due: Instant, packet: Box<[u8]>) {
        if self.strikes(self.shape.twice_percent) {
            push(&mut self.queue, due, packet.clone());
        }
        if self.strikes(self.shape.late_percent) {
            push(&mut self.late, due + Duration::from_millis(LATE_MS), packet);
        } else {
            push(&mut self.queue, due, packet);
        }
    }

    /// The next packet that is due by `horizon`.
    fn next(&mut self, horizon: Instant) -> Option<Box<[u8]>> {
        let due = |queue: &VecDeque<Waiting>| queue.front().map(|waiting| waiting.due);
        let late_first = match (due(&self.queue), due(&self.late)) {
            (Some(due), Some(late)) => late < due,
            (due, _) => due.is_none(),
        };
        let queue = if late_first {
            &mut self.late
        } else {
            &mut self.queue
        };
        let waiting = queue.pop_front_if(|waiting| waiting.due <= horizon)?;
        Some(waiting.packet)
    }
}

/// Puts a packet behind the others. A delay that was lowered must not let it overtake them.
fn push(queue: &mut VecDeque<Waiting>, due: Instant, packet: Box<[u8]>) {
    let due = queue.back().map_or(due, |last| due.max(last.due));
    queue.push_back(Waiting { due, packet });
}

/// IP bytes on the wire, from the virtio-net header: flags, gso_type, hdr_len, gso_size,
/// csum_start, csum_offset.
fn wire_length(header: &[u8], packet: &[u8]) -> u64 {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[1] == 0 {
        return packet.len() as u64;
    }
    let transport = field(6);
    let tcp_header = packet
        .get(transport + 12)
        .map_or(0, |byte| usize::from(byte >> 4) * 4);
    wire_bytes(packet, transport + tcp_header, field(4))
}
