//! One worker's TCP lanes: the poll loop over one ring.
//!
//! Comes in: sockets, frames, `poll`. Goes out: events. Promises what [`crate::lane`] promises; an
//! idle `poll` makes no system call, a busy one makes one as a rule, and one more where a long frame
//! is to be waited for whose missing part is of another length than the last one's.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_hugepages::arena::{Arena, ArenaConfig};
use io_uring::cqueue;
use rustix::net::sockopt;

use super::connection::{Connection, Next, QueueLimits, ZC_SLOTS};
use super::inbox::{CHUNKS, INBOX_BYTES, Inbox, group_of};
use super::port::{LanesError, RecvMode, SendMode, TcpOptions};
use super::registry::Registry;
use super::ring::{Ring, from_user_data};
use super::socket;
use crate::frame::{Frame, FramePools};
use crate::lane::{
    AddError, LaneClosed, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason,
    WireBytes,
};
use crate::port::{GroupToken, PortConfig};
use crate::slots::{Slots, slot_of};

/// Completions that one lane can have under way: chunks, the receive's end, a send and its
/// notifications, a cancellation.
const COMPLETIONS_PER_LANE: u32 = CHUNKS as u32 + ZC_SLOTS as u32 + 4;
/// Completions taken at once.
const REAP_MAX: usize = 256;
/// How long dropping a group waits for the kernel to let go of its buffers.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

fn ip_of(address: rustix::net::SocketAddrAny) -> Option<std::net::IpAddr> {
    std::net::SocketAddr::try_from(address)
        .ok()
        .map(|address| address.ip())
}

