//! The operations that both versions send: what each stretch of the batch is, and which page.
//!
//! In: classes, counts and page addresses; or untrusted bytes. Out: one varint an operation
//! (class in bits 0-2, `header` in bit 3, `jump` in bit 4, count less one above), followed, when the
//! page is not the successor of the one before, by the jump: zigzag of the distance shifted left by
//! one, with bit 0 telling that a block number follows. Blocks of a baseline have a jump of their own
//! behind it, from the block expected next, with bit 0 telling that the number of a baseline follows. Promises: [`Op::read`] accepts only what
//! [`Op::put`] can write, and [`Cursor::place`] only addresses of a 64-bit offset.

use super::varint::{self, Reader};
use crate::stream::{BlockId, PageAddr};

/// What a stretch of a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `count` bytes as they are.
    Raw = 0,
    /// ZERO records.
    Zero = 1,
    /// Page bodies that are all zero.
    ZeroPage = 2,
    /// Pages equal to the stored copy of their address.
    Same = 3,
    /// Pages equal to a page in another slot.
    Copy = 4,
    /// Pages that differ a little from the stored copy of their address.
    Delta = 5,
    /// Pages as they are.
    Literal = 6,
    /// Pages equal to successive blocks of a baseline.
    Known = 7,
}

impl Class {
    const fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Raw,
            1 => Self::Zero,
            2 => Self::ZeroPage,
            3 => Self::Same,
            4 => Self::Copy,
            5 => Self::Delta,
            6 => Self::Literal,
            7 => Self::Known,
            _ => return None,
        })
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) class: Class,
    /// Page classes: the 8-byte record header precedes each body.
    pub(super) header: bool,
    /// Where the first page is; `None`: right after the page before.
    pub(super) jump: Option<Jump>,
    /// Bytes for [`Class::Raw`], else pages. At least 1.
    pub(super) count: u64,
    /// [`Class::Known`] alone: the way to the first block.
    pub(super) block: BlockJump,
}

/// The way to a block of a baseline from the one expected; by default that one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockJump {
    /// The new baseline, if it is another one.
    pub(super) baseline: Option<u8>,
    /// Blocks from the expected number to the new one, whatever the baseline.
    pub(super) distance: i64,
}

/// The way to a page that does not follow the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    /// The new block, if it is another one.
    pub(super) block: Option<BlockId>,
    /// Pages from the expected index to the new one.
    pub(super) distance: i64,
}

impl Jump {
    const fn word(self) -> u64 {
        varint::zigzag(self.distance) << 1 | self.block.is_some() as u64
    }

    /// The bytes that it takes.
    pub(super) const fn len(self) -> usize {
        let block = match self.block {
            Some(block) => varint::len(block.0 as u64),
            None => 0,
        };
        varint::len(self.word()) + block
    }
}

impl Op {
    /// Appends the operation.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let jump = u64::from(self.jump.is_some());
        let low = self.class as u64 | u64::from(self.header) << 3 | jump << 4;
        varint::put(out, (self.count - 1) << 5 | low);
        if let Some(jump) = self.jump {
            varint::put(out, jump.word());
            if let Some(block) = jump.block {
                varint::put(out, u64::from(block.0));
            }
        }
        if self.class == Class::Known {
            let BlockJump { baseline, distance } = self.block;
            varint::put(
                out,
                varint::zigzag(distance) << 1 | u64::from(baseline.is_some()),
            );
            if let Some(baseline) = baseline {
                varint::put(out, u64::from(baseline));
            }
        }
    }

    /// The next operation; `None` for bytes that [`put`](Self::put) does not write.
    pub(super) fn read(from: &mut Reader<'_>) -> Option<Self> {
        let word = from.varint()?;
        let class = Class::from_bits(word & 7)?;
        let header = word & 8 != 0;
        let jump = if word & 16 != 0 {
            let word = from.varint()?;
            let block = match word & 1 {
                1 => Some(BlockId(u16::try_from(from.varint()?).ok()?)),
                _ => None,
            };
            Some(Jump {
                block,
                distance: varint::unzigzag(word >> 1),
            })
        } else {
            None
        };
        if (class == Class::Raw && (header || jump.is_some())) || (class == Class::Zero && header) {
            return None;
        }
        let mut block = BlockJump::default();
        if class == Class::Known {
            let word = from.varint()?;
            block.distance = varint::unzigzag(word >> 1);
            if word & 1 != 0 {
                block.baseline = Some(u8::try_from(from.varint()?).ok()?);
            }
        }
        Some(Self {
            class,
            header,
            jump,
            count: (word >> 5) + 1,
            block,
        })
    }
}

