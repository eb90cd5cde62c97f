//! Lanes in memory, for tests of the layers above: within a thread or across threads.
//!
//! Comes in: pairs of endpoints, frames, and a [`Mangler`] per direction if faults are wanted. Goes
//! out: what [`crate::lane`] promises, except for what the mangler broke. Frames are copied into the
//! receiver's pools as a network would, so empty pools and back-pressure behave alike.

mod mangler;
mod wire;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use mangler::{Fate, FaultMangler, FaultRates, Mangler};
use wire::{Arrival, Wire};

use crate::frame::{Frame, FramePools, Relief};
use crate::lane::{
    AddError, LaneClosed, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason,
    WireBytes,
};
use crate::wake::Waker;

/// Frames that wait on one lane, at most.
const QUEUE_FRAMES_MAX: usize = 16;
/// Bytes that wait on one lane, at most; one frame always fits.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// One end of a lane to be. Dropping it without adding it cuts the lane.
pub struct LoopbackEndpoint {
    tx: Arc<Wire>,
    rx: Arc<Wire>,
    added: bool,
}

impl LoopbackEndpoint {
    /// Both ends of a faultless lane.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        Self::over(Wire::new(None), Wire::new(None))
    }

    /// Both ends of a lane whose frames pass `forth` on the way from the first to the second, and
    /// `back` on the other.
    #[must_use]
    pub fn mangled_pair(forth: Box<dyn Mangler>, back: Box<dyn Mangler>) -> (Self, Self) {
        Self::over(Wire::new(Some(forth)), Wire::new(Some(back)))
    }

    fn over(forth: Wire, back: Wire) -> (Self, Self) {
        let (forth, back) = (Arc::new(forth), Arc::new(back));
        let near = Self {
            tx: Arc::clone(&forth),
            rx: Arc::clone(&back),
            added: false,
        };
        (
            near,
            Self {
                tx: back,
                rx: forth,
                added: false,
            },
        )
    }
}

impl Drop for LoopbackEndpoint {
    fn drop(&mut self) {
        if !self.added {
            self.tx.cut();
            self.rx.cut();
        }
    }
}

struct Lane {
    id: LaneId,
    tx: Arc<Wire>,
    rx: Arc<Wire>,
    pools: FramePools,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    refused: bool,
    finishing: bool,
    /// The peer was told that nothing more comes.
    ended: bool,
    starved: Option<Relief>,
    wire: WireBytes,
}

/// One worker's lanes in memory.
pub struct LoopbackLanes {
    lanes: Vec<Lane>,
    next_id: u32,
    /// Lanes whose end is to be told.
    closed: VecDeque<(LaneId, LaneClosed)>,
    waker: Arc<Waker>,
}

impl LoopbackLanes {
    /// No lanes yet.
    ///
    /// # Errors
    /// The kernel's, as a rule because the process is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            lanes: Vec::new(),
            next_id: 0,
            closed: VecDeque::new(),
            waker: Arc::new(Waker::new()?),
        })
    }

    fn lane(&self, lane: LaneId) -> Option<&Lane> {
        self.lanes.iter().find(|known| known.id == lane)
    }

    fn remove(&mut self, at: usize, reason: LaneClosed) {
        let lane = self.lanes.swap_remove(at);
        if reason != LaneClosed::Finished {
            lane.tx.cut();
            lane.rx.cut();
        }
        self.closed.push_back((lane.id, reason));
    }
}

impl Lane {
    /// Sends, receives. Returns the work done, and why the lane is over if it is.
    fn serve(&mut self, room: &mut usize, out: &mut Vec<LaneEvent>) -> (u32, Option<LaneClosed>) {
        let mut work = 0;
        while let Some(frame) = self.queue.pop_front() {
            let bytes = frame.len();
            if let Err(frame) = self.tx.push(frame) {
                self.queue.push_front(frame);
                break;
            }
            self.queued_bytes -= bytes;
            self.wire.sent += bytes as u64;
            work += 1;
        }
        while *room > 0 && !self.starves() {
            let pools = &self.pools;
            match self.rx.pop(|bytes| land(pools, bytes)) {
                Arrival::Frame(frame) => {
                    self.wire.received += frame.len() as u64;
                    *room -= 1;
                    work += 1;
                    out.push(LaneEvent::Frame {
                        lane: self.id,
                        frame,
                    });
                }
                Arrival::NoBuffer(since) => self.starved = Some(since),
                Arrival::Nothing => break,
                Arrival::Delayed => {
                    work += 1;
                    break;
                }
                Arrival::Ended => {
                    self.finishing = true;
                    break;
                }
                Arrival::Cut => {
                    return (
                        work + 1,
                        Some(LaneClosed::Failed {
                            errno: libc::ECONNRESET,
                        }),
                    );
                }
            }
        }
        if self.tx.is_cut() {
            return (
                work + 1,
                Some(LaneClosed::Failed {
                    errno: libc::ECONNRESET,
                }),
            );
        }
        let low = self.queue.len() <= QUEUE_FRAMES_MAX / 2;
        if self.refused && low && !self.finishing && *room > 0 {
            self.refused = false;
            *room -= 1;
            work += 1;
            out.push(LaneEvent::Writable { lane: self.id });
        }
        if self.finishing && self.queue.is_empty() {
            if !self.ended {
                self.ended = true;
                work += 1;
                self.tx.end();
            }
            if self.rx.has_ended() {
                return (work + 1, Some(LaneClosed::Finished));
            }
        }
        (work, None)
    }

