//! Pages that are blocks of a baseline which both sides hold.
//!
//! In: at the sender pages, at the receiver untrusted references. Out: references; at the receiver the blocks,
//! each checked. Promises: the sender refers only to a block whose BLAKE3 digest is the page's;
//! the receiver has read every block of a batch, into its place, before the history changes, so that a batch
//! with a block that is not there can be had again in another encoding; finding and reading make no allocation.

use std::sync::Arc;

use dwcp_baseline::Baseline;
use dwcp_baseline::block::digest;

use super::ops::{BlockJump, Class, Op};
use super::varint::Reader;
use super::{DecodeError, PAGE_BYTES, Page};
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

    /// The first of `count` blocks that a jump from untrusted bytes leads to; passes them.
    fn place(&mut self, jump: BlockJump, count: u32) -> Option<(u8, u32)> {
        let baseline = jump.baseline.unwrap_or(self.baseline);
        let number = i64::from(self.next).checked_add(jump.distance)?;
        let number = u32::try_from(number).ok()?;
        self.baseline = baseline;
        self.next = number.checked_add(count)?;
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
    missing: Vec<MissingBlock>,
}

impl KnownBlocks {
    pub(super) fn new(list: Vec<Arc<Baseline>>) -> Self {
        Self {
            list,
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

    /// Reads every block that the untrusted operations refer to into its place in `out`, the batch's raw bytes.
    /// Answers whether there are any baselines.
    pub(super) fn fetch(
        &mut self,
        mut ops: Reader<'_>,
        out: &mut [u8],
    ) -> Result<bool, DecodeError> {
        self.missing.clear();
        if self.list.is_empty() {
            return Ok(false);
        }
        let raw_bytes = out.len();
        let mut rest = out;
        let mut cursor = BlockCursor::default();
        while !ops.is_empty() {
            let at = raw_bytes - rest.len();
            let op = Op::read(&mut ops).ok_or(DecodeError::BadOperation { at })?;
            let unit = match op.class {
                Class::Raw => 1,
                Class::Zero => ZERO_RECORD_BYTES,
                _ if op.header => PAGE_RECORD_BYTES,
                _ => PAGE_BYTES,
            };
            if op.count > (rest.len() / unit) as u64 {
                return Err(DecodeError::WrongLength { raw_bytes });
            }
            let count = op.count as usize;
            let (of_op, behind) = rest.split_at_mut(count * unit);
            if op.class == Class::Known {
                let run = cursor.place(op.block, count as u32);
                let (baseline, first) = run.ok_or(DecodeError::BadOperation { at })?;
                let from = self.list.get(usize::from(baseline));
                let room = from.map_or(0, |from| from.blocks().saturating_sub(first));
                let Some(from) = from.filter(|_| room as usize >= count) else {
                    let number = first + room;
                    return Err(DecodeError::UnknownBlock { baseline, number });
                };
                let mut note = |nth: u32| {
                    if self.missing.len() < MISSING_MAX {
                        self.missing.push(MissingBlock {
                            baseline,
                            number: first + nth,
                            at: at + nth as usize * unit + (unit - PAGE_BYTES),
                        });
                    }
                };
                let mut pages = of_op
                    .chunks_exact_mut(unit)
                    .filter_map(|record| record.last_chunk_mut::<PAGE_BYTES>());
                from.read_run(first, &mut pages, &mut note);
            }
            rest = behind;
        }
        match self.missing.first() {
            Some(&MissingBlock {
                baseline, number, ..
            }) => Err(DecodeError::MissingBlock { baseline, number }),
            None => Ok(true),
        }
    }
}
