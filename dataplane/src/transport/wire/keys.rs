//! The keys of a session.
//!
//! In: the pre-shared key, or a half of 32 random bytes from each side that travelled inside TLS; the
//! session's id, both nodes and the attempt. Out: one set of frame keys for each direction. Promises: no
//! key is used for two purposes (BLAKE3 `derive_key` contexts), and none is printed; a key that comes
//! from TLS is new with each session, and frames under it are encrypted.

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

/// What one side puts into the key of a session over TLS: random bytes, fresh for each session.
#[derive(Clone, Copy)]
pub struct KeyHalf(pub [u8; 32]);

/// The secret of one attempt at one session between two nodes.
#[derive(Clone)]
pub struct SessionKey {
    secret: [u8; 32],
    encrypts: bool,
}

/// Bytes of the tag behind an encrypted payload.
pub const SEAL_BYTES: usize = 16;

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
    /// What payloads are encrypted with; `None` leaves them readable.
    pub(super) payload: Option<[u8; 16]>,
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
        Self {
            secret: *hasher.finalize().as_bytes(),
            encrypts: false,
        }
    }

    /// The key of a session whose sides met over TLS and gave each other their halves there.
    #[must_use]
    pub fn of_halves(
        halves: [&KeyHalf; 2],
        session: SessionId,
        initiator: NodeId,
        acceptor: NodeId,
        epoch: SessionEpoch,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("dwcp transport 2 session key over TLS");
        hasher.update(&halves[0].0);
        hasher.update(&halves[1].0);
        hasher.update(&session.0);
        hasher.update(&initiator.0);
        hasher.update(&acceptor.0);
        hasher.update(&epoch.0.to_le_bytes());
        Self {
            secret: *hasher.finalize().as_bytes(),
            encrypts: true,
        }
    }

    /// What a later lane of the session is proven with.
    #[must_use]
    pub fn lane_proof(&self) -> Psk {
        Psk(blake3::derive_key(
            "dwcp transport 2 proof of a later lane",
            &self.secret,
        ))
    }

    /// Is it the same key? Takes the same time wherever they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.encrypts == other.encrypts && tags_equal(&self.secret, &other.secret)
    }

    /// The keys for frames that go in `direction`.
    #[must_use]
    pub fn frame_keys(&self, direction: Direction) -> FrameKeys {
        let keyed = |purpose: u8| {
            let mut hasher = blake3::Hasher::new_derive_key("dwcp transport 1 frame keys");
            hasher.update(&self.secret);
            hasher.update(&[direction as u8, purpose]);
            *hasher.finalize().as_bytes()
        };
        let payload = self.encrypts.then(|| {
            let mut key = [0; 16];
            key.copy_from_slice(&keyed(4)[..16]);
            key
        });
        FrameKeys {
            header: keyed(0),
            body: keyed(1),
            control: keyed(2),
            payload,
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

    /// Names a tenant's manifest within this session: nobody learns its id from it, and it never fits another
    /// tenant's.
    #[must_use]
    pub fn offer_tag(&self, tenant: &str, id: &[u8; 32]) -> [u8; 16] {
        let key = blake3::derive_key("dwcp transport 3 baseline offer", &self.chain);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(id);
        hasher.update(tenant.as_bytes());
        let mut tag = [0; 16];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        tag
    }

    /// Are payloads encrypted under these keys?
    #[must_use]
    pub const fn encrypts(&self) -> bool {
        self.payload.is_some()
    }

    /// Bytes that a DATA frame needs behind its encoded bytes.
    #[must_use]
    pub const fn seal_bytes(&self) -> usize {
        if self.encrypts() { SEAL_BYTES } else { 0 }
    }
}

impl fmt::Debug for KeyHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHalf(hidden)")
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