/// One worker's lanes. It stays on the thread that made it: the ring accepts requests from no other.
pub struct TcpLanes {
    ring: Ring,
    registry: Registry,
    slots: Slots<Connection>,
    /// Slots whose lane has something to do now.
    listed: Vec<u16>,
    /// The list that is being served.
    serving: Vec<u16>,
    /// Slots whose lane waits for a buffer.
    starved: Vec<u16>,
    completions: Vec<cqueue::Entry>,
    /// The lanes' inboxes, one after the other.
    memory: Arc<Arena>,
    limits: QueueLimits,
    multishot: bool,
    send: SendMode,
    /// Tells the port that this group exists.
    _token: GroupToken,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl TcpLanes {
    pub(super) fn new(
        config: &PortConfig,
        options: &TcpOptions,
        recv: RecvMode,
        token: GroupToken,
    ) -> Result<Self, LanesError> {
        let lanes = usize::from(config.lanes_max);
        let ring = Ring::new(u32::from(config.lanes_max), COMPLETIONS_PER_LANE)
            .map_err(LanesError::Ring)?;
        let memory = Arena::new(ArenaConfig {
            name: "tcp-inbox",
            bytes: lanes * INBOX_BYTES,
            backing: options.backing,
        })?;
        let registry = Registry::new(&ring.submitter(), options.send != SendMode::Copy);
        Ok(Self {
            ring,
            registry,
            slots: Slots::new(config.lanes_max),
            listed: Vec::with_capacity(lanes),
            serving: Vec::with_capacity(lanes),
            starved: Vec::with_capacity(lanes),
            completions: Vec::with_capacity(REAP_MAX),
            memory: Arc::new(memory),
            limits: QueueLimits {
                frames: usize::from(config.queue_frames_max),
                bytes: config.queue_bytes_max,
            },
            multishot: recv == RecvMode::Multishot,
            send: options.send,
            _token: token,
            _stays_on_its_thread: PhantomData,
        })
    }

    /// Puts a lane among those to be served.
    fn list(&mut self, slot: usize) {
        if let Some(lane) = self.slots.at_mut(slot)
            && !lane.listed
        {
            lane.listed = true;
            self.listed.push(slot as u16);
        }
    }

    /// Takes what completed. Returns how much.
    fn reap(&mut self) -> u32 {
        let mut count = 0;
        loop {
            self.ring.reap(&mut self.completions);
            if self.completions.is_empty() {
                return count;
            }
            let completions = std::mem::take(&mut self.completions);
            for entry in &completions {
                let Some((lane, op)) = from_user_data(entry.user_data()) else {
                    continue;
                };
                if let Some(known) = self.slots.get_mut(lane) {
                    known.completed(op, entry);
                    self.list(slot_of(lane));
                }
            }
            count += completions.len() as u32;
            self.completions = completions;
            self.completions.clear();
        }
    }

    /// Lists the starved lanes whose pools got a buffer back.
    fn list_relieved(&mut self) {
        let mut at = 0;
        while let Some(&slot) = self.starved.get(at) {
            let slot = usize::from(slot);
            let waits = self.slots.at(slot).is_some_and(|lane| {
                lane.starved
                    .is_some_and(|since| !lane.pools.relieved(since))
            });
            if waits {
                at += 1;
                continue;
            }
            self.starved.swap_remove(at);
            if let Some(lane) = self.slots.at_mut(slot) {
                lane.starved = None;
            }
            self.list(slot);
        }
    }

    /// Serves every listed lane once. Returns how many events it pushed.
    fn serve(&mut self, out: &mut Vec<LaneEvent>) -> u32 {
        let before = out.len();
        let mut room = out.capacity() - out.len();
        std::mem::swap(&mut self.listed, &mut self.serving);
        for at in 0..self.serving.len() {
            let slot = usize::from(self.serving[at]);
            let Some(lane) = self.slots.at_mut(slot) else {
                continue;
            };
            lane.listed = false;
            match lane.serve(&mut self.ring, &mut self.registry, &mut room, out) {
                Next::Rest => {}
                Next::Again => self.list(slot),
                Next::Starved(since) => {
                    if lane.starved.replace(since).is_none() {
                        self.starved.push(slot as u16);
                    }
                }
                Next::Gone(_) if room == 0 => self.list(slot),
                Next::Gone(reason) => {
                    room -= 1;
                    let lane = lane.id;
                    self.take_apart(slot);
                    out.push(LaneEvent::Closed { lane, reason });
                }
            }
        }
        self.serving.clear();
        (out.len() - before) as u32
    }

    /// Gives back all that a lane had. The kernel must hold nothing of it.
    fn take_apart(&mut self, slot: usize) {
        let Some(lane) = self.slots.take(slot) else {
            return;
        };
        self.starved.retain(|&starved| usize::from(starved) != slot);
        if self.multishot
            && let Err(cause) = self.ring.submitter().unregister_buf_ring(group_of(lane.id))
        {
            // The slot cannot be used again while the kernel may write into its memory.
            tracing::error!(%cause, slot, "a buffer ring stays registered; its slot is lost");
            return;
        }
        drop(lane);
        self.registry.sweep(&self.ring.submitter());
        self.slots.give_free(slot);
    }
}

impl LaneGroup for TcpLanes {
    type Endpoint = OwnedFd;

