//! What [`super::Outbound`] is told while it runs.
//!
//! In: what the network below knows, how many lanes pay, what they may hold. Out: a sender that keeps to it.
//! Promise: what is under way stays as it is; only what is sent from now on is concerned.

use super::Outbound;
use crate::transport::FrameHandle;

impl<F: FrameHandle> Outbound<F> {
    /// The path's round trip, as the network below knows it: see [`super::far::FarPath`].
    pub fn expect_delay(&mut self, delay_ns: u64) {
        self.far.expect_delay(delay_ns);
    }

    /// See [`super::far::FarPath::note_rtt`].
    pub fn note_rtt(&mut self, rtt_ns: u64) {
        self.far.note_rtt(rtt_ns);
    }

    /// See [`super::far::FarPath::set_lean`].
    pub const fn set_lean(&mut self, is_lean: bool) {
        self.far.set_lean(is_lean);
    }

    /// The share of its packets that the network below sends again: see [`super::far::FarPath::expect_loss`].
    pub fn expect_loss(&mut self, share: f32) {
        self.far.expect_loss(share);
    }

    /// The next PING is due now.
    pub const fn ping_at_once(&mut self) {
        self.last_ping = None;
    }

    /// A lane with this backlog takes no more from now on.
    pub const fn set_lane_backlog_limit(&mut self, bytes: usize) {
        self.config.lane_backlog_limit_bytes = bytes;
    }

    /// Spreads over the first `active` lanes from now on. What others carry is still waited for.
    pub fn set_active_lanes(&mut self, active: usize) {
        self.lanes.set_active(active);
    }
}
