use std::sync::Arc;

use super::*;
use crate::transport::wire::control::Sack;

type Frame = Arc<[u8]>;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn at(ms: u64) -> Nanos {
    Nanos(ms * MS)
}

fn outbound(lanes: u16) -> Outbound<Frame> {
    let config = OutboundConfig::new(8 << 20, 8, 8);
    let mut outbound = Outbound::new(config, at(0));
    outbound.open_channel(ChannelId(0)).unwrap();
    for lane in 0..lanes {
        outbound.lane_up(LaneIx(lane)).unwrap();
    }
    outbound
}

fn frame(seq: u64) -> Frame {
    Arc::from(&seq.to_le_bytes()[..])
}

fn push(outbound: &mut Outbound<Frame>, version: Version, now: Nanos) -> BatchSeq {
    let frame = frame(outbound.next_seq().0);
    outbound.on_read(ChannelId(0), 10).unwrap();
    let meta = BatchMeta {
        channel: ChannelId(0),
        raw_len: 10,
        version,
        read_at: now,
        express: false,
    };
    outbound.push(meta, frame, now).unwrap()
}

/// Sends all that can go; (lane, seq) of each.
fn send_all(outbound: &mut Outbound<Frame>, now: Nanos) -> Vec<(u16, u64)> {
    let mut sent = Vec::new();
    while let SendStep::Send(lane, frame) = outbound.poll_send(now, true, |_| 0) {
        sent.push((lane.0, u64::from_le_bytes(frame[..].try_into().unwrap())));
    }
    sent
}

fn ack(next_seq: u64, sacked: &[u64]) -> Ack {
    let mut sack = Sack::default();
    for seq in sacked {
        sack.set((seq - next_seq) as usize);
    }
    Ack {
        next_seq: BatchSeq(next_seq),
        sack,
        total_delivered_bytes: 0,
        echo: None,
        echo_held_ns: 0,
        delivered: arrayvec::ArrayVec::new(),
    }
}

#[test]
fn what_a_lost_lane_carried_goes_out_again_oldest_first_and_nothing_else() {
    let mut outbound = outbound(2);
    for _ in 0..6 {
        push(&mut outbound, Version::V1, at(1));
    }
    let sent = send_all(&mut outbound, at(1));
    assert_eq!(sent, [(1, 0), (0, 1), (1, 2), (0, 3), (1, 4), (0, 5)]);
    let mut told = Vec::new();
    outbound
        .on_ack(&ack(1, &[2]), at(2), |seq| told.push(seq.0))
        .unwrap();
    outbound
        .on_ack(&ack(1, &[2]), at(3), |seq| told.push(seq.0))
        .unwrap();
    assert_eq!(told, [0, 2]);
    push(&mut outbound, Version::V1, at(3));
    outbound.lane_down(LaneIx(1));
    assert_eq!(
        send_all(&mut outbound, at(4)),
        [(0, 4), (0, 6)],
        "4 was on lane 1"
    );
    outbound.lane_down(LaneIx(0));
    assert_eq!(send_all(&mut outbound, at(5)), []);
    outbound.lane_up(LaneIx(5)).unwrap();
    assert_eq!(
        send_all(&mut outbound, at(6)),
        [(5, 1), (5, 3), (5, 4), (5, 5), (5, 6)]
    );
    assert_eq!(outbound.resent_batches(), 1 + 5);
    outbound
        .on_ack(&ack(7, &[]), at(7), |seq| told.push(seq.0))
        .unwrap();
    assert_eq!(told, [0, 2, 1, 3, 4, 5, 6]);
    assert_eq!(outbound.in_flight(), 0);
}

