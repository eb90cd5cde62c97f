//! `dwcp-perf bench NAME` measures, `dwcp-perf ab COMMIT NAME` holds two commits side by side, `dwcp-perf
//! compare` the product and its hypervisor alone, `dwcp-perf encode` the codec on streams that `dwcp-perf corpus`
//! recorded: all print tables and write JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use dwcp_perf::ab;
#[cfg(feature = "dpdk")]
use dwcp_perf::bench::lanes::dpdk::end::DpdkEndArguments;
use dwcp_perf::bench::lanes::end::{self, EndArguments};
use dwcp_perf::bench::lossy::end::{self as lossy_end, LossyEndArguments};
use dwcp_perf::bench::scaling::end::ScalingEndArguments;
use dwcp_perf::bench::{self, Bench};
use dwcp_perf::compare;
use dwcp_perf::corpus;
use dwcp_perf::encode;
use dwcp_perf::row::{self, Row};

#[derive(Parser)]
#[command(
    name = "dwcp-perf",
    about = "Measures the product against what it is to beat",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run one bench; `list` names them all.
    Bench {
        /// Its name, or `list`.
        name: String,
        /// Write the rows to this file as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Samples, or pairs of samples; each bench has its own default.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: Option<u32>,
    },
    /// Compare the working tree with a commit: builds both and runs a bench of both in turns
    Ab {
        /// The commit
        base: String,
        /// The bench
        #[arg(default_value = "stream")]
        bench: String,
        /// Write the rows to this file as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Runs of each
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        pairs: Option<u32>,
        /// Samples in each run; each bench has its own default
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: Option<u32>,
    },
    /// Move guests by the product and by QEMU's own ways over the same line, and hold the figures side by side
    Compare(compare::Arguments),
    /// Record migration streams of real guests, for `encode`
    Corpus(corpus::Arguments),
    /// Run the codec alone on recorded streams: by every fixed encoding, by its own choice, and the best in hindsight
    Encode(encode::Arguments),
    /// One end of a lane, for the bench of lanes itself
    #[command(hide = true)]
    LaneEnd(EndArguments),
    /// One end of a line with faults, for the bench of those itself
    #[command(hide = true)]
    LossyEnd(LossyEndArguments),
    /// One end of a lane over DPDK, for the bench of lanes itself
    #[cfg(feature = "dpdk")]
    #[command(hide = true)]
    DpdkEnd(DpdkEndArguments),
    /// All workers of one side, for the bench of scaling itself
    #[command(hide = true)]
    ScalingEnd(ScalingEndArguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Bench { name, .. } if name == "list" => {
            for bench in bench::all() {
                println!("{:<10} {}", bench.name, bench.about);
            }
            Ok(())
        }
        Task::Bench { name, json, runs } => {
            let runs = runs.map(|runs| runs as usize);
            (named(&name).run)(runs).and_then(|rows| show(&rows, json))
        }
        Task::Ab {
            base,
            bench,
            json,
            pairs,
            runs,
        } => {
            let plan = ab::Plan {
                base,
                pairs: pairs.map(|pairs| pairs as usize),
                runs,
            };
            ab::run(&plan, named(&bench)).and_then(|rows| show(&rows, json))
        }
        Task::Compare(arguments) => compare::run(&arguments),
        Task::Corpus(arguments) => corpus::run(&arguments),
        Task::Encode(arguments) => encode::run(&arguments),
        Task::LaneEnd(arguments) => end::run(&arguments),
        Task::LossyEnd(arguments) => lossy_end::run(&arguments),
        #[cfg(feature = "dpdk")]
        Task::DpdkEnd(arguments) => bench::lanes::dpdk::end::run(&arguments),
        Task::ScalingEnd(arguments) => bench::scaling::end::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> &'static Bench {
    bench::find(name).unwrap_or_else(|| {
        let words = format!(
            "there is no bench {name:?}; known are: list, {}",
            bench::names()
        );
        Arguments::command()
            .error(clap::error::ErrorKind::InvalidValue, words)
            .exit()
    })
}

fn show(rows: &[Row], json: Option<PathBuf>) -> anyhow::Result<()> {
    print!("{}", row::table(rows));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(rows)?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
