//! What a handshake is proven by, and with it where the session's key comes from.
//!
//! | proof | who has it | messages | the session's key |
//! |---|---|---|---|
//! | node | every data plane with the shared key | HELLO, CHALLENGE, PROOF, WELCOME, or as over TLS | made of the shared key |
//! | session | the two ends of one session that met over TLS | the same | that session's |
//! | TLS | the two ends of one TLS connection, known by their certificates | HELLO, CHALLENGE with WELCOME | made of a half from each |
//!
//! Over TLS the nonces of HELLO and CHALLENGE are the halves: nobody else reads them there, and all lanes
//! of a session say the same ones, so that lanes which are opened at once come to one key whichever is
//! done first (a key from the exporter of one connection would be another for each lane). Both halves are
//! in it, so neither side chooses the key. The TLS exporter's secret is the key of the MACs, so that what
//! is said holds for this connection alone. TLS has shown who the initiator is before its HELLO is read:
//! there is no PROOF, and a lane costs no round trip more than with a shared key.
//!
//! A later lane of such a session is proven by the session: HELLO says so, and the keys of the MACs are
//! made of the session's key. It needs no certificate, so a lane comes back while certificates are being
//! replaced; it is of use to nobody but that peer, in that session; and since both nonces go into the
//! proof, what was said on another lane proves nothing.

use super::super::wire::keys::{KeyHalf, Psk, SessionKey};
use super::super::{NodeId, SessionEpoch, SessionId};

/// See the module.
#[derive(Debug, Clone)]
pub enum Proof {
    /// The key that all nodes share.
    Node(Psk),
    /// The key of the session that the lane belongs to.
    Session(SessionKey),
    /// The secret that the exporter of the lane's TLS connection gave.
    Tls(Psk),
}

/// Session, initiator, acceptor and attempt: what a session's key is bound to.
pub type Bound = (SessionId, NodeId, NodeId, SessionEpoch);

impl Proof {
    /// The key of the MACs.
    pub(super) fn mac_key(&self) -> Psk {
        match self {
            Self::Node(psk) | Self::Tls(psk) => psk.clone(),
            Self::Session(key) => key.lane_proof(),
        }
    }

    /// The session's key, once both nonces are known.
    pub(super) fn session_key(&self, bound: Bound, nonces: [&[u8; 32]; 2]) -> SessionKey {
        let (session, initiator, acceptor, epoch) = bound;
        match self {
            Self::Node(psk) => SessionKey::derive(psk, session, initiator, acceptor, epoch),
            Self::Session(key) => key.clone(),
            Self::Tls(_) => {
                let halves = nonces.map(|nonce| KeyHalf(*nonce));
                let halves = [&halves[0], &halves[1]];
                SessionKey::of_halves(halves, session, initiator, acceptor, epoch)
            }
        }
    }

    /// TLS has proven the initiator before it says anything.
    pub(super) const fn needs_no_answer(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}
