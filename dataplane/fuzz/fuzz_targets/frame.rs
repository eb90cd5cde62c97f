//! Any bytes as a frame: nothing is taken without the keys; what parses is written again as it was.
#![no_main]

use dwcp_dataplane::transport::wire::batch::{
    BATCH_HEADER_BYTES, BatchKind, DataHeader, MAX_MARKER_BYTES, open_batch, open_payload,
    parse_batch_layout, seal_data, seal_marker,
};
use dwcp_dataplane::transport::wire::control::{
    ControlOpener, ControlSealer, MAX_CONTROL_BYTES, parse_control_layout,
};
use dwcp_dataplane::transport::wire::keys::{Direction, FrameKeys, KeyHalf, Psk, SessionKey};
use dwcp_dataplane::transport::wire::{FrameKind, WireError};
use dwcp_dataplane::transport::{NodeId, SessionEpoch, SessionId};
use libfuzzer_sys::fuzz_target;

fn keys() -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    SessionKey::derive(&Psk([7; 32]), SessionId([1; 16]), a, b, SessionEpoch(0))
        .frame_keys(Direction::ToAcceptor)
}

fn keys_over_tls() -> FrameKeys {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let halves = [&KeyHalf([1; 32]), &KeyHalf([2; 32])];
    SessionKey::of_halves(halves, SessionId([1; 16]), a, b, SessionEpoch(0))
        .frame_keys(Direction::ToAcceptor)
}

fuzz_target!(|frame: &[u8]| {
    let keys = keys();
    encrypted(frame);
    match FrameKind::peek(frame) {
        Ok(FrameKind::Batch) => batch(&keys, frame),
        Ok(FrameKind::Control) => control(&keys, frame),
        Err(WireError::TooShort { .. } | WireError::UnknownKind { .. }) => {}
        Err(error) => panic!("peek says {error}"),
    }
});

/// Nothing decrypts but what was encrypted, and that comes back as it was.
fn encrypted(frame: &[u8]) {
    let keys = keys_over_tls();
    assert!(open_payload(&keys, &mut frame.to_vec()).is_err(), "forged");
    let Ok(view) = parse_batch_layout(frame) else {
        return;
    };
    let header = view.header;
    let data = DataHeader {
        version: header.version,
        method: header.method,
        flags: header.flags,
        channel: header.channel,
        seq: header.seq,
        offset: header.offset,
        raw_len: header.raw_len,
        digest: header.digest,
    };
    let mut sealed = frame.to_vec();
    sealed.resize(frame.len() + keys.seal_bytes(), 0);
    if view.marker.is_some() || seal_data(&keys, &data, &mut sealed).is_err() {
        return;
    }
    let left = open_payload(&keys, &mut sealed).expect("what is encrypted opens");
    assert_eq!(sealed[BATCH_HEADER_BYTES..left], *view.payload);
}

fn batch(keys: &FrameKeys, frame: &[u8]) {
    assert!(open_batch(keys, frame).is_err(), "forged without the key");
    let Ok(view) = parse_batch_layout(frame) else {
        return;
    };
    let header = view.header;
    let sealed = match view.marker {
        None => {
            assert_eq!(header.kind, BatchKind::Data);
            let mut again = vec![0; BATCH_HEADER_BYTES];
            again.extend_from_slice(view.payload);
            let data = DataHeader {
                version: header.version,
                method: header.method,
                flags: header.flags,
                channel: header.channel,
                seq: header.seq,
                offset: header.offset,
                raw_len: header.raw_len,
                digest: header.digest,
            };
            seal_data(keys, &data, &mut again).expect("what parses can be sealed");
            again
        }
        Some(marker) => {
            let mut out = [0; MAX_MARKER_BYTES];
            let n = seal_marker(keys, header.seq, header.channel, &marker, &mut out)
                .expect("what parses can be sealed");
            out[..n].to_vec()
        }
    };
    let again = open_batch(keys, &sealed).expect("what is sealed opens");
    assert_eq!((again.payload, again.marker), (view.payload, view.marker));
    // Everything but digest and tag is the same bytes.
    assert_eq!(sealed[..32], frame[..32]);
    assert_eq!(sealed[BATCH_HEADER_BYTES..], frame[BATCH_HEADER_BYTES..]);
}

fn control(keys: &FrameKeys, frame: &[u8]) {
    let epoch = SessionEpoch(0);
    let mut opener = ControlOpener::new(keys.clone(), epoch);
    assert!(opener.open(frame).is_err(), "forged without the key");
    let Some(signed) = frame.len().checked_sub(16).map(|n| &frame[..n]) else {
        return;
    };
    let Ok(layout) = parse_control_layout(signed) else {
        return;
    };
    let mut out = [0; MAX_CONTROL_BYTES];
    let n = ControlSealer::new(keys.clone(), epoch).seal(&layout.frame, &mut out);
    assert_eq!(n, frame.len());
    assert_eq!(out[16..n - 16], frame[16..n - 16]);
    assert_eq!(opener.open(&out[..n]), Ok(Some(layout.frame)));
    assert_eq!(opener.open(&out[..n]), Ok(None), "a repeat");
}
