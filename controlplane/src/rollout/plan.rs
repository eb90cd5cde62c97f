//! A plan: a flag, phases, criteria.
//!
//! In: what an operator wrote. Out: a plan that can be carried out. Promise: what is left out has the specification's
//! value; what cannot be is refused with what would be right.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::criteria::{Criterion, Limits, table};
use crate::flags::{Percentage, rule};

/// Phases of a plan.
pub const PHASES_MAX: usize = 16;
const TIME_S_MAX: u64 = 30 * 86_400;
const SAMPLES_MAX: u64 = 100_000;

/// One step of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RolloutPhase)]
pub struct Phase {
    /// Share of the nodes.
    pub percentage: Percentage,
    /// It lasts at least so long, seconds [default: 600].
    #[serde(default = "min_time_s")]
    pub min_time_s: u64,
    /// Each criterion needs so many samples [default: 50].
    #[serde(default = "min_samples")]
    pub min_samples: u64,
}

const fn min_time_s() -> u64 {
    600
}

const fn min_samples() -> u64 {
    50
}

const fn settle_s() -> u64 {
    60
}

/// What is rolled out, how, and by what it is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RolloutPlan)]
pub struct Plan {
    /// Key of the flag.
    pub feature: String,
    /// Shares that grow [default: 10, 50, 100 %].
    #[serde(default = "phases")]
    pub phases: Vec<Phase>,
    /// What must hold [default: everything in the specification's table]. What has no traffic in this cluster is
    /// best left out: a criterion without data holds the rollout.
    #[serde(default = "table")]
    #[schema(value_type = BTreeMap<String, Limits>)]
    pub criteria: BTreeMap<Criterion, Limits>,
    /// All criteria must have held for so long without a break before a phase ends, seconds [default: 60].
    #[serde(default = "settle_s")]
    pub settle_s: u64,
}

fn phases() -> Vec<Phase> {
    [10_u32, 50, 100]
        .iter()
        .filter_map(|percent| {
            Some(Phase {
                percentage: Percentage::new(f64::from(*percent))?,
                min_time_s: min_time_s(),
                min_samples: min_samples(),
            })
        })
        .collect()
}

impl Plan {
    /// What is wrong with it, if anything.
    #[must_use]
    pub fn flaw(&self) -> Option<String> {
        let Some(component) = rule::component(&self.feature) else {
            let name: String = self.feature.chars().take(64).collect();
            return Some(format!("there is no flag {name:?}: see `dwcpctl flags`"));
        };
        if !rule::is_available(component) {
            return Some(format!(
                "{} does not exist in v3 in this release: choose a flag that `dwcpctl flags` shows as available",
                self.feature
            ));
        }
        if self.phases.is_empty() || self.phases.len() > PHASES_MAX {
            return Some(format!("a plan has 1 to {PHASES_MAX} phases"));
        }
        let grows = |pair: &[Phase]| pair[0].percentage < pair[1].percentage;
        if self.phases[0].percentage == Percentage::NONE || !self.phases.windows(2).all(grows) {
            return Some(
                "each phase has a larger share than the one before, the first more than 0"
                    .to_owned(),
            );
        }
        let sane =
            |it: &Phase| it.min_time_s <= TIME_S_MAX && (1..=SAMPLES_MAX).contains(&it.min_samples);
        if !self.phases.iter().all(sane) || self.settle_s > TIME_S_MAX {
            return Some(format!(
                "times are at most {TIME_S_MAX} s, min_samples is 1 to {SAMPLES_MAX}"
            ));
        }
        if self.criteria.is_empty() {
            return Some("without criteria nothing is judged: set the flag instead".to_owned());
        }
        self.criteria
            .iter()
            .find_map(|(criterion, limits)| criterion.flaw(limits))
    }
}

impl Criterion {
    fn flaw(self, limits: &Limits) -> Option<String> {
        let all = [
            Some(limits.target),
            Some(limits.rolls_back),
            limits.critical,
        ];
        let finite = all
            .iter()
            .flatten()
            .all(|it| it.is_finite() && (0.0..=1e9).contains(it));
        let mut ordered = all.iter().flatten().collect::<Vec<_>>();
        if !self.lower_is_better() {
            ordered.reverse();
        }
        (!finite || !ordered.is_sorted()).then(|| {
            format!("the limits of {self} are no numbers from 0 up, or rolling back is not beyond the target, or critical not beyond that")
        })
    }
}
