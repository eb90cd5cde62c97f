//! Peers that lie: errors, never a panic, a write outside the buffer, or an earlier batch's bytes.

use proptest::prelude::*;

use super::guest::{Guest, config, event, random_words};
use super::round_trip::choice;
use crate::codec::{
    Chain, Choice, CodecVersion, DecodeError, Decoder, Direction, EncodeHint, Encoder, Method,
};
use crate::stream::{BlockId, PAGE_BYTES, PageAddr, Token};

const METHODS: [(CodecVersion, Method); 6] = [
    (CodecVersion::V1, Method::V1Stored),
    (CodecVersion::V1, Method::V1Lz4),
    (CodecVersion::V3, Method::Passthrough),
    (CodecVersion::V3, Method::Stored),
    (CodecVersion::V3, Method::Lz4),
    (CodecVersion::V3, Method::Zstd),
];

const CANARY: u8 = 0x5a;

/// Decodes into a buffer between two canaries, filled with `CANARY` bytes itself.
fn decode_guarded(
    decoder: &mut Decoder,
    (version, method): (CodecVersion, u8),
    history: bool,
    payload: &[u8],
    raw_len: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut guarded = vec![CANARY; raw_len + 128];
    let result = decoder.decode(
        version,
        method,
        history,
        payload,
        &mut guarded[64..raw_len + 64],
    );
    assert!(
        guarded[..64]
            .iter()
            .chain(&guarded[raw_len + 64..])
            .all(|&byte| byte == CANARY)
    );
    result.map(|()| guarded[64..raw_len + 64].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_payloads(
        payload in proptest::collection::vec(any::<u8>(), 0..400),
        which in 0usize..METHODS.len(),
        history in any::<bool>(),
        raw_len in 0usize..20_000,
    ) {
        let mut decoder = Decoder::new(&config(4)).unwrap();
        let (version, method) = METHODS[which];
        let code = (version, method.code());
        if decode_guarded(&mut decoder, code, history, &payload, raw_len).is_err() {
            let again = decode_guarded(&mut decoder, code, history, &[], 0);
            prop_assert_eq!(again, Err(DecodeError::Poisoned));
        }
    }

    /// Real payloads, bent: what is accepted must not depend on what the buffer held before.
    #[test]
    fn bent_payloads(
        events in proptest::collection::vec(event(12), 1..20),
        which in 0usize..METHODS.len(),
        bends in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        longer in 0usize..3,
    ) {
        let (version, method) = METHODS[which];
        let mut guest = Guest::new(12);
        let mut encoder = Encoder::new(&config(8)).unwrap();
        let mut decoders = [(); 2].map(|()| Decoder::new(&config(8)).unwrap());
        let mut payload = Vec::new();
        let (mut code, mut history, mut raw_len) = (0, false, 0);
        // The second batch has a history to refer to.
        for round in 0..2 {
            let (raw, tokens) = guest.batch(&events);
            payload = vec![0; Encoder::max_encoded_len(raw.len())];
            let encoded = match version {
                CodecVersion::V1 => {
                    encoder.encode(version, &EncodeHint::default(), &raw, &tokens, &mut payload)
                }
                CodecVersion::V3 => encoder.encode_with(choice(method), &raw, &tokens, &mut payload),
            }.unwrap();
            payload.truncate(encoded.len);
            (code, history, raw_len) = (encoded.method, encoded.history, raw.len());
            if round == 0 {
                for decoder in &mut decoders {
                    let mut out = vec![0; raw_len];
                    decoder.decode(version, code, history, &payload, &mut out).unwrap();
                }
            }
        }
        for (at, bend) in bends {
            if !payload.is_empty() {
                let at = at.index(payload.len());
                payload[at] ^= bend;
            }
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len() + 1));
        }
        let raw_len = raw_len + longer;
        let [a, b] = &mut decoders;
        let mut first = vec![0x00; raw_len];
        let mut second = vec![0xff; raw_len];
        let one = a.decode(version, code, history, &payload, &mut first);
        let two = b.decode(version, code, history, &payload, &mut second);
        prop_assert_eq!(&one, &two);
        if one.is_ok() {
            prop_assert!(first == second, "bytes of an earlier batch were left in the buffer");
        }
        prop_assert!(a.store().contents() == b.store().contents());
    }

    /// Every raw length but the true one is refused.
    #[test]
    fn another_length_is_refused(
        events in proptest::collection::vec(event(12), 1..12),
        which in 0usize..METHODS.len(),
        difference in 1usize..5000,
        longer in any::<bool>(),
    ) {
        let (version, method) = METHODS[which];
        let (raw, tokens) = Guest::new(12).batch(&events);
        let mut encoder = Encoder::new(&config(8)).unwrap();
        let mut payload = vec![0; Encoder::max_encoded_len(raw.len())];
        let encoded = match version {
            CodecVersion::V1 => {
                encoder.encode(version, &EncodeHint::default(), &raw, &tokens, &mut payload)
            }
            CodecVersion::V3 => encoder.encode_with(choice(method), &raw, &tokens, &mut payload),
        }.unwrap();
        let len = if longer { raw.len() + difference } else { raw.len().saturating_sub(difference) };
        prop_assume!(len != raw.len());
        let mut decoder = Decoder::new(&config(8)).unwrap();
        let code = (version, encoded.method);
        let result = decode_guarded(&mut decoder, code, true, &payload[..encoded.len], len);
        prop_assert!(result.is_err());
    }
}

