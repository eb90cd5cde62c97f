//! Pages that both sides have on disk: the same bytes out, the same history, and nothing for a peer that lies.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use dwcp_baseline::{Baseline, Block, Blocks, Kind, Limits, Store, StoreError, Tenant};
use proptest::prelude::*;

use super::guest::{Edit, Event, Guest, addr, config, event, random_words};
use super::round_trip::choice;
use crate::codec::ops::{BlockJump, Class, Op};
use crate::codec::{
    CodecVersion, DecodeError, Decoder, Encoder, MAX_BATCH_RAW_BYTES, Method, MissingBlock,
};
use crate::stream::{PAGE_BYTES, Token};

struct Seeds(Vec<u64>);

/// What [`Edit::Random`] makes of a page.
fn page_of(seed: u64) -> Block {
    let mut page = [0; PAGE_BYTES];
    for (word, to) in random_words(seed).zip(page.as_chunks_mut::<8>().0) {
        *to = word.to_le_bytes();
    }
    page
}

impl Blocks for Seeds {
    fn next(&mut self, into: &mut Block) -> Result<bool, StoreError> {
        Ok(self.0.pop().map(|seed| *into = page_of(seed)).is_some())
    }

    fn position(&self) -> u64 {
        0
    }
}

/// A host with two baselines: seeds 0 to 39 and 40 to 59.
struct HostStore {
    dir: tempfile::TempDir,
    list: Vec<Arc<Baseline>>,
}

impl HostStore {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            bytes_max: 16 << 20,
            migrations_max: 1,
        };
        let store = Store::open(dir.path(), limits).unwrap();
        let tenant = Tenant::default();
        let list = [0..40, 40..60]
            .map(|seeds: std::ops::Range<u64>| {
                let mut blocks = Seeds(seeds.rev().collect());
                let named = (Kind::Image, "disk");
                let summary = store
                    .add(&tenant, named, &mut blocks, &mut |_| true)
                    .unwrap();
                Arc::new(store.load_one(&tenant, summary.id).unwrap())
            })
            .to_vec();
        Self { dir, list }
    }

    fn damage(&self, segment: u32, block: u64) {
        let path = format!("tenants/default/{segment:08x}.blocks");
        let file = std::fs::File::options()
            .write(true)
            .open(self.dir.path().join(path))
            .unwrap();
        file.write_all_at(b"damage", block * 4096 + 100).unwrap();
    }
}

fn known_event(pages: usize) -> impl Strategy<Value = Event> {
    let known = (0..pages, 0u64..80, any::<bool>()).prop_map(|(page, seed, header)| Event::Page {
        page,
        edit: Edit::Random { seed },
        header,
    });
    prop_oneof![2 => known, 1 => event(pages)]
}

