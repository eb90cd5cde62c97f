//! What the door knows of sessions: who may bring lanes to those that end here, and by what the lanes of
//! those that begin here are proven.
//!
//! In: sessions announced, forgotten, proven. Out: whether a peer's lane belongs to its session, this
//! side's half of a session's key, whether a dial is a new one. Promises: a session that began over TLS takes lanes
//! of that node alone, over TLS or by the session's own key; its halves are drawn once; a dial is new once; all is
//! forgotten with it.

use std::collections::{HashMap, VecDeque};

use dwcp_api::SessionId;

use crate::engine::messages::Offer;
use crate::transport::handshake::{Proven, RefuseReason};
use crate::transport::wire::keys::SessionKey;
use crate::transport::{LaneIx, NodeId};

/// Sessions remembered after their end, so that a late lane learns that it is late.
const GONE_MAX: usize = 256;

/// How the first lane of a session was proven.
#[derive(Clone)]
enum Began {
    /// By the shared key.
    Plain,
    /// By a certificate of this node.
    Tls { node: NodeId, key: SessionKey },
}

/// A session that ends here.
#[derive(Clone)]
pub struct Known {
    /// Index of the worker that has it.
    pub worker: usize,
    /// What this side can agree to.
    pub offer: Offer,
    half: [u8; 32],
    began: Option<Began>,
    /// Of each lane the latest dial that proved itself.
    dials: Vec<u32>,
}

/// A session that begins here.
struct Ours {
    half: [u8; 32],
    key: Option<SessionKey>,
}

/// See the module.
#[derive(Default)]
pub struct Sessions {
    expected: HashMap<SessionId, Known>,
    gone: VecDeque<SessionId>,
    ours: HashMap<SessionId, Ours>,
}

impl Known {
    /// This side's half of the session's key.
    pub const fn half(&self) -> [u8; 32] {
        self.half
    }

    /// The session's key, if a later lane may be proven by it.
    pub fn key(&self) -> Option<&SessionKey> {
        match &self.began {
            Some(Began::Tls { key, .. }) => Some(key),
            _ => None,
        }
    }

    /// Is this a dial of that lane that was not heard before? Then what it says was not recorded from an earlier one.
    pub fn is_new_dial(&self, lane: LaneIx, attempt: u32) -> bool {
        let known = self.dials.get(usize::from(lane.0)).copied();
        let within = lane.0 < self.offer.lanes_v1.max(self.offer.lanes_v3);
        within && attempt > known.unwrap_or(0)
    }

    /// A dial of that lane proved itself.
    pub fn note_dial(&mut self, lane: LaneIx, attempt: u32) {
        let index = usize::from(lane.0);
        if self.is_new_dial(lane, attempt) {
            self.dials.resize(self.dials.len().max(index + 1), 0);
            self.dials[index] = attempt;
        }
    }

    /// Does a lane that was proven belong to this session? `tls` is the node of its certificate.
    pub fn admit(&mut self, proven: &Proven, tls: Option<NodeId>) -> Result<(), RefuseReason> {
        let fits = match (&self.began, tls) {
            (None, Some(node)) => {
                let key = proven.key().clone();
                self.began = Some(Began::Tls { node, key });
                true
            }
            (None, None) => {
                self.began = Some(Began::Plain);
                true
            }
            (Some(Began::Plain), tls) => tls.is_none(),
            // Without a certificate it was proven by this key, or it has another.
            (Some(Began::Tls { node, key }), tls) => {
                key.is(proven.key()) && tls.is_none_or(|tls| tls == *node)
            }
        };
        fits.then_some(()).ok_or(RefuseReason::NotYourSession)
    }
}

impl Sessions {
    /// A session that ends here is expected. `half` is fresh from the system's random source.
    pub fn expect(&mut self, session: SessionId, worker: usize, offer: Offer, half: [u8; 32]) {
        let fresh = Known {
            worker,
            offer,
            half,
            began: None,
            dials: Vec::new(),
        };
        // Announced by its worker after the door let the peer in by a target's name: it is the same one.
        let known = self.expected.entry(session).or_insert(fresh);
        (known.worker, known.offer) = (worker, offer);
    }

    /// One that is expected.
    pub fn get(&self, session: SessionId) -> Option<&Known> {
        self.expected.get(&session)
    }

    /// The same.
    pub fn get_mut(&mut self, session: SessionId) -> Option<&mut Known> {
        self.expected.get_mut(&session)
    }

    /// Was it here?
    pub fn is_gone(&self, session: SessionId) -> bool {
        self.gone.contains(&session)
    }

    /// It is over.
    pub fn forget(&mut self, session: SessionId) {
        self.ours.remove(&session);
        if self.expected.remove(&session).is_some() {
            if self.gone.len() == GONE_MAX {
                self.gone.pop_front();
            }
            self.gone.push_back(session);
        }
    }

    /// This side's half of the key of a session that begins here; drawn by `fresh` the first time.
    pub fn our_half(
        &mut self,
        session: SessionId,
        fresh: impl FnOnce() -> Option<[u8; 32]>,
    ) -> Option<[u8; 32]> {
        if let Some(ours) = self.ours.get(&session) {
            return Some(ours.half);
        }
        let half = fresh()?;
        self.ours.insert(session, Ours { half, key: None });
        Some(half)
    }

    /// The key of a session that begins here, once a lane of it came up over TLS.
    pub fn our_key(&self, session: SessionId) -> Option<&SessionKey> {
        self.ours.get(&session)?.key.as_ref()
    }

    /// A lane of a session that begins here came up with this key. Says whether it is the session's.
    pub fn note_ours(&mut self, session: SessionId, key: &SessionKey) -> bool {
        match self.ours.get_mut(&session) {
            None => true,
            Some(Ours {
                key: Some(known), ..
            }) => known.is(key),
            Some(ours) => {
                ours.key = Some(key.clone());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_is_new_once_and_an_earlier_one_never_after_it() {
        let offer = Offer {
            max_version: dwcp_api::Version::V3,
            store_bytes: 1,
            window_limit_bytes: 1,
            lanes_v1: 2,
            lanes_v3: 3,
            baselines: false,
        };
        let (mut sessions, id) = (Sessions::default(), SessionId([1; 16]));
        sessions.expect(id, 0, offer, [0; 32]);
        let known = sessions.get_mut(id).unwrap();
        assert!(!known.is_new_dial(LaneIx(0), 0), "no dial has this number");
        assert!(known.is_new_dial(LaneIx(2), 5) && !known.is_new_dial(LaneIx(3), 5));
        known.note_dial(LaneIx(2), 5);
        known.note_dial(LaneIx(9_999), 5);
        assert!(!known.is_new_dial(LaneIx(2), 5) && !known.is_new_dial(LaneIx(2), 4));
        assert!(known.is_new_dial(LaneIx(2), 6) && known.is_new_dial(LaneIx(1), 1));
        assert_eq!(known.dials, [0, 0, 5]);
        // Announced again it is the same one.
        sessions.expect(id, 1, offer, [1; 32]);
        assert!(!sessions.get(id).unwrap().is_new_dial(LaneIx(2), 5));
    }
}
