use super::*;
use crate::frame::{FramePools, FramePoolsConfig};
use crate::rdma::message::{MESSAGE_BYTES, Writer};
use dwcp_hugepages::arena::BackingPolicy;

const LANE: LaneId = LaneId(1);

fn pools(small: usize, large: usize) -> FramePools {
    let backing = BackingPolicy::Ordinary;
    FramePools::new(&FramePoolsConfig {
        small,
        medium: 0,
        large,
        backing,
    })
    .unwrap()
}

fn message(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut slot = [0; MESSAGE_BYTES];
    let mut writer = Writer::new(&mut slot);
    fill(&mut writer);
    let (len, _) = writer.finish(0);
    slot[..len].to_vec()
}

fn nothing(told: Told) -> Result<(), Violation> {
    assert_eq!(told, Told::Credits(0));
    Ok(())
}

/// One turn with all messages in one place: takes buffers, delivers, returns what came out.
fn turn(
    inbox: &mut Inbox,
    pools: &FramePools,
    slots: &[Vec<u8>],
    advertised: &mut u32,
) -> Vec<Vec<u8>> {
    let taken = inbox.take_buffers(
        pools,
        |slot| &slots[usize::from(slot)],
        |frame| {
            frame.payload_mut()[..3].copy_from_slice(b"big");
            *advertised += 1;
            Ok::<(), ()>(())
        },
    );
    taken.unwrap();
    let mut out = Vec::with_capacity(64);
    inbox.deliver(LANE, &mut 64, &mut out);
    out.into_iter()
        .map(|event| match event {
            LaneEvent::Frame { frame, .. } => frame.bytes().to_vec(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn short_frames_wait_for_the_long_one_before_them() {
    let (mut inbox, pools, mut advertised) = (Inbox::new(), pools(8, 8), 0);
    let slots = [message(|message| {
        assert!(message.frame(b"a") && message.long(5000) && message.frame(b"b"));
    })];
    inbox.message(0, &slots[0], nothing).unwrap();
    assert_eq!(turn(&mut inbox, &pools, &slots, &mut advertised), [b"a"]);
    assert_eq!(advertised, 1);
    // `b` was copied out already, so that its slot is free.
    assert_eq!(inbox.take_free().collect::<Vec<_>>(), [0]);
    inbox.written(1, 5000, 0).unwrap();
    let rest = turn(&mut inbox, &pools, &slots, &mut advertised);
    assert_eq!(
        (rest[0].len(), &rest[0][..3], &rest[1][..]),
        (5000, &b"big"[..], &b"b"[..])
    );
    assert!(inbox.is_empty());
    assert_eq!(inbox.take_free().collect::<Vec<_>>(), [1]);
    assert_eq!(inbox.take_owed(), 1, "a write takes no credit");
}

#[test]
fn a_starved_inbox_keeps_slots_and_takes_buffers_in_order() {
    let (mut inbox, pools, mut advertised) = (Inbox::new(), pools(1, 1), 0);
    let slots = [message(|message| {
        assert!(
            message.frame(b"a") && message.frame(b"b") && message.frame(b"c") && message.long(9000)
        );
    })];
    inbox.message(0, &slots[0], nothing).unwrap();
    let held = pools.take(5000).unwrap();
    let first = turn(&mut inbox, &pools, &slots, &mut advertised);
    assert_eq!(first, [b"a"]);
    assert_eq!(inbox.take_free().count(), 0, "b and c lie in the slot");
    assert_eq!(turn(&mut inbox, &pools, &slots, &mut advertised), [b"b"]);
    assert_eq!(turn(&mut inbox, &pools, &slots, &mut advertised), [b"c"]);
    assert_eq!((inbox.take_free().count(), advertised), (1, 0));
    drop(held);
    assert!(turn(&mut inbox, &pools, &slots, &mut advertised).is_empty());
    assert_eq!(advertised, 1);
}

#[test]
fn whoever_breaks_the_rules_is_found_out() {
    let rules = Err(broken_rules());
    let take = |inbox: &mut Inbox, fill: &dyn Fn(&mut Writer<'_>)| {
        inbox.message(0, &message(fill), nothing).map(|_| ())
    };
    for announced_bytes in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let wrong = take(&mut Inbox::new(), &|message| {
            assert!(message.long(announced_bytes))
        });
        assert_eq!(
            wrong,
            Err(Violation(LaneClosed::BadLength { announced_bytes }))
        );
    }
    assert_eq!(
        take(&mut Inbox::new(), &|message| assert!(message.long(2048))),
        rules
    );
    let mut inbox = Inbox::new();
    let more = WRITES_MAX + 1;
    assert_eq!(
        take(&mut inbox, &|message| for _ in 0..more {
            assert!(message.long(9000))
        }),
        rules,
        "more announcements than allowed"
    );
    let mut inbox = Inbox::new();
    take(&mut inbox, &|message| assert!(message.fin())).unwrap();
    assert_eq!(
        take(&mut inbox, &|message| assert!(message.frame(b"late"))),
        rules
    );
    let unfinished: &dyn Fn(&mut Writer<'_>) =
        &|message| assert!(message.long(9000) && message.fin());
    assert_eq!(take(&mut Inbox::new(), unfinished), rules);
    assert_eq!(
        Inbox::new().written(0, 100, 0),
        rules,
        "nothing was advertised"
    );
    let mut inbox = Inbox::new();
    let result =
        (0..=CREDITS).try_for_each(|_| take(&mut inbox, &|message| assert!(message.frame(b"x"))));
    assert_eq!(result, rules, "more messages than credits");
    for (bytes, number) in [(8999, 0), (9001, 0), (9000, 1)] {
        let (mut inbox, pools, mut advertised) = (Inbox::new(), pools(0, 1), 0);
        take(&mut inbox, &|message| assert!(message.long(9000))).unwrap();
        turn(&mut inbox, &pools, &[], &mut advertised);
        assert_eq!(
            inbox.written(0, bytes, number),
            rules,
            "{bytes} bytes as {number}"
        );
    }
}
