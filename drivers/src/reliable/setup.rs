//! How the two sides of a lane meet: one round trip.
//!
//! Comes in: an endpoint, and the peer's HELLO or WELCOME. Goes out: the keys of the connection, how
//! long its datagrams are, and how much the peer takes at first. Promises: both sides prove that they
//! have the secret before any memory is taken for them; each puts random bytes into the keys, so that
//! nothing of an earlier connection can be replayed; the datagrams of the set-up have full length, so that
//! a path that does not carry them is found here.

use super::endpoint::{Meeting, ReliableEndpoint};
use super::packet::{Flags, Header, Kind, Setup, TAG_BYTES, Writer};
use super::seal::{Keys, Role};

/// Every path carries this, and it holds the longest acknowledgement.
pub(super) const PAYLOAD_BYTES_MIN: usize = 1200;
/// Until the first HELLO is repeated; doubles each time.
const RETRY_NS: u64 = 25_000_000;
const RETRY_NS_MAX: u64 = 400_000_000;

/// What both sides agreed on.
pub(super) struct Agreed {
    pub(super) keys: Keys,
    /// The peer has them already.
    pub(super) peer_has_keys: bool,
    /// Length of the longest datagram, both ways.
    pub(super) datagram_bytes: usize,
    /// Stream bytes that the peer takes at first.
    pub(super) window: u32,
    /// When this side's HELLO went out for the first and last time: the answer gives a round trip.
    pub(super) asked_once_ns: Option<u64>,
}

/// One side's part of the set-up.
pub(super) struct SetUp {
    role: Role,
    connection: u64,
    secret: [u8; 32],
    protection: super::Protection,
    keys: Keys,
    own: Setup,
    theirs: Option<Setup>,
    /// A HELLO or a WELCOME is to be sent, from then on.
    due_ns: Option<u64>,
    sent: u32,
    sent_ns: u64,
}

impl SetUp {
    pub(super) fn new(endpoint: &ReliableEndpoint, own: Setup, now_ns: u64) -> Self {
        let role = match endpoint.meeting {
            Meeting::Connect(_) => Role::Initiator,
            Meeting::Accept => Role::Acceptor,
        };
        Self {
            role,
            connection: endpoint.connection,
            secret: endpoint.secret,
            protection: endpoint.protection,
            keys: Keys::of_setup(
                &endpoint.secret,
                endpoint.connection,
                role,
                endpoint.protection,
            ),
            own,
            theirs: None,
            due_ns: (role == Role::Initiator).then_some(now_ns),
            sent: 0,
            sent_ns: 0,
        }
    }

    /// The keys of the set-up itself.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// When a datagram of the set-up is to be sent.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Takes what the peer said; its tag was right. None: nothing new, or nothing that fits.
    pub(super) fn hear(&mut self, now_ns: u64, kind: Kind, body: &[u8]) -> Option<Agreed> {
        let theirs = Setup::parse(body)?;
        let wanted = match self.role {
            Role::Initiator => Kind::Welcome,
            Role::Acceptor => Kind::Hello,
        };
        if kind != wanted || usize::from(theirs.max_payload) < PAYLOAD_BYTES_MIN {
            return None;
        }
        if let Some(known) = self.theirs {
            if self.role == Role::Acceptor && known == theirs {
                // The WELCOME was lost, or is late.
                self.due_ns = Some(now_ns);
            }
            return None;
        }
        self.theirs = Some(theirs);
        let (of_initiator, of_acceptor) = match self.role {
            Role::Initiator => (&self.own.nonce, &theirs.nonce),
            Role::Acceptor => (&theirs.nonce, &self.own.nonce),
        };
        let keys = Keys::of_connection(
            &self.secret,
            self.connection,
            self.role,
            self.protection,
            (of_initiator, of_acceptor),
        );
        self.due_ns = (self.role == Role::Acceptor).then_some(now_ns);
        Some(Agreed {
            keys,
            peer_has_keys: self.role == Role::Initiator,
            datagram_bytes: self.datagram_bytes(),
            window: theirs.window,
            asked_once_ns: (self.sent == 1).then_some(self.sent_ns),
        })
    }

    /// The longest datagram that both sides carry, as far as that is known.
    fn datagram_bytes(&self) -> usize {
        let theirs = self.theirs.map_or(u16::MAX, |theirs| theirs.max_payload);
        usize::from(self.own.max_payload.min(theirs))
    }