const METHODS: [Method; 3] = [Method::Stored, Method::Lz4, Method::Zstd];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bytes_come_back_and_histories_stay_mirrored_also_where_blocks_are_damaged(
        slots in 1usize..50,
        batches in proptest::collection::vec((0usize..3, proptest::collection::vec(known_event(30), 0..30)), 1..8),
        damaged in proptest::collection::vec((0u32..2, 0u64..40), 0..4),
    ) {
        let (source, destination) = (HostStore::new(), HostStore::new());
        for (segment, block) in damaged {
            if segment == 0 || block < 20 {
                destination.damage(segment, block);
            }
        }
        let mut encoder = Encoder::new(&config(slots)).unwrap();
        let mut decoder = Decoder::new(&config(slots)).unwrap();
        encoder.use_baselines(source.list);
        decoder.use_baselines(destination.list.clone());
        let mut guest = Guest::new(30);
        for (method, events) in &batches {
            let (raw, tokens) = guest.batch(events);
            let mut payload = vec![0xcc; Encoder::max_encoded_len(raw.len())];
            let encoded = encoder.encode_with(choice(METHODS[*method]), &raw, &tokens, &mut payload).unwrap();
            let before = decoder.store().contents();
            let mut out = vec![0xdd; raw.len()];
            let decoded = decoder.decode(CodecVersion::V3, encoded.method, encoded.history, &payload[..encoded.len], &mut out);
            if let Err(error) = decoded {
                prop_assert!(matches!(error, DecodeError::MissingBlock { .. }), "{error}");
                prop_assert!(decoder.store().contents() == before);
                let missing = decoder.missing().to_vec();
                prop_assert!(!missing.is_empty());
                for MissingBlock { baseline, number, at } in missing {
                    let digest = destination.list[usize::from(baseline)].digest(number).unwrap();
                    prop_assert!(blake3::hash(&raw[at..at + PAGE_BYTES]) == *digest);
                }
                let again = encoder.encode_detached_v1(&raw, &tokens, encoded.history, &mut payload).unwrap();
                decoder.decode(CodecVersion::V1, again.method, again.history, &payload[..again.len], &mut out).unwrap();
            }
            prop_assert!(out == raw);
            prop_assert!(encoder.store().contents() == decoder.store().contents());
        }
    }

    #[test]
    fn references_of_any_provenance_end_in_an_error(
        ops in proptest::collection::vec((0u64..9, any::<bool>(), proptest::option::of(0u8..4), -3i64..70, 1u64..40), 1..6),
        raw_pages in 0usize..30,
    ) {
        let destination = HostStore::new();
        let mut decoder = Decoder::new(&config(8)).unwrap();
        decoder.use_baselines(destination.list);
        let mut section = Vec::new();
        for (class, header, baseline, distance, count) in ops {
            let class = if class == 0 { Class::ZeroPage } else { Class::Known };
            Op { class, header, jump: None, count, block: BlockJump { baseline, distance } }.put(&mut section);
        }
        let mut payload = vec![1, 0];
        payload.extend_from_slice(&(section.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(section.len() as u32).to_le_bytes());
        payload.extend_from_slice(&section);
        let code = Method::Stored.code();
        let outcomes = [0x11u8, 0xee].map(|fill| {
            let mut out = vec![fill; raw_pages * PAGE_BYTES];
            let decoded = decoder.decode(CodecVersion::V3, code, false, &payload, &mut out);
            decoded.map(|()| out)
        });
        let [first, second] = outcomes;
        match first {
            Ok(out) => prop_assert!(second == Ok(out)),
            Err(DecodeError::MissingBlock { .. }) => prop_assert!(false, "nothing is damaged"),
            Err(_) => prop_assert_eq!(second, Err(DecodeError::Poisoned)),
        }
    }
}

/// Raw bytes and tokens of pages with these seeds.
fn batch(seeds: impl Iterator<Item = u64>) -> (Vec<u8>, Vec<Token>) {
    let (mut raw, mut tokens) = (Vec::new(), Vec::new());
    for (at, seed) in seeds.enumerate() {
        let addr = addr(at * 2);
        raw.extend_from_slice(&addr.page_header());
        raw.extend_from_slice(&page_of(seed));
        tokens.push(Token::Page { addr });
    }
    (raw, tokens)
}

#[test]
fn a_run_of_blocks_costs_a_few_bytes_and_foreign_pages_their_own() {
    let (source, destination) = (HostStore::new(), HostStore::new());
    let mut encoder = Encoder::new(&config(100)).unwrap();
    encoder.use_baselines(source.list);
    let mut payload = vec![0; Encoder::max_encoded_len(MAX_BATCH_RAW_BYTES)];
    let (raw, tokens) = batch(3..9);
    let stored = choice(Method::Stored);
    let encoded = encoder
        .encode_with(stored, &raw, &tokens, &mut payload)
        .unwrap();
    assert_eq!((encoded.stats.known, encoded.stats.literal), (6, 0));
    assert!(encoded.len < 16, "{}", encoded.len);
    // The receiver that was never asked refuses it.
    let mut out = vec![0; raw.len()];
    let mut stranger = Decoder::new(&config(100)).unwrap();
    let code = encoded.method;
    let refused = stranger.decode(
        CodecVersion::V3,
        code,
        true,
        &payload[..encoded.len],
        &mut out,
    );
    assert!(
        matches!(refused, Err(DecodeError::BadOperation { .. })),
        "{refused:?}"
    );
    // One that has the second alone refuses what it does not have.
    let mut other = Decoder::new(&config(100)).unwrap();
    other.use_baselines(destination.list[1..].to_vec());
    let (raw, tokens) = batch(30..40);
    let encoded = encoder
        .encode_with(stored, &raw, &tokens, &mut payload)
        .unwrap();
    let mut out = vec![0; raw.len()];
    let refused = other.decode(
        CodecVersion::V3,
        code,
        true,
        &payload[..encoded.len],
        &mut out,
    );
    assert_eq!(
        refused,
        Err(DecodeError::UnknownBlock {
            baseline: 0,
            number: 30
        })
    );
    // Without baselines from now on.
    encoder.use_baselines(Vec::new());
    let (raw, tokens) = batch(10..12);
    let encoded = encoder
        .encode_with(stored, &raw, &tokens, &mut payload)
        .unwrap();
    assert_eq!((encoded.stats.known, encoded.stats.literal), (0, 2));
}
