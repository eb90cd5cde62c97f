//! What the kernel's pool of 2 MiB pages holds.
//!
//! In: `/sys/kernel/mm/hugepages` and `/proc/meminfo`. Out: how many pages may be promised to a
//! newcomer, or a sentence why none. It promises nothing about the next instant: the pool is
//! shared by every process, so the mapping itself still decides.
//!
//! Source: the kernel's `admin-guide/mm/hugetlbpage`.

use std::alloc::Layout;
use std::fs;

use crate::mapping::HUGE_PAGE_BYTES;

const POOL_DIR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const MEMINFO: &str = "/proc/meminfo";

/// Counts of the pool of 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HugePool {
    /// Pages in the pool that nobody has touched.
    free: u64,
    /// Of those, pages already promised to a mapping.
    reserved: u64,
    /// Pages that the kernel may still add on demand.
    overcommit_left: u64,
}

impl HugePool {
    fn read() -> Option<Self> {
        let count = |file: &str| -> Option<u64> {
            fs::read_to_string(format!("{POOL_DIR}/{file}"))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let overcommit = count("nr_overcommit_hugepages")?;
        Some(Self {
            free: count("free_hugepages")?,
            reserved: count("resv_hugepages")?,
            overcommit_left: overcommit.saturating_sub(count("surplus_hugepages")?),
        })
    }

    fn promisable(self) -> u64 {
        self.free
            .saturating_sub(self.reserved)
            .saturating_add(self.overcommit_left)
    }
}

/// Checks that `bytes` (a multiple of 2 MiB) of hugepages can be had at this moment.
///
/// # Errors
/// A sentence with the reason and the cure.
pub(crate) fn check_room(bytes: usize) -> Result<(), String> {
    let pages_needed = (bytes / HUGE_PAGE_BYTES) as u64;
    let Some(pool) = HugePool::read() else {
        return Err("this kernel has no pool of 2 MiB pages; \
                    boot one with CONFIG_HUGETLBFS"
            .to_owned());
    };
    let promisable = pool.promisable();
    if promisable < pages_needed {
        return Err(format!(
            "{pages_needed} hugepages of 2 MiB needed, {promisable} not yet promised; \
             raise vm.nr_hugepages by {} (sysctl -w vm.nr_hugepages=N)",
            pages_needed - promisable
        ));
    }
    if !process_may_have_one() {
        return Err("the pool has room but this process is refused a hugepage; \
                    check its hugetlb cgroup limit and its NUMA memory policy"
            .to_owned());
    }
    Ok(())
}

/// Asks for a single hugepage and gives it back.
///
/// It separates "the pool is empty" from "the pool is closed to us" before a large request is
/// made. `hugepage_rs` serves for this question alone. It does not serve for the arena: it maps
/// the default hugepage size whatever that is, neither populates nor confirms, and says null for
/// every failure. It also panics where `/proc/meminfo` has no default size, hence the check.
fn process_may_have_one() -> bool {
    let default_is_2m = fs::read_to_string(MEMINFO).is_ok_and(|text| default_size_is_2m(&text));
    if !default_is_2m {
        // The probe would ask for a page of another size; the mapping itself will tell.
        return true;
    }
    let layout = Layout::new::<u8>();
    // SAFETY: needed because the crate's allocator is an unsafe interface. Sound because the
    // layout is not zero-sized, and the page is given back under the same layout, unused.
    unsafe {
        let page = hugepage_rs::alloc(layout);
        if page.is_null() {
            return false;
        }
        hugepage_rs::dealloc(page, layout);
    }
    true
}

fn default_size_is_2m(meminfo: &str) -> bool {
    meminfo
        .lines()
        .filter_map(|line| line.strip_prefix("Hugepagesize:"))
        .any(|rest| rest.split_whitespace().eq(["2048", "kB"]))
}

/// Whether one more 2 MiB page could be had now; tests use it to say what they could not try.
#[cfg(all(test, not(loom)))]
pub(crate) fn has_room_for(bytes: usize) -> bool {
    check_room(bytes).is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_page_promised_to_another_is_not_free() {
        let pool = HugePool {
            free: 8,
            reserved: 6,
            overcommit_left: 1,
        };
        assert_eq!(pool.promisable(), 3);
        let confused = HugePool {
            free: 1,
            reserved: 6,
            overcommit_left: 0,
        };
        assert_eq!(confused.promisable(), 0);
    }

    #[test]
    fn default_size_is_read_exactly() {
        assert!(default_size_is_2m(
            "HugePages_Free: 1\nHugepagesize:       2048 kB\n"
        ));
        assert!(!default_size_is_2m("Hugepagesize:    1048576 kB\n"));
        assert!(!default_size_is_2m("Hugetlb: 2048 kB\n"));
    }

    #[test]
    fn an_impossible_request_names_the_cure() {
        let reason = check_room(usize::MAX / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES).unwrap_err();
        assert!(reason.contains("vm.nr_hugepages") || reason.contains("CONFIG_HUGETLBFS"));
    }
}
