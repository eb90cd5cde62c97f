//! Version 3: runs of operations, with raw bytes, literal pages and what patches the history apart.
//!
//! In: a batch's items and the history with its content index. Out: the [`Sections`]. A page is
//! all zero, equal to the stored copy of its address, a small delta against it, equal to the page in
//! another slot, equal to a block of a baseline, a larger delta, or literal: the first that holds. Promises: a reference is sent only
//! after its bytes were compared; the history changes as in version 1.

use super::content_index::{ContentHash, ContentIndex};
use super::delta;
use super::encoder::EncodeStats;
use super::filter::Filter;
use super::items::{Item, Items};
use super::known::{BlockCursor, KnownPages};
use super::ops::{BlockJump, Class, Jump, Op};
use super::prefetch::prefetch_page;
use super::rebuild::Rebuild;
use super::recent::Recent;
use super::sections::{Opened, Sections};
use super::simd::Simd;
use super::store::SlotId;
use super::varint::{self, Reader};
use super::{DecodeError, PAGE_BYTES, Page, PageStore};
use crate::stream::PageAddr;

/// A delta of no more words than this is sent without looking for a duplicate: it costs little more
/// than a reference, and the page to compare with would have to come from memory.
const SMALL_DELTA_WORDS: u32 = 64;

/// The sender's history.
pub(super) struct History<'a> {
    pub(super) store: &'a mut PageStore,
    pub(super) contents: &'a mut ContentIndex,
    /// Blocks that the receiver holds.
    pub(super) known: &'a mut KnownPages,
    pub(super) recent: &'a mut Recent,
    pub(super) simd: Simd,
}

/// Where references of a batch go on: they tend to follow each other, for a copied file lies in successive
/// slots and a file in successive blocks.
#[derive(Default)]
struct Next {
    slot: u32,
    block: BlockCursor,
}

/// Gathers operations of one kind on successive pages into one.
struct Runs<'a> {
    ops: &'a mut Vec<u8>,
    run: Option<Op>,
}

impl Runs<'_> {
    fn push(
        &mut self,
        (class, block): (Class, BlockJump),
        header: bool,
        jump: Option<Jump>,
        count: u64,
    ) {
        match &mut self.run {
            Some(run)
                if run.class == class
                    && run.header == header
                    && jump.is_none()
                    && block == BlockJump::default() =>
            {
                run.count += count;
            }
            _ => {
                self.flush();
                self.run = Some(Op {
                    class,
                    header,
                    jump,
                    count,
                    block,
                });
            }
        }
    }

    fn flush(&mut self) {
        if let Some(run) = self.run.take() {
            run.put(self.ops);
        }
    }
}

/// Fills the sections, which are empty, with a batch.
pub(super) fn encode(
    mut items: Items<'_>,
    mut history: History<'_>,
    sections: &mut Sections,
    stats: &mut EncodeStats,
) {
    let Sections {
        ops,
        patches,
        raw,
        places,
        literals,
        are_gathered,
        ..
    } = sections;
    let mut runs = Runs { ops, run: None };
    let mut next = Next::default();
    let no_block = BlockJump::default();
    while let Some(item) = items.next() {
        match item {
            Item::Raw(bytes) => {
                runs.push((Class::Raw, no_block), false, None, bytes.len() as u64);
                raw.extend_from_slice(bytes);
                stats.raw_bytes += bytes.len() as u64;
            }
            Item::Zero { jump, .. } => {
                runs.push((Class::Zero, no_block), false, jump, 1);
                stats.zero += 1;
            }
            Item::Page {
                addr,
                jump,
                header,
                at,
                page,
            } => {
                if let Some((addr, page)) = items.upcoming() {
                    prefetch_page(page);
                    history.store.prefetch(addr);
                }
                let class = history.page(addr, page, patches, &mut next);
                runs.push(class, header, jump, 1);
                stats.pages += 1;
                match class.0 {
                    Class::ZeroPage => stats.zero += 1,
                    Class::Same | Class::Copy => stats.dup += 1,
                    Class::Known => stats.known += 1,
                    Class::Delta => stats.delta += 1,
                    Class::Raw | Class::Zero | Class::Literal => {
                        places.push(at as u32);
                        if *are_gathered {
                            literals.extend_from_slice(page);
                        }
                        stats.literal += 1;
                    }
                }
            }
        }
    }
    runs.flush();
}

