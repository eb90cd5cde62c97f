//! Which packets arrived, and when the sender is to hear of it.
//!
//! Comes in: packet numbers whose tag was right. Goes out: whether each is new, and acknowledgements.
//! Promises: a number is new once (replays are refused for good, also those that are too old to be
//! remembered); constant memory.
//!
//! The sender asks for an acknowledgement at once when it has nothing more to send or may not; else one
//! of every [`ACK_EVERY`] packets is worth an acknowledgement, or [`ACK_DELAY_MAX_NS`] of waiting. A gap
//! is told at once.

use super::packet::Flags;
use super::ranges::RangeSet;

/// Packets that one acknowledgement waits for.
const ACK_EVERY: u32 = 16;
/// How long an acknowledgement waits.
pub(super) const ACK_DELAY_MAX_NS: u64 = 1_000_000;
/// Gaps that are remembered.
const RANGES_MAX: usize = 256;

/// One direction's arrivals.
pub(super) struct Arrivals {
    ranges: RangeSet,
    /// All numbers below count as arrived.
    floor: u64,
    largest: Option<u64>,
    largest_ns: u64,
    /// Packets to be acknowledged since the last acknowledgement.
    waiting: u32,
    waiting_since_ns: u64,
    at_once: bool,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        Self {
            ranges: RangeSet::new(RANGES_MAX),
            floor: 0,
            largest: None,
            largest_ns: 0,
            waiting: 0,
            waiting_since_ns: 0,
            at_once: false,
        }
    }

    pub(super) fn is_new(&self, number: u64) -> bool {
        number >= self.floor && !self.ranges.contains(number)
    }

    /// Notes a new packet. `floor` is the lowest number that the sender still cares for.
    pub(super) fn note(&mut self, now_ns: u64, number: u64, flags: Flags, floor: u64) {
        let next = self.largest.map_or(0, |largest| largest + 1);
        if self.ranges.insert(number..number + 1).is_err() {
            // The oldest is forgotten, and with it the right to come later.
            if let Some(oldest) = self.ranges.first() {
                self.forget_below(oldest.end);
            }
            if number >= self.floor {
                // There is room now, so this is not refused.
                let _ = self.ranges.insert(number..number + 1);
            }
        }
        self.forget_below(floor.min(number));
        if self.largest.is_none_or(|largest| number > largest) {
            self.largest = Some(number);
            self.largest_ns = now_ns;
        }
        if flags.has(Flags::DATA) || flags.has(Flags::PING) {
            if self.waiting == 0 {
                self.waiting_since_ns = now_ns;
            }
            self.waiting += 1;
            self.at_once |= number != next || flags.has(Flags::PROMPT) || flags.has(Flags::PING);
        }
    }

    fn forget_below(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.ranges.remove_below(floor);
        }
    }

    /// The next acknowledgement waits for nothing.
    pub(super) fn hurry(&mut self) {
        self.at_once = true;
    }

    /// Whether an acknowledgement has something to say.
    pub(super) fn has_news(&self) -> bool {
        (self.waiting > 0 || self.at_once) && !self.ranges.is_empty()
    }

    /// Whether an acknowledgement must go now.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.has_news() && self.due_ns().is_none_or(|due_ns| due_ns <= now_ns)
    }

    /// When an acknowledgement must go; none for now, or never without [`Arrivals::has_news`].
    pub(super) fn due_ns(&self) -> Option<u64> {
        (!self.at_once && self.waiting < ACK_EVERY)
            .then_some(self.waiting_since_ns + ACK_DELAY_MAX_NS)
    }

    /// The largest number and how long ago it came, for an acknowledgement.
    pub(super) fn largest(&self, now_ns: u64) -> Option<(u64, u32)> {
        let delay_us = now_ns.saturating_sub(self.largest_ns) / 1000;
        self.largest
            .map(|largest| (largest, u32::try_from(delay_us).unwrap_or(u32::MAX)))
    }

    /// What arrived, as inclusive ranges, highest first.
    pub(super) fn descending(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges
            .descending()
            .map(|range| (range.start, range.end - 1))
    }

    /// How many ranges there are.
    pub(super) fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// An acknowledgement went out.
    pub(super) fn told(&mut self) {
        self.waiting = 0;
        self.at_once = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Flags {
        Flags::DATA
    }

    #[test]
    fn a_number_is_new_once_whatever_comes_between() {
        let mut arrivals = Arrivals::new();
        for number in [0, 1, 5, 3, 2] {
            assert!(arrivals.is_new(number));
            arrivals.note(0, number, data(), 0);
            assert!(!arrivals.is_new(number));
        }
        assert!(arrivals.is_new(4));
        assert_eq!(arrivals.descending().collect::<Vec<_>>(), [(5, 5), (0, 3)]);
        arrivals.note(0, 9, data(), 7);
        assert!(!arrivals.is_new(4), "below the sender's floor");
        assert!(arrivals.is_new(8));
        assert_eq!(arrivals.descending().collect::<Vec<_>>(), [(9, 9)]);
        // A floor beyond the packet's own number is no floor.
        arrivals.note(0, 12, data(), 1000);
        assert!(arrivals.is_new(13));
    }

    #[test]
    fn gaps_without_end_make_old_numbers_refused_not_memory() {
        let mut arrivals = Arrivals::new();
        for number in 0..10_000 {
            arrivals.note(0, number * 2, data(), 0);
            assert!(arrivals.ranges() <= RANGES_MAX);
            assert!(!arrivals.is_new(number * 2));
        }
        assert!(!arrivals.is_new(1));
        assert!(arrivals.is_new(19_997));
    }

    #[test]
    fn acknowledgements_wait_for_company_and_not_for_long() {
        let mut arrivals = Arrivals::new();
        assert!(!arrivals.is_due(u64::MAX));
        for number in 0..15 {
            arrivals.note(7, number, data(), 0);
            assert!(!arrivals.is_due(7));
        }
        assert_eq!(arrivals.due_ns(), Some(7 + ACK_DELAY_MAX_NS));
        assert!(arrivals.is_due(7 + ACK_DELAY_MAX_NS));
        arrivals.note(8, 15, data(), 0);
        assert!(arrivals.is_due(8));
        assert_eq!(arrivals.largest(3_000_008), Some((15, 3000)));
        arrivals.told();
        assert!(!arrivals.has_news());
        // A gap, and what fills it.
        for number in [17, 16] {
            arrivals.note(9, number, data(), 0);
            assert!(arrivals.is_due(9));
            arrivals.told();
        }
        let mut prompt = data();
        prompt.set(Flags::PROMPT);
        arrivals.note(9, 18, prompt, 0);
        assert!(arrivals.is_due(9));
        arrivals.told();
        // Acknowledgements are not acknowledged.
        arrivals.note(9, 20, Flags::ACK, 0);
        assert!(!arrivals.has_news());
        arrivals.hurry();
        assert!(arrivals.is_due(9));
    }
}
