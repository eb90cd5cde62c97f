//! Checked access to the memory behind a header.
//!
//! In: an offset and a type. Out: a reference, or why not. It promises that no reference leaves
//! the body or is misaligned, and that the type is fit for memory that others write.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::SegmentError;
use crate::shared_pod::SharedPod;

/// The memory behind the header, for as long as the segment is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    base: NonNull<u8>,
    bytes: usize,
    segment: PhantomData<&'a [u8]>,
}

impl<'a> Body<'a> {
    /// # Safety
    /// `bytes` from `base` must be mapped and initialised for `'a`.
    pub(super) unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self {
            base,
            bytes,
            segment: PhantomData,
        }
    }

    /// Length, bytes.
    #[allow(clippy::len_without_is_empty)] // a body is never empty
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The `T` at `offset`.
    ///
    /// # Errors
    /// [`SegmentError::OutOfBounds`] or [`SegmentError::Misaligned`].
    pub fn at<T: SharedPod>(&self, offset: usize) -> Result<&'a T, SegmentError> {
        let start = self.region(offset, size_of::<T>(), align_of::<T>())?;
        // SAFETY: needed to see shared memory as a T. Sound because `region` checked bounds and
        // alignment, the memory lives for 'a, and SharedPod allows every pattern and every
        // foreign store.
        Ok(unsafe { start.cast::<T>().as_ref() })
    }

    /// `count` consecutive `T` from `offset`.
    ///
    /// # Errors
    /// [`SegmentError::OutOfBounds`] or [`SegmentError::Misaligned`].
    pub fn slice_at<T: SharedPod>(
        &self,
        offset: usize,
        count: usize,
    ) -> Result<&'a [T], SegmentError> {
        let bytes = size_of::<T>().saturating_mul(count);
        let start = self.region(offset, bytes, align_of::<T>())?;
        // SAFETY: as in `at`, for `count` values; a saturated length never passes the bounds.
        Ok(unsafe { std::slice::from_raw_parts(start.cast::<T>().as_ptr(), count) })
    }

    /// The address of `bytes` bytes at `offset`, or why there is none.
    pub(crate) fn region(
        &self,
        offset: usize,
        bytes: usize,
        align: usize,
    ) -> Result<NonNull<u8>, SegmentError> {
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bytes);
        if !inside {
            return Err(SegmentError::OutOfBounds {
                offset,
                bytes,
                body_bytes: self.bytes,
            });
        }
        // SAFETY: needed to reach the offset. Sound because it was just found to be at most the
        // length of the body.
        let start = unsafe { self.base.add(offset) };
        if !start.addr().get().is_multiple_of(align) {
            return Err(SegmentError::Misaligned { offset, align });
        }
        Ok(start)
    }
}
