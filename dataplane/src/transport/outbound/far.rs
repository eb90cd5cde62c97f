//! A far path: what may be on the wire, and what may be read ahead of it.
//!
//! In: the path's delay, frames that lanes take and that the peer has, what came in sequence and what the far
//! hypervisor has taken of it. Out: whether another frame may go to a lane; how much may be read. Promise: on
//! the wire, over all lanes together, is little more than one bandwidth-delay product, and at the far end
//! little that its hypervisor has not taken.
//!
//! How far bytes compress changes from one batch to the next, so a window in the hypervisor's bytes is soon
//! too small for the line or too large. Here the window counts the wire's bytes. The connections below have
//! windows of their own, but each finds out for itself and sees the line without the others: eight of them
//! put four products on the way and a queue of as much in front of every batch. Nothing is read while
//! something waits for the lanes, so reading follows by itself; it stops only where the far hypervisor does
//! not keep up.

use super::super::Nanos;
use super::window::Window;

/// A path of at least this delay is a far one.
const FAR_NS: u64 = 5_000_000;
/// The far hypervisor may have so much yet to take of what has come, in time at its best rate: a hole in the
/// sequence that is filled hands it all that came behind the hole at once.
const SLACK_NS: u64 = 50_000_000;
/// And at least this part of all that may be held.
const BEHIND_PART: u64 = 4;
/// What a path is taken to carry while its rate is still being found out, bytes a second. The connections
/// below begin slowly whatever they are given; with less than this they would be kept waiting as well.
const FIRST_GUESS_BYTES_PER_S: u64 = 40_000_000;
/// For so long at most after the first byte.
const FIRST_GUESS_NS: u64 = 2_000_000_000;
/// A frame is to be through its lane within this time, so that those behind it in the sequence, on other
/// lanes, do not wait for it for long. The peer has it only when it is whole, so a byte is on the way for this
/// much longer than the network takes.
const FRAME_NS: u64 = 30_000_000;
/// With as little on the way as there can be without an idle line, a byte is on the way for so much longer than the
/// network takes: about what the peer needs to tell of it.
const LEAN_NS: u64 = 10_000_000;
/// And so much of what the path is known to carry.
const LEAN_PERCENT: u64 = 115;
/// The path is full when so much of what may be on the way is: the rest is the queue that keeps it so.
const FULL_PERCENT: u64 = 70;
/// With less than this of it on the way, the line stands still for a while to come.
const ROOM_PERCENT: u64 = 50;
/// A queue of less than this may be one of packets that came together.
const QUEUE_NS_MIN: u64 = 25_000_000;
/// Packets of a frame, more or less.
const FRAME_PACKETS: f32 = 50.0;

/// See the module.
#[derive(Debug)]
pub struct FarPath {
    is_far: bool,
    /// No queue is to stand in front of what comes later.
    is_lean: bool,
    delay_ns: u64,
    /// Of a frame that the network below has to send in part again, by chance.
    loss_delay_ns: u64,
    floor_bytes: u64,
    limit_bytes: u64,
    guess_ends: Option<Nanos>,
    guess_over: bool,
    wire: Window,
    sent_bytes: u64,
    received_bytes: u64,
    /// Raw bytes that came in sequence.
    confirmed_bytes: u64,
    /// Raw bytes that the far hypervisor has taken.
    delivered_bytes: u64,
}

impl FarPath {
    /// A near path until told otherwise; on the wire is never more than `limit_bytes`.
    #[must_use]
    pub fn new(floor_bytes: u64, limit_bytes: u64, now: Nanos) -> Self {
        Self {
            is_far: false,
            is_lean: false,
            delay_ns: 0,
            loss_delay_ns: 0,
            limit_bytes,
            guess_ends: None,
            guess_over: false,
            floor_bytes: floor_bytes.min(limit_bytes),
            wire: Window::new(floor_bytes, limit_bytes, now),
            sent_bytes: 0,
            received_bytes: 0,
            confirmed_bytes: 0,
            delivered_bytes: 0,
        }
    }

    /// The path's round trip, as the network below knows it.
    pub fn expect_delay(&mut self, delay_ns: u64) {
        let is_far = delay_ns >= FAR_NS;
        if is_far && !self.is_far {
            // What a near one carried says nothing of it.
            self.wire.begin_anew();
            self.guess_ends = None;
            self.guess_over = false;
        }
        self.is_far = is_far;
        self.delay_ns = delay_ns;
    }

    /// A packet takes so long at present. A queue in front of it says that the path carries no more: what is on the
    /// way grows no further, or the queue would overflow and every lane have to mend what it lost at once.
    pub fn note_rtt(&mut self, rtt_ns: u64) {
        let queue_ns = rtt_ns.saturating_sub(self.delay_ns);
        if self.is_far && queue_ns > QUEUE_NS_MIN.max(self.delay_ns / 2) {
            self.wire.end_startup();
            self.guess_over = true;
        }
    }

