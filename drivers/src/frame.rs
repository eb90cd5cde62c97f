//! Where frames live: pool buffers in one arena, shared by reference count.
//!
//! Comes in: how many buffers of each class. Goes out: [`FrameMut`] to fill, [`Frame`] to share.
//! Promises: no allocator call after [`FramePools::new`]; a buffer returns to its pool when the last
//! `Frame` on it is dropped, on whatever thread; who ran out of buffers is woken by that.
//!
//! One buffer is `header | length prefix | payload`. The header holds the reference count and the
//! pool's own handle, so sharing needs no box of its own; the prefix lies right in front of the
//! payload, so that a byte-stream driver sends a frame as one contiguous write.

mod pools;

use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use dwcp_hugepages::pool::PoolBuf;
use thiserror::Error;

pub(crate) use pools::Relief;
use pools::Shared;
pub use pools::{Available, CLASS_BYTES, FramePools, FramePoolsConfig, FramePoolsError};

/// Bytes of the little-endian length prefix in front of each payload.
pub(crate) const PREFIX_BYTES: usize = 4;
/// Where the payload begins in a buffer: two cache lines for the header, whose last four bytes are
/// the prefix.
const PAYLOAD_OFFSET: usize = 128;
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

/// The length handed to [`FrameMut::freeze`] does not fit the buffer.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a frame of {len} bytes: it must have 1 to {capacity}; take a buffer for its full length")]
pub struct BadFrameLen {
    /// What was asked for.
    pub len: usize,
    /// What the buffer holds.
    pub capacity: usize,
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

    /// The payload: 1 to [`crate::MAX_FRAME_BYTES`] bytes.
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

    /// The frame as its only owner may change it.
    ///
    /// # Errors
    /// The frame itself, if somebody else has it too.
    pub fn into_mut(self) -> Result<FrameMut, Self> {
        // Acquire: what owners who are gone read comes before what is written now. Pairs with the
        // release in `drop`. A count of one cannot grow: the only owner is here.
        if self.header().refs.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let header = self.header;
        std::mem::forget(self); // its one reference is the buffer's now
        Ok(FrameMut { header })
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
    use super::pools::tests::pools;
    use super::*;

    #[test]
    fn freeze_refuses_empty_and_overlong_and_returns_the_buffer() {
        let pools = pools(1, 0, 0);
        for len in [0, CLASS_BYTES[0] + 1, usize::MAX] {
            let refused = pools.take(1).unwrap().freeze(len).unwrap_err();
            assert_eq!(
                refused,
                BadFrameLen {
                    len,
                    capacity: CLASS_BYTES[0]
                }
            );
            assert_eq!(pools.available().small, 1);
        }
    }

    #[test]
    fn wire_is_prefix_and_payload_and_the_header_survives_a_full_payload() {
        let pools = pools(0, 1, 0);
        let bytes: Vec<u8> = (0..CLASS_BYTES[1]).map(|i| i as u8).collect();
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
}
