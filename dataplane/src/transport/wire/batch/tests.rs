use super::super::keys::{Direction, Psk, SessionKey};
use super::*;
use crate::transport::{NodeId, SessionEpoch, SessionId};

fn keys(direction: Direction) -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    SessionKey::derive(&Psk([7; 32]), SessionId([1; 16]), a, b, SessionEpoch(0))
        .frame_keys(direction)
}

fn data_frame(keys: &FrameKeys) -> Vec<u8> {
    let mut frame = vec![0xA5; BATCH_HEADER_BYTES + 40];
    let header = DataHeader {
        version: Version::V3,
        method: 9,
        flags: FLAG_HISTORY,
        channel: ChannelId(3),
        seq: BatchSeq(77),
        offset: 4096,
        raw_len: 4104,
        digest: [0xD1; 16],
    };
    seal_data(keys, &header, &mut frame).unwrap();
    frame
}

fn marker_frames(keys: &FrameKeys) -> Vec<Vec<u8>> {
    let abort = Marker::Abort {
        reason: AbortReason::Limit,
        text: "zu groß",
    };
    let close = Marker::HalfClose {
        total_bytes: 1 << 40,
        digest: [3; 16],
    };
    [Marker::Open(ChannelKind::Multifd), close, abort]
        .iter()
        .map(|marker| {
            let mut out = [0; MAX_MARKER_BYTES];
            let n = seal_marker(keys, BatchSeq(5), ChannelId(1), marker, &mut out).unwrap();
            assert_eq!(open_batch(keys, &out[..n]).unwrap().marker, Some(*marker));
            out[..n].to_vec()
        })
        .collect()
}

#[test]
fn data_survives_the_trip() {
    let keys = keys(Direction::ToAcceptor);
    let frame = data_frame(&keys);
    let view = open_batch(&keys, &frame).unwrap();
    assert_eq!(view.header.seq, BatchSeq(77));
    assert_eq!((view.header.method, view.header.flags), (9, FLAG_HISTORY));
    assert_eq!(view.payload, &frame[BATCH_HEADER_BYTES..]);
    assert_eq!(view.marker, None);
}

#[test]
fn every_header_bit_of_data_is_covered() {
    let keys = keys(Direction::ToAcceptor);
    let frame = data_frame(&keys);
    for bit in 0..BATCH_HEADER_BYTES * 8 {
        let mut changed = frame.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(open_batch(&keys, &changed).is_err(), "bit {bit}");
    }
    // Lengths of the frame itself: cut and padded.
    assert!(open_batch(&keys, &frame[..frame.len() - 1]).is_err());
    let mut longer = frame;
    longer.push(0);
    assert!(open_batch(&keys, &longer).is_err());
}

#[test]
fn every_bit_of_a_marker_is_covered() {
    let keys = keys(Direction::ToInitiator);
    for frame in marker_frames(&keys) {
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open_batch(&keys, &changed).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_reflected_frame_is_foreign() {
    let frame = data_frame(&keys(Direction::ToAcceptor));
    let other = keys(Direction::ToInitiator);
    assert_eq!(open_batch(&other, &frame), Err(WireError::BadTag));
}

#[test]
fn limits_hold_when_sealing() {
    let keys = keys(Direction::ToAcceptor);
    let header = DataHeader {
        version: Version::V1,
        method: 0,
        flags: 0,
        channel: ChannelId(0),
        seq: BatchSeq(0),
        offset: 0,
        raw_len: 1,
        digest: [0; 16],
    };
    let mut hollow = vec![0; BATCH_HEADER_BYTES + max_payload_bytes(1) + 1];
    assert!(seal_data(&keys, &header, &mut hollow).is_err());
    let mut frame = vec![0; BATCH_HEADER_BYTES + 10];
    for wrong in [
        DataHeader {
            raw_len: 0,
            ..header
        },
        DataHeader {
            raw_len: (1 << 20) + 1,
            ..header
        },
        DataHeader {
            offset: u64::MAX,
            ..header
        },
        DataHeader { flags: 3, ..header },
        DataHeader { flags: 4, ..header },
        DataHeader {
            channel: ChannelId(260),
            ..header
        },
    ] {
        assert!(seal_data(&keys, &wrong, &mut frame).is_err(), "{wrong:?}");
    }
    let text = "x".repeat(MAX_ABORT_TEXT_BYTES + 1);
    let abort = Marker::Abort {
        reason: AbortReason::Limit,
        text: &text,
    };
    assert!(seal_marker(&keys, BatchSeq(0), ChannelId(0), &abort, &mut [0; 512]).is_err());
}