fn decode_new(
    version: CodecVersion,
    method: u8,
    history: bool,
    payload: &[u8],
    len: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(&config(4)).unwrap();
    decode_guarded(&mut decoder, (version, method), history, payload, len)
}

#[test]
fn methods_of_the_other_version_are_refused() {
    for (version, method) in METHODS {
        let other = match version {
            CodecVersion::V1 => CodecVersion::V3,
            CodecVersion::V3 => CodecVersion::V1,
        };
        assert_eq!(
            decode_new(other, method.code(), true, &[], 0),
            Err(DecodeError::UnknownMethod {
                version: other.number(),
                method: method.code()
            })
        );
    }
    assert!(decode_new(CodecVersion::V3, 0, true, &[], 0).is_err());
}

/// A payload of stored operations and patches alone.
fn stored(ops: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut payload = vec![u8::from(!ops.is_empty()) | u8::from(!patches.is_empty()) << 1];
    for section in [ops, patches]
        .into_iter()
        .filter(|section| !section.is_empty())
    {
        payload.push(0);
        payload.extend_from_slice(&(section.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(section.len() as u32).to_le_bytes());
        payload.extend_from_slice(section);
    }
    payload
}

#[test]
fn references_into_nothing_are_refused() {
    let v3 = |payload: &[u8], history| {
        decode_new(
            CodecVersion::V3,
            Method::Stored.code(),
            history,
            payload,
            PAGE_BYTES,
        )
    };
    let missing = Err(DecodeError::MissingPage { at: 0 });
    assert_eq!(v3(&stored(&[3], &[]), true), missing, "same");
    assert_eq!(v3(&stored(&[4], &[0]), true), missing, "copy of slot 0");
    assert_eq!(v3(&stored(&[4], &[6]), true), missing, "copy of slot 3");
    assert_eq!(
        v3(&stored(&[4], &[1]), true),
        Err(DecodeError::BadOperation { at: 0 }),
        "slot -1"
    );
    assert_eq!(
        v3(&stored(&[5], &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), true),
        missing,
        "delta"
    );
}

/// A batch without history must not read it either: its sender's may be another by now.
#[test]
fn a_batch_without_history_cannot_refer() {
    let mut encoder = Encoder::new(&config(4)).unwrap();
    let mut decoder = Decoder::new(&config(4)).unwrap();
    let raw: Vec<u8> = random_words(5)
        .take(PAGE_BYTES / 8)
        .flat_map(u64::to_le_bytes)
        .collect();
    let tokens = [Token::Body {
        addr: PageAddr {
            block: BlockId(0),
            index: 3,
        },
    }];
    let mut payload = vec![0; Encoder::max_encoded_len(raw.len())];
    let mut out = vec![0; raw.len()];
    let mut encoded = encoder.encode_with(choice(Method::Stored), &raw, &tokens, &mut payload);
    let first = encoded.unwrap();
    decoder
        .decode(
            CodecVersion::V3,
            first.method,
            true,
            &payload[..first.len],
            &mut out,
        )
        .unwrap();
    encoded = encoder.encode_with(choice(Method::Stored), &raw, &tokens, &mut payload);
    let second = encoded.unwrap();
    assert_eq!(
        decoder.decode(
            CodecVersion::V3,
            second.method,
            false,
            &payload[..second.len],
            &mut out
        ),
        Err(DecodeError::MissingPage { at: 0 })
    );
}

/// Few bytes that ask for much: refused before the work is done.
#[test]
fn bombs_are_refused() {
    // A run of 2^40 ZERO records.
    let mut ops = Vec::new();
    crate::codec::varint::put(&mut ops, 1 << 45 | 1);
    let payload = stored(&ops, &[]);
    let result = decode_new(
        CodecVersion::V3,
        Method::Stored.code(),
        true,
        &payload,
        9000,
    );
    assert_eq!(result, Err(DecodeError::WrongLength { raw_bytes: 9000 }));

    // Sections that decompress to far more than the batch has.
    let zeros = vec![0; 1 << 20];
    let mut packed = vec![0; 1 << 16];
    let zstd_len = crate::codec::zstd::Compressor::new(1)
        .unwrap()
        .compress(1, &[], &zeros, &mut packed)
        .unwrap();
    for (codec, len, clear_len) in [
        (2, zstd_len, 1u32 << 20),
        (2, zstd_len, 64),
        (1, 100, u32::MAX),
    ] {
        let mut payload = vec![1, codec];
        payload.extend_from_slice(&clear_len.to_le_bytes());
        payload.extend_from_slice(&(len as u32).to_le_bytes());
        payload.extend_from_slice(&packed[..len]);
        let result = decode_new(CodecVersion::V3, Method::Zstd.code(), true, &payload, 100);
        assert!(
            matches!(
                result,
                Err(DecodeError::BadSections | DecodeError::BadCompression)
            ),
            "{result:?}"
        );
    }
    let mut payload = u32::MAX.to_le_bytes().to_vec();
    payload.extend_from_slice(&[0; 50]);
    let result = decode_new(CodecVersion::V1, Method::V1Lz4.code(), true, &payload, 100);
    assert_eq!(result, Err(DecodeError::BadSections));
}

/// A payload of one literal page, compressed in a context of so many pages.
fn in_context(pages: u64, context: &[u8], page: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; 2 * PAGE_BYTES];
    let len = crate::codec::zstd::Compressor::new(3)
        .unwrap()
        .compress(3, context, page, &mut packed)
        .unwrap();
    let mut payload = vec![0b1001, 0, 1, 0, 0, 0, 1, 0, 0, 0, 6];
    payload.push(3);
    payload.extend_from_slice(&(page.len() as u32).to_le_bytes());
    // One stretch, from slot 0.
    let mut list = vec![u8::from(pages > 0)];
    if pages > 0 {
        list.push(0);
        crate::codec::varint::put(&mut list, pages - 1);
    }
    payload.extend_from_slice(&((len + list.len()) as u32).to_le_bytes());
    payload.extend_from_slice(&list);
    payload.extend_from_slice(&packed[..len]);
    payload
}

