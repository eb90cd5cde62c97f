//! Who made a datagram, and who may read it.
//!
//! Comes in: the secret that both sides got from the authenticated handshake, and datagrams. Goes out:
//! datagrams with a tag, and received ones whose tag was right. Promises: nothing of a datagram is used
//! before its tag is checked; no key meets the same packet number twice with other content, because
//! the keys of a connection come from a random number of each side.
//!
//! The functions are of the AEGIS family (draft-irtf-cfrg-aegis-aead): 128X2 for whole datagrams, 128L, which
//! starts faster, for heads alone. [`Protection::Tagged`] authenticates the whole datagram and leaves it
//! readable, [`Protection::Sealed`] encrypts all that is behind the header.
//!
//! [`Protection::Headers`] authenticates everything but the pieces of frames: numbers, acknowledgements, and
//! where each piece belongs. Such a datagram has `head u16 | sum u32` behind its header: how much of it
//! the tag covers, these two included, and the CRC-32 of the rest. The highest bit of `head` says that there is a
//! sum; a port that finds damage by itself needs none. Who can write to the network cannot speak for a peer,
//! acknowledge, replay or move a datagram. What frames hold he can read and change, and the lengths between frames
//! of one datagram too: every length is checked before it is used, a frame is checked by whom it is for, and so he
//! ends a lane or what runs over it, and gets nothing taken for true. Damage without intent is dropped and sent
//! again in all three.

use aegis::aegis128l::Aegis128L;
use aegis::aegis128x2::Aegis128X2;

use super::packet::{COVER_BYTES, HEADER_BYTES, TAG_BYTES};

/// There is a sum.
const SUMMED: u16 = 0x8000;

