//! Routes of the cluster: who is in it, and who leads.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/cluster` | | `{"id","epoch","role","leader","term",…,"members":[…],"throws":[…]}`, as this node knows it |
//! | `POST /v1/cluster/members` | `{"id":4,"name":"host-d","address":"10.0.0.4:7781"}` | the same, after the node has caught up and votes |
//! | `DELETE /v1/cluster/members/{id}` | | the same, without it |
//! | `PUT /v1/cluster/leader` | `{"id":2}` | the same, once that node leads |

use axum::Json;
use axum::extract::State;
use dwcp_consensus::throw::Throw;
use dwcp_consensus::wire::Change;
use dwcp_consensus::{NodeNumber, Peer, Status};
use serde::{Deserialize, Serialize};

use super::App;
use super::body::{JsonBody, PathWord};
use super::problem::Problem;
use crate::flags::NodeId;

/// Body of `POST /v1/cluster/members`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberRequest {
    /// Its number, never used before in this cluster.
    id: NodeNumber,
    /// Its name.
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    name: NodeId,
    /// Where its peers find it: `host:port`.
    #[schema(max_length = 256, pattern = "^.+:[0-9]{1,5}$")]
    address: String,
}

/// Body of `PUT /v1/cluster/leader`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaderRequest {
    /// Who is to lead.
    id: NodeNumber,
}

/// The cluster as this node knows it.
#[derive(Serialize)]
pub struct ClusterView {
    #[serde(flatten)]
    status: Status,
    /// Throws of the kill switch that are in force, whichever nodes made them.
    throws: Vec<Throw>,
}

impl ClusterView {
    fn of(app: &App) -> Json<Self> {
        Json(Self {
            status: app.cluster.status(),
            throws: app.cluster.throws_in_force(),
        })
    }
}

/// `GET /v1/cluster`
pub async fn status(State(app): State<App>) -> Json<ClusterView> {
    ClusterView::of(&app)
}

/// `POST /v1/cluster/members`
pub async fn add(
    State(app): State<App>,
    JsonBody(request): JsonBody<MemberRequest>,
) -> Result<Json<ClusterView>, Problem> {
    let parts = request.address.rsplit_once(':');
    let is_address = parts.is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if request.address.len() > 256 || !is_address {
        return Err(Problem::bad_request("`address` is no host:port"));
    }
    let peer = Peer {
        name: request.name.as_str().to_owned(),
        address: request.address,
    };
    app.cluster.change(Change::Add(request.id, peer)).await?;
    Ok(ClusterView::of(&app))
}

/// `DELETE /v1/cluster/members/{id}`
pub async fn remove(
    State(app): State<App>,
    PathWord(id): PathWord,
) -> Result<Json<ClusterView>, Problem> {
    let id = id
        .parse()
        .map_err(|_| Problem::bad_request("a member is named by its number"))?;
    app.cluster.change(Change::Remove(id)).await?;
    Ok(ClusterView::of(&app))
}

/// `PUT /v1/cluster/leader`
pub async fn transfer(
    State(app): State<App>,
    JsonBody(request): JsonBody<LeaderRequest>,
) -> Result<Json<ClusterView>, Problem> {
    app.cluster.change(Change::Transfer(request.id)).await?;
    Ok(ClusterView::of(&app))
}
