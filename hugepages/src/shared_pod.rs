//! Which types may lie in memory that another process writes at any time.
//!
//! In: a type. Out: the marker [`SharedPod`], which [`crate::segment::Body`] asks for before it
//! lends a reference into shared memory. It promises that such a reference is sound whatever the
//! other side writes.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use zerocopy::FromBytes;

/// A type that may be shared with a process that we do not trust.
///
/// # Safety
/// - Every byte that the other side may change lies in an atomic or in an `UnsafeCell` whose
///   contents are only ever reached through atomics: a plain field would be a data race.
/// - Every bit pattern is a value (`FromBytes`), and it holds no pointer, reference or handle:
///   the other side would choose it.
/// - `repr(C)` or `repr(transparent)`, for both sides must see the same layout.
///
/// Structs made of such fields get it by [`crate::impl_shared_pod!`], without `unsafe`.
pub unsafe trait SharedPod: FromBytes + Send + Sync + 'static {}

// SAFETY: needed by the trait. Sound because an atomic integer has no invalid pattern, no pointer,
// and is made to be changed by others.
unsafe impl SharedPod for AtomicU8 {}
// SAFETY: as for AtomicU8.
unsafe impl SharedPod for AtomicU16 {}
// SAFETY: as for AtomicU8.
unsafe impl SharedPod for AtomicU32 {}
// SAFETY: as for AtomicU8.
unsafe impl SharedPod for AtomicU64 {}
// SAFETY: an array is its elements in a row.
unsafe impl<T: SharedPod, const N: usize> SharedPod for [T; N] {}

/// Marks a `repr(C)` struct as [`SharedPod`] after checking that each of its fields is one.
///
/// All fields must be listed; one that is forgotten does not compile.
///
/// ```
/// use dwcp_hugepages::{counters::Counter, impl_shared_pod};
/// #[derive(zerocopy::FromBytes)]
/// #[repr(C)]
/// struct LaneCounters {
///     frames_sent: Counter,
///     bytes_sent: Counter,
/// }
/// impl_shared_pod!(LaneCounters { frames_sent, bytes_sent });
/// ```
#[macro_export]
macro_rules! impl_shared_pod {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        const _: () = {
            fn is_shared_pod<T: $crate::shared_pod::SharedPod>(_: &T) {}
            #[allow(dead_code)]
            fn every_field(it: &$name) {
                let $name { $($field),+ } = it;
                $(is_shared_pod($field);)+
            }
            // SAFETY: needed by the trait. Sound because `every_field` above compiles only if
            // the fields listed are all fields and each is SharedPod, and the bound FromBytes
            // (with its derive's own checks) covers the struct as a whole.
            unsafe impl $crate::shared_pod::SharedPod for $name {}
        };
    };
}

/// A reference into shared memory that keeps the memory mapped.
///
/// Made by [`crate::segment::Segment::shared`], or from an `Arc<T>` for use inside one process.
pub struct SharedRef<T> {
    target: NonNull<T>,
    /// Keeps `target` alive; never read.
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: needed because of the pointer. Sound because this is a shared reference with an owner,
// and `&T` may go to another thread when T is Sync; the owner may be dropped there, being Send.
unsafe impl<T: Sync + Send> Send for SharedRef<T> {}
// SAFETY: as above.
unsafe impl<T: Sync + Send> Sync for SharedRef<T> {}

impl<T> SharedRef<T> {
    /// Ties a reference into `owner`'s memory to its owner.
    ///
    /// # Safety
    /// `target` must point to a valid `T` that stays valid and unmoved while `owner` lives.
    pub(crate) unsafe fn new(target: NonNull<T>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { target, owner }
    }
}

impl<T: Send + Sync + 'static> From<Arc<T>> for SharedRef<T> {
    fn from(owner: Arc<T>) -> Self {
        let target = NonNull::from(&*owner);
        // SAFETY: needed to keep pointer and owner in one value. Sound because an Arc does not
        // move its contents and we hold one.
        unsafe { Self::new(target, owner) }
    }
}

impl<T> Clone for SharedRef<T> {
    fn clone(&self) -> Self {
        Self {
            target: self.target,
            owner: Arc::clone(&self.owner),
        }
    }
}

impl<T> Deref for SharedRef<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: needed to follow the pointer. Sound by the contract of `new`: valid while the
        // owner lives, and we hold the owner.
        unsafe { self.target.as_ref() }
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedRef").field(&**self).finish()
    }
}
