//! Pages sent whole not long ago: what the literals of the next batches are compressed in the context of.
//!
//! In: the slots of pages that were sent whole, in order. Out: stretches of slots, and the bytes that name them.
//! Promises: this is the sender's alone, for every batch names its own context; at most [`PAGES_MAX`] pages in
//! one; an untrusted list names no page that the history does not hold.
//!
//! Pages that came as references tell little about those that did not: they are left out, though the history has
//! them.
//!
//! On the wire all are varints: the number of stretches, and for each the distance of its first slot from the end of
//! the one before, zigzag, and its pages less one.

use arrayvec::ArrayVec;

use super::varint::{self, Reader};
use super::{DecodeError, PageStore, SlotId};

/// The most pages of a context.
pub(super) const PAGES_MAX: u32 = 256;
/// The most bytes that name one: two varints of 32 bits a stretch, and their number.
pub(super) const LIST_BYTES_MAX: usize = PAGES_MAX as usize * 6 + 2;

/// Successive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    first: u32,
    count: u32,
}

/// See the module.
pub(super) struct Recent {
    slots: Box<[u32; PAGES_MAX as usize]>,
    /// Where the next one goes, and how many there are.
    next: usize,
    count: usize,
}

impl Recent {
    /// What it takes.
    pub(super) const BYTES: usize = PAGES_MAX as usize * size_of::<u32>();

    pub(super) fn new() -> Self {
        Self {
            slots: Box::new([0; PAGES_MAX as usize]),
            next: 0,
            count: 0,
        }
    }

    /// The page in `slot` was sent whole.
    pub(super) fn note(&mut self, slot: SlotId) {
        self.slots[self.next] = slot.0;
        self.next = (self.next + 1) % self.slots.len();
        self.count = (self.count + 1).min(self.slots.len());
    }

    /// The last `pages` of them, or as many as there are: appends their bytes to `context`, the newest last, and
    /// what names them to `list`. Answers how many there are.
    pub(super) fn take(
        &self,
        store: &PageStore,
        pages: u32,
        list: &mut Vec<u8>,
        context: &mut Vec<u8>,
    ) -> u32 {
        let count = self.count.min(pages as usize);
        let len = self.slots.len();
        let mut stretches = ArrayVec::<Stretch, { PAGES_MAX as usize }>::new();
        for back in (1..=count).rev() {
            let slot = self.slots[(self.next + len - back) % len];
            match stretches.last_mut() {
                Some(last) if last.first + last.count == slot => last.count += 1,
                _ => stretches.push(Stretch {
                    first: slot,
                    count: 1,
                }),
            }
        }
        if count > 0 {
            varint::put(list, stretches.len() as u64);
        }
        let mut expected = 0;
        for Stretch { first, count } in stretches {
            varint::put(list, varint::zigzag(i64::from(first) - expected));
            varint::put(list, u64::from(count - 1));
            expected = i64::from(first + count);
            context.extend_from_slice(store.stretch(SlotId(first), count).unwrap_or_default());
        }
        count as u32
    }

    /// Room for [`take`](Self::take)'s list.
    pub(super) fn list() -> Vec<u8> {
        Vec::with_capacity(LIST_BYTES_MAX)
    }
}

