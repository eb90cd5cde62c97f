//! What an operator lets a session send, bytes a second.
//!
//! In: bytes that left. Out: whether the next may. Promise: over any second little more than the limit leaves.

/// Unused allowance of a bandwidth limit that may be spent at once, nanoseconds' worth.
const BURST_NS: u64 = 20_000_000;

/// A bandwidth limit as a token bucket.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_s: u64,
    /// When the next byte may leave.
    free_at_ns: u64,
}

impl RateLimit {
    /// `bytes_per_s` of 0 is no limit.
    pub const fn new(bytes_per_s: u64, now_ns: u64) -> Self {
        Self {
            bytes_per_s,
            free_at_ns: now_ns,
        }
    }

    /// Changes the limit; what was spent under the old one stays spent.
    pub const fn set(&mut self, bytes_per_s: u64, now_ns: u64) {
        if self.bytes_per_s == 0 {
            self.free_at_ns = now_ns;
        }
        self.bytes_per_s = bytes_per_s;
    }

    /// The limit; 0: none.
    pub const fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// May something leave now?
    pub const fn allows(&self, now_ns: u64) -> bool {
        self.bytes_per_s == 0 || self.free_at_ns <= now_ns
    }

    /// Something left.
    pub fn spend(&mut self, bytes: u64, now_ns: u64) {
        if self.bytes_per_s > 0 {
            let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
            let start = self.free_at_ns.max(now_ns.saturating_sub(BURST_NS));
            self.free_at_ns = start.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
        }
    }
}