    fn add(&mut self, endpoint: OwnedFd, pools: &FramePools) -> Result<LaneId, AddError> {
        let kernel = |step| {
            move |cause: rustix::io::Errno| AddError::Kernel {
                step,
                cause: cause.into(),
            }
        };
        let is_tcp = sockopt::socket_protocol(&endpoint)
            .is_ok_and(|protocol| protocol == Some(rustix::net::ipproto::TCP));
        if !is_tcp {
            return Err(AddError::WrongEndpoint("it is not a TCP socket"));
        }
        let peer = rustix::net::getpeername(&endpoint)
            .map_err(kernel("getpeername: connect it first"))?
            .and_then(ip_of);
        let own = rustix::net::getsockname(&endpoint).ok().and_then(ip_of);
        let is_far = socket::deepen_if_far(endpoint.as_fd()).map_err(|cause| AddError::Kernel {
            step: "let it take more ahead",
            cause,
        })?;
        let id = self.slots.next_id()?;
        let slot = slot_of(id);
        // SAFETY: needed to give each slot its part of the arena, which is `INBOX_BYTES` per slot.
        let base = unsafe { self.memory.as_ptr().add(slot * INBOX_BYTES) };
        let inbox = Inbox::new(base, self.multishot);
        if self.multishot {
            // SAFETY: the ring is the first page of the slot's memory, which lives as long as
            // `self`, and the slot is free, so no other ring lies there. No flags.
            unsafe {
                self.ring.submitter().register_buf_ring_with_flags(
                    base as u64,
                    CHUNKS,
                    group_of(id),
                    0,
                )
            }
            .map_err(|cause| AddError::Kernel {
                step: "register a buffer ring",
                cause,
            })?;
        }
        pools.wake_on_relief(self.ring.waker());
        let lane = Connection::new(
            id,
            endpoint,
            pools.clone(),
            inbox,
            self.limits,
            self.send,
            own == peer || is_far,
        );
        self.slots.put(id, lane);
        self.list(slot);
        Ok(id)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        let Some(known) = self.slots.get_mut(lane) else {
            return Err(Refused {
                frame,
                reason: RefusedReason::Unknown,
            });
        };
        known
            .submit(frame)
            .map_err(|(frame, reason)| Refused { frame, reason })?;
        self.list(slot_of(lane));
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.ring.disarm();
        let mut work = self.reap();
        if !self.starved.is_empty() {
            self.list_relieved();
        }
        work += self.serve(out);
        if self.ring.has_reason_to_enter() {
            self.ring.enter();
            work += 1 + self.reap();
            work += self.serve(out);
        }
        if !self.listed.is_empty() {
            work += 1;
        }
        if work == 0 {
            // Its lanes went before the session let its pools go.
            self.registry.sweep(&self.ring.submitter());
            Polled::Idle
        } else {
            Polled::Busy(work)
        }
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.slots.get(lane).map_or(0, Connection::backlog_bytes)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.slots
            .get(lane)
            .map(Connection::wire_bytes)
            .unwrap_or_default()
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        socket::stats(self.slots.get(lane)?.fd()?).ok()
    }

    fn pace(&mut self, lane: LaneId, bytes_per_s: u64) {
        if let Some(fd) = self.slots.get(lane).and_then(Connection::fd)
            && let Err(cause) = socket::pace(fd, bytes_per_s)
        {
            tracing::warn!(%cause, bytes_per_s, "a lane is not paced");
        }
    }

    fn learn_anew(&mut self, lane: LaneId) {
        if let Some(fd) = self.slots.get(lane).and_then(Connection::fd)
            && let Err(cause) = socket::learn_anew(fd)
        {
            tracing::warn!(%cause, "a lane keeps what it learnt of an earlier path");
        }
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(known) = self.slots.get_mut(lane) {
            known.abort(LaneClosed::Local);
            self.list(slot_of(lane));
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(known) = self.slots.get_mut(lane) {
            known.finish();
            self.list(slot_of(lane));
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.waker().as_fd())
    }

    fn prepare_park(&mut self) -> bool {
        let quiet = self.ring.arm();
        // After arming: a buffer that comes back from now on rings the waker.
        if !self.starved.is_empty() {
            self.list_relieved();
        }
        quiet && self.listed.is_empty()
    }
}

impl Drop for TcpLanes {
    fn drop(&mut self) {
        for slot in 0..self.slots.room() {
            if let Some(lane) = self.slots.at_mut(slot) {
                lane.abort(LaneClosed::Local);
                self.list(slot);
            }
        }
        let start = Instant::now();
        let mut events = Vec::with_capacity(self.slots.room());
        while self.slots.lanes().next().is_some() {
            events.clear();
            self.poll(&mut events);
            let left = DROP_PATIENCE.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            if self.slots.lanes().next().is_some() {
                self.ring
                    .enter_and_wait(left.min(Duration::from_millis(50)));
            }
        }
        let stuck: Vec<_> = (0..self.slots.room())
            .filter_map(|slot| self.slots.take(slot))
            .collect();
        if !stuck.is_empty() {
            // Memory that the kernel may still write must never be used again.
            tracing::error!(
                lanes = stuck.len(),
                "the kernel did not let go of lanes; leaked"
            );
            std::mem::forget(stuck);
            std::mem::forget(Arc::clone(&self.memory));
        }
    }
}
