//! Both kinds over a simulated bottleneck: a link of a given rate with a queue in front of it.

use std::collections::VecDeque;

use super::*;
use crate::reliable::packet::AckRanges;
use crate::reliable::rtt::Rtt;
use crate::reliable::sent::{Carried, SentLog};

const DATAGRAM: u16 = 1000;
const STEP_NS: u64 = 50_000;

/// One sender with always something to send, and one bottleneck.
struct Path {
    rate_bytes_per_s: u64,
    delay_ns: u64,
    queue_bytes_max: u64,
    loss_per_mille: u64,
    controller: Box<dyn Controller>,
    log: SentLog,
    rtt: Rtt,
    now_ns: u64,
    /// When the link is free again.
    link_free_ns: u64,
    /// (when its acknowledgement is back, number)
    returning: VecDeque<(u64, u64)>,
    paced_ns: u64,
    random: u64,
    delivered: u64,
    queue_bytes_peak: u64,
}

impl Path {
    fn new(kind: Congestion, rate_bytes_per_s: u64, rtt_ms: u64, queue_bytes_max: u64) -> Self {
        Self {
            rate_bytes_per_s,
            delay_ns: rtt_ms * 1_000_000,
            queue_bytes_max,
            loss_per_mille: 0,
            controller: controller(kind, DATAGRAM.into()),
            log: SentLog::new(1 << 16),
            rtt: Rtt::default(),
            now_ns: 1,
            link_free_ns: 0,
            returning: VecDeque::new(),
            paced_ns: 0,
            random: 88_172_645_463_325_252,
            delivered: 0,
            queue_bytes_peak: 0,
        }
    }

    fn send(&mut self) {
        while self.log.in_flight_bytes() < self.controller.window_bytes()
            && self.paced_ns <= self.now_ns
            && self.log.has_room_for_data()
        {
            let number = self.log.next_number();
            let carried = Carried {
                offset: 0,
                len: DATAGRAM,
                fin: false,
                bytes: DATAGRAM,
            };
            self.log.push_tracked(self.now_ns, carried);
            if let Some(rate) = self.controller.pacing_bytes_per_s() {
                let gap_ns = u64::from(DATAGRAM) * 1_000_000_000 / rate;
                self.paced_ns = self.paced_ns.max(self.now_ns - STEP_NS) + gap_ns;
            }
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let waiting_ns = self.link_free_ns.saturating_sub(self.now_ns);
            let queued = product(self.rate_bytes_per_s, waiting_ns);
            self.queue_bytes_peak = self.queue_bytes_peak.max(queued);
            if queued > self.queue_bytes_max || self.random % 1000 < self.loss_per_mille {
                continue;
            }
            let wire_ns = u64::from(DATAGRAM) * 1_000_000_000 / self.rate_bytes_per_s;
            self.link_free_ns = self.link_free_ns.max(self.now_ns) + wire_ns;
            self.returning
                .push_back((self.link_free_ns + self.delay_ns, number));
        }
    }

    fn step(&mut self) {
        self.now_ns += STEP_NS;
        while let Some((_, number)) = self.returning.pop_front_if(|(due, _)| *due <= self.now_ns) {
            let mut ranges = AckRanges::EMPTY;
            ranges.push(number, number);
            let window_limited = self.log.in_flight_bytes() + u64::from(DATAGRAM) * 2
                >= self.controller.window_bytes();
            let settled = self
                .log
                .acknowledge(self.now_ns, &ranges, self.rtt.min_ns())
                .unwrap();
            if let Some(sent_ns) = settled.largest_sent_ns {
                self.rtt.sample(self.now_ns - sent_ns, 0);
            }
            self.delivered += settled.bytes;
            self.controller.on_acked(&Acked {
                now_ns: self.now_ns,
                bytes: settled.bytes,
                newest_sent_ns: settled.newest_sent_ns,
                delivered: self.log.delivered(),
                prior_delivered: settled.prior_delivered,
                in_flight_bytes: self.log.in_flight_bytes(),
                rate: settled.rate,
                rtt_latest_ns: self.rtt.latest_ns(),
                rtt_smoothed_ns: self.rtt.smoothed_ns(),
                window_limited,
            });
            let lost = self.log.find_lost(self.now_ns, &self.rtt, |_| {});
            if lost.packets > 0 {
                self.controller.on_lost(&Losses {
                    now_ns: self.now_ns,
                    bytes: lost.bytes,
                    packets: lost.packets,
                    newest_sent_ns: lost.newest_sent_ns,
                    persistent: false,
                });
            }
        }
        self.send();
    }

    /// Runs, and gives the share of the link that was used, in percent.
    fn run(&mut self, ms: u64) -> u64 {
        let before = self.delivered;
        self.queue_bytes_peak = 0;
        for _ in 0..ms * 1_000_000 / STEP_NS {
            self.step();
        }
        (self.delivered - before) * 100 / product(self.rate_bytes_per_s, ms * 1_000_000)
    }
}

/// 10 MB/s and 40 ms: 400 kB.
const RATE: u64 = 10_000_000;
const PRODUCT: u64 = 400_000;

#[test]
fn cubic_fills_a_clean_link() {
    let mut path = Path::new(Congestion::Cubic, RATE, 40, PRODUCT);
    path.run(3000);
    let used = path.run(10_000);
    assert!(used >= 95, "{used} %");
}

#[test]
fn bbr_fills_a_clean_link_and_leaves_the_queue_short() {
    let mut path = Path::new(Congestion::Bbr, RATE, 40, 10 * PRODUCT);
    path.run(3000);
    let used = path.run(10_000);
    assert!(used >= 93, "{used} %");
    assert!(path.queue_bytes_peak < PRODUCT, "{}", path.queue_bytes_peak);
    assert_eq!(path.rtt.min_ns() / 1_000_000, 40);
}

#[test]
fn bbr_keeps_its_rate_where_packets_are_lost_at_random() {
    for loss_per_mille in [10, 50] {
        let mut path = Path::new(Congestion::Bbr, RATE, 40, PRODUCT);
        path.loss_per_mille = loss_per_mille;
        path.run(3000);
        let used = path.run(10_000);
        let possible = 100 - loss_per_mille / 10;
        assert!(
            used >= possible * 85 / 100,
            "{used} % at {loss_per_mille} ‰"
        );
    }
}

#[test]
fn bbr_follows_a_link_that_becomes_slower_and_faster() {
    let mut path = Path::new(Congestion::Bbr, RATE, 40, PRODUCT);
    path.run(4000);
    path.rate_bytes_per_s = RATE / 4;
    path.run(3000);
    let used = path.run(4000);
    assert!(used >= 85, "slower: {used} %");
    path.rate_bytes_per_s = RATE;
    path.run(6000);
    let used = path.run(4000);
    assert!(used >= 85, "faster: {used} %");
}

#[test]
fn bbr_yields_to_a_queue_that_is_too_short() {
    // A tenth of the product as a queue: half of what a doubled rate sends is lost.
    let mut path = Path::new(Congestion::Bbr, RATE, 40, PRODUCT / 10);
    path.run(3000);
    let used = path.run(10_000);
    assert!(used >= 80, "{used} %");
}
