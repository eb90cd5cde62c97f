//! DPDK where it is not built in: a configuration that wants it is refused.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Result, bail};
use dwcp_drivers::beside::Absent;

use crate::config::{DpdkConfig, Hugepages};
use crate::transport::handshake::{Guard, LaneSecret, Way};

/// There are none.
pub type Group = Absent;

/// There is none.
pub enum Opened {}

/// There is none.
pub enum Seat {}

impl Opened {
    /// Refuses.
    pub fn open(_: &DpdkConfig, _: Hugepages, _: usize) -> Result<Self> {
        bail!("this build has no DPDK: build with --features dpdk, or remove the table");
    }

    pub fn way(&self, _: usize) -> Option<Way> {
        match *self {}
    }

    pub fn seats(&mut self) -> std::iter::Empty<Seat> {
        match *self {}
    }

    pub fn tend(&mut self) {
        match *self {}
    }
}

impl Seat {
    pub fn group(self) -> Result<Group> {
        match self {}
    }
}

/// Refuses.
pub fn endpoint(_: Option<SocketAddr>, _: &LaneSecret, _: Guard) -> Result<Infallible> {
    bail!("this build has no DPDK, and a lane over it was agreed");
}
