//! Routes of the link: what all migrations of this host together may send.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/link` | | `{"bandwidth_limit_bytes_per_s","in_force"}`; 0 is no limit |
//! | `PATCH /v1/link` | `{"bandwidth_limit_bytes_per_s":n}`; 0 lifts it | the same |
//!
//! The limit of a single migration is `PATCH /v1/migrations/{id}`; both hold at once. Migrations that wait for
//! the same link share it evenly, with a limit and without.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::App;
use super::body::JsonBody;
use super::problem::Problem;
use crate::link_limit::LinkLimitView;

/// Body of `PATCH /v1/link`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    bandwidth_limit_bytes_per_s: u64,
}

/// `GET /v1/link`
pub async fn get(State(app): State<App>) -> Result<Json<LinkLimitView>, Problem> {
    let read = tokio::task::spawn_blocking(move || app.link.view());
    let view = read.await.map_err(|error| Problem::lost_task(&error))??;
    Ok(Json(view))
}

/// `PATCH /v1/link`
pub async fn patch(
    State(app): State<App>,
    JsonBody(request): JsonBody<LinkRequest>,
) -> Result<Json<LinkLimitView>, Problem> {
    let limit = request.bandwidth_limit_bytes_per_s;
    let written = tokio::task::spawn_blocking(move || app.link.set(limit));
    let view = written
        .await
        .map_err(|error| Problem::lost_task(&error))??;
    Ok(Json(view))
}
