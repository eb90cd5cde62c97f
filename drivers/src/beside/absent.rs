//! Back ends that are not there.
//!
//! `None` stands for one that is built in and not configured, [`Absent`] for one that is not built in: no
//! endpoint of it can be made, so no lane of it either.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;

use crate::frame::{Frame, FramePools};
use crate::lane::{
    AddError, LaneEvent, LaneGroup, LaneId, LaneStats, Polled, Refused, RefusedReason, WireBytes,
};

/// See the module. There is no value of it.
#[derive(Debug)]
pub enum Absent {}

impl LaneGroup for Absent {
    type Endpoint = Infallible;

    fn add(&mut self, _: Infallible, _: &FramePools) -> Result<LaneId, AddError> {
        match *self {}
    }

    fn submit(&mut self, _: LaneId, _: Frame) -> Result<(), Refused> {
        match *self {}
    }

    fn poll(&mut self, _: &mut Vec<LaneEvent>) -> Polled {
        match *self {}
    }

    fn backlog_bytes(&self, _: LaneId) -> usize {
        match *self {}
    }

    fn wire_bytes(&self, _: LaneId) -> WireBytes {
        match *self {}
    }

    fn stats(&self, _: LaneId) -> Option<LaneStats> {
        match *self {}
    }

    fn close(&mut self, _: LaneId) {
        match *self {}
    }

    fn finish(&mut self, _: LaneId) {
        match *self {}
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        match *self {}
    }

    fn prepare_park(&mut self) -> bool {
        match *self {}
    }
}

impl<G: LaneGroup> LaneGroup for Option<G> {
    type Endpoint = G::Endpoint;

    fn add(&mut self, endpoint: G::Endpoint, pools: &FramePools) -> Result<LaneId, AddError> {
        let why = "this worker has no such back end: configure it";
        let group = self.as_mut().ok_or(AddError::WrongEndpoint(why))?;
        group.add(endpoint, pools)
    }

    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused> {
        match self {
            Some(group) => group.submit(lane, frame),
            None => Err(Refused {
                frame,
                reason: RefusedReason::Unknown,
            }),
        }
    }

    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled {
        self.as_mut().map_or(Polled::Idle, |group| group.poll(out))
    }

    fn backlog_bytes(&self, lane: LaneId) -> usize {
        self.as_ref().map_or(0, |group| group.backlog_bytes(lane))
    }

    fn wire_bytes(&self, lane: LaneId) -> WireBytes {
        self.as_ref()
            .map_or_else(WireBytes::default, |group| group.wire_bytes(lane))
    }

    fn stats(&self, lane: LaneId) -> Option<LaneStats> {
        self.as_ref().and_then(|group| group.stats(lane))
    }

    fn pace(&mut self, lane: LaneId, bytes_per_s: u64) {
        if let Some(group) = self {
            group.pace(lane, bytes_per_s);
        }
    }

    fn learn_anew(&mut self, lane: LaneId) {
        if let Some(group) = self {
            group.learn_anew(lane);
        }
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(group) = self {
            group.close(lane);
        }
    }

    fn finish(&mut self, lane: LaneId) {
        if let Some(group) = self {
            group.finish(lane);
        }
    }

    fn park_fd(&self) -> Option<BorrowedFd<'_>> {
        self.as_ref().and_then(LaneGroup::park_fd)
    }

    fn prepare_park(&mut self) -> bool {
        self.as_mut().is_none_or(LaneGroup::prepare_park)
    }
}
