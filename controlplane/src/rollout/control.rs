//! Reads, decides, writes; and takes operators' orders.
//!
//! In: the log, the fleet, the time. Out: steps of rollouts. Promises: only who leads decides by itself; each write names
//! the version that was read, so of two who decide at once one is refused; after a change of leader the next one goes
//! on from what the log says.

use std::sync::Arc;
use std::time::Duration;

use dwcp_consensus::command::Decision;
use dwcp_consensus::document::Document;
use dwcp_consensus::{Command, Replicator, State, SubmitError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::decide::{NodeView, Seen, Verdict};
use super::fleet::Fleet;
use super::plan::Plan;
use super::state::{Order, Rollout};
use crate::cluster::ChangeError;
use crate::flags::bucket::{BUCKETS, bucket};

/// What the keys of rollouts begin with.
const PREFIX: &str = "rollout/";
/// How long an operator waits for a quorum.
const WITHIN: Duration = Duration::from_secs(8);
/// Time between two looks.
pub const EVERY: Duration = Duration::from_secs(2);

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// No such rollout.
    #[error("there is no rollout {0:?}")]
    Unknown(String),
    /// The plan cannot be carried out.
    #[error("{0}")]
    Plan(String),
    /// It stands where that cannot be done.
    #[error("{0}")]
    Stage(String),
    /// The log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<SubmitError> for RolloutError {
    fn from(error: SubmitError) -> Self {
        Self::Change(error.into())
    }
}

/// A rollout as the API shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct RolloutView {
    /// Its id.
    pub id: String,
    /// Counts its changes.
    pub version: u64,
    /// Share of the nodes now, percent.
    pub percentage: f64,
    /// Everything else.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// The nodes and what they use; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<NodeView>>,
    /// What would be decided now; absent in lists and once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// A recorded decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = RolloutDecision)]
pub struct Decided {
    /// Names it among those of this rollout.
    pub number: u64,
    /// When, Unix milliseconds.
    pub at_unix_ms: u64,
    /// Who decided.
    pub by: String,
    /// What and why, with query, value and threshold of each criterion; an operator's order has a `why` alone.
    #[schema(value_type = Object)]
    pub decision: serde_json::Value,
}

/// All rollouts; a clone is the same.
#[derive(Clone)]
pub struct Rollouts {
    log: Arc<dyn Replicator>,
    fleet: Arc<dyn Fleet>,
    clock: Clock,
    me: String,
}

fn parse(document: &Document) -> Option<Rollout> {
    let rollout: Rollout = serde_json::from_str(&document.text).ok()?;
    (!rollout.plan.phases.is_empty()).then_some(rollout)
}

fn all(state: &State) -> impl Iterator<Item = (&str, u64, Rollout)> {
    state.documents.iter().filter_map(|(key, document)| {
        let id = key.strip_prefix(PREFIX)?;
        Some((id, document.version, parse(document)?))
    })
}

fn view(id: &str, version: u64, rollout: Rollout) -> RolloutView {
    RolloutView {
        id: id.to_owned(),
        version,
        percentage: f64::from(rollout.share()) * 100.0 / f64::from(BUCKETS),
        rollout,
        nodes: None,
        verdict: None,
    }
}

impl Rollouts {
    /// Rollouts of a log and a fleet.
    #[must_use]
    pub fn new(log: Arc<dyn Replicator>, fleet: Arc<dyn Fleet>, clock: Clock, me: &str) -> Self {
        Self {
            log,
            fleet,
            clock,
            me: me.to_owned(),
        }
    }