impl History<'_> {
    /// Classes a page, appends what patches the history into it, and stores it.
    fn page(
        &mut self,
        addr: PageAddr,
        page: &Page,
        patches: &mut Vec<u8>,
        next: &mut Next,
    ) -> (Class, BlockJump) {
        let mut block = BlockJump::default();
        if self.simd.is_zero(page) {
            return (Class::ZeroPage, block);
        }
        let own = self.store.find(addr);
        let old = own.and_then(|slot| self.store.page(slot)).map(|old| {
            let bitmap = self.simd.differing_words(old, page);
            (old, bitmap, delta::changed_words(&bitmap))
        });
        let small = old.is_some_and(|(_, _, words)| words <= SMALL_DELTA_WORDS);
        if matches!(old, Some((_, _, 0))) {
            return (Class::Same, block);
        }
        // Hashed even when no duplicate is looked for: a later page may be a copy of this one.
        let hash = self.contents.hash(page);
        let class = if !small && let Some(slot) = self.duplicate(hash, page) {
            let distance = i64::from(slot.0) - i64::from(next.slot);
            varint::put(patches, varint::zigzag(distance));
            next.slot = slot.0 + 1;
            Class::Copy
        } else if !small && let Some((baseline, number)) = self.known.find(page) {
            block = next.block.jump_to(baseline, number);
            Class::Known
        } else if let Some((old, bitmap, words)) = old
            && words <= delta::CHANGED_WORDS_MAX
        {
            delta::put(patches, old, page, &bitmap);
            Class::Delta
        } else {
            Class::Literal
        };
        let slot = self.store.insert_at(own, addr, page);
        self.contents.note(hash, slot);
        if class == Class::Literal {
            self.recent.note(slot);
        }
        (class, block)
    }

    fn duplicate(&self, hash: ContentHash, page: &Page) -> Option<SlotId> {
        self.contents
            .candidates(hash)
            .find(|&slot| self.store.page(slot) == Some(page))
    }
}

/// Carries out untrusted operations. The blocks of baselines that they refer to are in their places already; without
/// `has_known` there are none.
pub(super) fn decode(
    opened: Opened<'_>,
    has_known: bool,
    mut to: Rebuild<'_>,
) -> Result<(), DecodeError> {
    let Opened {
        mut ops,
        mut patches,
        mut raw,
        literals,
        kinds,
        filtered,
    } = opened;
    let mut literals = Literals {
        plain: literals,
        are_mixed: !kinds.is_empty(),
        kinds,
        filtered,
    };
    let mut next_slot = 0;
    while !ops.is_empty() {
        let op = Op::read(&mut ops).ok_or(to.malformed())?;
        to.check_fits(&op)?;
        if op.class == Class::Raw {
            to.bytes(raw.bytes(op.count as usize).ok_or(to.malformed())?)?;
            continue;
        }
        for nth in 0..op.count {
            let addr = to.place(&op, nth)?;
            match op.class {
                Class::Zero => to.zero(addr)?,
                Class::ZeroPage => to.zero_page(addr, op.header)?,
                Class::Known if has_known => to.page(addr, op.header, |_| Some(()))?,
                Class::Known => return Err(to.malformed()),
                Class::Raw | Class::Literal => {
                    to.page(addr, op.header, |page| literals.next(page))?;
                }
                Class::Same => to.same_page(addr, op.header)?,
                Class::Delta => {
                    to.patched_page(addr, op.header, |page| delta::apply(&mut patches, page))?;
                }
                Class::Copy => {
                    let slot = read_slot(&mut patches, &mut next_slot).ok_or(to.malformed())?;
                    to.copied_page(addr, op.header, slot)?;
                }
            }
        }
    }
    // Bytes that no operation asked for: the sections are not one encoder's work.
    if !(patches.is_empty() && raw.is_empty() && literals.are_used_up()) {
        return Err(DecodeError::BadSections);
    }
    to.finish()
}

/// The literal pages of a batch, in order.
struct Literals<'a> {
    plain: Reader<'a>,
    /// Some were filtered, and `kinds` tells of each whether and how.
    are_mixed: bool,
    kinds: Reader<'a>,
    filtered: Reader<'a>,
}

impl Literals<'_> {
    fn next(&mut self, page: &mut Page) -> Option<()> {
        let kind = if self.are_mixed {
            self.kinds.byte()?
        } else {
            0
        };
        if kind == 0 {
            page.copy_from_slice(self.plain.bytes(PAGE_BYTES)?);
        } else {
            let filtered = self.filtered.bytes(PAGE_BYTES)?.first_chunk()?;
            Filter::from_number(kind)?.undo(filtered, page);
        }
        Some(())
    }

    const fn are_used_up(&self) -> bool {
        self.plain.is_empty() && self.kinds.is_empty() && self.filtered.is_empty()
    }
}

fn read_slot(patches: &mut Reader<'_>, next_slot: &mut u32) -> Option<SlotId> {
    let distance = varint::unzigzag(patches.varint()?);
    let slot = u32::try_from(i64::from(*next_slot).checked_add(distance)?).ok()?;
    *next_slot = slot.checked_add(1)?;
    Some(SlotId(slot))
}
