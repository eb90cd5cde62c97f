//! Room for a session before it is opened.
//!
//! In: what a session could agree to, were there memory enough. Out: what it may agree to, with the memory for that
//! reserved. Promises: an offer is cut only when memory is short, history first, then window, and never below what is
//! of use; what is refused takes nothing.

use dwcp_api::Failure;

use super::budget::{MemoryBudget, Reservation};
use super::messages::Offer;
use crate::session::Fault;
use crate::session::memory::SessionSize;

/// See the module.
#[derive(Debug)]
pub struct Room {
    /// What the session may agree to.
    pub offer: Offer,
    /// The memory that it then takes at most.
    pub memory: Reservation,
}

impl Room {
    /// What a session is like that has all that is offered.
    #[must_use]
    pub const fn wish(offer: Offer, is_source: bool, encoders: usize) -> SessionSize {
        SessionSize {
            is_source,
            encoders,
            store_bytes: offer.store_bytes,
            window_limit_bytes: offer.window_limit_bytes,
        }
    }

    /// Reserves what a session with this offer takes, or with a smaller one. `encoders` are the threads beside the
    /// workers.
    ///
    /// # Errors
    /// [`Failure::Limit`], when not even the least is left.
    pub fn reserve(
        budget: &MemoryBudget,
        offer: Offer,
        is_source: bool,
        encoders: usize,
    ) -> Result<Self, Fault> {
        let wish = Self::wish(offer, is_source, encoders);
        let least_bytes = wish.least().bytes();
        let fit = |room| wish.fitted(room).map(|size| (size.bytes(), size));
        let Some((memory, size)) = budget.reserve(least_bytes, fit) else {
            return Err(Fault::new(
                Failure::Limit,
                format!(
                    "of {} bytes for all sessions {} are taken and this one takes {least_bytes} at least: wait for \
                     a migration to end, or raise memory_limit_bytes",
                    budget.limit_bytes(),
                    budget.reserved_bytes(),
                ),
            ));
        };
        if size != wish {
            tracing::info!(
                store_bytes = size.store_bytes,
                window_limit_bytes = size.window_limit_bytes,
                "memory is short: a session is opened with smaller limits; raise memory_limit_bytes for more at once"
            );
        }
        let offer = Offer {
            store_bytes: size.store_bytes,
            window_limit_bytes: size.window_limit_bytes,
            ..offer
        };
        Ok(Self { offer, memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_get_less_and_less_until_one_is_refused_and_told_the_cure() {
        let wish = Offer {
            max_version: dwcp_api::Version::V3,
            store_bytes: 208 << 20,
            window_limit_bytes: 48 << 20,
            lanes_v1: 1,
            lanes_v3: 1,
            baselines: false,
        };
        let budget = MemoryBudget::new(2_000_000_000);
        let mut rooms: Vec<Room> = Vec::new();
        let refused = loop {
            match Room::reserve(&budget, wish, rooms.len().is_multiple_of(2), 2) {
                Ok(room) => rooms.push(room),
                Err(fault) => break fault,
            }
            assert!(budget.reserved_bytes() <= budget.limit_bytes());
        };
        assert_eq!(refused.failure, Failure::Limit);
        assert!(
            refused.detail.contains("raise memory_limit_bytes"),
            "{refused}"
        );
        let first = &rooms[0].offer;
        assert_eq!(
            (first.store_bytes, first.window_limit_bytes),
            (wish.store_bytes, wish.window_limit_bytes)
        );
        let last = &rooms[rooms.len() - 1].offer;
        assert!(last.store_bytes < wish.store_bytes, "{last:?}");
        assert!(rooms.len() >= 4, "{} sessions", rooms.len());
        let all: u64 = rooms.iter().map(|room| room.memory.bytes()).sum();
        assert_eq!(all, budget.reserved_bytes());
        rooms.pop();
        assert!(
            Room::reserve(&budget, wish, true, 0).is_ok(),
            "what ended left room"
        );
        drop(rooms);
        assert_eq!(budget.reserved_bytes(), 0);
    }
}
