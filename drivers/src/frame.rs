//! Where frames live: pool buffers in one arena, shared by reference count.
//!
//! Comes in: how many buffers of each class. Goes out: [`FrameMut`] to fill, [`Frame`] to share.
//! Promises: no allocator call after [`FramePools::new`]; a buffer returns to its pool when the last
//! `Frame` on it is dropped, on whatever thread; who ran out of buffers is woken by that.
//!
//! One buffer is `header | length prefix | payload`. The header holds the reference count and the
//! pool's own handle, so sharing needs no box of its own; the prefix lies right in front of the
//! payload, so that a byte-stream driver sends a frame as one contiguous write.

use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dwcp_hugepages::arena::{Arena, ArenaConfig, ArenaError, BackingPolicy};
use dwcp_hugepages::pool::{Pool, PoolBuf, PoolError};
use thiserror::Error;

use crate::MAX_FRAME_BYTES;
use crate::wake::Waker;

/// Bytes of the little-endian length prefix in front of each payload.
pub(crate) const PREFIX_BYTES: usize = 4;
/// Where the payload begins in a buffer: two cache lines for the header, whose last four bytes are
/// the prefix.
const PAYLOAD_OFFSET: usize = 128;
const SMALL_BYTES: usize = 2 << 10;
const MEDIUM_BYTES: usize = 64 << 10;

/// Payload capacity of the three classes, ascending, in bytes.
pub const CLASS_BYTES: [usize; 3] = [SMALL_BYTES, MEDIUM_BYTES, MAX_FRAME_BYTES];

struct Header {
    /// Owners of this buffer: one while it is a `FrameMut`.
    refs: AtomicU32,
    /// Payload bytes that may be written.
    capacity: u32,
    /// Payload bytes that were frozen.
    len: u32,
    pools: Arc<Shared>,
    /// The pool's handle on this very buffer. It is never dereferenced while it lies here: the
    /// payload is reached through the header's address.
    buf: PoolBuf,
}

const _: () = assert!(size_of::<Header>() + PREFIX_BYTES <= PAYLOAD_OFFSET);
const _: () = assert!(align_of::<Header>() <= 64);

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

