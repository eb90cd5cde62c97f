//! The page history: a bounded store of the last copy of each page, the same on both ends.
//!
//! In: pages under their addresses, in batch order. Out: the stored copy of an address or of a slot.
//! Promises: the slots that a page goes to depend only on the sequence of [`PageStore::insert`] calls
//! and on the number of slots, so two ends that insert the same sequence hold the same store, through
//! every eviction; nothing is allocated after [`PageStore::new`].

use dwcp_hugepages::arena::{Arena, ArenaConfig, BackingPolicy, arena_bytes};

use super::addr_index::AddrIndex;
use super::prefetch::prefetch_page;
use super::simd::Simd;
use super::{PAGE_BYTES, Page};
use crate::stream::PageAddr;

/// What a store is made of. Both ends of a session must use the same `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct PageStoreConfig {
    /// Memory for pages, in bytes; what does not fill a 4 KiB slot is not used. The index takes
    /// about 1 % on top.
    pub bytes: usize,
    /// What memory to ask for.
    pub backing: BackingPolicy,
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Fewer bytes than one page.
    #[error("a page history of {bytes} bytes holds no page: give it {PAGE_BYTES} bytes or more")]
    TooSmall {
        /// The bytes asked for.
        bytes: usize,
    },
    /// More slots than a reference can name.
    #[error("a page history of {bytes} bytes has too many slots: give it 4 TiB at most")]
    TooLarge {
        /// The bytes asked for.
        bytes: usize,
    },
    /// The memory could not be had.
    #[error("no memory for the page history: reserve more hugepages or make the history smaller")]
    Memory(#[from] dwcp_hugepages::arena::ArenaError),
}

/// A place in the store. Means the same place on both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId(pub u32);

const SLOTS_MAX: usize = 1 << 30;

/// The store. See the module documentation.
pub struct PageStore {
    arena: Arena,
    index: AddrIndex,
    slots: u32,
    /// Slots `0..used` hold a page. Slots fill in order and never empty again.
    used: u32,
    /// The slot that the next new address takes.
    clock: u32,
    /// Behind the slot that was found or written last: there the next page often is.
    likely: u32,
}

impl PageStore {
    /// An empty store.
    ///
    /// # Errors
    /// [`StoreError`], for a size out of bounds or memory that is not there.
    pub fn new(config: PageStoreConfig) -> Result<Self, StoreError> {
        let bytes = config.bytes;
        // From the configured size, not from the arena's, which may be rounded up on one end only.
        let slots = bytes / PAGE_BYTES;
        if slots == 0 {
            return Err(StoreError::TooSmall { bytes });
        }
        if slots > SLOTS_MAX {
            return Err(StoreError::TooLarge { bytes });
        }
        let arena = Arena::new(ArenaConfig {
            name: "page history",
            bytes: slots * PAGE_BYTES,
            backing: config.backing,
        })?;
        if arena.len() < slots * PAGE_BYTES {
            return Err(StoreError::TooSmall { bytes: arena.len() });
        }
        let slots = slots as u32;
        Ok(Self {
            arena,
            index: AddrIndex::new(slots),
            slots,
            used: 0,
            clock: 0,
            likely: 0,
        })
    }

    /// What a store of `bytes` takes, its index included.
    pub const fn bytes(bytes: usize) -> usize {
        let slots = bytes / PAGE_BYTES;
        arena_bytes(slots * PAGE_BYTES) + AddrIndex::bytes(slots)
    }

