//! The pools that frames come from.
//!
//! Comes in: how many buffers of each class. Goes out: [`FrameMut`]s. Promises: all memory is had at
//! the start; a buffer that comes back, from whatever thread, wakes who found none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dwcp_hugepages::arena::{Arena, ArenaConfig, ArenaError, BackingPolicy};
use dwcp_hugepages::pool::{Pool, PoolError};
use thiserror::Error;

use super::{Frame, FrameMut, PAYLOAD_OFFSET};
use crate::MAX_FRAME_BYTES;
use crate::wake::Waker;

const SMALL_BYTES: usize = 2 << 10;
const MEDIUM_BYTES: usize = 64 << 10;

/// Payload capacity of the three classes, ascending, in bytes; of the last at most.
pub const CLASS_BYTES: [usize; 3] = [SMALL_BYTES, MEDIUM_BYTES, MAX_FRAME_BYTES];

/// How many buffers of each class, and what memory is behind them.
#[derive(Debug, Clone)]
pub struct FramePoolsConfig {
    /// Buffers of 2 KiB.
    pub small: usize,
    /// Buffers of 64 KiB.
    pub medium: usize,
    /// Buffers of [`MAX_FRAME_BYTES`].
    pub large: usize,
    /// Huge pages or not.
    pub backing: BackingPolicy,
}

/// Why there are no pools.
#[derive(Debug, Error)]
pub enum FramePoolsError {
    /// The three counts ask for more than the address space holds.
    #[error("frame pools of {0:?} buffers overflow the address space: ask for fewer")]
    TooLarge([usize; 3]),
    /// The arena could not be had.
    #[error("no memory for frames: {0}")]
    Arena(#[from] ArenaError),
    /// The arena cannot be cut into buffers.
    #[error("cannot cut {buf_bytes}-byte buffers from the frame arena: {cause}")]
    Pool {
        /// Bytes of one buffer.
        buf_bytes: usize,
        /// Why not.
        cause: PoolError,
    },
}

/// From one buffer for `capacity` payload bytes to the next.
const fn buffer_bytes(capacity: usize) -> usize {
    (PAYLOAD_OFFSET + capacity).next_multiple_of(128)
}

impl FramePoolsConfig {
    /// What pools with these counts and large buffers of `large_bytes` reserve.
    #[must_use]
    pub const fn bytes(&self, large_bytes: usize) -> usize {
        self.small * buffer_bytes(SMALL_BYTES)
            + self.medium * buffer_bytes(MEDIUM_BYTES)
            + self.large * buffer_bytes(large_bytes)
    }
}

/// Free buffers by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    /// Free buffers of 2 KiB.
    pub small: usize,
    /// Free buffers of 64 KiB.
    pub medium: usize,
    /// Free buffers of [`MAX_FRAME_BYTES`].
    pub large: usize,
}

pub(super) struct Shared {
    arena: Arc<Arena>,
    /// Payload bytes of each class.
    capacities: [usize; 3],
    /// None for a class without buffers.
    pools: [Option<Pool>; 3],
    /// Somebody found no buffer since the last one came back.
    starved: AtomicBool,
    /// Counts the times a buffer came back while somebody was starved.
    relief: AtomicU64,
    /// Rung when `relief` rises. Locked only then, and when a lane group meets these pools.
    wakers: Mutex<Vec<Weak<Waker>>>,
}

impl Shared {
    pub(super) fn buffer_came_back(&self) {
        // Pairs with the fence in `FramePools::starve`: either that side's second `take` sees the
        // buffer, or this side sees `starved`.
        fence(Ordering::SeqCst);
        if !self.starved.load(Ordering::Relaxed) {
            return;
        }
        self.starved.store(false, Ordering::SeqCst);
        self.relief.fetch_add(1, Ordering::SeqCst);
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        for waker in wakers.iter().filter_map(Weak::upgrade) {
            waker.wake();
        }
    }
}

/// Three classes of frame buffers in one arena. A clone is the same pools.
#[derive(Clone)]
pub struct FramePools {
    pub(super) shared: Arc<Shared>,
}

/// What [`FramePools::starve`] saw: pass it to [`FramePools::relieved`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relief(u64);

