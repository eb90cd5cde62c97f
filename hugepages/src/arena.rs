//! One block of memory for buffers, on hugepages if they can be had.
//!
//! In: a length and how much hugepages matter. Out: a mapped, zeroed block that never moves, and
//! what really backs it. It promises that hugepages handed out are all present (no SIGBUS later),
//! that a fallback to ordinary pages is said loudly and counted, and that two pools never get
//! the same bytes.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use thiserror::Error;

use crate::huge_pool;
use crate::mapping::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// How often this process wanted hugepages for an arena and took ordinary pages.
pub fn fallbacks_total() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// What an arena of `bytes` takes at most: whole hugepages.
pub const fn arena_bytes(bytes: usize) -> usize {
    bytes.next_multiple_of(HUGE_PAGE_BYTES)
}

/// How much hugepages matter to the owner of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingPolicy {
    /// Hugepages if there are enough, else ordinary pages with a warning.
    PreferHuge,
    /// Hugepages or an error.
    RequireHuge,
    /// Ordinary pages, without asking for better ones.
    Ordinary,
}

/// What an arena lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB pages, all present.
    Huge2M,
    /// Ordinary pages, present from their first touch on.
    Ordinary {
        /// Why not hugepages, for the operator.
        reason: String,
    },
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// What it is for, in logs and errors.
    pub name: &'static str,
    /// Usable length, bytes; the mapping is rounded up to whole pages.
    pub bytes: usize,
    /// How much hugepages matter.
    pub backing: BackingPolicy,
}

/// Why there is no arena.
#[derive(Debug, Error)]
pub enum ArenaError {
    /// The length is zero or cannot be rounded up to whole pages.
    #[error("arena {name}: {bytes} bytes cannot be mapped; ask for 1 to {max} bytes", max = isize::MAX)]
    BadLength {
        /// The arena.
        name: &'static str,
        /// The length asked for.
        bytes: usize,
    },
    /// Hugepages were required and cannot be had.
    #[error("arena {name}: no hugepages: {reason}")]
    NoHugepages {
        /// The arena.
        name: &'static str,
        /// The reason and the cure.
        reason: String,
    },
    /// The kernel refused even ordinary pages.
    #[error(
        "arena {name}: {bytes} bytes of ordinary memory refused ({source}); \
             ask for less or raise the memory limit of this process"
    )]
    NoMemory {
        /// The arena.
        name: &'static str,
        /// The length asked for.
        bytes: usize,
        /// What the kernel said.
        source: Errno,
    },
}

/// A block of memory that never moves. Share it with an `Arc`.
#[derive(Debug)]
pub struct Arena {
    name: &'static str,
    mapping: Mapping,
    bytes: usize,
    backing: Backing,
    /// Ranges owned by living pools. Cold: taken when a pool is made or ends.
    claims: Mutex<Vec<Range<usize>>>,
}

impl Arena {
    /// Maps the block.
    ///
    /// # Errors
    /// See [`ArenaError`].
    pub fn new(config: ArenaConfig) -> Result<Self, ArenaError> {
        let ArenaConfig {
            name,
            bytes,
            backing,
        } = config;
        let bad_length = ArenaError::BadLength { name, bytes };
        let (Some(ordinary_bytes), Some(huge_bytes)) = (
            whole_pages(bytes, PAGE_BYTES),
            whole_pages(bytes, HUGE_PAGE_BYTES),
        ) else {
            return Err(bad_length);
        };
        let reason = match backing {
            BackingPolicy::Ordinary => "ordinary pages were asked for".to_owned(),
            BackingPolicy::PreferHuge | BackingPolicy::RequireHuge => match map_huge(huge_bytes) {
                Ok(mapping) => return Ok(Self::over(name, mapping, bytes, Backing::Huge2M)),
                Err(reason) if backing == BackingPolicy::RequireHuge => {
                    return Err(ArenaError::NoHugepages { name, reason });
                }
                Err(reason) => {
                    FALLBACKS.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(arena = name, bytes, reason, "ordinary pages, not hugepages");
                    reason
                }
            },
        };
        // No large pages are asked of the kernel here: where it has to clear 2 MiB at the first touch of each, a
        // migration took half as much processor time again.
        let mapping = Mapping::ordinary(ordinary_bytes).map_err(|source| ArenaError::NoMemory {
            name,
            bytes,
            source,
        })?;
        Ok(Self::over(
            name,
            mapping,
            bytes,
            Backing::Ordinary { reason },
        ))
    }

    fn over(name: &'static str, mapping: Mapping, bytes: usize, backing: Backing) -> Self {
        Self {
            name,
            mapping,
            bytes,
            backing,
            claims: Mutex::new(Vec::new()),
        }
    }

