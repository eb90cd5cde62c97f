use super::*;
use crate::frame::{FramePools, FramePoolsConfig};
use crate::rdma::message::MESSAGE_BYTES;
use dwcp_hugepages::arena::BackingPolicy;

fn pools() -> FramePools {
    let backing = BackingPolicy::Ordinary;
    FramePools::new(&FramePoolsConfig {
        small: 64,
        medium: 32,
        large: 0,
        backing,
    })
    .unwrap()
}

fn outbox() -> Outbox {
    Outbox::new(QueueLimits {
        frames: 40,
        bytes: 1 << 20,
    })
}

/// Fills one message and posts it as request `seq`. Returns whether it took a credit.
fn send(outbox: &mut Outbox, seq: u64) -> bool {
    let mut slot = [0; MESSAGE_BYTES];
    let mut message = Writer::new(&mut slot);
    outbox.fill(&mut message);
    let fin = outbox.wants_fin() && message.fin();
    let (_, counted) = message.finish(0);
    outbox.posted_message(seq, counted, fin, false);
    counted
}

const HERE: Buffer = Buffer { addr: 1, rkey: 2 };

#[test]
fn no_frame_leaves_without_a_credit() {
    let (mut outbox, pools) = (outbox(), pools());
    for seq in 0..u64::from(CREDITS) {
        outbox.submit(pools.copy(&[1; 100]).unwrap()).unwrap();
        assert!(send(&mut outbox, seq));
    }
    outbox.submit(pools.copy(&[1; 100]).unwrap()).unwrap();
    assert!(!send(&mut outbox, 50));
    assert_eq!(outbox.backlog_bytes(), 104);
    assert_eq!(outbox.credit(CREDITS + 1), Err(TooMuch));
    outbox.credit(1).unwrap();
    assert!(send(&mut outbox, 51));
    assert_eq!(outbox.backlog_bytes(), 0);
    assert_eq!(outbox.sent_bytes(), 25 * 104);
    outbox.completed(11);
    assert_eq!(outbox.acked_bytes(), 12 * 104);
}

#[test]
fn long_frames_are_written_in_order_and_held_until_done() {
    let (mut outbox, pools) = (outbox(), pools());
    for byte in 0..20 {
        outbox.submit(pools.copy(&[byte; 9000]).unwrap()).unwrap();
    }
    let free = pools.available();
    assert_eq!(outbox.buffer(HERE), Err(TooMuch), "nothing was announced");
    assert!(send(&mut outbox, 0));
    for _ in 0..WRITES_MAX {
        outbox.buffer(HERE).unwrap();
    }
    assert_eq!(outbox.buffer(HERE), Err(TooMuch));
    for number in 0..WRITES_MAX as u32 {
        let write = outbox.next_write().unwrap();
        assert_eq!(
            (write.number, write.frame.bytes()[0]),
            (number, number as u8)
        );
        outbox.posted_write(1 + u64::from(number), write.frame);
    }
    assert!(outbox.next_write().is_none());
    assert!(!send(&mut outbox, 30), "as many are under way as may be");
    assert_eq!(pools.available(), free, "the device reads them");
    assert_eq!(outbox.acked_bytes(), 0);
    outbox.completed(4);
    assert_eq!(outbox.acked_bytes(), 4 * 9008, "sent were sixteen");
    assert_eq!(pools.available().medium, free.medium + 4);
    assert!(send(&mut outbox, 31), "room for the rest");
}

#[test]
fn the_device_gets_enough_to_do_and_no_more() {
    let limits = QueueLimits {
        frames: 16,
        bytes: 4 << 20,
    };
    let (mut outbox, pools) = (Outbox::new(limits), pools());
    while outbox.submit(pools.copy(&[1; 60_000]).unwrap()).is_ok() {}
    assert!(send(&mut outbox, 0));
    for _ in 0..16 {
        outbox.buffer(HERE).unwrap();
    }
    let mut seq = 1;
    while let Some(write) = outbox.next_write() {
        outbox.posted_write(seq, write.frame);
        seq += 1;
    }
    assert_eq!(outbox.writing.len(), WRITING_BYTES.div_ceil(60_008));
    outbox.completed(1);
    assert!(outbox.next_write().is_some());
}

#[test]
fn bytes_under_way_are_bounded_and_one_frame_always_goes() {
    let limits = QueueLimits {
        frames: 8,
        bytes: 20_000,
    };
    let (mut outbox, pools) = (Outbox::new(limits), pools());
    for bytes in [60_000, 9000, 9000, 9000] {
        // The first is longer than all that may wait; alone it may.
        let _ = outbox.submit(pools.copy(&vec![1; bytes]).unwrap());
        send(&mut outbox, 0);
        let _ = outbox.buffer(HERE);
        if let Some(write) = outbox.next_write() {
            outbox.posted_write(1, write.frame);
        }
    }
    assert_eq!(outbox.writing.len(), 1, "no other one beside it");
    assert_eq!(outbox.backlog_bytes(), 2 * 9008, "and no third one waits");
    outbox.completed(1);
    assert!(send(&mut outbox, 2), "both of the others go");
    assert_eq!(outbox.announced.len(), 2);
}

#[test]
fn the_fin_follows_the_last_write() {
    let (mut outbox, pools) = (outbox(), pools());
    outbox.submit(pools.copy(&[1; 9000]).unwrap()).unwrap();
    outbox.close();
    let late = outbox.submit(pools.copy(b"late").unwrap()).unwrap_err();
    assert_eq!(late.1, RefusedReason::Unknown);
    send(&mut outbox, 0);
    assert_eq!(outbox.fin(), Said::No);
    outbox.buffer(HERE).unwrap();
    let write = outbox.next_write().unwrap();
    outbox.posted_write(1, write.frame);
    send(&mut outbox, 2);
    assert_eq!(outbox.fin(), Said::Posted(2));
    outbox.completed(1);
    assert_eq!(outbox.fin(), Said::Posted(2));
    outbox.completed(2);
    assert_eq!(outbox.fin(), Said::Arrived);
}

#[test]
fn room_is_told_of_once_it_is_there() {
    let (mut outbox, pools) = (outbox(), pools());
    while outbox.submit(pools.copy(&[1; 2000]).unwrap()).is_ok() {}
    assert!(!outbox.writable());
    for seq in 0..20 {
        send(&mut outbox, seq);
    }
    assert!(outbox.writable());
    outbox.told_writable();
    assert!(!outbox.writable());
}
