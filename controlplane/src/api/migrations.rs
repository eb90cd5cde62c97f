//! Routes of migrations that start here, and of those that arrive here.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/migrations` | 201 and the migration's view |
//! | `GET /v1/migrations` | `{"migrations":[…]}`, the newest first |
//! | `GET /v1/migrations/{id}` | its view |
//! | `PATCH /v1/migrations/{id}` `{"bandwidth_limit_bytes_per_s":n,"dataplane":"10.0.0.3:4790"}`, either of the two may be absent | its view; 0 lifts the limit; the destination's data plane is at another address from now on |
//! | `DELETE /v1/migrations/{id}` | cancels it; its view |
//! | `POST /v1/migrations/{id}/recover` | connects a broken post-copy again; its view |
//! | `POST /v1/incoming` | 201 and `{"session","dataplane",…}` |
//! | `GET /v1/incoming` | `{"incoming":[…]}` |
//! | `GET /v1/incoming/{session}` | its view |
//! | `POST /v1/incoming/{session}/verdict` | `{"guest":"here"}`, `here_in_part`, `never_here` or `unknown` |
//! | `POST /v1/incoming/{session}/recover` `{"session":…}` | waits for the source over a new session; its view |
//! | `DELETE /v1/incoming/{session}` | cancels it; its view |
//!
//! What changes something runs in a task of its own: a client that goes away in the middle of a request
//! leaves no half-prepared hypervisor behind.

use std::future::Future;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use dwcp_api::SessionId;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::body::{JsonBody, PathWord};
use super::page::Page;
use super::problem::Problem;
use crate::jobs::{
    IncomingRequest, IncomingView, JobError, MigrationRequest, MigrationView, RecoverRequest,
    Verdict,
};
use crate::telemetry::trace::context::{self, TRACEPARENT};

/// Body of `PATCH /v1/migrations/{id}`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchRequest {
    bandwidth_limit_bytes_per_s: Option<u64>,
    dataplane: Option<String>,
}

/// `POST /v1/migrations`
pub async fn start(
    State(app): State<App>,
    JsonBody(request): JsonBody<MigrationRequest>,
) -> Result<impl IntoResponse, Problem> {
    let view = detached(async move { app.jobs.start(request).await }).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// `GET /v1/migrations`
pub async fn list(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    page.of("migrations", app.jobs.list(), |view| view.id.clone())
}

/// `GET /v1/migrations/{id}`
pub async fn get(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<MigrationView>, Problem> {
    let id = session(&id)?;
    app.jobs
        .get(&id)
        .map(Json)
        .ok_or_else(|| JobError::Unknown(id).into())
}

/// `PATCH /v1/migrations/{id}`
pub async fn patch(
    State(app): State<App>,
    PathWord(id): PathWord,
    JsonBody(request): JsonBody<PatchRequest>,
) -> Result<Json<MigrationView>, Problem> {
    let id = session(&id)?;
    let (limit, dataplane) = (request.bandwidth_limit_bytes_per_s, request.dataplane);
    if limit.is_none() && dataplane.is_none() {
        return Err(Problem::bad_request(
            "the body changes nothing: give bandwidth_limit_bytes_per_s, dataplane or both",
        ));
    }
    let change = async move {
        let mut view = None;
        if let Some(to) = dataplane {
            view = Some(app.jobs.redirect(&id, &to).await?);
        }
        if let Some(limit) = limit {
            view = Some(app.jobs.limit(&id, limit).await?);
        }
        view.ok_or(JobError::Unknown(id))
    };
    Ok(Json(detached(change).await?))
}

/// `DELETE /v1/migrations/{id}`
pub async fn cancel(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<MigrationView>, Problem> {
    let id = session(&id)?;
    Ok(Json(
        detached(async move { app.jobs.cancel(&id).await }).await?,
    ))
}

/// `POST /v1/migrations/{id}/recover`
pub async fn recover(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<MigrationView>, Problem> {
    let id = session(&id)?;
    Ok(Json(
        detached(async move { app.jobs.recover(&id).await }).await?,
    ))
}

/// `POST /v1/incoming`
pub async fn incoming_open(
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<IncomingRequest>,
) -> Result<impl IntoResponse, Problem> {
    let parent = headers.get(TRACEPARENT).and_then(|it| it.to_str().ok());
    let parent = parent.and_then(context::parse);
    let open = async move {
        let view = app.jobs.incoming_open(request).await?;
        if let Some(parent) = parent {
            app.traces.follow(&app.jobs, &view.session, &parent);
        }
        Ok(view)
    };
    let view = detached(open).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// `GET /v1/incoming`
pub async fn incoming_list(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    page.of("incoming", app.jobs.incoming_list(), |view| {
        view.session.clone()
    })
}

/// `GET /v1/incoming/{session}`
pub async fn incoming_get(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<IncomingView>, Problem> {
    let id = session(&id)?;
    app.jobs
        .incoming_get(&id)
        .map(Json)
        .ok_or_else(|| JobError::Unknown(id).into())
}

/// `POST /v1/incoming/{session}/verdict`
pub async fn incoming_verdict(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<Verdict>, Problem> {
    let id = session(&id)?;
    Ok(Json(
        detached(async move { app.jobs.incoming_verdict(&id).await }).await?,
    ))
}

/// `POST /v1/incoming/{session}/recover`
pub async fn incoming_recover(
    State(app): State<App>,
    PathWord(id): PathWord,
    JsonBody(request): JsonBody<RecoverRequest>,
) -> Result<Json<IncomingView>, Problem> {
    let id = session(&id)?;
    Ok(Json(
        detached(async move { app.jobs.incoming_recover(&id, &request).await }).await?,
    ))
}

/// `DELETE /v1/incoming/{session}`
pub async fn incoming_cancel(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<IncomingView>, Problem> {
    let id = session(&id)?;
    Ok(Json(
        detached(async move { app.jobs.incoming_cancel(&id).await }).await?,
    ))
}

/// Checks the id in a path and gives it back as it is written everywhere.
///
/// # Errors
/// [`Problem`] with status 400.
pub fn session(id: &str) -> Result<String, Problem> {
    SessionId::parse(id)
        .map(|id| id.to_string())
        .ok_or_else(|| Problem::bad_request("the id in the path is not 32 hexadecimal digits"))
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, JobError>> + Send + 'static,
) -> Result<T, Problem> {
    Ok(tokio::spawn(work)
        .await
        .map_err(|error| Problem::lost_task(&error))??)
}
