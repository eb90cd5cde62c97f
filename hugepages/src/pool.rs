//! Fixed-size buffers out of an arena.
//!
//! In: a range of an arena and a buffer length. Out: buffers that return themselves when dropped,
//! from any thread. It promises no lock and no allocation after [`Pool::new`], that no two
//! living buffers share a byte, and that an empty pool says `None` (that is the memory bound).
//!
//! A buffer comes with the bytes of its last use: overwrite it before its length is trusted.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::arena::Arena;
use crate::free_list::FreeList;

/// Buffers start on a cache line, so that neighbours on two cores do not share one.
const LINE_BYTES: usize = 64;

/// Why there is no pool.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// Not a single buffer fits.
    #[error("{range_bytes} bytes hold no buffer of {buf_bytes} bytes; widen the range")]
    TooSmall {
        /// Length of the range, bytes.
        range_bytes: usize,
        /// Length of a buffer, bytes.
        buf_bytes: usize,
    },
    /// The range leaves the arena, or a living pool already owns part of it.
    #[error(
        "range {range:?} of arena {arena} ({arena_bytes} bytes) is outside it or already \
             owned by another pool; give every pool its own range"
    )]
    RangeTaken {
        /// The arena.
        arena: &'static str,
        /// Its length, bytes.
        arena_bytes: usize,
        /// The range asked for.
        range: Range<usize>,
    },
}

#[derive(Debug)]
struct Shared {
    arena: Arc<Arena>,
    range: Range<usize>,
    buf_bytes: usize,
    capacity: usize,
    /// Arena offset of buffer 0.
    first: usize,
    /// From one buffer to the next, bytes.
    stride: usize,
    /// Numbers of the buffers that nobody holds.
    free: FreeList,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.arena.unclaim(&self.range);
    }
}

/// A bounded set of equal buffers. Clones share it.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Cuts `range` (arena offsets, bytes) into buffers of `buf_bytes`, each on its own cache
    /// lines. The range is the pool's own until the pool and all its buffers are gone.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn new(
        arena: Arc<Arena>,
        range: Range<usize>,
        buf_bytes: usize,
    ) -> Result<Self, PoolError> {
        let too_small = PoolError::TooSmall {
            range_bytes: range.len(),
            buf_bytes,
        };
        let (Some(stride), Some(first)) = (
            buf_bytes
                .checked_next_multiple_of(LINE_BYTES)
                .filter(|stride| *stride > 0),
            range.start.checked_next_multiple_of(LINE_BYTES),
        ) else {
            return Err(too_small);
        };
        let capacity = range.end.saturating_sub(first) / stride;
        let Some(numbers) = u32::try_from(capacity).ok().filter(|numbers| *numbers > 0) else {
            return Err(too_small);
        };
        if !arena.claim(&range) {
            return Err(PoolError::RangeTaken {
                arena: arena.name(),
                arena_bytes: arena.len(),
                range,
            });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                arena,
                range,
                buf_bytes,
                capacity,
                first,
                stride,
                free: FreeList::full(numbers),
            }),
        })
    }

    /// A buffer, or `None` if all are in use.
    #[inline]
    pub fn take(&self) -> Option<PoolBuf> {
        let number = self.shared.free.pop()?;
        let offset = self.shared.first + number as usize * self.shared.stride;
        // SAFETY: needed to turn an offset into an address. Sound because every buffer of a number
        // below the capacity lies inside the claimed range, which lies inside the arena's mapping.
        let start = unsafe { NonNull::new_unchecked(self.shared.arena.as_ptr().add(offset)) };
        Some(PoolBuf {
            start,
            number,
            offset,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Buffers that nobody holds at this moment.
    pub fn available(&self) -> usize {
        self.shared.free.len()
    }

    /// Buffers in all.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// Length of one buffer, bytes.
    pub fn buf_bytes(&self) -> usize {
        self.shared.buf_bytes
    }
}

/// A buffer on loan. Dropping it gives it back.
#[derive(Debug)]
pub struct PoolBuf {
    start: NonNull<u8>,
    number: u32,
    offset: usize,
    shared: Arc<Shared>,
}

// SAFETY: needed because of the pointer. Sound because a buffer has one holder at a time (its
// number left the list) and its memory is not bound to a thread.
unsafe impl Send for PoolBuf {}
// SAFETY: as above; `&PoolBuf` only allows reading, `&mut` is exclusive as everywhere.
unsafe impl Sync for PoolBuf {}

impl PoolBuf {
    /// Where it begins in its arena, bytes: the key for buffers registered with a kernel or NIC.
    #[inline]
    pub fn arena_offset(&self) -> usize {
        self.offset
    }
}

impl Deref for PoolBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: needed to show arena memory as a slice. Sound because `buf_bytes` from `start`
        // lie inside the mapping, are initialised (the kernel zeroes pages), are owned by this
        // buffer alone, and stay mapped while `shared` holds the arena.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.shared.buf_bytes) }
    }
}

