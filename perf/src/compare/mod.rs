//! Guests moved by the product and by their hypervisor's own ways, side by side.
//!
//! In: guests, lines, ways, how often. Out: a [`Comparison`] for each guest and line, as a table, JSON,
//! Markdown and a page. Promises: every way moves the same saved guest over the same line; in each round all
//! ways take their turn, the next round beginning one further on, so that what else the machine does meets
//! all; a run that fails is said, counted and shown; the guests' memory, on both hosts, lies on hugepages that
//! were touched before, for on a machine that is virtual itself a first touch may cost more than all else.

mod baselines;
mod configs;
mod links;
mod migrate;
mod page;
mod plot;
mod summary;
mod table;
mod usage;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use dwcp_lab::debian::{DebianGuest, Work};

use baselines::Stores;
pub use configs::Config;
pub use links::Link;
use migrate::LOAD_MEMORY_MB;
pub(crate) use migrate::Saved;
pub use summary::{Comparison, ConfigFigures, Figure, Ratio};
use summary::{Runs, ratio};

use crate::hugepages::{PLANES_MB, Reserved};

/// Runs of each way when nothing is said.
const RUNS: u32 = 3;
/// The cache, beside the folder of the programs.
const CACHE: &str = "compare-guests";

/// A guest by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// The lab's own: 512 MiB, 384 MiB of text, records and pointers, 500 pages a second rewritten.
    Load,
    /// Debian, 1 GiB: Redis with 60,000 JSON values and a writer.
    Redis,
    /// Debian, 1 GiB: PostgreSQL under pgbench.
    Postgres,
    /// Debian, 512 MiB: a compiler at work.
    Build,
    /// Debian, 512 MiB: nothing to do.
    Idle,
}

impl Guest {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.work().map_or("load", Work::name)
    }

    fn memory_mb(self) -> u32 {
        self.work()
            .map_or(LOAD_MEMORY_MB, |work| work.config().memory_mb)
    }

    fn work(self) -> Option<Work> {
        match self {
            Self::Load => None,
            Self::Redis => Some(Work::Redis),
            Self::Postgres => Some(Work::Postgres),
            Self::Build => Some(Work::Build),
            Self::Idle => Some(Work::Idle),
        }
    }
}

/// Names with commas between them, or `all`.
#[derive(Clone, Debug)]
pub struct Several<T>(Vec<T>);

impl<T: Copy> Several<T> {
    /// What was named, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'_, T> {
        self.0.iter().copied()
    }
}

/// Reads names with commas between them, or `all`.
///
/// # Errors
/// A name that is none of them, and what the names are.
pub(crate) fn several<T: ValueEnum + Send + Sync + 'static>(
    text: &str,
) -> Result<Several<T>, String> {
    if text == "all" {
        return Ok(Several(T::value_variants().to_vec()));
    }
    let one = |name: &str| {
        T::from_str(name, false).map_err(|_| {
            let known: Vec<String> = T::value_variants()
                .iter()
                .filter_map(|known| Some(known.to_possible_value()?.get_name().to_owned()))
                .collect();
            format!("{name:?} is none of them: {}, or all", known.join(", "))
        })
    };
    text.split(',')
        .map(one)
        .collect::<Result<_, _>>()
        .map(Several)
}

/// What to compare and where to write it.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Guests: load, redis, postgres, build, idle; commas between them, or all
    #[arg(long, value_parser = several::<Guest>)]
    guest: Several<Guest>,
    /// Lines: wan200, lossy100, fast900, far150, lan; commas between them, or all
    #[arg(long, value_parser = several::<Link>)]
    link: Several<Link>,
    /// Ways: dwcp, dwcp-tls, dwcp-pool, dwcp-baseline, dwcp-again, plain, xbzrle, multifd4, multifd8, multifd4-zstd, multifd8-zstd; commas, or all
    #[arg(long, value_parser = several::<Config>, default_value = "all")]
    configs: Several<Config>,
    /// Runs of each way
    #[arg(long, default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Extra connections (multifd) between both hypervisors and the product; 0: the single stream
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=255))]
    multifd: u32,
    /// Write the figures to this file: an object for one guest and one line, a list for more
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write one self-contained page with plots to this file
    #[arg(long)]
    html: Option<PathBuf>,
    /// Write the tables to this file as Markdown
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Keep the saved guests with an operating system here; by default beside the built programs
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// Compares, and writes what was asked for after each guest and line, so that what ends early leaves what it
/// has.
///
/// # Errors
/// What keeps anything from being measured; at the end, that runs failed.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cache = match &arguments.cache {
        Some(cache) => cache.clone(),
        None => default_cache()?,
    };
    let mut comparisons = Vec::new();
    for guest in &arguments.guest.0 {
        let saved = saved(*guest, &cache)?;
        let _reserved = Reserved::hugepages(2 * guest.memory_mb() + PLANES_MB)?;
        for link in &arguments.link.0 {
            let comparison = compare(arguments, *guest, &saved, *link);
            println!("{}", table::text(&comparison));
            comparisons.push(comparison);
            write_all(arguments, &comparisons)?;
        }
    }
    let configs = || comparisons.iter().flat_map(|all| &all.configs);
    let failed: usize = configs().map(|config| config.failed.len()).sum();
    let runs = configs().count() * arguments.runs as usize;
    ensure!(
        failed == 0,
        "{failed} of {runs} runs failed; why stands above and in the reports"
    );
    Ok(())
}