/// One past the largest page index whose byte offset fits 64 bits.
pub(super) const INDEX_END: u64 = 1 << 52;

/// The page that would come next. Starts anew with every batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    expected: PageAddr,
}

impl Cursor {
    pub(super) const fn new() -> Self {
        Self {
            expected: PageAddr {
                block: BlockId(0),
                index: 0,
            },
        }
    }

    /// The jump to `addr`, whose index is under [`INDEX_END`].
    pub(super) fn jump_to(&self, addr: PageAddr) -> Option<Jump> {
        if addr == self.expected {
            return None;
        }
        let block = (addr.block != self.expected.block).then_some(addr.block);
        Some(Jump {
            block,
            distance: addr.index as i64 - self.expected.index as i64,
        })
    }

    /// The page after `addr` comes next.
    pub(super) const fn pass(&mut self, addr: PageAddr) {
        self.expected = PageAddr {
            block: addr.block,
            index: addr.index + 1,
        };
    }

    /// The address that a jump from untrusted bytes leads to; passes it.
    pub(super) fn place(&mut self, jump: Option<Jump>) -> Option<PageAddr> {
        let mut addr = self.expected;
        if let Some(jump) = jump {
            addr.block = jump.block.unwrap_or(addr.block);
            addr.index = addr.index.checked_add_signed(jump.distance)?;
        }
        if addr.index >= INDEX_END {
            return None;
        }
        self.pass(addr);
        Some(addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn operations_and_addresses_come_back(
            pages in proptest::collection::vec((0u16..3, 0..INDEX_END, 0u32..52, 2u64..8), 1..50)
        ) {
            let mut bytes = Vec::new();
            let mut sent = Vec::new();
            let mut cursor = Cursor::new();
            for (block, index, shift, class) in pages {
                let addr = PageAddr { block: BlockId(block), index: index >> shift };
                let jump = cursor.jump_to(addr);
                let class = Class::from_bits(class).unwrap();
                let before = bytes.len();
                let mut block_jump = BlockJump::default();
                if class == Class::Known {
                    block_jump.distance = index as i64 >> shift.min(20);
                    block_jump.baseline = (index & 2 != 0).then_some(shift as u8);
                }
                let op = Op { class, header: index & 1 == 1, jump, count: (index >> 40) + 1, block: block_jump };
                op.put(&mut bytes);
                let of_block = match (class, block_jump) {
                    (Class::Known, BlockJump { baseline, distance }) => {
                        varint::len(varint::zigzag(distance) << 1) + usize::from(baseline.is_some())
                    }
                    _ => 0,
                };
                prop_assert_eq!(
                    bytes.len() - before,
                    varint::len((op.count - 1) << 5) + jump.map_or(0, Jump::len) + of_block
                );
                cursor.pass(addr);
                sent.push((addr, op));
            }
            let mut reader = Reader::new(&bytes);
            let mut cursor = Cursor::new();
            for (addr, op) in sent {
                prop_assert_eq!(Op::read(&mut reader), Some(op));
                prop_assert_eq!(cursor.place(op.jump), Some(addr));
            }
            prop_assert!(reader.is_empty());
        }
    }

    #[test]
    fn refuses_addresses_past_the_end() {
        let mut cursor = Cursor::new();
        let last = Jump {
            block: None,
            distance: INDEX_END as i64 - 1,
        };
        assert!(cursor.place(Some(last)).is_some());
        assert_eq!(cursor.place(None), None);
        assert_eq!(
            Cursor::new().place(Some(Jump {
                block: None,
                distance: -1
            })),
            None
        );
    }

    #[test]
    fn refuses_flags_that_mean_nothing() {
        for low in [8, 16, 1 | 8] {
            assert_eq!(Op::read(&mut Reader::new(&[low, 0, 0])), None, "{low}");
        }
    }
}
