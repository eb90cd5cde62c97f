//! The keys of a session, all derived from the pre-shared key.
//!
//! In: the pre-shared key, the session's id, both nodes and the attempt. Out: one set of frame keys
//! for each direction. Promise: no key is used for two purposes (BLAKE3 `derive_key` contexts), and
//! none is printed.

use std::fmt;

use super::super::{NodeId, SessionEpoch, SessionId};

/// The secret that two nodes share before they ever talk, of full strength.
#[derive(Clone)]
pub struct Psk(pub [u8; 32]);

impl Psk {
    /// The key for one kind of proof.
    pub(in crate::transport) fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

/// The secret of one attempt at one session between two nodes.
#[derive(Clone)]
pub struct SessionKey([u8; 32]);

/// The way that frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the node that dialled.
    ToAcceptor,
    /// From the node that was dialled.
    ToInitiator,
}

/// Keys for the frames of one direction.
#[derive(Clone)]
pub struct FrameKeys {
    pub(super) header: [u8; 32],
    pub(super) body: [u8; 32],
    pub(super) control: [u8; 32],
    chain: [u8; 32],
}

impl SessionKey {
    /// Both ends come to the same key when they share `psk` and agree on who they are.
    #[must_use]
    pub fn derive(
        psk: &Psk,
        session: SessionId,
        initiator: NodeId,
        acceptor: NodeId,
        epoch: SessionEpoch,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("dwcp transport 1 session key");
        hasher.update(&psk.0);
        hasher.update(&session.0);
        hasher.update(&initiator.0);
        hasher.update(&acceptor.0);
        hasher.update(&epoch.0.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The keys for frames that go in `direction`.
    #[must_use]
    pub fn frame_keys(&self, direction: Direction) -> FrameKeys {
        let keyed = |purpose: u8| {
            let mut hasher = blake3::Hasher::new_derive_key("dwcp transport 1 frame keys");
            hasher.update(&self.0);
            hasher.update(&[direction as u8, purpose]);
            *hasher.finalize().as_bytes()
        };
        FrameKeys {
            header: keyed(0),
            body: keyed(1),
            control: keyed(2),
            chain: keyed(3),
        }
    }
}

impl FrameKeys {
    /// The key of the digest chain over decoded bytes, for the codec.
    #[must_use]
    pub fn chain_key(&self) -> &[u8; 32] {
        &self.chain
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(hidden)")
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(hidden)")
    }
}

impl fmt::Debug for FrameKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKeys(hidden)")
    }
}

/// Constant-time equality of tags: how many leading bytes agree must not show in the time taken.
pub(in crate::transport) fn tags_equal(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    a.ct_eq(b).into()
}
