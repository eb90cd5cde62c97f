//! The receiver's half: payloads in batch order become raw bytes again.
//!
//! In: version, method byte, history flag and payload of each batch, in batch order, all untrusted.
//! Out: exactly the batch's raw bytes, in the caller's buffer. Promises: nothing is written outside
//! that buffer and nothing of it is left over from before on success; memory and time are bounded by
//! the batch; after one refused payload every later one is refused, because the history may have
//! changed halfway. Only a batch that needs a block of a baseline which cannot be read is refused with
//! nothing changed: the same batch may follow in another encoding.

use std::sync::Arc;

use dwcp_baseline::Baseline;

use super::known::{KnownBlocks, MissingBlock};
use super::rebuild::Rebuild;
use super::sections;
use super::simd::Simd;
use super::zstd::{Decompressor, decompressor_bytes};
use super::{
    CodecConfig, CodecError, CodecVersion, DecodeError, Encoder, MAX_BATCH_RAW_BYTES, Method,
    PageStore, v1, v3,
};

/// A context, and a batch in the clear behind it.
const SCRATCH_BYTES: usize =
    sections::CONTEXT_BYTES_MAX + Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES);

/// Decodes the batches of one direction of a session.
pub struct Decoder {
    store: PageStore,
    simd: Simd,
    zstd: Decompressor,
    scratch: Box<[u8]>,
    known: KnownBlocks,
    poisoned: bool,
}

impl Decoder {
    /// A decoder for the sender's encoder of the same store size. `cfg.key` and the zstd levels are
    /// the sender's affair.
    ///
    /// # Errors
    /// [`CodecError`], when the memory is not there.
    pub fn new(cfg: &CodecConfig) -> Result<Self, CodecError> {
        Ok(Self {
            store: PageStore::new(cfg.store())?,
            simd: Simd::detect(),
            zstd: Decompressor::new().ok_or(CodecError::Zstd)?,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            known: KnownBlocks::default(),
            poisoned: false,
        })
    }

    /// What a decoder takes.
    pub fn bytes(store_bytes: usize) -> usize {
        PageStore::bytes(store_bytes) + decompressor_bytes() + SCRATCH_BYTES
    }

    /// What this one takes.
    #[cfg(test)]
    pub(crate) fn taken_bytes(&self) -> usize {
        self.store.taken_bytes() + self.zstd.taken_bytes() + self.scratch.len()
    }

    /// From the next batch on pages may be blocks of these, in this order.
    pub fn use_baselines(&mut self, list: Vec<Arc<Baseline>>) {
        self.known = KnownBlocks::new(list);
    }

    /// The blocks that the batch just refused with [`DecodeError::MissingBlock`] lacks, or the first of them.
    pub fn missing(&self) -> &[MissingBlock] {
        self.known.missing()
    }

    /// The baseline of a missing block.
    pub fn baseline(&self, index: u8) -> Option<&Arc<Baseline>> {
        self.known.baseline(index)
    }

    /// Decodes the next batch into `out`, whose length is the batch's raw length.
    ///
    /// # Errors
    /// [`DecodeError`]; what `out` holds must not be used, and the session must end, unless it is
    /// [`DecodeError::MissingBlock`].
    pub fn decode(
        &mut self,
        version: CodecVersion,
        method: u8,
        history: bool,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), DecodeError> {
        if self.poisoned {
            return Err(DecodeError::Poisoned);
        }
        let decoded = self.decode_checked(version, method, history, payload, out);
        self.poisoned = match decoded {
            Ok(()) | Err(DecodeError::MissingBlock { .. }) => false,
            Err(_) => true,
        };
        decoded
    }

    fn decode_checked(
        &mut self,
        version: CodecVersion,
        method: u8,
        history: bool,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), DecodeError> {
        let raw_bytes = out.len();
        if raw_bytes > MAX_BATCH_RAW_BYTES {
            return Err(DecodeError::BatchTooLarge { raw_bytes });
        }
        let clear_max = Encoder::max_encoded_len(raw_bytes);
        let scratch = &mut self.scratch;
        let (store, simd) = (&mut self.store, self.simd);
        match Method::from_code(version, method)? {
            Method::Passthrough => {
                let mut rebuild = Rebuild::new(out, store, history, simd);
                rebuild.bytes(payload)?;
                rebuild.finish()
            }
            method @ (Method::V1Stored | Method::V1Lz4) => {
                let ops = v1::open(method == Method::V1Lz4, payload, clear_max, scratch)?;
                v1::decode(ops, Rebuild::new(out, store, history, simd))
            }
            Method::Stored | Method::Lz4 | Method::Zstd => {
                let before = history.then_some(&*store);
                let opened = sections::open(payload, clear_max, before, &mut self.zstd, scratch)?;
                let has_known = self.known.fetch(opened.ops.clone(), out)?;
                v3::decode(opened, has_known, Rebuild::new(out, store, history, simd))
            }
        }
    }

    /// The page history, when nothing more is to be decoded.
    pub fn into_store(self) -> PageStore {
        self.store
    }

    /// The receiver's page history.
    pub const fn store(&self) -> &PageStore {
        &self.store
    }
}
