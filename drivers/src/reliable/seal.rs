//! Who made a datagram, and who may read it.
//!
//! Comes in: the secret that both sides got from the authenticated handshake, and datagrams. Goes out:
//! datagrams with a tag, and received ones whose tag was right. Promises: nothing of a datagram is used
//! before its tag is checked; no key meets the same packet number twice with other content, because
//! the keys of a connection come from a random number of each side.
//!
//! The function is AEGIS-128X2 (draft-irtf-cfrg-aegis-aead). Either way the whole datagram is
//! authenticated: [`Protection::Tagged`] leaves it readable, [`Protection::Sealed`] encrypts all that
//! is behind the header. A checksum without a key would save little: the function runs at the speed
//! of memory, and it also keeps forged acknowledgements out.

use aegis::aegis128x2::Aegis128X2;

use super::packet::{HEADER_BYTES, TAG_BYTES};

/// What an eavesdropper may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The frames, but not change them: for networks that are trusted to keep secrets.
    Tagged,
    /// Only headers, sizes and times.
    Sealed,
}

/// Which side of the set-up this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends the first datagram.
    Initiator,
    /// Answers it, and learns from it where the peer is.
    Acceptor,
}

/// A tag that does not fit its datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forged;

type Key = [u8; 16];

/// The keys of both directions.
pub(super) struct Keys {
    to_send: Key,
    to_receive: Key,
    protection: Protection,
}

/// Domain separation, as BLAKE3's key derivation asks: application, date, purpose.
const CONTEXT: &str = "dwcp 2026-11 reliable datagrams";

impl Keys {
    fn derive(secret: &[u8; 32], info: &[&[u8]], role: Role, protection: Protection) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(secret);
        for part in info {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut derived = hasher.finalize_xof();
        let (mut of_initiator, mut of_acceptor) = (Key::default(), Key::default());
        derived.fill(&mut of_initiator);
        derived.fill(&mut of_acceptor);
        let (to_send, to_receive) = match role {
            Role::Initiator => (of_initiator, of_acceptor),
            Role::Acceptor => (of_acceptor, of_initiator),
        };
        Self {
            to_send,
            to_receive,
            protection,
        }
    }

    /// The keys of HELLO and WELCOME, whose content is no secret. Sides that disagree about the
    /// protection have different ones.
    pub(super) fn of_setup(
        secret: &[u8; 32],
        connection: u64,
        role: Role,
        protection: Protection,
    ) -> Self {
        let what = [protection as u8];
        let info: [&[u8]; 3] = [b"setup", &connection.to_le_bytes(), &what];
        Self::derive(secret, &info, role, Protection::Tagged)
    }

    /// The keys of everything after that.
    pub(super) fn of_connection(
        secret: &[u8; 32],
        connection: u64,
        role: Role,
        protection: Protection,
        nonces: (&[u8; 16], &[u8; 16]),
    ) -> Self {
        let info: [&[u8]; 4] = [b"lane", &connection.to_le_bytes(), nonces.0, nonces.1];
        Self::derive(secret, &info, role, protection)
    }

    /// Finishes a datagram: all of it is written but the [`TAG_BYTES`] at its end.
    pub(super) fn seal(&self, number: u64, datagram: &mut [u8]) {
        let (content, tag) = datagram.split_at_mut(datagram.len() - TAG_BYTES);
        let (open, hidden) = content.split_at_mut(self.open_bytes(content.len()));
        let cipher = Aegis128X2::<TAG_BYTES>::new(&self.to_send, &nonce(number));
        tag.copy_from_slice(&cipher.encrypt_in_place(hidden, open));
    }

    /// Checks a datagram and gives what lies between its header and its tag, readable.
    pub(super) fn open<'a>(
        &self,
        number: u64,
        datagram: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        let (content, tag) = datagram
            .split_last_chunk_mut::<TAG_BYTES>()
            .filter(|(content, _)| content.len() >= HEADER_BYTES)
            .ok_or(Forged)?;
        let (open, hidden) = content.split_at_mut(self.open_bytes(content.len()));
        Aegis128X2::<TAG_BYTES>::new(&self.to_receive, &nonce(number))
            .decrypt_in_place(hidden, tag, open)
            .map_err(|_| Forged)?;
        Ok(&mut content[HEADER_BYTES..])
    }

    /// How much of `content_bytes` stays readable.
    fn open_bytes(&self, content_bytes: usize) -> usize {
        match self.protection {
            Protection::Tagged => content_bytes,
            Protection::Sealed => HEADER_BYTES,
        }
    }
}

fn nonce(number: u64) -> [u8; 16] {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(role: Role, protection: Protection, fresh: u8) -> Keys {
        Keys::of_connection(&[1; 32], 5, role, protection, (&[2; 16], &[fresh; 16]))
    }

    fn datagram() -> Vec<u8> {
        let mut datagram = vec![0xaa; HEADER_BYTES];
        datagram.extend_from_slice(b"nobody else may change this");
        datagram.extend_from_slice(&[0; TAG_BYTES]);
        datagram
    }

    #[test]
    fn both_directions_open_and_only_sealed_hides() {
        for protection in [Protection::Tagged, Protection::Sealed] {
            let (a, b) = (
                keys(Role::Initiator, protection, 3),
                keys(Role::Acceptor, protection, 3),
            );
            for (from, to) in [(&a, &b), (&b, &a)] {
                let mut sent = datagram();
                from.seal(9, &mut sent);
                let readable = sent.windows(6).any(|six| six == b"nobody");
                assert_eq!(readable, protection == Protection::Tagged);
                assert_eq!(
                    to.open(9, &mut sent).unwrap(),
                    b"nobody else may change this"
                );
            }
        }
    }

    #[test]
    fn every_lie_is_seen() {
        for protection in [Protection::Tagged, Protection::Sealed] {
            let mut sent = datagram();
            keys(Role::Initiator, protection, 3).seal(9, &mut sent);
            let acceptor = keys(Role::Acceptor, protection, 3);
            for at in 0..sent.len() {
                let mut bent = sent.clone();
                bent[at] ^= 1;
                assert_eq!(acceptor.open(9, &mut bent), Err(Forged), "byte {at}");
            }
            for len in 0..sent.len() {
                assert_eq!(acceptor.open(9, &mut sent[..len].to_vec()), Err(Forged));
            }
            assert_eq!(
                acceptor.open(8, &mut sent.clone()),
                Err(Forged),
                "replayed number"
            );
            let fresh = keys(Role::Acceptor, protection, 4);
            assert_eq!(
                fresh.open(9, &mut sent.clone()),
                Err(Forged),
                "another connection"
            );
            let own = keys(Role::Initiator, protection, 3);
            assert_eq!(own.open(9, &mut sent.clone()), Err(Forged), "sent back");
            assert!(acceptor.open(9, &mut sent).is_ok());
        }
    }

    #[test]
    fn sides_that_disagree_about_the_protection_do_not_meet() {
        let setup = |role, protection| Keys::of_setup(&[1; 32], 5, role, protection);
        let mut sent = datagram();
        setup(Role::Initiator, Protection::Tagged).seal(0, &mut sent);
        assert_eq!(
            setup(Role::Acceptor, Protection::Sealed).open(0, &mut sent.clone()),
            Err(Forged)
        );
        assert!(
            setup(Role::Acceptor, Protection::Tagged)
                .open(0, &mut sent)
                .is_ok()
        );
    }
}
