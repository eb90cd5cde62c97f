//! A line behind an encoder, reckoned. In: what each batch took to encode and its bytes. Out: when the last is
//! across. Promise: as in the data plane, little is encoded ahead of the line: a batch waits until the one
//! before the last has left.

use std::collections::VecDeque;

/// Encoded batches that wait or leave while the next is encoded.
const AHEAD: usize = 2;

/// See the module.
pub(super) struct Line {
    bytes_per_s: f64,
    encoder_free_s: f64,
    /// When each of the last batches has left.
    leaves_s: VecDeque<f64>,
}

impl Line {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1) as f64,
            encoder_free_s: 0.0,
            leaves_s: VecDeque::with_capacity(AHEAD + 1),
        }
    }

    /// The next batch.
    pub(super) fn pass(&mut self, encode_s: f64, bytes: usize) {
        if self.leaves_s.len() == AHEAD
            && let Some(left) = self.leaves_s.pop_front()
        {
            self.encoder_free_s = self.encoder_free_s.max(left);
        }
        self.encoder_free_s += encode_s;
        let begins = self.total_s().max(self.encoder_free_s);
        self.leaves_s
            .push_back(begins + bytes as f64 / self.bytes_per_s);
    }

    /// When the last batch so far is across.
    pub(super) fn total_s(&self) -> f64 {
        self.leaves_s.back().copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_both_counts_and_the_other_once() {
        let mut thin = Line::new(1_000);
        let mut fast = Line::new(1_000_000);
        for _ in 0..100 {
            thin.pass(0.01, 1_000);
            fast.pass(0.01, 1_000);
        }
        assert!((thin.total_s() - 100.01).abs() < 1e-6, "{}", thin.total_s());
        assert!((fast.total_s() - 1.001).abs() < 1e-6, "{}", fast.total_s());
    }
}
