//! Checks that frames arrive whole, identical and in order.

use std::sync::Arc;

use super::{Harness, Side, pattern, pools, two_sides, until};
use crate::MAX_FRAME_BYTES;
use crate::lane::{LaneEvent, LaneGroup, Polled};

/// Sizes around every border: the prefix, the classes, the chunks, the limit.
pub fn frames_of_every_size_arrive<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(4, 4, 4), pools(16, 16, 16));
    let sizes = [
        1,
        2,
        3,
        4,
        5,
        8,
        100,
        2047,
        2048,
        2049,
        16_383,
        65_531,
        65_532,
        65_535,
        65_536,
        65_537,
        131_072,
        512 << 10,
        1 << 20,
        MAX_FRAME_BYTES - 1,
        MAX_FRAME_BYTES,
        1,
    ];
    for (seed, &size) in sizes.iter().enumerate() {
        let bytes = vec![pattern(seed as u64, size)];
        assert!(a.offer(near, &bytes[0]));
        until(&mut a, &mut b, |_, b| b.count(far) == 1);
        b.expect(far, &bytes);
        assert!(b.offer(far, &bytes[0]));
        until(&mut a, &mut b, |a, _| a.count(near) == 1);
        a.expect(near, &bytes);
    }
    // And all in one go, so that they lie against each other on the wire.
    let wanted: Vec<_> = sizes
        .iter()
        .zip(100..)
        .map(|(&size, seed)| pattern(seed, size))
        .collect();
    let mut sent = 0;
    until(&mut a, &mut b, |a, b| {
        while sent < wanted.len() && a.offer(near, &wanted[sent]) {
            sent += 1;
        }
        b.count(far) == wanted.len()
    });
    b.expect(far, &wanted);
}

/// Lanes with frames of different sizes in turn.
pub fn interleaved_lanes_keep_their_order<H: Harness>(harness: &H) {
    exchange(harness, 8, 60, |lane, at| match (lane + at) % 4 {
        0 => 1 + at,
        1 => 3000,
        2 => 70_000 + at,
        _ => 300,
    });
}

/// As many lanes as a session may have on one worker.
pub fn sixty_four_lanes_at_once<H: Harness>(harness: &H) {
    exchange(harness, 64, 20, |lane, at| {
        1 + (lane * 977 + at * 131) % 9000
    });
}

/// Sends `frames` frames each way on each of `lanes` lanes.
fn exchange<H: Harness>(
    harness: &H,
    lanes: usize,
    frames: usize,
    size: impl Fn(usize, usize) -> usize,
) {
    let mut a = Side::new(harness.lanes(), pools(600, 400, 4));
    let mut b = Side::new(harness.lanes(), pools(600, 400, 4));
    let ids: Vec<_> = (0..lanes)
        .map(|_| {
            let (near, far) = harness.pair();
            (a.add(near), b.add(far))
        })
        .collect();
    let bytes = |lane: usize, at: usize, way: u64| {
        pattern((lane * 1000 + at) as u64 * 2 + way, size(lane, at))
    };
    let mut sent = vec![[0usize; 2]; lanes];
    let mut checked = vec![[0usize; 2]; lanes];
    until(&mut a, &mut b, |a, b| {
        for (lane, &(near, far)) in ids.iter().enumerate() {
            if sent[lane][0] < frames && a.offer(near, &bytes(lane, sent[lane][0], 0)) {
                sent[lane][0] += 1;
            }
            if sent[lane][1] < frames && b.offer(far, &bytes(lane, sent[lane][1], 1)) {
                sent[lane][1] += 1;
            }
            for frame in b.got.remove(&far).unwrap_or_default() {
                assert!(
                    frame.bytes() == bytes(lane, checked[lane][0], 0),
                    "lane {lane} forth"
                );
                checked[lane][0] += 1;
            }
            for frame in a.got.remove(&near).unwrap_or_default() {
                assert!(
                    frame.bytes() == bytes(lane, checked[lane][1], 1),
                    "lane {lane} back"
                );
                checked[lane][1] += 1;
            }
        }
        checked.iter().flatten().all(|&count| count == frames)
    });
    assert!(a.closed.is_empty() && b.closed.is_empty());
}

