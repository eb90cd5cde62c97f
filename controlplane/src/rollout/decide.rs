//! What becomes of a rollout, from what is known now.
//!
//! In: a rollout, the nodes' accounts, the time. Out: a [`Verdict`] with its grounds. Promises: pure; a broken criterion
//! rolls back whatever else is missing, paused or not; nothing advances on missing data, on a silent node, while the
//! kill switch is on, or before its time.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::criteria::{Evidence, Judgement, Standing};
use super::sample::{Figures, Side};
use super::state::{Rollout, Stage};
use crate::flags::bucket::bucket;

/// v1's work of so long ago still counts.
const BASELINE_MS: u64 = 7 * 86_400_000;

/// One node's account, or why there is none.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the node.
    pub node: String,
    /// Its account.
    pub figures: Result<Figures, String>,
}

/// Everything a decision stands on.
pub struct Seen<'a> {
    /// The rollout.
    pub rollout: &'a Rollout,
    /// The nodes' accounts.
    pub reports: &'a [Report],
    /// Nodes that the flag keeps out.
    pub excluded: &'a BTreeSet<String>,
    /// The kill switch is on.
    pub forced: bool,
    /// Now, Unix milliseconds.
    pub now_ms: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RolloutAction)]
pub enum Action {
    /// Nothing.
    Hold,
    /// On to the next phase.
    Advance,
    /// The last phase is over.
    Complete,
    /// Back to v1 everywhere.
    RollBack,
}

/// A decision and its grounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = RolloutVerdict)]
pub struct Verdict {
    /// What is to be done.
    pub action: Action,
    /// Why, in words.
    pub why: String,
    /// Place of the phase, from 0.
    pub phase: usize,
    /// All criteria hold, and nothing is unknown.
    pub good: bool,
    /// Each criterion.
    pub judgements: Vec<Judgement>,
}

impl Verdict {
    /// What tells it from the one before: figures that merely move make no other decision.
    #[must_use]
    pub fn mood(&self) -> String {
        let standings = self.judgements.iter().map(|it| match it.standing {
            Standing::Good => 'g',
            Standing::Between => 'b',
            Standing::Missing => 'm',
            Standing::Broken => 'x',
            Standing::Critical => 'c',
        });
        let standings: String = standings.collect();
        format!("{standings} {}", self.why)
    }
}

/// Why a node uses the version that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RolloutPart)]
pub enum Part {
    /// It lies below the share: v3.
    InShare,
    /// It lies above the share: v1.
    OutOfShare,
    /// The flag keeps it out: v1.
    Excluded,
    /// Its data plane has v1 alone.
    V1Only,
    /// It does not answer: what it uses is not known.
    Silent,
}

/// A node in a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = RolloutNode)]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// Its part.
    pub part: Part,
    /// What it uses now; absent: not known.
    pub version: Option<Side>,
    /// Why it does not answer, if so.
    pub silent: Option<String>,
}

impl Seen<'_> {
    /// Every node and its part.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        self.reports
            .iter()
            .map(|report| self.node(report))
            .collect()
    }

    fn node(&self, report: &Report) -> NodeView {
        let view = |part, version, silent| NodeView {
            node: report.node.clone(),
            part,
            version,
            silent,
        };
        let figures = match &report.figures {
            Ok(figures) => figures,
            Err(why) => return view(Part::Silent, None, Some(why.clone())),
        };
        let feature = &self.rollout.plan.feature;
        let version = figures.versions.get(feature).copied();
        if figures.highest == Some(1) {
            // Whatever its switch says, its data plane does v1.
            return view(Part::V1Only, Some(Side::V1), None);
        }
        let part = if self.excluded.contains(&report.node) {
            Part::Excluded
        } else if bucket(feature, &report.node) < self.rollout.share() {
            Part::InShare
        } else {
            Part::OutOfShare
        };
        view(part, version, None)
    }

    /// A silent node that the share would hold, or one that has not followed.
    fn unheard(&self) -> Option<String> {
        let feature = &self.rollout.plan.feature;
        self.nodes().into_iter().find_map(|node| {
            let holds = bucket(feature, &node.node) < self.rollout.share()
                && !self.excluded.contains(&node.node);
            match node.part {
                Part::Silent if holds => Some(format!("{} is silent", node.node)),
                Part::InShare if node.version != Some(Side::V3) => {
                    Some(format!("{} is not in v3 yet", node.node))
                }
                _ => None,
            }
        })
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self) -> Verdict {
        let rollout = self.rollout;
        let phase = rollout.phase_now();
        let baseline_ms = rollout.created_unix_ms.saturating_sub(BASELINE_MS);
        let samples = self
            .reports
            .iter()
            .filter_map(|it| it.figures.as_ref().ok());
        let samples = samples.flat_map(|figures| &figures.samples);
        let evidence = Evidence::new(samples, rollout.phase_since_unix_ms, baseline_ms);
        let criteria = rollout.plan.criteria.iter();
        let judgements: Vec<Judgement> = criteria
            .map(|(criterion, limits)| evidence.judge(*criterion, *limits, phase.min_samples))
            .collect();
        let mut verdict = Verdict {
            action: Action::Hold,
            why: String::new(),
            phase: rollout.phase,
            good: false,
            judgements,
        };
        (verdict.action, verdict.why) = match self.against(&verdict.judgements) {
            Some(found) => found,
            None => {
                verdict.good = true;
                self.in_time()
            }
        };
        verdict
    }

    /// What speaks against going on.
    fn against(&self, judgements: &[Judgement]) -> Option<(Action, String)> {
        let named = |standing: Standing| {
            let all = judgements.iter();
            let names: Vec<String> = all
                .filter(|it| it.standing == standing)
                .map(|it| it.criterion.to_string())
                .collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        for (standing, word) in [
            (Standing::Critical, "critical"),
            (Standing::Broken, "broken"),
        ] {
            if let Some(names) = named(standing) {
                return Some((Action::RollBack, format!("{word}: {names}")));
            }
        }
        let why = if self.forced {
            "the kill switch is on".to_owned()
        } else if let Some(why) = self.unheard() {
            why
        } else if let Some(names) = named(Standing::Missing) {
            format!("too little is known of {names}")
        } else if let Some(names) = named(Standing::Between) {
            format!("neither good nor broken: {names}")
        } else {
            return None;
        };
        Some((Action::Hold, why))
    }

    /// Everything is good: is it time?
    fn in_time(&self) -> (Action, String) {
        let hold = |why: &str| (Action::Hold, why.to_owned());
        let rollout = self.rollout;
        if rollout.stage == Stage::Paused {
            return hold("good; paused by an operator");
        }
        let lasted_ms = |since: u64| self.now_ms.saturating_sub(since);
        if lasted_ms(rollout.phase_since_unix_ms) < rollout.phase_now().min_time_s * 1_000 {
            return hold("good; the phase has not lasted long enough");
        }
        let settled_ms = rollout.good_since_unix_ms.map(lasted_ms);
        if settled_ms.is_none_or(|ms| ms < rollout.plan.settle_s * 1_000) {
            return hold("good; not for long enough without a break");
        }
        if rollout.phase + 1 < rollout.plan.phases.len() {
            return (Action::Advance, "every criterion holds".to_owned());
        }
        let why = "every criterion holds in the last phase".to_owned();
        (Action::Complete, why)
    }
}
