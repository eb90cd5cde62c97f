//! The codec alone, on recorded streams of real guests.
//!
//! In: guests whose streams `dwcp-perf corpus` recorded, lines. Out: rows: how much is left of the bytes of
//! pages that are not zero, and how fast a core encodes and decodes, by every fixed encoding; and on each
//! line the time that the encoder's own choice takes, beside the best fixed encoding and the best choice in
//! hindsight. Promise: what was encoded was decoded and compared, every time; both histories lie on hugepages that
//! were touched before.

pub(crate) mod batches;
mod known;
mod line;
mod replay;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use dwcp_dataplane::codec::{Choice, ChoiceReason, Method};

use crate::bench::codec;
use crate::compare::{Guest, Several, several};
use crate::corpus;
use crate::hugepages::Reserved;
use crate::row::{self, Row};
use batches::Stream;
use known::Known;
use line::Line;
use replay::{Cost, Way, replay};

/// What two histories may need beside their pages.
const SPARE_MB: u32 = 16;
/// Weights of encode time tried for the best choice in hindsight.
const WEIGHTS: u32 = 40;

/// What to run and where to write it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Guests: load, redis, postgres, build, idle; commas between them, or all
    #[arg(long, value_parser = several::<Guest>)]
    guest: Several<Guest>,
    /// The state of the guest, as `corpus` names it
    #[arg(long, default_value = "first")]
    state: String,
    /// Where the streams are; by default beside the built programs
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What both sides hold on disk: `image` for the guest's golden image, or the states of earlier migrations;
    /// commas between them
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    baseline: Vec<String>,
    /// Where saved guests are, for their golden image; by default beside the built programs
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Write the rows to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Raw bytes of a batch, KiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..=1024))]
    batch_kb: u32,
    /// The page history, MiB; by default a session's
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    store_mb: u32,
    /// zstd levels among the fixed encodings
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 6, 9])]
    levels: Vec<i32>,
    /// Lines, Mbit/s
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 900, 10_000, 40_000])]
    lines: Vec<u64>,
    /// Measure the codec path by path too, as `bench codec` does, with this guest's pages
    #[arg(long)]
    paths: bool,
    /// Runs of each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
}

