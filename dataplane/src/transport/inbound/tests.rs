use std::sync::Arc;

use super::*;
use crate::transport::wire::WireError;
use crate::transport::wire::batch::{
    BATCH_HEADER_BYTES, ChannelKind, DataHeader, MAX_MARKER_BYTES, seal_data, seal_marker,
};
use crate::transport::wire::keys::{Direction, Psk, SessionKey};
use crate::transport::{NodeId, SessionEpoch, SessionId};

type Frame = Arc<[u8]>;

fn keys() -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    SessionKey::derive(&Psk([7; 32]), SessionId([1; 16]), a, b, SessionEpoch(0))
        .frame_keys(Direction::ToAcceptor)
}

fn inbound() -> Inbound<Frame> {
    let config = InboundConfig {
        keys: keys(),
        highest: Version::V3,
        window_limit_bytes: 1 << 20,
    };
    Inbound::new(config)
}

fn marker(seq: u64, channel: u16, marker: &Marker<'_>) -> Frame {
    let mut out = [0; MAX_MARKER_BYTES];
    let n = seal_marker(&keys(), BatchSeq(seq), ChannelId(channel), marker, &mut out).unwrap();
    Arc::from(&out[..n])
}

fn open(seq: u64, channel: u16) -> Frame {
    marker(seq, channel, &Marker::Open(ChannelKind::Main))
}

fn data(seq: u64, channel: u16, offset: u64, raw_len: u32) -> Frame {
    let header = DataHeader {
        version: Version::V1,
        method: 0,
        flags: 0,
        channel: ChannelId(channel),
        seq: BatchSeq(seq),
        offset,
        raw_len,
        digest: [0; 16],
    };
    let mut frame = vec![0; BATCH_HEADER_BYTES + 8];
    seal_data(&keys(), &header, &mut frame).unwrap();
    frame.into()
}

fn drain(inbound: &mut Inbound<Frame>) -> Vec<u64> {
    let mut seqs = Vec::new();
    while let Some(ready) = inbound.pop_ready().unwrap() {
        seqs.push(ready.header.seq.0);
    }
    seqs
}

#[test]
fn any_order_in_one_order_out() {
    let mut inbound = inbound();
    inbound.on_batch(data(2, 0, 10, 5)).unwrap();
    inbound.on_batch(data(1, 0, 0, 10)).unwrap();
    assert!(drain(&mut inbound).is_empty());
    let gap = inbound.gap().unwrap();
    assert_eq!(
        (gap.missing, gap.waiting_batches, gap.waiting_raw_bytes),
        (BatchSeq(0), 2, 15)
    );
    let ack = inbound.ack_due(Nanos(1)).unwrap();
    assert_eq!(ack.next_seq, BatchSeq(0));
    assert!(ack.sack.get(1) && ack.sack.get(2) && !ack.sack.get(3));
    inbound.on_batch(open(0, 0)).unwrap();
    assert_eq!(drain(&mut inbound), [0, 1, 2]);
    assert_eq!(inbound.gap(), None);
    assert_eq!(
        inbound.on_batch(data(1, 0, 0, 10)).unwrap(),
        Accepted::Duplicate(BatchSeq(1))
    );
    assert_eq!((inbound.duplicates(), inbound.held_bytes()), (1, 15));
    let ack = inbound.ack_due(Nanos(2)).unwrap();
    assert_eq!((ack.next_seq, ack.sack), (BatchSeq(3), Sack::default()));
    assert_eq!(inbound.ack_due(Nanos(3)), None);
}

#[test]
fn acks_carry_deliveries_and_the_ping() {
    let mut inbound = inbound();
    inbound.on_batch(open(0, 2)).unwrap();
    inbound.on_batch(data(1, 2, 0, 100)).unwrap();
    drain(&mut inbound);
    inbound.note_delivered(ChannelId(2), 60).unwrap();
    inbound.note_ping(Nanos(40), Nanos(50));
    let ack = inbound.ack_due(Nanos(53)).unwrap();
    assert_eq!(ack.delivered.as_slice(), [(ChannelId(2), 60)]);
    assert_eq!(
        (ack.total_delivered_bytes, ack.echo, ack.echo_held_ns),
        (60, Some(Nanos(40)), 3)
    );
    assert!(inbound.note_delivered(ChannelId(2), 41).is_err());
    assert!(inbound.note_delivered(ChannelId(3), 1).is_err());
}

