//! One rollout, as the log keeps it.
//!
//! In: a plan, verdicts, an operator's orders. Out: the next state, with what the flag becomes. Promise: pure; share and
//! stage change together, in one step of the log, so that no node is ever between two of them.

use dwcp_consensus::command::{FlagValue, Steer};
use serde::{Deserialize, Serialize};

use super::decide::{Action, Verdict};
use super::plan::{Phase, Plan};

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RolloutStage)]
pub enum Stage {
    /// It goes on by itself.
    Running,
    /// It stays where it is, and is still rolled back if a criterion breaks.
    Paused,
    /// The last phase's share stays.
    Completed,
    /// A criterion broke: v1 everywhere.
    RolledBack,
    /// An operator ended it: v1 everywhere.
    Aborted,
}

impl Stage {
    /// Nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack | Self::Aborted)
    }
}

/// An operator's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stay.
    Pause,
    /// Go on.
    Resume,
    /// Back to v1, and end.
    Abort,
}

/// One rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rollout {
    /// What is to happen.
    pub plan: Plan,
    /// Where it stands.
    pub stage: Stage,
    /// Place of the phase, from 0.
    pub phase: usize,
    /// When it was made, Unix milliseconds.
    pub created_unix_ms: u64,
    /// Who made it.
    pub created_by: String,
    /// Since when the phase lasts, Unix milliseconds by the clock of who led then.
    pub phase_since_unix_ms: u64,
    /// Since when all criteria hold without a break; absent: they do not.
    pub good_since_unix_ms: Option<u64>,
    /// Why it stands where it stands.
    pub why: String,
    /// What tells the last recorded decision from the next.
    pub mood: String,
}

impl Rollout {
    /// One that begins now.
    #[must_use]
    pub fn begin(plan: Plan, by: &str, now_ms: u64) -> Self {
        Self {
            plan,
            stage: Stage::Running,
            phase: 0,
            created_unix_ms: now_ms,
            created_by: by.to_owned(),
            phase_since_unix_ms: now_ms,
            good_since_unix_ms: None,
            why: "it has just begun".to_owned(),
            mood: String::new(),
        }
    }

    /// The phase.
    #[must_use]
    pub fn phase_now(&self) -> Phase {
        // A document of another release could name a phase that is not there.
        let last = self.plan.phases.len().saturating_sub(1);
        self.plan.phases[self.phase.min(last)]
    }

    /// Share of the nodes that use v3 now, in buckets.
    #[must_use]
    pub fn share(&self) -> u32 {
        match self.stage {
            Stage::RolledBack | Stage::Aborted => 0,
            _ => self.phase_now().percentage.buckets(),
        }
    }

    /// What the flag is to be.
    #[must_use]
    pub fn steer(&self) -> Steer {
        Steer {
            feature: self.plan.feature.clone(),
            value: Some(FlagValue {
                enabled: true,
                share: self.share(),
            }),
            held: !self.stage.is_final(),
        }
    }

    /// After a verdict; nothing if that changes nothing that is worth a line.
    #[must_use]
    pub fn after(&self, verdict: &Verdict, now_ms: u64) -> Option<Self> {
        if self.stage.is_final() {
            return None;
        }
        let mut next = self.clone();
        next.why.clone_from(&verdict.why);
        next.mood = verdict.mood();
        next.good_since_unix_ms = verdict
            .good
            .then(|| self.good_since_unix_ms.unwrap_or(now_ms));
        match verdict.action {
            Action::Hold => return (next != *self).then_some(next),
            Action::Advance => {
                next.phase += 1;
                next.phase_since_unix_ms = now_ms;
                next.good_since_unix_ms = None;
            }
            Action::Complete => next.stage = Stage::Completed,
            Action::RollBack => next.stage = Stage::RolledBack,
        }
        Some(next)
    }

    /// After an operator's order; or why that cannot be.
    ///
    /// # Errors
    /// In words, what stands against it.
    pub fn ordered(&self, order: Order, by: &str) -> Result<Self, String> {
        let stage = match (order, self.stage) {
            (_, stage) if stage.is_final() => {
                return Err(format!("it has ended already ({stage:?}): begin another"));
            }
            (Order::Pause, Stage::Paused) => return Err("it is paused already".to_owned()),
            (Order::Resume, Stage::Running) => return Err("it is running already".to_owned()),
            (Order::Pause, _) => Stage::Paused,
            (Order::Resume, _) => Stage::Running,
            (Order::Abort, _) => Stage::Aborted,
        };
        Ok(Self {
            stage,
            why: format!("{order:?} by {}", by.chars().take(200).collect::<String>()),
            mood: String::new(),
            ..self.clone()
        })
    }
}
