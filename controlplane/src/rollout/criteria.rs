//! By what a version is judged: the table of the specification, as data.
//!
//! In: samples of both versions. Out: a [`Judgement`] for each criterion, with query, value, interval and thresholds.
//! Promises: pure; missing data is `missing`, never good; v3 is held against v1 on the same kind of work alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::sample::{Sample, Side, Work};
use super::stats::{self, Estimate, Stratum};

/// What is looked at.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum Criterion {
    /// Share of the sessions that failed.
    #[serde(rename = "error_rate")]
    ErrorRate,
    /// 95th percentile of the downtime, seconds.
    #[serde(rename = "latency_p95_s")]
    LatencyP95S,
    /// The same as a multiple of v1's.
    #[serde(rename = "latency_p95_of_v1")]
    LatencyP95OfV1,
    /// Share of the bytes that never went over the wire, in internet mode.
    #[serde(rename = "bytes_saved")]
    BytesSaved,
    /// Bytes a second as a multiple of v1's, in datacenter mode.
    #[serde(rename = "throughput_of_v1")]
    ThroughputOfV1,
    /// Memory of the data plane as a multiple of v1's.
    #[serde(rename = "memory_of_v1")]
    MemoryOfV1,
    /// Share of the migrations that ended well.
    #[serde(rename = "live_success")]
    LiveSuccess,
    /// The same, outside datacenter mode.
    #[serde(rename = "cross_site_success")]
    CrossSiteSuccess,
    /// Attacks that succeeded and bytes that were lost.
    #[serde(rename = "harm")]
    Harm,
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ErrorRate => "error_rate",
            Self::LatencyP95S => "latency_p95_s",
            Self::LatencyP95OfV1 => "latency_p95_of_v1",
            Self::BytesSaved => "bytes_saved",
            Self::ThroughputOfV1 => "throughput_of_v1",
            Self::MemoryOfV1 => "memory_of_v1",
            Self::LiveSuccess => "live_success",
            Self::CrossSiteSuccess => "cross_site_success",
            Self::Harm => "harm",
        })
    }
}

impl Criterion {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ErrorRate,
        Self::LatencyP95S,
        Self::LatencyP95OfV1,
        Self::BytesSaved,
        Self::ThroughputOfV1,
        Self::MemoryOfV1,
        Self::LiveSuccess,
        Self::CrossSiteSuccess,
        Self::Harm,
    ];

    pub(super) const fn lower_is_better(self) -> bool {
        !matches!(
            self,
            Self::BytesSaved | Self::ThroughputOfV1 | Self::LiveSuccess | Self::CrossSiteSuccess
        )
    }

    /// Is the first value on the good side of the second, or on it?
    fn reaches(self, value: f64, target: f64) -> bool {
        if self.lower_is_better() {
            value <= target
        } else {
            value >= target
        }
    }

    fn beyond(self, value: f64, limit: f64) -> bool {
        !self.reaches(value, limit)
    }
}

/// Thresholds of a criterion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RolloutLimits)]
pub struct Limits {
    /// Good from here.
    pub target: f64,
    /// Beyond this the rollout is rolled back.
    pub rolls_back: f64,
    /// Beyond this it is an emergency; the same, and said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
}

/// The specification's table.
#[must_use]
pub fn table() -> BTreeMap<Criterion, Limits> {
    let row = |target, rolls_back, critical| Limits {
        target,
        rolls_back,
        critical,
    };
    Criterion::ALL
        .into_iter()
        .map(|criterion| {
            let limits = match criterion {
                Criterion::ErrorRate => row(0.001, 0.005, Some(0.01)),
                Criterion::LatencyP95S => row(0.05, 0.1, None),
                Criterion::LatencyP95OfV1 => row(2.0, 2.0, None),
                Criterion::BytesSaved => row(0.70, 0.65, None),
                Criterion::ThroughputOfV1 => row(1.0, 0.95, Some(0.80)),
                Criterion::MemoryOfV1 => row(1.1, 1.2, None),
                Criterion::LiveSuccess => row(0.999, 0.995, None),
                Criterion::CrossSiteSuccess => row(0.995, 0.99, None),
                Criterion::Harm => row(0.0, 0.0, Some(0.0)),
            };
            (criterion, limits)
        })
        .collect()
}