    /// The network below sends this share of its packets again. A frame of many packets is then whole one more
    /// round trip later as a rule, and that much more is on the way.
    pub fn expect_loss(&mut self, share: f32) {
        let frame_share = (share * FRAME_PACKETS).clamp(0.0, 1.0);
        self.loss_delay_ns = (self.delay_ns as f64 * f64::from(frame_share)) as u64;
    }

    /// Does the path count as a far one?
    #[must_use]
    pub const fn is_far(&self) -> bool {
        self.is_far
    }

    /// Wire bytes on the way. What was sent again counts once.
    #[must_use]
    pub const fn on_the_way_bytes(&self) -> u64 {
        self.sent_bytes - self.received_bytes
    }

    /// May a frame go to a lane for the first time?
    #[must_use]
    pub fn may_send(&self) -> bool {
        !self.is_far || self.on_the_way_bytes() < self.wire_limit_bytes()
    }

    /// Is there as much on the way as the path itself holds? Then it is what limits, though nothing waits for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = self.wire_limit_bytes() / 100 * FULL_PERCENT;
        self.is_far && self.on_the_way_bytes() >= full
    }

    /// Is it a far path with room on it for what may not be needed?
    #[must_use]
    pub fn has_room(&self) -> bool {
        let some = self.wire_limit_bytes() / 100 * ROOM_PERCENT;
        self.is_far && self.on_the_way_bytes() < some && !self.is_starting()
    }

    /// What was sent longer ago over a path with room on it, and is not known to have come, is late.
    #[must_use]
    pub const fn late_ns(&self) -> u64 {
        self.delay_ns + self.delay_ns / 2 + self.loss_delay_ns + FRAME_NS
    }

    /// What may be on the way.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.wire_limit_bytes()
    }

    /// Is the path's rate still being found out?
    fn is_starting(&self) -> bool {
        !self.guess_over && self.wire.is_starting()
    }

    fn wire_limit_bytes(&self) -> u64 {
        if !self.is_starting() {
            return if self.is_lean {
                self.wire.bytes().min(self.lean_bytes())
            } else {
                self.wire.bytes()
            };
        }
        let product = u128::from(FIRST_GUESS_BYTES_PER_S) * u128::from(self.delay_ns);
        let guess = u64::try_from(product / 1_000_000_000).unwrap_or(u64::MAX);
        self.wire.bytes().max(guess.min(self.limit_bytes))
    }

    fn lean_bytes(&self) -> u64 {
        let span_ns = self.delay_ns + self.loss_delay_ns + LEAN_NS;
        // A little more than is known to arrive, or nobody would see that more could.
        let rate = self.wire.delivery_rate_bytes_s() / 100 * LEAN_PERCENT;
        let product = u128::from(rate) * u128::from(span_ns);
        let bytes = u64::try_from(product / 1_000_000_000).unwrap_or(u64::MAX);
        bytes.max(self.floor_bytes / 4)
    }

    /// Has as little on the way from now on as keeps the line busy: what comes later waits behind it. That is for
    /// small frames; larger ones take so long to be whole that less than usual would leave the line idle.
    pub const fn set_lean(&mut self, is_lean: bool) {
        self.is_lean = is_lean;
    }

    /// Wire bytes that a frame should have at most, where `lanes` share the path and the far end has room for
    /// `frames_max`: with smaller ones that room would be full before the path is.
    #[must_use]
    pub fn frame_bytes(&self, lanes: usize, frames_max: usize) -> u64 {
        let rate = if self.is_starting() {
            0
        } else {
            self.wire.delivery_rate_bytes_s()
        };
        let bytes = u128::from(rate) * u128::from(FRAME_NS) / 1_000_000_000;
        let soon = u64::try_from(bytes).unwrap_or(u64::MAX) / lanes.max(1) as u64;
        soon.max(self.wire_limit_bytes() / frames_max.max(1) as u64)
    }

    /// A lane took a frame of so many bytes, for the first time.
    pub fn on_sent(&mut self, bytes: u64, now: Nanos) {
        self.sent_bytes += bytes;
        self.guess_ends.get_or_insert(now.plus(FIRST_GUESS_NS));
        self.wire.on_push(bytes, self.on_the_way_bytes(), now);
    }

    /// It did not after all.
    pub fn on_taken_back(&mut self, bytes: u64) {
        // The model forgets the sample with the next that is delivered.
        self.received_bytes += bytes;
    }

    /// The peer has a frame of so many bytes.
    pub const fn on_received(&mut self, bytes: u64) {
        self.received_bytes += bytes;
    }

    /// So much more has come in sequence, raw bytes.
    pub const fn on_confirmed(&mut self, raw_bytes: u64) {
        self.confirmed_bytes += raw_bytes;
    }

    /// An ACK is taken in; the far hypervisor has taken `delivered_bytes` since the session began.
    pub fn on_ack(&mut self, delivered_bytes: u64, now: Nanos) {
        self.delivered_bytes = delivered_bytes;
        if self.is_far {
            let delay_ns = self.delay_ns + self.loss_delay_ns + FRAME_NS;
            self.wire.set_delay(delay_ns, now);
        }
        self.wire.on_delivered(self.received_bytes, now);
        self.guess_over |= self.guess_ends.is_some_and(|ends| now >= ends);
    }

    /// What may be held between the hypervisors on a far path, raw bytes: up to `limit_bytes` while the one
    /// there keeps up, which takes `rate_bytes_per_s` at best. While it does not, as much as it takes in the time
    /// that bytes need to come to it, and what it may be behind: with less, reading would stop until it has caught
    /// up, and leave the path empty for one more round trip each time.
    #[must_use]
    pub fn held_limit_bytes(&self, rate_bytes_per_s: u64, limit_bytes: u64) -> u64 {
        let taken_in = |ns: u64| {
            let bytes = u128::from(rate_bytes_per_s) * u128::from(ns) / 1_000_000_000;
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        let behind = self.confirmed_bytes.saturating_sub(self.delivered_bytes);
        // At the beginning nobody knows yet what it takes at best.
        let unseen = self.floor_bytes.max(limit_bytes / BEHIND_PART);
        let slack = taken_in(SLACK_NS).max(unseen);
        if behind <= slack {
            return limit_bytes;
        }
        (taken_in(self.delay_ns) + slack).min(limit_bytes)
    }

    /// Wire bytes a second at best, and whether the path may carry more than was seen.
    #[must_use]
    pub fn carried_bytes_per_s(&self) -> (u64, bool) {
        (self.wire.delivery_rate_bytes_s(), self.is_starting())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: u64 = 1_000_000;
    const FLOOR: u64 = 1 << 20;
    const LIMIT: u64 = 48 << 20;
    const FRAME: u64 = 100_000;

    /// A source that sends whenever it may over a line of `rate` bytes a second and `delay_ns` both ways
    /// together. Returns bytes received and the most that was on the way.
    fn run(path: &mut FarPath, from_ms: u64, span_ms: u64, rate: u64, delay_ns: u64) -> (u64, u64) {
        let mut line: VecDeque<Nanos> = VecDeque::new();
        let from = Nanos(from_ms * MS);
        let (mut free_at, mut received, mut most) = (from, 0, 0);
        for step in 0..span_ms {
            let now = from.plus(step * MS);
            while line.pop_front_if(|at| *at <= now).is_some() {
                received += FRAME;
                path.on_received(FRAME);
                path.on_ack(received, now);
            }
            while path.may_send() {
                path.on_sent(FRAME, now);
                free_at = free_at.max(now).plus(FRAME * 1_000_000_000 / rate);
                line.push_back(free_at.plus(delay_ns));
            }
            most = most.max(path.on_the_way_bytes());
        }
        for at in line {
            path.on_received(FRAME);
            path.on_ack(received, at);
        }
        (received, most)
    }

    fn far(delay_ns: u64) -> FarPath {
        let mut path = FarPath::new(FLOOR, LIMIT, Nanos(0));
        path.expect_delay(delay_ns);
        path
    }

    #[test]
    fn a_line_is_full_and_little_more_than_its_product_is_on_the_way() {
        for (rate, delay_ns) in [
            (25_000_000, 80 * MS),
            (112_000_000, 50 * MS),
            (31_000_000, 150 * MS),
        ] {
            let mut path = far(delay_ns);
            let (received, _) = run(&mut path, 0, 2_000, rate, delay_ns);
            assert!(received > rate * 17 / 10, "{received} at {rate}");
            let (received, most) = run(&mut path, 3_000, 5_000, rate, delay_ns);
            assert!(received > rate * 48 / 10, "{received} at {rate}");
            let product = rate / 1_000 * (delay_ns + FRAME_NS) / MS;
            assert!(most < product * 14 / 10 + FRAME, "{most} for {product}");
            assert!(path.carried_bytes_per_s().0 < rate * 11 / 10);
        }
    }

    #[test]
    fn a_queue_ends_the_search_for_more() {
        let (rate, delay_ns) = (25_000_000, 80 * MS);
        let mut path = far(delay_ns);
        run(&mut path, 0, 400, rate, delay_ns);
        path.note_rtt(100 * MS);
        assert!(path.is_starting(), "no queue to speak of");
        path.note_rtt(130 * MS);
        assert!(!path.is_starting());
        // Some time later: each run ends when all of its frames have come.
        run(&mut path, 1_500, 3_000, rate, delay_ns);
        let (_, most) = run(&mut path, 5_500, 1_000, rate, delay_ns);
        let product = rate / 1_000 * (delay_ns + FRAME_NS) / MS;
        assert!(most < product * 14 / 10 + FRAME, "{most} for {product}");
    }

    #[test]
    fn a_near_path_is_not_limited_here() {
        let mut path = far(200_000);
        for _ in 0..1_000 {
            assert!(path.may_send());
            path.on_sent(FRAME, Nanos(0));
        }
        path.expect_delay(80 * MS);
        assert!(!path.may_send());
    }

    #[test]
    fn a_far_end_that_tells_late_and_much_at_once_does_not_pass_for_a_fast_line() {
        let (rate, delay_ns) = (25_000_000, 80 * MS);
        let mut path = far(delay_ns);
        run(&mut path, 0, 2_000, rate, delay_ns);
        // Ten frames, one every 4 ms; the far end was held up and tells of all ten in one moment.
        for nth in 0..10 {
            path.on_sent(FRAME, Nanos((3_000 + nth * 4) * MS));
        }
        let received = path.received_bytes;
        for nth in 1..=10 {
            path.on_received(FRAME);
            path.on_ack(received + nth * FRAME, Nanos(3_300 * MS));
        }
        let (carried, _) = path.carried_bytes_per_s();
        assert!(carried < rate * 11 / 10, "{carried}");
    }

    #[test]
    fn reading_slows_down_while_the_far_hypervisor_does_not_keep_up() {
        let mut path = far(80 * MS);
        path.on_confirmed(FLOOR + LIMIT / BEHIND_PART);
        path.on_ack(FLOOR, Nanos(MS));
        assert_eq!(path.held_limit_bytes(0, LIMIT), LIMIT);
        path.on_confirmed(1);
        // One that takes nothing may be as far behind and no further.
        assert_eq!(path.held_limit_bytes(0, LIMIT), LIMIT / BEHIND_PART);
        // What it takes while bytes come to it, and as much as it may be behind.
        let coming = 8_000_000;
        let held = path.held_limit_bytes(100_000_000, LIMIT);
        assert_eq!(held, coming + LIMIT / BEHIND_PART);
        // One that takes 400 MB a second may be 20 MB behind.
        assert_eq!(path.held_limit_bytes(400_000_000, LIMIT), LIMIT);
    }

    #[test]
    fn frames_are_through_their_lanes_soon_unless_the_far_end_would_run_out_of_room_for_them() {
        let (rate, delay_ns) = (31_000_000, 150 * MS);
        let mut path = far(delay_ns);
        run(&mut path, 0, 4_000, rate, delay_ns);
        let soon = path.frame_bytes(16, usize::MAX);
        assert!((50_000..=65_000).contains(&soon), "{soon}");
        assert_eq!(path.frame_bytes(16, 200), soon);
        assert!(path.frame_bytes(16, 60) * 61 > path.window_bytes());
        // Also while the rate is being found out.
        let beginning = far(delay_ns);
        assert!(beginning.frame_bytes(16, 60) * 61 > beginning.window_bytes());
    }

    #[test]
    fn a_path_that_loses_packets_holds_a_round_trip_more() {
        let (rate, delay_ns) = (12_500_000, 100 * MS);
        let mut clean = far(delay_ns);
        run(&mut clean, 0, 4_000, rate, delay_ns);
        let mut lossy = far(delay_ns);
        lossy.expect_loss(0.02);
        run(&mut lossy, 0, 4_000, rate, delay_ns);
        let (one, two) = (clean.wire.bytes(), lossy.wire.bytes());
        assert!(two > one * 3 / 2 && two < one * 2, "{one} {two}");
    }

    #[test]
    fn a_lean_path_has_no_queue_to_speak_of_and_a_busy_line() {
        let (rate, delay_ns) = (25_000_000, 80 * MS);
        let mut path = far(delay_ns);
        run(&mut path, 0, 3_000, rate, delay_ns);
        path.set_lean(true);
        run(&mut path, 4_000, 1_000, rate, delay_ns);
        let (received, most) = run(&mut path, 5_100, 4_000, rate, delay_ns);
        assert!(received > rate * 37 / 10, "{received}");
        let product = rate / 1_000 * delay_ns / MS;
        assert!(most < product * 135 / 100 + FRAME, "{most} for {product}");
    }

    #[test]
    fn a_frame_that_was_not_taken_is_not_on_the_way() {
        let mut path = far(80 * MS);
        path.on_sent(FRAME, Nanos(0));
        path.on_taken_back(FRAME);
        assert_eq!(path.on_the_way_bytes(), 0);
    }
}
