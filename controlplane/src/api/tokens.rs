//! Routes of the tokens; for administrators.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/tokens` | | `{"tokens":[…]}`, the newest first, without their secrets |
//! | `POST /v1/tokens` | `{"name":"ci","scope":"operate","expires_in_s":86400}`; the last may be absent | 201 and the token, this once |
//! | `DELETE /v1/tokens/{id}` | | what was revoked |

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::auth::{Caller, unix_s};
use super::body::{JsonBody, PathWord};
use super::page::Page;
use super::problem::Problem;
use crate::access::scope::Scope;
use crate::access::tokens::TokenView;

/// Body of `POST /v1/tokens`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// A name for people: 1 to 64 characters out of A-Z a-z 0-9 . _ -
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    name: String,
    /// What it is to allow.
    scope: Scope,
    /// For how long; absent: until it is revoked.
    #[schema(minimum = 1, maximum = 315360000)]
    expires_in_s: Option<u64>,
}

/// `GET /v1/tokens`
pub async fn list(State(app): State<App>, page: Page) -> Result<Json<Value>, Problem> {
    page.of("tokens", app.tokens.list(), |token| token.id.clone())
}

/// `POST /v1/tokens`
pub async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<impl IntoResponse, Problem> {
    let made = tokio::task::spawn_blocking(move || {
        let (name, life_s) = (&request.name, request.expires_in_s);
        app.tokens
            .create(name, request.scope, life_s, &caller.name, unix_s())
    });
    let token = made.await.map_err(|error| Problem::lost_task(&error))??;
    Ok((StatusCode::CREATED, Json(token)))
}

/// `DELETE /v1/tokens/{id}`
pub async fn revoke(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<TokenView>, Problem> {
    let revoked = tokio::task::spawn_blocking(move || app.tokens.revoke(&id));
    let view = revoked
        .await
        .map_err(|error| Problem::lost_task(&error))??;
    Ok(Json(view))
}
