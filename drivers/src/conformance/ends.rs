//! Checks of how lanes end: in order, at once, or by a peer that breaks the rules.

use std::time::Duration;

use super::{Harness, Side, free, pattern, pools, two_sides, until};
use crate::MAX_FRAME_BYTES;
use crate::lane::{LaneClosed, LaneGroup, LaneId, RefusedReason};

/// Whatever moment the sender closes at, the receiver has whole frames and then `Closed`.
pub fn close_never_gives_a_partial_frame<H: Harness>(harness: &H) {
    for polls in 0..12 {
        let (mut a, near, mut b, far) = two_sides(harness, pools(8, 8, 8), pools(8, 8, 8));
        let (all_near, all_far) = (a.free(), b.free());
        let sent: Vec<_> = (0..4).map(|seed| pattern(seed, MAX_FRAME_BYTES)).collect();
        for bytes in &sent {
            a.offer(near, bytes);
        }
        for _ in 0..polls {
            a.turn();
            if polls % 2 == 0 {
                b.turn();
            }
        }
        a.group.close(near);
        until(&mut a, &mut b, |a, b| a.is_closed(near) && b.is_closed(far));
        assert_eq!(a.closed[&near], LaneClosed::Local);
        assert_ne!(b.closed[&far], LaneClosed::Local);
        let got = b.got.remove(&far).unwrap_or_default();
        assert!(got.len() <= sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            assert!(got.bytes() == sent, "a frame that was not sent");
        }
        let refused = a
            .group
            .submit(near, a.pools.copy(b"late").unwrap())
            .unwrap_err();
        assert_eq!(refused.reason, RefusedReason::Unknown);
        drop((got, refused));
        assert_eq!(
            (a.free(), b.free()),
            (all_near, all_far),
            "buffers are lost"
        );
    }
}

/// `finish` loses nothing, on the side that called it and on the other.
pub fn finish_delivers_what_is_queued_both_ways<H: Harness>(harness: &H) {
    let (mut a, near, mut b, far) = two_sides(harness, pools(32, 32, 32), pools(32, 32, 32));
    let forth: Vec<_> = (0..8).map(|seed| pattern(seed, 300_000)).collect();
    let back: Vec<_> = (8..16).map(|seed| pattern(seed, 200_000)).collect();
    for (forth, back) in forth.iter().zip(&back) {
        assert!(a.offer(near, forth) && b.offer(far, back));
    }
    a.group.finish(near);
    let refused = a
        .group
        .submit(near, a.pools.copy(b"late").unwrap())
        .unwrap_err();
    assert_eq!(refused.reason, RefusedReason::Unknown);
    until(&mut a, &mut b, |a, b| a.is_closed(near) && b.is_closed(far));
    assert_eq!(
        (a.closed[&near], b.closed[&far]),
        (LaneClosed::Finished, LaneClosed::Finished)
    );
    b.expect(far, &forth);
    a.expect(near, &back);
    // With nothing queued, and both sides at once.
    let (near, far) = harness.pair();
    let (near, far) = (a.add(near), b.add(far));
    a.group.finish(near);
    b.group.finish(far);
    until(&mut a, &mut b, |a, b| a.is_closed(near) && b.is_closed(far));
    assert_eq!(
        (a.closed[&near], b.closed[&far]),
        (LaneClosed::Finished, LaneClosed::Finished)
    );
}

/// Dropping a group in the middle of everything frees its buffers and tells the peers.
pub fn a_dropped_group_gives_everything_back<H: Harness>(harness: &H) {
    let mut a = Side::new(harness.lanes(), pools(8, 8, 8));
    let (sends, lands, all) = (a.sends.clone(), a.pools.clone(), a.free());
    let mut b = Side::new(harness.lanes(), pools(8, 8, 1));
    let lanes: Vec<(LaneId, LaneId)> = (0..4)
        .map(|_| {
            let (near, far) = harness.pair();
            (a.add(near), b.add(far))
        })
        .collect();
    for &(near, far) in &lanes {
        for seed in 0..4 {
            a.offer(near, &pattern(seed, MAX_FRAME_BYTES));
        }
        b.offer(far, &pattern(9, 1000));
    }
    for _ in 0..5 {
        a.turn();
        b.turn();
    }
    drop(a);
    assert_eq!(
        free(&sends) + free(&lands),
        all,
        "a dropped group keeps buffers"
    );
    b.got.clear();
    let mut nobody = Side::new(harness.lanes(), pools(1, 0, 0));
    until(&mut nobody, &mut b, |_, b| {
        b.got.clear();
        lanes.iter().all(|(_, far)| b.is_closed(*far))
    });
}

