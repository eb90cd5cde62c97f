//! The packets that were sent and not yet settled.
//!
//! Comes in: what was sent, and acknowledgements. Goes out: what was acknowledged, how fast, and what
//! was lost. Promises: every tracked packet is settled exactly once, as acknowledged or as lost; no
//! allocation after [`SentLog::new`]; an acknowledgement costs what is new in it and no more, whatever
//! ranges it claims.
//!
//! Loss is found as in RFC 9002, section 6.1: a packet is lost when packets sent enough later, or long
//! enough later, were acknowledged. A loss that proves wrong widens both thresholds, so that a path
//! that reorders costs few packets. Delivery rates are sampled as in the draft
//! `cheng-iccrg-delivery-rate-estimation`.

use std::collections::VecDeque;

use super::packet::AckRanges;
use super::rtt::{GRANULARITY_NS, Rtt};

/// Packets acknowledged beyond a missing one that make it lost, at first.
const PACKET_THRESHOLD: u64 = 3;
/// The same, once reordering was seen, at most.
const PACKET_THRESHOLD_MAX: u64 = 1024;
/// Lost packets that are remembered, in case they were only late.
const LOST_REMEMBERED: usize = 128;
/// Places kept for acknowledgements when data may no longer be sent, and for probes beyond those.
const PLACES_FOR_ACKS: usize = 64;
const PLACES_FOR_PROBES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not to be acknowledged, or settled.
    Settled,
    Flight,
}

/// What a tracked packet carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    /// Stream offset of its data.
    pub(super) offset: u64,
    /// Stream bytes.
    pub(super) len: u16,
    /// Whether it ended the stream.
    pub(super) fin: bool,
    /// Bytes of the whole datagram.
    pub(super) bytes: u16,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    sent_ns: u64,
    carried: Carried,
    state: State,
    app_limited: bool,
    /// Bytes delivered in all when it was sent, and when the last of them were.
    delivered: u64,
    delivered_ns: u64,
    /// When the packet was sent whose acknowledgement was the last one then.
    first_sent_ns: u64,
}

/// A delivery rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateSample {
    pub(super) bytes_per_s: u64,
    /// The sender had nothing to send at the time, so the path may carry more.
    pub(super) app_limited: bool,
}

/// What an acknowledgement settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Settled {
    /// Datagram bytes.
    pub(super) bytes: u64,
    /// Whether there was data among them, or the end of the stream.
    pub(super) data: bool,
    pub(super) fin: bool,
    /// When the packet with the largest number was sent, if it is settled by this.
    pub(super) largest_sent_ns: Option<u64>,
    /// When the last-sent of them was sent.
    pub(super) newest_sent_ns: u64,
    /// Bytes that had been delivered when the last-sent of them was sent.
    pub(super) prior_delivered: u64,
    pub(super) rate: Option<RateSample>,
    /// Packets that were held for lost and were not.
    pub(super) spurious: u32,
}

/// What was found to be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lost {
    /// Datagram bytes.
    pub(super) bytes: u64,
    pub(super) packets: u32,
    /// When the last-sent of them was sent.
    pub(super) newest_sent_ns: u64,
}

/// The peer acknowledged a number that was never sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeverSent;

/// One direction's packets.
pub(super) struct SentLog {
    entries: VecDeque<Sent>,
    entries_max: usize,
    /// Number of the first entry.
    first: u64,
    /// One more than the largest number that was acknowledged.
    acked_end: u64,
    /// Numbers in flight below `acked_end`, ascending.
    holes: VecDeque<u64>,
    /// Lost numbers and when they were sent, ascending.
    lost: VecDeque<(u64, u64)>,
    packet_threshold: u64,
    /// How much longer than the RFC's threshold late packets took.
    late_ns: u64,
    in_flight_bytes: u64,
    in_flight: u32,
    delivered: u64,
    delivered_ns: u64,
    first_sent_ns: u64,
    /// Until this many bytes are delivered, samples are limited by the sender.
    app_limited_until: u64,
}

