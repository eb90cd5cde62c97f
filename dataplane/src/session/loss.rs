//! What share of its packets the network below the lanes sends again.
//!
//! In: packets sent again since the last look, packets sent in all. Out: the share, over the last second or
//! two. Promise: a few packets say nothing.

/// The share is taken anew this often.
const SPAN_NS: u64 = 1_000_000_000;
/// Fewer packets than this in a span say nothing.
const SEGMENTS_MIN: u64 = 500;
/// Weight of the newest span.
const NEWEST: f32 = 0.5;

/// See the module.
#[derive(Debug)]
pub struct Loss {
    span_start_ns: u64,
    span_start_segments: u64,
    again: u64,
    share: f32,
}

impl Loss {
    /// Nothing is lost so far.
    pub const fn new() -> Self {
        Self {
            span_start_ns: 0,
            span_start_segments: 0,
            again: 0,
            share: 0.0,
        }
    }

    /// `again` more packets were sent again; `segments` were sent in all. Says the share.
    pub fn look(&mut self, now_ns: u64, again: u64, segments: u64) -> f32 {
        self.again += again;
        let sent = segments.saturating_sub(self.span_start_segments);
        if now_ns.saturating_sub(self.span_start_ns) >= SPAN_NS && sent >= SEGMENTS_MIN {
            let share = self.again as f32 / sent as f32;
            self.share += (share - self.share) * NEWEST;
            self.again = 0;
            self.span_start_ns = now_ns;
            self.span_start_segments = segments;
        }
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_follows_the_last_spans_and_a_few_packets_say_nothing() {
        let mut loss = Loss::new();
        assert!(loss.look(SPAN_NS, 5, 10).abs() < f32::EPSILON);
        for second in 2..10 {
            loss.look(second * SPAN_NS, 100, second * 10_000);
        }
        let share = loss.look(10 * SPAN_NS, 100, 100_000);
        assert!((share - 0.01).abs() < 0.002, "{share}");
        for second in 11..20 {
            loss.look(second * SPAN_NS, 0, second * 10_000);
        }
        assert!(loss.look(20 * SPAN_NS, 0, 200_000) < 0.000_1);
    }
}
