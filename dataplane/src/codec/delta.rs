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

/// The runs of words that `bitmap` marks, in order, as begin and end.
fn runs(bitmap: &WordBitmap) -> impl Iterator<Item = (usize, usize)> {
    let (mut at, mut bits) = (0, bitmap[0]);
    std::iter::from_fn(move || {
        while bits == 0 {
            at += 64;
            bits = *bitmap.get(at / 64)?;
        }
        let lowest = bits.trailing_zeros() as usize;
        let start = at + lowest;
        let mut len = (!(bits >> lowest)).trailing_zeros() as usize;
        // Adding to the lowest bit of a run carries through all of it.
        bits &= bits.wrapping_add(1 << lowest);
        let mut end = start + len;
        // One that reaches the end of a word goes on in the next.
        while end == at + 64 && end < WORDS {
            at += 64;
            bits = bitmap[at / 64];
            len = (!bits).trailing_zeros() as usize;
            end += len;
            if len > 0 {
                bits &= bits.wrapping_add(1);
            }
        }
        Some((start, end))
    })
}

/// Appends the delta that turns `old` into `new`. `bitmap` marks their differing words, of which there are at most
/// [`CHANGED_WORDS_MAX`].
pub(super) fn put(out: &mut Vec<u8>, old: &Page, new: &Page, bitmap: &WordBitmap) {
    let (old, _) = old.as_chunks::<8>();
    let (new, _) = new.as_chunks::<8>();
    // Room for all of it at once: to ask for every few bytes costs more than they do.
    let (before, mut len, mut at) = (out.len(), 0, 0);
    out.reserve(BYTES_MAX);
    let room = &mut out.spare_capacity_mut()[..BYTES_MAX];
    for (start, end) in runs(bitmap) {
        len += put_count(&mut room[len..], start - at);
        len += put_count(&mut room[len..], end - start);
        for (old, new) in old[start..end].iter().zip(&new[start..end]) {
            let xor = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
            room[len..len + 8].write_copy_of_slice(&xor.to_le_bytes());
            len += 8;
        }
        at = end;
    }
    if at < WORDS {
        len += put_count(&mut room[len..], WORDS - at);
    }
    // SAFETY: the vector's own memory, of which the bytes behind its end, up to `len`, were written just now.
    unsafe { out.set_len(before + len) };
}

/// Writes a varint of 0 to 512 and answers its length.
fn put_count(to: &mut [MaybeUninit<u8>], count: usize) -> usize {
    if count < 0x80 {
        to[0].write(count as u8);
        1
    } else {
        to[..2].write_copy_of_slice(&[count as u8 | 0x80, (count >> 7) as u8]);
        2
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
