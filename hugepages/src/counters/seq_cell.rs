//! A group of values that readers see whole: a two-cell seqlock.
//!
//! In: a value of fixed size. Out: the last value published, never a mix of two. The writer fills
//! the cell that nobody is sent to and then publishes it by the version word, whose lowest bit
//! names the cell. It promises that the writer never waits, that a reader retries at most
//! [`ATTEMPTS_MAX`] times, and that a death between two stores changes nothing for readers.
//!
//! The ordering that matters: the writer's release fence before it overwrites a cell, and the
//! reader's acquire fence after it has copied one. A reader that saw a single word of a newer
//! value must also see that the version moved on, and throws the copy away. Without either fence
//! it could accept a mix.

use crate::sync::{AtomicU64, Ordering, fence};

/// How often a reader tries before it gives up.
pub const ATTEMPTS_MAX: u32 = 64;

/// The writer published faster than the reader could copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no whole value in {ATTEMPTS_MAX} attempts: the writer publishes faster than this reader \
         copies; keep the last value and read again later"
)]
pub struct Stale;

/// Publishes `words` as the next version. For the single writer.
fn publish(version: &AtomicU64, cells: [&[AtomicU64]; 2], words: impl Iterator<Item = u64>) {
    let next = version.load(Ordering::Relaxed).wrapping_add(1);
    // Partner: the acquire fence in `snapshot`. It orders the previous publication before the
    // stores below, which reuse the cell of the version before that one.
    fence(Ordering::Release);
    for (cell, word) in cells[(next & 1) as usize].iter().zip(words) {
        cell.store(word, Ordering::Relaxed);
    }
    // Release, partner of the first fence in `snapshot`: who sees the version sees its words.
    version.store(next, Ordering::Release);
}

/// Copies the current version out word by word and returns its number.
///
/// Relaxed loads and fences only: acquire loads are not allowed on read-only memory.
fn snapshot(
    version: &AtomicU64,
    cells: [&[AtomicU64]; 2],
    attempts: u32,
    mut copy: impl FnMut(usize, u64),
) -> Result<u64, Stale> {
    for _ in 0..attempts {
        let before = version.load(Ordering::Relaxed);
        // Partner: the release store of the version in `publish`.
        fence(Ordering::Acquire);
        for (index, cell) in cells[(before & 1) as usize].iter().enumerate() {
            copy(index, cell.load(Ordering::Relaxed));
        }
        // Partner: the release fence in `publish`.
        fence(Ordering::Acquire);
        if version.load(Ordering::Relaxed) == before {
            return Ok(before);
        }
    }
    Err(Stale)
}

#[cfg(not(loom))]
pub use cell::SeqCell;

#[cfg(not(loom))]
mod cell {
    use std::cell::UnsafeCell;
    use std::fmt;

    use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

    use super::{ATTEMPTS_MAX, AtomicU64, Ordering, Stale, publish, snapshot};
    use crate::shared_pod::SharedPod;

    /// A value of type `T` with one writer and any number of readers. All zeroes is a fresh cell
    /// that holds an all-zero `T` of version 0.
    ///
    /// `T` is plain data: `repr(C)`, no padding, a multiple of 8 bytes long.
    #[derive(FromBytes)]
    #[repr(C)]
    pub struct SeqCell<T> {
        version: AtomicU64,
        cells: UnsafeCell<[T; 2]>,
    }

    // SAFETY: needed because of the UnsafeCell. Sound because its contents are only reached as
    // atomic words (see `words`).
    unsafe impl<T: Send> Sync for SeqCell<T> {}
    // SAFETY: needed by the trait. Sound because T is plain data that is only reached as atomic
    // words, any pattern is a T, and IntoBytes rules out references.
    unsafe impl<T> SharedPod for SeqCell<T> where
        T: Copy + FromBytes + IntoBytes + Immutable + Send + 'static
    {
    }

    impl<T: Copy + FromBytes + IntoBytes + Immutable> SeqCell<T> {
        const WORDS: usize = {
            assert!(size_of::<T>() > 0, "an empty value needs no cell");
            assert!(
                size_of::<T>().is_multiple_of(8),
                "pad the value to whole 64-bit words"
            );
            size_of::<T>() / 8
        };

        /// Version 0, all zeroes.
        pub fn new() -> Self {
            Self::new_zeroed()
        }

        /// Publishes a new value. For the single writer; a second one would mix values.
        #[inline]
        pub fn write(&self, value: &T) {
            let (words, _) = value.as_bytes().as_chunks::<8>();
            let words = words.iter().map(|word| u64::from_ne_bytes(*word));
            publish(&self.version, self.words(), words);
        }

