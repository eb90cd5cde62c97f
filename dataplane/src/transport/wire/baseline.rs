//! What two sides that both keep baselines tell each other, in sequence: the payload of BASELINE.
//!
//! In: words, or bytes of an authenticated frame. Out: bytes, or words within their limits. Layout: a byte, and
//! behind it for 1 the tags of the manifests that the source has, 16 bytes each; for 2 a bit for each of these
//! that the destination has, 16 bits; for 3 the seq, 64 bits, of a v3 batch that must come again in v1.

use super::super::BatchSeq;
use super::WireError;
use super::batch::{BATCH_HEADER_BYTES, MAX_MARKER_BYTES, bad};

/// Manifests that one BASELINE can offer.
pub const MAX_OFFERS: usize = 12;
/// Names a manifest to a peer that knows it, and tells nothing to others; see
/// [`offer_tag`](super::keys::FrameKeys::offer_tag).
pub type OfferTag = [u8; 16];

const _: () = assert!(
    BATCH_HEADER_BYTES + 1 + MAX_OFFERS * size_of::<OfferTag>() <= MAX_MARKER_BYTES,
    "a full offer must fit a marker"
);

/// What two sides that both keep baselines tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaselineWord<'a> {
    /// The source has these manifests; at most [`MAX_OFFERS`].
    Offers(&'a [OfferTag]),
    /// The destination has those whose bits are set, and is ready for references to them.
    Holds(u16),
    /// The destination cannot read a block that this v3 batch refers to.
    Missing(BatchSeq),
}

impl<'a> BaselineWord<'a> {
    /// Bytes of the payload.
    pub(super) const fn len(&self) -> usize {
        1 + match self {
            Self::Offers(tags) => size_of_val(*tags),
            Self::Holds(_) => 2,
            Self::Missing(_) => 8,
        }
    }

    /// Writes the payload, which has [`len`](Self::len) bytes.
    pub(super) fn write(&self, payload: &mut [u8]) {
        let (kind, body) = payload.split_at_mut(1);
        kind[0] = match self {
            Self::Offers(tags) => {
                body.copy_from_slice(tags.as_flattened());
                1
            }
            Self::Holds(bits) => {
                body.copy_from_slice(&bits.to_le_bytes());
                2
            }
            Self::Missing(seq) => {
                body.copy_from_slice(&seq.0.to_le_bytes());
                3
            }
        };
    }

    /// Reads a payload.
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let wrong_length = || bad("payload_len", payload.len() as u64);
        let (&kind, body) = payload.split_first().ok_or_else(wrong_length)?;
        match kind {
            1 => {
                let (tags, rest) = body.as_chunks();
                if !rest.is_empty() || tags.len() > MAX_OFFERS {
                    return Err(wrong_length());
                }
                Ok(Self::Offers(tags))
            }
            2 => {
                let bits = body.try_into().map_err(|_| wrong_length())?;
                Ok(Self::Holds(u16::from_le_bytes(bits)))
            }
            3 => {
                let seq = body.try_into().map_err(|_| wrong_length())?;
                Ok(Self::Missing(BatchSeq(u64::from_le_bytes(seq))))
            }
            kind => Err(bad("baseline word", kind)),
        }
    }
}
