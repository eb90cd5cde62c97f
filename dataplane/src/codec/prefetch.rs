//! Memory that is needed soon.
//!
//! In: what it is. Out: nothing; the processor fetches it meanwhile. Promise: only a hint, nothing is read.

use super::Page;

/// Bytes that come at once.
const LINE_BYTES: usize = 64;

/// The line that `value` begins in.
pub(super) fn prefetch<T>(value: &T) {
    line(std::ptr::from_ref(value).cast());
}

/// All of a page.
pub(super) fn prefetch_page(page: &Page) {
    page.chunks(LINE_BYTES)
        .for_each(|chunk| line(chunk.as_ptr()));
}

fn line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: an intrinsic that takes a raw pointer; it reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
