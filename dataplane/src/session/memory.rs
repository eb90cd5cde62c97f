//! What a session takes of this node's memory, known before it is opened.
//!
//! In: its role, and the limits that it may have. Out: the bytes that it takes at most; smaller limits that fit into
//! less. Promises: [`Link::new`](super::link::Link::new) is made of the same figures, so that a session takes what
//! it said; a larger limit never takes less.

use dwcp_drivers::MAX_FRAME_BYTES;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig, FramePoolsError};
use dwcp_hugepages::arena::{BackingPolicy, arena_bytes};

use super::aside::jobs_of;
use super::token_lists::TokenLists;
use crate::codec::{Decoder, Encoder};
use crate::intake::BATCH_TOKENS;
use crate::stream::Token;
use crate::transport::wire::BATCH_HEADER_BYTES;
use crate::transport::wire::batch::max_payload_bytes;
use crate::transport::wire::keys::SEAL_BYTES;
use crate::transport::{MAX_IN_FLIGHT, SENT_BATCH_RAW_BYTES};

/// Page store of the direction that carries no pages.
pub const RETURN_STORE_BYTES: u64 = 1 << 20;
/// The strongest level of zstd that the encoder chooses.
pub const ZSTD_LEVEL_MAX: i32 = 12;
/// The longest frame that this side sends.
const SENT_FRAME_BYTES: usize =
    BATCH_HEADER_BYTES + max_payload_bytes(SENT_BATCH_RAW_BYTES) + SEAL_BYTES;
/// Large batches for which any window has room.
const LARGE_BATCHES_MIN: usize = 16;
/// See [`LARGE_BATCHES_MIN`].
const LARGE_BATCHES_MAX: usize = 1024;
/// Large batches of the way back that may be on their way or untaken.
pub const RETURN_BATCHES_MAX: usize = 8;
/// Large buffers at the sender beside those of batches: for channels that read.
const READING: usize = 16;
/// And at the receiver: the one to decode into, and for second copies of batches, which come over other lanes.
const COMING: usize = 32;
/// The rest, at most: 260 channels with their queues, the sequence of both directions, 4096 names of RAM blocks, and
/// a frame that is decrypted for a rollback.
const OTHER_BYTES: usize = 8 << 20;

/// A session that has to do with less memory gives up history first, down to this.
pub const STORE_BYTES_LEAST: u64 = 16 << 20;
/// Then it gives up window, down to this: below it no memory is saved.
pub const WINDOW_BYTES_LEAST: u64 = (LARGE_BATCHES_MIN as u64) << 19;
/// In steps of this.
const STEP_BYTES: u64 = 1 << 20;

/// What the size of a session depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSize {
    /// It sends the guest.
    pub is_source: bool,
    /// Threads that squeeze batches beside the worker.
    pub encoders: usize,
    /// Page store, bytes.
    pub store_bytes: u64,
    /// Window, bytes.
    pub window_limit_bytes: u64,
}