    /// Writes the datagram that is due, and returns its length.
    pub(super) fn write(&mut self, now_ns: u64, buf: &mut [u8]) -> usize {
        let len = self.datagram_bytes();
        let Some(datagram) = buf.get_mut(..len) else {
            return 0;
        };
        let kind = match self.role {
            Role::Initiator => Kind::Hello,
            Role::Acceptor => Kind::Welcome,
        };
        let header = Header {
            kind,
            flags: Flags::default(),
            connection: self.connection,
            number: 0,
        };
        let mut writer = Writer::new(datagram);
        header.write(&mut writer);
        self.own.write(&mut writer, len);
        debug_assert_eq!(writer.written() + TAG_BYTES, len);
        self.keys.seal(0, len - TAG_BYTES, datagram);
        self.due_ns = match self.role {
            // The acceptor only answers.
            Role::Acceptor => None,
            Role::Initiator => {
                let wait_ns = (RETRY_NS << self.sent.min(10)).min(RETRY_NS_MAX);
                Some(now_ns + wait_ns)
            }
        };
        self.sent = self.sent.saturating_add(1);
        self.sent_ns = now_ns;
        len
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::reliable::Protection;

    fn side(meeting: Meeting, max_payload: u16, nonce: u8) -> SetUp {
        let endpoint = ReliableEndpoint {
            meeting,
            connection: 9,
            secret: [3; 32],
            protection: Protection::Sealed,
        };
        let own = Setup {
            max_payload,
            window: 1000 + u32::from(nonce),
            nonce: [nonce; 16],
        };
        SetUp::new(&endpoint, own, 5)
    }

    fn connecting(max_payload: u16) -> SetUp {
        let peer = SocketAddr::from(([10, 0, 0, 1], 1));
        side(Meeting::Connect(peer), max_payload, 1)
    }

    /// What `from` sends, as `to` hears it.
    fn tell(from: &mut SetUp, to: &mut SetUp, now_ns: u64) -> Option<(usize, Option<Agreed>)> {
        from.due_ns().filter(|due_ns| *due_ns <= now_ns)?;
        let mut buf = [0xee; 9000];
        let len = from.write(now_ns, &mut buf);
        let header = Header::parse(&buf[..len]).unwrap();
        let body = to.keys().open(header.number, &mut buf[..len]).unwrap();
        Some((len, to.hear(now_ns, header.kind, body)))
    }

    #[test]
    fn one_round_trip_gives_both_the_same_keys() {
        let (mut a, mut b) = (connecting(8900), side(Meeting::Accept, 1472, 2));
        assert!(
            tell(&mut b, &mut a, 5).is_none(),
            "the acceptor only answers"
        );
        let (len, at_b) = tell(&mut a, &mut b, 5).unwrap();
        let at_b = at_b.unwrap();
        assert_eq!((len, at_b.datagram_bytes, at_b.window), (8900, 1472, 1001));
        assert!(!at_b.peer_has_keys);
        let (len, at_a) = tell(&mut b, &mut a, 2005).unwrap();
        let at_a = at_a.unwrap();
        assert_eq!((len, at_a.datagram_bytes, at_a.window), (1472, 1472, 1002));
        assert_eq!((at_a.asked_once_ns, at_a.peer_has_keys), (Some(5), true));
        assert_eq!((a.due_ns(), b.due_ns()), (None, None));
        let mut datagram = vec![0; 60];
        at_a.keys.seal(4, 20, &mut datagram);
        assert!(at_b.keys.open(4, &mut datagram).is_ok());
    }

    #[test]
    fn lost_datagrams_are_said_again_and_late_ones_change_nothing() {
        let (mut a, mut b) = (connecting(1472), side(Meeting::Accept, 1472, 2));
        let mut nobody = side(Meeting::Accept, 1472, 3);
        tell(&mut a, &mut nobody, 5).unwrap();
        assert!(a.due_ns().unwrap() > 5);
        let later_ns = 1_000_000_000;
        assert!(tell(&mut a, &mut b, later_ns).unwrap().1.is_some());
        // The WELCOME is lost, so the HELLO comes again, and the answer once for each.
        b.write(later_ns, &mut [0; 1472]);
        assert!(tell(&mut a, &mut b, 2 * later_ns).unwrap().1.is_none());
        let agreed = tell(&mut b, &mut a, 2 * later_ns).unwrap().1.unwrap();
        assert_eq!(
            agreed.asked_once_ns, None,
            "which HELLO it answers is unknown"
        );
        assert!(tell(&mut b, &mut a, 3 * later_ns).is_none());
        // Another HELLO than the first is not listened to.
        let mut other = side(
            Meeting::Connect(SocketAddr::from(([1, 1, 1, 1], 1))),
            1472,
            8,
        );
        assert!(tell(&mut other, &mut b, later_ns).unwrap().1.is_none());
        assert_eq!(b.due_ns(), None);
    }

    #[test]
    fn a_path_too_small_for_lanes_is_refused() {
        let (mut a, mut b) = (connecting(1199), side(Meeting::Accept, 1472, 2));
        assert!(tell(&mut a, &mut b, 5).unwrap().1.is_none());
    }
}
