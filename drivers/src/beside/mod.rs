//! Two back ends in one worker, as one group of lanes.
//!
//! Comes in: two groups; endpoints of either. Goes out: one group that promises what [`crate::lane`]
//! does. A lane's number says whose it is: the second group's have the top bit set. Promises: nothing is
//! copied and nothing is looked up on the way through; neither group starves the other of events; a
//! worker asleep on the one descriptor wakes for both.
//!
//! A back end that is not configured is `None`, one that is not built in is [`Absent`].

mod absent;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

pub use absent::Absent;

use crate::frame::{Frame, FramePools};
use crate::lane::{AddError, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, WireBytes};

/// Marks the lanes of the second group.
const SECOND: u32 = 1 << 31;

/// An endpoint of the first back end or of the second.
#[derive(Debug)]
pub enum Either<A, B> {
    /// Of the first.
    First(A),
    /// Of the second.
    Second(B),
}

/// See the module.
#[derive(Debug)]
pub struct Beside<A, B> {
    first: A,
    second: B,
    /// Whose turn it is to be polled first.
    second_leads: bool,
    /// Readable when one of the two is.
    both: OwnedFd,
}

fn is_second(lane: LaneId) -> bool {
    lane.0 & SECOND != 0
}

fn inner(lane: LaneId) -> LaneId {
    LaneId(lane.0 & !SECOND)
}

fn outer(lane: LaneId) -> LaneId {
    LaneId(lane.0 | SECOND)
}

/// A group that has given out half of all numbers can give out no more here.
fn within(lane: LaneId) -> Option<LaneId> {
    (lane.0 & SECOND == 0).then_some(lane)
}

fn mark(event: &mut LaneEvent) {
    match event {
        LaneEvent::Frame { lane, .. }
        | LaneEvent::Closed { lane, .. }
        | LaneEvent::Writable { lane } => *lane = outer(*lane),
    }
}

impl<A: LaneGroup, B: LaneGroup> Beside<A, B> {
    /// Both groups as one.
    ///
    /// # Errors
    /// When the kernel has no descriptor to give.
    pub fn new(first: A, second: B) -> std::io::Result<Self> {
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [first.park_fd(), second.park_fd()].into_iter().flatten() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&both, fd, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            first,
            second,
            second_leads: false,
            both,
        })
    }

    fn poll_first(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.first.poll(out)
    }

    fn poll_second(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        let before = out.len();
        let polled = self.second.poll(out);
        out[before..].iter_mut().for_each(mark);
        polled
    }
}

impl<A: LaneGroup, B: LaneGroup> LaneGroup for Beside<A, B> {
    type Endpoint = Either<A::Endpoint, B::Endpoint>;

    fn add(&mut self, endpoint: Self::Endpoint, pools: &FramePools) -> Result<LaneId, AddError> {
        let spent = AddError::WrongEndpoint("this worker's back end has used up its lane numbers");
        match endpoint {
            Either::First(endpoint) => {
                let lane = self.first.add(endpoint, pools)?;
                within(lane).ok_or(spent)
            }
            Either::Second(endpoint) => {
                let lane = self.second.add(endpoint, pools)?;
                within(lane).map(outer).ok_or(spent)
            }
        }
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        if is_second(lane) {
            self.second.submit(inner(lane), frame)
        } else {
            self.first.submit(lane, frame)
        }
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.second_leads = !self.second_leads;
        let (one, other) = if self.second_leads {
            (self.poll_second(out), self.poll_first(out))
        } else {
            (self.poll_first(out), self.poll_second(out))
        };
        match (one, other) {
            (Polled::Idle, other) => other,
            (one, Polled::Idle) => one,
            (Polled::Busy(one), Polled::Busy(other)) => Polled::Busy(one.saturating_add(other)),
        }
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        if is_second(lane) {
            self.second.backlog_bytes(inner(lane))
        } else {
            self.first.backlog_bytes(lane)
        }
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        if is_second(lane) {
            self.second.wire_bytes(inner(lane))
        } else {
            self.first.wire_bytes(lane)
        }
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        if is_second(lane) {
            self.second.stats(inner(lane))
        } else {
            self.first.stats(lane)
        }
    }

    fn close(&mut self, lane: LaneId) {
        if is_second(lane) {
            self.second.close(inner(lane));
        } else {
            self.first.close(lane);
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if is_second(lane) {
            self.second.finish(inner(lane));
        } else {
            self.first.finish(lane);
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.both.as_fd())
    }

    fn prepare_park(&mut self) -> bool {
        self.first.prepare_park() && self.second.prepare_park()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePoolsConfig;
    use crate::lane::{LaneClosed, RefusedReason};
    use crate::loopback::{LoopbackEndpoint, LoopbackLanes};
    use dwcp_hugepages::arena::BackingPolicy;

    fn pools() -> FramePools {
        FramePools::new(&FramePoolsConfig {
            small: 16,
            medium: 0,
            large: 0,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap()
    }

    type Two = Beside<LoopbackLanes, Option<LoopbackLanes>>;

    #[test]
    fn lanes_of_both_are_told_apart_and_neither_starves() {
        let pools = pools();
        let loopback = || LoopbackLanes::new().unwrap();
        let mut far = loopback();
        let mut two = Two::new(loopback(), Some(loopback())).unwrap();
        let mut ends = Vec::new();
        for second in [false, true] {
            let (near, end) = LoopbackEndpoint::pair();
            let near = if second {
                Either::Second(near)
            } else {
                Either::First(near)
            };
            ends.push((
                two.add(near, &pools).unwrap(),
                far.add(end, &pools).unwrap(),
            ));
        }
        assert_ne!(ends[0].0, ends[1].0);
        for (nth, (near, end)) in ends.iter().enumerate() {
            two.submit(*near, pools.copy(&[nth as u8]).unwrap())
                .unwrap();
            far.submit(*end, pools.copy(&[nth as u8, 9]).unwrap())
                .unwrap();
        }
        let mut got = Vec::new();
        let mut events = Vec::with_capacity(1);
        for _ in 0..100 {
            far.poll(&mut Vec::with_capacity(8));
            two.poll(&mut events);
            for event in events.drain(..) {
                if let LaneEvent::Frame { lane, frame } = event {
                    got.push((lane, frame.bytes().to_vec()));
                }
            }
        }
        got.sort();
        let mut wanted = vec![(ends[0].0, vec![0, 9]), (ends[1].0, vec![1, 9])];
        wanted.sort();
        assert_eq!(got, wanted);
        two.close(ends[1].0);
        for _ in 0..100 {
            two.poll(&mut events);
            for event in events.drain(..) {
                if let LaneEvent::Closed { lane, reason } = event {
                    assert_eq!((lane, reason), (ends[1].0, LaneClosed::Local));
                    return;
                }
            }
        }
        panic!("no end was told");
    }

    #[test]
    fn a_back_end_that_is_not_there_takes_nothing() {
        let pools = pools();
        let mut two = Two::new(LoopbackLanes::new().unwrap(), None).unwrap();
        let (near, _far) = LoopbackEndpoint::pair();
        assert!(matches!(
            two.add(Either::Second(near), &pools),
            Err(AddError::WrongEndpoint(_))
        ));
        let refused = two
            .submit(outer(LaneId(0)), pools.copy(b"x").unwrap())
            .unwrap_err();
        assert_eq!(refused.reason, RefusedReason::Unknown);
        assert_eq!(two.poll(&mut Vec::with_capacity(1)), Polled::Idle);
        assert!(two.prepare_park());
    }
}
