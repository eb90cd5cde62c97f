//! How long a round trip over the path takes without its queues.
//!
//! In: the least that the network below has seen, the round trips of samples, PINGs that were answered, the time.
//! Out: the path's own round trip; when bulk is to wait for a moment, and when a PING is to leave; that the path
//! became a much shorter one, of which what was learnt before is no longer true. Promises: a path
//! that became shorter is known within a few samples, one that became longer within a second or so; nothing is held back in the
//! first seconds of a session, nor again soon; a queue is never taken for the path.
//!
//! The network below remembers its least for minutes, and a path that is led another way meanwhile, or a guest that
//! is moved on, may be longer than that for good. From outside this looks like a queue that stays. So when round trips
//! have exceeded what is known for a while, bulk waits until all that is on the way has left the path, a PING goes
//! over the empty path, and bulk follows it: what the PING takes is the path's own (the way in which BBR finds its
//! least round trip again, Cardwell et al., ACM Queue 14/5, 2016).

/// What a path is known to take is doubted when so many samples in a row exceeded it, on a far path by more than the
/// queue that a session makes there itself: see [`crate::transport::outbound::far`].
const LONGER_SAMPLES: u32 = 4;
/// A path of at least this is a far one.
const FAR_US: u32 = 5_000;
/// What is on the way there is half as much more than the path and this hold.
const FAR_SLACK_US: u32 = 30_000;
/// By more than this, or than half of it, whichever is more.
const LONGER_US: u32 = 5_000;
/// No probe in so much time of a session, nor so soon after another. At the beginning the least is fresh, and queues
/// are those of a network that finds its rate.
const REST_NS: u64 = 3_000_000_000;
/// After one that found a queue.
const QUEUE_REST_NS: u64 = 30_000_000_000;
/// What is on the way has left the path after one round trip; receivers are given this in addition.
const GRACE_US: u32 = 5_000;
/// A PING that is not answered by then is lost.
const ANSWER_NS: u64 = 2_000_000_000;
/// A path with more of a round trip is not probed: to empty it would cost more than to be wrong about it.
const PROBED_US_MAX: u32 = 1_000_000;

