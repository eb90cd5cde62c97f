//! The seeds of the fuzz target `codec`: real batches of every method, in its input format.

use std::path::Path;

use super::guest::{Edit, Event, Guest, config};
use super::round_trip::choice;
use crate::codec::{CodecVersion, Decoder, EncodeHint, Encoder, Method};

/// In the order of the fuzz target's table.
const METHODS: [(CodecVersion, Method); 6] = [
    (CodecVersion::V1, Method::V1Stored),
    (CodecVersion::V1, Method::V1Lz4),
    (CodecVersion::V3, Method::Passthrough),
    (CodecVersion::V3, Method::Stored),
    (CodecVersion::V3, Method::Lz4),
    (CodecVersion::V3, Method::Zstd),
];

const SLOTS: usize = 8;

/// Three batches: new pages, then copies, deltas and unchanged pages, then the first pages again.
fn events(round: u64) -> Vec<Event> {
    let page = |page, edit| Event::Page {
        page,
        edit,
        header: page % 2 == 0,
    };
    match round {
        0 => vec![
            Event::Raw { len: 20, fill: 1 },
            page(0, Edit::Text { seed: 1 }),
            page(1, Edit::Random { seed: 2 }),
            Event::Zero { page: 3 },
            page(2, Edit::Clear),
        ],
        1 => vec![
            page(0, Edit::Words { seed: 5, words: 3 }),
            page(4, Edit::CopyOf { page: 1 }),
            page(1, Edit::Nothing),
            Event::Raw { len: 3, fill: 9 },
        ],
        _ => vec![
            page(
                5,
                Edit::Table {
                    seed: 7,
                    record: 16,
                },
            ),
            page(4, Edit::Text { seed: 8 }),
            page(6, Edit::CopyOf { page: 0 }),
        ],
    }
}

/// The fuzz target's input for a method.
fn seed(which: usize) -> Vec<u8> {
    let (version, method) = METHODS[which];
    let mut guest = Guest::new(8);
    let mut encoder = Encoder::new(&config(SLOTS)).unwrap();
    let mut seed = Vec::new();
    for round in 0..3 {
        let events = match method {
            // What shrinks would not be stored.
            Method::V1Stored => {
                let edit = Edit::Random { seed: round };
                vec![Event::Page {
                    page: round as usize / 2,
                    edit,
                    header: true,
                }]
            }
            _ => events(round),
        };
        let (raw, tokens) = guest.batch(&events);
        let mut payload = vec![0; Encoder::max_encoded_len(raw.len())];
        let encoded = match version {
            CodecVersion::V1 => {
                encoder.encode(version, &EncodeHint::default(), &raw, &tokens, &mut payload)
            }
            CodecVersion::V3 => encoder.encode_with(choice(method), &raw, &tokens, &mut payload),
        }
        .unwrap();
        let code = METHODS
            .iter()
            .position(|(_, method)| method.code() == encoded.method)
            .unwrap();
        seed.push(code as u8 | u8::from(encoded.history) << 3);
        seed.extend_from_slice(&(raw.len() as u16).to_le_bytes());
        seed.extend_from_slice(&(encoded.len as u16).to_le_bytes());
        seed.extend_from_slice(&payload[..encoded.len]);
    }
    seed
}

/// Seeds that no longer decode would let the fuzzer start from nothing. After a change of the format,
/// run this with `WRITE_FUZZ_SEEDS=1` in the environment.
#[test]
fn the_fuzz_seeds_are_valid_batches() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/codec");
    for (which, (_, method)) in METHODS.iter().enumerate() {
        let path = folder.join(format!("{method:?}").to_lowercase());
        if std::env::var_os("WRITE_FUZZ_SEEDS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, seed(which)).unwrap();
        }
        let seed = std::fs::read(&path).unwrap();
        let mut decoder = Decoder::new(&config(SLOTS)).unwrap();
        let mut rest = &seed[..];
        let mut batches = 0;
        while let Some((&[kind, a, b, c, d], tail)) = rest.split_first_chunk::<5>() {
            let mut out = vec![0; usize::from(u16::from_le_bytes([a, b]))];
            let (payload, tail) = tail.split_at(usize::from(u16::from_le_bytes([c, d])));
            rest = tail;
            let (version, method) = METHODS[usize::from(kind & 7)];
            let history = kind & 8 != 0;
            decoder
                .decode(version, method.code(), history, payload, &mut out)
                .unwrap();
            batches += 1;
        }
        assert_eq!((batches, rest.len()), (3, 0), "{}", path.display());
    }
}