impl SentLog {
    pub(super) fn new(entries_max: usize) -> Self {
        let entries_max = entries_max + PLACES_FOR_ACKS + PLACES_FOR_PROBES;
        Self {
            entries: VecDeque::with_capacity(entries_max),
            entries_max,
            first: 0,
            acked_end: 0,
            holes: VecDeque::with_capacity(entries_max),
            lost: VecDeque::with_capacity(LOST_REMEMBERED),
            packet_threshold: PACKET_THRESHOLD,
            late_ns: 0,
            in_flight_bytes: 0,
            in_flight: 0,
            delivered: 0,
            delivered_ns: 0,
            first_sent_ns: 0,
            app_limited_until: 0,
        }
    }

    /// The number of the next packet.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Below this no acknowledgement is wanted any more.
    pub(super) fn floor(&self) -> u64 {
        self.lost
            .front()
            .map_or(self.first, |(number, _)| self.first.min(*number))
    }

    pub(super) fn has_room_for_data(&self) -> bool {
        self.entries.len() + PLACES_FOR_ACKS + PLACES_FOR_PROBES < self.entries_max
    }

    pub(super) fn has_room_for_ack(&self) -> bool {
        self.entries.len() + PLACES_FOR_PROBES < self.entries_max
    }

    pub(super) fn has_room_for_probe(&self) -> bool {
        self.entries.len() < self.entries_max
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Packets.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Datagram bytes that were acknowledged so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The sender has nothing more to send: the path is not filled from here on.
    pub(super) fn set_app_limited(&mut self) {
        self.app_limited_until = (self.delivered + self.in_flight_bytes).max(1);
    }

    /// Notes a packet that nobody acknowledges.
    pub(super) fn push_untracked(&mut self) {
        if self.entries.is_empty() {
            self.first += 1;
            return;
        }
        let nothing = Carried {
            offset: 0,
            len: 0,
            fin: false,
            bytes: 0,
        };
        self.push(0, nothing, State::Settled);
    }

    /// Notes a packet that is to be acknowledged.
    pub(super) fn push_tracked(&mut self, now_ns: u64, carried: Carried) {
        if self.in_flight == 0 {
            self.first_sent_ns = now_ns;
            self.delivered_ns = now_ns;
        }
        self.in_flight_bytes += u64::from(carried.bytes);
        self.in_flight += 1;
        self.push(now_ns, carried, State::Flight);
    }

    fn push(&mut self, sent_ns: u64, carried: Carried, state: State) {
        debug_assert!(self.entries.len() < self.entries_max);
        self.entries.push_back(Sent {
            sent_ns,
            carried,
            state,
            app_limited: self.app_limited_until > self.delivered,
            delivered: self.delivered,
            delivered_ns: self.delivered_ns,
            first_sent_ns: self.first_sent_ns,
        });
    }

    /// Takes an acknowledgement, with the smallest round trip seen so far.
    pub(super) fn acknowledge(
        &mut self,
        now_ns: u64,
        ranges: &AckRanges,
        rtt_min_ns: u64,
    ) -> Result<Settled, NeverSent> {
        let mut settled = Settled::default();
        let Some(&(_, largest)) = ranges.descending().first() else {
            return Ok(settled);
        };
        if largest >= self.next_number() {
            return Err(NeverSent);
        }
        let mut newest = None;
        self.acked_end = self.acked_end.max(self.first);
        for _ in 0..self.holes.len() {
            // Each hole passes by once; those that stay keep their order.
            if let Some(hole) = self.holes.pop_front() {
                if ranges.contains(hole) {
                    self.settle(hole, largest, &mut settled, &mut newest);
                } else {
                    self.holes.push_back(hole);
                }
            }
        }
        for &(low, high) in ranges.descending().iter().rev() {
            for number in self.acked_end..low {
                if self
                    .entry(number)
                    .is_some_and(|sent| sent.state == State::Flight)
                {
                    self.holes.push_back(number);
                }
            }
            for number in low.max(self.acked_end)..=high {
                self.settle(number, largest, &mut settled, &mut newest);
            }
            self.acked_end = self.acked_end.max(high + 1);
        }
        self.lost.retain(|&(number, sent_ns)| {
            let late = ranges.contains(number);
            if late {
                settled.spurious += 1;
                let distance = self.acked_end.saturating_sub(number);
                self.packet_threshold = self
                    .packet_threshold
                    .max(distance.min(PACKET_THRESHOLD_MAX));
                self.late_ns = self.late_ns.max(now_ns.saturating_sub(sent_ns));
            }
            !late
        });
        settled.rate = newest.and_then(|newest| self.rate(now_ns, &newest, rtt_min_ns));
        self.forget_settled();
        Ok(settled)
    }

    fn entry(&self, number: u64) -> Option<&Sent> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get(at)
    }

