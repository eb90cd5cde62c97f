//! The strangers in the door, and how many there may be.
//!
//! In: connections. Out: each of them when its turn comes, and whom to send away. Promises: at most
//! [`STRANGERS_MAX`] who dialled us are under handshake at once, and [`NEIGHBOURS_MAX`] from one address;
//! for one more, the one who has stood there longest goes, of that address, or of those addresses that
//! have most. An honest peer is through in a few round trips, so those who say nothing keep nobody out but
//! themselves. Connections that were proven and wait for a lane take no place of theirs: of those there are at most
//! [`PARKED_MAX`], and [`PARKED_NEIGHBOURS_MAX`] from one address.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::stranger::{Stranger, neighbourhood};

/// Strangers at once who dialled us.
pub const STRANGERS_MAX: usize = 256;
/// Those from one address: two sessions' lanes at their most.
pub const NEIGHBOURS_MAX: usize = 128;

/// Peers' connections that wait for their lanes.
pub const PARKED_MAX: usize = 512;
/// Those from one address.
pub const PARKED_NEIGHBOURS_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Lobby {
    strangers: HashMap<u64, Stranger>,
    next: u64,
}

impl Lobby {
    /// The number of the next stranger.
    pub const fn next_id(&self) -> u64 {
        self.next
    }

    /// Lets the next one stand here.
    pub fn add(&mut self, stranger: Stranger) {
        self.strangers.insert(self.next, stranger);
        self.next += 1;
    }

    /// Puts back one who was taken out.
    pub fn put_back(&mut self, id: u64, stranger: Stranger) {
        self.strangers.insert(id, stranger);
    }

    /// Takes one out.
    pub fn take(&mut self, id: u64) -> Option<Stranger> {
        self.strangers.remove(&id)
    }

    /// Drops those for whom it holds no longer.
    pub fn retain(&mut self, mut stays: impl FnMut(&Stranger) -> bool) {
        self.strangers.retain(|_, stranger| stays(stranger));
    }

    /// How many of them dialled us.
    pub fn knocking(&self) -> usize {
        self.knockers().count()
    }

    /// Those for whom it holds.
    pub fn which(&self, holds: impl Fn(&Stranger) -> bool) -> Vec<u64> {
        let which = |(id, one): (&u64, &Stranger)| holds(one).then_some(*id);
        self.strangers.iter().filter_map(which).collect()
    }

    /// How many peers' connections wait here.
    pub fn parked(&self) -> usize {
        let parked = self.strangers.values().filter(|one| one.is_parked());
        parked.count()
    }

    /// May one more of this peer's wait here?
    pub fn has_place(&self, peer: SocketAddr) -> bool {
        let here = neighbourhood(peer);
        let is_here = |one: &Stranger| one.is_parked() && neighbourhood(one.peer) == here;
        self.parked() < PARKED_MAX && self.which(is_here).len() < PARKED_NEIGHBOURS_MAX
    }

    fn knockers(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        let knocking = self.strangers.iter().filter(|(_, one)| one.knocks());
        knocking.map(|(id, one)| (*id, neighbourhood(one.peer)))
    }