    fn starves(&mut self) -> bool {
        if self.starved.is_some_and(|since| self.pools.relieved(since)) {
            self.starved = None;
        }
        self.starved.is_some()
    }
}

/// A buffer with a copy of `bytes`, or since when there is none.
fn land(pools: &FramePools, bytes: &[u8]) -> Result<Frame, Relief> {
    pools.copy(bytes).map_or_else(
        || {
            let since = pools.starve();
            // Once more: a buffer that came back before `starve` woke nobody.
            pools.copy(bytes).ok_or(since)
        },
        Ok,
    )
}

impl LaneGroup for LoopbackLanes {
    type Endpoint = LoopbackEndpoint;

    fn add(
        &mut self,
        mut endpoint: LoopbackEndpoint,
        pools: &FramePools,
    ) -> Result<LaneId, AddError> {
        let id = LaneId(self.next_id);
        self.next_id =
            id.0.checked_add(1)
                .ok_or(AddError::GroupFull(u32::MAX as usize))?;
        endpoint.added = true;
        endpoint.tx.sender_is(&self.waker);
        endpoint.rx.receiver_is(&self.waker);
        pools.wake_on_relief(&self.waker);
        self.lanes.push(Lane {
            id,
            tx: Arc::clone(&endpoint.tx),
            rx: Arc::clone(&endpoint.rx),
            pools: pools.clone(),
            queue: VecDeque::with_capacity(QUEUE_FRAMES_MAX),
            queued_bytes: 0,
            refused: false,
            finishing: false,
            ended: false,
            starved: None,
            wire: WireBytes::default(),
        });
        Ok(id)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        let lane = self
            .lanes
            .iter_mut()
            .find(|known| known.id == lane && !known.finishing);
        let Some(lane) = lane else {
            return Err(Refused {
                frame,
                reason: RefusedReason::Unknown,
            });
        };
        let too_long = lane.queued_bytes + frame.len() > QUEUE_BYTES_MAX && !lane.queue.is_empty();
        if lane.queue.len() >= QUEUE_FRAMES_MAX || too_long {
            lane.refused = true;
            return Err(Refused {
                frame,
                reason: RefusedReason::Full,
            });
        }
        lane.queued_bytes += frame.len();
        lane.queue.push_back(frame);
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        let mut room = out.capacity() - out.len();
        let mut work = 0;
        let mut at = 0;
        while at < self.lanes.len() {
            let (done, over) = self.lanes[at].serve(&mut room, out);
            work += done;
            match over {
                Some(reason) => self.remove(at, reason),
                None => at += 1,
            }
        }
        while room > 0
            && let Some((lane, reason)) = self.closed.pop_front()
        {
            room -= 1;
            work += 1;
            out.push(LaneEvent::Closed { lane, reason });
        }
        if work == 0 {
            Polled::Idle
        } else {
            Polled::Busy(work)
        }
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.lane(lane).map_or(0, |lane| lane.queued_bytes)
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.lane(lane).map(|lane| lane.wire).unwrap_or_default()
    }

    fn stats(&self, _lane: LaneId) -> Option<LaneStats> {
        None
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(at) = self.lanes.iter().position(|known| known.id == lane) {
            self.remove(at, LaneClosed::Local);
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.iter_mut().find(|known| known.id == lane) {
            lane.finishing = true;
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waker.as_fd())
    }

    fn prepare_park(&mut self) -> bool {
        // First clear, then look: what changes after the look rings the waker.
        self.waker.clear();
        self.closed.is_empty()
            && self.lanes.iter_mut().all(|lane| {
                let receives = !lane.starves() && lane.rx.has_news(lane.finishing);
                let sends = lane
                    .queue
                    .front()
                    .is_some_and(|frame| lane.tx.has_room(frame.len()));
                let ends = lane.finishing && lane.queue.is_empty() && !lane.ended;
                let tells = lane.refused && lane.queue.len() <= QUEUE_FRAMES_MAX / 2;
                !(receives || sends || ends || tells || lane.tx.is_cut())
            })
    }
}

impl Drop for LoopbackLanes {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.tx.cut();
            lane.rx.cut();
        }
    }
}
