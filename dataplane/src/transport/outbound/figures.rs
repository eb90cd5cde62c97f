//! What [`super::Outbound`] says of itself.
//!
//! In: its state. Out: figures for the session, the encoder and the operator. Promise: asking changes nothing.

use super::Outbound;
use crate::transport::{FrameHandle, Nanos};

/// Less than this of the best rate says that the path changed, or that another shares it.
const AT_BEST_PERCENT: u64 = 85;

impl<F: FrameHandle> Outbound<F> {
    /// Does a batch wait for a lane?
    pub fn has_queued(&mut self) -> bool {
        self.oldest_queued().is_some()
    }

    /// Batches pushed and not confirmed in sequence.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        (self.next.0 - self.base.0) as usize
    }

    /// Raw bytes read from the hypervisor and not known to be taken at the far end.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.credit.held_bytes()
    }

    /// The shared window now, raw bytes.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        if self.far.is_far() {
            let rate = self.window.delivery_rate_bytes_s();
            self.far
                .held_limit_bytes(rate, self.config.window_limit_bytes)
        } else {
            self.window.bytes()
        }
    }

    /// See [`super::far::FarPath::is_full`].
    #[must_use]
    pub fn is_path_full(&self) -> bool {
        self.far.is_full()
    }

    /// Is this about as much as a far path carried at best, bytes a second?
    #[must_use]
    pub fn is_at_best(&self, bytes_per_s: u64) -> bool {
        let (best, _) = self.far.carried_bytes_per_s();
        self.far.is_far() && bytes_per_s >= best / 100 * AT_BEST_PERCENT
    }

    /// Wire bytes that a frame should have at most on a far path, so that none holds the sequence up for
    /// long, where the far end has room for `frames_max`; `None` on a near path.
    #[must_use]
    pub fn far_frame_bytes(&self, frames_max: usize) -> Option<u64> {
        self.far
            .is_far()
            .then(|| self.far.frame_bytes(self.lanes.count_up(), frames_max))
    }

    /// What a far path carried at best, wire bytes a second, and whether it may carry more than was seen;
    /// `None` on a near path.
    #[must_use]
    pub fn carried_bytes_per_s(&self) -> Option<(u64, bool)> {
        self.far.is_far().then(|| self.far.carried_bytes_per_s())
    }

    /// The link's round trip by PINGs, once one was answered.
    #[must_use]
    pub fn rtt_us(&self) -> Option<u64> {
        self.ping_rtt.ns().map(|ns| ns / 1000)
    }

    /// When the last PING left that was answered, and how long that took.
    #[must_use]
    pub fn newest_ping(&self) -> Option<(Nanos, u64)> {
        self.ping_rtt.newest()
    }

    /// Raw bytes a second that the far hypervisor takes at best.
    #[must_use]
    pub fn delivery_rate_bytes_s(&self) -> u64 {
        self.window.delivery_rate_bytes_s()
    }

    /// Batches that went out again.
    #[must_use]
    pub fn resent_batches(&self) -> u64 {
        self.resent_batches
    }

    /// Lanes that are up.
    #[must_use]
    pub fn lanes_up(&self) -> usize {
        self.lanes.count_up()
    }
}