fn noise(seed: u64) -> Vec<u8> {
    let words = random_words(seed).take(PAGE_BYTES / 8);
    words.flat_map(u64::to_le_bytes).collect()
}

/// A decoder whose history took `noise(1)` for page 1, in slot 0, and `noise(2)` for page 2, in slot 1.
fn with_two_pages() -> Decoder {
    let mut decoder = Decoder::new(&config(4)).unwrap();
    for seed in [1, 2] {
        let mut payload = stored(&[6 | 16, (seed as u8) << 2], &[]);
        payload[0] |= 8;
        payload.push(0);
        payload.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        payload.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        payload.extend_from_slice(&noise(seed));
        let mut out = vec![0; PAGE_BYTES];
        let stored = Method::Stored.code();
        decoder
            .decode(CodecVersion::V3, stored, true, &payload, &mut out)
            .unwrap();
    }
    decoder
}

/// Copies that refer to each other and to themselves: each is what its slot held before it.
#[test]
fn references_in_a_circle_end() {
    let code = (CodecVersion::V3, Method::Stored.code());
    // Page 1 is slot 1, which is page 2's, and page 2 is slot 0, which is page 1's; page 1 is itself again.
    let (ops, patches) = ([4 | 16 | 1 << 5, 4, 4 | 16, 6], [2, 3, 1]);
    let mut decoder = with_two_pages();
    let payload = stored(&ops, &patches);
    let out = decode_guarded(&mut decoder, code, true, &payload, 3 * PAGE_BYTES);
    assert_eq!(out, Ok([noise(2), noise(2), noise(2)].concat()));
    // Page 7 is the slot that it would get, which holds nothing yet.
    let payload = stored(&[4 | 16, 7 << 2], &[4]);
    let out = decode_guarded(&mut decoder, code, true, &payload, PAGE_BYTES);
    assert_eq!(out, Err(DecodeError::MissingPage { at: 0 }));
}

