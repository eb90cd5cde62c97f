//! One run of a stream through an encoder and a decoder of its own. In: a stream, a way. Out: what each batch
//! cost, in processor time of the core. Promise: every payload was decoded and held against what went in.

use anyhow::ensure;
use dwcp_dataplane::codec::{
    Choice, CodecConfig, CodecVersion, Decoder, EncodeHint, Encoded, Encoder, Sections, Strand,
};
use dwcp_hugepages::arena::BackingPolicy;

use super::batches::Stream;
use super::known::Known;
use crate::cores::processor_s;

/// How batches are encoded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// All alike.
    Fixed(Choice),
    /// As the encoder chooses, for a line of so many bytes a second.
    Learned { bytes_per_s: u64 },
}

/// What a batch cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) len: usize,
    pub(super) encode_s: f64,
    pub(super) decode_s: f64,
}

/// What a codec is made of here.
pub(super) fn config(store_bytes: usize) -> CodecConfig {
    CodecConfig {
        store_bytes,
        backing: BackingPolicy::PreferHuge,
        key: [7; 32],
        zstd_level_min: 1,
        zstd_level_max: 12,
    }
}

/// Runs it, and answers with the costs and what was chosen.
pub(super) fn replay(
    stream: &Stream,
    way: Way,
    store_bytes: usize,
    known: &Known,
) -> anyhow::Result<(Vec<Cost>, Vec<Encoded>)> {
    let config = config(store_bytes);
    let mut encoder = Encoder::new(&config)?;
    let mut decoder = Decoder::new(&config)?;
    encoder.use_baselines(known.list());
    decoder.use_baselines(known.list());
    let mut strand = Strand::new(&config)?;
    let mut sections = Sections::new();
    let mut costs = Vec::with_capacity(stream.batches.len());
    let mut all = Vec::with_capacity(stream.batches.len());
    let largest = stream.batches.iter().map(|batch| batch.raw.len()).max();
    let mut out = vec![0; Encoder::max_encoded_len(largest.unwrap_or(0))];
    let mut back = vec![0; largest.unwrap_or(0)];
    for batch in &stream.batches {
        let (raw, tokens) = (&batch.raw, &batch.tokens);
        let begun = processor_s();
        let mut classified = match way {
            Way::Fixed(choice) => encoder.classify_with(choice, raw, tokens, &mut sections)?,
            Way::Learned { bytes_per_s } => {
                let hint = EncodeHint {
                    link_bytes_per_s: Some(bytes_per_s),
                    idle_cores_hint: 0,
                    crowd: 1.0,
                    accepts_raw_as_is: true,
                    ..EncodeHint::default()
                };
                encoder.classify(CodecVersion::V3, &hint, raw, tokens, &mut sections)?
            }
        };
        let halfway = processor_s();
        let mut encoded = strand.squeeze(&classified, raw, &mut sections, &mut out)?;
        let (classify_s, squeeze_s) = (halfway - begun, processor_s() - halfway);
        if let Way::Learned { .. } = way {
            // Of this core alone, whatever else the machine does.
            classified.classify_ns = (classify_s * 1e9) as u64;
            encoded.squeeze_ns = (squeeze_s * 1e9) as u64;
            encoder.learn(&classified, &encoded);
        }
        let payload = if encoded.raw_as_is {
            raw
        } else {
            &out[..encoded.len]
        };
        let begun = processor_s();
        let back = &mut back[..raw.len()];
        let version = CodecVersion::V3;
        decoder.decode(version, encoded.method, encoded.history, payload, back)?;
        let decode_s = processor_s() - begun;
        ensure!(back == raw.as_slice(), "a batch came back changed");
        costs.push(Cost {
            len: encoded.len,
            encode_s: classify_s + squeeze_s,
            decode_s,
        });
        all.push(encoded);
    }
    Ok((costs, all))
}
