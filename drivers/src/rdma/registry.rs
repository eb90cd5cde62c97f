//! Frame memory registered with devices.
//!
//! Comes in: frames to send and buffers to receive into. Goes out: keys. Promises: memory is
//! registered at its first use and then known, so that a frame costs a look-up; pools that nobody has
//! any more are let go of by `sweep`.
//!
//! The arena of the pools is registered as a whole for this side's device. For a peer, each buffer's
//! payload is registered by itself, so that no peer reaches the headers between them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::device::Device;
use super::memory::{Reach, Region};
use super::message::Buffer;
use crate::frame::{Frame, FrameMut, FramePools};

struct Entry {
    // Before the pools: regions go before the memory does.
    whole: Option<Region>,
    payloads: HashMap<usize, Region>,
    device: Arc<Device>,
    base: usize,
    bytes: usize,
    pools: FramePools,
}

impl Entry {
    fn holds(&self, device: &Arc<Device>, address: usize) -> bool {
        address.wrapping_sub(self.base) < self.bytes && Arc::ptr_eq(&self.device, device)
    }
}

/// What one group has registered.
#[derive(Default)]
pub(super) struct Registry(Vec<Entry>);

impl Registry {
    fn entry(
        &mut self,
        device: &Arc<Device>,
        address: usize,
        pools: impl FnOnce() -> FramePools,
    ) -> &mut Entry {
        let known = self.0.iter().position(|entry| entry.holds(device, address));
        let at = known.unwrap_or_else(|| {
            self.sweep();
            let pools = pools();
            self.0.push(Entry {
                whole: None,
                payloads: HashMap::new(),
                device: Arc::clone(device),
                base: pools.arena().as_ptr() as usize,
                bytes: pools.arena().len(),
                pools,
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// The key of a frame to send. The first frame of its pools registers them all, which pins their
    /// pages and may take a moment.
    pub(super) fn key_of(&mut self, device: &Arc<Device>, frame: &Frame) -> io::Result<u32> {
        let address = frame.bytes().as_ptr() as usize;
        let entry = self.entry(device, address, || frame.pools());
        if let Some(region) = &entry.whole {
            return Ok(region.lkey());
        }
        let arena = entry.pools.arena();
        // SAFETY: needed to let the device read frames; the entry holds the pools, and so the arena,
        // for longer than the region.
        let region =
            unsafe { Region::register(device, arena.as_ptr(), arena.len(), Reach::Local) }?;
        Ok(entry.whole.insert(region).lkey())
    }

    /// Where a peer may write the payload of `frame`, a buffer of `pools`.
    pub(super) fn buffer_of(
        &mut self,
        device: &Arc<Device>,
        pools: &FramePools,
        frame: &mut FrameMut,
    ) -> io::Result<Buffer> {
        let payload = frame.payload_mut();
        let (base, bytes) = (payload.as_mut_ptr(), payload.len());
        let entry = self.entry(device, base as usize, || pools.clone());
        let rkey = match entry.payloads.get(&(base as usize)) {
            Some(region) => region.rkey(),
            None => {
                // SAFETY: needed to let a peer write into the payload; the entry holds the pools, and
                // so the memory, for longer than the region. The lane reads the payload once the peer
                // said that it wrote it; a peer that writes later breaks the rules that the module's
                // head states.
                let region = unsafe { Region::register(device, base, bytes, Reach::Peer) }?;
                let rkey = region.rkey();
                entry.payloads.insert(base as usize, region);
                rkey
            }
        };
        Ok(Buffer {
            addr: base as u64,
            rkey,
        })
    }

    /// Lets go of pools that nobody else has.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|entry| !entry.pools.abandoned());
    }
}
