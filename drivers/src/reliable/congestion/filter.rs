//! The maximum of a value over a sliding window.
//!
//! Comes in: values with a time that never goes back. Goes out: the largest of the last `window`.
//! Promises: constant memory and time, by keeping the three best candidates of three parts of the
//! window (the method of Kathleen Nichols' windowed filter); an exact maximum may be replaced by the
//! best value of a later part when it leaves.

/// A windowed maximum.
#[derive(Debug, Clone)]
pub(super) struct WindowedMax {
    window: u64,
    /// (time, value), best first, times ascending.
    best: [(u64, u64); 3],
}

impl WindowedMax {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window,
            best: [(0, 0); 3],
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.best[0].1
    }

    pub(super) fn update(&mut self, time: u64, value: u64) {
        let new = (time, value);
        let [first, second, third] = &mut self.best;
        if value >= first.1 || time.saturating_sub(third.0) > self.window {
            self.best = [new; 3];
            return;
        }
        if value >= second.1 {
            (*second, *third) = (new, new);
        } else if value >= third.1 {
            *third = new;
        }
        if time.saturating_sub(first.0) > self.window {
            // The best has left: the next best moves up, and again if it is too old as well.
            (*first, *second, *third) = (*second, *third, new);
            if time.saturating_sub(first.0) > self.window {
                (*first, *second) = (*second, *third);
            }
        } else if second.0 == first.0 && time.saturating_sub(first.0) > self.window / 4 {
            (*second, *third) = (new, new);
        } else if third.0 == second.0 && time.saturating_sub(first.0) > self.window / 2 {
            *third = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_maximum_leaves_with_its_window() {
        let mut max = WindowedMax::new(10);
        max.update(0, 100);
        for time in 1..=10 {
            max.update(time, 50 + time);
            assert_eq!(max.get(), 100);
        }
        max.update(11, 40);
        assert!((50..=60).contains(&max.get()), "{}", max.get());
    }

    proptest! {
        #[test]
        fn it_lies_between_the_last_value_and_the_true_maximum(
            steps in prop::collection::vec((0u64..4, 0u64..1000), 1..200),
        ) {
            let mut max = WindowedMax::new(10);
            let mut seen = Vec::new();
            let mut time = 0;
            for (pause, value) in steps {
                time += pause;
                seen.push((time, value));
                max.update(time, value);
                let inside = seen.iter().filter(|(at, _)| time - at <= 10);
                let truth = inside.map(|(_, value)| *value).max().unwrap();
                prop_assert!(max.get() <= truth && max.get() >= value);
            }
        }
    }
}
