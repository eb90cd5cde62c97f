//! One worker's RDMA lanes: the poll loop.
//!
//! Comes in: endpoints, frames, `poll`. Goes out: events. Promises what [`crate::lane`] promises. A
//! `poll` makes no system call of its own, but for a look at the connections' news once a millisecond;
//! what a post costs is the device's affair.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::connect::Endpoint;
use super::lane::Lane;
use super::outbox::QueueLimits;
use super::registry::Registry;
use crate::frame::{Frame, FramePools};
use crate::lane::{
    AddError, LaneClosed, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason,
    WireBytes,
};
use crate::port::{GroupToken, PortConfig};
use crate::slots::{Slots, slot_of};
use crate::wake::Waker;

/// How often a group that does not sleep looks for news of its connections.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Polls between two looks at the clock.
const POLLS_PER_CLOCK: u32 = 64;
/// Events taken at once.
const EVENTS_MAX: usize = 32;
/// What the waker is known by in the epoll.
const WAKER: u64 = u64::MAX;

/// One worker's lanes. It stays on the thread that made it.
pub struct RdmaLanes {
    slots: Slots<Lane>,
    /// Slots in use, in no order.
    used: Vec<u16>,
    // After the lanes: their queue pairs go before the memory that they reach.
    registry: Registry,
    /// Lanes whose end is to be told.
    closed: VecDeque<(LaneId, LaneClosed)>,
    limits: QueueLimits,
    waker: Arc<Waker>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    polls: u32,
    looked: Instant,
    /// `prepare_park` said yes since the last poll.
    parked: bool,
    _token: GroupToken,
    _stays_on_its_thread: PhantomData<*const ()>,
}

impl RdmaLanes {
    pub(super) fn new(config: &PortConfig, token: GroupToken) -> std::io::Result<Self> {
        let lanes = usize::from(config.lanes_max);
        let waker = Arc::new(Waker::new()?);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(WAKER);
        epoll::add(&epoll, &*waker, data, EventFlags::IN)?;
        Ok(Self {
            slots: Slots::new(config.lanes_max),
            used: Vec::with_capacity(lanes),
            registry: Registry::default(),
            closed: VecDeque::with_capacity(lanes),
            limits: QueueLimits {
                frames: usize::from(config.queue_frames_max),
                bytes: config.queue_bytes_max,
            },
            waker,
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            polls: 0,
            looked: Instant::now(),
            parked: false,
            _token: token,
            _stays_on_its_thread: PhantomData,
        })
    }

    /// Serves every lane once. Returns the work done, and whether one has more to tell.
    fn serve(&mut self, room: &mut usize, out: &mut Vec<LaneEvent>) -> (u32, bool) {
        let (mut work, mut waits) = (0, false);
        let mut at = 0;
        while let Some(&slot) = self.used.get(at) {
            let Some(lane) = self.slots.at_mut(usize::from(slot)) else {
                self.used.swap_remove(at);
                continue;
            };
            let served = lane.serve(&mut self.registry, room, out);
            work += served.work;
            waits |= served.waits_for_room;
            let id = lane.id;
            match served.over {
                Some(reason) => self.take_apart(id, reason),
                None => at += 1,
            }
        }
        while *room > 0
            && let Some((lane, reason)) = self.closed.pop_front()
        {
            *room -= 1;
            work += 1;
            out.push(LaneEvent::Closed { lane, reason });
        }
        (work, waits || !self.closed.is_empty())
    }

    /// Ends a lane and gives back all that it had; its end is told by the next poll with room.
    fn take_apart(&mut self, lane: LaneId, reason: LaneClosed) {
        let slot = slot_of(lane);
        if self.slots.take(slot).is_none() {
            return;
        }
        self.used.retain(|&used| usize::from(used) != slot);
        self.registry.sweep();
        self.closed.push_back((lane, reason));
        self.slots.give_free(slot);
    }

    /// Takes events of completions and news of connections. Returns how much there was.
    fn look(&mut self) -> u32 {
        self.looked = Instant::now();
        let mut work = 0;
        // A lane has two descriptors.
        for _ in 0..=self.slots.room() / (EVENTS_MAX / 2) {
            self.events.clear();
            let room = rustix::buffer::spare_capacity(&mut self.events);
            if epoll::wait(&self.epoll, room, Some(&Timespec::default())).is_err() {
                return work;
            }
            let events = std::mem::take(&mut self.events);
            for event in &events {
                if event.data.u64() == WAKER {
                    // Cleared when the group goes to sleep; who starves asks the pools.
                    continue;
                }
                if let Some(lane) = self.slots.get_mut(LaneId(event.data.u64() as u32)) {
                    lane.disarm();
                    work += lane.look();
                }
            }
            let count = events.len();
            self.events = events;
            if count < EVENTS_MAX {
                break;
            }
        }
        work
    }

    fn time_to_look(&mut self) -> bool {
        if std::mem::take(&mut self.parked) {
            return true;
        }
        self.polls = self.polls.wrapping_add(1);
        self.polls.is_multiple_of(POLLS_PER_CLOCK) && self.looked.elapsed() >= LOOK_EVERY
    }

    fn watch(&self, lane: &Lane) -> rustix::io::Result<()> {
        let data = EventData::new_u64(u64::from(lane.id.0));
        epoll::add(
            &self.epoll,
            lane.pair().completion_fd(),
            data,
            EventFlags::IN,
        )?;
        epoll::add(
            &self.epoll,
            lane.pair().connection_fd(),
            data,
            EventFlags::IN,
        )
    }
}

impl LaneGroup for RdmaLanes {
    type Endpoint = Endpoint;

    fn add(&mut self, endpoint: Endpoint, pools: &FramePools) -> Result<LaneId, AddError> {
        let id = self.slots.next_id()?;
        let lane = Lane::new(id, endpoint, pools.clone(), self.limits);
        // A descriptor that is closed leaves the epoll by itself.
        self.watch(&lane).map_err(|cause| AddError::Kernel {
            step: "watch a connection",
            cause: cause.into(),
        })?;
        self.used.push(slot_of(id) as u16);
        pools.wake_on_relief(&self.waker);
        self.slots.put(id, lane);
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
            .map_err(|(frame, reason)| Refused { frame, reason })
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        let mut work = 0;
        if self.time_to_look() {
            work += self.look();
        }
        let mut room = out.capacity() - out.len();
        work += self.serve(&mut room, out).0;
        if work == 0 {
            // Its lanes went before the session let its pools go.
            self.registry.sweep();
            Polled::Idle
        } else {
            Polled::Busy(work)
        }
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.slots.get(lane).map_or(0, Lane::backlog_bytes)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.slots
            .get(lane)
            .map(Lane::wire_bytes)
            .unwrap_or_default()
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.slots.get(lane).map(Lane::stats)
    }

    fn close(&mut self, lane: LaneId) {
        if self.slots.get(lane).is_some() {
            self.take_apart(lane, LaneClosed::Local);
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(known) = self.slots.get_mut(lane) {
            known.finish();
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn prepare_park(&mut self) -> bool {
        // First clear and arm, then look: what comes after the look makes the descriptor readable.
        self.waker.clear();
        for slot in &self.used {
            if let Some(lane) = self.slots.at_mut(usize::from(*slot)) {
                lane.arm();
            }
        }
        self.parked = true;
        let (work, waits) = self.serve(&mut 0, &mut Vec::new());
        work == 0 && !waits
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