/// The length handed to [`FrameMut::freeze`] does not fit the buffer.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a frame of {len} bytes: it must have 1 to {capacity}; take a buffer for its full length")]
pub struct BadFrameLen {
    /// What was asked for.
    pub len: usize,
    /// What the buffer holds.
    pub capacity: usize,
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

struct Shared {
    arena: Arc<Arena>,
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
    fn buffer_came_back(&self) {
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
    shared: Arc<Shared>,
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
        let counts = [config.small, config.medium, config.large];
        let too_large = || FramePoolsError::TooLarge(counts);
        let mut end = 0usize;
        let mut cuts = [const { (0..0, 0) }; 3];
        for ((cut, count), capacity) in cuts.iter_mut().zip(counts).zip(CLASS_BYTES) {
            let buf_bytes = (PAYLOAD_OFFSET + capacity).next_multiple_of(128);
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
                pools,
                starved: AtomicBool::new(false),
                relief: AtomicU64::new(0),
                wakers: Mutex::new(Vec::new()),
            }),
        })
    }

    /// A buffer for `len` bytes from the smallest class that fits and is not empty, or none: then
    /// wait until one comes back. Above [`MAX_FRAME_BYTES`] there is never one.
    #[must_use]
    pub fn take(&self, len: usize) -> Option<FrameMut> {
        for (pool, capacity) in self.shared.pools.iter().zip(CLASS_BYTES) {
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

/// One buffer, owned alone and not sent yet.
pub struct FrameMut {
    header: NonNull<Header>,
}

// SAFETY: needed because of the raw pointer. A `FrameMut` is the only way to its buffer, and what
// the header owns (`Arc<Shared>`, `PoolBuf`) is `Send`.
unsafe impl Send for FrameMut {}

const fn assert_send<T: Send>() {}
const fn assert_sync<T: Sync>() {}
const _: () = assert_send::<PoolBuf>();
const _: () = assert_send::<Arc<Shared>>();
const _: () = assert_sync::<Shared>();

impl FrameMut {
    fn new(mut buf: PoolBuf, capacity: usize, pools: Arc<Shared>) -> Self {
        let base = NonNull::from(&mut buf[..]).cast::<Header>();
        debug_assert!(base.is_aligned() && buf.len() >= PAYLOAD_OFFSET + capacity);
        #[allow(clippy::cast_possible_truncation)] // capacities are those of CLASS_BYTES
        let header = Header {
            refs: AtomicU32::new(1),
            capacity: capacity as u32,
            len: 0,
            pools,
            buf,
        };
        // SAFETY: needed to keep the count inside the buffer. `base` is the buffer's first byte,
        // that buffer is longer than a header, starts at a multiple of 128 from a page-aligned
        // arena, and is ours alone as long as the `PoolBuf` lives, which moves in here.
        unsafe { base.write(header) };
        Self { header: base }
    }

    /// The whole payload area. Its content is what the buffer's last user left.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: needed to reach the payload beside the header. The header was written by `new`
        // and lives as long as `self`; the payload begins behind it, has `capacity` bytes inside
        // the same buffer, and `&mut self` makes this the only reference.
        unsafe {
            let capacity = (*self.header.as_ptr()).capacity as usize;
            let payload = self.header.as_ptr().cast::<u8>().add(PAYLOAD_OFFSET);
            std::slice::from_raw_parts_mut(payload, capacity)
        }
    }

    /// Payload bytes that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        // SAFETY: needed to read the header behind the raw pointer; it lives as long as `self`.
        unsafe { (*self.header.as_ptr()).capacity as usize }
    }

    /// Makes the first `len` payload bytes a frame that can be shared and sent.
    ///
    /// # Errors
    /// [`BadFrameLen`] when `len` is 0 or more than the capacity; the buffer is back in its pool.
    pub fn freeze(self, len: usize) -> Result<Frame, BadFrameLen> {
        let capacity = self.capacity();
        let Some(wire_len) = u32::try_from(len)
            .ok()
            .filter(|_| (1..=capacity).contains(&len))
        else {
            return Err(BadFrameLen { len, capacity });
        };
        // SAFETY: needed to note the length in the header and in the prefix. Both lie in the buffer
        // that `self` alone owns, the prefix directly below the payload and above the header.
        unsafe {
            (*self.header.as_ptr()).len = wire_len;
            let prefix = self
                .header
                .as_ptr()
                .cast::<u8>()
                .add(PAYLOAD_OFFSET - PREFIX_BYTES);
            prefix
                .cast::<[u8; PREFIX_BYTES]>()
                .write(wire_len.to_le_bytes());
        }
        let frame = Frame {
            header: self.header,
        };
        std::mem::forget(self); // its one reference is the frame's now
        Ok(frame)
    }
}

impl std::fmt::Debug for FrameMut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameMut")
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl Drop for FrameMut {
    fn drop(&mut self) {
        // SAFETY: needed to give the buffer back. `self` was its only owner.
        unsafe { release(self.header) };
    }
}

/// Takes the header apart and returns its buffer.
///
/// # Safety
/// The caller is the last owner of the buffer behind `header` and does not touch it again.
unsafe fn release(header: NonNull<Header>) {
    // SAFETY: needed to move the owned parts out of the buffer. The caller is the last owner, so
    // nobody reads the header after this, and its bytes are never dropped in place.
    let Header { pools, buf, .. } = unsafe { header.read() };
    drop(buf);
    pools.buffer_came_back();
}

/// An immutable frame; a clone shares the bytes and costs one atomic addition.
pub struct Frame {
    header: NonNull<Header>,
}

// SAFETY: needed because of the raw pointer. The payload is read-only once frozen, the count is
// atomic, and the header's parts are `Send` and only moved out by the last owner.
unsafe impl Send for Frame {}
// SAFETY: needed because of the raw pointer. `&Frame` gives the read-only payload and `clone`,
// which is an atomic addition.
unsafe impl Sync for Frame {}