#[test]
fn no_v3_leaves_while_it_is_not_allowed_not_even_again() {
    let mut outbound = outbound(1);
    push(&mut outbound, Version::V3, at(0));
    push(&mut outbound, Version::V3, at(0));
    let SendStep::Send(_, _) = outbound.poll_send(at(0), true, |_| 0) else {
        panic!()
    };
    let needs = |seq| SendStep::NeedsTranscode(BatchSeq(seq));
    assert_eq!(outbound.poll_send(at(1), false, |_| 0), needs(1));
    assert!(
        outbound
            .replace(BatchSeq(0), Version::V1, frame(100))
            .is_err(),
        "it has left"
    );
    outbound
        .replace(BatchSeq(1), Version::V1, frame(101))
        .unwrap();
    let SendStep::Send(_, sent) = outbound.poll_send(at(1), false, |_| 0) else {
        panic!()
    };
    assert_eq!(sent, frame(101));
    outbound.lane_down(LaneIx(0));
    outbound.lane_up(LaneIx(0)).unwrap();
    assert_eq!(outbound.poll_send(at(1), false, |_| 0), needs(0));
    outbound
        .replace(BatchSeq(0), Version::V1, frame(100))
        .unwrap();
    assert_eq!(send_all(&mut outbound, at(2)), [(0, 100), (0, 101)]);
    assert!(
        outbound
            .replace(BatchSeq(2), Version::V1, frame(0))
            .is_err()
    );
}

#[test]
fn at_most_256_in_flight() {
    let mut outbound = outbound(1);
    for _ in 0..256 {
        push(&mut outbound, Version::V1, at(0));
    }
    assert!(!outbound.can_push());
    let meta = BatchMeta {
        channel: ChannelId(0),
        raw_len: 0,
        version: Version::V1,
        read_at: at(0),
        express: false,
    };
    assert_eq!(
        outbound.push(meta, frame(0), at(0)),
        Err(TransportError::InFlightFull)
    );
    assert_eq!(send_all(&mut outbound, at(0)).len(), 256);
    outbound.on_ack(&ack(1, &[255]), at(1), |_| ()).unwrap();
    push(&mut outbound, Version::V1, at(1));
    assert!(!outbound.can_push());
    outbound.on_ack(&ack(257, &[]), at(2), |_| ()).unwrap();
    assert_eq!(outbound.in_flight(), 0);
}

#[test]
fn impossible_acks_end_the_session() {
    let mut outbound = outbound(1);
    for _ in 0..3 {
        push(&mut outbound, Version::V1, at(0));
    }
    send_all(&mut outbound, at(0));
    outbound.on_ack(&ack(2, &[]), at(1), |_| ()).unwrap();
    let too_much = Ack {
        total_delivered_bytes: 31,
        ..ack(2, &[])
    };
    let mut one_too_much = ack(2, &[]);
    one_too_much.delivered.push((ChannelId(0), 31));
    for wrong in [
        ack(1, &[]),
        ack(4, &[]),
        ack(2, &[3]),
        too_much,
        one_too_much,
    ] {
        let mut told = 0;
        let error = outbound.on_ack(&wrong, at(2), |_| told += 1);
        assert!(
            matches!(error, Err(TransportError::BadAck { .. })),
            "{wrong:?}"
        );
        assert_eq!(told, 0);
    }
}

#[test]
fn deliveries_give_credit_back() {
    let mut outbound = outbound(1);
    let before = outbound.may_read(ChannelId(0));
    push(&mut outbound, Version::V1, at(0));
    assert_eq!(
        (outbound.may_read(ChannelId(0)), outbound.held_bytes()),
        (before - 10, 10)
    );
    let mut done = ack(0, &[0]);
    done.delivered.push((ChannelId(0), 10));
    done.total_delivered_bytes = 10;
    send_all(&mut outbound, at(0));
    outbound.on_ack(&done, at(1), |_| ()).unwrap();
    assert_eq!(
        (outbound.may_read(ChannelId(0)), outbound.held_bytes()),
        (before, 0)
    );
}

#[test]
fn a_lane_that_stalls_while_others_move_is_suspected_once_and_relieved() {
    let mut outbound = outbound(3);
    push(&mut outbound, Version::V1, at(0));
    let stalled = send_all(&mut outbound, at(0))[0].0;
    let mut ms = 0;
    let mut found = None;
    while found.is_none() && ms < 10_000 {
        ms += 10;
        let seq = push(&mut outbound, Version::V1, at(ms)).0;
        // Only lanes that move are ready to take more.
        let busy = |lane: LaneIx| if lane.0 == stalled { usize::MAX } else { 0 };
        let step = outbound.poll_send(at(ms), true, busy);
        assert!(matches!(step, SendStep::Send(..)));
        outbound
            .on_ack(&ack(0, &(1..=seq).collect::<Vec<_>>()), at(ms + 5), |_| ())
            .unwrap();
        found = outbound.poll_health(at(ms + 5));
    }
    assert_eq!(found, Some(Verdict::Suspect(LaneIx(stalled))));
    assert!(ms > 1000, "{ms}");
    assert_eq!(outbound.poll_health(at(ms + 6)), None);
    let resent = send_all(&mut outbound, at(ms + 7));
    assert!(
        matches!(resent[..], [(lane, 0)] if lane != stalled),
        "{resent:?}"
    );
}

