//! A peer that has the key and lies: its session fails closed with the reason, its hypervisor gets what
//! was honest and not a byte more, and the session beside it does not notice.

use std::io::Read;
use std::time::Duration;

use dwcp_api::command::Command;
use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::codec::{Chain, CodecConfig, CodecVersion, EncodeHint, Encoder, Method};
use dwcp_dataplane::stream::Token;
use dwcp_dataplane::transport::handshake::InitiatorConfig;
use dwcp_dataplane::transport::wire::batch::{
    BATCH_HEADER_BYTES, ChannelKind, DataHeader, FLAG_HISTORY, Marker,
};
use dwcp_dataplane::transport::wire::control::{ByeReason, ControlFrame};
use dwcp_dataplane::transport::{BatchSeq, ChannelId, MAX_BATCH_RAW_BYTES, Version};
use dwcp_hugepages::arena::BackingPolicy;
use dwcp_tests::pair::{PairOptions, noise};

use crate::beside::{Stage, resident_bytes};
use crate::peer::{Peer, ends, fresh_id, proposal};

/// What the liar says before it lies.
const HONEST: &[u8] = b"QEVM honest bytes";

/// A peer in the middle of its session, and the chain of its channel 0.
pub struct Liar {
    pub peer: Peer,
    chain: Chain,
}

impl Liar {
    /// The next honest batch of the channel: its header and its bytes.
    pub fn next(&mut self, raw: &[u8]) -> DataHeader {
        self.peer
            .plain(&mut self.chain, 0, HONEST.len() as u64, raw)
    }

    /// Sends a batch, whatever it says.
    pub fn send(&mut self, header: &DataHeader, payload: &[u8]) {
        let frame = self.peer.sealed(header, payload);
        self.peer.frame(&frame);
    }
}

/// Lets a liar into a session of its own, lets it lie, and looks at what becomes of it.
pub fn lie(stage: &mut Stage, what: &str, expected: Failure, act: impl FnOnce(&mut Liar)) {
    lie_as(stage, &proposal(fresh_id()), what, expected, act);
}

/// The same by a peer that introduces itself in its own way.
pub fn lie_as(
    stage: &mut Stage,
    config: &InitiatorConfig,
    what: &str,
    expected: Failure,
    act: impl FnOnce(&mut Liar),
) {
    let mut peer = Peer::join(stage.pair.destination_address(), config);
    let (session, mut chain) = (peer.session(), peer.chain(0));
    peer.open(0);
    let mut header = peer.plain(&mut chain, 0, 0, HONEST);
    if config.highest == Version::V1 {
        header.version = Version::V1;
        header.method = Method::V1Stored.code();
    }
    let honest = config.highest == Version::V3;
    if honest {
        let frame = peer.sealed(&header, HONEST);
        peer.frame(&frame);
    }
    let mut hypervisor = stage.pair.accept();
    hypervisor
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    if honest {
        let mut got = [0; HONEST.len()];
        hypervisor.read_exact(&mut got).unwrap();
        assert_eq!(got, HONEST, "{what}");
    }
    let mut liar = Liar { peer, chain };
    act(&mut liar);
    let end = stage.destination.wait_over(session);
    assert_eq!(end.state(), Some(SessionState::Failed), "{what}: {end:#?}");
    assert_eq!(end.failure(), expected, "{what}: {end:#?}");
    assert!(
        !end.detail.as_str().is_empty(),
        "{what}: no word of what to do"
    );
    let mut rest = Vec::new();
    let _ = hypervisor.read_to_end(&mut rest);
    assert!(
        rest.is_empty(),
        "{what}: {} bytes were released",
        rest.len()
    );
    for lane in &mut liar.peer.lanes {
        assert!(ends(lane), "{what}: the lane stays open");
    }
    let (failure, detail) = stage.destination.command(&Command::Forget { session });
    assert_eq!(failure, Failure::None, "{detail}");
    stage.beside.check_moves();
}

