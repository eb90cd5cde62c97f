//! Digest chains: each batch's digest covers its bytes and, through the digest before it, every
//! earlier batch of its connection.
//!
//! In: a session key, channel and direction; then sequence number, offset and raw bytes of each batch.
//! Out: 16 bytes a batch. Promises: two ends agree on a digest only if they agree on all bytes so far,
//! their order and their place, and whoever lacks the key can make no digest; [`Chain::verify`] takes
//! the same time wherever digests differ.
//!
//! The function is the message authentication code of AEGIS-128X2 (draft-irtf-cfrg-aegis-aead): made of
//! AES rounds, it is as fast as memory where the processor has them, and the same everywhere. Sequence
//! numbers are its nonces: a chain never uses one for two different batches.

use aegis::aegis128x2::Aegis128X2Mac;
use subtle::ConstantTimeEq;

/// Which way a chain's bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the source host to the destination host.
    ToDestination = 1,
    /// The return path.
    ToSource = 2,
}

/// The digest of one batch.
pub type Digest = [u8; 16];

/// A batch's bytes are not the sender's, or not at their place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the digest chain broke at batch {seq}: end the session, release nothing of this batch")]
pub struct DigestMismatch {
    /// The batch's sequence number.
    pub seq: u64,
}

/// The chain of one channel and direction.
pub struct Chain {
    channel: u16,
    key: [u8; 16],
    last: Digest,
}

/// Domain separation, as BLAKE3's key derivation asks: application, date, purpose.
const CONTEXT: &str = "dwcp 2026-11 batch digest chain";

/// Previous digest, sequence number, channel, offset, length.
const HEAD_BYTES: usize = 16 + 8 + 2 + 8 + 8;

impl Chain {
    /// The chain before its first batch. Sessions, channels and directions do not share chains.
    pub fn new(session_key: &[u8; 32], channel: u16, direction: Direction) -> Self {
        let mut derived = blake3::Hasher::new_derive_key(CONTEXT)
            .update(session_key)
            .update(&channel.to_le_bytes())
            .update(&[direction as u8])
            .finalize_xof();
        let mut last = Digest::default();
        derived.fill(&mut last);
        let mut key = [0; 16];
        derived.fill(&mut key);
        Self { channel, key, last }
    }

    /// The digest of the next batch: its sequence number, the channel offset of its first byte and
    /// its raw bytes.
    pub fn advance(&mut self, seq: u64, offset: u64, raw: &[u8]) -> Digest {
        self.last = self.next(seq, offset, raw);
        self.last
    }

    /// Advances over a batch that was received, if its digest is `received`.
    ///
    /// # Errors
    /// [`DigestMismatch`]; the chain stays where it was.
    pub fn verify(
        &mut self,
        seq: u64,
        offset: u64,
        raw: &[u8],
        received: &Digest,
    ) -> Result<(), DigestMismatch> {
        let expected = self.next(seq, offset, raw);
        if bool::from(expected.ct_eq(received)) {
            self.last = expected;
            Ok(())
        } else {
            Err(DigestMismatch { seq })
        }
    }

    fn next(&self, seq: u64, offset: u64, raw: &[u8]) -> Digest {
        let mut head = [0; HEAD_BYTES];
        head[..16].copy_from_slice(&self.last);
        head[16..24].copy_from_slice(&seq.to_le_bytes());
        head[24..26].copy_from_slice(&self.channel.to_le_bytes());
        head[26..34].copy_from_slice(&offset.to_le_bytes());
        head[34..].copy_from_slice(&(raw.len() as u64).to_le_bytes());
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&seq.to_le_bytes());
        let mut mac = Aegis128X2Mac::new_with_nonce(&self.key, &nonce);
        mac.update(&head);
        mac.update(raw);
        mac.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Direction = Direction::ToDestination;

    #[test]
    fn both_ends_agree_batch_by_batch() {
        let mut sender = Chain::new(&[1; 32], 3, TO);
        let mut receiver = Chain::new(&[1; 32], 3, TO);
        let mut offset = 0;
        for seq in 0..5 {
            let raw = vec![seq as u8; 700 * seq as usize];
            let digest = sender.advance(seq, offset, &raw);
            assert_eq!(receiver.verify(seq, offset, &raw, &digest), Ok(()));
            offset += raw.len() as u64;
        }
    }

    #[test]
    fn every_lie_is_seen() {
        let start = |key, channel, direction| Chain::new(&[key; 32], channel, direction);
        let raw = [5; 5000];
        let digest = start(1, 3, TO).advance(7, 40, &raw);
        let mut bent = raw;
        bent[4999] ^= 1;
        let mut short = digest;
        short[15] ^= 0x80;
        let mismatch = Err(DigestMismatch { seq: 7 });
        assert_eq!(start(1, 3, TO).verify(7, 40, &bent, &digest), mismatch);
        assert_eq!(
            start(1, 3, TO).verify(7, 40, &raw[..4999], &digest),
            mismatch
        );
        assert_eq!(start(1, 3, TO).verify(7, 41, &raw, &digest), mismatch);
        assert_eq!(
            start(1, 3, TO).verify(8, 40, &raw, &digest),
            Err(DigestMismatch { seq: 8 })
        );
        assert_eq!(start(1, 4, TO).verify(7, 40, &raw, &digest), mismatch);
        assert_eq!(start(2, 3, TO).verify(7, 40, &raw, &digest), mismatch);
        assert_eq!(
            start(1, 3, Direction::ToSource).verify(7, 40, &raw, &digest),
            mismatch
        );
        assert_eq!(start(1, 3, TO).verify(7, 40, &raw, &short), mismatch);
        let mut later = start(1, 3, TO);
        later.advance(6, 0, &[]);
        assert_eq!(later.verify(7, 40, &raw, &digest), mismatch);
        assert_eq!(start(1, 3, TO).verify(7, 40, &raw, &digest), Ok(()));
    }

    #[test]
    fn a_refused_batch_leaves_the_chain_in_place() {
        let digest = Chain::new(&[1; 32], 0, TO).advance(0, 0, b"abc");
        let mut receiver = Chain::new(&[1; 32], 0, TO);
        assert!(receiver.verify(0, 0, b"abd", &digest).is_err());
        assert_eq!(receiver.verify(0, 0, b"abc", &digest), Ok(()));
    }
}