    /// What this one takes.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        self.arena.len() + self.index.taken_bytes()
    }

    /// How many pages fit.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// How many pages are stored.
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// The slot of the last page inserted under `addr`, unless it was evicted.
    pub fn lookup(&self, addr: PageAddr) -> Option<SlotId> {
        self.index.peek(addr).map(SlotId)
    }

    /// As [`lookup`](Self::lookup): fastest for pages in the order in which they were stored.
    pub(super) fn find(&mut self, addr: PageAddr) -> Option<SlotId> {
        let likely = self.likely;
        // An address owns one slot at most, and every used slot has an owner.
        let slot = if likely < self.used && self.index.owns(likely, addr) {
            likely
        } else {
            self.index.find(addr)?
        };
        self.likely = slot + 1;
        Some(SlotId(slot))
    }

    /// Soon the page behind the one found last is looked for, or `addr`, if it is another.
    pub(super) fn prefetch(&mut self, addr: PageAddr) {
        let likely = self.likely;
        if likely < self.used && self.index.owns(likely, addr) {
            if let Some(page) = self.page(SlotId(likely)) {
                prefetch_page(page);
            }
        } else {
            self.index.prefetch(addr);
        }
    }

    /// The page in `slot`. `None`: no page was ever there.
    pub fn page(&self, slot: SlotId) -> Option<&Page> {
        if slot.0 >= self.used {
            return None;
        }
        let start = slot.0 as usize * PAGE_BYTES;
        // SAFETY: the arena hands out raw memory, so a reference to a page of it takes `unsafe`.
        // `slot < used <= slots`, and `new` saw that the arena covers `slots` pages; slots start at
        // multiples of the page size and a byte array needs no alignment; the slot was written by
        // `write` before `used` grew past it; the arena lives and is only written through `&mut self`.
        Some(unsafe { &*self.arena.as_ptr().cast_const().add(start).cast::<Page>() })
    }

    /// The pages in `count` slots from `first` on. `None`: not all of them ever held one.
    pub(super) fn stretch(&self, first: SlotId, count: u32) -> Option<&[u8]> {
        let end = first.0.checked_add(count)?;
        if end > self.used {
            return None;
        }
        let at = first.0 as usize * PAGE_BYTES;
        // SAFETY: raw memory of the arena, as in `page`: all slots below `used` were written.
        Some(unsafe {
            let from = self.arena.as_ptr().cast_const().add(at);
            std::slice::from_raw_parts(from, count as usize * PAGE_BYTES)
        })
    }

    /// Stores `page` as the last copy of `addr`: over the previous copy if there is one, else in the
    /// slot that was filled longest ago.
    pub fn insert(&mut self, addr: PageAddr, page: &Page) -> SlotId {
        let found = self.find(addr);
        self.insert_at(found, addr, page)
    }

    /// Like [`insert`](Self::insert) for a page that is not read soon.
    pub(super) fn insert_past_caches(&mut self, simd: Simd, addr: PageAddr, page: &Page) {
        let found = self.find(addr);
        let slot = found.unwrap_or_else(|| self.take_slot(addr));
        self.used = self.used.max(slot.0 + 1);
        self.likely = slot.0 + 1;
        if let Some(to) = self.page_mut(slot) {
            simd.copy_past_caches(page, to);
        }
    }

    /// Like [`insert`](Self::insert) for an address whose slot the caller has just looked up.
    pub(super) fn insert_at(
        &mut self,
        looked_up: Option<SlotId>,
        addr: PageAddr,
        page: &Page,
    ) -> SlotId {
        debug_assert_eq!(looked_up, self.lookup(addr));
        let slot = looked_up.unwrap_or_else(|| self.take_slot(addr));
        self.write(slot, page);
        self.likely = slot.0 + 1;
        slot
    }

    /// The page in `slot`, to be changed into the next copy of its address. `None`: no page was ever there.
    pub(super) fn page_mut(&mut self, slot: SlotId) -> Option<&mut Page> {
        if slot.0 >= self.used {
            return None;
        }
        let start = slot.0 as usize * PAGE_BYTES;
        // SAFETY: raw memory of the arena, as in `page`, zeroed where nothing was written yet; `&mut self` means
        // that no other reference into it is alive.
        Some(unsafe { &mut *self.arena.as_ptr().add(start).cast::<Page>() })
    }

    fn take_slot(&mut self, addr: PageAddr) -> SlotId {
        let slot = self.clock;
        self.clock = if slot + 1 == self.slots { 0 } else { slot + 1 };
        if slot < self.used {
            self.index.remove(slot);
        }
        self.index.set_owner(slot, addr);
        SlotId(slot)
    }

    fn write(&mut self, slot: SlotId, page: &Page) {
        debug_assert!(slot.0 < self.slots);
        let start = slot.0 as usize * PAGE_BYTES;
        // SAFETY: raw memory of the arena again. Every caller passes a slot from `take_slot` or the
        // index, so `slot < slots` and the page lies inside the arena; `&mut self` means that no
        // reference from `page()` is alive, and `page` cannot overlap the slot for the same reason.
        unsafe {
            self.arena
                .as_ptr()
                .add(start)
                .copy_from_nonoverlapping(page.as_ptr(), PAGE_BYTES);
        }
        self.used = self.used.max(slot.0 + 1);
    }

    /// Everything that must agree between two mirrored stores.
    #[cfg(test)]
    pub(super) fn contents(&self) -> (u32, Vec<(PageAddr, Page)>) {
        let pages = (0..self.used).map(|slot| {
            let addr = self.index.owner(slot);
            assert_eq!(self.lookup(addr), Some(SlotId(slot)));
            (addr, *self.page(SlotId(slot)).unwrap())
        });
        (self.clock, pages.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::BlockId;
    use proptest::prelude::*;

    fn store(slots: usize) -> PageStore {
        PageStore::new(PageStoreConfig {
            bytes: slots * PAGE_BYTES + 100,
            backing: BackingPolicy::PreferHuge,
        })
        .unwrap()
    }

    const fn addr(index: u64) -> PageAddr {
        PageAddr {
            block: BlockId(3),
            index,
        }
    }

    #[test]
    fn refuses_a_size_without_a_slot() {
        let config = PageStoreConfig {
            bytes: 4095,
            backing: BackingPolicy::PreferHuge,
        };
        assert!(matches!(
            PageStore::new(config),
            Err(StoreError::TooSmall { bytes: 4095 })
        ));
    }

    #[test]
    fn an_empty_slot_is_no_page() {
        let mut store = store(2);
        assert_eq!(store.page(SlotId(0)), None);
        store.insert(addr(7), &[9; PAGE_BYTES]);
        assert_eq!(store.page(SlotId(0)), Some(&[9; PAGE_BYTES]));
        assert_eq!(store.page(SlotId(1)), None);
        assert_eq!(store.page(SlotId(u32::MAX)), None);
    }

    proptest! {
        /// The oracle: a list of (address, fill), replaced in place or at a clock hand.
        #[test]
        fn replaces_in_clock_order(
            slots in 1usize..12,
            inserts in proptest::collection::vec((0u64..20, any::<u8>()), 0..200),
        ) {
            let mut store = store(slots);
            let mut mirror = self::store(slots);
            let mut oracle: Vec<(u64, u8)> = Vec::new();
            let mut hand = 0;
            for (index, fill) in inserts {
                let slot = store.insert(addr(index), &[fill; PAGE_BYTES]);
                let looked_up = mirror.lookup(addr(index));
                if fill % 2 == 0 {
                    mirror.insert_past_caches(Simd::detect(), addr(index), &[fill; PAGE_BYTES]);
                } else {
                    prop_assert_eq!(slot, mirror.insert_at(looked_up, addr(index), &[fill; PAGE_BYTES]));
                }
                if let Some(entry) = oracle.iter_mut().find(|entry| entry.0 == index) {
                    entry.1 = fill;
                } else if oracle.len() < slots {
                    oracle.push((index, fill));
                    hand = (hand + 1) % slots;
                } else {
                    oracle[hand] = (index, fill);
                    hand = (hand + 1) % slots;
                }
                let expected: Vec<_> =
                    oracle.iter().map(|&(i, fill)| (addr(i), [fill; PAGE_BYTES])).collect();
                prop_assert!(store.contents() == (hand as u32, expected));
                prop_assert!(store.contents() == mirror.contents());
                let all: Vec<u8> = oracle.iter().flat_map(|&(_, fill)| [fill; PAGE_BYTES]).collect();
                let used = oracle.len() as u32;
                prop_assert!(store.stretch(SlotId(0), used) == Some(&all[..]));
                prop_assert!(store.stretch(SlotId(1), used - 1) == Some(&all[PAGE_BYTES..]));
                prop_assert!(store.stretch(SlotId(1), used).is_none());
                for index in 0..20 {
                    let stored = oracle.iter().any(|entry| entry.0 == index);
                    let found = store.lookup(addr(index));
                    prop_assert_eq!(found.is_some(), stored);
                    prop_assert_eq!(store.find(addr(index)), found);
                }
            }
        }
    }
}
