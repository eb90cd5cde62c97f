//! Where a ring lies and how its slots are reached.
//!
//! In: a region of a segment, or a number of slots. Out: the two indices and the slots, at checked
//! addresses. It promises that every slot access is inside the region, whatever index is asked
//! for, and that the region outlives the ring.

use std::any::Any;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Record, RingError, Side};
#[cfg(not(loom))]
use crate::segment::{Segment, SegmentError};
use crate::sync::{AtomicU64, Ordering, UnsafeCell, copy_in, copy_out};

/// One index with the cache lines to itself.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line {
    index: AtomicU64,
    #[cfg(not(loom))]
    apart: [u64; 15],
}

/// Both indices.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Indices {
    producer: Line,
    consumer: Line,
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Indices>() == INDICES_BYTES);
    assert!(std::mem::offset_of!(Indices, consumer) == 128);
};

#[cfg(not(loom))]
const INDICES_BYTES: usize = 256;

impl Indices {
    #[inline(always)]
    pub(super) fn of(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Producer => &self.producer.index,
            Side::Consumer => &self.consumer.index,
        }
    }
}

/// A record's place. `MaybeUninit` because a peer may be writing to it at any time.
type Slot<T> = UnsafeCell<MaybeUninit<T>>;

/// A region of a segment set aside for one ring.
#[cfg(not(loom))]
#[derive(Clone, Debug)]
pub struct RingMem {
    segment: Arc<Segment>,
    offset: usize,
}

#[cfg(not(loom))]
impl RingMem {
    /// Where records begin, from the start of the ring, bytes.
    pub const RECORDS_OFFSET: usize = INDICES_BYTES;

    /// Length of a ring of `slots` records, bytes. Its offset must be a multiple of 64.
    pub const fn bytes_needed<T: Record>(slots: u32) -> usize {
        // Saturates: a ring that large is refused when it is placed.
        (slots as usize)
            .saturating_mul(size_of::<T>())
            .saturating_add(INDICES_BYTES)
    }

    /// The ring that begins at `offset` of the segment's body.
    pub fn in_segment(segment: Arc<Segment>, offset: usize) -> Self {
        Self { segment, offset }
    }

    pub(super) fn slots<T: Record>(&self, slots: u32) -> Result<Slots<T>, RingError> {
        let mask = mask(slots)?;
        let align = align_of::<Indices>();
        if align_of::<T>() > align {
            let misfit = SegmentError::Misaligned {
                offset: self.offset,
                align: align_of::<T>(),
            };
            return Err(misfit.into());
        }
        let bytes = Self::bytes_needed::<T>(slots);
        let base = self.segment.body().region(self.offset, bytes, align)?;
        // SAFETY: needed to find the records behind the indices. Sound because `region` checked
        // that INDICES_BYTES and all records lie inside the body.
        let records = unsafe { base.add(INDICES_BYTES) };
        let owner = Arc::clone(&self.segment);
        Ok(Slots {
            indices: base.cast(),
            records: records.cast(),
            mask,
            _owner: owner,
        })
    }
}

/// The two indices and the slots of one ring.
pub(super) struct Slots<T> {
    indices: NonNull<Indices>,
    records: NonNull<Slot<T>>,
    mask: u64,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: needed because of the pointers. Sound because the memory has an owner that may be dropped
// anywhere, indices are atomics, records are plain data, and who touches which record when is
// settled by the protocol of the ring.
unsafe impl<T: Record> Send for Slots<T> {}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Self {
            _owner: Arc::clone(&self._owner),
            ..*self
        }
    }
}

impl<T> fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

struct Private<T> {
    indices: Indices,
    records: Box<[Slot<T>]>,
}

// SAFETY: needed because of the cells. Sound because they are only reached through `Slots`, under
// the protocol of the ring.
unsafe impl<T: Record> Sync for Private<T> {}

impl<T: Record> Slots<T> {
    pub(super) fn private(slots: u32) -> Result<Self, RingError> {
        let mask = mask(slots)?;
        let records = (0..slots)
            .map(|_| UnsafeCell::new(MaybeUninit::new(T::new_zeroed())))
            .collect();
        let owner = Arc::new(Private::<T> {
            indices: Indices::default(),
            records,
        });
        let indices = NonNull::from(&owner.indices);
        let records = NonNull::from(&*owner.records).cast();
        Ok(Self {
            indices,
            records,
            mask,
            _owner: owner,
        })
    }

    /// Makes sure that nobody has been `side` of this ring before.
    pub(super) fn check_fresh(&self, side: Side) -> Result<(), RingError> {
        match self.indices().of(side).load(Ordering::Relaxed) {
            0 => Ok(()),
            found => Err(RingError::NotFresh { side, found }),
        }
    }

