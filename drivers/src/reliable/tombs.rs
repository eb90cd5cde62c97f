//! Lanes that are over, and peers that may not know it.
//!
//! Comes in: the last datagram of each lane, and datagrams for lanes that are gone. Goes out: that last
//! datagram, once when both sides finished and a few times when not, and a bounded number of times as an
//! answer. Promises: constant
//! memory; an answer is never longer than what it answers, nor more frequent.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::connection::Farewell;
use super::packet::Kind;

/// How long a lane is remembered.
const MEMORY_NS: u64 = 30_000_000_000;
/// Until the last datagram is said again unasked; doubles each time.
const AGAIN_NS: u64 = 20_000_000;
const TIMES: u32 = 4;
const ANSWERS_MAX: u32 = 64;

struct Tomb {
    farewell: Farewell,
    said: u32,
    answers: u32,
    due_ns: Option<u64>,
    forget_ns: u64,
}

/// The lanes of one group that are over.
pub(super) struct Tombs {
    tombs: VecDeque<Tomb>,
    tombs_max: usize,
    /// Nothing is to be said or forgotten before.
    due_ns: u64,
}

impl Tombs {
    pub(super) fn new(tombs_max: usize) -> Self {
        Self {
            tombs: VecDeque::with_capacity(tombs_max),
            tombs_max,
            due_ns: u64::MAX,
        }
    }

    /// Remembers a lane; the oldest is forgotten when there are too many.
    pub(super) fn bury(&mut self, now_ns: u64, farewell: Farewell) {
        if self.tombs.len() >= self.tombs_max {
            self.tombs.pop_front();
        }
        let due_ns = farewell.peer.is_some().then_some(now_ns);
        self.tombs.push_back(Tomb {
            farewell,
            said: 0,
            answers: 0,
            due_ns,
            forget_ns: now_ns + MEMORY_NS,
        });
        self.look();
    }

    /// A datagram came for a lane that the group does not have. False: it never had it.
    pub(super) fn hear(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        connection: u64,
        kind: Kind,
    ) -> bool {
        let mut tombs = self.tombs.iter_mut().rev();
        let Some(tomb) = tombs.find(|tomb| tomb.farewell.connection == connection) else {
            return false;
        };
        // Two sides that are both over have nothing to say to each other.
        let asks = !matches!(kind, Kind::Close | Kind::Done);
        if asks && tomb.answers < ANSWERS_MAX {
            tomb.answers += 1;
            tomb.farewell.peer.get_or_insert(from);
            tomb.due_ns = Some(now_ns);
            self.due_ns = self.due_ns.min(now_ns);
        }
        true
    }

    /// When something is to be said or forgotten.
    pub(super) fn due_ns(&self) -> u64 {
        self.due_ns
    }

    fn look(&mut self) {
        let due = self.tombs.iter().filter_map(|tomb| tomb.due_ns);
        let forget = self.tombs.front().map(|tomb| tomb.forget_ns);
        self.due_ns = due.chain(forget).min().unwrap_or(u64::MAX);
    }

    /// Says what is due with `send`, as long as it says true. Returns how much it said.
    pub(super) fn speak(
        &mut self,
        now_ns: u64,
        mut send: impl FnMut(SocketAddr, &[u8]) -> bool,
    ) -> u32 {
        let mut said = 0;
        while self
            .tombs
            .pop_front_if(|tomb| tomb.forget_ns <= now_ns)
            .is_some()
        {}
        for tomb in &mut self.tombs {
            let due = tomb.due_ns.is_some_and(|due_ns| due_ns <= now_ns);
            let Some(peer) = tomb.farewell.peer.filter(|_| due) else {
                continue;
            };
            if !send(peer, &tomb.farewell.datagram[..tomb.farewell.len]) {
                break;
            }
            said += 1;
            tomb.said += 1;
            let unasked = !tomb.farewell.finished && tomb.said < TIMES;
            tomb.due_ns = unasked.then(|| now_ns + (AGAIN_NS << tomb.said));
        }
        self.look();
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reliable::packet::CLOSE_DATAGRAM_BYTES;

    const SECOND: u64 = 1_000_000_000;

    fn farewell(connection: u64, peer: Option<u16>, finished: bool) -> Farewell {
        Farewell {
            connection,
            peer: peer.map(at),
            datagram: [connection as u8; CLOSE_DATAGRAM_BYTES],
            len: 30,
            finished,
        }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn said(tombs: &mut Tombs, now_ns: u64) -> Vec<(u16, u8)> {
        let mut said = Vec::new();
        tombs.speak(now_ns, |to, datagram| {
            assert_eq!(datagram.len(), 30);
            said.push((to.port(), datagram[0]));
            true
        });
        said
    }

    #[test]
    fn a_close_is_said_a_few_times_and_a_finish_once_and_on_request() {
        let mut tombs = Tombs::new(4);
        tombs.bury(0, farewell(1, Some(10), false));
        tombs.bury(0, farewell(2, Some(20), true));
        let mut all = Vec::new();
        for ms in 0..5000 {
            all.extend(said(&mut tombs, ms * 1_000_000));
        }
        let again = [(10, 1); TIMES as usize - 1];
        assert_eq!(all, [&[(10, 1), (20, 2)], &again[..]].concat());
        assert!(tombs.hear(5 * SECOND, at(20), 2, Kind::Packet));
        assert_eq!(said(&mut tombs, 5 * SECOND), [(20, 2)]);
        assert_eq!(said(&mut tombs, 6 * SECOND), []);
        assert!(tombs.hear(6 * SECOND, at(20), 2, Kind::Close));
        assert_eq!(
            said(&mut tombs, 6 * SECOND),
            [],
            "two that are over stay silent"
        );
        assert!(!tombs.hear(6 * SECOND, at(20), 3, Kind::Packet));
    }

    #[test]
    fn one_that_never_knew_its_peer_answers_who_asks() {
        let mut tombs = Tombs::new(4);
        tombs.bury(0, farewell(1, None, false));
        assert_eq!(said(&mut tombs, SECOND), []);
        assert!(tombs.hear(SECOND, at(7), 1, Kind::Hello));
        assert_eq!(said(&mut tombs, SECOND), [(7, 1)]);
    }

    #[test]
    fn answers_memory_and_time_are_bounded() {
        let mut tombs = Tombs::new(2);
        for connection in 1..=3 {
            tombs.bury(0, farewell(connection, Some(1), true));
        }
        assert!(
            !tombs.hear(0, at(1), 1, Kind::Packet),
            "the oldest is forgotten"
        );
        assert_eq!(said(&mut tombs, 0).len(), 2, "each once");
        let mut answers = 0;
        for _ in 0..1000 {
            tombs.hear(0, at(1), 2, Kind::Packet);
            answers += said(&mut tombs, 0).len();
        }
        assert_eq!(answers, ANSWERS_MAX as usize);
        assert_eq!(tombs.due_ns(), MEMORY_NS);
        said(&mut tombs, MEMORY_NS);
        assert_eq!(tombs.due_ns(), u64::MAX);
        assert!(!tombs.hear(MEMORY_NS, at(1), 3, Kind::Packet));
    }

    #[test]
    fn a_port_without_room_is_asked_again() {
        let mut tombs = Tombs::new(2);
        tombs.bury(0, farewell(1, Some(1), false));
        assert_eq!(tombs.speak(0, |_, _| false), 0);
        assert_eq!(tombs.due_ns(), 0);
        assert_eq!(said(&mut tombs, 0), [(1, 1)]);
    }
}
