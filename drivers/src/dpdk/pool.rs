//! Packet memory: a mempool of DPDK's, and the threads that have caches of their own in it.
//!
//! Comes in: how many packets of how many bytes. Goes out: a pool that lives as long as somebody holds
//! a packet of it. Promises: all memory is taken when the pool is made; a worker's thread is known to
//! DPDK from its first queue until it ends, so that taking and giving back packets needs no atomics.

use std::cell::OnceCell;
use std::ffi::CString;
use std::ptr::NonNull;

use dpdk_sys::{rte_mbuf, rte_mempool};
use thiserror::Error;

use super::{errno_text, last_errno};

/// Packets that a thread keeps in its cache: enough for two bursts each way.
const CACHE_PACKETS: u32 = 256;

/// Why there is no packet memory.
#[derive(Debug, Error)]
pub enum PoolError {
    /// DPDK's memory is full.
    #[error(
        "no memory for {packets} packets of {bytes} bytes ({cause}): start DPDK with more memory, \
         or open the port with fewer packets a queue"
    )]
    NoMemory {
        /// How many.
        packets: u32,
        /// Bytes of one packet with its headers.
        bytes: u16,
        /// DPDK's reason.
        cause: String,
    },
    /// DPDK has no number left for this thread.
    #[error("DPDK does not take another thread ({cause}): use fewer workers")]
    Thread {
        /// DPDK's reason.
        cause: String,
    },
}

/// Packets of one queue.
#[derive(Debug)]
pub(super) struct Pool {
    pool: NonNull<rte_mempool>,
}

// SAFETY: needed to share a pool between its port and its worker; DPDK's mempools may be used by any
// number of threads at once, and the pointer is never changed.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// `room_bytes`: of one packet, DPDK's headroom not counted. `socket`: the NUMA node, -1 for any.
    pub(super) fn new(
        name: &str,
        packets: u32,
        room_bytes: u16,
        socket: i32,
    ) -> Result<Self, PoolError> {
        let no_memory = |errno: i32| PoolError::NoMemory {
            packets,
            bytes: room_bytes,
            cause: errno_text(errno),
        };
        let name = CString::new(name).map_err(|_| no_memory(libc::EINVAL))?;
        let room = u16::try_from(dpdk_sys::RTE_PKTMBUF_HEADROOM)
            .ok()
            .and_then(|headroom| room_bytes.checked_add(headroom))
            .ok_or_else(|| no_memory(libc::EINVAL))?;
        let cache = CACHE_PACKETS.min(packets / 4);
        // SAFETY: needed to make the pool; the name ends in zero and is copied, everything else is
        // a number, and EAL runs, since only the owner of an attached device calls this.
        let pool = unsafe {
            dpdk_sys::rte_pktmbuf_pool_create(name.as_ptr(), packets, cache, 0, room, socket)
        };
        let pool = NonNull::new(pool).ok_or_else(|| no_memory(last_errno()))?;
        Ok(Self { pool })
    }

    pub(super) fn as_ptr(&self) -> *mut rte_mempool {
        self.pool.as_ptr()
    }

    /// Takes as many packets as `into` has room for, or none.
    #[inline]
    pub(super) fn take(&self, into: &mut [*mut rte_mbuf]) -> bool {
        let Ok(count) = u32::try_from(into.len()) else {
            return false;
        };
        // SAFETY: needed to take packets; `into` has room for `count` pointers, and the pool lives.
        let result =
            unsafe { dpdk_sys::dwcp_shim_mbuf_alloc_bulk(self.as_ptr(), into.as_mut_ptr(), count) };
        result == 0
    }

    /// Packets that nobody holds, in DPDK's caches or out of them.
    pub(super) fn free_packets(&self) -> u32 {
        // SAFETY: needed to count; the pool lives, and the function only reads.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.as_ptr()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: needed to give the memory back; each holder of a packet holds the pool too, and the
        // device that could write into packets is closed before its port drops its share.
        unsafe { dpdk_sys::rte_mempool_free(self.as_ptr()) };
    }
}

/// Gives packets back to their pools.
///
/// # Safety
/// Each pointer is null or a packet that the caller owns, and it is not used again.
#[inline]
pub(super) unsafe fn give_back(packets: &mut [*mut rte_mbuf]) {
    let count = u32::try_from(packets.len()).unwrap_or(u32::MAX);
    // SAFETY: needed to free packets; the caller owns each of the `count` behind the pointer.
    unsafe { dpdk_sys::rte_pktmbuf_free_bulk(packets.as_mut_ptr(), count) };
}

/// A thread's number in DPDK, given back when the thread ends.
struct Registered;

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: needed to give the number back; it belongs to this thread, which registered it.
        unsafe { dpdk_sys::rte_thread_unregister() };
    }
}

/// Makes the calling thread known to DPDK; again is no error.
pub(super) fn register_thread() -> Result<(), PoolError> {
    thread_local! {
        static REGISTERED: OnceCell<Registered> = const { OnceCell::new() };
    }
    // SAFETY: needed to ask DPDK about this thread; the call reads a thread-local of its own.
    if unsafe { dpdk_sys::dwcp_shim_thread_is_registered() } != 0 {
        return Ok(());
    }
    // SAFETY: needed for caches of this thread's own; EAL runs, since a queue exists.
    if unsafe { dpdk_sys::rte_thread_register() } < 0 {
        return Err(PoolError::Thread {
            cause: errno_text(last_errno()),
        });
    }
    REGISTERED.with(|registered| {
        let _ = registered.set(Registered);
    });
    Ok(())
}
