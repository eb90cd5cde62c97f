//! One worker's pair of queues: bursts of frames in, bursts of frames out.
//!
//! Comes in: frames that the device received; bytes to send, written in place. Goes out: the same the
//! other way. Promises: a burst costs a fixed number of calls into DPDK; what the device has no room
//! for stays staged, in order, and nothing is lost here; packets go back to their pool when a burst or
//! the queue is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dpdk_sys::rte_mbuf;

use super::exchange::Stray;
use super::packet::Mac;
use super::pool::{Pool, PoolError, give_back, register_thread};
use super::port::Shared;

/// Frames of one call into the device.
pub const BURST: usize = 32;

/// A queue on its way to the worker that will poll it.
#[derive(Debug)]
pub struct QueueSeat {
    pub(super) shared: Arc<Shared>,
    pub(super) port: u16,
    pub(super) queue: u16,
    pub(super) frame_bytes_max: u16,
    pub(super) mac: Mac,
    pub(super) in_memory: bool,
}

impl QueueSeat {
    /// Binds the queue to the calling thread.
    ///
    /// # Errors
    /// [`PoolError::Thread`] when DPDK has no number left for this thread.
    pub fn sit(self) -> Result<PacketQueue, PoolError> {
        register_thread()?;
        Ok(PacketQueue {
            spare: Stack::new(),
            staged: Stack::new(),
            seat: self,
        })
    }
}

/// Pointers to packets, at most one burst of them.
struct Stack {
    packets: [*mut rte_mbuf; BURST],
    count: usize,
}

impl Stack {
    const fn new() -> Self {
        Self {
            packets: [std::ptr::null_mut(); BURST],
            count: 0,
        }
    }

    fn filled(&mut self) -> &mut [*mut rte_mbuf] {
        self.packets.get_mut(..self.count).unwrap_or_default()
    }

    fn pop(&mut self) -> Option<*mut rte_mbuf> {
        self.count = self.count.checked_sub(1)?;
        self.packets.get(self.count).copied()
    }

    /// False when it is full.
    fn push(&mut self, packet: *mut rte_mbuf) -> bool {
        let Some(place) = self.packets.get_mut(self.count) else {
            return false;
        };
        *place = packet;
        self.count += 1;
        true
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: needed to give packets back; a stack owns what it holds, and it ends here.
        unsafe { give_back(self.filled()) };
    }
}

/// What became of a frame to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Built {
    /// It goes out with this burst.
    Staged,
    /// `fill` wrote nothing.
    Nothing,
    /// The device takes no more now; `fill` was not called.
    Full,
}

/// One worker's pair of queues.
pub struct PacketQueue {
    spare: Stack,
    staged: Stack,
    // Last: it keeps the pool that the packets above belong to.
    seat: QueueSeat,
}