#[test]
fn a_pong_over_another_lane_shows_a_stall_when_nothing_else_is_sent() {
    let mut outbound = outbound(2);
    push(&mut outbound, Version::V1, at(0));
    let stalled = send_all(&mut outbound, at(0))[0].0;
    for ms in (0..2900).step_by(100) {
        if let Some(sent) = outbound.ping_due(at(ms)) {
            outbound.on_pong(sent, at(ms + 1));
        }
        assert_eq!(outbound.poll_health(at(ms + 2)), None);
    }
    let sent = outbound.ping_due(at(3300)).unwrap();
    outbound.on_pong(sent, at(3301));
    assert_eq!(
        outbound.poll_health(at(3302)),
        Some(Verdict::Suspect(LaneIx(stalled)))
    );
}

#[test]
fn pongs_never_asked_for_prove_nothing() {
    let mut outbound = outbound(2);
    push(&mut outbound, Version::V1, at(0));
    send_all(&mut outbound, at(0));
    let sent = outbound.ping_due(at(1)).unwrap();
    outbound.on_pong(Nanos(u64::MAX), at(2));
    outbound.on_pong(at(5000), at(2));
    assert_eq!(
        (outbound.rtt_us(), outbound.poll_health(at(3))),
        (None, None)
    );
    outbound.on_pong(sent, at(21));
    assert_eq!(outbound.rtt_us(), Some(20_000));
}

#[test]
fn silence_asks_for_a_redial_again_and_again_and_then_ends_the_session() {
    let mut outbound = outbound(1);
    push(&mut outbound, Version::V1, at(0));
    send_all(&mut outbound, at(0));
    let mut redials = Vec::new();
    let mut expired = None;
    for ms in (0..40_000).step_by(100) {
        match outbound.poll_health(at(ms)) {
            Some(Verdict::Redial) => redials.push(ms),
            Some(Verdict::Expired) => expired = Some(ms),
            Some(Verdict::Suspect(_)) => panic!("there is no other lane to compare with"),
            None => {}
        }
    }
    assert!(redials.len() >= 12, "{redials:?}");
    assert_eq!(expired, Some(30_100));
    assert_eq!(outbound.poll_send(at(40_000), true, |_| 0), SendStep::Idle);
}

#[test]
fn what_is_heard_keeps_the_session_alive() {
    let mut outbound = outbound(1);
    for second in 0..100 {
        assert_eq!(outbound.poll_health(Nanos(second * SECOND)), None);
        if let Some(sent) = outbound.ping_due(Nanos(second * SECOND)) {
            outbound.on_pong(sent, Nanos(second * SECOND + MS));
        }
    }
}

#[test]
fn a_reserve_is_read_once_and_never_beyond_the_limit() {
    let channel = ChannelId(0);
    let mut outbound = outbound(1);
    let window = outbound.may_read(channel);
    outbound.on_read(channel, window).unwrap();
    assert_eq!(outbound.may_read(channel), 0);
    outbound.open_reserve(1000);
    assert_eq!(outbound.may_read(channel), 1000);
    outbound.on_read(channel, 600).unwrap();
    assert_eq!(outbound.may_read(channel), 0, "once");
    outbound.open_reserve(u64::MAX);
    let limit = outbound.config.window_limit_bytes + crate::transport::CHANNEL_GUARANTEE_BYTES;
    let rest = limit - outbound.held_bytes();
    assert_eq!(outbound.may_read(channel) as u64, rest);
    outbound
        .on_read(channel, outbound.may_read(channel))
        .unwrap();
    assert_eq!(outbound.held_bytes(), limit);
    outbound.open_reserve(1000);
    assert_eq!(outbound.may_read(channel), 0, "the limit holds");
}

