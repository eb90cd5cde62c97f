//! Sealed memfd segments: memory that two processes share and neither can pull away.
//!
//! In: a layout (magic, ABI version, layout hash, length), and either a name to create one or a
//! descriptor that a peer sent. Out: a [`Body`] with checked access. It promises that the file
//! can neither shrink (SIGBUS) nor lose its seals, that a header is verified completely before
//! anything behind it is read, and that a read-only peer cannot write, not even through a
//! mapping of its own.
//!
//! Which seals: `SHRINK | GROW | SEAL` always; `FUTURE_WRITE` (Linux 5.1) for read-only peers, set
//! after our own writable mapping exists. Memfds on hugepages know all of them: sealing since
//! Linux 4.16, and `FUTURE_WRITE` honoured by their mmap since 5.13.

mod body;
mod error;
mod header;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::memfd_create;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate};
use rustix::io::Errno;

pub use body::Body;
pub use error::SegmentError;
pub use header::{HEADER_BYTES, SegmentLayout, layout_hash};

use crate::arena::Backing;
use crate::huge_pool;
use crate::mapping::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, Protection};
use crate::shared_pod::{SharedPod, SharedRef};
use header::Header;

const SEALS_ALWAYS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// What a peer may do with the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAccess {
    /// Only the creator writes; the kernel enforces it.
    ReadOnly,
    /// Both sides write.
    ReadWrite,
}

/// A mapped, verified segment.
#[derive(Debug)]
pub struct Segment {
    mapping: Mapping,
    file: OwnedFd,
    layout: SegmentLayout,
    generation: u64,
    creator_pid: u32,
    backing: Backing,
}

impl Segment {
    /// Makes a segment with a zeroed body and seals it.
    ///
    /// Hugepages are used for a body of 2 MiB or more if there are free ones, and only where peers
    /// may not write: a writer can punch holes into the file, and touching a hole when the pool
    /// is empty is a SIGBUS. On ordinary pages a hole reads as zeroes.
    ///
    /// # Errors
    /// [`SegmentError::BadLength`], [`SegmentError::ReservedAbi`], or [`SegmentError::Os`].
    pub fn create(
        name: &str,
        layout: SegmentLayout,
        generation: u64,
        access: PeerAccess,
    ) -> Result<Self, SegmentError> {
        if layout.abi == 0 {
            return Err(SegmentError::ReservedAbi);
        }
        let total_bytes = layout.total_bytes()?;
        let wants_huge = layout.body_bytes >= HUGE_PAGE_BYTES && access == PeerAccess::ReadOnly;
        let (file, mapping, backing) = if wants_huge {
            match huge_file(name, total_bytes) {
                Ok((file, mapping)) => (file, mapping, Backing::Huge2M),
                Err(reason) => {
                    tracing::info!(segment = name, reason, "ordinary pages, not hugepages");
                    let (file, mapping) = ordinary_file(name, total_bytes)?;
                    (file, mapping, Backing::Ordinary { reason })
                }
            }
        } else {
            let (file, mapping) = ordinary_file(name, total_bytes)?;
            let reason = "small, or writable by its peer".to_owned();
            (file, mapping, Backing::Ordinary { reason })
        };
        // FUTURE_WRITE comes after our own writable mapping, which it leaves as it is.
        fcntl_add_seals(&file, seals_for(access)).map_err(SegmentError::os("seal the memfd"))?;
        let creator_pid = rustix::process::getpid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        Header::of(&mapping).write(&layout, total_bytes, generation, creator_pid);
        Ok(Self {
            mapping,
            file,
            layout,
            generation,
            creator_pid,
            backing,
        })
    }

    /// Maps a segment that a peer sent, after verifying that it is what we expect.
    ///
    /// # Errors
    /// One variant of [`SegmentError`] for each thing that can be wrong. Nothing behind the header
    /// is read before all of it agreed.
    pub fn attach(
        fd: OwnedFd,
        expected: SegmentLayout,
        access: PeerAccess,
    ) -> Result<Self, SegmentError> {
        if expected.abi == 0 {
            return Err(SegmentError::ReservedAbi);
        }
        check_seals(fd.as_fd(), access)?;
        // From here on the length cannot change: the seals above say so.
        let total_bytes = expected.total_bytes()?;
        let (file_bytes, backing) = check_length(fd.as_fd(), total_bytes)?;
        let protection = match access {
            PeerAccess::ReadOnly => Protection::ReadOnly,
            PeerAccess::ReadWrite => Protection::ReadWrite,
        };
        let mapping = Mapping::of_file(fd.as_fd(), file_bytes, protection)
            .map_err(SegmentError::os("map the memfd"))?;
        let (generation, creator_pid) = Header::of(&mapping).verify(&expected, total_bytes)?;
        Ok(Self {
            mapping,
            file: fd,
            layout: expected,
            generation,
            creator_pid,
            backing,
        })
    }

    /// The descriptor to send to the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The layout both sides agreed on.
    pub fn layout(&self) -> &SegmentLayout {
        &self.layout
    }

    /// Which life of the creator this segment belongs to; as read at attach.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The process id that the creator wrote: for people who look, not proof of anything.
    pub fn creator_pid(&self) -> u32 {
        self.creator_pid
    }

