//! Which slot of the store holds which page address.
//!
//! In: addresses and slot numbers. Out: the slot of an address, the address of a slot. Promises: no
//! allocation after [`AddrIndex::new`]; the cost of an operation does not depend on what a guest or a
//! peer chooses, because addresses are placed by SipHash under a key of this process. The placement
//! is private: two ends whose keys differ still answer the same.

use std::hash::{BuildHasher, RandomState};

use super::prefetch::prefetch;
use crate::stream::{BlockId, PageAddr};

/// An open-addressing table with linear probing. An entry is the upper half of the hash and, below
/// it, the slot plus one; zero is empty. Half of the entries at least stay empty.
pub(super) struct AddrIndex {
    entries: Box<[u64]>,
    owners: Box<[Owner]>,
    hasher: RandomState,
    /// Of the addresses asked about last, by the lowest bit of their page: each is asked about some times.
    tags: [(PageAddr, u32); 2],
}

/// The address of a slot with its tag, in 16 bytes.
#[derive(Clone, Copy)]
struct Owner {
    index: u64,
    block: BlockId,
    tag: u32,
}

impl Owner {
    fn is(self, addr: PageAddr) -> bool {
        self.index == addr.index && self.block == addr.block
    }
}

impl AddrIndex {
    /// What an index of `slots` slots takes.
    pub(super) const fn bytes(slots: usize) -> usize {
        (slots * 2).next_power_of_two() * size_of::<u64>() + slots * size_of::<Owner>()
    }

    /// What this one takes.
    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> usize {
        size_of_val(&*self.entries) + size_of_val(&*self.owners)
    }

    /// An index of `slots` slots. 32 to 48 bytes a slot.
    pub(super) fn new(slots: u32) -> Self {
        let entries = (slots as usize * 2).next_power_of_two();
        let hasher = RandomState::new();
        let tags = [0, 1].map(|index| {
            let addr = PageAddr {
                block: BlockId(0),
                index,
            };
            (addr, tag(&hasher, addr))
        });
        let nobody = Owner {
            index: 0,
            block: BlockId(0),
            tag: 0,
        };
        Self {
            entries: vec![0; entries].into_boxed_slice(),
            owners: vec![nobody; slots as usize].into_boxed_slice(),
            hasher,
            tags,
        }
    }

    const fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    fn tag(&mut self, addr: PageAddr) -> u32 {
        let known = &mut self.tags[addr.index as usize & 1];
        if known.0 != addr {
            *known = (addr, tag(&self.hasher, addr));
        }
        known.1
    }

    /// Soon `addr` is looked for, or given a slot.
    pub(super) fn prefetch(&mut self, addr: PageAddr) {
        let at = self.tag(addr) as usize & self.mask();
        prefetch(&self.entries[at]);
    }

    /// The slot that [`set_owner`](Self::set_owner) last gave to `addr`.
    pub(super) fn find(&mut self, addr: PageAddr) -> Option<u32> {
        let tag = self.tag(addr);
        self.find_tagged(addr, tag)
    }

    /// As [`find`](Self::find).
    pub(super) fn peek(&self, addr: PageAddr) -> Option<u32> {
        self.find_tagged(addr, tag(&self.hasher, addr))
    }

    fn find_tagged(&self, addr: PageAddr, tag: u32) -> Option<u32> {
        let mut at = tag as usize & self.mask();
        loop {
            let entry = self.entries[at];
            let slot = (entry as u32).checked_sub(1)?;
            if (entry >> 32) as u32 == tag && self.owners[slot as usize].is(addr) {
                return Some(slot);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Is `slot` that of `addr`? Meaningless for a slot that was never given away.
    pub(super) fn owns(&self, slot: u32, addr: PageAddr) -> bool {
        self.owners[slot as usize].is(addr)
    }

    /// The address that owns `slot`; meaningless for a slot that was never given away.
    #[cfg(test)]
    pub(super) fn owner(&self, slot: u32) -> PageAddr {
        let Owner { index, block, .. } = self.owners[slot as usize];
        PageAddr { block, index }
    }

    /// Gives `slot` to `addr`, which owns no slot yet. The slot's previous owner, if any, was removed.
    pub(super) fn set_owner(&mut self, slot: u32, addr: PageAddr) {
        let tag = self.tag(addr);
        let mut at = tag as usize & self.mask();
        while self.entries[at] != 0 {
            at = (at + 1) & self.mask();
        }
        self.entries[at] = u64::from(tag) << 32 | (u64::from(slot) + 1);
        let PageAddr { block, index } = addr;
        self.owners[slot as usize] = Owner { index, block, tag };
    }

    /// Takes `slot`, which was given away, from its owner. Later entries of the same probe chain move up, so no
    /// tombstone stays behind and chains do not grow with age.
    pub(super) fn remove(&mut self, slot: u32) {
        let mask = self.mask();
        let tag = self.owners[slot as usize].tag;
        let wanted = u64::from(tag) << 32 | (u64::from(slot) + 1);
        let mut hole = tag as usize & mask;
        while self.entries[hole] != wanted {
            if self.entries[hole] == 0 {
                return;
            }
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let entry = self.entries[at];
            if entry == 0 {
                break;
            }
            let home = (entry >> 32) as usize & mask;
            // An entry may move into the hole only if the hole is not before its home.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = 0;
    }
}

fn tag(hasher: &RandomState, addr: PageAddr) -> u32 {
    (hasher.hash_one((addr.block.0, addr.index)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec((0u64..24, 0u16..2, any::<bool>()), 0..400)) {
            let mut index = AddrIndex::new(16);
            let mut oracle: HashMap<PageAddr, u32> = HashMap::new();
            let mut free: Vec<u32> = (0..16).collect();
            for (page, block, add) in ops {
                let addr = PageAddr { block: BlockId(block), index: page };
                prop_assert_eq!(index.find(addr), oracle.get(&addr).copied());
                match (add, oracle.get(&addr).copied()) {
                    (true, None) => if let Some(slot) = free.pop() {
                        index.set_owner(slot, addr);
                        oracle.insert(addr, slot);
                    },
                    (false, Some(slot)) => {
                        index.remove(slot);
                        oracle.remove(&addr);
                        free.push(slot);
                    }
                    // Nobody has it, so nothing happens.
                    _ => if let Some(&slot) = free.first() {
                        index.remove(slot);
                    },
                }
                for (&addr, &slot) in &oracle {
                    prop_assert_eq!(index.find(addr), Some(slot));
                    prop_assert_eq!(index.peek(addr), Some(slot));
                    prop_assert_eq!(index.owner(slot), addr);
                    prop_assert!(index.owns(slot, addr));
                }
            }
        }
    }
}