/// How a criterion stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = RolloutStanding)]
pub enum Standing {
    /// It holds.
    Good,
    /// It neither holds nor is it broken.
    Between,
    /// Too little is known.
    Missing,
    /// It is broken.
    Broken,
    /// It is broken far beyond.
    Critical,
}

/// One criterion, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = RolloutJudgement)]
pub struct Judgement {
    /// Which one.
    pub criterion: Criterion,
    /// How it stands.
    pub standing: Standing,
    /// What was asked.
    pub query: String,
    /// What came; absent: nothing.
    pub value: Option<f64>,
    /// Lower end of the 95 % interval; absent: not known.
    pub low: Option<f64>,
    /// Upper end; absent: not known.
    pub high: Option<f64>,
    /// Samples of v3 behind it.
    pub samples: u64,
    /// Samples of v1 behind it, where the two are compared.
    pub against: Option<u64>,
    /// The thresholds.
    pub limits: Limits,
}

/// The samples that a phase is judged by.
pub struct Evidence<'a> {
    samples: Vec<&'a Sample>,
}

impl<'a> Evidence<'a> {
    /// v3's work since the phase began, and v1's since `baseline_ms`.
    pub fn new(all: impl Iterator<Item = &'a Sample>, phase_ms: u64, baseline_ms: u64) -> Self {
        let counts = |sample: &&Sample| {
            let since = match sample.version {
                Side::V3 => phase_ms,
                Side::V1 => baseline_ms,
            };
            sample.at_unix_ms >= since
        };
        Self {
            samples: all.filter(counts).collect(),
        }
    }

