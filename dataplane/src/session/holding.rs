//! The memory that is reserved for a session, until it is free again.
//!
//! In: what was reserved, the link that is made of it, what of it goes elsewhere. Out: whether it may be given back.
//! Promise: it is not while somebody holds a buffer of the session: a lane that still sends, an encoder at work.

use std::sync::Weak;

use arrayvec::ArrayVec;
use dwcp_hugepages::arena::Arena;

use super::Fault;
use super::link::Link;
use super::memory::SessionSize;
use crate::engine::budget::Reservation;

/// See the module. Dropped, it is given back.
#[derive(Debug)]
pub struct Holding {
    memory: Reservation,
    arenas: ArrayVec<Weak<Arena>, 2>,
}

impl Holding {
    /// Of a session that has taken none of it yet.
    #[must_use]
    pub fn new(memory: Reservation) -> Self {
        Self {
            memory,
            arenas: ArrayVec::new(),
        }
    }

    /// Gives back what a session of this size will not take.
    ///
    /// # Errors
    /// [`Fault`], if it would take more.
    pub fn settle(&mut self, size: &SessionSize) -> Result<(), Fault> {
        let bytes = size.bytes();
        if bytes > self.memory.bytes() {
            return Err(Fault::new(
                dwcp_api::Failure::Protocol,
                "the peer agreed to more memory than it was offered; end the session, the peer is faulty",
            ));
        }
        self.memory.shrink_to(bytes);
        Ok(())
    }

    /// This link is made of it.
    pub fn note(&mut self, link: &Link) {
        let arenas = [&link.pools_out, &link.pools_in].map(|pools| pools.arena());
        self.arenas = arenas.into_iter().map(std::sync::Arc::downgrade).collect();
    }

    /// What `bytes` of it are taken by lives on elsewhere.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Reservation {
        self.memory.split(bytes)
    }

    /// Does nobody hold a buffer any more, the session's link included?
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.arenas.iter().all(|arena| arena.strong_count() == 0)
    }
}
