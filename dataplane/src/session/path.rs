//! What the path to the peer is like, sampled ten times a second while anything can be said about it.
//!
//! In: what the network below each lane knows, PINGs that were answered, whether something waits for the path.
//! Out: a numbered sample in the session's picture: round trip, bytes a second, and how to read these. Promises:
//! a pause of the hypervisor, an operator's limit or a slow hypervisor at the far end never reads as a thin path;
//! a sample is cheap and its cost bounded, whatever the number of lanes.
//!
//! The round trip is the least that any lane which carried something saw, by the network's own measure or by a
//! PING: a busy processor makes some of them late, never early.
//!
//! That something waits for the path is no proof that it is full: a window that is still growing looks the same. It
//! is full when data queues in it for a while, so that every round trip exceeds the path's own; when it loses what it
//! is given; or when its congestion control keeps queues short by pacing, as BBR does, and lanes always had more to
//! send than that let go: what waits for a window, a processor or the far hypervisor does not wait for the path. Of a
//! full path counts what it carried while something waited: what a hypervisor does not give in between is not what
//! it cannot carry.

use std::time::Duration;

use dwcp_api::{Mode, PathLoad, monotonic_ns};
use dwcp_drivers::lane::{LaneGroup, LaneId, LaneStats};

use super::path_floor::PathFloor;
use super::{Hands, Session};

/// Time from one sample to the next.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Lanes asked for one sample; of more, the others are asked for the next ones.
const LANES_ASKED_MAX: usize = 64;
/// Less than this in a sample is no traffic that could tell anything.
const IDLE_BYTES: u64 = 64 << 10;
/// Data queues in the path when a round trip takes this much longer than its own, or a quarter of its own: less is
/// what processors do.
const QUEUE_US: u32 = 5_000;
/// Data queues when so many samples in a row say so: a queue stays while more comes than the path carries, a processor
/// that was held up once does not.
const QUEUE_SAMPLES: usize = 4;
/// Congestion control that fills a path without a queue.
pub(super) const PACED: &str = "bbr";

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathSample {
    /// Round trip, microseconds.
    pub rtt_us: u32,
    /// How `bytes_per_s` is to be read.
    pub load: PathLoad,
    /// What the path carried.
    pub bytes_per_s: u64,
}

/// A lane as it was when it was last asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    id: LaneId,
    at_ns: u64,
    acked_bytes: u64,
    retransmits: u32,
    delivery_rate: u64,
}

