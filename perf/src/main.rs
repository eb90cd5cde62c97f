//! `dwcp-perf bench NAME`: measures, prints a table, writes JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use dwcp_perf::bench::{self, BENCHES};
use dwcp_perf::row;

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
}

fn main() -> ExitCode {
    let Task::Bench { name, json, runs } = Arguments::parse().command;
    if name == "list" {
        for bench in &BENCHES {
            println!("{:<10} {}", bench.name, bench.about);
        }
        return ExitCode::SUCCESS;
    }
    let Some(bench) = bench::find(&name) else {
        let words = format!(
            "there is no bench {name:?}; known are: list, {}",
            bench::names()
        );
        Arguments::command()
            .error(clap::error::ErrorKind::InvalidValue, words)
            .exit();
    };
    match measure(bench, runs, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(bench: &bench::Bench, runs: Option<u32>, json: Option<PathBuf>) -> anyhow::Result<()> {
    let rows = (bench.run)(runs.map(|runs| runs as usize))?;
    print!("{}", row::table(&rows));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
