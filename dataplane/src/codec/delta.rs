//! Page deltas: XOR of a page with an older copy, as runs of changed 64-bit words.
//!
//! In: two pages and the bitmap of their differing words; or untrusted bytes and the older page.
//! Out: `(skip, count, count words of XOR)*, skip`, where the skips and counts are varints and all of
//! them together cover exactly the 512 words of a page, so that no length is needed. Promises: what
//! [`put`] writes, [`apply`] turns back into the page; [`apply`] ends after at most 512 runs.

use std::mem::MaybeUninit;

use super::PAGE_BYTES;
use super::Page;
use super::simd::WordBitmap;
use super::varint::Reader;

const WORDS: usize = PAGE_BYTES / 8;

/// A delta of more changed words than this is not worth its bytes: the XOR of unrelated words does
/// not compress, while the page itself may.
pub(super) const CHANGED_WORDS_MAX: u32 = 224;

/// The most bytes of a delta: changed words with two varints each, and the last skip.
const BYTES_MAX: usize = CHANGED_WORDS_MAX as usize * 12 + 2;

/// The number of words that `bitmap` marks as changed.
pub(super) fn changed_words(bitmap: &WordBitmap) -> u32 {
    bitmap.iter().map(|bits| bits.count_ones()).sum()
}

/// The first word at or after `from` whose bit equals `set`; 512 when there is none.
fn next(bitmap: &WordBitmap, from: usize, set: bool) -> usize {
    let mut at = from;
    while at < WORDS {
        let bits = if set {
            bitmap[at / 64]
        } else {
            !bitmap[at / 64]
        };
        let bits = bits >> (at % 64);
        if bits != 0 {
            return at + bits.trailing_zeros() as usize;
        }
        at = (at / 64 + 1) * 64;
    }
    WORDS
}

/// Appends the delta that turns `old` into `new`. `bitmap` marks their differing words, of which there are at most
/// [`CHANGED_WORDS_MAX`].
pub(super) fn put(out: &mut Vec<u8>, old: &Page, new: &Page, bitmap: &WordBitmap) {
    let (old, _) = old.as_chunks::<8>();
    let (new, _) = new.as_chunks::<8>();
    // Room for all of it at once: to ask for every few bytes costs more than they do.
    out.reserve(BYTES_MAX);
    let before = out.len();
    let mut to = Writer {
        room: out.spare_capacity_mut(),
        len: 0,
    };
    let mut at = 0;
    while at < WORDS {
        let start = next(bitmap, at, true);
        to.count(start - at);
        if start == WORDS {
            break;
        }
        let end = next(bitmap, start, false);
        to.count(end - start);
        for (old, new) in old[start..end].iter().zip(&new[start..end]) {
            let xor = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
            to.bytes(xor.to_le_bytes());
        }
        at = end;
    }
    let written = to.len;
    // SAFETY: the vector's own memory grows by what `Writer` wrote behind its end, checked against its room.
    unsafe { out.set_len(before + written) };
}

/// Writes behind the end of a vector.
struct Writer<'a> {
    room: &'a mut [MaybeUninit<u8>],
    len: usize,
}

impl Writer<'_> {
    fn bytes<const N: usize>(&mut self, bytes: [u8; N]) {
        self.room[self.len..self.len + N].copy_from_slice(&bytes.map(MaybeUninit::new));
        self.len += N;
    }

    /// A varint of 0 to 512.
    fn count(&mut self, count: usize) {
        if count < 0x80 {
            self.bytes([count as u8]);
        } else {
            self.bytes([count as u8 | 0x80, (count >> 7) as u8]);
        }
    }
}

/// Turns `page`, which holds the old copy, into the new one. `None`: the delta is not well formed,
/// and `page` holds neither.
pub(super) fn apply(delta: &mut Reader<'_>, page: &mut Page) -> Option<()> {
    let (words, _) = page.as_chunks_mut::<8>();
    let mut at = 0;
    while at < WORDS {
        let start = at.checked_add(usize::try_from(delta.varint()?).ok()?)?;
        if start >= WORDS {
            return (start == WORDS).then_some(());
        }
        let count = usize::try_from(delta.varint()?).ok()?;
        if count == 0 || count > WORDS - start {
            return None;
        }
        let (xors, _) = delta.bytes(count * 8)?.as_chunks::<8>();
        for (word, xor) in words[start..start + count].iter_mut().zip(xors) {
            *word = (u64::from_le_bytes(*word) ^ u64::from_le_bytes(*xor)).to_le_bytes();
        }
        at = start + count;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::simd::Simd;
    use super::super::varint;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_delta_rebuilds_the_page(
            fill in any::<u8>(),
            edits in proptest::collection::vec((0..PAGE_BYTES, any::<u8>(), 1usize..40), 0..60),
        ) {
            let old = [fill; PAGE_BYTES];
            let mut new = old;
            for &(at, value, len) in &edits {
                let end = (at + len).min(PAGE_BYTES);
                new[at..end].fill(value);
            }
            let bitmap = Simd::detect().differing_words(&old, &new);
            prop_assume!(changed_words(&bitmap) <= CHANGED_WORDS_MAX);
            let mut bytes = Vec::new();
            put(&mut bytes, &old, &new, &bitmap);
            // The bound that `max_encoded_len` rests on: no more than the words and two varints each.
            prop_assert!(bytes.len() <= changed_words(&bitmap) as usize * 12 + 2);
            bytes.push(0xaa);
            let mut reader = Reader::new(&bytes);
            let mut page = old;
            prop_assert_eq!(apply(&mut reader, &mut page), Some(()));
            prop_assert!(page == new);
            prop_assert_eq!(reader.byte(), Some(0xaa));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn arbitrary_deltas_are_refused_or_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut page = [1; PAGE_BYTES];
            let _ = apply(&mut Reader::new(&bytes), &mut page);
        }
    }

    #[test]
    fn refuses_empty_runs_and_overruns() {
        let mut page = [0; PAGE_BYTES];
        assert_eq!(apply(&mut Reader::new(&[0, 0]), &mut page), None);
        let mut overrun = Vec::new();
        varint::put(&mut overrun, 511);
        varint::put(&mut overrun, 2);
        overrun.extend_from_slice(&[1; 16]);
        assert_eq!(apply(&mut Reader::new(&overrun), &mut page), None);
        let mut past = Vec::new();
        varint::put(&mut past, 513);
        assert_eq!(apply(&mut Reader::new(&past), &mut page), None);
    }
}