#[test]
fn express_batches_go_first_over_the_lane_kept_for_them_whatever_lies_in_it() {
    let mut outbound = outbound(3);
    outbound.keep_express_lane();
    for _ in 0..4 {
        push(&mut outbound, Version::V3, at(0));
    }
    outbound.on_read(ChannelId(0), 10).unwrap();
    let meta = BatchMeta {
        channel: ChannelId(0),
        raw_len: 10,
        version: Version::V3,
        read_at: at(0),
        express: true,
    };
    outbound.push(meta, frame(4), at(0)).unwrap();
    let sent = send_all(&mut outbound, at(0));
    assert_eq!(sent[0], (2, 4), "{sent:?}");
    assert!(sent[1..].iter().all(|(lane, _)| *lane != 2), "{sent:?}");
    // Lost with its lane it goes first again; the lanes left are all there is.
    outbound.lane_down(LaneIx(2));
    let full = |outbound: &mut Outbound<Frame>| outbound.poll_send(at(1), true, |_| usize::MAX - 1);
    assert!(matches!(
        full(&mut outbound),
        SendStep::Send(LaneIx(0 | 1), _)
    ));
    assert_eq!(full(&mut outbound), SendStep::Idle);
    outbound.take_back(BatchSeq(4));
    assert!(matches!(full(&mut outbound), SendStep::Send(..)));
    // A copy that comes after all ends it.
    outbound.lane_down(LaneIx(0));
    outbound.lane_down(LaneIx(1));
    outbound.on_ack(&ack(0, &[4]), at(2), |_| ()).unwrap();
    outbound.lane_up(LaneIx(0)).unwrap();
    let sent = send_all(&mut outbound, at(2));
    assert!(
        sent.iter().all(|(_, seq)| *seq != 4) && sent.len() == 4,
        "{sent:?}"
    );
}

#[test]
fn others_leave_room_for_express_batches() {
    let mut outbound = outbound(1);
    while outbound.can_push_beside_express() {
        push(&mut outbound, Version::V1, at(0));
    }
    assert!(outbound.can_push());
    assert_eq!(outbound.in_flight(), 224);
}

/// A v3 batch whose frame is still being made.
fn reserve(outbound: &mut Outbound<Frame>) -> BatchSeq {
    outbound.on_read(ChannelId(0), 10).unwrap();
    let meta = BatchMeta {
        channel: ChannelId(0),
        raw_len: 10,
        version: Version::V3,
        read_at: at(1),
        express: false,
    };
    outbound.reserve(meta, at(1)).unwrap()
}

#[test]
fn a_batch_whose_frame_is_being_made_holds_nothing_up_and_goes_out_when_it_is_there() {
    let mut outbound = outbound(1);
    let first = reserve(&mut outbound);
    push(&mut outbound, Version::V1, at(1));
    assert_eq!(send_all(&mut outbound, at(1)), [(0, 1)]);
    assert_eq!((outbound.reserved(), outbound.in_flight()), (1, 2));
    // A lane that is lost meanwhile takes nothing of it along.
    outbound.lane_down(LaneIx(0));
    outbound.lane_up(LaneIx(0)).unwrap();
    assert_eq!(send_all(&mut outbound, at(2)), [(0, 1)]);
    outbound.on_ack(&ack(0, &[1]), at(3), |_| {}).unwrap();
    outbound.fill(first, frame(first.0)).unwrap();
    // What was made in v3 is not sent when v3 is no longer allowed.
    assert!(matches!(
        outbound.poll_send(at(3), false, |_| 0),
        SendStep::NeedsTranscode(seq) if seq == first
    ));
    assert_eq!(send_all(&mut outbound, at(3)), [(0, 0)]);
    outbound.on_ack(&ack(2, &[]), at(4), |_| {}).unwrap();
    assert_eq!((outbound.reserved(), outbound.in_flight()), (0, 0));
}

#[test]
fn a_peer_that_confirms_a_batch_before_it_was_made_is_found_out() {
    let mut outbound = outbound(1);
    let seq = reserve(&mut outbound);
    let mut told = 0;
    outbound.on_ack(&ack(1, &[]), at(2), |_| told += 1).unwrap();
    assert_eq!(told, 0);
    assert!(matches!(
        outbound.fill(seq, frame(seq.0)),
        Err(TransportError::BadAck { .. })
    ));
}

