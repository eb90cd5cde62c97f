//! RAM block names of a session, numbered.
//!
//! In: names as they appear on the main channel and in multifd packets; out: one [`BlockId`] per
//! name, the same on every channel of the session.
//! Promises: at most [`MAX_BLOCKS`] names of at most 255 bytes are kept; a name beyond that gets no
//! number, and its pages travel as raw bytes.

use std::collections::HashMap;

/// Most block names that one session numbers.
pub const MAX_BLOCKS: usize = 4096;

/// Number of a RAM block in its session, on the source side, in order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u16);

/// The block names of one session, shared by the tokenisers of all its channels.
#[derive(Debug, Default)]
pub struct BlockTable {
    ids: HashMap<Box<[u8]>, BlockId>,
    /// Bytes in use per block, where the main channel has announced it.
    used_bytes: Vec<Option<u64>>,
}

impl BlockTable {
    /// A table without names.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of `name`, given out now if the name is new; `None` when the table is full or
    /// the name is longer than the wire format allows.
    pub fn intern(&mut self, name: &[u8]) -> Option<BlockId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        if self.ids.len() >= MAX_BLOCKS || name.len() > usize::from(u8::MAX) {
            return None;
        }
        let id = BlockId(u16::try_from(self.ids.len()).ok()?);
        self.ids.insert(name.into(), id);
        self.used_bytes.push(None);
        Some(id)
    }

    /// Number of names known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True before the first name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn set_used_bytes(&mut self, id: BlockId, used_bytes: u64) {
        if let Some(slot) = self.used_bytes.get_mut(usize::from(id.0)) {
            *slot = Some(used_bytes);
        }
    }

    pub(super) fn used_bytes(&self, id: BlockId) -> Option<u64> {
        self.used_bytes.get(usize::from(id.0)).copied().flatten()
    }
}
