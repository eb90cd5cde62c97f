//! Portable code: the twin that the others are held to.
//!
//! In and out: see the parent. Promise: it says what is meant.

use super::{COMPARED_FROM, WordBitmap};
use crate::codec::Page;

fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

pub(super) fn differing_words(a: &Page, b: &Page) -> WordBitmap {
    let mut bitmap = WordBitmap::default();
    let (a, _) = a.as_chunks::<8>();
    let (b, _) = b.as_chunks::<8>();
    for (bits, (a, b)) in bitmap.iter_mut().zip(a.chunks(64).zip(b.chunks(64))) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            *bits |= u64::from(word(a) != word(b)) << i;
        }
    }
    bitmap
}

pub(super) fn is_zero(page: &Page) -> bool {
    let (words, _) = page.as_chunks::<8>();
    words
        .chunks(8)
        .all(|eight| eight.iter().fold(0, |or, w| or | word(w)) == 0)
}

pub(super) fn columns(page: &Page, distance: usize) -> i32 {
    let (now, before) = (&page[COMPARED_FROM..], &page[COMPARED_FROM - distance..]);
    let bytes = now.iter().zip(before).filter(|(a, b)| a == b).count();
    let words = now.as_chunks::<4>().0.iter().zip(before.as_chunks::<4>().0);
    bytes as i32 - 4 * words.filter(|(a, b)| a == b).count() as i32
}