/// Bytes encoded as an honest peer encodes them.
fn encoded(version: CodecVersion, raw: &[u8]) -> (u8, u8, Vec<u8>) {
    let mut encoder = Encoder::new(&CodecConfig {
        store_bytes: 16 << 20,
        backing: BackingPolicy::Ordinary,
        key: [0; 32],
        zstd_level_min: 1,
        zstd_level_max: 1,
    })
    .unwrap();
    let hint = EncodeHint {
        link_bytes_per_s: Some(1_000_000),
        backlog_bytes: 0,
        idle_cores_hint: 0,
        crowd: 1.0,
        latency_critical: false,
        accepts_raw_as_is: false,
        ..EncodeHint::default()
    };
    let tokens = [Token::Raw {
        len: raw.len() as u32,
    }];
    let mut out = vec![0; Encoder::max_encoded_len(raw.len())];
    let encoded = encoder
        .encode(version, &hint, raw, &tokens, &mut out)
        .unwrap();
    out.truncate(encoded.len);
    (
        encoded.method,
        if encoded.history { FLAG_HISTORY } else { 0 },
        out,
    )
}

#[test]
fn a_batch_that_is_not_what_its_header_says() {
    let mut stage = Stage::start(PairOptions::default());
    let raw = b"some text that says it again, says it again, says it again. ".repeat(100);
    for (version, codec) in [
        (Version::V1, CodecVersion::V1),
        (Version::V3, CodecVersion::V3),
    ] {
        let (method, flags, payload) = encoded(codec, &raw);
        for announced in [raw.len() - 1, raw.len() + 1, 1, MAX_BATCH_RAW_BYTES] {
            let what = format!(
                "{version:?} batch of {} announced as {announced}",
                raw.len()
            );
            lie(&mut stage, &what, Failure::Corrupted, |liar| {
                let mut header = liar.next(&raw);
                (header.version, header.method, header.flags) = (version, method, flags);
                header.raw_len = announced as u32;
                // A payload must not be much longer than what it decodes to.
                let most = announced + announced / 32 + 1024;
                liar.send(&header, &payload[..payload.len().min(most)]);
            });
        }
    }
    for announced in [4_095, 4_097] {
        lie(
            &mut stage,
            "as it is, but of another length",
            Failure::Corrupted,
            |liar| {
                let page = noise(1, 4096);
                let mut header = liar.next(&page);
                header.raw_len = announced;
                liar.send(&header, &page);
            },
        );
    }
    for method in [0, 3, 15, 20, 99, 255] {
        lie(&mut stage, "unknown method", Failure::Corrupted, |liar| {
            let mut header = liar.next(b"bytes");
            header.method = method;
            liar.send(&header, b"bytes");
        });
    }
    for method in [Method::Stored, Method::Lz4, Method::Zstd] {
        for seed in 0..4 {
            lie(
                &mut stage,
                "noise as an encoding",
                Failure::Corrupted,
                |liar| {
                    let payload = noise(seed, 2_000);
                    let mut header = liar.next(&noise(9, 8_192));
                    (header.method, header.flags) = (method.code(), FLAG_HISTORY);
                    liar.send(&header, &payload);
                },
            );
        }
    }
    stage.finish();
}

#[test]
fn bytes_that_the_digest_does_not_vouch_for() {
    let mut stage = Stage::start(PairOptions::default());
    lie(&mut stage, "other bytes", Failure::Corrupted, |liar| {
        let header = liar.next(b"these bytes");
        liar.send(&header, b"those bytes");
    });
    lie(&mut stage, "another digest", Failure::Corrupted, |liar| {
        let mut header = liar.next(b"bytes");
        header.digest[15] ^= 1;
        liar.send(&header, b"bytes");
    });
    lie(
        &mut stage,
        "a batch left out of the chain",
        Failure::Corrupted,
        |liar| {
            let skipped = liar.next(b"first");
            liar.peer.seq -= 1;
            let mut header = liar.next(b"other");
            assert_eq!((skipped.seq, skipped.offset), (header.seq, header.offset));
            header.seq = skipped.seq;
            liar.send(&header, b"other");
        },
    );
    lie(
        &mut stage,
        "an end that vouches for other bytes",
        Failure::Corrupted,
        |liar| {
            let total_bytes = HONEST.len() as u64;
            liar.peer.marker(
                0,
                &Marker::HalfClose {
                    total_bytes,
                    digest: [7; 16],
                },
            );
        },
    );
    lie(
        &mut stage,
        "a frame of another session",
        Failure::Corrupted,
        |liar| {
            let header = liar.next(b"bytes");
            let mut frame = liar.peer.sealed(&header, b"bytes");
            frame[50] ^= 1;
            liar.peer.frame(&frame);
        },
    );
    lie(
        &mut stage,
        "a control frame without its tag",
        Failure::Corrupted,
        |liar| {
            liar.peer.frame(&[&[0x11, 0, 0, 0][..], &[0; 36]].concat());
        },
    );
    lie(
        &mut stage,
        "the receiver's own words",
        Failure::Corrupted,
        |liar| {
            // Its ACKs and PINGs: sealed with the right key, for the other direction.
            let mut length = [0; 4];
            liar.peer.lanes[0].read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_le_bytes(length) as usize];
            liar.peer.lanes[0].read_exact(&mut frame).unwrap();
            liar.peer.frame(&frame);
        },
    );
    stage.finish();
}