impl DerefMut for PoolBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.shared.buf_bytes) }
    }
}

impl Drop for PoolBuf {
    #[inline]
    fn drop(&mut self) {
        self.shared.free.push(self.number);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::arena::{ArenaConfig, BackingPolicy};

    fn arena(bytes: usize) -> Arc<Arena> {
        let config = ArenaConfig {
            name: "pool test",
            bytes,
            backing: BackingPolicy::Ordinary,
        };
        Arc::new(Arena::new(config).unwrap())
    }

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let pool = Pool::new(arena(64 << 10), 100..64 << 10, 1000).unwrap();
        let mut held: Vec<PoolBuf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((held.len(), pool.available()), (pool.capacity(), 0));
        for (mark, buf) in held.iter_mut().enumerate() {
            assert_eq!(buf.len(), 1000);
            buf.fill(mark as u8);
        }
        for (mark, buf) in held.iter().enumerate() {
            assert!(
                buf.iter().all(|byte| *byte == mark as u8),
                "buffer {mark} was overwritten"
            );
            assert!(buf.arena_offset() >= 100 && buf.arena_offset() + 1000 <= 64 << 10);
            assert_eq!(buf.as_ptr() as usize % LINE_BYTES, 0);
        }
        held.clear();
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn a_range_has_one_owner_until_its_last_buffer_is_back() {
        let arena = arena(16 << 10);
        let pool = Pool::new(Arc::clone(&arena), 0..8192, 4096).unwrap();
        let refused = Pool::new(Arc::clone(&arena), 4096..12288, 4096);
        assert!(matches!(refused, Err(PoolError::RangeTaken { .. })));
        assert!(Pool::new(Arc::clone(&arena), 8192..16384, 4096).is_ok());
        let buf = pool.take();
        drop(pool);
        assert!(Pool::new(Arc::clone(&arena), 0..8192, 4096).is_err());
        drop(buf);
        assert!(Pool::new(arena, 0..8192, 4096).is_ok());
    }

    #[test]
    fn ranges_that_cannot_serve_are_refused() {
        let arena = arena(8192);
        let cases = [
            (0..8193, 64),
            (0..64, 65),
            (0..8192, 0),
            (8192..8192, 64),
            (0..8192, usize::MAX),
        ];
        for (range, buf_bytes) in cases {
            assert!(
                Pool::new(Arc::clone(&arena), range.clone(), buf_bytes).is_err(),
                "{range:?}"
            );
        }
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = Pool::new(arena, 4096..64, 64);
        assert!(reversed.is_err());
    }

    #[test]
    fn threads_never_hold_the_same_buffer() {
        let pool = Pool::new(arena(8 * 64), 0..8 * 64, 64).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let Some(mut buf) = pool.take() else { continue };
                        buf.fill(thread);
                        assert!(buf.iter().all(|byte| *byte == thread));
                    }
                });
            }
        });
        assert_eq!(pool.available(), 8);
    }
}