/// Runs, and prints and writes the rows.
///
/// # Errors
/// A stream that is not there; a batch that came back changed.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => corpus::default_folder()?,
    };
    // A history's first touch of each page is the machine's affair, not the codec's.
    let _reserved = Reserved::hugepages(2 * arguments.store_mb + SPARE_MB)?;
    let mut rows = Vec::new();
    for guest in arguments.guest.iter() {
        let path = corpus::file(&folder, guest, &arguments.state);
        let stream = Stream::read(&path, arguments.batch_kb as usize * 1024)?;
        let known = Known::prepare(arguments, guest, &folder)?;
        let name = match arguments.baseline.as_slice() {
            [] => guest.name().to_owned(),
            some => format!("{} with {}", guest.name(), some.join("+")),
        };
        let mut of_guest = of_stream(arguments, &name, &stream, &known)?;
        if arguments.paths {
            let (pages, runs) = (stream.distinct_pages(), arguments.runs as usize);
            of_guest.extend(codec::rows(&format!("{name}, "), &pages, runs)?);
        }
        print!("{}", row::table(&of_guest));
        rows.extend(of_guest);
        if let Some(path) = &arguments.json {
            let text = serde_json::to_string_pretty(&rows)?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    Ok(())
}

fn name(choice: Choice) -> String {
    match choice.method {
        Method::Zstd => format!("zstd {}", choice.level),
        method => format!("{method:?}").to_lowercase(),
    }
}

fn fixed(levels: &[i32]) -> Vec<Choice> {
    let choice = |method, level| Choice {
        method,
        level,
        reason: ChoiceReason::Soonest,
    };
    let plain = [Method::Passthrough, Method::Stored, Method::Lz4];
    let mut all: Vec<Choice> = plain.map(|method| choice(method, 0)).to_vec();
    all.extend(levels.iter().map(|level| choice(Method::Zstd, *level)));
    all
}

fn of_stream(
    arguments: &Arguments,
    guest: &str,
    stream: &Stream,
    baselines: &Known,
) -> anyhow::Result<Vec<Row>> {
    let store_bytes = (arguments.store_mb as usize) << 20;
    let mut rows = Vec::new();
    // For each encoding the costs of its first run.
    let mut known: Vec<(Choice, Vec<Cost>)> = Vec::new();
    for choice in fixed(&arguments.levels) {
        let (mut left, mut speeds, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..arguments.runs {
            let (costs, _) = replay(stream, Way::Fixed(choice), store_bytes, baselines)?;
            let sum = |of: fn(&Cost) -> f64| costs.iter().map(of).sum::<f64>();
            left.push(sum(|cost| cost.len as f64) / stream.page_bytes as f64);
            let gb = stream.raw_bytes as f64 / 1e9;
            speeds.push(gb / sum(|cost| cost.encode_s));
            back.push(gb / sum(|cost| cost.decode_s));
            if run == 0 {
                known.push((choice, costs));
            }
        }
        let name = format!("{guest}, {}", name(choice));
        rows.push(Row::new(
            &format!("{name}, left_fraction"),
            "share",
            &left,
            &[],
        ));
        rows.push(Row::new(
            &format!("{name}, encode"),
            "GB/s in",
            &speeds,
            &[],
        ));
        rows.push(Row::new(&format!("{name}, decode"), "GB/s out", &back, &[]));
    }
    for mbit in &arguments.lines {
        rows.extend(on_line(
            arguments,
            guest,
            (stream, baselines),
            *mbit,
            &known,
        )?);
    }
    Ok(rows)
}

fn on_line(
    arguments: &Arguments,
    guest: &str,
    (stream, baselines): (&Stream, &Known),
    mbit: u64,
    known: &[(Choice, Vec<Cost>)],
) -> anyhow::Result<Vec<Row>> {
    let bytes_per_s = mbit * 1_000_000 / 8;
    let store_bytes = (arguments.store_mb as usize) << 20;
    let total = |costs: &mut dyn Iterator<Item = Cost>| {
        let mut line = Line::new(bytes_per_s);
        costs.for_each(|cost| line.pass(cost.encode_s, cost.len));
        line.total_s()
    };
    let (mut best_name, mut best) = (String::new(), f64::INFINITY);
    for (choice, costs) in known {
        let time = total(&mut costs.iter().copied());
        if time < best {
            (best_name, best) = (name(*choice), time);
        }
    }
    // For each batch the encoding with the least sum of both times, under the best of many weights.
    let weighted = |weight: f64| {
        let sum = |cost: &Cost| {
            weight * cost.encode_s + (1.0 - weight) * cost.len as f64 / bytes_per_s as f64
        };
        total(&mut (0..stream.batches.len()).filter_map(|nth| {
            let of_batch = known.iter().map(|(_, costs)| costs[nth]);
            of_batch.min_by(|a, b| sum(a).total_cmp(&sum(b)))
        }))
    };
    let weights = (1..WEIGHTS).map(|nth| f64::from(nth) / f64::from(WEIGHTS));
    let hindsight = weights.map(weighted).fold(best, f64::min);
    let mut learned = Vec::new();
    let mut left = Vec::new();
    let mut chosen = BTreeMap::new();
    for _ in 0..arguments.runs {
        let (costs, encoded) =
            replay(stream, Way::Learned { bytes_per_s }, store_bytes, baselines)?;
        for encoded in encoded {
            let reason = format!("{:?}", encoded.choice.reason).to_lowercase();
            *chosen.entry((name(encoded.choice), reason)).or_insert(0) += 1;
        }
        learned.push(total(&mut costs.iter().copied()));
        let bytes: usize = costs.iter().map(|cost| cost.len).sum();
        left.push(bytes as f64 / stream.page_bytes as f64);
    }
    let chosen: Vec<String> = chosen
        .iter()
        .map(|((name, reason), batches)| format!("{batches} x {name} ({reason})"))
        .collect();
    let name = format!("{guest} at {mbit} Mbit/s");
    Ok(vec![
        Row::new(
            &format!("{name}, own choice / best fixed"),
            "s",
            &learned,
            &[best],
        )
        .noted(format!("the best fixed encoding is {best_name}")),
        Row::new(
            &format!("{name}, own choice / hindsight"),
            "s",
            &learned,
            &[hindsight],
        ),
        Row::new(
            &format!("{name}, own choice, left_fraction"),
            "share",
            &left,
            &[],
        )
        .noted(chosen.join(", ")),
    ])
}
