//! Two back ends in one worker, as one group of lanes.
//!
//! Comes in: two groups; endpoints of either. Goes out: one group that promises what [`crate::lane`]
//! does. A lane's number says whose it is: the lowest bit is 1 for the second group's. Promises: nothing is
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

/// In a lane's number: 1 for the second group.
const SECOND: u32 = 1;

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
    LaneId(lane.0 >> 1)
}

fn outer(lane: LaneId, group: u32) -> LaneId {
    LaneId(lane.0 << 1 | group)
}

/// A group that has given out half of all numbers can give out no more here.
fn checked(lane: LaneId, group: u32) -> Result<LaneId, AddError> {
    if lane.0 > u32::MAX >> 1 {
        let why = "this worker's back end has used up its lane numbers: restart the data plane";
        return Err(AddError::WrongEndpoint(why));
    }
    Ok(outer(lane, group))
}

fn mark(event: &mut LaneEvent, group: u32) {
    match event {
        LaneEvent::Frame { lane, .. }
        | LaneEvent::Closed { lane, .. }
        | LaneEvent::Writable { lane } => *lane = outer(*lane, group),
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
        let before = out.len();
        let polled = self.first.poll(out);
        out[before..].iter_mut().for_each(|event| mark(event, 0));
        polled
    }

    fn poll_second(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        let before = out.len();
        let polled = self.second.poll(out);
        out[before..]
            .iter_mut()
            .for_each(|event| mark(event, SECOND));
        polled
    }
}

impl<A: LaneGroup, B: LaneGroup> LaneGroup for Beside<A, B> {
    type Endpoint = Either<A::Endpoint, B::Endpoint>;

    fn add(&mut self, endpoint: Self::Endpoint, pools: &FramePools) -> Result<LaneId, AddError> {
        match endpoint {
            Either::First(endpoint) => checked(self.first.add(endpoint, pools)?, 0),
            Either::Second(endpoint) => checked(self.second.add(endpoint, pools)?, SECOND),
        }
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        if is_second(lane) {
            self.second.submit(inner(lane), frame)
        } else {
            self.first.submit(inner(lane), frame)
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
            self.first.backlog_bytes(inner(lane))
        }
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        if is_second(lane) {
            self.second.wire_bytes(inner(lane))
        } else {
            self.first.wire_bytes(inner(lane))
        }
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        if is_second(lane) {
            self.second.stats(inner(lane))
        } else {
            self.first.stats(inner(lane))
        }
    }

    fn pace(&mut self, lane: LaneId, bytes_per_s: u64) {
        if is_second(lane) {
            self.second.pace(inner(lane), bytes_per_s);
        } else {
            self.first.pace(inner(lane), bytes_per_s);
        }
    }

    fn learn_anew(&mut self, lane: LaneId) {
        if is_second(lane) {
            self.second.learn_anew(inner(lane));
        } else {
            self.first.learn_anew(inner(lane));
        }
    }

    fn close(&mut self, lane: LaneId) {
        if is_second(lane) {
            self.second.close(inner(lane));
        } else {
            self.first.close(inner(lane));
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if is_second(lane) {
            self.second.finish(inner(lane));
        } else {
            self.first.finish(inner(lane));
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
    fn three_stand_beside_each_other() {
        let pools = pools();
        let loopback = || LoopbackLanes::new().unwrap();
        let (mut far, pair) = (loopback(), Beside::new(loopback(), loopback()).unwrap());
        let mut three = Beside::new(loopback(), pair).unwrap();
        let mut lanes = Vec::new();
        for which in 0..3 {
            let (near, end) = LoopbackEndpoint::pair();
            let near = match which {
                0 => Either::First(near),
                1 => Either::Second(Either::First(near)),
                _ => Either::Second(Either::Second(near)),
            };
            lanes.push(three.add(near, &pools).unwrap());
            let end = far.add(end, &pools).unwrap();
            far.submit(end, pools.copy(&[which]).unwrap()).unwrap();
        }
        let mut got = Vec::new();
        let mut events = Vec::with_capacity(8);
        for _ in 0..100 {
            far.poll(&mut Vec::with_capacity(8));
            three.poll(&mut events);
            for event in events.drain(..) {
                if let LaneEvent::Frame { lane, frame } = event {
                    got.push((frame.bytes()[0], lane));
                }
            }
        }
        got.sort();
        let wanted: Vec<_> = (0..3).map(|at| (at as u8, lanes[at])).collect();
        assert_eq!(got, wanted);
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
            .submit(outer(LaneId(0), SECOND), pools.copy(b"x").unwrap())
            .unwrap_err();
        assert_eq!(refused.reason, RefusedReason::Unknown);
        assert_eq!(two.poll(&mut Vec::with_capacity(1)), Polled::Idle);
        assert!(two.prepare_park());
    }
}