    /// Who has to go before one more from `peer` may come in.
    pub fn crowded_out(&mut self, peer: SocketAddr) -> Option<Stranger> {
        let here = neighbourhood(peer);
        // How many of each address, and the first of them.
        let mut counts: HashMap<u128, (usize, u64)> = HashMap::new();
        for (id, there) in self.knockers() {
            let (count, first) = counts.entry(there).or_insert((0, id));
            *count += 1;
            *first = id.min(*first);
        }
        let neighbours = counts.get(&here).copied();
        let all: usize = counts.values().map(|(count, _)| count).sum();
        let (_, first) = match neighbours {
            Some((count, first)) if count >= NEIGHBOURS_MAX => (count, first),
            _ if all >= STRANGERS_MAX => counts
                .into_values()
                .max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first)))?,
            _ => return None,
        };
        self.take(first)
    }

    /// Those whose time is up.
    pub fn late(&mut self, now_ns: u64) -> Vec<Stranger> {
        let late = |(id, one): (&u64, &Stranger)| (one.deadline_ns < now_ns).then_some(*id);
        let ids: Vec<u64> = self.strangers.iter().filter_map(late).collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::OwnedFd;

    use super::super::stranger::Side;
    use super::*;

    fn stranger(peer: [u8; 4]) -> Stranger {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Stranger {
            fd: OwnedFd::from(socket),
            tls: None,
            node: None,
            was_parked: false,
            side: Side::Silent,
            unsent: VecDeque::new(),
            deadline_ns: 0,
            peer: SocketAddr::from((peer, 1)),
        }
    }

    /// One from `peer` comes in; says who had to go.
    fn come(lobby: &mut Lobby, peer: [u8; 4]) -> Option<SocketAddr> {
        let gone = lobby.crowded_out(SocketAddr::from((peer, 2)));
        lobby.add(stranger(peer));
        gone.map(|one| one.peer)
    }

    #[test]
    fn a_crowd_from_one_address_pushes_out_its_own() {
        let mut lobby = Lobby::default();
        assert_eq!(come(&mut lobby, [10, 0, 0, 1]), None);
        for nth in 0..1000 {
            let gone = come(&mut lobby, [10, 0, 0, 9]);
            assert_eq!(gone.is_some(), nth >= NEIGHBOURS_MAX);
            assert_ne!(gone, Some(SocketAddr::from(([10, 0, 0, 1], 1))));
        }
        assert_eq!(lobby.knocking(), NEIGHBOURS_MAX + 1);
    }

    #[test]
    fn a_crowd_from_many_addresses_pushes_out_those_with_most() {
        let mut lobby = Lobby::default();
        assert_eq!(come(&mut lobby, [10, 0, 0, 1]), None);
        for nth in 0..10_000u32 {
            let gone = come(&mut lobby, [10, 1, 0, (nth % 100) as u8]);
            assert_ne!(gone, Some(SocketAddr::from(([10, 0, 0, 1], 1))));
            assert!(lobby.knocking() <= STRANGERS_MAX);
        }
        // Where each has one, the one who came first goes.
        let mut lobby = Lobby::default();
        for nth in 0..1000u32 {
            let [_, _, high, low] = nth.to_be_bytes();
            let gone = come(&mut lobby, [10, 1, high, low]);
            let first = nth.checked_sub(STRANGERS_MAX as u32).map(u32::to_be_bytes);
            let first = first.map(|[_, _, high, low]| SocketAddr::from(([10, 1, high, low], 1)));
            assert_eq!(gone, first);
        }
    }

    #[test]
    fn connections_that_wait_are_counted_apart_and_bounded() {
        use crate::transport::NodeId;
        use crate::transport::handshake::{Acceptor, Proof};
        use crate::transport::wire::keys::Psk;
        let mut lobby = Lobby::default();
        let mut park = |peer: [u8; 4]| {
            if !lobby.has_place(SocketAddr::from((peer, 2))) {
                return false;
            }
            let node = NodeId::of_name("b");
            let acceptor = Acceptor::parked(Proof::Node(Psk([0; 32])), node, 0);
            lobby.add(Stranger {
                side: Side::Parked(Box::new(acceptor)),
                ..stranger(peer)
            });
            true
        };
        for nth in 0..=PARKED_NEIGHBOURS_MAX {
            assert_eq!(park([10, 0, 0, 1]), nth < PARKED_NEIGHBOURS_MAX);
        }
        for nth in PARKED_NEIGHBOURS_MAX..=PARKED_MAX {
            let [_, _, high, low] = (nth as u32).to_be_bytes();
            assert_eq!(park([10, 1, high, low]), nth < PARKED_MAX);
        }
        assert_eq!((lobby.parked(), lobby.knocking()), (PARKED_MAX, 0));
        // None of them goes for a stranger.
        assert_eq!(come(&mut lobby, [10, 0, 0, 1]), None);
        assert_eq!(lobby.parked(), PARKED_MAX);
    }
}