/// What an eavesdropper may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The frames, but not change them: for networks that are trusted to keep secrets.
    Tagged,
    /// Only headers, sizes and times.
    Sealed,
    /// The frames, and change them: for networks that nobody else can write to. What the lane itself goes by stays
    /// authenticated.
    Headers,
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
    /// The content of frames has a sum, where the tag does not cover it.
    sums: bool,
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
            sums: true,
        }
    }

    /// The same for a path that finds damaged content by itself.
    pub(super) fn without_sums(mut self) -> Self {
        self.sums = false;
        self
    }

    /// Bytes behind the header of each datagram that are ours.
    pub(super) fn cover_bytes(&self) -> usize {
        match self.protection {
            Protection::Tagged | Protection::Sealed => 0,
            Protection::Headers => COVER_BYTES,
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

    /// Finishes a datagram: all of it is written but the [`Keys::cover_bytes`] behind its header and the
    /// [`TAG_BYTES`] at its end. Its first `head` bytes are no content of frames.
    pub(super) fn seal(&self, number: u64, head: usize, datagram: &mut [u8]) {
        let (content, tag) = datagram.split_at_mut(datagram.len() - TAG_BYTES);
        if self.protection == Protection::Headers {
            tag.copy_from_slice(&self.cover(number, head, content));
            return;
        }
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
        if self.protection == Protection::Headers {
            return self.uncover(number, content, tag);
        }
        let (open, hidden) = content.split_at_mut(self.open_bytes(content.len()));
        Aegis128X2::<TAG_BYTES>::new(&self.to_receive, &nonce(number))
            .decrypt_in_place(hidden, tag, open)
            .map_err(|_| Forged)?;
        Ok(&mut content[HEADER_BYTES..])
    }

    /// Writes what is covered and the sum of the rest; returns the tag.
    fn cover(&self, number: u64, head: usize, content: &mut [u8]) -> [u8; TAG_BYTES] {
        let (covered, rest) = content.split_at_mut(head);
        // Every head is shorter than the shortest path's datagrams.
        let mut said = head as u16;
        let mut sum = 0;
        if self.sums && !rest.is_empty() {
            said |= SUMMED;
            sum = crc32fast::hash(rest);
        }
        if let Some(space) = covered[HEADER_BYTES..].first_chunk_mut::<COVER_BYTES>() {
            space[..2].copy_from_slice(&said.to_le_bytes());
            space[2..].copy_from_slice(&sum.to_le_bytes());
        }
        Aegis128L::<TAG_BYTES>::new(&self.to_send, &nonce(number))
            .encrypt_in_place(&mut [], covered)
    }

    /// Checks what [`Keys::cover`] made.
    fn uncover<'a>(
        &self,
        number: u64,
        content: &'a mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<&'a mut [u8], Forged> {
        let cover: &[u8; COVER_BYTES] = content[HEADER_BYTES..].first_chunk().ok_or(Forged)?;
        let said = u16::from_le_bytes([cover[0], cover[1]]);
        let sum = u32::from_le_bytes([cover[2], cover[3], cover[4], cover[5]]);
        let (covered, rest) = content
            .split_at_checked(usize::from(said & !SUMMED))
            .filter(|(covered, _)| covered.len() >= HEADER_BYTES + COVER_BYTES)
            .ok_or(Forged)?;
        Aegis128L::<TAG_BYTES>::new(&self.to_receive, &nonce(number))
            .decrypt_in_place(&mut [], tag, covered)
            .map_err(|_| Forged)?;
        if said & SUMMED != 0 && crc32fast::hash(rest) != sum {
            return Err(Forged);
        }
        Ok(&mut content[HEADER_BYTES + COVER_BYTES..])
    }

    /// How much of `content_bytes` stays readable.
    fn open_bytes(&self, content_bytes: usize) -> usize {
        match self.protection {
            Protection::Tagged | Protection::Headers => content_bytes,
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

    const ALL: [Protection; 3] = [Protection::Tagged, Protection::Sealed, Protection::Headers];

    /// With its first words as its head, and the head's length.
    fn datagram(keys: &Keys) -> (Vec<u8>, usize) {
        let mut datagram = vec![0xaa; HEADER_BYTES + keys.cover_bytes()];
        let head = datagram.len() + b"nobody else".len();
        datagram.extend_from_slice(b"nobody else may change this");
        datagram.extend_from_slice(&[0; TAG_BYTES]);
        (datagram, head)
    }

    #[test]
    fn both_directions_open_and_only_sealed_hides() {
        for protection in ALL {
            let (a, b) = (
                keys(Role::Initiator, protection, 3),
                keys(Role::Acceptor, protection, 3),
            );
            for (from, to) in [(&a, &b), (&b, &a)] {
                let (mut sent, head) = datagram(from);
                from.seal(9, head, &mut sent);
                let readable = sent.windows(6).any(|six| six == b"nobody");
                assert_eq!(readable, protection != Protection::Sealed);
                assert_eq!(
                    to.open(9, &mut sent).unwrap(),
                    b"nobody else may change this"
                );
            }
        }
    }

    #[test]
    fn every_lie_is_seen() {
        for protection in ALL {
            let near = keys(Role::Initiator, protection, 3);
            let (mut sent, head) = datagram(&near);
            near.seal(9, head, &mut sent);
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
        let near = setup(Role::Initiator, Protection::Tagged);
        let (mut sent, head) = datagram(&near);
        near.seal(0, head, &mut sent);
        for other in [Protection::Sealed, Protection::Headers] {
            let far = setup(Role::Acceptor, other);
            assert_eq!(far.open(0, &mut sent.clone()), Err(Forged));
        }
        assert!(
            setup(Role::Acceptor, Protection::Tagged)
                .open(0, &mut sent)
                .is_ok()
        );
    }

    #[test]
    fn without_sums_the_head_is_guarded_and_the_content_is_the_paths_affair() {
        let near = keys(Role::Initiator, Protection::Headers, 3).without_sums();
        let far = keys(Role::Acceptor, Protection::Headers, 3);
        let (mut sent, head) = datagram(&near);
        near.seal(9, head, &mut sent);
        for at in 0..sent.len() {
            let mut bent = sent.clone();
            bent[at] ^= 0x10;
            let content = (head..sent.len() - TAG_BYTES).contains(&at);
            assert_eq!(far.open(9, &mut bent).is_ok(), content, "byte {at}");
        }
    }
}