impl FramePools {
    /// Reserves the memory and cuts it up.
    ///
    /// # Errors
    /// See [`FramePoolsError`]; nothing is held after an error.
    pub fn new(config: &FramePoolsConfig) -> Result<Self, FramePoolsError> {
        Self::with_large(config, MAX_FRAME_BYTES)
    }

    /// The same with large buffers of `large_bytes`, for whoever has no longer frames.
    ///
    /// # Errors
    /// See [`FramePoolsError`]; nothing is held after an error.
    pub fn with_large(
        config: &FramePoolsConfig,
        large_bytes: usize,
    ) -> Result<Self, FramePoolsError> {
        let counts = [config.small, config.medium, config.large];
        let capacities = [SMALL_BYTES, MEDIUM_BYTES, large_bytes.min(MAX_FRAME_BYTES)];
        let too_large = || FramePoolsError::TooLarge(counts);
        let mut end = 0usize;
        let mut cuts = [const { (0..0, 0) }; 3];
        for ((cut, count), capacity) in cuts.iter_mut().zip(counts).zip(capacities) {
            let buf_bytes = buffer_bytes(capacity);
            let bytes = count.checked_mul(buf_bytes).ok_or_else(too_large)?;
            let next = end.checked_add(bytes).ok_or_else(too_large)?;
            *cut = (end..next, buf_bytes);
            end = next;
        }
        let arena = Arena::new(ArenaConfig {
            name: "frames",
            bytes: end,
            backing: config.backing,
        })?;
        let arena = Arc::new(arena);
        let cut = |(range, buf_bytes): (std::ops::Range<usize>, usize)| {
            if range.is_empty() {
                return Ok(None);
            }
            Pool::new(Arc::clone(&arena), range, buf_bytes)
                .map(Some)
                .map_err(|cause| FramePoolsError::Pool { buf_bytes, cause })
        };
        let [small, medium, large] = cuts;
        let pools = [cut(small)?, cut(medium)?, cut(large)?];
        Ok(Self {
            shared: Arc::new(Shared {
                arena,
                capacities,
                pools,
                starved: AtomicBool::new(false),
                relief: AtomicU64::new(0),
                wakers: Mutex::new(Vec::new()),
            }),
        })
    }

    /// A buffer for `len` bytes from the smallest class that fits and is not empty, or none: then
    /// wait until one comes back. Above what the large ones hold there is never one.
    #[must_use]
    pub fn take(&self, len: usize) -> Option<FrameMut> {
        for (pool, capacity) in self.shared.pools.iter().zip(self.shared.capacities) {
            if len <= capacity
                && let Some(buf) = pool.as_ref().and_then(Pool::take)
            {
                return Some(FrameMut::new(buf, capacity, Arc::clone(&self.shared)));
            }
        }
        None
    }

    /// A frame with a copy of `bytes`, or none when the pools are empty, or `bytes` is empty or
    /// longer than [`MAX_FRAME_BYTES`].
    #[must_use]
    pub fn copy(&self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.take(bytes.len())?;
        frame
            .payload_mut()
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        frame.freeze(bytes.len()).ok()
    }

