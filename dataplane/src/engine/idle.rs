//! What a worker does when it has nothing to do. In: the time and whether the last turn found work; out:
//! the next step. A dedicated core spins and never parks. A shared one lets others run for a moment, then
//! parks: who spins there takes the time of the very processes that it waits for.

use crate::config::IdlePolicy;

/// A worker on a shared core yields this long before it parks, nanoseconds.
const YIELD_NS: u64 = 20_000;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look again at once.
    Spin,
    /// Let others on this core run, then look again.
    Yield,
    /// Sleep until something happens.
    Park,
}

/// One worker's idle time.
#[derive(Debug)]
pub struct Idle {
    policy: IdlePolicy,
    since_ns: Option<u64>,
}

impl Idle {
    /// A worker that just had work.
    #[must_use]
    pub const fn new(policy: IdlePolicy) -> Self {
        Self {
            policy,
            since_ns: None,
        }
    }

    /// The last turn found work.
    pub fn found_work(&mut self) {
        self.since_ns = None;
    }

    /// The last turn found none.
    pub fn found_nothing(&mut self, now_ns: u64) -> Step {
        let since = *self.since_ns.get_or_insert(now_ns);
        let idle_ns = now_ns.saturating_sub(since);
        match self.policy {
            IdlePolicy::Dedicated => Step::Spin,
            IdlePolicy::Test => Step::Park,
            IdlePolicy::Shared if idle_ns < YIELD_NS => Step::Yield,
            IdlePolicy::Shared => Step::Park,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_core_yields_then_parks_and_starts_again_after_work() {
        let mut idle = Idle::new(IdlePolicy::Shared);
        assert_eq!(idle.found_nothing(1_000_000), Step::Yield);
        assert_eq!(idle.found_nothing(1_019_999), Step::Yield);
        assert_eq!(idle.found_nothing(1_020_000), Step::Park);
        idle.found_work();
        assert_eq!(idle.found_nothing(2_000_000), Step::Yield);
    }

    #[test]
    fn a_dedicated_core_never_parks_and_a_test_parks_at_once() {
        let mut dedicated = Idle::new(IdlePolicy::Dedicated);
        dedicated.found_nothing(0);
        assert_eq!(dedicated.found_nothing(u64::MAX), Step::Spin);
        assert_eq!(Idle::new(IdlePolicy::Test).found_nothing(0), Step::Park);
    }
}
