//! The memory through which the kernel hands samples over.
//!
//! In: an event. Out: its records, whole, in order. Promises: what the kernel writes is copied out before
//! anybody looks at it; a length that leads out of the ring ends the reading. A ring that is not emptied
//! in time loses records, and the kernel says how many.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use perf_event_open_sys::bindings::{perf_event_header, perf_event_mmap_page};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::event::set_running;

/// Bytes of one ring: a power of two pages, room for some thirty samples.
const RING_BYTES: usize = 512 << 10;
const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = size_of::<perf_event_header>();

/// One event and its ring.
#[derive(Debug)]
pub(super) struct Ring {
    event: OwnedFd,
    base: NonNull<u8>,
}

impl Ring {
    /// Maps the ring of an event.
    pub(super) fn map(event: OwnedFd) -> io::Result<Self> {
        // SAFETY: needed because the kernel writes samples to mapped memory only. Sound because the place
        // is the kernel's choice, so nothing of ours lies there.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE_BYTES + RING_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &event,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { event, base })
    }

    /// Lets samples come, or no more.
    pub(super) fn set_running(&self, running: bool) -> io::Result<()> {
        set_running(&self.event, running)
    }

    /// Gives every record that waits to `each`, as its bytes.
    pub(super) fn drain(&mut self, scratch: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
        let head = self.word(std::mem::offset_of!(perf_event_mmap_page, data_head));
        let tail = self.word(std::mem::offset_of!(perf_event_mmap_page, data_tail));
        // Acquire: pairs with the kernel's barrier between a record and the head that covers it.
        let end = head.load(Ordering::Acquire);
        // Relaxed: only we write it.
        let begin = tail.load(Ordering::Relaxed);
        let waiting = usize::try_from(end.wrapping_sub(begin)).unwrap_or(usize::MAX);
        let waiting = waiting.min(RING_BYTES);
        scratch.clear();
        scratch.resize(waiting, 0);
        self.copy_out(begin, scratch);
        // Release: pairs with the kernel's reading of the tail before it writes over what was read.
        tail.store(end, Ordering::Release);
        let mut rest = scratch.as_slice();
        while let Some(bytes) = record_bytes(rest) {
            let (record, after) = rest.split_at(bytes);
            each(record);
            rest = after;
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= PAGE_BYTES && offset.is_multiple_of(8));
        // SAFETY: needed because the kernel and we both use this word. Sound because the first page is
        // mapped for as long as `self` lives, the offset is of an aligned 64-bit field of it, and both
        // sides use it whole.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Copies what begins at `position` of the endless stream that the ring is a window of.
    fn copy_out(&self, position: u64, out: &mut [u8]) {
        let ring = RING_BYTES as u64;
        let start = usize::try_from(position % ring).unwrap_or(0);
        let first = out.len().min(RING_BYTES - start);
        let (head, wrapped) = out.split_at_mut(first);
        for (offset, part) in [(start, head), (0, wrapped)] {
            // SAFETY: needed because the kernel wrote these bytes. Sound because `offset + part.len()` is
            // at most the ring's size, the ring is mapped behind the first page, and the kernel does not
            // write between tail and head, where these bytes lie.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.base.as_ptr().add(PAGE_BYTES + offset),
                    part.as_mut_ptr(),
                    part.len(),
                );
            }
        }
    }
}

/// The length of the record that `bytes` begin with; none if they hold no whole record.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let at = std::mem::offset_of!(perf_event_header, size);
    let size = bytes.get(at..at + 2)?;
    let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
    (size >= HEADER_BYTES && size <= bytes.len()).then_some(size)
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: needed to give the memory back. Sound because this is the mapping of `map`, whole, and
        // nothing borrowed from it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), PAGE_BYTES + RING_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_or_none() {
        let record = |size: u16, bytes: usize| {
            let mut all = vec![0; bytes];
            if let Some(field) = all.get_mut(6..8) {
                field.copy_from_slice(&size.to_ne_bytes());
            }
            record_bytes(&all)
        };
        assert_eq!(record(24, 24), Some(24));
        assert_eq!(record(24, 40), Some(24));
        for (size, bytes) in [(0, 24), (7, 24), (25, 24), (8, 7), (8, 0)] {
            assert_eq!(record(size, bytes), None, "{size} {bytes}");
        }
    }
}
