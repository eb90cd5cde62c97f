//! RDMA where it is not built in: a configuration that wants it is refused.

use std::convert::Infallible;

use anyhow::{Result, bail};
use dwcp_drivers::beside::Absent;

use super::super::mailbox::Sender;
use super::super::messages::{LaneUp, ToWorker};
use crate::config::{Hugepages, RdmaConfig};
use crate::transport::handshake::Way;

/// There are none.
pub type Group = Absent;
/// There is none.
pub type Established = Infallible;

/// There is none.
pub enum Opened {}

/// There is none.
pub enum Seat {}

impl Opened {
    /// Refuses.
    pub fn open(_: &RdmaConfig, _: Hugepages) -> Result<Self> {
        bail!("this build has no RDMA: build with --features rdma, or remove the table");
    }

    pub fn way(&self) -> Way {
        match *self {}
    }

    pub fn seat(&self) -> Seat {
        match *self {}
    }

    pub fn expect(&self, _: LaneUp, _: Sender<ToWorker>) {
        match *self {}
    }

    pub fn connect(&self, _: LaneUp, _: Sender<ToWorker>) {
        match *self {}
    }
}

impl Seat {
    pub fn group(self) -> Result<Group> {
        match self {}
    }
}

/// There is nothing to make one of.
pub fn endpoint(end: Established) -> Result<Infallible> {
    match end {}
}
