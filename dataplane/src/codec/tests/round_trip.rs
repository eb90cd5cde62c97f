//! Bytes out equal bytes in and histories stay mirrored, whatever changes from batch to batch.

use proptest::prelude::*;

use super::guest::{Event, Guest, addr, config, event, random_words};
use crate::codec::{
    Choice, ChoiceReason, Classified, CodecVersion, Decoder, EncodeError, EncodeHint, Encoded,
    Encoder, MAX_BATCH_RAW_BYTES, Method, Sections, Strand,
};
use crate::stream::{BlockId, PAGE_BYTES, PageAddr, Token};

const PAGES: usize = 40;

/// How a batch travels.
#[derive(Clone, Copy, Debug)]
enum Way {
    V1,
    V3(Method),
    Zstd {
        level: i32,
    },
    Chosen {
        link_bytes_per_s: Option<u64>,
        latency_critical: bool,
    },
    /// Encoded one way, lost, and sent again detached.
    Resent(Method),
}

fn way() -> impl Strategy<Value = Way> {
    let method = prop_oneof![
        Just(Method::Passthrough),
        Just(Method::Stored),
        Just(Method::Lz4),
        Just(Method::Zstd)
    ];
    prop_oneof![
        2 => Just(Way::V1),
        3 => method.clone().prop_map(Way::V3),
        3 => (1..=12).prop_map(|level| Way::Zstd { level }),
        2 => (proptest::option::of(0u64..10_000_000_000), any::<bool>()).prop_map(
            |(link_bytes_per_s, latency_critical)| Way::Chosen { link_bytes_per_s, latency_critical }
        ),
        2 => method.prop_map(Way::Resent),
    ]
}

pub(super) fn choice(method: Method) -> Choice {
    let level = if method == Method::Zstd { 2 } else { 0 };
    Choice {
        method,
        level,
        reason: ChoiceReason::Soonest,
    }
}