/// A long frame that comes in pieces is delivered with its last byte, however much lies behind it, and so
/// is the frame after it: nothing waits for bytes that nobody sends.
pub fn a_long_frame_waits_for_nothing_behind_it<H: Harness>(harness: &H) {
    let Some((endpoint, mut raw)) = harness.raw() else {
        return;
    };
    let mut a = Side::new(harness.lanes(), pools(8, 4, 4));
    let lane = a.add(endpoint);
    for (seed, behind) in [0, 1, 3, 4, 5, 700, 4096, 5000, 90_000]
        .into_iter()
        .enumerate()
    {
        let seed = seed as u64;
        let frames = [pattern(seed, 600_000), pattern(seed + 100, 100_000)];
        let mut wire = Vec::new();
        for frame in &frames {
            wire.extend((frame.len() as u32).to_le_bytes());
            wire.extend(frame);
        }
        let (now, later) = wire.split_at(4 + frames[0].len() + behind);
        for piece in now.chunks(16 << 10) {
            raw.write_all(piece).unwrap();
            a.turn();
        }
        while a.count(lane) < 1 {
            a.turn();
        }
        a.expect(lane, &frames[..1]);
        raw.write_all(later).unwrap();
        while a.count(lane) < 1 {
            a.turn();
        }
        a.expect(lane, &frames[1..]);
    }
}

/// Two workers on two threads, both sending and receiving.
pub fn two_threads_exchange_long_frames<H: Harness>(harness: &H) {
    const FRAMES: usize = 100;
    let (near, far) = harness.pair();
    let busy = Arc::new(());
    let work = &|endpoint, way: u64, mine: Arc<()>| {
        let mut side = Side::new(harness.lanes(), pools(4, 4, 8));
        let lane = side.add(endpoint);
        let (mut sent, mut checked) = (0, 0);
        while checked < FRAMES || side.group.backlog_bytes(lane) > 0 || sent < FRAMES {
            let size = 512 << 10;
            if sent < FRAMES && side.offer(lane, &pattern(sent as u64 * 2 + way, size)) {
                sent += 1;
            }
            if side.turn() == Polled::Idle {
                std::thread::yield_now();
            }
            for frame in side.got.remove(&lane).unwrap_or_default() {
                let wanted = pattern(checked as u64 * 2 + (1 - way), size);
                assert!(frame.bytes() == wanted, "frame {checked}");
                checked += 1;
            }
        }
        side.group.finish(lane);
        while !side.is_closed(lane) {
            side.turn();
        }
        assert_eq!(side.closed[&lane], crate::lane::LaneClosed::Finished);
        // A device that goes away takes along what the peer has not read of it.
        drop(mine);
        while Arc::strong_count(&busy) > 1 {
            side.turn();
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for (endpoint, way) in [(near, 0), (far, 1)] {
            let mine = Arc::clone(&busy);
            scope.spawn(move || work(endpoint, way, mine));
        }
    });
}

/// A caller with room for one event gets them all, one at a time.
pub fn events_never_outgrow_their_vector<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(64, 4, 4), pools(64, 4, 4));
    let wanted: Vec<_> = (0..40)
        .map(|seed| pattern(seed, 1 + seed as usize * 7))
        .collect();
    let mut sent = 0;
    let mut one: Vec<LaneEvent> = Vec::with_capacity(1);
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        while sent < wanted.len() && a.offer(near, &wanted[sent]) {
            sent += 1;
        }
        a.turn();
        let polled = b.group.poll(&mut one);
        assert_eq!(one.capacity(), 1);
        if let Some(LaneEvent::Frame { lane, frame }) = one.pop() {
            assert_eq!((lane, polled == Polled::Idle), (far, false));
            got.push(frame.bytes().to_vec());
        }
    }
    assert!(got == wanted);
    // No room at all is no harm.
    assert!(a.offer(near, b"later"));
    let mut none = Vec::new();
    for _ in 0..20 {
        a.turn();
        b.group.poll(&mut none);
        assert_eq!(none.capacity(), 0);
    }
    until(&mut a, &mut b, |_, b| b.count(far) == 1);
    b.expect(far, &[b"later".to_vec()]);
}

/// What was submitted is backlog until it is taken, and both sides count the same bytes.
pub fn bytes_are_counted_and_backlog_is_honest<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(64, 4, 4), pools(64, 4, 4));
    let payload = 10 * 1000;
    for seed in 0..10 {
        assert!(a.offer(near, &pattern(seed, 1000)));
    }
    assert!(a.group.backlog_bytes(near) >= payload);
    assert_eq!(a.group.wire_bytes(near).sent, 0);
    until(&mut a, &mut b, |a, b| {
        b.count(far) == 10 && a.group.backlog_bytes(near) == 0
    });
    let (sent, received) = (
        a.group.wire_bytes(near).sent,
        b.group.wire_bytes(far).received,
    );
    assert!(sent >= payload as u64);
    assert_eq!(sent, received);
    assert_eq!(a.group.wire_bytes(near).received, 0);
    if let Some(stats) = a.group.stats(near) {
        assert!(stats.acked_bytes + u64::from(stats.unsent_bytes) <= sent + 1);
        assert!(!stats.congestion_name().is_empty());
    }
}
