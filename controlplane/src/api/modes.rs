//! Routes of the modes; a peer is named by the address of its data plane.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/modes` | | `{"override","peers":[…]}` |
//! | `GET /v1/modes/{peer}` | | one peer: its mode, who decided and why, what was measured, its sessions, the last changes |
//! | `PUT /v1/modes` | `{"mode":"internet"}` | `{"override","peers":[…]}`; all peers that have no override of their own |
//! | `PUT /v1/modes/{peer}` | `{"mode":"internet"}` | the peer |
//! | `DELETE /v1/modes` | | `{"override":null,"peers":[…]}`; what was measured decides again |
//! | `DELETE /v1/modes/{peer}` | | the peer, or `{"peer"}` if nothing is known of it |
//!
//! An override outlives a restart. It is in force at the next batch of each session: see `mode` and `for_ms` there.

use std::net::IpAddr;

use axum::Json;
use axum::extract::{Extension, State};
use dwcp_api::Mode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::auth::Caller;
use super::body::{JsonBody, PathWord};
use super::problem::Problem;
use crate::mode::view::{ModesView, PeerView};
use crate::mode::word;

/// Body of the `PUT` routes.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ModeRequest)]
pub struct SetRequest {
    #[serde(with = "word")]
    #[schema(value_type = String, pattern = "^(datacenter|internet|hybrid)$")]
    mode: Mode,
}

/// `GET /v1/modes`
pub async fn list(State(app): State<App>) -> Json<ModesView> {
    Json(view(&app))
}

/// `GET /v1/modes/{peer}`
pub async fn get(
    State(app): State<App>,
    PathWord(peer): PathWord,
) -> Result<Json<PeerView>, Problem> {
    let peer = address(&peer)?;
    let sessions = app.host.sessions().unwrap_or_default();
    app.modes.peer(peer, &sessions).map(Json).ok_or_else(|| {
        Problem::not_found(
            format!("nothing is known of the peer {peer}"),
            "list the peers with GET /v1/modes or `dwcpctl mode`",
        )
    })
}

/// `PUT /v1/modes`
pub async fn set_all(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<SetRequest>,
) -> Result<Json<ModesView>, Problem> {
    change(&app, None, Some(request.mode), caller).await?;
    Ok(Json(view(&app)))
}

/// `PUT /v1/modes/{peer}`
pub async fn set(
    State(app): State<App>,
    PathWord(peer): PathWord,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<SetRequest>,
) -> Result<Json<Value>, Problem> {
    let peer = address(&peer)?;
    change(&app, Some(peer), Some(request.mode), caller).await?;
    Ok(Json(peer_view(&app, peer)))
}

/// `DELETE /v1/modes`
pub async fn clear_all(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ModesView>, Problem> {
    change(&app, None, None, caller).await?;
    Ok(Json(view(&app)))
}

/// `DELETE /v1/modes/{peer}`
pub async fn clear(
    State(app): State<App>,
    PathWord(peer): PathWord,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, Problem> {
    let peer = address(&peer)?;
    change(&app, Some(peer), None, caller).await?;
    Ok(Json(peer_view(&app, peer)))
}

async fn change(
    app: &App,
    peer: Option<IpAddr>,
    mode: Option<Mode>,
    caller: Caller,
) -> Result<(), Problem> {
    let modes = app.modes.clone();
    let work = tokio::task::spawn_blocking(move || -> Result<(), Problem> {
        match mode {
            Some(mode) => modes.set(peer, mode, &caller.name)?,
            None => modes.clear(peer)?,
        }
        Ok(())
    });
    work.await.map_err(|error| Problem::lost_task(&error))?
}

fn view(app: &App) -> ModesView {
    app.modes.view(&app.host.sessions().unwrap_or_default())
}

fn peer_view(app: &App, peer: IpAddr) -> Value {
    let sessions = app.host.sessions().unwrap_or_default();
    app.modes
        .peer(peer, &sessions)
        .and_then(|view| serde_json::to_value(view).ok())
        .unwrap_or_else(|| json!({ "peer": peer }))
}

fn address(word: &str) -> Result<IpAddr, Problem> {
    let address: IpAddr = word.parse().map_err(|_| {
        Problem::bad_request("the peer in the path is no IP address, as in /v1/modes/10.0.0.2")
    })?;
    Ok(address.to_canonical())
}
