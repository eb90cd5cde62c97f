//! A bounded set of numbers, kept as ranges.
//!
//! Comes in: ranges in any order. Goes out: the same numbers, joined where they touch. Promises: no
//! allocation after [`RangeSet::new`]; adding at either end costs the same however many ranges there
//! are; a full set says so and stays as it was.

use std::ops::Range;

/// Numbers as ascending ranges that neither overlap nor touch.
pub(super) struct RangeSet {
    ranges: Vec<Range<u64>>,
    ranges_max: usize,
}

/// One more range does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl RangeSet {
    pub(super) fn new(ranges_max: usize) -> Self {
        Self {
            ranges: Vec::with_capacity(ranges_max),
            ranges_max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn first(&self) -> Option<Range<u64>> {
        self.ranges.first().cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, highest first.
    pub(super) fn descending(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().rev().cloned()
    }

    /// Where the first range that ends at or above `number` is.
    fn reaching(&self, number: u64) -> usize {
        match self.ranges.last() {
            None => 0,
            Some(last) if last.end < number => self.ranges.len(),
            Some(last) if last.start <= number => self.ranges.len() - 1,
            Some(_) => self.ranges.partition_point(|range| range.end < number),
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let at = self.reaching(number);
        // A range that ends at `number` touches it and does not hold it; the next one cannot begin
        // there, or the two would be one.
        self.ranges
            .get(at)
            .is_some_and(|range| range.contains(&number))
    }

    /// Adds `new`. Returns how many of its numbers were not in the set.
    pub(super) fn insert(&mut self, new: Range<u64>) -> Result<u64, Full> {
        if new.is_empty() {
            return Ok(0);
        }
        let from = self.reaching(new.start);
        let mut until = from;
        let mut joined = new.clone();
        let mut known = 0;
        while let Some(range) = self
            .ranges
            .get(until)
            .filter(|range| range.start <= new.end)
        {
            let overlap = range.start.max(new.start)..range.end.min(new.end);
            known += overlap.end.saturating_sub(overlap.start);
            joined = joined.start.min(range.start)..joined.end.max(range.end);
            until += 1;
        }
        if from == until {
            if self.ranges.len() >= self.ranges_max {
                return Err(Full);
            }
            self.ranges.insert(from, joined);
        } else {
            self.ranges[from] = joined;
            self.ranges.drain(from + 1..until);
        }
        Ok(new.end - new.start - known)
    }

    /// Adds `new`, and when the set is full also what lies between it and a neighbour.
    pub(super) fn insert_or_widen(&mut self, new: Range<u64>) {
        if self.insert(new.clone()).is_err() {
            let at = self.reaching(new.start).min(self.ranges.len() - 1);
            let range = &mut self.ranges[at];
            *range = range.start.min(new.start)..range.end.max(new.end);
        }
    }

    /// Takes out all numbers below `number`.
    pub(super) fn remove_below(&mut self, number: u64) {
        let gone = match self.ranges.first() {
            None => return,
            Some(first) if first.start >= number => return,
            Some(_) => self.ranges.partition_point(|range| range.end <= number),
        };
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut() {
            first.start = first.start.max(number);
        }
    }

    /// Takes out all numbers from `number` on.
    pub(super) fn remove_from(&mut self, number: u64) {
        let kept = self.ranges.partition_point(|range| range.start < number);
        self.ranges.truncate(kept);
        if let Some(last) = self.ranges.last_mut() {
            last.end = last.end.min(number);
        }
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Range<u64>),
        Below(u64),
        From(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u64..200, 0u64..20).prop_map(|(start, len)| Step::Insert(start..start + len)),
            1 => (0u64..220).prop_map(Step::Below),
            1 => (0u64..220).prop_map(Step::From),
        ]
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_its_numbers(steps in prop::collection::vec(step(), 1..60)) {
            let mut set = RangeSet::new(8);
            let mut oracle = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(range) => {
                        let fresh = range.clone().filter(|n| !oracle.contains(n)).count() as u64;
                        match set.insert(range.clone()) {
                            Ok(count) => {
                                prop_assert_eq!(count, fresh);
                                oracle.extend(range);
                            }
                            Err(Full) => prop_assert_eq!(set.len(), 8),
                        }
                    }
                    Step::Below(number) => {
                        set.remove_below(number);
                        oracle.retain(|n| *n >= number);
                    }
                    Step::From(number) => {
                        set.remove_from(number);
                        oracle.retain(|n| *n < number);
                    }
                }
                let numbers: BTreeSet<u64> = set.descending().flatten().collect();
                prop_assert_eq!(&numbers, &oracle);
                prop_assert!((0..230).all(|n| set.contains(n) == oracle.contains(&n)));
                let ranges: Vec<_> = set.descending().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[1].end < pair[0].start));
                prop_assert!(set.len() <= 8);
                prop_assert_eq!(set.first(), ranges.last().cloned());
                prop_assert_eq!(set.is_empty(), oracle.is_empty());
            }
        }

        #[test]
        fn widening_loses_no_number(
            starts in prop::collection::vec(0u64..500, 1..60),
        ) {
            let mut set = RangeSet::new(4);
            for start in &starts {
                set.insert_or_widen(*start..start + 3);
                prop_assert!(set.len() <= 4);
            }
            for start in &starts {
                prop_assert!((*start..start + 3).all(|n| set.contains(n)));
            }
            let ranges: Vec<_> = set.descending().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[1].end <= pair[0].start));
        }
    }

    #[test]
    fn no_allocation_beyond_its_bound() {
        let mut set = RangeSet::new(3);
        let before = set.ranges.capacity();
        for start in 0..100 {
            set.insert_or_widen(start * 10..start * 10 + 1);
        }
        assert_eq!(set.ranges.capacity(), before);
        set.clear();
        assert!(set.is_empty());
    }
}
