//! Where a content was stored last: the sender's guide to duplicates.
//!
//! In: page contents with the slot they went to. Out: at most eight slots that may hold a content.
//! Promises: only a hint. An entry may be stale or collide, so the caller compares the bytes before
//! it sends a reference. Memory and work are fixed whatever contents a guest chooses: a set holds
//! eight entries, the oldest falls out, and the hash is keyed.

use dwcp_baseline::hash::PageHash;

use super::Page;
use super::store::SlotId;

/// One cache line of entries.
const WAYS: usize = 8;

/// A hash of a page's content under the index's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentHash(u64);

/// Entries, newest first: upper half of the hash, below it the slot plus one; zero is empty.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([u64; WAYS]);

/// A set-associative table.
pub(super) struct ContentIndex {
    sets: Box<[Set]>,
    hash: PageHash,
}

impl ContentIndex {
    const fn sets(slots: usize) -> usize {
        (slots * 4).next_power_of_two().div_ceil(WAYS)
    }

    /// What an index for `slots` slots takes.
    pub(super) const fn bytes(slots: usize) -> usize {
        Self::sets(slots) * size_of::<Set>()
    }

    /// What this one takes.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// An index for `slots` slots, 32 to 64 bytes a slot: with fewer, sets that happen to be full lose one
    /// content in twenty. `key` must be unknown to guests.
    pub(super) fn new(slots: u32, key: &[u8; 32]) -> Self {
        Self {
            sets: vec![Set([0; WAYS]); Self::sets(slots as usize)].into_boxed_slice(),
            hash: PageHash::new(key, b"dwcp page content index"),
        }
    }

    pub(super) fn hash(&self, page: &Page) -> ContentHash {
        ContentHash(self.hash.of(page))
    }

    const fn set_of(&self, hash: ContentHash) -> usize {
        hash.0 as usize & (self.sets.len() - 1)
    }

    /// Slots that may hold the content, newest first.
    pub(super) fn candidates(&self, hash: ContentHash) -> impl Iterator<Item = SlotId> + use<> {
        let Set(set) = self.sets[self.set_of(hash)];
        set.into_iter()
            .filter(move |entry| *entry as u32 != 0 && entry >> 32 == hash.0 >> 32)
            .map(|entry| SlotId(entry as u32 - 1))
    }

    /// Notes that `slot` now holds the content.
    pub(super) fn note(&mut self, hash: ContentHash, slot: SlotId) {
        let entry = hash.0 >> 32 << 32 | (u64::from(slot.0) + 1);
        let at = self.set_of(hash);
        let Set(set) = &mut self.sets[at];
        // An equal hash gives way first: one content needs one entry, the newest.
        let last = set
            .iter()
            .position(|old| old >> 32 == hash.0 >> 32)
            .unwrap_or(WAYS - 1);
        set.copy_within(..last, 1);
        set[0] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE_BYTES;
    use super::*;

    #[test]
    fn finds_what_was_noted_and_forgets_the_oldest() {
        let mut index = ContentIndex::new(2, &[7; 32]);
        let pages: Vec<Page> = (0..10).map(|fill| [fill; PAGE_BYTES]).collect();
        let hashes: Vec<ContentHash> = pages.iter().map(|page| index.hash(page)).collect();
        for (slot, &hash) in hashes.iter().enumerate() {
            assert_eq!(index.candidates(hash).next(), None);
            index.note(hash, SlotId(slot as u32));
            index.note(hash, SlotId(slot as u32 + 10));
            assert_eq!(
                index.candidates(hash).collect::<Vec<_>>(),
                [SlotId(slot as u32 + 10)]
            );
        }
        // One set of eight entries in all: the two oldest contents are gone.
        let found: Vec<bool> = hashes
            .iter()
            .map(|&hash| index.candidates(hash).next().is_some())
            .collect();
        assert_eq!(found, [&[false; 2][..], &[true; 8]].concat());
    }

    #[test]
    fn another_key_hashes_otherwise() {
        let page = [1; PAGE_BYTES];
        let a = ContentIndex::new(1, &[1; 32]).hash(&page);
        let b = ContentIndex::new(1, &[2; 32]).hash(&page);
        assert_ne!(a, b);
    }
}