#[test]
fn more_channels_than_an_ack_names_take_turns() {
    let mut inbound = inbound();
    for channel in 0..200 {
        inbound.open_channel(ChannelId(channel)).unwrap();
        inbound
            .on_batch(data(u64::from(channel), channel, 0, 1))
            .unwrap();
    }
    drain(&mut inbound);
    for channel in 0..200 {
        inbound.note_delivered(ChannelId(channel), 1).unwrap();
    }
    let mut named = [0; 200];
    while let Some(ack) = inbound.ack_due(Nanos(1)) {
        for (channel, bytes) in ack.delivered {
            named[usize::from(channel.0)] += bytes;
        }
    }
    assert!(named.iter().all(|&bytes| bytes >= 1), "{named:?}");
}

#[test]
fn a_peer_beyond_its_limits_is_cut_off() {
    let mut inbound = inbound();
    assert!(matches!(
        inbound.on_batch(open(256, 0)),
        Err(TransportError::BeyondWindow { .. })
    ));
    inbound.on_batch(open(255, 0)).unwrap();
    let mut taken: u64 = 0;
    let error = (0..255).find_map(|seq| {
        let raw_len = 1 << 20;
        match inbound.on_batch(data(seq, 0, taken, raw_len)) {
            Ok(_) => {
                taken += u64::from(raw_len);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(
        matches!(error, Some(TransportError::WindowExceeded { .. })),
        "{error:?}"
    );
    assert!(taken <= inbound.limit_bytes());
    // A repeat adds nothing, so it is none even when all room is taken.
    let repeat = inbound.on_batch(data(0, 0, 0, 1 << 20)).unwrap();
    assert_eq!(repeat, Accepted::Duplicate(BatchSeq(0)));
}

#[test]
fn batches_that_do_not_fit_their_channel_end_the_session() {
    type Check = fn(&TransportError) -> bool;
    let half = Marker::HalfClose {
        total_bytes: 10,
        digest: [0; 16],
    };
    let cases: [(&[Frame], Check); 6] = [
        (&[data(0, 0, 0, 1)], |e| {
            matches!(e, TransportError::ChannelNotOpen { .. })
        }),
        (&[open(0, 0), open(1, 0)], |e| {
            matches!(e, TransportError::ChannelOpenTwice { .. })
        }),
        (&[open(0, 0), data(1, 0, 1, 1)], |e| {
            matches!(e, TransportError::OffsetMismatch { .. })
        }),
        (&[open(0, 0), data(1, 0, 0, 9), marker(2, 0, &half)], |e| {
            matches!(e, TransportError::OffsetMismatch { .. })
        }),
        (
            &[
                open(0, 0),
                data(1, 0, 0, 10),
                marker(2, 0, &half),
                data(3, 0, 10, 1),
            ],
            |e| matches!(e, TransportError::ChannelNotOpen { .. }),
        ),
        (
            &[open(0, 0), open(1, 1), data(2, 1, 0, 1), data(3, 0, 1, 1)],
            |e| matches!(e, TransportError::OffsetMismatch { .. }),
        ),
    ];
    for (frames, is_expected) in cases {
        let mut inbound = inbound();
        for frame in frames {
            inbound.on_batch(frame.clone()).unwrap();
        }
        let error = loop {
            match inbound.pop_ready() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("nothing was noticed"),
                Err(error) => break error,
            }
        };
        assert!(is_expected(&error), "{error}");
    }
}

#[test]
fn v3_is_refused_where_v1_was_agreed_and_a_changed_frame_always() {
    let config = InboundConfig {
        keys: keys(),
        highest: Version::V1,
        window_limit_bytes: 1 << 20,
    };
    let mut inbound: Inbound<Frame> = Inbound::new(config);
    let header = DataHeader {
        version: Version::V3,
        method: 0,
        flags: 0,
        channel: ChannelId(0),
        seq: BatchSeq(0),
        offset: 0,
        raw_len: 1,
        digest: [0; 16],
    };
    let mut frame = vec![0; BATCH_HEADER_BYTES + 1];
    seal_data(&keys(), &header, &mut frame).unwrap();
    let sealed: Frame = frame.clone().into();
    assert!(matches!(
        inbound.on_batch(sealed),
        Err(TransportError::VersionNotAgreed { .. })
    ));
    frame[1] = 1;
    let changed: Frame = frame.into();
    assert_eq!(
        inbound.on_batch(changed),
        Err(TransportError::Wire(WireError::BadTag))
    );
}

fn v3(seq: u64, flags: u8, channel: u16, offset: u64, raw_len: u32) -> Frame {
    let header = DataHeader {
        version: Version::V3,
        method: 0,
        flags,
        channel: ChannelId(channel),
        seq: BatchSeq(seq),
        offset,
        raw_len,
        digest: [0; 16],
    };
    let mut frame = vec![0; BATCH_HEADER_BYTES + 8];
    seal_data(&keys(), &header, &mut frame).unwrap();
    frame.into()
}

fn express(seq: u64, channel: u16, offset: u64, raw_len: u32) -> Frame {
    v3(seq, FLAG_EXPRESS, channel, offset, raw_len)
}

#[test]
fn express_batches_overtake_others_and_never_their_own_channel() {
    let mut inbound = inbound();
    let up = |inbound: &mut Inbound<Frame>| {
        let ready = inbound.pop_express().unwrap();
        ready.map(|ready| ready.header.seq.0)
    };
    // Before its channel is open nothing of it goes up.
    inbound.on_batch(express(4, 1, 0, 10)).unwrap();
    assert_eq!(up(&mut inbound), None);
    inbound.on_batch(open(0, 0)).unwrap();
    inbound.on_batch(open(1, 1)).unwrap();
    assert_eq!(drain(&mut inbound), [0, 1]);
    // 2 and 3 are missing: 6 must wait for 5, which is of the same channel, and for nothing else.
    inbound.on_batch(express(6, 1, 15, 5)).unwrap();
    assert_eq!((up(&mut inbound), up(&mut inbound)), (Some(4), None));
    inbound.on_batch(express(5, 1, 10, 5)).unwrap();
    assert_eq!((up(&mut inbound), up(&mut inbound)), (Some(5), Some(6)));
    let again = inbound.on_batch(express(5, 1, 10, 5)).unwrap();
    assert_eq!(again, Accepted::Duplicate(BatchSeq(5)));
    let ack = inbound.ack_due(Nanos(1)).unwrap();
    assert_eq!(ack.next_seq, BatchSeq(2));
    assert!(ack.sack.get(2) && ack.sack.get(3) && ack.sack.get(4) && !ack.sack.get(1));
    // The sequence goes on over the places that were taken before their turn.
    inbound.on_batch(data(2, 0, 0, 10)).unwrap();
    inbound.on_batch(data(3, 0, 10, 10)).unwrap();
    inbound.on_batch(express(7, 1, 20, 5)).unwrap();
    assert_eq!(drain(&mut inbound), [2, 3, 7]);
    assert_eq!(up(&mut inbound), None, "it went up in its turn");
    inbound.note_delivered(ChannelId(1), 25).unwrap();
    assert_eq!(inbound.held_bytes(), 20);
}

fn data_v3(seq: u64, offset: u64, raw_len: u32) -> Frame {
    v3(seq, 0, 0, offset, raw_len)
}

#[test]
fn a_batch_that_was_put_back_is_waited_for_in_v1() {
    let mut inbound = inbound();
    inbound.on_batch(open(0, 0)).unwrap();
    inbound.on_batch(data_v3(1, 0, 10)).unwrap();
    inbound.on_batch(data_v3(2, 10, 5)).unwrap();
    let opened = inbound.pop_ready().unwrap().unwrap();
    assert!(matches!(
        inbound.put_back(&opened.header),
        Err(TransportError::Misuse { .. })
    ));
    let first = inbound.pop_ready().unwrap().unwrap();
    inbound.put_back(&first.header).unwrap();
    assert!(matches!(
        inbound.put_back(&first.header),
        Err(TransportError::Misuse { .. })
    ));
    // It counts as not come, and a late copy of it changes nothing.
    let ack = inbound.ack_due(Nanos(1)).unwrap();
    assert_eq!(
        (ack.next_seq, ack.sack.get(0), ack.sack.get(1)),
        (BatchSeq(1), false, true)
    );
    let late = inbound.on_batch(data_v3(1, 0, 10)).unwrap();
    assert_eq!(late, Accepted::Duplicate(BatchSeq(1)));
    assert!(drain(&mut inbound).is_empty());
    inbound.on_batch(data(1, 0, 0, 10)).unwrap();
    assert_eq!(drain(&mut inbound), [1, 2]);
    assert_eq!(inbound.held_bytes(), 15);
    // The next of its number is another batch.
    inbound.on_batch(data_v3(3, 15, 5)).unwrap();
    assert_eq!(drain(&mut inbound), [3]);
}
