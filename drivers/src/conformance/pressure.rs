//! Checks that memory is bounded, and that waiting loses nothing.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Harness, Side, free, pattern, pools, two_sides, until};
use crate::lane::{LaneClosed, LaneEvent, LaneGroup, Polled};

/// A reader that does not read: submit refuses at last, and everything taken arrives later.
pub fn a_slow_reader_holds_the_sender<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(8, 8, 8), pools(8, 8, 96));
    let before = free(&a.sends);
    let mut taken = Vec::new();
    let mut refused_in_a_row = 0;
    while refused_in_a_row < 100 {
        let bytes = pattern(taken.len() as u64, 400_000);
        if a.offer(near, &bytes) {
            taken.push(bytes);
            refused_in_a_row = 0;
        } else {
            refused_in_a_row += 1;
        }
        if a.turn() == Polled::Idle {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    assert!(
        free(&a.sends) > 0,
        "it was the pool that refused, not the lane"
    );
    let held = before - free(&a.sends);
    assert!(a.group.backlog_bytes(near) > 0);
    assert!(
        held * 400_000 <= 3 * (4 << 20),
        "a lane holds {held} long frames"
    );
    assert!(a.writable.is_empty());
    until(&mut a, &mut b, |_, b| b.count(far) == taken.len());
    b.expect(far, &taken);
    assert_eq!(a.writable, [near], "one Writable for many refusals");
    b.got.clear();
    // Frames that are hardly any bytes are bounded by their number.
    let mut small = 0;
    while a.offer(near, b"again") {
        small += 1;
    }
    assert!(
        free(&a.sends) > before - 100,
        "a lane holds {small} short frames"
    );
    let mut arrived = 0;
    until(&mut a, &mut b, |a, b| {
        arrived += b.got.remove(&far).unwrap_or_default().len();
        arrived == small && free(&a.sends) == before
    });
}

/// A lane without buffers stops, the others go on; buffers that come back let it go on.
pub fn empty_pools_pause_a_lane_and_only_that_lane<H: Harness>(harness: &H) {
    let mut a = Side::new(harness.lanes(), pools(64, 8, 8));
    let mut b = Side::new(harness.lanes(), pools(2, 0, 0));
    let (near, far) = harness.pair();
    let (slow_near, slow_far) = (a.add(near), b.add(far));
    let wanted: Vec<_> = (0..10).map(|seed| pattern(seed, 1500)).collect();
    for bytes in &wanted {
        assert!(a.offer(slow_near, bytes));
    }
    until(&mut a, &mut b, |_, b| b.count(slow_far) == 2);
    settle(&mut a, &mut b);
    assert_eq!(b.count(slow_far), 2, "frames out of nowhere");
    // Another lane of the same group has pools of its own, and is not held up.
    let (near, far) = harness.pair();
    let fast_near = a.add(near);
    let roomy = pools(32, 4, 4);
    let fast_far = b.group.add(far, &roomy).unwrap();
    assert!(a.offer(fast_near, &wanted[3]));
    until(&mut a, &mut b, |_, b| b.count(fast_far) == 1);
    b.expect(fast_far, &wanted[3..4]);
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let frames = b.got.get_mut(&slow_far).unwrap();
        got.push(frames.remove(0).bytes().to_vec());
        if got.len() < wanted.len() {
            until(&mut a, &mut b, |_, b| b.count(slow_far) > 0);
        }
    }
    assert!(got == wanted);
    // A frame that no buffer of these pools will ever hold stops its lane only, and close works.
    assert!(a.offer(slow_near, &pattern(1, 100_000)));
    settle(&mut a, &mut b);
    assert!(a.offer(fast_near, &wanted[4]));
    until(&mut a, &mut b, |_, b| b.count(fast_far) == 1);
    b.group.close(slow_far);
    until(&mut a, &mut b, |a, b| {
        a.is_closed(slow_near) && b.is_closed(slow_far)
    });
    assert_eq!(b.closed[&slow_far], LaneClosed::Local);
    drop(got);
    b.got.clear();
    assert_eq!(free(&b.pools), 2);
}

/// Polls until both sides found nothing many times over. A group that only waits must be idle.
fn settle<A: LaneGroup, B: LaneGroup>(a: &mut Side<A>, b: &mut Side<B>) {
    let mut idle = 0;
    while idle < 50 {
        let quiet = a.turn() == Polled::Idle && b.turn() == Polled::Idle;
        idle = if quiet { idle + 1 } else { 0 };
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A worker asleep on its descriptor is woken by a buffer that another thread gives back.
pub fn relief_from_another_thread_wakes_a_parked_group<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(8, 8, 8), pools(1, 0, 0));
    for round in 0..20 {
        let wanted = [pattern(round, 100), pattern(round + 100, 200)];
        assert!(a.offer(near, &wanted[0]) && a.offer(near, &wanted[1]));
        until(&mut a, &mut b, |_, b| b.count(far) == 1);
        settle(&mut a, &mut b);
        while !b.group.prepare_park() {
            b.turn();
        }
        let park_fd = b.group.park_fd().unwrap();
        assert!(!readable(park_fd, Some(Duration::ZERO)));
        let held = b.got.remove(&far).unwrap();
        assert_eq!(held[0].bytes(), wanted[0]);
        let other = std::thread::spawn(move || drop(held));
        assert!(readable(b.group.park_fd().unwrap(), None));
        other.join().unwrap();
        until(&mut a, &mut b, |_, b| b.count(far) == 1);
        b.expect(far, &wanted[1..]);
    }
    let mut none: Vec<LaneEvent> = Vec::with_capacity(4);
    assert_eq!(b.group.poll(&mut none), Polled::Idle);
}

/// Waits until the descriptor is readable; none waits for ever.
pub(super) fn readable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> bool {
    let patience = patience.map(|patience| Timespec {
        tv_sec: patience.as_secs() as i64,
        tv_nsec: patience.subsec_nanos().into(),
    });
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, patience.as_ref()) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => panic!("poll: {cause}"),
        }
    }
}
