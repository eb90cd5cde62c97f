//! Routes of the feature flags and the kill switch; SPEC section "Flags, rollout, rollback".
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/feature-flags` | | `{"node","force_v1","in_force","flags":[…]}` |
//! | `GET /v1/feature-flags/{feature}` | | one flag as this node has it; with `?agreed=true` as a quorum says it is now, or 503 |
//! | `POST /v1/feature-flags` | `{"feature":"dwcp_v3_hde","percentage":10,"enabled":true}`, either of the two may be absent | the flag |
//! | `POST /v1/feature-flags/exclude` | `{"feature","nodes":[…],"excluded":true}`; `false` lets them in again | the flag |
//! | `POST /v1/feature-flags/force-v1` | `{"force_v1":true}` | `{"force_v1","applied","applied_us","persisted","note"}` |
//! | `GET /v1/feature-flags/history` | | `{"entries":[…]}`, the newest first |
//!
//! A new node starts with `dwcp_v3_amst` and `dwcp_v3_hde` enabled at 100 %, since these exist in v3;
//! the other four start disabled at 0 % and decide nothing while `available` is false.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::auth::Caller;
use super::body::{JsonBody, PathWord};
use super::page::Page;
use super::problem::Problem;
use crate::flags::{FlagView, FlagsView, ForceView, NodeId, Percentage};

/// Body of `POST /v1/feature-flags`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FlagRequest)]
pub struct SetRequest {
    feature: String,
    percentage: Option<Percentage>,
    enabled: Option<bool>,
}

/// Body of `POST /v1/feature-flags/exclude`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExcludeRequest {
    feature: String,
    nodes: Vec<NodeId>,
    #[serde(default = "yes")]
    excluded: bool,
}

const fn yes() -> bool {
    true
}

/// Body of `POST /v1/feature-flags/force-v1`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForceRequest {
    pub(super) force_v1: bool,
}

/// Query of `GET /v1/feature-flags/{feature}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetQuery {
    /// Everything that was answered anywhere before is to be in it.
    #[serde(default)]
    agreed: bool,
}

/// `GET /v1/feature-flags`
pub async fn list(State(app): State<App>) -> Json<FlagsView> {
    Json(app.flags.view())
}

/// `GET /v1/feature-flags/{feature}`
pub async fn get(
    State(app): State<App>,
    PathWord(feature): PathWord,
    query: Result<Query<GetQuery>, QueryRejection>,
) -> Result<Json<FlagView>, Problem> {
    let Query(query) = query.map_err(|rejection| {
        let words: String = rejection.body_text().chars().take(300).collect();
        Problem::bad_request(words)
    })?;
    if query.agreed {
        return Ok(Json(app.cluster.agreed_flag(&feature).await?));
    }
    Ok(Json(app.flags.get(&feature)?))
}

/// `GET /v1/feature-flags/history`
pub async fn history(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    let read = tokio::task::spawn_blocking(move || app.flags.history());
    let entries = read.await.map_err(|error| Problem::lost_task(&error))??;
    page.of("entries", entries, |entry| entry.number.to_string())
}

/// `POST /v1/feature-flags`
pub async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<SetRequest>,
) -> Result<Json<FlagView>, Problem> {
    if request.percentage.is_none() && request.enabled.is_none() {
        return Err(Problem::bad_request(
            "neither `percentage` nor `enabled` is given",
        ));
    }
    let (enabled, percentage) = (request.enabled, request.percentage);
    let change = app
        .cluster
        .set_flag(&request.feature, enabled, percentage, &caller.name);
    Ok(Json(change.await?))
}

/// `POST /v1/feature-flags/exclude`
pub async fn exclude(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<ExcludeRequest>,
) -> Result<Json<FlagView>, Problem> {
    if request.nodes.is_empty() {
        return Err(Problem::bad_request("`nodes` names no node"));
    }
    let (nodes, excluded) = (&request.nodes, request.excluded);
    let change = app
        .cluster
        .exclude(&request.feature, nodes, excluded, &caller.name);
    Ok(Json(change.await?))
}

/// `POST /v1/feature-flags/force-v1`
pub async fn force_v1(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<ForceRequest>,
) -> Result<Json<ForceView>, Problem> {
    if request.force_v1 {
        // In this thread, before anything that could wait: the word, then the signature for the others.
        let cluster = app.cluster.clone();
        let throwing = cluster.throwing();
        let applied = app.flags.throw_v1();
        let applied_us = elapsed_us(&caller).filter(|_| applied);
        throwing.sign(&caller.name);
        tracing::warn!(
            by = caller.name,
            applied,
            "kill switch on: everything goes back to v1"
        );
        let record = tokio::task::spawn_blocking(move || app.flags.record_throw(&caller.name));
        let recorded = record.await.map_err(|error| Problem::lost_task(&error))?;
        let mut notes = Vec::new();
        if !applied {
            notes.push("no data plane is attached; applied as soon as one is".to_owned());
        }
        if let Err(error) = &recorded {
            notes.push(format!("in force, but not on disk: {error}"));
        }
        return Ok(Json(ForceView {
            force_v1: true,
            applied,
            applied_us,
            persisted: recorded.is_ok(),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }));
    }
    tracing::warn!(by = caller.name, "kill switch off: the flags decide again");
    let by = caller.name.clone();
    let released = app.cluster.release(&by).await?;
    let note = if released.overtaken {
        Some("it was thrown again meanwhile and stays on")
    } else if !released.applied {
        Some("no data plane is attached; applied as soon as one is")
    } else {
        None
    };
    Ok(Json(ForceView {
        force_v1: released.overtaken,
        applied: released.applied,
        applied_us: elapsed_us(&caller).filter(|_| released.applied),
        persisted: true,
        note: note.map(ToOwned::to_owned),
    }))
}

fn elapsed_us(caller: &Caller) -> Option<u64> {
    u64::try_from(caller.since.elapsed().as_micros()).ok()
}