    /// What the segment lies on.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Checked access to everything behind the header.
    ///
    /// Attached [`PeerAccess::ReadOnly`], the memory is read-only in hardware: a store through a
    /// reference from this body ends the process with SIGSEGV.
    pub fn body(&self) -> Body<'_> {
        // SAFETY: needed to point behind the header. Sound because the mapping holds at least
        // HEADER_BYTES + body_bytes: `create` made it so and `attach` compared it.
        let base = unsafe { self.mapping.base().add(HEADER_BYTES) };
        // SAFETY: needed to build a body from an address. Sound because `body_bytes` from `base`
        // are mapped while `self` lives, which the lifetime of the body says.
        unsafe { Body::new(base, self.layout.body_bytes) }
    }

    /// Like [`Body::at`], but holding the segment: for values that outlive a borrow.
    ///
    /// # Errors
    /// [`SegmentError::OutOfBounds`] or [`SegmentError::Misaligned`].
    pub fn shared<T: SharedPod>(
        self: &Arc<Self>,
        offset: usize,
    ) -> Result<SharedRef<T>, SegmentError> {
        let target = NonNull::from(self.body().at::<T>(offset)?);
        let owner = Arc::clone(self);
        // SAFETY: needed to detach the reference from the borrow. Sound because it points into
        // the mapping that `owner` keeps.
        Ok(unsafe { SharedRef::new(target, owner) })
    }
}

fn seals_for(access: PeerAccess) -> SealFlags {
    match access {
        PeerAccess::ReadOnly => SEALS_ALWAYS | SealFlags::FUTURE_WRITE,
        PeerAccess::ReadWrite => SEALS_ALWAYS,
    }
}

fn ordinary_file(name: &str, total_bytes: usize) -> Result<(OwnedFd, Mapping), SegmentError> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(SegmentError::os("create a memfd"))?;
    let bytes = total_bytes.next_multiple_of(PAGE_BYTES);
    ftruncate(&file, bytes as u64).map_err(SegmentError::os("set the length of the memfd"))?;
    let mapping = Mapping::of_file(file.as_fd(), bytes, Protection::ReadWrite)
        .map_err(SegmentError::os("map the memfd"))?;
    Ok((file, mapping))
}

/// A memfd on hugepages with all pages present, or the reason why not.
fn huge_file(name: &str, total_bytes: usize) -> Result<(OwnedFd, Mapping), String> {
    let bytes = total_bytes.next_multiple_of(HUGE_PAGE_BYTES);
    huge_pool::check_room(bytes)?;
    let make = || -> Result<(OwnedFd, Mapping), Errno> {
        let flags = MemfdFlags::CLOEXEC
            | MemfdFlags::ALLOW_SEALING
            | MemfdFlags::HUGETLB
            | MemfdFlags::HUGE_2MB;
        let file = memfd_create(name, flags)?;
        ftruncate(&file, bytes as u64)?;
        let mapping = Mapping::of_file(file.as_fd(), bytes, Protection::ReadWrite)?;
        mapping.populate()?;
        Ok((file, mapping))
    };
    make().map_err(|error| format!("the pool had room but refused a memfd ({error})"))
}

fn check_seals(file: BorrowedFd<'_>, access: PeerAccess) -> Result<(), SegmentError> {
    let required = seals_for(access);
    let found = match fcntl_get_seals(file) {
        Ok(seals) => seals,
        // Not a memfd at all, so nothing holds it in place.
        Err(Errno::INVAL) => SealFlags::empty(),
        Err(source) => {
            return Err(SegmentError::Os {
                step: "read the seals",
                source,
            });
        }
    };
    if !found.contains(required) {
        return Err(SegmentError::NotSealed {
            found: found.bits(),
            required: required.bits(),
        });
    }
    let read_only = SealFlags::FUTURE_WRITE | SealFlags::WRITE;
    if access == PeerAccess::ReadWrite && found.intersects(read_only) {
        return Err(SegmentError::SealedReadOnly);
    }
    Ok(())
}

/// The file must hold the layout in whole pages and no more.
fn check_length(
    file: BorrowedFd<'_>,
    total_bytes: usize,
) -> Result<(usize, Backing), SegmentError> {
    let stat = fstat(file).map_err(SegmentError::os("read the length"))?;
    let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let is = |page_bytes: usize| {
        total_bytes
            .checked_next_multiple_of(page_bytes)
            .filter(|len| *len as u64 == file_bytes)
    };
    // A memfd says through its block size which pages it lies on.
    let on_huge = u64::try_from(stat.st_blksize).is_ok_and(|b| b == HUGE_PAGE_BYTES as u64);
    let (page_bytes, backing) = if on_huge {
        (HUGE_PAGE_BYTES, Backing::Huge2M)
    } else {
        (
            PAGE_BYTES,
            Backing::Ordinary {
                reason: "chosen by its creator".to_owned(),
            },
        )
    };
    is(page_bytes)
        .map(|bytes| (bytes, backing))
        .ok_or(SegmentError::FileLength {
            found: file_bytes,
            expected: total_bytes as u64,
        })
}

#[cfg(all(test, not(loom)))]
mod tests;
