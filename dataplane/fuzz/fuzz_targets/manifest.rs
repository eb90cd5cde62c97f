//! A manifest file of any provenance: refused, or exactly what would be written of what it says.
//!
//! Input: a byte whose lowest bit says whether the id and the checksum of the rest are put right first, for else
//! nothing gets past them; the file.

#![no_main]

use dwcp_baseline::manifest::{decode, encode, put_right};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, file)) = input.split_first() else {
        return;
    };
    let mut file = file.to_vec();
    if kind & 1 == 1 {
        put_right(&mut file);
    }
    let Some((summary, entries)) = decode(&file) else {
        return;
    };
    assert!(!entries.is_empty());
    assert_eq!(summary.blocks, entries.len() as u64);
    assert_eq!(encode(&summary, &entries), file);
});
