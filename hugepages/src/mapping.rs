//! One memory mapping, unmapped on drop.
//!
//! In: a length and what backs it. Out: a stable, page-aligned address. It promises that the
//! range stays mapped exactly as long as the value lives, and that nobody else unmaps it.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Length of an ordinary page on the platforms we run on, bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Length of the hugepages we use, bytes.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Whether stores through a mapping are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    ReadOnly,
    ReadWrite,
}

/// An owned mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: needed because NonNull is neither Send nor Sync. Sound because a mapping is an address
// range of the process, not of a thread, and this type itself reads and writes nothing in it.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only reveals the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private ordinary pages, zeroed, populated when first touched.
    pub(crate) fn ordinary(bytes: usize) -> Result<Self> {
        Self::anonymous(bytes, MapFlags::empty())
    }

    /// Private 2 MiB pages, zeroed, all of them present when this returns.
    ///
    /// No `MAP_NORESERVE`: without a reservation the first touch of a page that the pool no
    /// longer has ends the process with SIGBUS. `MAP_POPULATE` alone is not enough, for the
    /// kernel hides its failures (a cgroup limit, a memory policy); [`Mapping::populate`]
    /// reports them.
    pub(crate) fn huge(bytes: usize) -> Result<Self> {
        let flags = MapFlags::HUGETLB | MapFlags::HUGE_2MB | MapFlags::POPULATE;
        let mapping = Self::anonymous(bytes, flags)?;
        mapping.populate()?;
        Ok(mapping)
    }

    fn anonymous(bytes: usize, flags: MapFlags) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: needed because mapping memory is a system call on addresses. Sound because a
        // null hint without MAP_FIXED lets the kernel choose a free range; nothing is replaced.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes,
                protection,
                MapFlags::PRIVATE | flags,
            )?
        };
        Self::owning(base.cast(), bytes)
    }

    /// The first `bytes` of a file, shared with everybody else who maps it.
    ///
    /// The caller has made sure that the file is at least that long and can no longer shrink.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        bytes: usize,
        protection: Protection,
    ) -> Result<Self> {
        let protection = match protection {
            Protection::ReadOnly => ProtFlags::READ,
            Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: as in `anonymous`: the kernel chooses the range, nothing is replaced.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        Self::owning(base.cast(), bytes)
    }

    fn owning(base: *mut u8, bytes: usize) -> Result<Self> {
        NonNull::new(base)
            .map(|base| Self { base, bytes })
            .ok_or(Errno::NOMEM)
    }

    /// Makes every page present and writable now, and says so if that fails.
    ///
    /// # Errors
    /// `EINVAL` on kernels before 5.14, which cannot confirm it; `ENOMEM` or `EFAULT` if a page
    /// cannot be had.
    pub(crate) fn populate(&self) -> Result<()> {
        // SAFETY: needed because madvise acts on addresses. Sound because the range is ours and
        // MADV_POPULATE_WRITE only faults pages in; contents stay as they are.
        unsafe {
            madvise(
                self.base.as_ptr().cast(),
                self.bytes,
                Advice::LinuxPopulateWrite,
            )
        }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: needed to give the range back. Sound because `self` owns it, was the only one
        // who could unmap it, and every reference into it borrows from or holds `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        if let Err(error) = unmapped {
            tracing::error!(%error, bytes = self.bytes, "a mapping could not be given back");
        }
    }
}