/// What was gathered for the next sample.
#[derive(Clone, Copy, Debug, Default)]
struct Gathered {
    /// Bytes that arrived over the lanes that were asked, and their rates added up.
    bytes: u64,
    bytes_per_s: u64,
    lanes: u64,
    /// The best burst of a single lane, bytes a second.
    burst_bytes_per_s: u64,
    rtt_us: Option<u32>,
    lost: bool,
    /// Lanes that pace what they send, and those of them that had no more to send than the path carried.
    paced: u64,
    paced_free: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PathSampler {
    pub(super) floor: PathFloor,
    asked: Vec<Asked>,
    first: usize,
    sampled_ns: u64,
    looked_ns: u64,
    waits: bool,
    waited_ns: u64,
    /// By how much the latest round trips exceeded the path's own, newest first; 0 before there were any.
    queues_us: [u32; QUEUE_SAMPLES],
    /// An operator's limit held something back since the last sample.
    limited: bool,
    gathered: Gathered,
}

impl PathSampler {
    /// Of a session that begins.
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            floor: PathFloor::new(now_ns),
            asked: Vec::with_capacity(LANES_ASKED_MAX),
            first: 0,
            sampled_ns: 0,
            looked_ns: 0,
            waits: false,
            waited_ns: 0,
            queues_us: [0; QUEUE_SAMPLES],
            limited: false,
            gathered: Gathered::default(),
        }
    }

    /// Looks on: `waits` says that something waits for the path, `limited` that a limit holds it back.
    pub(super) const fn look(&mut self, now_ns: u64, waits: bool, limited: bool) {
        if self.waits {
            self.waited_ns += now_ns.saturating_sub(self.looked_ns);
        }
        self.looked_ns = now_ns;
        self.waits = waits;
        self.limited |= limited;
    }

    /// Is it time for a sample?
    pub(super) const fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.sampled_ns) >= SAMPLE_EVERY.as_nanos() as u64
    }

    /// Takes in what is known of a lane.
    pub(super) fn ask(&mut self, id: LaneId, stats: &LaneStats, now_ns: u64) {
        let now = Asked {
            id,
            at_ns: now_ns,
            acked_bytes: stats.acked_bytes,
            retransmits: stats.retransmits,
            delivery_rate: stats.delivery_rate_bytes_per_s,
        };
        let Some(known) = self.asked.iter_mut().find(|known| known.id == id) else {
            self.asked.push(now);
            return;
        };
        let before = std::mem::replace(known, now);
        let all = &mut self.gathered;
        all.lanes += 1;
        let least = |best: Option<u32>, us| Some(best.map_or(us, |best| best.min(us)));
        let bytes = now.acked_bytes.saturating_sub(before.acked_bytes);
        if bytes == 0 {
            return;
        }
        all.bytes += bytes;
        let span_ns = now_ns.saturating_sub(before.at_ns).max(1);
        all.bytes_per_s += rate(bytes, span_ns);
        all.lost |= now.retransmits > before.retransmits;
        if stats.congestion_name() == PACED {
            all.paced += 1;
            all.paced_free += u64::from(stats.is_app_limited);
        }
        if stats.rtt_us > 0 {
            all.rtt_us = least(all.rtt_us, stats.rtt_us);
        }
        // A figure that did not change is of an earlier burst.
        if now.delivery_rate != before.delivery_rate {
            all.burst_bytes_per_s = all.burst_bytes_per_s.max(now.delivery_rate);
        }
    }

    /// Ends a sample: `ping_ns` is the shortest PING answered since the last, `lanes_up` how many lanes there are.
    /// None when nothing told the round trip.
    pub(super) fn sample(
        &mut self,
        now_ns: u64,
        ping_ns: Option<u64>,
        lanes_up: usize,
    ) -> Option<PathSample> {
        let span_ns = now_ns.saturating_sub(self.sampled_ns).max(1);
        let waited_ns = self.waited_ns.min(span_ns);
        let waited = waited_ns.saturating_mul(2) >= span_ns && !self.limited;
        let all = std::mem::take(&mut self.gathered);
        self.sampled_ns = now_ns;
        self.waited_ns = 0;
        self.limited = false;
        // Lanes that went for good.
        self.asked
            .retain(|lane| now_ns.saturating_sub(lane.at_ns) < 10_000_000_000);
        let ping_us = ping_ns.map(|ns| u32::try_from(ns / 1_000).unwrap_or(u32::MAX).max(1));
        let rtt_us = match (all.rtt_us, ping_us) {
            (Some(lanes), Some(ping)) => lanes.min(ping),
            (known, None) | (None, known) => known?,
        };
        if all.bytes < IDLE_BYTES {
            return Some(PathSample {
                rtt_us,
                load: PathLoad::Idle,
                bytes_per_s: 0,
            });
        }
        // Those that were not asked carried as much as those that were.
        let bytes_per_s = all.bytes_per_s / all.lanes.max(1) * (lanes_up as u64).max(all.lanes);
        let floor_us = self.floor.us();
        let queue_us = match floor_us {
            0 => 0,
            known => rtt_us.saturating_sub(known),
        };
        self.queues_us.rotate_right(1);
        self.queues_us[0] = queue_us;
        let least_us = self.queues_us.iter().copied().min().unwrap_or(0);
        let queues = least_us >= QUEUE_US.max(floor_us / 4);
        let paced = all.paced_free * 2 < all.paced;
        let full = waited && (queues || all.lost || paced);
        let bytes_per_s = if full {
            let while_waited =
                u128::from(bytes_per_s) * u128::from(span_ns) / u128::from(waited_ns.max(1));
            u64::try_from(while_waited).unwrap_or(u64::MAX)
        } else {
            bytes_per_s
        };
        Some(PathSample {
            rtt_us,
            load: if full { PathLoad::Full } else { PathLoad::Free },
            // No burst of one lane is faster than the path; and where processors are short it alone shows the path.
            bytes_per_s: bytes_per_s.max(all.burst_bytes_per_s),
        })
    }
}

