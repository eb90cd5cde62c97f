//! A ring of fixed-size records with one producer and one consumer, which need not trust each
//! other.
//!
//! In: records, on one side. Out: the same records in the same order, on the other. It promises
//! no lock, no wait and no allocation; that an index of the peer is checked before it is used
//! ([`RingError::CorruptIndex`], after which the ring stays closed); and that a record is copied
//! out before anybody looks at it.
//!
//! Layout in memory, from [`RingMem::bytes_needed`]: producer's index (8 bytes at 0), consumer's
//! index (8 bytes at 128), records from 256 on. The indices run freely and wrap at 2^64; the place
//! of a record is its index modulo the capacity, a power of two that each side takes from its own
//! build, never from memory. The two indices lie 128 bytes apart, for processors fetch cache
//! lines in pairs.
//!
//! | store | ordering | partner |
//! |---|---|---|
//! | producer's index, after the record | Release | consumer's load of it, Acquire: it sees the record |
//! | consumer's index, after the copy | Release | producer's load of it, Acquire: it overwrites no record still being copied |
//!
//! Each side works from a cached copy of the other's index and reloads it only when the ring
//! seems full or empty, so that a busy ring moves few cache lines.
//!
//! A peer that dies between writing a record and publishing it has written nothing. One that comes
//! back gets a new ring: a side starts only on an index of zero.

mod consumer;
mod memory;
mod producer;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use consumer::Consumer;
#[cfg(not(loom))]
pub use memory::RingMem;
pub use producer::Producer;

use crate::segment::SegmentError;
use memory::Slots;

/// What a ring carries: fixed-size plain data without padding, any bytes of which are a value.
pub trait Record: Copy + FromBytes + IntoBytes + Immutable + Send + 'static {}

impl<T: Copy + FromBytes + IntoBytes + Immutable + Send + 'static> Record for T {}

/// The ring has no room, or it is closed (see [`Producer::check`]). Nothing was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the ring is full; keep the record and push it again later")]
pub struct Full;

/// Which index a complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The index that the producer writes.
    Producer,
    /// The index that the consumer writes.
    Consumer,
}

/// Why a ring cannot be used (any more).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// The peer stored an index that no honest peer can have. The ring is closed for good.
    #[error(
        "the {side:?} index is {found} against our {own} in a ring of {capacity}: the peer is \
             broken or hostile; drop it and attach anew"
    )]
    CorruptIndex {
        /// Whose index it is.
        side: Side,
        /// What was read.
        found: u64,
        /// Our own index.
        own: u64,
        /// Slots in the ring.
        capacity: u64,
    },
    /// The number of slots cannot be used.
    #[error("{slots} slots: use a power of two from 1 to 2^31")]
    BadCapacity {
        /// What was asked for.
        slots: u32,
    },
    /// The memory region is too short or badly aligned for that many slots.
    #[error("the ring does not fit its memory: {0}")]
    Memory(#[from] SegmentError),
    /// The ring was used before.
    #[error(
        "our {side:?} index is already {found}: a ring serves one life of each side; \
             make a new segment for a new generation"
    )]
    NotFresh {
        /// Which side we wanted to be.
        side: Side,
        /// What was found instead of zero.
        found: u64,
    },
}

/// A ring in private memory, for two threads of this process.
///
/// # Errors
/// [`RingError::BadCapacity`].
pub fn private<T: Record>(slots: u32) -> Result<(Producer<T>, Consumer<T>), RingError> {
    let slots = Slots::private(slots)?;
    Ok((Producer::over(slots.clone())?, Consumer::over(slots)?))
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