/// What a batch refers to, pages or a context, is another thing in another session: either the codec refuses it, or
/// the session's digests do. Its own session takes it.
#[test]
fn a_batch_of_another_session_is_never_released() {
    let batch = |seeds: [u64; 4]| {
        let (mut raw, mut tokens) = (Vec::new(), Vec::new());
        for (index, seed) in seeds.into_iter().enumerate() {
            let addr = PageAddr {
                block: BlockId(0),
                index: index as u64,
            };
            raw.extend_from_slice(&noise(seed));
            tokens.push(Token::Body { addr });
        }
        (raw, tokens)
    };
    let mut almost = batch([4, 3, 2, 1]);
    // Pages that are like others, but not the same: they are found in a context alone.
    for page in almost.0.as_chunks_mut::<PAGE_BYTES>().0 {
        page.rotate_left(8);
    }
    let first = [batch([1, 2, 3, 4]), batch([5, 6, 7, 8])];
    for second in [batch([4, 3, 2, 1]), batch([2, 2, 2, 2]), almost] {
        let keys = [[1; 32], [2; 32]];
        let mut chains = keys.map(|key| Chain::new(&key, 0, Direction::ToDestination));
        let mut encoders = [(); 2].map(|()| Encoder::new(&config(8)).unwrap());
        let mut decoders = [(); 2].map(|()| Decoder::new(&config(8)).unwrap());
        let mut payload = vec![0; Encoder::max_encoded_len(4 * PAGE_BYTES)];
        let choice = Choice {
            level: 3,
            ..choice(Method::Zstd)
        };
        for at in 0..2 {
            let (raw, tokens) = &first[at];
            let made = encoders[at].encode_with(choice, raw, tokens, &mut payload);
            let len = made.unwrap().len;
            let mut out = vec![0; raw.len()];
            decoders[at]
                .decode(
                    CodecVersion::V3,
                    choice.method.code(),
                    true,
                    &payload[..len],
                    &mut out,
                )
                .unwrap();
            chains[at].advance(0, 0, raw);
        }
        let (raw, tokens) = &second;
        let made = encoders[0].encode_with(choice, raw, tokens, &mut payload);
        let len = made.unwrap().len;
        assert!(len < PAGE_BYTES, "{len} bytes refer to nothing");
        let digest = chains[0].advance(1, 0, raw);
        let mut out = vec![0; raw.len()];
        let mut send = |decoder: &mut Decoder| {
            let code = choice.method.code();
            let result = decoder.decode(CodecVersion::V3, code, true, &payload[..len], &mut out);
            result.map(|()| out == *raw)
        };
        let [own, other] = &mut decoders;
        assert_ne!(send(other), Ok(true));
        assert!(chains[1].verify(1, 0, raw, &digest).is_err());
        assert_eq!(send(own), Ok(true));
    }
}

