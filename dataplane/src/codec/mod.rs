//! The codec: batches of raw bytes to payloads and back.
//!
//! In: a batch's raw bytes and the tokens that the stream parser cut them into; on the other side
//! version, method byte, history flag and payload, untrusted. Out: payloads no longer than the batch
//! and a little; on the other side the same raw bytes. Promises: both ends keep one bounded page
//! history per direction, changed in batch order and alike under every version and method, so a delta
//! or a reference never misses and each batch may change the version; hostile payloads end in an
//! error, within the batch's time and memory.
//!
//! - [`Encoder`], [`Decoder`]: the two ends of a direction
//! - [`Classified`], [`Sections`], [`Strand`]: a batch between the encoder's halves, and the second half
//! - [`EncodeHint`], [`Effort`], [`Choice`]: which method gets a batch across soonest
//! - [`BASELINES_MAX`], [`MissingBlock`]: pages that both ends have on disk
//! - [`PageStore`]: the page history
//! - [`Chain`]: the digests that batches are released by

mod addr_index;
mod choice;
mod content_index;
mod decoder;
mod delta;
mod digest;
mod encoder;
mod error;
mod filter;
mod items;
mod known;
mod lz4;
mod method;
mod ops;
mod prefetch;
mod rates;
mod rebuild;
mod recent;
mod sections;
mod simd;
mod store;
mod strand;
#[cfg(test)]
mod tests;
mod v1;
mod v3;
mod varint;
mod zstd;

pub use choice::{Choice, ChoiceReason, Effort, EncodeHint};
pub use decoder::Decoder;
pub use digest::{Chain, Digest, DigestMismatch, Direction};
pub use encoder::{Classified, EncodeStats, Encoded, Encoder};
pub use error::{CodecError, DecodeError, EncodeError};
pub use known::{BASELINES_MAX, MissingBlock};
pub use method::{CodecVersion, Method};
pub use sections::Sections;
pub use store::{PageStore, PageStoreConfig, SlotId, StoreError};
pub use strand::Strand;

use dwcp_hugepages::arena::BackingPolicy;

use crate::stream::PAGE_BYTES;

/// A guest page.
pub type Page = [u8; PAGE_BYTES];

/// The most raw bytes of a batch.
pub const MAX_BATCH_RAW_BYTES: usize = 1 << 20;

/// The settings of a codec. `store_bytes` must be the same on both ends of a session.
#[derive(Clone, Debug)]
pub struct CodecConfig {
    /// Memory for the page history, in bytes.
    pub store_bytes: usize,
    /// What memory to ask for.
    pub backing: BackingPolicy,
    /// Random bytes that guests do not know. They keep a guest from choosing contents that collide.
    pub key: [u8; 32],
    /// The fastest zstd level that may be chosen: 1 to 12.
    pub zstd_level_min: i32,
    /// The strongest zstd level that may be chosen: 1 to 12.
    pub zstd_level_max: i32,
}

impl CodecConfig {
    const fn store(&self) -> PageStoreConfig {
        PageStoreConfig {
            bytes: self.store_bytes,
            backing: self.backing,
        }
    }
}
