//! Routes of baselines.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/baselines?tenant=T` | `{"baselines":[…],"disk_bytes","max_bytes"}`; without a tenant those of all |
//! | `POST /v1/baselines` `{"path":"/img","tenant":"T","name":"…","format":"raw"}`; all but the path may be absent | 202 and the work's view |
//! | `DELETE /v1/baselines/{tenant}/{id}` | `{"removed":"ID"}` |
//! | `POST /v1/baselines/{tenant}/{id}/verify` | 202 and the work's view |
//! | `GET /v1/baseline-work/{number}` | `{"work","what","state","bytes_done","bytes_total",…}` |
//! | `DELETE /v1/baseline-work/{number}` | the same; it stops soon, and leaves nothing |

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::body::{JsonBody, PathWord};
use super::problem::Problem;
use crate::baselines::{AddRequest, Baselines, BaselinesError, ListView, WorkView};

/// Which baselines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    tenant: Option<String>,
}

/// `GET /v1/baselines`
pub async fn list(
    State(app): State<App>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<ListView>, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let work = move |baselines: &Baselines| baselines.list(query.tenant.as_deref());
    Ok(Json(blocking(app, work).await?))
}

/// `POST /v1/baselines`
pub async fn add(
    State(app): State<App>,
    JsonBody(request): JsonBody<AddRequest>,
) -> Result<impl IntoResponse, Problem> {
    Ok((StatusCode::ACCEPTED, Json(app.baselines.add(request)?)))
}

/// `DELETE /v1/baselines/{tenant}/{id}`
pub async fn remove(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    let (tenant, id) = words(path)?;
    let removed = json!({ "removed": id });
    blocking(app, move |baselines| baselines.remove(&tenant, &id)).await?;
    Ok(Json(removed))
}

/// `POST /v1/baselines/{tenant}/{id}/verify`
pub async fn verify(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    let (tenant, id) = words(path)?;
    let view = blocking(app, move |baselines| baselines.verify(&tenant, &id)).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// `GET /v1/baseline-work/{number}`
pub async fn work(
    State(app): State<App>,
    PathWord(number): PathWord,
) -> Result<Json<WorkView>, Problem> {
    Ok(Json(app.baselines.work(number_of(&number)?)?))
}

/// `DELETE /v1/baseline-work/{number}`
pub async fn stop(
    State(app): State<App>,
    PathWord(number): PathWord,
) -> Result<Json<WorkView>, Problem> {
    Ok(Json(app.baselines.stop(number_of(&number)?)?))
}

fn words(path: Result<Path<(String, String)>, PathRejection>) -> Result<(String, String), Problem> {
    let Path(words) = path.map_err(|error| Problem::bad_request(error.body_text()))?;
    Ok(words)
}

fn number_of(text: &str) -> Result<u64, Problem> {
    text.parse()
        .map_err(|_| Problem::bad_request("the work in the path is no number"))
}

async fn blocking<T: Send + 'static>(
    app: App,
    work: impl FnOnce(&Baselines) -> Result<T, BaselinesError> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(move || work(&app.baselines));
    Ok(done.await.map_err(|error| Problem::lost_task(&error))??)
}

impl From<BaselinesError> for Problem {
    fn from(error: BaselinesError) -> Self {
        let detail = error.to_string();
        match error {
            BaselinesError::Off => Self::new(
                StatusCode::CONFLICT,
                "baselines_off",
                detail,
                "set baseline_dir for the control plane and [baseline] dir for the data plane, to one folder",
            ),
            BaselinesError::BadRequest { .. } => Self::bad_request(detail),
            BaselinesError::Busy => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "baselines_busy",
                detail,
                "wait for one to end, or stop one with DELETE /v1/baseline-work/{number}",
            ),
            BaselinesError::UnknownWork(_) => Self::not_found(
                detail,
                "list the baselines with GET /v1/baselines or `dwcpctl baseline list`",
            ),
            BaselinesError::Store(dwcp_baseline::StoreError::Unknown(_)) => Self::not_found(
                detail,
                "list the baselines with GET /v1/baselines or `dwcpctl baseline list`",
            ),
            BaselinesError::Store(error) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                error.code(),
                detail,
                "do what the detail says, then ask again",
            ),
        }
    }
}