    fn settle(
        &mut self,
        number: u64,
        largest: u64,
        settled: &mut Settled,
        newest: &mut Option<Sent>,
    ) {
        let at = number.checked_sub(self.first);
        let Some(sent) = at.and_then(|at| self.entries.get_mut(at as usize)) else {
            return;
        };
        if sent.state == State::Settled {
            return;
        }
        sent.state = State::Settled;
        let bytes = u64::from(sent.carried.bytes);
        self.in_flight_bytes -= bytes;
        self.in_flight -= 1;
        self.delivered += bytes;
        settled.bytes += bytes;
        settled.data |= sent.carried.len > 0;
        settled.fin |= sent.carried.fin;
        settled.newest_sent_ns = settled.newest_sent_ns.max(sent.sent_ns);
        if number == largest {
            settled.largest_sent_ns = Some(sent.sent_ns);
        }
        if newest.is_none_or(|newest| newest.sent_ns <= sent.sent_ns) {
            settled.prior_delivered = sent.delivered;
            *newest = Some(*sent);
        }
    }

    fn rate(&mut self, now_ns: u64, newest: &Sent, rtt_min_ns: u64) -> Option<RateSample> {
        self.delivered_ns = now_ns;
        self.first_sent_ns = newest.sent_ns;
        let send_ns = newest.sent_ns.saturating_sub(newest.first_sent_ns);
        let ack_ns = now_ns.saturating_sub(newest.delivered_ns);
        let interval_ns = send_ns.max(ack_ns);
        // Shorter than a round trip: acknowledgements that came in a lump.
        if interval_ns == 0 || interval_ns < rtt_min_ns {
            return None;
        }
        let bytes = self.delivered - newest.delivered;
        let bytes_per_s = u128::from(bytes) * 1_000_000_000 / u128::from(interval_ns);
        Some(RateSample {
            bytes_per_s: u64::try_from(bytes_per_s).unwrap_or(u64::MAX),
            app_limited: newest.app_limited,
        })
    }

    /// Finds lost packets and tells `lose` what each carried.
    pub(super) fn find_lost(
        &mut self,
        now_ns: u64,
        rtt: &Rtt,
        mut lose: impl FnMut(&Carried),
    ) -> Lost {
        let mut found = Lost::default();
        let patience_ns = self.patience_ns(rtt);
        while let Some(&number) = self.holes.front() {
            let at = number.saturating_sub(self.first) as usize;
            let Some(sent) = self.entries.get_mut(at) else {
                break;
            };
            let by_number = number + self.packet_threshold < self.acked_end;
            let by_time = sent.sent_ns.saturating_add(patience_ns) <= now_ns;
            if !by_number && !by_time {
                break;
            }
            self.holes.pop_front();
            sent.state = State::Settled;
            let bytes = u64::from(sent.carried.bytes);
            self.in_flight_bytes -= bytes;
            self.in_flight -= 1;
            found.bytes += bytes;
            found.packets += 1;
            found.newest_sent_ns = found.newest_sent_ns.max(sent.sent_ns);
            lose(&sent.carried);
            if self.lost.len() >= LOST_REMEMBERED {
                self.lost.pop_front();
            }
            self.lost.push_back((number, sent.sent_ns));
        }
        // What is not back after this was not late.
        let forget_ns = now_ns.saturating_sub(4 * patience_ns);
        while self
            .lost
            .front()
            .is_some_and(|(_, sent_ns)| *sent_ns < forget_ns)
        {
            self.lost.pop_front();
        }
        self.forget_settled();
        found
    }

    /// When [`SentLog::find_lost`] is to be called next, if nothing is acknowledged before.
    pub(super) fn loss_due_ns(&self, rtt: &Rtt) -> Option<u64> {
        let sent = self.entry(*self.holes.front()?)?;
        Some(sent.sent_ns + self.patience_ns(rtt))
    }