/// A context is what the history holds, or nothing.
#[test]
fn contexts_that_the_history_does_not_offer_are_refused() {
    let zstd = Method::Zstd.code();
    let mut out = vec![0; PAGE_BYTES];
    let decoder = with_two_pages;
    let context = [vec![0; 8], noise(1), noise(2)].concat();
    let good = in_context(2, &context, &noise(2));
    assert!(good.len() < 100, "the context was not used: {}", good.len());
    let mut send = |history, payload: &[u8]| {
        decoder().decode(CodecVersion::V3, zstd, history, payload, &mut out)
    };
    assert_eq!(send(true, &good), Ok(()));
    assert_eq!(
        send(false, &good),
        Err(DecodeError::BadContext { pages: 2 })
    );
    for pages in [0, 3, 257, u64::from(u32::MAX) + 1] {
        let payload = in_context(pages, &context, &noise(2));
        let expected = DecodeError::BadContext { pages };
        assert_eq!(send(true, &payload), Err(expected));
    }
    // Another context than the frame was made in: other bytes, or none.
    let short = in_context(1, &context, &noise(1));
    assert!(send(true, &short).is_err());
    // Only literals have one.
    let mut elsewhere = good;
    elsewhere[1] = 3;
    assert_eq!(send(true, &elsewhere), Err(DecodeError::BadSections));
}

/// Kinds that no filter has, and pages that are missing behind them.
#[test]
fn filters_that_do_not_exist_are_refused() {
    let section = |payload: &mut Vec<u8>, bytes: &[u8]| {
        payload.push(0);
        payload.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        payload.extend_from_slice(bytes);
    };
    let page = [5; PAGE_BYTES];
    let send = |kinds: &[u8], filtered: &[u8]| {
        let mut payload = vec![0b1 | 0b1_0000 | 0b10_0000];
        section(&mut payload, &[6]);
        section(&mut payload, kinds);
        section(&mut payload, filtered);
        decode_new(
            CodecVersion::V3,
            Method::Zstd.code(),
            true,
            &payload,
            PAGE_BYTES,
        )
    };
    assert!(send(&[1], &page).is_ok());
    let malformed = Err(DecodeError::BadOperation { at: 0 });
    assert_eq!(send(&[9], &page), malformed);
    assert_eq!(
        send(&[0], &page),
        malformed,
        "a plain page that is not there"
    );
    assert_eq!(send(&[1], &page[1..]), malformed);
    assert_eq!(send(&[1, 1], &page), Err(DecodeError::BadSections));
    assert_eq!(
        send(&[1], &[page, page].concat()),
        Err(DecodeError::BadSections)
    );
}

/// A short batch after a long one, in one buffer: no byte of the long one comes back.
#[test]
fn a_reused_buffer_keeps_nothing() {
    let secret = vec![0xa5; 8192];
    for (version, method) in METHODS {
        let mut encoder = Encoder::new(&config(4)).unwrap();
        let mut decoder = Decoder::new(&config(4)).unwrap();
        let mut payload = vec![0; Encoder::max_encoded_len(8192)];
        let mut out = vec![0; 8192];
        let mut send = |raw: &[u8], claimed: usize, out: &mut [u8]| {
            let tokens = [Token::Raw {
                len: raw.len() as u32,
            }];
            let encoded = match version {
                CodecVersion::V1 => {
                    encoder.encode(version, &EncodeHint::default(), raw, &tokens, &mut payload)
                }
                CodecVersion::V3 => encoder.encode_with(choice(method), raw, &tokens, &mut payload),
            }
            .unwrap();
            let payload = &payload[..encoded.len];
            decoder.decode(
                version,
                encoded.method,
                encoded.history,
                payload,
                &mut out[..claimed],
            )
        };
        assert_eq!(send(&secret, 8192, &mut out), Ok(()));
        assert_eq!(send(&[1; 100], 100, &mut out), Ok(()));
        assert_eq!(out[..100], [1; 100]);
        // The peer says 200 bytes and sends 100: the rest of the buffer is still the secret.
        assert!(send(&[1; 100], 200, &mut out).is_err(), "{method:?}");
    }
}
