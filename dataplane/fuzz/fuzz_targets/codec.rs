//! Batches from a hostile peer, one after the other into one decoder.
//!
//! Input: for each batch a byte (method in the low three bits, history in bit 3), raw length and
//! payload length (16 bits each, little endian), payload. Two decoders whose buffers held different
//! bytes before must agree on everything: what differs would be a byte of an earlier batch.

#![no_main]

use dwcp_dataplane::codec::{CodecConfig, CodecVersion, Decoder, Method};
use dwcp_hugepages::arena::BackingPolicy;
use libfuzzer_sys::fuzz_target;

const METHODS: [(CodecVersion, Method); 6] = [
    (CodecVersion::V1, Method::V1Stored),
    (CodecVersion::V1, Method::V1Lz4),
    (CodecVersion::V3, Method::Passthrough),
    (CodecVersion::V3, Method::Stored),
    (CodecVersion::V3, Method::Lz4),
    (CodecVersion::V3, Method::Zstd),
];

fn decoder() -> Decoder {
    let config = CodecConfig {
        store_bytes: 8 * 4096,
        backing: BackingPolicy::Ordinary,
        key: [0; 32],
        zstd_level_min: 1,
        zstd_level_max: 1,
    };
    match Decoder::new(&config) {
        Ok(decoder) => decoder,
        Err(error) => panic!("{error}"),
    }
}

fuzz_target!(|input: &[u8]| {
    let (mut one, mut two) = (decoder(), decoder());
    let mut rest = input;
    while let Some((&[kind, a, b, c, d], tail)) = rest.split_first_chunk::<5>() {
        let raw_len = usize::from(u16::from_le_bytes([a, b]));
        let payload_len = usize::from(u16::from_le_bytes([c, d])).min(tail.len());
        let (payload, tail) = tail.split_at(payload_len);
        rest = tail;
        let (version, method) = METHODS[usize::from(kind & 7) % METHODS.len()];
        let history = kind & 8 != 0;
        let mut first = vec![0x00; raw_len];
        let mut second = vec![0xff; raw_len];
        let result = one.decode(version, method.code(), history, payload, &mut first);
        assert_eq!(
            result,
            two.decode(version, method.code(), history, payload, &mut second)
        );
        if result.is_err() {
            return;
        }
        assert!(first == second);
    }
});