#[test]
fn an_order_that_no_honest_peer_has() {
    let mut stage = Stage::start(PairOptions::default());
    for ahead in [256, 1_000_000, u64::MAX - 2] {
        lie(
            &mut stage,
            "a batch beyond the window",
            Failure::Protocol,
            |liar| {
                let mut header = liar.next(b"bytes");
                header.seq = BatchSeq(2 + ahead);
                liar.send(&header, b"bytes");
            },
        );
    }
    for offset in [
        0,
        HONEST.len() as u64 - 1,
        HONEST.len() as u64 + 1,
        u64::MAX - 5,
        u64::MAX,
    ] {
        lie(&mut stage, "a wrong offset", Failure::Protocol, |liar| {
            let mut header = liar.next(b"bytes");
            header.offset = offset;
            liar.send(&header, b"bytes");
        });
    }
    lie(
        &mut stage,
        "a channel opened twice",
        Failure::Protocol,
        |liar| liar.peer.open(0),
    );
    lie(
        &mut stage,
        "a channel out of turn",
        Failure::Protocol,
        |liar| liar.peer.open(2),
    );
    lie(
        &mut stage,
        "bytes for no channel",
        Failure::Protocol,
        |liar| {
            let mut header = liar.next(b"bytes");
            (header.channel, header.offset) = (ChannelId(3), 0);
            liar.send(&header, b"bytes");
        },
    );
    for channel in [260, u16::MAX] {
        lie(
            &mut stage,
            "a channel over the limit",
            Failure::Protocol,
            |liar| {
                let mut header = liar.next(b"bytes");
                header.channel = ChannelId(channel);
                liar.send(&header, b"bytes");
            },
        );
    }
    lie(
        &mut stage,
        "an end of no channel",
        Failure::Protocol,
        |liar| {
            liar.peer.marker(
                1,
                &Marker::HalfClose {
                    total_bytes: 0,
                    digest: [0; 16],
                },
            );
        },
    );
    lie(
        &mut stage,
        "an end with another total",
        Failure::Protocol,
        |liar| {
            liar.peer.marker(
                0,
                &Marker::HalfClose {
                    total_bytes: 5,
                    digest: [0; 16],
                },
            );
        },
    );
    for raw_len in [0, MAX_BATCH_RAW_BYTES as u32 + 1, u32::MAX] {
        lie(
            &mut stage,
            "a length over the limit",
            Failure::Protocol,
            |liar| {
                let mut header = liar.next(b"bytes");
                header.raw_len = raw_len;
                liar.send(&header, b"bytes");
            },
        );
    }
    lie(&mut stage, "an unknown flag", Failure::Protocol, |liar| {
        let mut header = liar.next(b"bytes");
        header.flags = 0x80;
        liar.send(&header, b"bytes");
    });
    lie(
        &mut stage,
        "a lane beyond those agreed",
        Failure::Protocol,
        |liar| liar.peer.add_lane(8),
    );
    let only_v1 = InitiatorConfig {
        highest: Version::V1,
        ..proposal(fresh_id())
    };
    lie_as(
        &mut stage,
        &only_v1,
        "v3 where v1 was agreed",
        Failure::Protocol,
        |liar| {
            liar.peer.seq -= 1;
            let mut chain = liar.peer.chain(0);
            let header = liar.peer.plain(&mut chain, 0, 0, b"bytes");
            liar.send(&header, b"bytes");
        },
    );
    stage.finish();
}

