//! Who an event is for: lanes and poller tokens to sessions of one worker.

use std::collections::HashMap;

use dwcp_drivers::lane::LaneId;

use super::poller::Token;
use crate::transport::LaneIx;

/// The session and the place in its bundle that a lane belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The session's slot in the worker.
    pub slot: u32,
    /// The lane's place in the bundle.
    pub lane: LaneIx,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The worker's mailbox.
    Mailbox,
    /// The driver's completion queue.
    Lanes,
    /// A passive socket, by its index in the configuration.
    Passive(u32),
    /// Something of a session: a channel's number or one of the constants of [`Routes`].
    Session {
        /// The session's slot.
        slot: u32,
        /// Which of its descriptors.
        sub: u32,
    },
}

/// Lanes and tokens of one worker. Slots are never used twice, so a late event finds nobody.
#[derive(Debug, Default)]
pub struct Routes {
    lanes: HashMap<LaneId, Route>,
}

const MAILBOX: u64 = u64::MAX;
const LANES: u64 = u64::MAX - 1;
const PASSIVE_SLOT: u32 = u32::MAX - 1;

impl Routes {
    /// A connection that has no channel number yet.
    pub const UNSORTED: u32 = u32::MAX;
    /// The socket on which the hypervisor connects.
    pub const LISTENER: u32 = u32::MAX - 1;

    /// Token of the mailbox.
    pub const MAILBOX_TOKEN: Token = Token(MAILBOX);
    /// Token of the driver.
    pub const LANES_TOKEN: Token = Token(LANES);

    /// Token of something of a session.
    #[must_use]
    pub const fn token(slot: u32, sub: u32) -> Token {
        Token(((slot as u64) << 32) | sub as u64)
    }

    /// Token of a passive socket.
    #[must_use]
    pub const fn passive_token(index: u32) -> Token {
        Self::token(PASSIVE_SLOT, index)
    }

    /// What a token stands for.
    #[must_use]
    pub const fn source(token: Token) -> Source {
        match token.0 {
            MAILBOX => Source::Mailbox,
            LANES => Source::Lanes,
            other => {
                let (slot, sub) = ((other >> 32) as u32, other as u32);
                if slot == PASSIVE_SLOT {
                    Source::Passive(sub)
                } else {
                    Source::Session { slot, sub }
                }
            }
        }
    }

    /// A lane is a session's from now on.
    pub fn add_lane(&mut self, id: LaneId, route: Route) {
        self.lanes.insert(id, route);
    }

    /// What comes from a lane is nobody's from now on.
    pub fn forget_lane(&mut self, id: LaneId) {
        self.lanes.remove(&id);
    }

    /// Whose lane it is.
    #[must_use]
    pub fn lane(&self, id: LaneId) -> Option<Route> {
        self.lanes.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        assert_eq!(Routes::source(Routes::MAILBOX_TOKEN), Source::Mailbox);
        assert_eq!(Routes::source(Routes::LANES_TOKEN), Source::Lanes);
        assert_eq!(Routes::source(Routes::passive_token(3)), Source::Passive(3));
        let source = Routes::source(Routes::token(7, Routes::UNSORTED));
        assert_eq!(
            source,
            Source::Session {
                slot: 7,
                sub: Routes::UNSORTED
            }
        );
    }
}