impl SessionSize {
    /// The most that the session takes, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let [store_out, store_in] = self.stores().map(saturated);
        let jobs = jobs_of(self.is_source, self.encoders);
        let codecs = Encoder::bytes(store_out, ZSTD_LEVEL_MAX)
            + Decoder::bytes(store_in)
            + jobs * Encoder::aside_bytes(ZSTD_LEVEL_MAX);
        let frames = self.frames_out().arena_bytes(SENT_FRAME_BYTES)
            + self.frames_in().arena_bytes(MAX_FRAME_BYTES);
        let tokens = TokenLists::BYTES + BATCH_TOKENS * size_of::<Token>();
        (codecs + frames + tokens + OTHER_BYTES) as u64
    }

    /// The same session with the largest limits that fit into `room_bytes`: less history first, then less window.
    /// `None`: not even the least fits.
    #[must_use]
    pub fn fitted(self, room_bytes: u64) -> Option<Self> {
        if self.bytes() <= room_bytes {
            return Some(self);
        }
        let with_store = |store_bytes| Self {
            store_bytes,
            ..self
        };
        let least = with_store(self.store_bytes.min(STORE_BYTES_LEAST));
        if least.bytes() <= room_bytes {
            let fits = |store_bytes| with_store(store_bytes).bytes() <= room_bytes;
            return Some(with_store(largest(
                least.store_bytes,
                self.store_bytes,
                fits,
            )));
        }
        let with_window = |window_limit_bytes| Self {
            window_limit_bytes,
            ..least
        };
        let window = self.window_limit_bytes.min(WINDOW_BYTES_LEAST);
        let fits = |window| with_window(window).bytes() <= room_bytes;
        fits(window).then(|| with_window(largest(window, self.window_limit_bytes, fits)))
    }

    /// The same session with the least limits that are of use.
    #[must_use]
    pub fn least(self) -> Self {
        Self {
            store_bytes: self.store_bytes.min(STORE_BYTES_LEAST),
            window_limit_bytes: self.window_limit_bytes.min(WINDOW_BYTES_LEAST),
            ..self
        }
    }

    /// Page stores of what is sent and of what comes.
    pub(super) const fn stores(&self) -> [u64; 2] {
        if self.is_source {
            [self.store_bytes, RETURN_STORE_BYTES]
        } else {
            [RETURN_STORE_BYTES, self.store_bytes]
        }
    }

    /// Large batches with the guest that may be on their way or untaken.
    pub(super) fn large_batches_max(&self) -> usize {
        saturated(self.window_limit_bytes >> 19).clamp(LARGE_BATCHES_MIN, LARGE_BATCHES_MAX)
    }

    /// Buffers for what is sent. A batch in flight fills two: raw bytes and frame.
    pub(super) fn pools_out(&self, backing: BackingPolicy) -> Result<FramePools, FramePoolsError> {
        FramePools::with_large(&self.frames_out().config(backing), SENT_FRAME_BYTES)
    }

    /// Buffers for what comes. A batch fills one: its frame, then its raw bytes.
    pub(super) fn pools_in(&self, backing: BackingPolicy) -> Result<FramePools, FramePoolsError> {
        FramePools::new(&self.frames_in().config(backing))
    }

    fn frames_out(&self) -> Frames {
        let large = if self.is_source {
            2 * self.large_batches_max() + READING
        } else {
            RETURN_BATCHES_MAX + READING
        };
        Frames { large }
    }

    fn frames_in(&self) -> Frames {
        let large = if self.is_source {
            2 * RETURN_BATCHES_MAX
        } else {
            self.large_batches_max() + COMING
        };
        Frames { large }
    }
}

const _: () = assert!(
    BATCH_HEADER_BYTES + Encoder::max_encoded_len(SENT_BATCH_RAW_BYTES) + SEAL_BYTES
        <= SENT_FRAME_BYTES,
    "what is encoded must fit the buffer that it is encoded into"
);

/// Frame pools but for what memory they lie on.
#[derive(Clone, Copy)]
struct Frames {
    large: usize,
}

impl Frames {
    const fn config(self, backing: BackingPolicy) -> FramePoolsConfig {
        FramePoolsConfig {
            small: 2 * MAX_IN_FLIGHT,
            medium: 2 * MAX_IN_FLIGHT,
            large: self.large,
            backing,
        }
    }

    fn arena_bytes(self, large_bytes: usize) -> usize {
        arena_bytes(self.config(BackingPolicy::Ordinary).bytes(large_bytes))
    }
}

fn saturated(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The largest value from `least`, which fits, to `most`, in steps up from `least`.
fn largest(least: u64, most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut beyond) = (0, (most - least) / STEP_BYTES + 1);
    while beyond - low > 1 {
        let middle = low + (beyond - low) / 2;
        if fits(least + middle * STEP_BYTES) {
            low = middle;
        } else {
            beyond = middle;
        }
    }
    least + low * STEP_BYTES
}

#[cfg(test)]
mod tests;
