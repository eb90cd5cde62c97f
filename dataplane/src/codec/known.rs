//! Pages that are blocks of a baseline which both sides hold.
//!
//! In: at the sender pages, at the receiver untrusted references. Out: references; at the receiver the blocks,
//! each checked by its digest. Promises: the sender refers only to a block whose BLAKE3 digest is the page's;
//! the receiver has read every block of a batch before anything of it changes, so that a batch with a block
//! that is not there can be had again in another encoding; finding and reading make no allocation.

use std::sync::Arc;

use dwcp_baseline::block::digest;
use dwcp_baseline::{Baseline, BlockError};

use super::ops::{BlockJump, Class, Op};
use super::varint::Reader;
use super::{DecodeError, MAX_BATCH_RAW_BYTES, PAGE_BYTES, Page};
use crate::stream::{PAGE_RECORD_BYTES, ZERO_RECORD_BYTES};

/// Baselines of one session at most.
pub const BASELINES_MAX: usize = 12;
/// Missing blocks of one batch that are told apart; more are missing all the same.
const MISSING_MAX: usize = 64;

/// The block that would come next. Starts anew with every batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockCursor {
    baseline: u8,
    next: u32,
}

impl BlockCursor {
    /// The jump to a block; passes it.
    pub(super) fn jump_to(&mut self, baseline: u8, number: u32) -> BlockJump {
        let jump = BlockJump {
            baseline: (baseline != self.baseline).then_some(baseline),
            distance: i64::from(number) - i64::from(self.next),
        };
        self.baseline = baseline;
        self.next = number + 1;
        jump
    }

    /// The block that a jump from untrusted bytes leads to; passes it.
    fn place(&mut self, jump: BlockJump) -> Option<(u8, u32)> {
        let baseline = jump.baseline.unwrap_or(self.baseline);
        let number = i64::from(self.next).checked_add(jump.distance)?;
        let number = u32::try_from(number).ok()?;
        self.baseline = baseline;
        self.next = number.checked_add(1)?;
        Some((baseline, number))
    }
}

/// The sender's side.
#[derive(Default)]
pub(super) struct KnownPages {
    list: Vec<Arc<Baseline>>,
    last: usize,
}

impl KnownPages {
    pub(super) const fn new(list: Vec<Arc<Baseline>>) -> Self {
        Self { list, last: 0 }
    }

    /// Baseline and number of a block equal to `page`.
    pub(super) fn find(&mut self, page: &Page) -> Option<(u8, u32)> {
        let hash = self.list.first()?.hash(page);
        let mut known = None;
        let mut page_digest = || *known.get_or_insert_with(|| digest(page));
        let (last, count) = (self.last, self.list.len());
        // What is found in one is likely to go on there.
        for at in (last..count).chain(0..last) {
            if let Some(number) = self.list[at].find(hash, &mut page_digest) {
                self.last = at;
                return Some((at as u8, number));
            }
        }
        None
    }
}

/// A block that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingBlock {
    /// Index of its baseline, as agreed.
    pub baseline: u8,
    /// Its number there.
    pub number: u32,
    /// Where in the batch's raw bytes its page goes.
    pub at: usize,
}

/// The receiver's side.
#[derive(Default)]
pub(super) struct KnownBlocks {
    list: Vec<Arc<Baseline>>,
    /// The blocks of the batch at hand, in order.
    pages: Box<[u8]>,
    missing: Vec<MissingBlock>,
}

impl KnownBlocks {
    pub(super) fn new(list: Vec<Arc<Baseline>>) -> Self {
        Self {
            list,
            pages: vec![0; MAX_BATCH_RAW_BYTES].into_boxed_slice(),
            missing: Vec::with_capacity(MISSING_MAX),
        }
    }

    /// What the last batch lacked.
    pub(super) fn missing(&self) -> &[MissingBlock] {
        &self.missing
    }

    pub(super) fn baseline(&self, index: u8) -> Option<&Arc<Baseline>> {
        self.list.get(usize::from(index))
    }

    /// Reads every block that the untrusted operations refer to, and answers them one after another.
    pub(super) fn fetch(
        &mut self,
        mut ops: Reader<'_>,
        raw_bytes: usize,
    ) -> Result<Reader<'_>, DecodeError> {
        self.missing.clear();
        if self.list.is_empty() {
            return Ok(Reader::new(&[]));
        }
        let room = (raw_bytes / PAGE_BYTES).min(self.pages.len() / PAGE_BYTES);
        let (pages, _) = self.pages.as_chunks_mut::<PAGE_BYTES>();
        let mut pages = pages[..room].iter_mut();
        let mut cursor = BlockCursor::default();
        let (mut at, mut fetched, mut first_missing) = (0usize, 0, None);
        while !ops.is_empty() {
            let malformed = DecodeError::BadOperation { at };
            let op = Op::read(&mut ops).ok_or(malformed)?;
            let unit = match op.class {
                Class::Raw => 1,
                Class::Zero => ZERO_RECORD_BYTES,
                _ if op.header => PAGE_RECORD_BYTES,
                _ => PAGE_BYTES,
            };
            let too_many = DecodeError::WrongLength { raw_bytes };
            if op.count > ((raw_bytes - at) / unit) as u64 {
                return Err(too_many);
            }
            if op.class == Class::Known {
                let mut jump = op.block;
                for nth in 0..op.count as usize {
                    let malformed = DecodeError::BadOperation { at };
                    let (baseline, number) = cursor.place(jump).ok_or(malformed)?;
                    jump = BlockJump::default();
                    let unknown = DecodeError::UnknownBlock { baseline, number };
                    let from = self.list.get(usize::from(baseline)).ok_or(unknown)?;
                    let page = pages.next().ok_or(DecodeError::WrongLength { raw_bytes })?;
                    fetched += 1;
                    match from.read(number, page) {
                        Ok(()) => {}
                        Err(BlockError::Outside) => {
                            return Err(DecodeError::UnknownBlock { baseline, number });
                        }
                        Err(BlockError::Damaged) => {
                            first_missing.get_or_insert((baseline, number));
                            if self.missing.len() < MISSING_MAX {
                                let at = at + nth * unit + (unit - PAGE_BYTES);
                                self.missing.push(MissingBlock {
                                    baseline,
                                    number,
                                    at,
                                });
                            }
                        }
                    }
                }
            }
            at += op.count as usize * unit;
        }
        if let Some((baseline, number)) = first_missing {
            return Err(DecodeError::MissingBlock { baseline, number });
        }
        Ok(Reader::new(&self.pages[..fetched * PAGE_BYTES]))
    }
}
