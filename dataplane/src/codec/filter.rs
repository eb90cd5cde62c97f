//! Filters for pages of numbers: what a compressor of bytes cannot see is laid bare.
//!
//! In: a page. Out: the page with each 32-bit word less the one some bytes before, and then the bytes of
//! records brought together by their place in the record; and back. Promises: every filter is undone exactly;
//! a filtered page is as long as the page. Tables, arrays of structures and trees of databases shrink by a
//! tenth and more; text and code never do, so these are told apart first.

use super::simd::Simd;
use super::zstd::Compressor;
use super::{PAGE_BYTES, Page};

/// A filter: its number on the wire is its place in [`FILTERS`] plus one; zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter(u8);

/// For each filter: the distance in bytes of the word that is taken off (none at 0), and the length of a record.
const FILTERS: [(usize, usize); 4] = [(0, 4), (8, 4), (16, 16), (24, 24)];

/// A page that shrinks to so little as it is needs no filter.
const SMALL_BYTES: usize = PAGE_BYTES / 4;
/// A filter must leave less than this share, in 1/16.
const GAIN_SIXTEENTHS: usize = 15;
/// So many bytes of each stretch of so many are looked at to tell text, zeros and code.
const SAMPLE_BYTES: usize = 64;
const SAMPLE_SPACING: usize = 512;
/// A page with fewer bytes that equal those one record before them has no records to speak of.
const COLUMNS_MIN: i32 = 600;

impl Filter {
    /// The filter of a number from the wire.
    pub(super) const fn from_number(number: u8) -> Option<Self> {
        if number >= 1 && number as usize <= FILTERS.len() {
            Some(Self(number - 1))
        } else {
            None
        }
    }

    pub(super) const fn number(self) -> u8 {
        self.0 + 1
    }

    /// Filters `page` into `out`.
    pub(super) fn apply(self, page: &Page, out: &mut Page) {
        let (distance, record) = FILTERS[usize::from(self.0)];
        let mut less = *page;
        if distance > 0 {
            let words = PAGE_BYTES / 4;
            let (old, _) = page.as_chunks::<4>();
            let (new, _) = less.as_chunks_mut::<4>();
            for at in distance / 4..words {
                let word = u32::from_le_bytes(old[at]);
                let before = u32::from_le_bytes(old[at - distance / 4]);
                new[at] = word.wrapping_sub(before).to_le_bytes();
            }
        }
        let mut to = out.iter_mut();
        for place in 0..record {
            for (byte, to) in less[place..].iter().step_by(record).zip(&mut to) {
                *to = *byte;
            }
        }
    }

    /// Turns a filtered page back.
    pub(super) fn undo(self, filtered: &Page, page: &mut Page) {
        let (distance, record) = FILTERS[usize::from(self.0)];
        let mut from = filtered.iter();
        for place in 0..record {
            for to in page[place..].iter_mut().step_by(record) {
                if let Some(byte) = from.next() {
                    *to = *byte;
                }
            }
        }
        if distance > 0 {
            let (words, _) = page.as_chunks_mut::<4>();
            for at in distance / 4..words.len() {
                let before = u32::from_le_bytes(words[at - distance / 4]);
                words[at] = u32::from_le_bytes(words[at])
                    .wrapping_add(before)
                    .to_le_bytes();
            }
        }
    }
}

/// May a filter gain anything on this page? Text, code and pages of little but zeros are left alone.
fn is_candidate(page: &Page) -> bool {
    let (mut text, mut zero, mut code) = (0u32, 0u32, 0u32);
    for (block, _) in page
        .as_chunks::<SAMPLE_SPACING>()
        .0
        .iter()
        .map(|all| all.split_at(SAMPLE_BYTES))
    {
        for &byte in block {
            text += u32::from((b' '..=b'~').contains(&byte));
            zero += u32::from(byte == 0);
            // Prefixes and operations that x86-64 code is full of.
            code += u32::from(
                (byte == 0x48) | (byte == 0x89) | (byte == 0x8b) | (byte == 0xe8) | (byte == 0x0f),
            );
        }
    }
    let samples = (PAGE_BYTES / SAMPLE_SPACING * SAMPLE_BYTES) as u32;
    text * 10 < samples * 8 && zero * 10 < samples * 8 && code * 10 < samples
}

/// The filter that makes `page` smallest, tried out, and the filtered page in `out`; none if it is best as it is.
pub(super) fn choose(
    page: &Page,
    simd: Simd,
    zstd: &mut Compressor,
    out: &mut Page,
) -> Option<Filter> {
    if !is_candidate(page) {
        return None;
    }
    let columns = simd.columns(page);
    let most = columns.into_iter().max()?;
    if most < COLUMNS_MIN {
        return None;
    }
    let mut packed = [0; PAGE_BYTES];
    let plain = zstd
        .compress(1, &[], page, &mut packed)
        .unwrap_or(PAGE_BYTES);
    if plain <= SMALL_BYTES {
        return None;
    }
    let mut least = plain * GAIN_SIXTEENTHS / 16;
    let mut best = None;
    let mut filtered = [0; PAGE_BYTES];
    for number in 0..FILTERS.len() as u8 {
        let filter = Filter(number);
        filter.apply(page, &mut filtered);
        if let Some(len) = zstd.compress(1, &[], &filtered, &mut packed[..least]) {
            least = len;
            best = Some(filter);
            *out = filtered;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_filter_is_undone(words in proptest::collection::vec(any::<u64>(), PAGE_BYTES / 8), rest in any::<u64>()) {
            let mut page = [0; PAGE_BYTES];
            for (word, to) in words.iter().zip(page.as_chunks_mut::<8>().0) {
                *to = (word & rest).to_le_bytes();
            }
            for number in 1..=FILTERS.len() as u8 {
                let filter = Filter::from_number(number).unwrap();
                prop_assert_eq!(filter.number(), number);
                let (mut filtered, mut back) = ([0xaa; PAGE_BYTES], [0x55; PAGE_BYTES]);
                filter.apply(&page, &mut filtered);
                filter.undo(&filtered, &mut back);
                prop_assert!(back == page, "filter {}", number);
            }
        }
    }

    #[test]
    fn numbers_that_mean_nothing_are_none() {
        assert_eq!(Filter::from_number(0), None);
        assert_eq!(Filter::from_number(FILTERS.len() as u8 + 1), None);
    }

    #[test]
    fn tables_are_filtered_and_text_and_noise_are_not() {
        let mut zstd = Compressor::new(1).unwrap();
        let simd = Simd::detect();
        let mut out = [0; PAGE_BYTES];
        let mut table = [0; PAGE_BYTES];
        for (i, to) in table.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (key, value) = (
                70_000 + 1_130 * i as u32,
                (i as u32).wrapping_mul(0x9e37_79b9) >> 16,
            );
            to[..4].copy_from_slice(&key.to_le_bytes());
            to[4..].copy_from_slice(&(0x0812_0000 + value).to_le_bytes());
        }
        let filter = choose(&table, simd, &mut zstd, &mut out).expect("a table");
        let mut back = [0; PAGE_BYTES];
        filter.undo(&out, &mut back);
        assert!(back == table);
        let text: Page = std::array::from_fn(|i| b"the quick brown fox, "[i * i % 21]);
        assert_eq!(choose(&text, simd, &mut zstd, &mut out), None);
        let mut state = 1u32;
        let noise: Page = std::array::from_fn(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        assert_eq!(choose(&noise, simd, &mut zstd, &mut out), None);
    }
}