    /// Writes the record of `index`. Only the producer calls it, for a slot that the consumer
    /// has given back.
    #[inline(always)]
    pub(super) fn write(&self, index: u64, record: &T) {
        self.slot(index).with_mut(|place| {
            // SAFETY: needed to store into shared memory. Sound because `slot` is inside the
            // region, and any bytes a peer may see are allowed to be seen (no padding).
            unsafe { place.cast::<T>().write(*record) }
        });
    }

    /// Writes records from `index` on, at most as many as there are slots. Only the producer calls
    /// it, for slots that the consumer has given back.
    #[inline(always)]
    pub(super) fn write_run(&self, index: u64, records: &[T]) {
        let (first, second) = self.run(index, records.len());
        let from = records.as_ptr().cast::<MaybeUninit<T>>();
        // SAFETY: needed to store into shared memory. Sound because `run` gives slots inside the
        // region, no more than `records` is long, and any bytes a peer may see are allowed to be
        // seen (no padding).
        unsafe {
            copy_in(first, from);
            copy_in(second, from.add(first.len()));
        }
    }

    /// Copies the record of `index` out. Only the consumer calls it, for a published record.
    ///
    /// The read is volatile, so that the compiler copies whole words, exactly once, and never goes
    /// back to memory that a hostile producer may have changed since.
    #[inline(always)]
    pub(super) fn read(&self, index: u64) -> T {
        self.slot(index).with(|place| {
            // SAFETY: needed to copy out of shared memory. Sound because `slot` is inside the
            // region, it is initialised (zeroed at first), and any bytes make a T, even torn
            // ones from a producer that breaks the protocol.
            unsafe { place.cast::<T>().read_volatile() }
        })
    }

    /// Copies records from `index` on into `out`, at most as many as there are slots. Only the
    /// consumer calls it, for published records.
    ///
    /// The caller gives the slots back, with Release, before anybody looks at the copies. No compiler
    /// may move a read behind that, so here too each record is read exactly once.
    #[inline(always)]
    pub(super) fn read_run<'out>(
        &self,
        index: u64,
        out: &'out mut [MaybeUninit<T>],
    ) -> &'out mut [T] {
        let (first, second) = self.run(index, out.len());
        let place = out.as_mut_ptr();
        // SAFETY: needed to copy out of shared memory. Sound because `run` gives slots inside the
        // region, no more than `out` is long, they are initialised (zeroed at first), and any bytes
        // make a T, even torn ones from a producer that breaks the protocol.
        unsafe {
            copy_out(first, place);
            copy_out(second, place.add(first.len()));
        }
        let filled = first.len() + second.len();
        // SAFETY: needed to hand out initialised records. Sound because that many were just written,
        // from the first.
        unsafe { out[..filled].assume_init_mut() }
    }
}

impl<T> Slots<T> {
    #[inline(always)]
    pub(super) fn capacity(&self) -> u64 {
        self.mask + 1
    }

    #[inline(always)]
    pub(super) fn indices(&self) -> &Indices {
        // SAFETY: needed to follow the pointer. Sound because it was made from a checked region
        // that the owner keeps, and indices are atomics.
        unsafe { self.indices.as_ref() }
    }

    #[inline(always)]
    fn slot(&self, index: u64) -> &Slot<T> {
        // SAFETY: needed to reach a slot. Sound because the mask keeps the place below the
        // capacity, for which room was checked; the owner keeps the memory; and a cell of
        // MaybeUninit may be referenced whatever it holds.
        unsafe { self.records.add((index & self.mask) as usize).as_ref() }
    }
    /// The slots of `count` records from `index` on: those up to the end of the ring, then those from
    /// its start. Never more than there are.
    #[inline(always)]
    fn run(&self, index: u64, count: usize) -> (&[Slot<T>], &[Slot<T>]) {
        let at = (index & self.mask) as usize;
        let to_end = self.capacity() as usize - at;
        let first = count.min(to_end);
        let second = (count - first).min(at);
        // SAFETY: needed to reach neighbouring slots at once. Sound because `at + first` is at most
        // and `second` below the capacity, for which room was checked; the owner keeps the memory;
        // and cells of MaybeUninit may be referenced whatever they hold.
        unsafe {
            (
                std::slice::from_raw_parts(self.records.add(at).as_ptr(), first),
                std::slice::from_raw_parts(self.records.as_ptr(), second),
            )
        }
    }
}

fn mask(slots: u32) -> Result<u64, RingError> {
    if slots.is_power_of_two() {
        Ok(u64::from(slots) - 1)
    } else {
        Err(RingError::BadCapacity { slots })
    }
}
