use super::super::keys::{Direction, KeyHalf, Psk, SessionKey};
use super::*;
use crate::transport::wire::baseline::MAX_OFFERS;
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
    let tags = [[7; 16]; MAX_OFFERS];
    let [offers, holds, missing] = [
        BaselineWord::Offers(&tags),
        BaselineWord::Holds(0x0805),
        BaselineWord::Missing(BatchSeq(1 << 40)),
    ]
    .map(Marker::Baseline);
    let open = Marker::Open(ChannelKind::Multifd);
    [open, close, abort, offers, holds, missing]
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

fn keys_over_tls(direction: Direction) -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let halves = [&KeyHalf([1; 32]), &KeyHalf([2; 32])];
    SessionKey::of_halves(halves, SessionId([1; 16]), a, b, SessionEpoch(0)).frame_keys(direction)
}

/// 40 bytes of 0xA5 as `seq`, in `version`, under keys that encrypt.
fn sealed(seq: u64, version: Version, digest: u8) -> Vec<u8> {
    let keys = keys_over_tls(Direction::ToAcceptor);
    let mut frame = vec![0xA5; BATCH_HEADER_BYTES + 40 + keys.seal_bytes()];
    let header = DataHeader {
        version,
        method: 0,
        flags: 0,
        channel: ChannelId(3),
        seq: BatchSeq(seq),
        offset: 4096,
        raw_len: 4104,
        digest: [digest; 16],
    };
    seal_data(&keys, &header, &mut frame).unwrap();
    frame
}

#[test]
fn an_encrypted_payload_is_unreadable_and_comes_back() {
    let keys = keys_over_tls(Direction::ToAcceptor);
    let mut frame = sealed(7, Version::V3, 1);
    let payload = &frame[BATCH_HEADER_BYTES..];
    assert!(payload.windows(4).all(|bytes| bytes != [0xA5; 4]));
    let header = open_batch(&keys, &frame).unwrap().header;
    assert_eq!(header.payload_len as usize, 40 + SEAL_BYTES);
    let left = open_payload(&keys, &mut frame).unwrap();
    assert_eq!(frame[BATCH_HEADER_BYTES..left], [0xA5; 40]);
}

#[test]
fn every_bit_of_an_encrypted_frame_is_covered() {
    let keys = keys_over_tls(Direction::ToAcceptor);
    let frame = sealed(7, Version::V3, 1);
    for bit in 0..frame.len() * 8 {
        let mut changed = frame.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            open_payload(&keys, &mut changed),
            Err(WireError::BadTag),
            "bit {bit}"
        );
    }
    let foreign = keys_over_tls(Direction::ToInitiator);
    assert!(open_payload(&foreign, &mut frame.clone()).is_err());
    for bytes in 0..BATCH_HEADER_BYTES + 1 + SEAL_BYTES {
        assert!(open_payload(&keys, &mut frame[..bytes].to_vec()).is_err());
    }
}

#[test]
fn one_sequence_number_never_has_one_key_stream_twice() {
    // Equal bytes: where two payloads are equal, so were their key streams.
    let frames = [
        sealed(7, Version::V3, 1),
        sealed(7, Version::V1, 1),
        sealed(8, Version::V3, 1),
        // The same place with other bytes, which no session does.
        sealed(7, Version::V3, 2),
    ];
    for (at, one) in frames.iter().enumerate() {
        for other in &frames[at + 1..] {
            assert_ne!(one[BATCH_HEADER_BYTES..], other[BATCH_HEADER_BYTES..]);
        }
    }
    // A resend is the same frame, bit for bit.
    assert_eq!(frames[0], sealed(7, Version::V3, 1));
}
