//! The codec on one core, path by path.
//!
//! In: how many rounds. Out: for each path the bytes a second that go into the encoder, and those that come out
//! of the decoder beside them; for LZ4 and zstd also what the encoder's second half takes beside plain calls of
//! the same library on the same bytes, in turns. Promises: a path is what its name says, or the bench fails:
//! classes are counted; every batch comes back as it was; input is new to the caches, larger than they are
//! together; time is the thread's processor time.

mod paths;
mod plain;

use anyhow::{Context as _, ensure};
use dwcp_dataplane::codec::{
    Choice, ChoiceReason, CodecConfig, CodecVersion, Decoder, EncodeStats, Encoder, Page, Sections,
    Strand,
};
use dwcp_dataplane::stream::PAGE_BYTES;
use dwcp_hugepages::arena::BackingPolicy;

use crate::cores::processor_s;
use crate::encode::batches::Batch;
use crate::row::Row;
use paths::Path;
use plain::Plain;

const ROUNDS: usize = 9;
/// Pages of a round; the page history holds as many.
const PAGES: usize = 16 << 10;
/// Raw bytes of a batch, about: the data plane's own.
const BATCH_PAGES: usize = 127;

pub(super) fn run(rounds: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let core = core_affinity::get_core_ids().and_then(|cores| cores.last().copied());
    let pinned = core.is_some_and(core_affinity::set_for_current);
    ensure!(pinned, "the bench cannot be pinned to a core");
    rows("", &own_pages()?, rounds.unwrap_or(ROUNDS))
}

/// Pages of something real that every run has: this program's file, without what is zero or there twice.
fn own_pages() -> anyhow::Result<Vec<Page>> {
    let path = std::env::current_exe()?;
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let mut seen = std::collections::HashSet::new();
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    let new = |page: &&Page| page.iter().any(|byte| *byte != 0) && seen.insert(**page);
    Ok(pages.iter().filter(new).copied().collect())
}

/// All paths; `data` is what is compressed.
///
/// # Errors
/// A batch that came back changed; a path that was not taken.
pub(crate) fn rows(prefix: &str, data: &[Page], rounds: usize) -> anyhow::Result<Vec<Row>> {
    ensure!(
        data.len() >= 16 * BATCH_PAGES,
        "{} pages are too few to measure with",
        data.len()
    );
    let mut rows = Vec::new();
    for path in Path::ALL {
        let samples = measure(path, data, rounds)?;
        let name = format!("{prefix}{}", path.name());
        rows.push(Row::new(
            &format!("{name}, encode"),
            "GB/s in",
            &samples.encode,
            &[],
        ));
        let back = Row::new(
            &format!("{name}, decode; encode"),
            "GB/s out",
            &samples.decode,
            &samples.encode,
        );
        rows.push(back);
        if !samples.plain.is_empty() {
            rows.push(Row::new(
                &format!("{name}, second half; plain calls"),
                "GB/s in",
                &samples.squeeze,
                &samples.plain,
            ));
        }
    }
    Ok(rows)
}

/// A round each.
#[derive(Default)]
struct Samples {
    encode: Vec<f64>,
    decode: Vec<f64>,
    squeeze: Vec<f64>,
    plain: Vec<f64>,
}

fn config() -> CodecConfig {
    CodecConfig {
        store_bytes: PAGES * PAGE_BYTES,
        backing: BackingPolicy::PreferHuge,
        key: [7; 32],
        zstd_level_min: 1,
        zstd_level_max: 9,
    }
}

fn measure(path: Path, data: &[Page], rounds: usize) -> anyhow::Result<Samples> {
    let mut feed = paths::Feed::new(path, data)?;
    let config = config();
    let (mut encoder, mut decoder) = (Encoder::new(&config)?, Decoder::new(&config)?);
    encoder.use_baselines(feed.baselines());
    decoder.use_baselines(feed.baselines());
    let mut plain = Plain::new(path.method(), path.level())?;
    let mut bench = Bench {
        choice: Choice {
            method: path.method(),
            level: path.level(),
            reason: ChoiceReason::Soonest,
        },
        strand: Strand::new(&config)?,
        sections: Sections::new(),
        out: vec![0; Encoder::max_encoded_len(1 << 20)],
        back: vec![0; 1 << 20],
    };
    let mut samples = Samples::default();
    // Those before the first that counts fill the history.
    for round in 0..paths::WARM_ROUNDS + rounds {
        let batches = feed.round(round);
        let (mut times, mut stats) = ([0.0; 4], EncodeStats::default());
        for (nth, batch) in batches.iter().enumerate() {
            // In turns, so that neither always finds the bytes in the cache.
            let plain_first = (nth + round) % 2 == 0;
            if plain_first {
                times[3] += plain.time(batch)?;
            }
            bench.both_ways(&mut encoder, &mut decoder, batch, &mut times, &mut stats)?;
            if !plain_first {
                times[3] += plain.time(batch)?;
            }
        }
        if round < paths::WARM_ROUNDS {
            continue;
        }
        let (taken, all) = (path.taken(&stats), stats.pages);
        ensure!(
            taken * 100 >= all * 99,
            "{}: {taken} of {all} pages took that path: {stats:?}",
            path.name()
        );
        let gb = batches.iter().map(|batch| batch.raw.len()).sum::<usize>() as f64 / 1e9;
        samples.encode.push(gb / (times[0] + times[1]));
        samples.decode.push(gb / times[2]);
        if plain.is_some() {
            samples.squeeze.push(gb / times[1]);
            samples.plain.push(gb / times[3]);
        }
    }
    Ok(samples)
}

struct Bench {
    choice: Choice,
    strand: Strand,
    sections: Sections,
    out: Vec<u8>,
    back: Vec<u8>,
}

impl Bench {
    /// Adds what the encoder's halves and the decoder took to the first three of `times`.
    fn both_ways(
        &mut self,
        encoder: &mut Encoder,
        decoder: &mut Decoder,
        batch: &Batch,
        times: &mut [f64; 4],
        stats: &mut EncodeStats,
    ) -> anyhow::Result<()> {
        let Batch { raw, tokens } = batch;
        let sections = &mut self.sections;
        let begun = processor_s();
        let classified = encoder.classify_with(self.choice, raw, tokens, sections)?;
        let halfway = processor_s();
        let encoded = self
            .strand
            .squeeze(&classified, raw, sections, &mut self.out)?;
        let done = processor_s();
        let (payload, back) = (&self.out[..encoded.len], &mut self.back[..raw.len()]);
        let (method, history) = (encoded.method, encoded.history);
        decoder.decode(CodecVersion::V3, method, history, payload, back)?;
        let decoded = processor_s();
        ensure!(back == raw.as_slice(), "a batch came back changed");
        times[0] += halfway - begun;
        times[1] += done - halfway;
        times[2] += decoded - done;
        let one = encoded.stats;
        stats.pages += one.pages;
        stats.zero += one.zero;
        stats.dup += one.dup;
        stats.known += one.known;
        stats.delta += one.delta;
        stats.literal += one.literal;
        Ok(())
    }
}