fn encode(
    encoder: &mut Encoder,
    way: Way,
    raw: &[u8],
    tokens: &[Token],
    out: &mut [u8],
) -> (CodecVersion, Encoded) {
    match way {
        Way::V1 => {
            let hint = EncodeHint::default();
            (
                CodecVersion::V1,
                encoder
                    .encode(CodecVersion::V1, &hint, raw, tokens, out)
                    .unwrap(),
            )
        }
        Way::V3(method) => (
            CodecVersion::V3,
            encoder
                .encode_with(choice(method), raw, tokens, out)
                .unwrap(),
        ),
        Way::Zstd { level } => {
            let choice = Choice {
                level,
                ..choice(Method::Zstd)
            };
            (
                CodecVersion::V3,
                encoder.encode_with(choice, raw, tokens, out).unwrap(),
            )
        }
        Way::Chosen {
            link_bytes_per_s,
            latency_critical,
        } => {
            let hint = EncodeHint {
                link_bytes_per_s,
                latency_critical,
                ..EncodeHint::default()
            };
            (
                CodecVersion::V3,
                encoder
                    .encode(CodecVersion::V3, &hint, raw, tokens, out)
                    .unwrap(),
            )
        }
        Way::Resent(method) => {
            let first = encoder
                .encode_with(choice(method), raw, tokens, out)
                .unwrap();
            out.fill(0xee);
            let history = first.history;
            (
                CodecVersion::V1,
                encoder
                    .encode_detached_v1(raw, tokens, history, out)
                    .unwrap(),
            )
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_version_any_batch_any_resend(
        slots in 1usize..50,
        batches in proptest::collection::vec((way(), proptest::collection::vec(event(PAGES), 0..30)), 1..25),
    ) {
        let mut guest = Guest::new(PAGES);
        let mut encoder = Encoder::new(&config(slots)).unwrap();
        let mut decoder = Decoder::new(&config(slots)).unwrap();
        let capacities = encoder.capacities();
        for (way, events) in &batches {
            let (raw, tokens) = guest.batch(events);
            let mut payload = vec![0xcc; Encoder::max_encoded_len(raw.len())];
            let (version, encoded) = encode(&mut encoder, *way, &raw, &tokens, &mut payload);
            prop_assert!(!encoded.raw_as_is);
            // A buffer full of what no batch may leak.
            let mut out = vec![0xdd; raw.len()];
            let payload = &payload[..encoded.len];
            let decoded = decoder.decode(version, encoded.method, encoded.history, payload, &mut out);
            prop_assert_eq!(decoded, Ok(()));
            prop_assert!(out == raw, "{:?}", way);
            prop_assert!(encoder.store().contents() == decoder.store().contents(), "{:?}", way);
        }
        prop_assert_eq!(encoder.capacities(), capacities);
    }

    /// Squeezed on other threads, the later batches first, each with whatever strand is at hand, and by another
    /// method than the one that was expected when the batch was classified.
    #[test]
    fn halves_apart(
        slots in 1usize..50,
        batches in proptest::collection::vec(proptest::collection::vec(event(PAGES), 0..30), 1..8),
        level in 1i32..=9,
        expected in 0usize..3,
        chosen in 0usize..3,
    ) {
        let config = config(slots);
        let mut guest = Guest::new(PAGES);
        let mut encoder = Encoder::new(&config).unwrap();
        let mut decoder = Decoder::new(&config).unwrap();
        let by = |which: usize| match which {
            0 => choice(Method::Stored),
            1 => choice(Method::Lz4),
            _ => Choice { level, ..choice(Method::Zstd) },
        };
        let mut jobs = Vec::new();
        for events in &batches {
            let (raw, tokens) = guest.batch(events);
            let mut sections = Sections::new();
            let mut classified =
                encoder.classify_with(by(expected), &raw, &tokens, &mut sections).unwrap();
            classified.choice = by(chosen);
            jobs.push((raw, classified, sections));
        }
        let squeeze = |jobs: &mut [(Vec<u8>, Classified, Sections)]| {
            let mut strand = Strand::new(&config).unwrap();
            let squeezed = jobs.iter_mut().rev().map(|(raw, classified, sections)| {
                let mut out = vec![0; Encoder::max_encoded_len(raw.len())];
                let encoded = strand.squeeze(classified, raw, sections, &mut out).unwrap();
                out.truncate(encoded.len);
                (encoded, out)
            });
            let mut squeezed: Vec<_> = squeezed.collect();
            squeezed.reverse();
            squeezed
        };
        let half = jobs.len() / 2;
        let (first, second) = jobs.split_at_mut(half);
        let squeezed = std::thread::scope(|scope| {
            let other = scope.spawn(|| squeeze(second));
            let mut squeezed = squeeze(first);
            squeezed.extend(other.join().unwrap());
            squeezed
        });
        for ((raw, ..), (encoded, payload)) in jobs.iter().zip(&squeezed) {
            let mut out = vec![0xdd; raw.len()];
            decoder
                .decode(CodecVersion::V3, encoded.method, encoded.history, payload, &mut out)
                .unwrap();
            prop_assert!(&out == raw);
        }
        prop_assert!(encoder.store().contents() == decoder.store().contents());
    }

    /// The same batches under other versions and methods leave the same history behind.
    #[test]
    fn the_history_does_not_know_the_version(
        slots in 1usize..50,
        batches in proptest::collection::vec(proptest::collection::vec(event(PAGES), 0..40), 1..12),
        ways in proptest::collection::vec(
            prop_oneof![Just(Method::Stored), Just(Method::Lz4), Just(Method::Zstd), Just(Method::V1Lz4)],
            12,
        ),
    ) {
        let mut guest = Guest::new(PAGES);
        let mut plain = Encoder::new(&config(slots)).unwrap();
        let mut mixed = Encoder::new(&config(slots)).unwrap();
        for (events, method) in batches.iter().zip(ways) {
            let (raw, tokens) = guest.batch(events);
            let mut out = vec![0; Encoder::max_encoded_len(raw.len())];
            encode(&mut plain, Way::V1, &raw, &tokens, &mut out);
            let way = if method == Method::V1Lz4 { Way::V1 } else { Way::V3(method) };
            encode(&mut mixed, way, &raw, &tokens, &mut out);
            prop_assert!(plain.store().contents() == mixed.store().contents());
        }
    }

    /// Tokens cut without sense cover the bytes and must not grow the batch beyond its bound.
    #[test]
    fn senseless_tokens_stay_bounded(
        cuts in proptest::collection::vec((1u32..12, any::<u64>(), 0u8..4, any::<bool>()), 1..3000),
        v1 in any::<bool>(),
    ) {
        let mut raw = Vec::new();
        let mut tokens = Vec::new();
        for (len, seed, kind, honest) in cuts {
            let addr = PageAddr { block: BlockId(seed as u16 % 3), index: seed >> (seed % 64) };
            let token = match kind {
                0 => Token::Raw { len },
                1 if raw.len() < 200_000 => Token::Body { addr },
                2 if raw.len() < 200_000 => Token::Page { addr },
                _ => Token::Zero { addr },
            };
            match token {
                Token::Zero { .. } if honest => raw.extend_from_slice(&addr.zero_record()),
                Token::Page { .. } if honest => {
                    raw.extend_from_slice(&addr.page_header());
                    raw.extend_from_slice(&[seed as u8; PAGE_BYTES]);
                }
                _ => raw.extend(random_words(seed).map(|word| word as u8).take(token.len())),
            }
            tokens.push(token);
        }
        let mut encoder = Encoder::new(&config(16)).unwrap();
        let mut decoder = Decoder::new(&config(16)).unwrap();
        let mut payload = vec![0; Encoder::max_encoded_len(raw.len())];
        let way = if v1 { Way::V1 } else { Way::V3(Method::Stored) };
        let (version, encoded) = encode(&mut encoder, way, &raw, &tokens, &mut payload);
        let mut out = vec![0xdd; raw.len()];
        decoder
            .decode(version, encoded.method, encoded.history, &payload[..encoded.len], &mut out)
            .unwrap();
        prop_assert!(out == raw);
        prop_assert!(encoder.store().contents() == decoder.store().contents());
    }
}

/// The densest batches that tokens can make: nothing may exceed the bound or the buffers.
#[test]
fn the_worst_batches_stay_bounded() {
    let far = |i: usize| PageAddr {
        block: BlockId(i as u16 % 2),
        index: (i as u64 * 977) % 9000,
    };
    let mut alternating = (Vec::new(), Vec::new());
    while alternating.0.len() + 14 <= MAX_BATCH_RAW_BYTES {
        let addr = far(alternating.1.len());
        alternating.0.push(7);
        alternating.1.push(Token::Raw { len: 1 });
        alternating.0.extend_from_slice(&addr.zero_record());
        alternating.1.push(Token::Zero { addr });
    }
    let mut pages = (Vec::new(), Vec::new());
    while pages.0.len() + PAGE_BYTES < MAX_BATCH_RAW_BYTES {
        let i = pages.1.len();
        let index = if i % 4 < 2 { 0 } else { (1 << 52) - 1 };
        pages.0.push(7);
        pages.1.push(Token::Raw { len: 1 });
        let words = random_words(i as u64 + 9).take(PAGE_BYTES / 8);
        pages.0.extend(words.flat_map(u64::to_le_bytes));
        pages.1.push(Token::Body {
            addr: PageAddr {
                block: BlockId(u16::MAX - i as u16),
                index,
            },
        });
    }
    let bytes = (
        vec![9; MAX_BATCH_RAW_BYTES],
        vec![Token::Raw { len: 1 }; MAX_BATCH_RAW_BYTES],
    );
    for (raw, tokens) in [alternating, pages, bytes] {
        let mut encoder = Encoder::new(&config(64)).unwrap();
        let mut decoder = Decoder::new(&config(64)).unwrap();
        let capacities = encoder.capacities();
        for way in [
            Way::V1,
            Way::V3(Method::Stored),
            Way::V3(Method::Lz4),
            Way::Resent(Method::Zstd),
        ] {
            let mut payload = vec![0; Encoder::max_encoded_len(raw.len())];
            let (version, encoded) = encode(&mut encoder, way, &raw, &tokens, &mut payload);
            let payload = &payload[..encoded.len];
            let mut out = vec![0xdd; raw.len()];
            decoder
                .decode(version, encoded.method, encoded.history, payload, &mut out)
                .unwrap();
            assert!(out == raw, "{way:?}");
        }
        assert_eq!(encoder.capacities(), capacities);
    }
}

/// What each page class costs, so that a class that silently stops matching is seen.
#[test]
fn classes_are_recognised() {
    let mut encoder = Encoder::new(&config(64)).unwrap();
    let random = |seed: u64| -> Vec<u8> {
        random_words(seed)
            .take(PAGE_BYTES / 8)
            .flat_map(u64::to_le_bytes)
            .collect()
    };
    let send = |encoder: &mut Encoder, pages: &[(usize, Vec<u8>)]| {
        let mut raw = Vec::new();
        let mut tokens = Vec::new();
        for (page, body) in pages {
            raw.extend_from_slice(body);
            tokens.push(Token::Body { addr: addr(*page) });
        }
        let mut out = vec![0; Encoder::max_encoded_len(raw.len())];
        encoder
            .encode_with(choice(Method::Stored), &raw, &tokens, &mut out)
            .unwrap()
    };
    let first: Vec<_> = (0..16)
        .map(|page| (page, random(page as u64 + 1)))
        .collect();
    assert_eq!(send(&mut encoder, &first).stats.literal, 16);

    let same = send(&mut encoder, &first);
    assert_eq!((same.stats.dup, same.stats.literal), (16, 0));
    assert!(same.len < 120, "{}", same.len);

    let moved: Vec<_> = (0..16)
        .map(|page| (page + 16, random(page as u64 + 1)))
        .collect();
    let copied = send(&mut encoder, &moved);
    assert_eq!((copied.stats.dup, copied.stats.literal), (16, 0));
    assert!(copied.len < 200, "{}", copied.len);

    // Twice the same new content in one batch: the second refers to the first.
    let twins = send(&mut encoder, &[(40, random(99)), (50, random(99))]);
    assert_eq!((twins.stats.dup, twins.stats.literal), (1, 1));

    let mut touched = first.clone();
    for (_, body) in &mut touched {
        body[100] ^= 1;
    }
    let delta = send(&mut encoder, &touched);
    assert_eq!((delta.stats.delta, delta.stats.literal), (16, 0));
    assert!(delta.len < 16 * 14 + 150, "{}", delta.len);

    let zeros: Vec<_> = (0..16)
        .map(|page| (page * 2, vec![0; PAGE_BYTES]))
        .collect();
    let zero = send(&mut encoder, &zeros);
    assert_eq!((zero.stats.zero, zero.stats.pages), (16, 16));
    assert!(zero.len < 60, "{}", zero.len);
}

#[test]
fn a_sequential_zero_run_costs_nothing_a_page() {
    let mut encoder = Encoder::new(&config(8)).unwrap();
    let mut raw = Vec::new();
    let mut tokens = Vec::new();
    for index in 1000..21_000 {
        let addr = PageAddr {
            block: BlockId(1),
            index,
        };
        raw.extend_from_slice(&addr.zero_record());
        tokens.push(Token::Zero { addr });
    }
    let mut out = vec![0; Encoder::max_encoded_len(raw.len())];
    let encoded = encoder
        .encode_with(choice(Method::Stored), &raw, &tokens, &mut out)
        .unwrap();
    assert!(encoded.len < 24, "{}", encoded.len);
}

#[test]
fn a_refused_batch_changes_nothing() {
    let mut encoder = Encoder::new(&config(8)).unwrap();
    let mut guest = Guest::new(2);
    let event = Event::Page {
        page: 0,
        edit: super::guest::Edit::Random { seed: 4 },
        header: true,
    };
    let (raw, mut tokens) = guest.batch(&[event]);
    let hint = EncodeHint::default();
    let mut small = vec![0; raw.len()];
    assert!(matches!(
        encoder.encode(CodecVersion::V3, &hint, &raw, &tokens, &mut small),
        Err(EncodeError::OutputTooSmall { .. })
    ));
    let mut out = vec![0; Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES) + 100];
    tokens.push(Token::Raw { len: 1 });
    assert!(matches!(
        encoder.encode(CodecVersion::V1, &hint, &raw, &tokens, &mut out),
        Err(EncodeError::TokensDoNotCover { .. })
    ));
    let big = vec![0; MAX_BATCH_RAW_BYTES + 1];
    let tokens = [Token::Raw {
        len: big.len() as u32,
    }];
    assert!(matches!(
        encoder.encode_detached_v1(&big, &tokens, true, &mut out),
        Err(EncodeError::BatchTooLarge { .. })
    ));
    assert_eq!(encoder.store().used(), 0);
}

#[test]
fn passing_through_as_is_touches_neither_buffer_nor_history() {
    let mut encoder = Encoder::new(&config(8)).unwrap();
    let mut guest = Guest::new(2);
    let event = Event::Page {
        page: 0,
        edit: super::guest::Edit::Random { seed: 4 },
        header: true,
    };
    let (raw, tokens) = guest.batch(&[event]);
    let hint = EncodeHint {
        link_bytes_per_s: Some(20_000_000_000),
        accepts_raw_as_is: true,
        ..EncodeHint::default()
    };
    let mut out = vec![0xaa; Encoder::max_encoded_len(raw.len())];
    let encoded = encoder
        .encode(CodecVersion::V3, &hint, &raw, &tokens, &mut out)
        .unwrap();
    assert!(encoded.raw_as_is && !encoded.history);
    assert_eq!(
        (encoded.len, encoded.method),
        (raw.len(), Method::Passthrough.code())
    );
    assert!(out.iter().all(|&byte| byte == 0xaa));
    assert_eq!(encoder.store().used(), 0);
}
