//! Memory that a device may reach.
//!
//! Comes in: addresses. Goes out: keys. Promises: a region is known to its device from its making to
//! its drop; a lane's slots are its own.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use dwcp_hugepages::arena::{Arena, ArenaConfig, ArenaError, BackingPolicy};
use rdma_sys::{ibv_access_flags, ibv_dereg_mr, ibv_mr, ibv_reg_mr};

use super::device::{Device, non_null};
use super::message::MESSAGE_BYTES;

/// Who may write into a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This side's device.
    Local,
    /// A peer too, who was told its key.
    Peer,
}

/// Memory registered with a device.
pub(super) struct Region {
    mr: NonNull<ibv_mr>,
    _device: Arc<Device>,
}

// SAFETY: needed because of the raw pointer. A region is only read after it was made, until the drop,
// which may happen on any thread.
unsafe impl Send for Region {}

impl Region {
    /// Registers `bytes` bytes from `base` on; pins their pages.
    ///
    /// # Safety
    /// The memory stays mapped until the region is dropped. With [`Reach::Peer`], Rust code reads or
    /// writes it only while no peer that was told the key is expected to write.
    pub(super) unsafe fn register(
        device: &Arc<Device>,
        base: *mut u8,
        bytes: usize,
        reach: Reach,
    ) -> io::Result<Self> {
        let mut access = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        if reach == Reach::Peer {
            access |= ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        }
        // SAFETY: needed to tell the device; the domain lives as long as `device`, and the caller
        // promises the memory.
        let mr = unsafe { ibv_reg_mr(device.pd(), base.cast(), bytes, access.cast_signed()) };
        Ok(Self {
            mr: non_null(mr)?,
            _device: Arc::clone(device),
        })
    }

    /// Names it in requests of this side.
    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: needed to read what verbs hand out; the region lives as long as `self`.
        unsafe { self.mr.as_ref() }.lkey
    }

    /// Names it in requests of a peer.
    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.mr.as_ref() }.rkey
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: needed to tell the device that the memory goes; nothing names the region after this.
        let refused = unsafe { ibv_dereg_mr(self.mr.as_ptr()) };
        if refused != 0 {
            tracing::error!(
                errno = refused,
                "memory stays registered with an RDMA device"
            );
        }
    }
}

/// Messages that a lane can have arrive, and as many under way.
pub(super) const SLOTS: usize = 64;

/// A lane's message slots: [`SLOTS`] to receive into, then [`SLOTS`] to send from.
pub(super) struct Slots {
    // Before the arena: the device lets go of the memory first.
    region: Region,
    arena: Arena,
}

impl Slots {
    /// Maps and registers them.
    pub(super) fn new(device: &Arc<Device>, backing: BackingPolicy) -> Result<Self, SlotsError> {
        let arena = Arena::new(ArenaConfig {
            name: "rdma-slots",
            bytes: 2 * SLOTS * MESSAGE_BYTES,
            backing,
        })?;
        // SAFETY: needed to let the device reach the slots; the arena is dropped after the region.
        let region =
            unsafe { Region::register(device, arena.as_ptr(), arena.len(), Reach::Local) }?;
        Ok(Self { region, arena })
    }

    /// Names the slots in requests.
    pub(super) fn lkey(&self) -> u32 {
        self.region.lkey()
    }

    fn at(&self, index: usize) -> *mut u8 {
        // SAFETY: needed to find a slot; the index is taken modulo the number of slots, so that it
        // lies within the arena.
        unsafe { self.arena.as_ptr().add(index % (2 * SLOTS) * MESSAGE_BYTES) }
    }

    /// Where messages land.
    pub(super) fn incoming(&self, slot: u8) -> *mut u8 {
        self.at(usize::from(slot) % SLOTS)
    }

    /// Where messages are built.
    pub(super) fn outgoing(&self, slot: usize) -> *mut u8 {
        self.at(SLOTS + slot % SLOTS)
    }
}

/// Why a lane got no slots.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotsError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] ArenaError),
    /// The device refused it.
    #[error("the device does not register memory ({0}); raise RLIMIT_MEMLOCK or give CAP_IPC_LOCK")]
    Region(#[from] io::Error),
}