    fn of(&self, side: Side, work: Work) -> impl Iterator<Item = &'a Sample> {
        let picked = move |it: &&&Sample| it.version == side && it.work == work;
        self.samples.iter().filter(picked).copied()
    }

    fn share(
        &self,
        work: Work,
        among: impl Fn(&Sample) -> bool,
        hit: impl Fn(&Sample) -> bool,
    ) -> Option<Estimate> {
        let all: Vec<&Sample> = self.of(Side::V3, work).filter(|it| among(it)).collect();
        let hits = all.iter().filter(|it| hit(it)).count();
        stats::share(hits as u64, all.len() as u64)
    }

    /// A figure of both versions, kind by kind.
    fn strata(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Vec<Stratum> {
        let mut kinds: BTreeMap<(&str, u32), Stratum> = BTreeMap::new();
        for side in [Side::V3, Side::V1] {
            for sample in self.of(side, Work::Migration).filter(|it| it.ok) {
                let Some(value) = figure(sample).filter(|it| *it > 0.0) else {
                    continue;
                };
                let kind = kinds.entry(sample.kind()).or_default();
                match side {
                    Side::V3 => kind.new.push(value),
                    Side::V1 => kind.old.push(value),
                }
            }
        }
        kinds.into_values().collect()
    }

    fn look(&self, criterion: Criterion) -> (&'static str, Option<Estimate>) {
        let any = |_: &Sample| true;
        let downtime_s = |it: &Sample| {
            // Less than a millisecond is measured as none.
            it.downtime_ms.map(|ms| ms.max(1) as f64 / 1_000.0)
        };
        match criterion {
            Criterion::ErrorRate => (
                "failed sessions / sessions of v3 in this phase",
                self.share(Work::Session, any, |it| !it.ok),
            ),
            Criterion::LatencyP95S => {
                let done = self.of(Side::V3, Work::Migration).filter(|it| it.ok);
                let values: Vec<f64> = done.filter_map(downtime_s).collect();
                (
                    "95th percentile of the downtime of v3's migrations in this phase, s",
                    stats::p95(&values),
                )
            }
            Criterion::LatencyP95OfV1 => (
                "the same / that of v1, same mode and size",
                stats::p95_ratio(&self.strata(downtime_s)),
            ),
            Criterion::BytesSaved => {
                let done = self.of(Side::V3, Work::Migration);
                let far = done.filter(|it| it.ok && it.mode == "internet" && it.bytes > 0);
                let saved: Vec<f64> = far
                    .map(|it| 1.0 - it.wire_bytes as f64 / it.bytes as f64)
                    .collect();
                (
                    "mean of 1 - wire / hypervisor bytes of v3's migrations in internet mode",
                    stats::mean(&saved),
                )
            }
            Criterion::ThroughputOfV1 => {
                let rate = |it: &Sample| {
                    (it.mode == "datacenter" && it.total_ms > 0)
                        .then(|| it.bytes as f64 / it.total_ms as f64)
                };
                (
                    "bytes per s of v3 / of v1 in datacenter mode, same size",
                    stats::ratio(&self.strata(rate)),
                )
            }
            Criterion::MemoryOfV1 => (
                "memory of the data plane, v3 / v1, same mode and size",
                stats::ratio(&self.strata(|it| it.memory_bytes.map(|bytes| bytes as f64))),
            ),
            Criterion::LiveSuccess => (
                "completed / all migrations of v3 in this phase",
                self.share(Work::Migration, any, |it| it.ok),
            ),
            Criterion::CrossSiteSuccess => (
                "completed / all migrations of v3 outside datacenter mode",
                self.share(
                    Work::Migration,
                    |it| !it.mode.is_empty() && it.mode != "datacenter",
                    |it| it.ok,
                ),
            ),
            Criterion::Harm => {
                let all = self.of(Side::V3, Work::Session);
                let (mut count, mut harmed) = (0, 0);
                for sample in all {
                    count += 1;
                    harmed += u64::from(sample.harm);
                }
                let found = (count > 0).then_some(Estimate {
                    value: harmed as f64,
                    low: Some(harmed as f64),
                    high: Some(harmed as f64),
                    samples: count,
                    against: None,
                });
                (
                    "sessions of v3 with altered bytes or a broken protocol",
                    found,
                )
            }
        }
    }

    /// Judges one criterion.
    #[must_use]
    pub fn judge(&self, criterion: Criterion, limits: Limits, samples_min: u64) -> Judgement {
        let (query, found) = self.look(criterion);
        let standing = found.map_or(Standing::Missing, |found| {
            stand(criterion, &limits, &found, samples_min)
        });
        let rounded = |value: f64| (value * 1e6).round() / 1e6;
        Judgement {
            criterion,
            standing,
            query: query.to_owned(),
            value: found.map(|it| rounded(it.value)),
            low: found.and_then(|it| it.low).map(rounded),
            high: found.and_then(|it| it.high).map(rounded),
            samples: found.map_or(0, |it| it.samples),
            against: found.and_then(|it| it.against),
            limits,
        }
    }
}

/// Enough samples count by their value; few of them only if even the near end of the interval lies beyond.
fn stand(criterion: Criterion, limits: &Limits, found: &Estimate, samples_min: u64) -> Standing {
    let enough = found.samples >= samples_min && found.against.is_none_or(|it| it >= samples_min);
    let near = if criterion.lower_is_better() {
        found.low
    } else {
        found.high
    };
    let beyond = |limit: f64| {
        (enough && criterion.beyond(found.value, limit))
            || near.is_some_and(|near| criterion.beyond(near, limit))
    };
    if limits.critical.is_some_and(beyond) {
        Standing::Critical
    } else if beyond(limits.rolls_back) {
        Standing::Broken
    } else if !enough {
        Standing::Missing
    } else if criterion.reaches(found.value, limits.target) {
        Standing::Good
    } else {
        Standing::Between
    }
}
