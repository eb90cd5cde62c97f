//! Routes of the NICs.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/nics` | | `{"nics":[…]}`, by PCI address |
//! | `POST /v1/nics/plan` | `{"profile":"TOML"}` | the plan: `{"id","nic","lines":[…],"notes":[…]}` |
//! | `POST /v1/nics/apply` | `{"profile":"TOML","plan":"ID"}`; `plan` may be absent | the plan as it was carried out |
//! | `POST /v1/nics/verify` | `{"profile":"TOML"}` | `{"holds":true,"plan":{…}}` with what still differs |
//! | `POST /v1/nics/revert` | `{"nic":"0000:3b:00.0"}` | `{"nic","plan","restored":[…],"by_restart"}` |
//!
//! Each runs to its end even if the client goes away.

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use dwcp_nic_config::plan::PlanView;
use dwcp_nic_config::revert::Reverted;
use dwcp_nic_config::verify::Verified;
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::auth::Caller;
use super::body::JsonBody;
use super::problem::Problem;
use crate::nics::{Nics, NicsError};

/// Body of a plan and of a verification.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileRequest {
    profile: String,
}

/// Body of an application.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    profile: String,
    plan: Option<String>,
}

/// Body of a revert.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevertRequest {
    nic: String,
}

/// `GET /v1/nics`
pub async fn list(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    let nics = blocking(app, Nics::list).await?;
    Ok(Json(json!({ "nics": nics })))
}

/// `POST /v1/nics/plan`
pub async fn plan(
    State(app): State<App>,
    JsonBody(request): JsonBody<ProfileRequest>,
) -> Result<Json<PlanView>, Problem> {
    let plan = blocking(app, move |nics| nics.plan(&request.profile)).await?;
    Ok(Json(plan))
}

/// `POST /v1/nics/apply`
pub async fn apply(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<ApplyRequest>,
) -> Result<Json<PlanView>, Problem> {
    let work =
        move |nics: &Nics| nics.apply(&request.profile, request.plan.as_deref(), &caller.name);
    Ok(Json(blocking(app, work).await?))
}

/// `POST /v1/nics/verify`
pub async fn verify(
    State(app): State<App>,
    JsonBody(request): JsonBody<ProfileRequest>,
) -> Result<Json<Verified>, Problem> {
    let verified = blocking(app, move |nics| nics.verify(&request.profile)).await?;
    Ok(Json(verified))
}

/// `POST /v1/nics/revert`
pub async fn revert(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<RevertRequest>,
) -> Result<Json<Reverted>, Problem> {
    let reverted = blocking(app, move |nics| nics.revert(&request.nic, &caller.name)).await?;
    Ok(Json(reverted))
}

async fn blocking<T: Send + 'static>(
    app: App,
    work: impl FnOnce(&Nics) -> Result<T, NicsError> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(move || work(&app.nics));
    Ok(done.await.map_err(|error| Problem::lost_task(&error))??)
}