/// Where saved guests are kept when nothing is said.
pub(crate) fn default_cache() -> anyhow::Result<PathBuf> {
    beside_programs(CACHE)
}

/// A folder beside the one of the built programs.
pub(crate) fn beside_programs(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.unwrap_or(Path::new("/tmp")).join(name))
}

pub(crate) fn saved(guest: Guest, cache: &Path) -> anyhow::Result<Saved> {
    let say = |words: &str| eprintln!("{words}");
    guest.work().map_or(Ok(Saved::Load), |work| {
        let guest = DebianGuest::ensure(cache, work, &say)
            .with_context(|| format!("the guest {} could not be made", work.name()))?;
        Ok(Saved::Debian(guest))
    })
}

fn compare(arguments: &Arguments, guest: Guest, saved: &Saved, link: Link) -> Comparison {
    let configs = &arguments.configs.0;
    let mut all: Vec<Runs> = configs
        .iter()
        .map(|config| Runs {
            config: *config,
            samples: Vec::new(),
            failed: Vec::new(),
        })
        .collect();
    let mut stores: Vec<_> = configs
        .iter()
        .map(|config| Stores::for_config(*config))
        .collect();
    for round in 0..arguments.runs as usize {
        for turn in 0..all.len() {
            let at = (turn + round) % all.len();
            let runs = &mut all[at];
            let what = format!(
                "{} over {}, {}, run {} of {}",
                guest.name(),
                link.name(),
                runs.config.name(),
                round + 1,
                arguments.runs
            );
            let config = (runs.config, arguments.multifd);
            let sample = match &mut stores[at] {
                Ok(None) => migrate::once(saved, link, config, None),
                Ok(Some(stores)) => stores
                    .shelves(config, saved, link)
                    .and_then(|shelves| migrate::once(saved, link, config, Some(&shelves))),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            };
            match sample {
                Ok(sample) => {
                    eprintln!("{what}: {}", table::line(&sample));
                    runs.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("{what}: FAILED: {error:#}");
                    runs.failed.push(format!("{error:#}"));
                }
            }
        }
    }
    let configs: Vec<ConfigFigures> = all.iter().map(Runs::figures).collect();
    Comparison {
        guest: guest.name(),
        link: link.name(),
        link_about: link.about(),
        ratio: ratio(&configs),
        configs,
    }
}

fn write_all(arguments: &Arguments, comparisons: &[Comparison]) -> anyhow::Result<()> {
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, text()?)
            .with_context(|| format!("{} cannot be written; give another path", path.display()))
    };
    let one = arguments.guest.0.len() * arguments.link.0.len() == 1;
    write(&arguments.json, &|| {
        let text = match comparisons {
            [only] if one => serde_json::to_string_pretty(only),
            list => serde_json::to_string_pretty(list),
        };
        Ok(text? + "\n")
    })?;
    write(&arguments.markdown, &|| {
        Ok(comparisons.iter().map(table::markdown).collect())
    })?;
    write(&arguments.html, &|| Ok(page::html(comparisons)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_some_and_none_that_are_unknown() {
        assert_eq!(several::<Link>("all").unwrap().0, Link::value_variants());
        let two = several::<Config>("multifd8-zstd,dwcp").unwrap().0;
        assert_eq!(two, [Config::Multifd8Zstd, Config::Dwcp]);
        let words = several::<Guest>("redis,mysql").unwrap_err();
        assert!(
            words.contains("mysql") && words.contains("postgres"),
            "{words}"
        );
        for guest in Guest::value_variants() {
            assert_eq!(several::<Guest>(guest.name()).unwrap().0, [*guest]);
        }
    }
}