impl Frame {
    fn header(&self) -> &Header {
        // SAFETY: needed to read the header behind the raw pointer. It lives until the last owner
        // is gone, and only its atomic count changes while it is shared.
        unsafe { self.header.as_ref() }
    }

    /// The payload: 1 to [`MAX_FRAME_BYTES`] bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.header().len as usize;
        // SAFETY: needed to reach the payload beside the header. `freeze` checked `len` against the
        // capacity, and nobody writes a frozen payload.
        unsafe {
            let payload = self.header.as_ptr().cast::<u8>().add(PAYLOAD_OFFSET);
            std::slice::from_raw_parts(payload, len)
        }
    }

    /// Payload bytes. Never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is no empty frame
    pub fn len(&self) -> usize {
        self.header().len as usize
    }

    /// The pools that the frame came from.
    pub(crate) fn pools(&self) -> FramePools {
        FramePools {
            shared: Arc::clone(&self.header().pools),
        }
    }

    /// The length prefix and the payload, as they go over a byte stream.
    pub(crate) fn wire(&self) -> &[u8] {
        // SAFETY: needed to take the prefix along. It lies directly below the payload in the same
        // buffer, was written by `freeze`, and is read-only from then on.
        unsafe {
            let prefix = self
                .header
                .as_ptr()
                .cast::<u8>()
                .add(PAYLOAD_OFFSET - PREFIX_BYTES);
            std::slice::from_raw_parts(prefix, PREFIX_BYTES + self.len())
        }
    }
}

impl Clone for Frame {
    fn clone(&self) -> Self {
        // Relaxed as in `Arc`: the new owner has the address from one that exists. The count cannot
        // wrap: 2^32 owners of 8 bytes each are more than a worker's memory limit.
        self.header().refs.fetch_add(1, Ordering::Relaxed);
        Self {
            header: self.header,
        }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // Release: this owner's reads come before the buffer's next use. Pairs with the fence.
        if self.header().refs.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: needed to give the buffer back; the count says this was the last owner.
            unsafe { release(self.header) };
        }
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(small: usize, medium: usize, large: usize) -> FramePools {
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
    fn no_buffer_beyond_the_limit() {
        let pools = pools(0, 0, 1);
        assert!(pools.take(MAX_FRAME_BYTES + 1).is_none());
        let mut frame = pools.take(MAX_FRAME_BYTES).unwrap();
        assert_eq!(frame.payload_mut().len(), MAX_FRAME_BYTES);
    }

    #[test]
    fn freeze_refuses_empty_and_overlong_and_returns_the_buffer() {
        let pools = pools(1, 0, 0);
        for len in [0, SMALL_BYTES + 1, usize::MAX] {
            let refused = pools.take(1).unwrap().freeze(len).unwrap_err();
            assert_eq!(
                refused,
                BadFrameLen {
                    len,
                    capacity: SMALL_BYTES
                }
            );
            assert_eq!(pools.available().small, 1);
        }
    }

    #[test]
    fn wire_is_prefix_and_payload_and_the_header_survives_a_full_payload() {
        let pools = pools(0, 1, 0);
        let bytes: Vec<u8> = (0..MEDIUM_BYTES).map(|i| i as u8).collect();
        let frame = pools.copy(&bytes).unwrap();
        assert_eq!(frame.wire()[..4], 65536u32.to_le_bytes());
        assert_eq!(&frame.wire()[4..], &bytes[..]);
        assert_eq!(frame.bytes(), &bytes[..]);
    }

    #[test]
    fn the_last_owner_on_any_thread_returns_the_buffer() {
        let pools = pools(1, 0, 0);
        let frame = pools.copy(b"shared").unwrap();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let mine = frame.clone();
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        assert_eq!(mine.clone().bytes(), b"shared");
                    }
                })
            })
            .collect();
        drop(frame);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pools.available().small, 1);
    }

    #[test]
    fn frames_outlive_their_pools() {
        let pools = pools(1, 0, 0);
        let frame = pools.copy(b"alone").unwrap();
        drop(pools);
        assert_eq!(frame.bytes(), b"alone");
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
