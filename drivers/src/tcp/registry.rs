//! Frame memory registered with a ring, so that sends without a copy need not pin pages each time.
//!
//! Comes in: the pools of each lane. Goes out: the table index for a frame's bytes. Promises: memory
//! that is registered stays mapped until it is not any more; a registration that the kernel refuses
//! only means that its frames are sent with a copy.

use io_uring::Submitter;

use crate::frame::FramePools;

/// Places in the ring's buffer table.
const TABLE_PLACES: u32 = 64;
/// The kernel registers at most this much at one place.
const PLACE_BYTES: usize = 1 << 30;

struct Entry {
    pools: FramePools,
    lanes: u32,
    base: usize,
    bytes: usize,
    /// First place in the table and how many; none when the kernel refused.
    places: Option<(u32, u32)>,
}

pub(super) struct Registry {
    /// Whether the ring has a table at all.
    table: bool,
    used: u64,
    entries: Vec<Entry>,
}

impl Registry {
    /// With a table if it is wanted and the kernel makes one.
    pub(super) fn new(submitter: &Submitter<'_>, wanted: bool) -> Self {
        let table = wanted && submitter.register_buffers_sparse(TABLE_PLACES).is_ok();
        Self { table, used: 0, entries: Vec::new() }
    }

    /// One more lane sends from `pools`.
    pub(super) fn join(&mut self, submitter: &Submitter<'_>, pools: &FramePools) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.pools.same(pools)) {
            entry.lanes += 1;
            return;
        }
        let arena = pools.arena();
        let (base, bytes) = (arena.as_ptr() as usize, arena.len());
        let places = self.register(submitter, base, bytes);
        self.entries.push(Entry { pools: pools.clone(), lanes: 1, base, bytes, places });
    }

    /// One lane fewer sends from `pools`; the last one takes the memory out of the table.
    pub(super) fn leave(&mut self, submitter: &Submitter<'_>, pools: &FramePools) {
        let Some(at) = self.entries.iter().position(|entry| entry.pools.same(pools)) else {
            return;
        };
        self.entries[at].lanes -= 1;
        if self.entries[at].lanes > 0 {
            return;
        }
        let entry = self.entries.swap_remove(at);
        if let Some((first, count)) = entry.places {
            let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: needed to empty places of the table; an empty iovec names no memory. The
            // kernel keeps its own reference to pages that a send still uses.
            let emptied = unsafe {
                submitter.register_buffers_update(first, &vec![empty; count as usize], None)
            };
            match emptied {
                Ok(()) => self.used &= !mask(first, count),
                // The places stay taken; the kernel holds its own references to the pages.
                Err(cause) => tracing::warn!(%cause, "frame memory stays registered"),
            }
        }
    }

    fn register(
        &mut self,
        submitter: &Submitter<'_>,
        base: usize,
        bytes: usize,
    ) -> Option<(u32, u32)> {
        if !self.table {
            return None;
        }
        let count = u32::try_from(bytes.div_ceil(PLACE_BYTES)).ok()?;
        let first = (0..TABLE_PLACES.checked_sub(count)? + 1)
            .find(|&first| self.used & mask(first, count) == 0)?;
        let pieces: Vec<_> = (0..bytes)
            .step_by(PLACE_BYTES)
            .map(|offset| libc::iovec {
                iov_base: (base + offset) as *mut libc::c_void,
                iov_len: PLACE_BYTES.min(bytes - offset),
            })
            .collect();
        // SAFETY: needed to name the arena to the kernel. It is mapped for at least as long as
        // `pools`, which `Entry` holds until the places are emptied.
        match unsafe { submitter.register_buffers_update(first, &pieces, None) } {
            Ok(()) => {
                self.used |= mask(first, count);
                Some((first, count))
            }
            Err(cause) => {
                tracing::info!(%cause, bytes, "frames are sent with a copy: not registered; \
                     raise RLIMIT_MEMLOCK or give CAP_IPC_LOCK");
                None
            }
        }
    }

    /// The place whose memory holds all of `bytes`.
    pub(super) fn place_of(&self, bytes: &[u8]) -> Option<u16> {
        let start = bytes.as_ptr() as usize;
        for entry in &self.entries {
            let Some(offset) = start.checked_sub(entry.base) else { continue };
            if offset + bytes.len() > entry.bytes {
                continue;
            }
            let (first, _) = entry.places?;
            let place = offset / PLACE_BYTES;
            let same = (offset + bytes.len() - 1) / PLACE_BYTES == place;
            return same.then(|| u16::try_from(first as usize + place).ok()).flatten();
        }
        None
    }
}

fn mask(first: u32, count: u32) -> u64 {
    let ones = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    ones << first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FramePoolsConfig;
    use crate::tcp::ring::Ring;
    use dwcp_hugepages::arena::BackingPolicy;

    fn pools() -> FramePools {
        FramePools::new(&FramePoolsConfig {
            small: 2,
            medium: 2,
            large: 0,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap()
    }

    #[test]
    fn places_are_shared_by_lanes_and_used_again() {
        let ring = Ring::new(1, 1).unwrap();
        let submitter = ring.submitter();
        let mut registry = Registry::new(&submitter, true);
        let (a, b) = (pools(), pools());
        registry.join(&submitter, &a);
        registry.join(&submitter, &a);
        registry.join(&submitter, &b);
        let (in_a, in_b) = (a.copy(&[1; 9000]).unwrap(), b.copy(&[1; 90]).unwrap());
        let place = registry.place_of(in_a.wire()).unwrap();
        assert_ne!(Some(place), registry.place_of(in_b.wire()));
        registry.leave(&submitter, &a);
        assert_eq!(registry.place_of(in_a.wire()), Some(place));
        registry.leave(&submitter, &a);
        assert_eq!(registry.place_of(in_a.wire()), None);
        for _ in 0..200 {
            let c = pools();
            registry.join(&submitter, &c);
            assert_eq!(registry.place_of(c.copy(b"x").unwrap().wire()), Some(place));
            registry.leave(&submitter, &c);
        }
        assert_eq!(registry.place_of(&[0; 10]), None);
    }
}