/// What an untrusted list names, in `store`, which is missing in a batch without history. Writes it to the front of
/// `context` and answers its length. `list` is left behind its end.
pub(super) fn read(
    list: &mut Reader<'_>,
    store: Option<&PageStore>,
    context: &mut [u8],
) -> Result<usize, DecodeError> {
    let malformed = || DecodeError::BadSections;
    let stretches = list.varint().ok_or_else(malformed)?;
    let (mut expected, mut pages, mut at) = (0i64, 0u64, 0);
    for _ in 0..stretches {
        let distance = varint::unzigzag(list.varint().ok_or_else(malformed)?);
        let count = list.varint().and_then(|less| less.checked_add(1));
        let count = count.ok_or_else(malformed)?;
        pages = pages.saturating_add(count);
        let beyond = || DecodeError::BadContext { pages };
        if pages > u64::from(PAGES_MAX) {
            return Err(beyond());
        }
        let first = expected.checked_add(distance).ok_or_else(malformed)?;
        let slot = u32::try_from(first).map_err(|_| malformed())?;
        let found = store.and_then(|store| store.stretch(SlotId(slot), count as u32));
        let found = found.ok_or_else(beyond)?;
        let room = context
            .get_mut(at..at + found.len())
            .ok_or_else(malformed)?;
        room.copy_from_slice(found);
        at += found.len();
        expected = first + count as i64;
    }
    if pages == 0 {
        return Err(DecodeError::BadContext { pages });
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{PAGE_BYTES, PageStoreConfig};
    use crate::stream::{BlockId, PageAddr};
    use dwcp_hugepages::arena::BackingPolicy;
    use proptest::prelude::*;

    fn store(slots: u32) -> PageStore {
        let mut store = PageStore::new(PageStoreConfig {
            bytes: slots as usize * PAGE_BYTES,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap();
        for index in 0..u64::from(slots) {
            let block = BlockId(0);
            store.insert(PageAddr { block, index }, &[index as u8; PAGE_BYTES]);
        }
        store
    }

    proptest! {
        #[test]
        fn what_was_taken_is_read(
            noted in proptest::collection::vec((0u32..90, 1u32..9), 0..60),
            pages in 0u32..400,
        ) {
            let store = store(100);
            let mut recent = Recent::new();
            let all: Vec<u32> = noted.iter().flat_map(|(first, count)| *first..first + count).collect();
            all.iter().for_each(|slot| recent.note(SlotId(*slot)));
            let (mut list, mut context) = (Recent::list(), Vec::new());
            let capacity = list.capacity();
            let count = recent.take(&store, pages, &mut list, &mut context);
            prop_assert_eq!(count as usize, all.len().min(pages.min(PAGES_MAX) as usize));
            let expected: Vec<u8> = all[all.len() - count as usize..]
                .iter()
                .flat_map(|slot| [*slot as u8; PAGE_BYTES])
                .collect();
            prop_assert!(context == expected);
            prop_assert_eq!(list.capacity(), capacity);
            if count > 0 {
                list.push(7);
                let mut back = vec![0; PAGES_MAX as usize * PAGE_BYTES];
                let mut reader = Reader::new(&list);
                prop_assert_eq!(read(&mut reader, Some(&store), &mut back), Ok(expected.len()));
                prop_assert!(back[..expected.len()] == expected);
                prop_assert_eq!(reader.byte(), Some(7));
                prop_assert!(reader.is_empty());
            }
        }

        #[test]
        fn lists_of_any_provenance_are_refused_or_end(list in proptest::collection::vec(any::<u8>(), 0..40)) {
            let store = store(20);
            let mut back = vec![0; PAGES_MAX as usize * PAGE_BYTES];
            if let Ok(len) = read(&mut Reader::new(&list), Some(&store), &mut back) {
                prop_assert!(len > 0 && len.is_multiple_of(PAGE_BYTES));
            }
        }
    }

    #[test]
    fn refuses_what_the_history_does_not_hold() {
        let store = store(5);
        let mut back = vec![0; PAGES_MAX as usize * PAGE_BYTES];
        let mut refusal = |list: &[u8], with: bool| {
            read(&mut Reader::new(list), with.then_some(&store), &mut back)
        };
        assert_eq!(refusal(&[1, 0, 4], true), Ok(5 * PAGE_BYTES));
        assert_eq!(
            refusal(&[1, 0, 4], false),
            Err(DecodeError::BadContext { pages: 5 })
        );
        assert_eq!(
            refusal(&[1, 0, 5], true),
            Err(DecodeError::BadContext { pages: 6 })
        );
        assert_eq!(
            refusal(&[1, 2, 4], true),
            Err(DecodeError::BadContext { pages: 5 })
        );
        assert_eq!(
            refusal(&[0], true),
            Err(DecodeError::BadContext { pages: 0 })
        );
        assert_eq!(refusal(&[1, 1, 0], true), Err(DecodeError::BadSections));
        assert_eq!(refusal(&[2, 0, 0], true), Err(DecodeError::BadSections));
        // The same page again and again, but no more often than a context has pages.
        let again = [&[0x81, 0x02, 0, 0][..], &[1, 0].repeat(256)].concat();
        assert_eq!(
            refusal(&again, true),
            Err(DecodeError::BadContext { pages: 257 })
        );
    }
}
