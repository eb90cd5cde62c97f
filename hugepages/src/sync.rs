//! The one door to atomics for everything lock-free in this crate.
//!
//! In: `--cfg loom` or not. Out: the same names, from `std` or from loom. It promises that the
//! code that loom explores is the code that runs: no algorithm is written twice.

#[cfg(loom)]
pub use loom::cell::UnsafeCell;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// `std`'s cell behind loom's closure interface, so that loom can see when an access begins and
/// ends.
#[cfg(not(loom))]
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Lends a pointer for reading. The pointer must not leave the closure.
    #[inline(always)]
    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Lends a pointer for writing. The pointer must not leave the closure.
    #[inline(always)]
    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Copies the contents of neighbouring cells to `out`, in one go.
///
/// # Safety
/// `out` has room for them and overlaps none of them, the contents may be copied, and nobody who keeps
/// to the protocol writes to the cells meanwhile.
#[cfg(not(loom))]
#[inline(always)]
pub unsafe fn copy_out<T>(cells: &[UnsafeCell<T>], out: *mut T) {
    // SAFETY: needed for one long copy instead of many short ones. Sound because a cell is laid out as
    // its content, so that neighbours are an array, and by what the caller promises.
    unsafe { out.copy_from_nonoverlapping(cells.as_ptr().cast(), cells.len()) }
}

/// The same for loom, which sees each cell.
///
/// # Safety
/// As above.
#[cfg(loom)]
pub unsafe fn copy_out<T>(cells: &[UnsafeCell<T>], out: *mut T) {
    for (nth, cell) in cells.iter().enumerate() {
        // SAFETY: as above.
        cell.with(|content| unsafe { out.add(nth).copy_from_nonoverlapping(content, 1) });
    }
}

/// Copies as many contents from `from` into neighbouring cells, in one go.
///
/// # Safety
/// `from` holds as many and overlaps none of the cells, the contents may be copied, and nobody who keeps
/// to the protocol reads or writes the cells meanwhile.
#[cfg(not(loom))]
#[inline(always)]
pub unsafe fn copy_in<T>(cells: &[UnsafeCell<T>], from: *const T) {
    let inner = cells.as_ptr().cast::<std::cell::UnsafeCell<T>>();
    // SAFETY: needed and sound as in `copy_out`; cells may be written through a shared reference.
    unsafe {
        std::cell::UnsafeCell::raw_get(inner).copy_from_nonoverlapping(from, cells.len());
    }
}

/// The same for loom, which sees each cell.
///
/// # Safety
/// As above.
#[cfg(loom)]
pub unsafe fn copy_in<T>(cells: &[UnsafeCell<T>], from: *const T) {
    for (nth, cell) in cells.iter().enumerate() {
        // SAFETY: as above.
        cell.with_mut(|content| unsafe { content.copy_from_nonoverlapping(from.add(nth), 1) });
    }
}
