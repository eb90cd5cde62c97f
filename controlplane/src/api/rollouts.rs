//! Routes of rollouts.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/rollouts` | | `{"rollouts":[…]}`, the newest first |
//! | `POST /v1/rollouts` | `{"feature":"dwcp_v3_hde","phases":[{"percentage":10,"min_time_s":600,"min_samples":50},…],"criteria":{…},"settle_s":60}`; all but the feature may be absent | the rollout; it runs |
//! | `GET /v1/rollouts/{id}` | | the rollout, its nodes with their versions, what would be decided now |
//! | `GET /v1/rollouts/{id}/decisions` | | `{"decisions":[…]}`, the newest first, each with query, value and thresholds |
//! | `POST /v1/rollouts/{id}/pause`, `…/resume`, `…/abort` | | the rollout |

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde_json::Value;

use super::App;
use super::auth::Caller;
use super::body::{JsonBody, PathWord};
use super::page::Page;
use super::problem::Problem;
use crate::rollout::{Order, Plan, RolloutView};

/// `GET /v1/rollouts`
pub async fn list(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    page.of("rollouts", app.rollouts.list(), |it| it.id.clone())
}

/// `POST /v1/rollouts`
pub async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(plan): JsonBody<Plan>,
) -> Result<(StatusCode, Json<RolloutView>), Problem> {
    let made = app.rollouts.create(plan, &caller.name).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// `GET /v1/rollouts/{id}`
pub async fn get(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<RolloutView>, Problem> {
    Ok(Json(app.rollouts.get(&id).await?))
}

/// `GET /v1/rollouts/{id}/decisions`
pub async fn decisions(
    State(app): State<App>,
    PathWord(id): PathWord,
    page: Page,
) -> Result<Json<Value>, Problem> {
    let decisions = app.rollouts.decisions(&id)?;
    page.of("decisions", decisions, |it| it.number.to_string())
}

/// `POST /v1/rollouts/{id}/pause`
pub async fn pause(
    app: State<App>,
    caller: Extension<Caller>,
    id: PathWord,
) -> Result<Json<RolloutView>, Problem> {
    order(app, caller, id, Order::Pause).await
}

/// `POST /v1/rollouts/{id}/resume`
pub async fn resume(
    app: State<App>,
    caller: Extension<Caller>,
    id: PathWord,
) -> Result<Json<RolloutView>, Problem> {
    order(app, caller, id, Order::Resume).await
}

/// `POST /v1/rollouts/{id}/abort`
pub async fn abort(
    app: State<App>,
    caller: Extension<Caller>,
    id: PathWord,
) -> Result<Json<RolloutView>, Problem> {
    order(app, caller, id, Order::Abort).await
}

async fn order(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    PathWord(id): PathWord,
    order: Order,
) -> Result<Json<RolloutView>, Problem> {
    Ok(Json(app.rollouts.order(&id, order, &caller.name).await?))
}