#[test]
fn garbage_after_the_handshake() {
    let options = PairOptions {
        resume_limit_ms: 3_000,
        ..PairOptions::default()
    };
    let mut stage = Stage::start(options);
    lie(
        &mut stage,
        "a frame of no kind",
        Failure::Protocol,
        |liar| liar.peer.frame(&[0xff; 100]),
    );
    lie(
        &mut stage,
        "less than a header",
        Failure::Protocol,
        |liar| liar.peer.frame(&[2; 20]),
    );
    lie(&mut stage, "noise in a batch", Failure::Corrupted, |liar| {
        let mut frame = noise(5, 5_000);
        frame[0] = 2;
        liar.peer.frame(&frame);
    });
    // A length that cannot be ends the lane alone; nobody opens another, so the peer is lost.
    for length in [0u32, u32::MAX] {
        lie(
            &mut stage,
            "a length that cannot be",
            Failure::PeerLost,
            |liar| {
                liar.peer
                    .write(&[&length.to_le_bytes()[..], &noise(6, 100_000)].concat());
            },
        );
    }
    lie(
        &mut stage,
        "a frame that never ends",
        Failure::PeerLost,
        |liar| {
            liar.peer
                .write(&[&1_000_000u32.to_le_bytes()[..], &[2; 1000]].concat());
        },
    );
    stage.finish();
}

#[test]
fn a_peer_that_ignores_its_window_fills_no_memory() {
    let mut stage = Stage::start(PairOptions::default());
    let before = resident_bytes();
    lie(
        &mut stage,
        "hollow batches behind a gap",
        Failure::Protocol,
        |liar| {
            let gap = liar.next(b"never sent");
            for ahead in 1..40 {
                let mut header = gap;
                (header.seq, header.raw_len) =
                    (BatchSeq(gap.seq.0 + ahead), MAX_BATCH_RAW_BYTES as u32);
                liar.send(&header, b"x");
            }
        },
    );
    for _ in 0..3 {
        // The hypervisor reads nothing of it, for nothing of it comes.
        lie(
            &mut stage,
            "full batches behind a gap",
            Failure::Protocol,
            |liar| {
                let full = noise(3, MAX_BATCH_RAW_BYTES);
                let gap = liar.next(b"never sent");
                for ahead in 1..40 {
                    let mut header = gap;
                    header.seq = BatchSeq(gap.seq.0 + ahead);
                    header.raw_len = MAX_BATCH_RAW_BYTES as u32;
                    liar.send(&header, &full);
                }
            },
        );
    }
    let wish = |window_limit_bytes, page_store_bytes, lanes| {
        let mut config = proposal(fresh_id());
        config.params.window_limit_bytes = window_limit_bytes;
        config.params.page_store_bytes = page_store_bytes;
        (config.params.lanes_v1, config.params.lanes_v3) = (lanes, lanes);
        config
    };
    // What a peer wishes for is cut to what this node allows; what cannot work is refused.
    for config in [
        wish(u64::MAX, u64::MAX, u16::MAX),
        wish(64 << 10, 1 << 20, 1),
    ] {
        let what = "a wish beyond all measure, or a modest one";
        lie_as(&mut stage, &config, what, Failure::PeerAborted, |liar| {
            liar.peer.control(&ControlFrame::Bye(ByeReason::Shutdown));
        });
    }
    for store_bytes in [0, 1, 4_095] {
        let config = wish(8 << 20, store_bytes, 1);
        let peer = Peer::join(stage.pair.destination_address(), &config);
        let end = stage.destination.wait_over(peer.session());
        assert_eq!(
            end.failure(),
            Failure::Limit,
            "a store of {store_bytes} bytes: {end:#?}"
        );
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more in use");
    stage.finish();
}

#[test]
fn a_repeated_batch_is_no_lie() {
    let mut stage = Stage::start(PairOptions::default());
    let mut peer = Peer::join(stage.pair.destination_address(), &proposal(fresh_id()));
    let (session, mut chain) = (peer.session(), peer.chain(0));
    peer.marker(0, &Marker::Open(ChannelKind::Opaque));
    let mut hypervisor = stage.pair.accept();
    let mut sent = Vec::new();
    for round in 0..50u8 {
        let raw = noise(u64::from(round), 3_000);
        let header = peer.plain(&mut chain, 0, sent.len() as u64, &raw);
        let frame = peer.sealed(&header, &raw);
        assert_eq!(frame.len(), BATCH_HEADER_BYTES + raw.len());
        for _ in 0..3 {
            peer.frame(&frame);
        }
        sent.extend_from_slice(&raw);
    }
    let mut got = vec![0; sent.len()];
    hypervisor.read_exact(&mut got).unwrap();
    assert!(got == sent);
    let picture = stage.destination.session(session).unwrap();
    assert_eq!(picture.state(), Some(SessionState::Active), "{picture:#?}");
    let (failure, detail) = stage.destination.command(&Command::Cancel { session });
    assert_eq!(failure, Failure::None, "{detail}");
    assert_eq!(
        stage.destination.wait_over(session).failure(),
        Failure::Cancelled
    );
    stage.finish();
}
