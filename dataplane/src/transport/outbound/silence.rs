//! When the link is dialled anew, and when the peer is given up.
//!
//! In: moments at which the peer was heard, and at which it answered something of ours. Out: whether
//! to dial all lanes anew, whether the session is over. Promise: a link that is silent is dialled
//! anew, and so is one over which the peer is heard and does not hear us, or whose answers are lost:
//! lanes may die in one direction, or all but a few, without anybody being told.

use super::super::Nanos;

/// Silence after which the link is dialled anew, and between two such calls.
const REDIAL_AFTER_NS: u64 = 2_000_000_000;
/// The same for a peer that is heard and answers nothing: longer, for answers queue behind bulk.
const UNANSWERED_AFTER_NS: u64 = 6_000_000_000;
/// A line may be that slow; after each dial in vain the next waits twice as long, so many times.
const MAX_DOUBLINGS: u32 = 3;

/// See the module.
#[derive(Debug)]
pub struct Silence {
    heard_at: Nanos,
    silent_from: Nanos,
    unanswered_from: Nanos,
    doublings: u32,
}

impl Silence {
    /// Nothing is waited for before `now`.
    #[must_use]
    pub const fn new(now: Nanos) -> Self {
        Self {
            heard_at: now,
            silent_from: now,
            unanswered_from: now,
            doublings: 0,
        }
    }

    /// Until now there was nothing to be answered.
    pub fn begin(&mut self, now: Nanos) {
        self.silent_from = self.silent_from.max(now);
        self.unanswered_from = self.unanswered_from.max(now);
    }

    /// Any verified frame came.
    pub fn heard(&mut self, now: Nanos) {
        self.heard_at = self.heard_at.max(now);
        self.silent_from = self.silent_from.max(now);
    }

    /// The peer shows that something of ours has come.
    pub fn answered(&mut self, now: Nanos) {
        self.unanswered_from = self.unanswered_from.max(now);
        self.doublings = 0;
    }

    /// Was nothing heard for `limit_ns`?
    #[must_use]
    pub fn is_lost(&self, limit_ns: u64, now: Nanos) -> bool {
        now.since(self.heard_at) > limit_ns
    }

    /// Something waits to be answered, which takes `answer_ns` as a rule: is the link to be dialled
    /// anew? Said once for each time that it is due.
    pub fn redial_due(&mut self, answer_ns: u64, now: Nanos) -> bool {
        let patience_ns = (UNANSWERED_AFTER_NS << self.doublings).max(answer_ns.saturating_mul(4));
        let silent = now.since(self.silent_from) > REDIAL_AFTER_NS;
        let unanswered = now.since(self.unanswered_from) > patience_ns;
        if !silent && !unanswered {
            return false;
        }
        if unanswered {
            self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        }
        self.silent_from = now;
        self.unanswered_from = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(tenths: u64) -> Nanos {
        Nanos(tenths * SECOND / 10)
    }

    #[test]
    fn a_peer_that_is_heard_and_answers_nothing_is_dialled_anew_ever_later() {
        let mut silence = Silence::new(at(0));
        let mut dialled = Vec::new();
        for tenths in 1..300 {
            silence.heard(at(tenths));
            if silence.redial_due(0, at(tenths)) {
                dialled.push(tenths);
            }
        }
        assert_eq!(dialled, [61, 182]);
        assert!(!silence.is_lost(30 * SECOND, at(299)));
        silence.answered(at(300));
        silence.heard(at(361));
        assert!(silence.redial_due(0, at(361)), "patience is short again");
    }

    #[test]
    fn answers_that_are_slow_by_rule_are_waited_for() {
        let mut silence = Silence::new(at(0));
        silence.heard(at(79));
        assert!(!silence.redial_due(2 * SECOND, at(80)));
        assert!(silence.redial_due(2 * SECOND, at(81)));
    }

    #[test]
    fn silence_is_dialled_every_two_seconds_and_then_given_up() {
        let mut silence = Silence::new(at(0));
        silence.answered(at(0));
        let dials = (1..300).filter(|&tenths| silence.redial_due(0, at(tenths)));
        assert_eq!(dials.count(), 14);
        assert!(!silence.is_lost(30 * SECOND, at(300)));
        assert!(silence.is_lost(30 * SECOND, at(301)));
    }
}
