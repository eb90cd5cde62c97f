//! Frame memory registered with a ring, so that sends without a copy need not pin pages each time.
//!
//! Comes in: frames to send. Goes out: the table index for a frame's bytes. Promises: memory
//! that is registered stays mapped until it is not any more; a registration that the kernel refuses
//! only means that its frames are sent with a copy.

use io_uring::Submitter;

use crate::frame::{Frame, FramePools};

/// Places in the ring's buffer table.
const TABLE_PLACES: u32 = 64;
/// The kernel registers at most this much at one place.
const PLACE_BYTES: usize = 1 << 30;

struct Entry {
    pools: FramePools,
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
        Self {
            table,
            used: 0,
            entries: Vec::new(),
        }
    }

    /// Takes out the memory of pools that nobody has any more.
    pub(super) fn sweep(&mut self, submitter: &Submitter<'_>) {
        let used = &mut self.used;
        self.entries.retain(|entry| {
            if !entry.pools.abandoned() {
                return true;
            }
            let Some((first, count)) = entry.places else {
                return false;
            };
            let empty = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            // SAFETY: needed to empty places of the table; an empty iovec names no memory. The
            // kernel keeps its own reference to pages that a send still uses.
            let emptied = unsafe {
                submitter.register_buffers_update(first, &vec![empty; count as usize], None)
            };
            match emptied {
                Ok(()) => *used &= !mask(first, count),
                // The places stay taken; the kernel holds its own references to the pages.
                Err(cause) => tracing::warn!(%cause, "frame memory stays registered"),
            }
            false
        });
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

    /// The place whose memory holds `bytes` of `frame`. The first frame of its pools registers them
    /// all, which pins their pages and may take a moment.
    pub(super) fn place_of(
        &mut self,
        submitter: &Submitter<'_>,
        frame: &Frame,
        bytes: &[u8],
    ) -> Option<u16> {
        let start = bytes.as_ptr() as usize;
        let holds = |entry: &Entry| start.wrapping_sub(entry.base) < entry.bytes;
        let at = self.entries.iter().position(holds).unwrap_or_else(|| {
            self.sweep(submitter);
            let pools = frame.pools();
            let (base, bytes) = (pools.arena().as_ptr() as usize, pools.arena().len());
            let places = self.register(submitter, base, bytes);
            self.entries.push(Entry {
                pools,
                base,
                bytes,
                places,
            });
            self.entries.len() - 1
        });
        let entry = self.entries.get(at)?;
        let (first, _) = entry.places?;
        let offset = start - entry.base;
        let place = offset / PLACE_BYTES;
        let same = (offset + bytes.len() - 1) / PLACE_BYTES == place;
        same.then(|| u16::try_from(first as usize + place).ok())
            .flatten()
    }
}

fn mask(first: u32, count: u32) -> u64 {
    let ones = if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    };
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
    fn places_are_shared_by_frames_and_used_again() {
        let ring = Ring::new(1, 1).unwrap();
        let submitter = ring.submitter();
        let mut registry = Registry::new(&submitter, true);
        let mut place = |frame: &Frame| registry.place_of(&submitter, frame, frame.wire());
        let (a, b) = (pools(), pools());
        let (a1, a2) = (a.copy(&[1; 9000]).unwrap(), a.copy(&[2; 90]).unwrap());
        let first = place(&a1).unwrap();
        assert_eq!(place(&a2), Some(first));
        let b1 = b.copy(b"x").unwrap();
        let second = place(&b1).unwrap();
        assert_ne!(second, first);
        drop((a, a1));
        let c1 = pools().copy(b"x").unwrap();
        assert!(
            ![Some(first), Some(second)].contains(&place(&c1)),
            "a frame of `a` still lives"
        );
        drop(a2);
        for _ in 0..200 {
            // More than the table has: places come back once nobody has the pools.
            assert_eq!(place(&pools().copy(b"x").unwrap()), Some(first));
        }
        assert_eq!(place(&b1), Some(second));
    }

    #[test]
    fn without_a_table_nothing_has_a_place() {
        let ring = Ring::new(1, 1).unwrap();
        let mut registry = Registry::new(&ring.submitter(), false);
        let frame = pools().copy(b"x").unwrap();
        assert_eq!(
            registry.place_of(&ring.submitter(), &frame, frame.wire()),
            None
        );
    }
}