    fn patience_ns(&self, rtt: &Rtt) -> u64 {
        let round_ns = rtt.smoothed_ns().max(rtt.latest_ns());
        let usual_ns = (round_ns + round_ns / 8).max(GRANULARITY_NS);
        usual_ns.max(self.late_ns.min(2 * round_ns + GRANULARITY_NS))
    }

    /// What the oldest packet in flight carries.
    pub(super) fn oldest(&self) -> Option<Carried> {
        let mut entries = self.entries.iter();
        entries
            .find(|sent| sent.state == State::Flight)
            .map(|sent| sent.carried)
    }

    /// Takes everything out of flight, neither as acknowledged nor as lost.
    pub(super) fn forget_flight(&mut self) {
        self.entries
            .iter_mut()
            .for_each(|sent| sent.state = State::Settled);
        self.in_flight_bytes = 0;
        self.in_flight = 0;
        self.holes.clear();
        self.forget_settled();
    }

    fn forget_settled(&mut self) {
        while self
            .entries
            .front()
            .is_some_and(|sent| sent.state == State::Settled)
        {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn carried(offset: u64) -> Carried {
        Carried {
            offset,
            len: 100,
            fin: false,
            bytes: 150,
        }
    }

    fn ranges(descending: &[(u64, u64)]) -> AckRanges {
        let mut ranges = AckRanges::EMPTY;
        descending
            .iter()
            .for_each(|(low, high)| ranges.push(*low, *high));
        ranges
    }

    /// Packets 0.. with one sent each millisecond; packet `n` carries offset `n`.
    fn log(packets: u64) -> SentLog {
        let mut log = SentLog::new(64);
        (0..packets).for_each(|at| log.push_tracked(at * MS, carried(at)));
        log
    }

    fn rtt_of(ms: u64) -> Rtt {
        let mut rtt = Rtt::default();
        rtt.sample(ms * MS, 0);
        rtt
    }

    fn lost(log: &mut SentLog, now_ns: u64, rtt: &Rtt) -> Vec<u64> {
        let mut offsets = Vec::new();
        log.find_lost(now_ns, rtt, |carried| offsets.push(carried.offset));
        offsets
    }

    #[test]
    fn each_packet_is_settled_once() {
        let mut log = log(10);
        let settled = log.acknowledge(20 * MS, &ranges(&[(2, 4)]), 0).unwrap();
        assert_eq!(settled.bytes, 450);
        assert_eq!(settled.largest_sent_ns, Some(4 * MS));
        assert_eq!(log.in_flight(), 7);
        let settled = log.acknowledge(21 * MS, &ranges(&[(1, 4)]), 0).unwrap();
        assert_eq!((settled.bytes, settled.largest_sent_ns), (150, None));
        // The peer repeats itself and goes back: nothing new.
        for old in [&[(2, 4)][..], &[(1, 1)], &[(3, 4), (1, 1)]] {
            assert_eq!(log.acknowledge(22 * MS, &ranges(old), 0).unwrap().bytes, 0);
        }
        assert_eq!(log.in_flight(), 6);
        assert_eq!(log.in_flight_bytes(), 900);
        let settled = log.acknowledge(23 * MS, &ranges(&[(0, 9)]), 0).unwrap();
        assert_eq!((settled.bytes, log.in_flight()), (900, 0));
        assert_eq!(log.floor(), 10);
        assert_eq!(log.next_number(), 10);
    }

    #[test]
    fn what_was_never_sent_cannot_be_acknowledged() {
        let mut log = log(3);
        assert_eq!(log.acknowledge(MS, &ranges(&[(0, 3)]), 0), Err(NeverSent));
        assert_eq!(log.in_flight(), 3);
    }

    #[test]
    fn loss_by_number_and_by_time() {
        let mut log = log(10);
        let rtt = rtt_of(100);
        log.acknowledge(30 * MS, &ranges(&[(5, 5)]), 0).unwrap();
        assert_eq!(lost(&mut log, 30 * MS, &rtt), [0, 1, 2]);
        assert_eq!(log.loss_due_ns(&rtt), Some(3 * MS + 112_500_000));
        assert_eq!(lost(&mut log, 115 * MS, &rtt), Vec::<u64>::new());
        assert_eq!(lost(&mut log, 116 * MS, &rtt), [3]);
        assert_eq!(lost(&mut log, 117 * MS, &rtt), [4]);
        // Nothing later than these was acknowledged, so only a probe can tell.
        assert_eq!(lost(&mut log, 9000 * MS, &rtt), Vec::<u64>::new());
        assert_eq!(log.loss_due_ns(&rtt), None);
        assert_eq!(log.in_flight(), 4);
        assert_eq!(log.oldest(), Some(carried(6)));
    }

    #[test]
    fn a_late_packet_is_told_and_makes_for_patience() {
        let mut log = log(40);
        let rtt = rtt_of(10);
        log.acknowledge(10 * MS, &ranges(&[(9, 9)]), 0).unwrap();
        assert_eq!(lost(&mut log, 10 * MS, &rtt).len(), 7);
        assert_eq!(log.floor(), 0, "late ones are still wanted");
        let settled = log
            .acknowledge(11 * MS, &ranges(&[(9, 9), (0, 0)]), 0)
            .unwrap();
        assert_eq!((settled.spurious, settled.bytes), (1, 0));
        // Ten packets of distance are no sign of loss any more, nor is time up to two round trips.
        log.acknowledge(12 * MS, &ranges(&[(18, 18)]), 0).unwrap();
        assert_eq!(lost(&mut log, 12 * MS, &rtt), [7, 8]);
        assert_eq!(lost(&mut log, 2000 * MS, &rtt).len(), 8);
        assert_eq!(log.floor(), 19, "long lost ones are forgotten");
    }

    #[test]
    fn the_rate_is_what_was_delivered_in_a_round_trip() {
        let mut log = SentLog::new(64);
        // 1 packet a millisecond, acknowledged 10 ms later: 150 bytes a millisecond.
        for now in 0..40u64 {
            log.push_tracked(now * MS, carried(now));
            if now >= 10 {
                let settled = log
                    .acknowledge(now * MS, &ranges(&[(0, now - 10)]), 10 * MS)
                    .unwrap();
                let rate = settled.rate.unwrap();
                if now < 21 {
                    continue; // the path was not full when these were sent
                }
                assert_eq!(
                    (rate.bytes_per_s, rate.app_limited),
                    (150_000, false),
                    "{now}"
                );
            }
        }
        log.set_app_limited();
        log.push_tracked(40 * MS, carried(40));
        let settled = log
            .acknowledge(50 * MS, &ranges(&[(0, 40)]), 10 * MS)
            .unwrap();
        assert!(settled.rate.unwrap().app_limited);
        assert_eq!(settled.prior_delivered, 30 * 150);
    }

    #[test]
    fn untracked_packets_only_take_numbers_and_places_are_kept() {
        let mut log = SentLog::new(4);
        (0..1000).for_each(|_| log.push_untracked());
        assert_eq!((log.next_number(), log.floor()), (1000, 1000));
        let capacity = log.entries.capacity();
        while log.has_room_for_data() {
            log.push_tracked(0, carried(0));
        }
        assert!(log.has_room_for_ack());
        while log.has_room_for_ack() {
            log.push_untracked();
        }
        assert!(log.has_room_for_probe());
        while log.has_room_for_probe() {
            log.push_tracked(0, carried(0));
        }
        assert_eq!(log.entries.capacity(), capacity);
        let top = log.next_number() - 1;
        log.acknowledge(1, &ranges(&[(1000, top)]), 0).unwrap();
        assert_eq!((log.in_flight(), log.floor()), (0, top + 1));
    }

    #[test]
    fn forgetting_the_flight_settles_nothing() {
        let mut log = log(8);
        log.acknowledge(9 * MS, &ranges(&[(4, 4)]), 0).unwrap();
        log.forget_flight();
        assert_eq!((log.in_flight(), log.in_flight_bytes()), (0, 0));
        assert_eq!(lost(&mut log, 9000 * MS, &rtt_of(1)), Vec::<u64>::new());
        let late = log.acknowledge(9 * MS, &ranges(&[(0, 7)]), 0).unwrap();
        assert_eq!(late.bytes, 0);
    }
}
