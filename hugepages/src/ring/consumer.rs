//! The side that reads records.
//!
//! In: what the producer published. Out: copies of the records, in order. It promises to give a
//! slot back only after it was copied, and to trust no index of the producer's.

use std::mem::MaybeUninit;

#[cfg(not(loom))]
use super::RingMem;
use super::memory::Slots;
use super::{Record, RingError, Side};
use crate::sync::Ordering;

/// The reading side of a ring. There is one for each ring.
#[derive(Debug)]
pub struct Consumer<T> {
    slots: Slots<T>,
    /// Our index: records given back so far.
    own: u64,
    /// The producer's index as far as we know.
    limit: u64,
    corrupt: Option<RingError>,
}

impl<T: Record> Consumer<T> {
    /// The consumer of the ring in `mem`.
    ///
    /// One process makes one. `slots` comes from this build, as on the other side.
    ///
    /// # Errors
    /// [`RingError::BadCapacity`], [`RingError::Memory`] or [`RingError::NotFresh`].
    #[cfg(not(loom))]
    #[allow(clippy::needless_pass_by_value)] // a region is given away to one ring
    pub fn new(mem: RingMem, slots: u32) -> Result<Self, RingError> {
        Self::over(mem.slots(slots)?)
    }

    pub(super) fn over(slots: Slots<T>) -> Result<Self, RingError> {
        slots.check_fresh(Side::Consumer)?;
        Ok(Self {
            slots,
            own: 0,
            limit: 0,
            corrupt: None,
        })
    }

    /// The next record, or `None` if there is none now.
    ///
    /// # Errors
    /// [`RingError::CorruptIndex`], from then on always.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<T>, RingError> {
        if self.own == self.limit && self.refresh()? == 0 {
            return Ok(None);
        }
        let record = self.slots.read(self.own);
        self.release(1);
        Ok(Some(record))
    }

    /// Fills `out` from the front with as many records as there are, gives their slots back at
    /// once, and returns the filled part.
    ///
    /// # Errors
    /// [`RingError::CorruptIndex`], from then on always.
    #[inline]
    pub fn pop_into<'out>(
        &mut self,
        out: &'out mut [MaybeUninit<T>],
    ) -> Result<&'out mut [T], RingError> {
        let mut ready = self.limit.wrapping_sub(self.own);
        if ready < out.len() as u64 {
            ready = self.refresh()?;
        }
        let count = out.len().min(usize::try_from(ready).unwrap_or(usize::MAX));
        let filled = self.slots.read_run(self.own, &mut out[..count]);
        if count > 0 {
            self.release(count as u64);
        }
        Ok(filled)
    }

    /// Whether there is nothing to pop now; for the look between `prepare_park` and `park`. A
    /// corrupt ring is not empty: its next `pop` has something to say.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.own == self.limit && matches!(self.refresh(), Ok(0))
    }

    /// Slots in all.
    pub fn capacity(&self) -> u64 {
        self.slots.capacity()
    }

    #[inline(always)]
    fn release(&mut self, count: u64) {
        self.own = self.own.wrapping_add(count);
        // Release, partner: the producer's load in `room`.
        self.slots
            .indices()
            .of(Side::Consumer)
            .store(self.own, Ordering::Release);
    }

    /// Reloads the producer's index, checks it, and returns how many records are ready.
    #[inline]
    fn refresh(&mut self) -> Result<u64, RingError> {
        // Acquire, partner: the producer's store in `publish`.
        let found = self
            .slots
            .indices()
            .of(Side::Producer)
            .load(Ordering::Acquire);
        let ready = found.wrapping_sub(self.own);
        // The only place where the producer's index is believed.
        if ready > self.slots.capacity() || self.corrupt.is_some() {
            return Err(self.close(found));
        }
        self.limit = found;
        Ok(ready)
    }

    /// The producer lied, now or before: nothing more is taken from it.
    #[cold]
    fn close(&mut self, found: u64) -> RingError {
        let (own, capacity) = (self.own, self.slots.capacity());
        self.limit = own;
        self.corrupt
            .get_or_insert(RingError::CorruptIndex {
                side: Side::Producer,
                found,
                own,
                capacity,
            })
            .clone()
    }
}

#[cfg(all(test, not(loom)))]
impl<T: Record> Consumer<T> {
    /// As if `index` records had passed.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.own = index;
        self.limit = index;
        self.slots
            .indices()
            .of(Side::Consumer)
            .store(index, Ordering::Relaxed);
    }
}