fn rate(bytes: u64, span_ns: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(span_ns);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

impl Session {
    /// Puts the session into a mode. Called between two turns, so between two batches.
    pub fn set_mode(&mut self, mode: Mode) {
        if self.picture.mode() == Some(mode) || self.is_over() {
            return;
        }
        let now_ns = monotonic_ns();
        self.picture.mode = u64::from(mode.code());
        self.picture.mode_since_ns = now_ns;
        self.published_ns = 0;
        self.update_picture(now_ns);
        tracing::info!(session = %self.id, %mode, "mode");
    }

    /// Finds out, once in a while, what the path takes when it is empty: see [`PathFloor`]. Says whether anything
    /// was sent.
    pub(super) fn probe_path<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> bool {
        let Some(link) = self.link.as_mut() else {
            return false;
        };
        let now_ns = hands.now_ns;
        let floor = &mut self.path.floor;
        if let Some((sent, took_ns)) = link.outbound.newest_ping() {
            let took_us = u32::try_from(took_ns / 1_000).unwrap_or(u32::MAX);
            floor.answered(sent.0, took_us, now_ns);
        }
        if self.share.in_tail || self.destination_may_run {
            floor.give_up(now_ns);
        }
        let ask = floor.wants_ping(now_ns);
        if ask {
            link.outbound.ping_at_once();
        }
        ask && self.send_control(hands)
    }

    /// Looks at the path, and takes a sample when it is time for one.
    pub(super) fn look_at_path<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let Some(link) = self.link.as_mut() else {
            return;
        };
        let now_ns = hands.now_ns;
        let queued = link.outbound.has_queued();
        let starved = self
            .channels
            .iter()
            .any(|channel| channel.readable && link.outbound.may_read(channel.id) == 0);
        let limited = !self.rate_limit.allows(now_ns);
        self.path.look(now_ns, queued || starved, limited);
        if !self.path.is_due(now_ns) {
            return;
        }
        let lanes_up = self.bundle.count_up();
        let first = self.path.first.checked_rem(lanes_up).unwrap_or(0);
        self.path.first = first + LANES_ASKED_MAX.min(lanes_up);
        let asked = self.bundle.up().chain(self.bundle.up()).skip(first);
        for id in asked.take(LANES_ASKED_MAX.min(lanes_up)) {
            if let Some(stats) = hands.lanes.stats(id) {
                self.path.ask(id, &stats, now_ns);
            }
        }
        let ping_ns = link.outbound.take_ping_ns();
        // Nobody waits for a probe while a guest does, nor while the path carries what it can.
        let guest_waits = self.share.in_tail || self.destination_may_run;
        let Some(sample) = self.path.sample(now_ns, ping_ns, lanes_up) else {
            return;
        };
        link.outbound.note_rtt(u64::from(sample.rtt_us) * 1_000);
        let doubts = !guest_waits && !link.outbound.is_at_best(sample.bytes_per_s);
        if self.path.floor.sample(sample.rtt_us, doubts, now_ns) {
            self.bundle.up().for_each(|id| hands.lanes.learn_anew(id));
            self.streams.begin_anew();
        }
        let picture = &mut self.picture;
        picture.path_samples += 1;
        picture.path_sampled_ns = now_ns;
        picture.path_rtt_us = u64::from(sample.rtt_us);
        picture.path_load = u64::from(sample.load.code());
        picture.path_bytes_per_s = sample.bytes_per_s;
        // Seen before the next one takes its place.
        self.published_ns = 0;
        if !guest_waits {
            self.renew_lanes(self.path.floor.us(), hands);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn lane(rtt_us: u32, acked_bytes: u64) -> LaneStats {
        LaneStats {
            rtt_us,
            rtt_min_us: 200,
            acked_bytes,
            ..LaneStats::default()
        }
    }

    /// Two lanes over `samples` times 100 ms, after a first look; `waits` during the last `waits_ms` of each.
    fn sampled_for(
        samples: u64,
        waits_ms: u64,
        limited: bool,
        ping_ns: Option<u64>,
        change: impl Fn(&mut LaneStats),
    ) -> Option<PathSample> {
        let mut path = PathSampler::new(0);
        path.floor.note_below(200);
        let ids = [LaneId(1), LaneId(2)];
        path.look(1_000 * MS, waits_ms == 100, limited);
        for id in ids {
            path.ask(id, &lane(300, 0), 1_000 * MS);
        }
        path.sample(1_000 * MS, None, 2);
        let mut last = None;
        for nth in 1..=samples {
            let now_ns = (1_000 + 100 * nth) * MS;
            assert!(!path.is_due(now_ns - 50 * MS) && path.is_due(now_ns));
            path.look(now_ns - waits_ms * MS, waits_ms > 0, limited);
            path.look(now_ns, waits_ms == 100, limited);
            for (id, rtt_us) in ids.into_iter().zip([9_000, 8_000]) {
                let mut stats = lane(rtt_us, nth << 20);
                change(&mut stats);
                path.ask(id, &stats, now_ns);
            }
            last = path.sample(now_ns, ping_ns, 2);
        }
        last
    }

    /// The same once, `waits` during the whole of it.
    fn sampled(
        waits: bool,
        limited: bool,
        ping_ns: Option<u64>,
        change: impl Fn(&mut LaneStats),
    ) -> Option<PathSample> {
        sampled_for(1, if waits { 100 } else { 0 }, limited, ping_ns, change)
    }

    #[test]
    fn the_least_round_trip_of_lanes_that_carried_something_counts() {
        let rtt = |ping, change: fn(&mut LaneStats)| {
            sampled(false, false, ping, change).map(|sample| sample.rtt_us)
        };
        assert_eq!(rtt(None, |_| ()), Some(8_000));
        assert_eq!(rtt(Some(7 * MS), |_| ()), Some(7_000));
        assert_eq!(rtt(Some(12 * MS), |_| ()), Some(8_000));
        // Idle lanes know only what was once.
        assert_eq!(
            rtt(Some(12 * MS), |stats| stats.acked_bytes = 0),
            Some(12_000)
        );
        assert_eq!(rtt(None, |stats| stats.acked_bytes = 0), None);
    }

    #[test]
    fn a_path_is_full_when_data_waits_for_it_and_queues_in_it() {
        let queueing = |samples, waits_ms, limited| {
            sampled_for(samples, waits_ms, limited, None, |_| ()).unwrap()
        };
        let full = queueing(QUEUE_SAMPLES as u64, 100, false);
        assert_eq!(full.load, PathLoad::Full);
        // 2 MiB in 100 ms.
        assert_eq!(full.bytes_per_s, 2 * (10 << 20));
        let short = queueing(QUEUE_SAMPLES as u64 - 1, 100, false);
        assert_eq!(short.load, PathLoad::Free, "it may have been a processor");
        assert_eq!(queueing(5, 0, false).load, PathLoad::Free, "a pause");
        assert_eq!(queueing(5, 100, true).load, PathLoad::Free, "a limit");
        let load =
            |waits, change: fn(&mut LaneStats)| sampled(waits, false, None, change).unwrap().load;
        let near = |stats: &mut LaneStats| stats.rtt_us = 2_000;
        assert_eq!(load(true, near), PathLoad::Free, "a slow far end");
        let lossy = |stats: &mut LaneStats| {
            (stats.rtt_us, stats.retransmits) = (2_000, (stats.acked_bytes >> 20) as u32);
        };
        assert_eq!(load(true, lossy), PathLoad::Full);
        let paced = |stats: &mut LaneStats| {
            stats.rtt_us = 2_000;
            stats.congestion[..3].copy_from_slice(b"bbr");
        };
        assert_eq!(load(true, paced), PathLoad::Full);
        let held_up = |stats: &mut LaneStats| {
            (stats.rtt_us, stats.is_app_limited) = (2_000, true);
            stats.congestion[..3].copy_from_slice(b"bbr");
        };
        assert_eq!(load(true, held_up), PathLoad::Free, "a processor");
        let idle = |stats: &mut LaneStats| stats.acked_bytes = 1_000;
        assert_eq!(load(true, idle), PathLoad::Idle);
    }

    #[test]
    fn what_a_hypervisor_does_not_give_makes_no_path_thin() {
        let sample = sampled_for(5, 60, false, None, |_| ()).unwrap();
        assert_eq!(sample.load, PathLoad::Full);
        // 2 MiB in 60 ms.
        assert_eq!(sample.bytes_per_s, 2 * (10 << 20) * 10 / 6);
    }

    #[test]
    fn a_burst_shows_what_a_path_with_little_to_do_can_carry() {
        let burst = sampled(false, false, None, |stats| {
            stats.delivery_rate_bytes_per_s = 900_000_000;
        });
        assert_eq!(burst.unwrap().bytes_per_s, 900_000_000);
    }

    #[test]
    fn lanes_that_were_not_asked_count_as_those_that_were() {
        let mut path = PathSampler::new(0);
        for (at, acked) in [(1_000 * MS, 0), (1_100 * MS, 1 << 20)] {
            path.ask(LaneId(1), &lane(300, acked), at);
            let sample = path.sample(at, None, 4);
            assert_eq!(
                sample.map(|sample| sample.bytes_per_s),
                (acked > 0).then_some(4 * (10 << 20))
            );
        }
    }
}