    /// Begins one.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn create(&self, plan: Plan, by: &str) -> Result<RolloutView, RolloutError> {
        if let Some(flaw) = plan.flaw() {
            return Err(RolloutError::Plan(flaw));
        }
        let first = plan.phases[0].percentage.buckets();
        // This node is one of them, also before the log has told who the others are.
        let buckets = self.fleet.names().into_iter().chain([self.me.clone()]);
        let lowest = buckets.map(|name| bucket(&plan.feature, &name)).min();
        if let Some(lowest) = lowest.filter(|it| *it >= first) {
            return Err(RolloutError::Plan(format!(
                "the first phase holds no node of this cluster, so nothing could be judged: the first joins above {} %",
                f64::from(lowest) / 1_000.0
            )));
        }
        self.fleet
            .prepare(plan.feature.clone(), by.to_owned())
            .await?;
        let now = (self.clock)();
        // The time names it; one flag has one rollout at a time.
        let id = format!("{}-{now}", plan.feature.trim_start_matches("dwcp_v3_"));
        let rollout = Rollout::begin(plan, by, now);
        let why = format!("begun by {by}");
        self.write(&id, 0, &rollout, Some(plain(&why)), by).await?;
        self.arrived().await;
        Ok(view(&id, 1, rollout))
    }

    /// All of them, the newest first, as this node knows them.
    #[must_use]
    pub fn list(&self) -> Vec<RolloutView> {
        let state = self.log.local();
        let mut views: Vec<RolloutView> = all(&state)
            .map(|(id, version, rollout)| view(id, version, rollout))
            .collect();
        views.sort_by(|a, b| {
            let key = |it: &RolloutView| (it.rollout.created_unix_ms, it.id.clone());
            key(b).cmp(&key(a))
        });
        views
    }

    /// One of them, with the nodes and what would be decided now.
    ///
    /// # Errors
    /// [`RolloutError::Unknown`].
    pub async fn get(&self, id: &str) -> Result<RolloutView, RolloutError> {
        let state = self.log.local();
        let (version, rollout) = found(&state, id)?;
        let reports = self.fleet.reports().await;
        let flag = state.flags.get(&rollout.plan.feature);
        let excluded = flag.map(|flag| flag.excluded.clone()).unwrap_or_default();
        let seen = Seen {
            rollout: &rollout,
            reports: &reports,
            excluded: &excluded,
            forced: state.force.on,
            now_ms: (self.clock)(),
        };
        let nodes = seen.nodes();
        let verdict = (!rollout.stage.is_final()).then(|| seen.decide());
        Ok(RolloutView {
            nodes: Some(nodes),
            verdict,
            ..view(id, version, rollout)
        })
    }

    /// Its recorded decisions, the newest first.
    ///
    /// # Errors
    /// [`RolloutError::Unknown`].
    pub fn decisions(&self, id: &str) -> Result<Vec<Decided>, RolloutError> {
        let state = self.log.local();
        found(&state, id)?;
        let key = format!("{PREFIX}{id}");
        let forgotten = state.decisions_total - state.decisions.len() as u64;
        let mut decided: Vec<Decided> = (forgotten..)
            .zip(&state.decisions)
            .filter(|(_, decision)| decision.about == key)
            .map(|(number, decision)| Decided {
                number,
                at_unix_ms: decision.at_unix_ms,
                by: decision.by.clone(),
                decision: serde_json::from_str(&decision.text).unwrap_or_default(),
            })
            .collect();
        decided.reverse();
        Ok(decided)
    }

    /// Takes an operator's order.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub async fn order(
        &self,
        id: &str,
        order: Order,
        by: &str,
    ) -> Result<RolloutView, RolloutError> {
        let mut tries = 0;
        loop {
            let state = self.log.read(WITHIN).await?;
            let (version, rollout) = found(&state, id)?;
            let next = rollout.ordered(order, by).map_err(RolloutError::Stage)?;
            let why = plain(&next.why);
            match self.write(id, version, &next, Some(why), by).await {
                Ok(()) => {
                    self.arrived().await;
                    return Ok(view(id, version + 1, next));
                }
                // The leader decided something meanwhile.
                Err(SubmitError::Refused(_)) if tries < 3 => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until this node has what it was answered, so that whoever looks next sees it here.
    async fn arrived(&self) {
        if let Err(error) = self.log.read(WITHIN).await {
            tracing::debug!(%error, "agreed on, and not here yet");
        }
    }

    async fn write(
        &self,
        id: &str,
        expected: u64,
        rollout: &Rollout,
        text: Option<String>,
        by: &str,
    ) -> Result<(), SubmitError> {
        let key = format!("{PREFIX}{id}");
        let now = (self.clock)();
        let decision = text.map(|text| Decision {
            at_unix_ms: now,
            by: by.to_owned(),
            text,
            about: key.clone(),
        });
        let command = Command::Write {
            key,
            expected,
            document: serde_json::to_string(rollout).unwrap_or_default(),
            steer: Some(rollout.steer()),
            decision,
            at_unix_ms: now,
            by: by.to_owned(),
        };
        self.log.submit(command, WITHIN).await.map(drop)
    }

    /// Looks once at every rollout that goes on, if this node leads.
    ///
    /// # Errors
    /// [`SubmitError`], if the log cannot be read; one that refuses a step refuses it alone.
    pub async fn tick(&self) -> Result<(), SubmitError> {
        if self.log.status().role != "leader" {
            return Ok(());
        }
        let going = |(_, _, rollout): &(&str, u64, Rollout)| !rollout.stage.is_final();
        if !all(&self.log.local()).any(|it| going(&it)) {
            return Ok(());
        }
        let state = self.log.read(WITHIN).await?;
        let reports = self.fleet.reports().await;
        for (id, version, rollout) in all(&state).filter(going) {
            let now_ms = (self.clock)();
            let flag = state.flags.get(&rollout.plan.feature);
            let excluded = flag.map(|flag| flag.excluded.clone()).unwrap_or_default();
            let seen = Seen {
                rollout: &rollout,
                reports: &reports,
                excluded: &excluded,
                forced: state.force.on,
                now_ms,
            };
            let verdict = seen.decide();
            let Some(next) = rollout.after(&verdict, now_ms) else {
                continue;
            };
            let text = serde_json::to_string(&verdict).unwrap_or_default();
            let written = self.write(id, version, &next, Some(text), &self.me).await;
            let (action, why) = (verdict.action, &verdict.why);
            match written {
                Ok(()) => tracing::info!(rollout = id, ?action, why, "rollout"),
                Err(error) => tracing::warn!(rollout = id, ?action, %error, "no step was made"),
            }
        }
        Ok(())
    }

    /// Looks again and again, until `stop` becomes true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            if let Err(error) = self.tick().await {
                tracing::debug!(%error, "rollouts are not looked at");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

fn found(state: &State, id: &str) -> Result<(u64, Rollout), RolloutError> {
    all(state)
        .find(|(of, _, _)| *of == id)
        .map(|(_, version, rollout)| (version, rollout))
        .ok_or_else(|| RolloutError::Unknown(id.chars().take(64).collect()))
}

/// A decision of a person.
fn plain(why: &str) -> String {
    serde_json::json!({ "why": why }).to_string()
}
