//! The side that writes records.
//!
//! In: records. Out: records published to the consumer, in order. It promises never to overwrite
//! a record that the consumer has not given back, and to trust no index of the consumer's.

#[cfg(not(loom))]
use super::RingMem;
use super::memory::Slots;
use super::{Full, Record, RingError, Side};
use crate::sync::Ordering;

/// The writing side of a ring. There is one for each ring.
#[derive(Debug)]
pub struct Producer<T> {
    slots: Slots<T>,
    /// Our index: records published so far.
    own: u64,
    /// The first index that has no room as far as we know: the consumer's, plus the capacity.
    limit: u64,
    corrupt: Option<RingError>,
}

impl<T: Record> Producer<T> {
    /// The producer of the ring in `mem`.
    ///
    /// One process makes one: a second on the same ring would garble records, though nothing
    /// worse. `slots` comes from this build, as on the other side.
    ///
    /// # Errors
    /// [`RingError::BadCapacity`], [`RingError::Memory`] or [`RingError::NotFresh`].
    #[cfg(not(loom))]
    #[allow(clippy::needless_pass_by_value)] // a region is given away to one ring
    pub fn new(mem: RingMem, slots: u32) -> Result<Self, RingError> {
        Self::over(mem.slots(slots)?)
    }

    pub(super) fn over(slots: Slots<T>) -> Result<Self, RingError> {
        slots.check_fresh(Side::Producer)?;
        let limit = slots.capacity();
        Ok(Self {
            slots,
            own: 0,
            limit,
            corrupt: None,
        })
    }

    /// Pushes one record and publishes it.
    ///
    /// # Errors
    /// [`Full`]; if it lasts, [`Producer::check`] tells a slow consumer from a corrupt ring.
    #[inline]
    pub fn push(&mut self, record: &T) -> Result<(), Full> {
        if self.own == self.limit && self.room() == 0 {
            return Err(Full);
        }
        self.slots.write(self.own, record);
        self.publish(1);
        Ok(())
    }

    /// Pushes as many records as there is room for, publishes them at once, and returns how many.
    #[inline]
    pub fn push_slice(&mut self, records: &[T]) -> usize {
        let mut room = self.limit.wrapping_sub(self.own);
        if room < records.len() as u64 {
            room = self.room();
        }
        let count = records
            .len()
            .min(usize::try_from(room).unwrap_or(usize::MAX));
        if count > 0 {
            self.slots.write_run(self.own, &records[..count]);
            self.publish(count as u64);
        }
        count
    }

    /// Records that fit now, at least.
    #[inline]
    pub fn free_slots(&mut self) -> u64 {
        self.room()
    }

    /// Slots in all.
    pub fn capacity(&self) -> u64 {
        self.slots.capacity()
    }

    /// Whether the consumer was ever caught lying. A ring that is corrupt stays full.
    ///
    /// # Errors
    /// [`RingError::CorruptIndex`].
    pub fn check(&self) -> Result<(), RingError> {
        self.corrupt.clone().map_or(Ok(()), Err)
    }

    #[inline(always)]
    fn publish(&mut self, count: u64) {
        self.own = self.own.wrapping_add(count);
        // Release, partner: the consumer's load in `refresh`.
        self.slots
            .indices()
            .of(Side::Producer)
            .store(self.own, Ordering::Release);
    }

    /// Reloads the consumer's index, checks it, and returns the room.
    #[inline]
    fn room(&mut self) -> u64 {
        // Acquire, partner: the consumer's store in `release`.
        let found = self
            .slots
            .indices()
            .of(Side::Consumer)
            .load(Ordering::Acquire);
        let (own, capacity) = (self.own, self.slots.capacity());
        // The only place where the consumer's index is believed.
        if own.wrapping_sub(found) > capacity || self.corrupt.is_some() {
            self.close(found);
            return 0;
        }
        self.limit = found.wrapping_add(capacity);
        self.limit.wrapping_sub(own)
    }

    /// The consumer lied, now or before: full from here on.
    #[cold]
    fn close(&mut self, found: u64) {
        let (own, capacity) = (self.own, self.slots.capacity());
        self.limit = own;
        self.corrupt.get_or_insert(RingError::CorruptIndex {
            side: Side::Consumer,
            found,
            own,
            capacity,
        });
    }
}

#[cfg(all(test, not(loom)))]
impl<T: Record> Producer<T> {
    /// As if `index` records had passed.
    pub(super) fn skip_to(&mut self, index: u64) {
        self.own = index;
        self.limit = index.wrapping_add(self.slots.capacity());
        self.slots
            .indices()
            .of(Side::Producer)
            .store(index, Ordering::Relaxed);
    }
}