/// A path became another one when so many samples in a row took less than [`SHORTER_PERCENT`] of the median of
/// [`SETTLED_SAMPLES`] before: the network below smooths its figure, so that a few samples lie between the old path
/// and the new one.
const SHORTER_SAMPLES: u32 = 3;
/// See [`SHORTER_SAMPLES`].
const SHORTER_PERCENT: u32 = 50;
/// See [`SHORTER_SAMPLES`].
const SETTLED_SAMPLES: usize = 10;
/// Paths shorter than this are learnt in no time.
const SETTLED_US_MIN: u32 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    None,
    /// Bulk waits.
    Emptying {
        until_ns: u64,
    },
    /// A PING has left at this moment or later.
    Asked {
        at_ns: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct PathFloor {
    /// What the network below says; 0 before it says anything.
    below_us: u32,
    /// What a probe found, while it is more.
    probed_us: Option<u32>,
    longer: u32,
    /// Samples in a row that took less than a probe found, and the most of them.
    lower: (u32, u32),
    /// The latest samples, newest first, and how many of them are of the path as it is now.
    lately_us: [u32; SETTLED_SAMPLES],
    settled: usize,
    shorter: u32,
    probe: Probe,
    /// No probe before.
    rests_until_ns: u64,
}

impl PathFloor {
    /// Of a session that begins.
    pub(super) const fn new(now_ns: u64) -> Self {
        Self {
            below_us: 0,
            probed_us: None,
            longer: 0,
            lower: (0, 0),
            lately_us: [0; SETTLED_SAMPLES],
            settled: 0,
            shorter: 0,
            probe: Probe::None,
            rests_until_ns: now_ns + REST_NS,
        }
    }

    /// The path's own round trip, microseconds; 0 before anything is known.
    pub(super) fn us(&self) -> u32 {
        self.probed_us.unwrap_or(self.below_us).max(self.below_us)
    }

    /// The least that the network below has seen.
    pub(super) const fn note_below(&mut self, least_us: u32) {
        self.below_us = least_us;
    }

    /// More than this is not the path alone, if it is empty.
    fn limit_us(&self) -> u32 {
        let known = self.us();
        known.saturating_add(LONGER_US.max(known / 2))
    }

    /// More than this is not the path and what a session has on the way.
    fn doubt_us(&self) -> u32 {
        let known = self.us();
        if known < FAR_US {
            return self.limit_us();
        }
        let held = known.saturating_add(FAR_SLACK_US);
        held.saturating_add(held / 2)
    }

    /// A sample's round trip. `doubts`: bulk may wait for a moment, and the path does not carry what it carried at
    /// best, so that the queue cannot be the session's own. Says whether the path has become a much shorter one.
    pub(super) fn sample(&mut self, rtt_us: u32, doubts: bool, now_ns: u64) -> bool {
        self.lower(rtt_us);
        if let Probe::Asked { at_ns } = self.probe
            && now_ns.saturating_sub(at_ns) > ANSWER_NS
        {
            self.rest(REST_NS, now_ns);
        }
        let longer = doubts && self.below_us > 0 && rtt_us > self.doubt_us();
        self.longer = if longer { self.longer + 1 } else { 0 };
        let due = self.longer >= LONGER_SAMPLES && now_ns >= self.rests_until_ns;
        if due && self.probe == Probe::None && rtt_us <= PROBED_US_MAX {
            let empty_ns = u64::from(rtt_us + GRACE_US) * 1_000;
            self.probe = Probe::Emptying {
                until_ns: now_ns + empty_ns,
            };
        }
        self.is_another(rtt_us)
    }

    /// What a probe found is too much once a few round trips in a row took less. One alone may be of a lane that
    /// carried too little since to know better.
    fn lower(&mut self, rtt_us: u32) {
        let Some(probed) = self.probed_us.filter(|probed| rtt_us < *probed) else {
            self.lower = (0, 0);
            return;
        };
        let (count, most_us) = self.lower;
        self.lower = (count + 1, most_us.max(rtt_us));
        if self.lower.0 >= SHORTER_SAMPLES {
            self.probed_us = Some(self.lower.1.min(probed));
            self.lower = (0, 0);
        }
    }

    fn is_another(&mut self, rtt_us: u32) -> bool {
        let mut lately_us = self.lately_us;
        let (_, was_us, _) = lately_us.select_nth_unstable(SETTLED_SAMPLES / 2);
        let was_us = *was_us;
        let known = self.settled >= SETTLED_SAMPLES && was_us >= SETTLED_US_MIN;
        if known && rtt_us < was_us / 100 * SHORTER_PERCENT {
            self.shorter += 1;
            if self.shorter < SHORTER_SAMPLES {
                return false;
            }
            self.settled = 0;
        }
        let is_another = self.shorter >= SHORTER_SAMPLES;
        self.shorter = 0;
        self.lately_us.rotate_right(1);
        self.lately_us[0] = rtt_us;
        self.settled += 1;
        is_another
    }

    /// Is bulk to wait now?
    pub(super) const fn holds_back(&self) -> bool {
        matches!(self.probe, Probe::Emptying { .. })
    }

    /// Is a PING to leave now, before anything else? Once for each probe.
    pub(super) fn wants_ping(&mut self, now_ns: u64) -> bool {
        let due = matches!(self.probe, Probe::Emptying { until_ns } if now_ns >= until_ns);
        if due {
            self.probe = Probe::Asked { at_ns: now_ns };
        }
        due
    }

    /// A PING that left at `sent_ns` took so long.
    pub(super) fn answered(&mut self, sent_ns: u64, rtt_us: u32, now_ns: u64) {
        match self.probe {
            Probe::Asked { at_ns } if sent_ns >= at_ns => {}
            _ => return,
        }
        if rtt_us > self.limit_us() {
            self.probed_us = Some(rtt_us);
            self.rest(REST_NS, now_ns);
        } else {
            self.rest(QUEUE_REST_NS, now_ns);
        }
    }

    /// Whatever it was about to find out can wait.
    pub(super) fn give_up(&mut self, now_ns: u64) {
        if self.probe != Probe::None {
            self.rest(REST_NS, now_ns);
        }
    }

    fn rest(&mut self, for_ns: u64, now_ns: u64) {
        self.probe = Probe::None;
        self.longer = 0;
        self.rests_until_ns = now_ns + for_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A path of so long a round trip, with a queue that empties in `queue_us` once bulk waits, sampled ten times a
    /// second. Gives for how many looks of a millisecond bulk waited.
    fn run(floor: &mut PathFloor, from_ms: u64, span_ms: u64, own_us: u32, queue_us: u32) -> u64 {
        let (mut held, mut ping) = (0, None);
        let mut queue = queue_us;
        for ms in from_ms..from_ms + span_ms {
            let now_ns = ms * MS;
            if ms % 100 == 0 {
                floor.sample(own_us + queue, true, now_ns);
            }
            if floor.wants_ping(now_ns) {
                ping = Some((now_ns, own_us + queue));
            }
            if let Some((sent_ns, rtt_us)) = ping
                && now_ns >= sent_ns + u64::from(rtt_us) * 1_000
            {
                floor.answered(sent_ns, rtt_us, now_ns);
                ping = None;
            }
            if floor.holds_back() {
                held += 1;
                queue = queue.saturating_sub(1_000);
            } else {
                queue = queue_us;
            }
        }
        held
    }

    fn near() -> PathFloor {
        let mut floor = PathFloor::new(0);
        floor.note_below(200);
        floor
    }

    #[test]
    fn a_path_that_becomes_longer_is_known_soon_and_a_shorter_one_at_once() {
        let mut floor = near();
        assert_eq!(run(&mut floor, 0, 10_000, 300, 0), 0, "nothing to doubt");
        let held = run(&mut floor, 10_000, 1_000, 80_000, 0);
        assert_eq!(floor.us(), 80_000);
        assert!((80..100).contains(&held), "{held} ms");
        assert_eq!(run(&mut floor, 11_000, 20_000, 80_000, 63_000), 0);
        run(&mut floor, 31_000, 100, 11_000, 0);
        assert_eq!(floor.us(), 80_000, "one alone");
        run(&mut floor, 31_100, 100, 80_000, 0);
        run(&mut floor, 31_200, 300, 25_000, 0);
        assert_eq!(floor.us(), 25_000);
        run(&mut floor, 31_500, 300, 100, 0);
        assert_eq!(floor.us(), 200, "not less than what was measured below");
    }

    #[test]
    fn a_queue_that_stays_is_not_the_path() {
        let mut floor = near();
        let held = run(&mut floor, 0, 60_000, 300, 60_000);
        assert_eq!(floor.us(), 200);
        // Twice in a minute.
        assert!((100..200).contains(&held), "{held} ms");
    }

    #[test]
    fn nothing_waits_in_the_first_seconds_or_in_a_switchover_or_at_the_best_rate() {
        let mut floor = near();
        assert_eq!(run(&mut floor, 0, 2_900, 80_000, 0), 0);
        for ms in 30..60 {
            floor.sample(80_000, false, ms * 100 * MS);
            assert!(!floor.holds_back());
        }
        for ms in 60..63 {
            floor.sample(80_000, true, ms * 100 * MS);
            assert!(!floor.holds_back());
        }
        floor.sample(80_000, true, 6_300 * MS);
        assert!(floor.holds_back());
        floor.give_up(6_310 * MS);
        assert!(!floor.holds_back() && !floor.wants_ping(9_000 * MS));
    }

    #[test]
    fn a_path_that_becomes_much_shorter_is_told_once() {
        let mut floor = near();
        let mut told = |from: u64, count: u64, rtt_us: u32| {
            (from..from + count)
                .filter(|at| floor.sample(rtt_us, false, at * 100 * MS))
                .count()
        };
        assert_eq!(told(0, 20, 300), 0);
        assert_eq!(told(20, 20, 80_000), 0, "longer");
        assert_eq!(told(40, 2, 25_000), 0, "once or twice");
        assert_eq!(told(42, 20, 79_000), 0);
        assert_eq!(told(62, 20, 45_000), 0, "a queue that empties");
        assert_eq!(told(82, 20, 20_000), 1);
        assert_eq!(told(102, 20, 300), 1);
        assert_eq!(told(122, 20, 100), 0, "near all the time");
    }

    #[test]
    fn what_is_seen_while_a_path_changes_is_neither_the_old_one_nor_the_new() {
        let mut floor = near();
        let longer = [12_000, 30_000, 45_000, 60_000].into_iter();
        let samples = [300; 20].into_iter().chain(longer).chain([80_000; 12]);
        let shorter = [47_700, 27_600, 26_300, 25_400];
        let told: Vec<usize> = samples
            .chain(shorter)
            .enumerate()
            .filter_map(|(at, rtt_us)| {
                let now_ns = at as u64 * 100 * MS;
                floor.sample(rtt_us, false, now_ns).then_some(at)
            })
            .collect();
        assert_eq!(told, [39]);
    }

    #[test]
    fn an_answer_that_never_comes_ends_the_probe() {
        let mut floor = near();
        for ms in 50..60 {
            floor.sample(80_000, true, ms * 100 * MS);
        }
        assert!(floor.wants_ping(6_000 * MS));
        floor.answered(5_000 * MS, 80_000, 6_050 * MS);
        assert_eq!(floor.us(), 200, "that one left before");
        floor.sample(80_000, true, 8_100 * MS);
        floor.answered(6_000 * MS, 80_000, 8_200 * MS);
        assert_eq!(floor.us(), 200, "too late");
    }
}