    /// The arena behind all buffers, for registration with a device or the kernel. Its pages are
    /// this process's own: the buffers' headers hold pointers, so never share it.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.shared.arena
    }

    /// Free buffers by class, at this moment.
    #[must_use]
    pub fn available(&self) -> Available {
        let free = |pool: &Option<Pool>| pool.as_ref().map_or(0, Pool::available);
        let [small, medium, large] = &self.shared.pools;
        Available {
            small: free(small),
            medium: free(medium),
            large: free(large),
        }
    }

    /// Rings `waker` whenever a buffer comes back after [`FramePools::starve`].
    pub(crate) fn wake_on_relief(&self, waker: &Arc<Waker>) {
        let mut wakers = self
            .shared
            .wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|known| known.strong_count() > 0);
        let known = Arc::downgrade(waker);
        if !wakers.iter().any(|have| have.ptr_eq(&known)) {
            wakers.push(known);
        }
    }

    /// Says that the caller found no buffer. It must `take` once more after this, for a buffer may
    /// have come back in between, and may then wait for [`FramePools::relieved`].
    pub(crate) fn starve(&self) -> Relief {
        let seen = Relief(self.shared.relief.load(Ordering::SeqCst));
        self.shared.starved.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Shared::buffer_came_back`.
        fence(Ordering::SeqCst);
        seen
    }

    /// Whether a buffer came back since `seen`, so that another `take` may find one.
    pub(crate) fn relieved(&self, seen: Relief) -> bool {
        self.shared.relief.load(Ordering::Relaxed) != seen.0
    }

    /// Whether nobody else has these pools or a frame of them.
    pub(crate) fn abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn pools(small: usize, medium: usize, large: usize) -> FramePools {
        FramePools::new(&FramePoolsConfig {
            small,
            medium,
            large,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap()
    }

    #[test]
    fn smallest_fitting_class_first_then_upward() {
        let pools = pools(1, 1, 1);
        let a = pools.take(10).unwrap();
        assert_eq!(a.capacity(), SMALL_BYTES);
        let b = pools.take(10).unwrap();
        assert_eq!(b.capacity(), MEDIUM_BYTES);
        let c = pools.take(10).unwrap();
        assert_eq!(c.capacity(), MAX_FRAME_BYTES);
        assert!(pools.take(10).is_none());
        drop(b);
        assert!(
            pools.take(MEDIUM_BYTES + 1).is_none(),
            "a frame never lands in a smaller class"
        );
        assert_eq!(
            pools.available(),
            Available {
                small: 0,
                medium: 1,
                large: 0
            }
        );
    }

    #[test]
    fn large_buffers_are_as_large_as_asked_for_and_so_is_what_is_reserved() {
        let config = FramePoolsConfig {
            small: 1,
            medium: 2,
            large: 3,
            backing: BackingPolicy::Ordinary,
        };
        let pools = FramePools::with_large(&config, 100_000).unwrap();
        assert_eq!(config.bytes(100_000), pools.arena().len());
        assert_eq!(pools.take(100_000).unwrap().capacity(), 100_000);
        assert!(pools.take(100_001).is_none());
        let most = FramePools::with_large(&config, usize::MAX).unwrap();
        assert_eq!(config.bytes(MAX_FRAME_BYTES), most.arena().len());
        assert!(most.take(MAX_FRAME_BYTES + 1).is_none());
    }

    #[test]
    fn no_buffer_beyond_the_limit() {
        let pools = pools(0, 0, 1);
        assert!(pools.take(MAX_FRAME_BYTES + 1).is_none());
        let mut frame = pools.take(MAX_FRAME_BYTES).unwrap();
        assert_eq!(frame.payload_mut().len(), MAX_FRAME_BYTES);
    }

    #[test]
    fn relief_is_told_once_per_starvation() {
        let pools = pools(1, 0, 0);
        let waker = Arc::new(Waker::new().unwrap());
        pools.wake_on_relief(&waker);
        let held = pools.take(1).unwrap();
        let seen = pools.starve();
        assert!(pools.take(1).is_none());
        assert!(!pools.relieved(seen));
        drop(held);
        assert!(pools.relieved(seen));
        let seen = pools.starve();
        assert!(!pools.relieved(seen));
    }

    #[test]
    fn no_relief_is_lost_between_threads() {
        let pools = pools(1, 0, 0);
        let waker = Arc::new(Waker::new().unwrap());
        pools.wake_on_relief(&waker);
        let (give, taken) = std::sync::mpsc::channel::<FrameMut>();
        let giver = std::thread::spawn(move || taken.iter().for_each(drop));
        for round in 0..20_000 {
            let held = loop {
                if let Some(frame) = pools.take(1) {
                    break frame;
                }
                let seen = pools.starve();
                if let Some(frame) = pools.take(1) {
                    break frame;
                }
                waker.clear();
                if !pools.relieved(seen) {
                    let mut fds = [rustix::event::PollFd::new(
                        &*waker,
                        rustix::event::PollFlags::IN,
                    )];
                    let hang = rustix::event::Timespec {
                        tv_sec: 60,
                        tv_nsec: 0,
                    };
                    let woken = rustix::event::poll(&mut fds, Some(&hang)).unwrap();
                    assert_eq!(
                        woken, 1,
                        "round {round}: the buffer came back and nobody said so"
                    );
                }
            };
            give.send(held).unwrap();
        }
        drop(give);
        giver.join().unwrap();
        assert_eq!(pools.available().small, 1);
    }
}