    /// What it is for.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its first byte. The block stays there until the arena is dropped.
    ///
    /// Pools hand out parts of it as `&mut [u8]`: whoever writes through this pointer keeps off
    /// their ranges. Its use is to register the block with a kernel or a NIC.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.base().as_ptr()
    }

    /// Usable bytes, as asked for.
    #[allow(clippy::len_without_is_empty)] // an empty arena cannot be made
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// What it lies on.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Gives `range` to one owner. False if it is outside the arena or partly taken.
    pub(crate) fn claim(&self, range: &Range<usize>) -> bool {
        if range.start >= range.end || range.end > self.bytes {
            return false;
        }
        let mut claims = self
            .claims
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if claims
            .iter()
            .any(|taken| taken.start < range.end && range.start < taken.end)
        {
            return false;
        }
        claims.push(range.clone());
        true
    }

    /// Takes back what [`Arena::claim`] gave.
    pub(crate) fn unclaim(&self, range: &Range<usize>) {
        let mut claims = self
            .claims
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        claims.retain(|taken| taken != range);
    }
}

/// Hugepages, present and confirmed, or the reason why not.
fn map_huge(bytes: usize) -> Result<Mapping, String> {
    huge_pool::check_room(bytes)?;
    Mapping::huge(bytes).map_err(|error| match error {
        Errno::INVAL => "this kernel cannot confirm that hugepages are present; \
                         run Linux 5.14 or later"
            .to_owned(),
        _ => format!(
            "the pool had room but the mapping was refused ({error}); another process was \
             faster, or a cgroup limits hugetlb: raise vm.nr_hugepages or that limit"
        ),
    })
}

/// `bytes` rounded up to whole pages; `None` if zero or beyond what can be mapped.
fn whole_pages(bytes: usize, page_bytes: usize) -> Option<usize> {
    bytes
        .checked_next_multiple_of(page_bytes)
        .filter(|rounded| *rounded > 0 && isize::try_from(*rounded).is_ok())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn arena(bytes: usize, backing: BackingPolicy) -> Result<Arena, ArenaError> {
        Arena::new(ArenaConfig {
            name: "test",
            bytes,
            backing,
        })
    }

    /// More hugepages than any machine has, yet few enough to be mapped as ordinary pages.
    fn beyond_the_pool() -> usize {
        let mut bytes = 1 << 30;
        while huge_pool::has_room_for(bytes) {
            bytes *= 2;
        }
        bytes
    }

    fn pages_present(arena: &Arena) -> usize {
        let mut state = vec![0u8; arena.len().div_ceil(PAGE_BYTES)];
        // SAFETY: the range is mapped by `arena`, and `state` has one byte for each of its pages.
        let rc = unsafe { libc::mincore(arena.as_ptr().cast(), arena.len(), state.as_mut_ptr()) };
        assert_eq!(rc, 0);
        state.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn a_fallback_is_counted_reasoned_and_lazy() {
        let before = fallbacks_total();
        let arena = arena(beyond_the_pool(), BackingPolicy::PreferHuge).unwrap();
        let Backing::Ordinary { reason } = arena.backing() else {
            panic!("hugepages out of nowhere");
        };
        assert!(reason.contains("vm.nr_hugepages"), "no cure in: {reason}");
        assert!(fallbacks_total() > before);
        assert_eq!(pages_present(&arena), 0);
        // SAFETY: the first byte of the arena, which nobody else uses.
        unsafe { arena.as_ptr().write(7) };
        assert!((1..=512).contains(&pages_present(&arena)));
    }

    #[test]
    fn required_hugepages_are_not_replaced() {
        let refused = arena(beyond_the_pool(), BackingPolicy::RequireHuge);
        assert!(matches!(refused, Err(ArenaError::NoHugepages { .. })));
    }

    #[test]
    fn hugepages_are_used_and_present_where_there_are_any() {
        let room_before = huge_pool::has_room_for(2 * HUGE_PAGE_BYTES);
        let Ok(arena) = arena(HUGE_PAGE_BYTES + 1, BackingPolicy::RequireHuge) else {
            // Unless another process was faster, there was room at no time.
            let room_after = huge_pool::has_room_for(2 * HUGE_PAGE_BYTES);
            assert!(!(room_before && room_after), "hugepages left unused");
            println!("not tried: no two free hugepages; sysctl -w vm.nr_hugepages=4");
            return;
        };
        assert_eq!(arena.backing(), &Backing::Huge2M);
        assert_eq!(arena.len(), HUGE_PAGE_BYTES + 1);
        assert_eq!(arena.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert_eq!(pages_present(&arena), 513);
    }

    #[test]
    fn lengths_that_cannot_be_mapped_are_refused() {
        for bytes in [0, usize::MAX, isize::MAX as usize] {
            let refused = arena(bytes, BackingPolicy::Ordinary);
            assert!(
                matches!(refused, Err(ArenaError::BadLength { .. })),
                "{bytes}"
            );
        }
    }

    #[test]
    fn ordinary_by_choice_is_no_fallback() {
        let arena = arena(10_000, BackingPolicy::Ordinary).unwrap();
        assert_eq!(arena.len(), 10_000);
        assert!(matches!(arena.backing(), Backing::Ordinary { .. }));
        assert_eq!(arena.as_ptr() as usize % PAGE_BYTES, 0);
    }
}