        /// The last value published.
        ///
        /// # Errors
        /// [`Stale`] if the writer was faster each time.
        #[inline]
        pub fn read(&self) -> Result<T, Stale> {
            let mut value = T::new_zeroed();
            // SAFETY: needed to fill a T by words without asking that T allow `&mut [u8]` for
            // its padding. Sound because `value` is ours alone, has no padding (IntoBytes), and
            // any bytes make a T (FromBytes).
            let bytes = unsafe {
                std::slice::from_raw_parts_mut((&raw mut value).cast::<u8>(), size_of::<T>())
            };
            let (words, _) = bytes.as_chunks_mut::<8>();
            snapshot(&self.version, self.words(), ATTEMPTS_MAX, |index, word| {
                if let Some(place) = words.get_mut(index) {
                    *place = word.to_ne_bytes();
                }
            })?;
            Ok(value)
        }

        /// How many values were published: a reader sees by it whether the writer still moves.
        #[inline]
        pub fn version(&self) -> u64 {
            self.version.load(Ordering::Relaxed)
        }

        /// Both cells as atomic words.
        fn words(&self) -> [&[AtomicU64]; 2] {
            let base = self.cells.get().cast::<AtomicU64>();
            // SAFETY: needed to reach plain data by atomic words. Sound because the cells are
            // inside an UnsafeCell, follow an 8-byte word in repr(C) and so are 8-aligned, hold
            // 2 * WORDS words, and are reached in no other way.
            unsafe {
                [
                    std::slice::from_raw_parts(base, Self::WORDS),
                    std::slice::from_raw_parts(base.add(Self::WORDS), Self::WORDS),
                ]
            }
        }
    }

    impl<T: Copy + FromBytes + IntoBytes + Immutable> Default for SeqCell<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> fmt::Debug for SeqCell<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let version = self.version.load(Ordering::Relaxed);
            f.debug_struct("SeqCell")
                .field("version", &version)
                .finish_non_exhaustive()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    #[test]
    fn fresh_cell_is_zero_and_values_come_back() {
        let cell = SeqCell::<[u64; 5]>::new();
        assert_eq!(cell.read(), Ok([0; 5]));
        for round in 1..=5 {
            cell.write(&[round; 5]);
            assert_eq!((cell.read(), cell.version()), (Ok([round; 5]), round));
        }
    }

    #[test]
    fn a_writer_that_died_midway_leaves_the_last_value() {
        let version = AtomicU64::new(0);
        let cells = [[0, 0, 0].map(AtomicU64::new), [0, 0, 0].map(AtomicU64::new)];
        let cells = [&cells[0][..], &cells[1][..]];
        publish(&version, cells, [7, 7, 7].into_iter());
        // The next publication gets two words far and never stores the version.
        cells[0][0].store(8, Ordering::Relaxed);
        cells[0][1].store(8, Ordering::Relaxed);
        let mut seen = [0; 3];
        assert_eq!(
            snapshot(&version, cells, 1, |index, word| seen[index] = word),
            Ok(1)
        );
        assert_eq!(seen, [7, 7, 7]);
    }

    #[test]
    fn a_reader_gives_up_on_a_writer_that_never_rests() {
        let version = AtomicU64::new(0);
        let cells = [[AtomicU64::new(0)], [AtomicU64::new(0)]];
        let mut attempts = 0;
        let outcome = snapshot(&version, [&cells[0], &cells[1]], 5, |_, _| {
            attempts += 1;
            version.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!((outcome, attempts), (Err(Stale), 5));
    }

    #[test]
    fn values_are_never_mixed_under_load() {
        let cell = SeqCell::<[u64; 16]>::new();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..=200_000).for_each(|round| cell.write(&[round; 16]));
                done.store(true, Ordering::Release);
            });
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                let Ok(value) = cell.read() else { continue };
                assert!(
                    value.iter().all(|word| *word == value[0]),
                    "mixed: {value:?}"
                );
                assert!(value[0] >= last, "went back from {last} to {}", value[0]);
                last = value[0];
            }
        });
        assert_eq!(cell.read(), Ok([200_000; 16]));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Two words in each cell, as many publications as it takes to reuse a cell.
    #[test]
    fn loom_seq_cell_never_mixes_values() {
        loom::model(|| {
            let shared = Arc::new((
                AtomicU64::new(0),
                [
                    [AtomicU64::new(0), AtomicU64::new(0)],
                    [AtomicU64::new(0), AtomicU64::new(0)],
                ],
            ));
            let writer = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || {
                    let (version, cells) = &*shared;
                    for round in 1..=2 {
                        publish(version, [&cells[0], &cells[1]], [round; 2].into_iter());
                    }
                })
            };
            let (version, cells) = &*shared;
            let mut seen = [0; 2];
            let copied = snapshot(version, [&cells[0], &cells[1]], 2, |index, word| {
                seen[index] = word
            });
            if let Ok(number) = copied {
                assert_eq!(seen, [number; 2]);
            }
            writer.join().unwrap();
        });
    }
}
