//! The figures of many migrations. In: samples by way. Out: medians with their spread, and how the product
//! stands to the hypervisor's best. Promises: a figure without a sample is none, not a zero; runs that failed
//! are counted; "best" is the best of the hypervisor's ways for that figure, each figure on its own.

use clap::ValueEnum as _;
use serde::Serialize;

use super::configs::Config;
use super::migrate::Sample;
use crate::row::median;

/// One figure of one way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The middle sample.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many.
    pub n: usize,
}

impl Figure {
    /// None without samples.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let end = |pick: fn(f64, f64) -> f64| samples.iter().copied().fold(f64::NAN, pick);
        Some(Self {
            median: median(samples)?,
            min: end(f64::min),
            max: end(f64::max),
            n: samples.len(),
        })
    }
}

/// All figures of one way.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigFigures {
    /// The way.
    pub name: &'static str,
    /// From the command to the completion on both sides, ms.
    pub total_ms: Option<Figure>,
    /// The hypervisor's own figure, ms.
    pub downtime_ms: Option<Figure>,
    /// Longest time without a tick of the guest, ms.
    pub gap_ms: Option<Figure>,
    /// Bytes on the line, both ways.
    pub wire_bytes: Option<Figure>,
    /// Processor time of all processes of both hosts, s.
    pub cpu_s: Option<Figure>,
    /// Of it both hypervisors, with the guest's own work.
    pub qemu_cpu_s: Option<Figure>,
    /// Of it the product's planes.
    pub planes_cpu_s: Option<Figure>,
    /// Share of the line's rate from the first bulk byte to the guest's stop at the source.
    pub link_used: Option<Figure>,
    /// Why runs failed, one text each.
    pub failed: Vec<String>,
    /// What the line sent in the run with the middle total time, Mbit/s in each tenth of a second.
    #[serde(rename = "timeline_mbit_per_s")]
    pub timeline: Vec<f64>,
}

/// The product over the hypervisor's best, by figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Of total times.
    pub total: Option<f64>,
    /// Of bytes on the line.
    pub wire: Option<f64>,
    /// Of the guest's longest gaps.
    pub gap: Option<f64>,
}

/// One guest over one line in all ways.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The guest's name.
    pub guest: &'static str,
    /// The line's name.
    pub link: &'static str,
    /// The line in numbers.
    pub link_about: String,
    /// Every way, in the order asked for.
    pub configs: Vec<ConfigFigures>,
    /// None where either is missing.
    pub ratio: Ratio,
}

/// The runs of one way.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    pub(super) config: Config,
    pub(super) samples: Vec<Sample>,
    pub(super) failed: Vec<String>,
}

impl Runs {
    pub(super) fn figures(&self) -> ConfigFigures {
        let of = |pick: fn(&Sample) -> f64| {
            Figure::of(&self.samples.iter().map(pick).collect::<Vec<f64>>())
        };
        let used: Vec<f64> = self.samples.iter().filter_map(|s| s.link_used).collect();
        let mut by_time: Vec<&Sample> = self.samples.iter().collect();
        by_time.sort_by(|one, other| one.total_ms.total_cmp(&other.total_ms));
        let middle = by_time.get(by_time.len() / 2);
        ConfigFigures {
            name: self.config.name(),
            total_ms: of(|s| s.total_ms),
            downtime_ms: of(|s| s.downtime_ms),
            gap_ms: of(|s| s.gap_ms),
            wire_bytes: of(|s| s.wire_bytes),
            cpu_s: of(|s| s.qemu_cpu_s + s.planes_cpu_s),
            qemu_cpu_s: of(|s| s.qemu_cpu_s),
            planes_cpu_s: of(|s| s.planes_cpu_s),
            link_used: Figure::of(&used),
            failed: self.failed.clone(),
            timeline: middle.map_or_else(Vec::new, |sample| sample.timeline.clone()),
        }
    }
}

/// The product's median over the least median of the hypervisor's ways.
pub(super) fn ratio(configs: &[ConfigFigures]) -> Ratio {
    let of = |pick: fn(&ConfigFigures) -> Option<Figure>| {
        let is_dwcp = |config: &&ConfigFigures| config.name == Config::Dwcp.name();
        let ours = configs.iter().find(is_dwcp).and_then(pick)?.median;
        let is_ours = |config: &&ConfigFigures| {
            let named = |known: &Config| known.name() == config.name;
            Config::value_variants()
                .iter()
                .find(|known| named(known))
                .is_some_and(|known| known.is_ours())
        };
        let others = configs.iter().filter(|config| !is_ours(config));
        let best = others
            .filter_map(pick)
            .map(|figure| figure.median)
            .min_by(f64::total_cmp)?;
        Some(ours / best)
    };
    Ratio {
        total: of(|config| config.total_ms),
        wire: of(|config| config.wire_bytes),
        gap: of(|config| config.gap_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(config: Config, samples: &[(f64, f64, f64)]) -> Runs {
        let sample = |(total_ms, wire_bytes, gap_ms): &(f64, f64, f64)| Sample {
            total_ms: *total_ms,
            wire_bytes: *wire_bytes,
            gap_ms: *gap_ms,
            timeline: vec![*total_ms],
            ..Sample::default()
        };
        Runs {
            config,
            samples: samples.iter().map(sample).collect(),
            failed: Vec::new(),
        }
    }

    #[test]
    fn each_figure_is_held_against_the_best_of_the_others_in_it() {
        let configs = [
            runs(
                Config::Dwcp,
                &[(9.0, 30.0, 5.0), (5.0, 30.0, 5.0), (6.0, 31.0, 9.0)],
            ),
            runs(Config::DwcpBaseline, &[(1.0, 1.0, 1.0)]),
            runs(Config::Plain, &[(20.0, 90.0, 4.0)]),
            runs(Config::Multifd4Zstd, &[(8.0, 60.0, 6.0)]),
        ]
        .map(|runs| runs.figures());
        let ratio = ratio(&configs);
        assert_eq!(
            (ratio.total, ratio.wire, ratio.gap),
            (Some(0.75), Some(0.5), Some(1.25))
        );
        assert_eq!(configs[0].timeline, [6.0], "of the run in the middle");
    }

    #[test]
    fn what_was_not_measured_is_none() {
        let mut lost = runs(Config::Multifd8, &[]);
        lost.failed.push("no end within 300 s".to_owned());
        let configs = [
            runs(Config::Dwcp, &[(1.0, 1.0, 1.0)]).figures(),
            lost.figures(),
        ];
        assert_eq!(ratio(&configs).total, None);
        let json = serde_json::to_value(&configs[1]).unwrap();
        assert!(json["total_ms"].is_null() && json["failed"][0] == "no end within 300 s");
        let json = serde_json::to_value(&configs[0]).unwrap();
        assert_eq!(json["total_ms"]["n"], 1);
        assert!(json["link_used"].is_null(), "no rate, no share of it");
    }
}
