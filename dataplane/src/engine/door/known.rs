//! What the door knows of sessions: who may bring lanes to those that end here, and by what the lanes of
//! those that begin here are proven.
//!
//! In: sessions announced, forgotten, proven. Out: whether a peer's lane belongs to its session, this
//! side's half of a session's key. Promises: a session that began over TLS takes lanes of that node
//! alone, over TLS or by the session's own key; its halves are drawn once; all is forgotten with it.

use std::collections::{HashMap, VecDeque};

use dwcp_api::SessionId;

use crate::engine::messages::Offer;
use crate::transport::NodeId;
use crate::transport::handshake::{Proven, RefuseReason};
use crate::transport::wire::keys::SessionKey;

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