impl PacketQueue {
    /// The longest frame, in bytes, from its Ethernet header on.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.seat.frame_bytes_max.into()
    }

    /// The device's Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.seat.mac
    }

    /// Frames go through memory that both ends share, and over no wire.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.seat.in_memory
    }

    /// The queue's number on its port.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.seat.queue
    }

    /// Packets of this queue that nobody holds; for tests of what is given back.
    #[must_use]
    pub fn free_packets(&self) -> u32 {
        self.pool().map_or(0, Pool::free_packets)
    }

    /// How often the link was seen to come or go.
    #[inline]
    #[must_use]
    pub fn link_changes(&self) -> u32 {
        self.seat.shared.link_changes.load(Ordering::Relaxed)
    }

    fn pool(&self) -> Option<&Pool> {
        self.seat.shared.pools.get(usize::from(self.seat.queue))
    }

    /// What has arrived, at most [`BURST`] frames.
    #[inline]
    pub fn receive(&mut self) -> Burst {
        let mut packets = Stack::new();
        if let Some(_pass) = self.seat.shared.gate.enter(self.seat.queue) {
            // SAFETY: needed to poll the device; it is started while the gate is open, the queue is
            // this worker's alone, and `packets` has room for a burst, which it owns afterwards.
            let count = unsafe {
                dpdk_sys::dwcp_shim_rx_burst(
                    self.seat.port,
                    self.seat.queue,
                    packets.packets.as_mut_ptr(),
                    BURST as u16,
                )
            };
            packets.count = usize::from(count).min(BURST);
        }
        self.burst_of(packets)
    }

    /// What other workers passed on to this one, at most [`BURST`] frames.
    #[inline]
    pub fn receive_strays(&mut self) -> Burst {
        let mut packets = Stack::new();
        while packets.count < BURST
            && let Some(stray) = self.seat.shared.exchange.next(self.seat.queue)
        {
            packets.push(stray.into_packet());
        }
        self.burst_of(packets)
    }

    fn burst_of(&self, packets: Stack) -> Burst {
        Burst {
            packets,
            shared: Arc::clone(&self.seat.shared),
        }
    }

    /// Builds one frame in the device's memory: `fill` writes it into a buffer of
    /// [`PacketQueue::frame_bytes_max`] and returns its length, none to give up. Bytes left over from
    /// an earlier frame may lie in the buffer; only those up to the length go out.
    #[inline]
    pub fn build(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Built {
        if self.staged.count == BURST && self.flush() == BURST {
            return Built::Full;
        }
        if self.spare.count == 0 {
            let pool = self.seat.shared.pools.get(usize::from(self.seat.queue));
            if !pool.is_some_and(|pool| pool.take(&mut self.spare.packets)) {
                return Built::Full;
            }
            self.spare.count = BURST;
        }
        let Some(packet) = self.spare.pop() else {
            return Built::Full;
        };
        let room = self.seat.frame_bytes_max;
        // SAFETY: needed to write into the packet; it comes fresh from the pool and is ours alone,
        // its data begins `data_off` behind `buf_addr`, and the pool was made with room for
        // `frame_bytes_max` behind that. The memory was mapped by DPDK, so it is initialised.
        let bytes = unsafe {
            let start = (*packet)
                .buf_addr
                .cast::<u8>()
                .add((*packet).data_off.into());
            std::slice::from_raw_parts_mut(start, room.into())
        };
        let length = fill(bytes).and_then(|length| u16::try_from(length).ok());
        match length.filter(|length| (1..=room).contains(length)) {
            Some(length) => {
                // SAFETY: as above; nobody else sees the packet yet.
                unsafe {
                    (*packet).data_len = length;
                    (*packet).pkt_len = length.into();
                }
                // There is room: the stack was flushed above if it was full.
                self.staged.push(packet);
                Built::Staged
            }
            None => {
                self.spare.push(packet);
                Built::Nothing
            }
        }
    }

    /// Hands the staged frames to the device; returns how many it did not take.
    #[inline]
    pub fn flush(&mut self) -> usize {
        let staged = self.staged.count;
        if staged == 0 {
            return 0;
        }
        let Some(_pass) = self.seat.shared.gate.enter(self.seat.queue) else {
            return staged;
        };
        // SAFETY: needed to send; the device is started while the gate is open, the queue is this
        // worker's alone, and it takes over the first packets, as many as it says.
        let taken = unsafe {
            dpdk_sys::dwcp_shim_tx_burst(
                self.seat.port,
                self.seat.queue,
                self.staged.packets.as_mut_ptr(),
                staged as u16,
            )
        };
        let taken = usize::from(taken).min(staged);
        self.staged.packets.copy_within(taken..staged, 0);
        self.staged.count = staged - taken;
        self.staged.count
    }
}

/// One frame of a burst.
#[derive(Debug)]
pub struct Received<'a> {
    /// Its bytes; none when it lies in several buffers, because it is longer than any we accept.
    pub bytes: Option<&'a mut [u8]>,
    /// The device found the UDP checksum right.
    pub udp_checked: bool,
}

/// Frames as the device wrote them; given back when dropped.
pub struct Burst {
    packets: Stack,
    // Last: it keeps the pools that the packets above belong to.
    shared: Arc<Shared>,
}

impl Burst {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.count
    }

    /// Whether nothing had arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame at this place; none beyond the last, and where one was passed on.
    #[inline]
    #[must_use]
    pub fn frame(&mut self, at: usize) -> Option<Received<'_>> {
        let packet = *self.packets.filled().get(at)?;
        if packet.is_null() {
            return None;
        }
        // SAFETY: needed to reach the packet; the burst is its only owner until it is dropped, which
        // the borrow does not outlast, and `data_len` bytes from `data_off` on lie in its buffer and
        // were written by the driver.
        unsafe {
            let packet = &*packet;
            let (offset, length) = (packet.data_off.into(), packet.data_len.into());
            let start = packet.buf_addr.cast::<u8>().add(offset);
            let whole = packet.nb_segs == 1 && offset + length <= usize::from(packet.buf_len);
            Some(Received {
                bytes: whole.then(|| std::slice::from_raw_parts_mut(start, length)),
                udp_checked: packet.ol_flags & dpdk_sys::dwcp_shim_rx_l4_checksum_mask
                    == dpdk_sys::dwcp_shim_rx_l4_checksum_good,
            })
        }
    }

    /// Passes a frame on to the worker of another queue; false when it was lost on the way.
    pub fn pass_on(&mut self, at: usize, queue: u16) -> bool {
        let Some(place) = self.packets.filled().get_mut(at) else {
            return false;
        };
        let packet = std::mem::replace(place, std::ptr::null_mut());
        if packet.is_null() {
            return false;
        }
        // SAFETY: needed to give the packet away; the burst owned it and has forgotten it.
        let stray = unsafe { Stray::new(packet) };
        self.shared.exchange.pass_on(queue, stray)
    }
}