#[test]
fn what_the_peer_has_and_cannot_use_goes_out_again_in_another_encoding() {
    let mut outbound = outbound(1);
    for _ in 0..3 {
        push(&mut outbound, Version::V3, at(1));
    }
    assert!(
        outbound.send_again(BatchSeq(2), Version::V1, frame(22)),
        "not sent yet"
    );
    assert_eq!(send_all(&mut outbound, at(1)), [(0, 0), (0, 1), (0, 22)]);
    // One that was confirmed out of turn, and one that was not.
    outbound.on_ack(&ack(0, &[1]), at(2), |_| {}).unwrap();
    assert!(outbound.send_again(BatchSeq(1), Version::V1, frame(11)));
    assert!(outbound.send_again(BatchSeq(0), Version::V1, frame(10)));
    assert_eq!(send_all(&mut outbound, at(3)), [(0, 10), (0, 11)]);
    let mut told = Vec::new();
    outbound
        .on_ack(&ack(3, &[]), at(4), |seq| told.push(seq.0))
        .unwrap();
    assert_eq!((told, outbound.in_flight()), (vec![0, 1, 2], 0));
    // None that is past or yet to come.
    for seq in [0, 2, 3, 1 << 60] {
        assert!(
            !outbound.send_again(BatchSeq(seq), Version::V1, frame(9)),
            "{seq}"
        );
    }
    assert!(send_all(&mut outbound, at(5)).is_empty());
}

/// A far path of 100 ms whose rate is known, with nothing on it.
fn far_and_known(outbound: &mut Outbound<Frame>) -> u64 {
    outbound.expect_delay(100 * MS);
    for round in 0..30 {
        push(outbound, Version::V1, at(round * 100));
        send_all(outbound, at(round * 100));
        let seq = outbound.next_seq().0;
        outbound
            .on_ack(&ack(seq, &[]), at(round * 100 + 100), |_| ())
            .unwrap();
    }
    outbound.next_seq().0
}

#[test]
fn a_late_batch_gets_one_copy_over_another_lane_while_there_is_room() {
    let mut outbound = outbound(4);
    let first = far_and_known(&mut outbound);
    push(&mut outbound, Version::V1, at(5_000));
    let sent = send_all(&mut outbound, at(5_000));
    assert_eq!(sent.len(), 1);
    let lane = sent[0].0;
    assert_eq!(send_all(&mut outbound, at(5_170)), [], "not late yet");
    let copies = send_all(&mut outbound, at(5_190));
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].1, first);
    assert_ne!(copies[0].0, lane);
    assert_eq!(send_all(&mut outbound, at(5_600)), [], "once");
    // The copy's lane goes: another may be made, for the first copy is where it was.
    outbound.lane_down(LaneIx(copies[0].0));
    assert_eq!(send_all(&mut outbound, at(5_700)).len(), 1);
    // So does the lane of the first: it is sent again as ever, and nothing is left on any lane's account.
    outbound.lane_down(LaneIx(lane));
    assert_eq!(send_all(&mut outbound, at(5_800)).len(), 1);
    outbound
        .on_ack(&ack(first + 1, &[]), at(5_900), |_| ())
        .unwrap();
    for lane in 0..4 {
        assert_eq!(outbound.lanes.on_the_way_bytes(LaneIx(lane)), 0);
    }
}

#[test]
fn a_copy_that_its_lane_refuses_leaves_the_first_where_it_was() {
    let mut outbound = outbound(2);
    let first = far_and_known(&mut outbound);
    push(&mut outbound, Version::V3, at(5_000));
    let SendStep::Send(lane, _) = outbound.poll_send(at(5_000), true, |_| 0) else {
        panic!()
    };
    let late = at(5_400);
    assert!(matches!(
        outbound.poll_send(late, false, |_| 0),
        SendStep::Idle
    ));
    let SendStep::Send(other, _) = outbound.poll_send(at(5_410), true, |_| 0) else {
        panic!("no copy")
    };
    assert_ne!(other, lane);
    outbound.take_back(BatchSeq(first));
    assert_eq!(outbound.lanes.on_the_way_bytes(other), 0);
    assert_eq!(outbound.lanes.on_the_way_bytes(lane), 8);
    outbound.lane_down(lane);
    assert_eq!(send_all(&mut outbound, at(5_500)), [(other.0, first)]);
}

#[test]
fn nothing_is_copied_on_a_near_path() {
    let mut outbound = outbound(2);
    push(&mut outbound, Version::V1, at(0));
    assert_eq!(send_all(&mut outbound, at(0)).len(), 1);
    assert_eq!(send_all(&mut outbound, at(900)), []);
}