/// A stream that ends within the length or within the payload was cut, and gives no frame.
pub fn an_end_within_a_frame_is_told<H: Harness>(harness: &H) {
    let mut wire = 70_000u32.to_le_bytes().to_vec();
    wire.extend(pattern(1, 70_000));
    for cut in [1, 3, 4, 5, 1000, 69_999, 70_003] {
        let Some((endpoint, mut raw)) = harness.raw() else {
            return;
        };
        let mut a = Side::new(harness.lanes(), pools(2, 2, 2));
        let all = free(&a.pools);
        let lane = a.add(endpoint);
        raw.write_all(&wire[..cut]).unwrap();
        drop(raw);
        while !a.is_closed(lane) {
            a.turn();
        }
        assert_eq!(a.closed[&lane], LaneClosed::Truncated, "cut after {cut}");
        assert_eq!(a.count(lane), 0);
        assert_eq!(free(&a.pools), all);
    }
}

/// A length that no frame has ends the lane before any memory is taken; frames before it count.
pub fn a_bad_length_closes_the_lane<H: Harness>(harness: &H) {
    for announced_bytes in [0, MAX_FRAME_BYTES as u32 + 1, 0x5448_5451, u32::MAX] {
        let Some((endpoint, mut raw)) = harness.raw() else {
            return;
        };
        let mut a = Side::new(harness.lanes(), pools(2, 2, 2));
        let lane = a.add(endpoint);
        let mut wire = 3u32.to_le_bytes().to_vec();
        wire.extend(b"abc");
        wire.extend(announced_bytes.to_le_bytes());
        wire.extend([0x55; 1000]);
        raw.write_all(&wire).unwrap();
        while !a.is_closed(lane) {
            a.turn();
        }
        assert_eq!(a.closed[&lane], LaneClosed::BadLength { announced_bytes });
        a.expect(lane, &[b"abc".to_vec()]);
        assert_eq!(free(&a.pools), 6);
    }
}

/// However the stream is cut into arrivals, the frames are the same.
pub fn a_stream_in_single_bytes_is_cut_right<H: Harness>(harness: &H) {
    let Some((endpoint, mut raw)) = harness.raw() else {
        return;
    };
    let mut a = Side::new(harness.lanes(), pools(16, 2, 2));
    let lane = a.add(endpoint);
    let wanted: Vec<_> = (1..10).map(|len| pattern(len, len as usize)).collect();
    for bytes in &wanted {
        let mut wire = (bytes.len() as u32).to_le_bytes().to_vec();
        wire.extend(bytes);
        for byte in wire {
            raw.write_all(&[byte]).unwrap();
            a.turn();
        }
    }
    while a.count(lane) < wanted.len() {
        a.turn();
    }
    a.expect(lane, &wanted);
    drop(raw);
    while !a.is_closed(lane) {
        a.turn();
    }
    assert_eq!(a.closed[&lane], LaneClosed::Finished);
}

/// Lanes that come and go in every way leave neither buffers nor descriptors behind.
pub fn churn_leaks_nothing<H: Harness>(harness: &H) {
    let mut a = Side::new(harness.lanes(), pools(16, 16, 4));
    let mut b = Side::new(harness.lanes(), pools(16, 16, 4));
    let (all_near, all_far) = (a.free(), b.free());
    let mut descriptors = None;
    let mut ids = Vec::new();
    for round in 0..60u64 {
        let lanes: Vec<_> = (0..3)
            .map(|_| {
                let (near, far) = harness.pair();
                (a.add(near), b.add(far))
            })
            .collect();
        for (at, &(near, far)) in lanes.iter().enumerate() {
            ids.push(near);
            a.offer(near, &pattern(round, 1 + (round as usize * 700) % 90_000));
            b.offer(far, &pattern(round, 100));
            for _ in 0..(round + at as u64) % 4 {
                a.turn();
                b.turn();
            }
            match (round + at as u64) % 3 {
                0 => a.group.finish(near),
                1 => a.group.close(near),
                _ => b.group.close(far),
            }
        }
        until(&mut a, &mut b, |a, b| {
            lanes
                .iter()
                .all(|(near, far)| a.is_closed(*near) && b.is_closed(*far))
        });
        a.got.clear();
        b.got.clear();
        assert_eq!((a.free(), b.free()), (all_near, all_far), "round {round}");
        let open = open_descriptors();
        assert_eq!(
            *descriptors.get_or_insert(open),
            open,
            "descriptors leak in round {round}"
        );
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "a lane id came twice");
    for id in ids {
        let refused = a.group.submit(id, a.pools.copy(b"x").unwrap()).unwrap_err();
        assert_eq!(refused.reason, RefusedReason::Unknown);
        a.group.close(id);
        a.group.finish(id);
        assert_eq!(a.group.backlog_bytes(id), 0);
    }
    std::thread::sleep(Duration::from_millis(1));
    a.turn();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
