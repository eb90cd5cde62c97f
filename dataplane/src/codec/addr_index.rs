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
    owners: Box<[PageAddr]>,
    hasher: RandomState,
}

impl AddrIndex {
    /// An index of `slots` slots. 32 to 48 bytes a slot.
    pub(super) fn new(slots: u32) -> Self {
        let entries = (slots as usize * 2).next_power_of_two();
        Self {
            entries: vec![0; entries].into_boxed_slice(),
            owners: vec![
                PageAddr {
                    block: BlockId(0),
                    index: 0
                };
                slots as usize
            ]
            .into_boxed_slice(),
            hasher: RandomState::new(),
        }
    }

    const fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    fn tag(&self, addr: PageAddr) -> u32 {
        (self.hasher.hash_one((addr.block.0, addr.index)) >> 32) as u32
    }

    /// Soon `addr` is looked for, or given a slot.
    pub(super) fn prefetch(&self, addr: PageAddr) {
        prefetch(&self.entries[self.tag(addr) as usize & self.mask()]);
    }

    /// The slot that [`set_owner`](Self::set_owner) last gave to `addr`.
    pub(super) fn find(&self, addr: PageAddr) -> Option<u32> {
        self.position(addr).map(|at| self.entries[at] as u32 - 1)
    }

    fn position(&self, addr: PageAddr) -> Option<usize> {
        let tag = self.tag(addr);
        let mut at = tag as usize & self.mask();
        loop {
            let entry = self.entries[at];
            if entry == 0 {
                return None;
            }
            if (entry >> 32) as u32 == tag && self.owners[entry as u32 as usize - 1] == addr {
                return Some(at);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// The address that owns `slot`; meaningless for a slot that was never given away.
    pub(super) fn owner(&self, slot: u32) -> PageAddr {
        self.owners[slot as usize]
    }

    /// Gives `slot` to `addr`, which owns no slot yet. The slot's previous owner, if any, was removed.
    pub(super) fn set_owner(&mut self, slot: u32, addr: PageAddr) {
        let tag = self.tag(addr);
        let mut at = tag as usize & self.mask();
        while self.entries[at] != 0 {
            at = (at + 1) & self.mask();
        }
        self.entries[at] = u64::from(tag) << 32 | (u64::from(slot) + 1);
        self.owners[slot as usize] = addr;
    }

    /// Forgets `addr`. Later entries of the same probe chain move up, so no tombstone stays behind
    /// and chains do not grow with age.
    pub(super) fn remove(&mut self, addr: PageAddr) {
        let Some(mut hole) = self.position(addr) else {
            return;
        };
        let mask = self.mask();
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
                        index.remove(addr);
                        oracle.remove(&addr);
                        free.push(slot);
                    }
                    _ => index.remove(PageAddr { block: BlockId(9), index: page }),
                }
                for (&addr, &slot) in &oracle {
                    prop_assert_eq!(index.find(addr), Some(slot));
                    prop_assert_eq!(index.owner(slot), addr);
                }
            }
        }
    }
}
