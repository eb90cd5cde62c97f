//! Every route, as an OpenAPI 3.1 document.
//!
//! In: the table [`ROUTES`] and the types that the routes read and write. Out: the document, at `/v1/openapi.json` and
//! kept in `controlplane/openapi.json`. Promises: schemas are those of the types themselves; a test holds the table
//! against the router and the kept file against both.

use std::sync::OnceLock;

use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Problem;
use super::tokens::TokenRequest;
use super::{cluster, flags, link, migrations, modes, nics, ofrep};
use crate::access::scope::needed;
use crate::access::{audit, tokens};
use crate::baselines::AddRequest;
use crate::flags::{FlagView, FlagsView, ForceView};
use crate::jobs::{
    IncomingRequest, IncomingView, MigrationRequest, MigrationView, RecoverRequest, Verdict,
};
use crate::link_limit::LinkLimitView;
use crate::mode::view::{ModesView, PeerView};
use crate::rollout::control::{Decided, RolloutView};
use crate::rollout::plan::Plan;

/// What a route answers.
enum Answer {
    /// A type of this name.
    One(&'static str),
    /// A part of a list: the list's name, and the name of its type; empty for an object.
    Part(&'static str, &'static str),
    /// An object that its route's module describes.
    Object,
    /// Text of this media type.
    Text(&'static str),
}
use Answer::{Object, One, Part, Text};

/// One method of one route.
struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    /// The type of its body; empty: none.
    body: &'static str,
    status: u16,
    answer: Answer,
}

const fn route(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: Answer,
) -> Route {
    Route {
        method,
        path,
        summary,
        body,
        status: 200,
        answer,
    }
}

const fn made(
    path: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: Answer,
) -> Route {
    Route {
        status: 201,
        ..route("post", path, summary, body, answer)
    }
}

/// Every route that there is.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route("get", "/v1/migrations", "Migrations that start here, the newest first", "", Part("migrations", "MigrationView")),
    made("/v1/migrations", "Moves a running guest to another host", "MigrationRequest", One("MigrationView")),
    route("get", "/v1/migrations/{id}", "One migration", "", One("MigrationView")),
    route("patch", "/v1/migrations/{id}", "Changes its rate limit or its destination's address", "PatchRequest", One("MigrationView")),
    route("delete", "/v1/migrations/{id}", "Cancels it; the guest goes on at the source", "", One("MigrationView")),
    route("get", "/v1/migrations/{id}/events", "Its view at each change, until it ends", "", Text("text/event-stream")),
    route("post", "/v1/migrations/{id}/recover", "Connects a broken post-copy migration again", "", One("MigrationView")),
    route("get", "/v1/events", "Every change of a migration or a mode", "", Text("text/event-stream")),
    route("get", "/v1/incoming", "Migrations that arrive here", "", Part("incoming", "IncomingView")),
    made("/v1/incoming", "A source asks for a session", "IncomingRequest", One("IncomingView")),
    route("get", "/v1/incoming/{session}", "One that arrives here", "", One("IncomingView")),
    route("delete", "/v1/incoming/{session}", "Cancels it", "", One("IncomingView")),
    route("post", "/v1/incoming/{session}/verdict", "Who runs the guest", "", One("Verdict")),
    route("post", "/v1/incoming/{session}/recover", "Waits for the source over a new session", "RecoverRequest", One("IncomingView")),
    route("get", "/v1/feature-flags", "All flags and the kill switch", "", One("FlagsView")),
    route("post", "/v1/feature-flags", "Changes a flag", "FlagRequest", One("FlagView")),
    route("get", "/v1/feature-flags/history", "Changes of flags, the newest first", "", Part("entries", "")),
    route("post", "/v1/feature-flags/exclude", "Keeps nodes out of a flag, or lets them in again", "ExcludeRequest", One("FlagView")),
    route("post", "/v1/feature-flags/force-v1", "The kill switch: everything goes back to v1", "ForceRequest", One("ForceView")),
    route("get", "/v1/feature-flags/{feature}", "One flag", "", One("FlagView")),
    route("post", "/ofrep/v1/evaluate/flags", "Every flag for one node, for OpenFeature's SDKs", "OfrepRequest", One("OfrepEvaluations")),
    route("post", "/ofrep/v1/evaluate/flags/{key}", "One flag for one node, for OpenFeature's SDKs", "OfrepRequest", One("OfrepEvaluation")),
    route("get", "/v1/rollouts", "Rollouts, the newest first", "", Part("rollouts", "RolloutView")),
    made("/v1/rollouts", "Begins a rollout", "RolloutPlan", One("RolloutView")),
    route("get", "/v1/rollouts/{id}", "One rollout, its nodes, and what would be decided now", "", One("RolloutView")),
    route("get", "/v1/rollouts/{id}/decisions", "Its decisions, the newest first", "", Part("decisions", "RolloutDecision")),
    route("post", "/v1/rollouts/{id}/pause", "It stays where it is, and is still rolled back if a criterion breaks", "", One("RolloutView")),
    route("post", "/v1/rollouts/{id}/resume", "It goes on", "", One("RolloutView")),
    route("post", "/v1/rollouts/{id}/abort", "It ends; v1 everywhere", "", One("RolloutView")),
    route("get", "/v1/modes", "Modes of all peers, and why", "", One("ModesView")),
    route("put", "/v1/modes", "Overrides the mode of all peers", "ModeRequest", One("ModesView")),
    route("delete", "/v1/modes", "What was measured decides again", "", One("ModesView")),
    route("get", "/v1/modes/{peer}", "The mode of one peer", "", One("PeerView")),
    route("put", "/v1/modes/{peer}", "Overrides the mode of one peer", "ModeRequest", Object),
    route("delete", "/v1/modes/{peer}", "What was measured decides for it again", "", Object),
    route("get", "/v1/cluster", "Who is in the cluster, and who leads", "", Object),
    route("post", "/v1/cluster/members", "Adds a member; it votes once it has caught up", "MemberRequest", Object),
    route("delete", "/v1/cluster/members/{id}", "Removes a member", "", Object),
    route("put", "/v1/cluster/leader", "Asks another member to lead", "LeaderRequest", Object),
    route("get", "/v1/link", "What all migrations together may send", "", One("LinkLimitView")),
    route("patch", "/v1/link", "Changes that; 0 lifts it", "LinkRequest", One("LinkLimitView")),
    route("get", "/v1/nics", "The NICs of this host", "", Object),
    route("post", "/v1/nics/plan", "What a profile would change", "ProfileRequest", Object),
    route("post", "/v1/nics/apply", "Applies a profile", "ApplyRequest", Object),
    route("post", "/v1/nics/verify", "Does a profile hold?", "ProfileRequest", Object),
    route("post", "/v1/nics/revert", "Takes a NIC back to what it was", "RevertRequest", Object),
    route("get", "/v1/baselines", "Baselines on this host's disk", "", Object),
    Route { status: 202, ..route("post", "/v1/baselines", "Makes a baseline of an image", "AddRequest", Object) },
    route("delete", "/v1/baselines/{tenant}/{id}", "Removes a baseline", "", Object),
    Route { status: 202, ..route("post", "/v1/baselines/{tenant}/{id}/verify", "Reads a baseline and checks every block", "", Object) },
    route("get", "/v1/baseline-work/{number}", "How far work on a baseline is", "", Object),
    route("delete", "/v1/baseline-work/{number}", "Stops work on a baseline", "", Object),
    route("get", "/v1/health", "Could a migration start now?", "", Object),
    route("get", "/v1/health/detailed", "The same, and everything behind it", "", Object),
    route("get", "/v1/perf/counters", "Counters of the data plane's workers", "", Object),
    route("get", "/v1/perf/flamegraph", "Where the data plane's time goes", "", Text("image/svg+xml")),
    route("get", "/v1/perf/hardware", "What the processor counted for the data plane", "", Object),
    route("get", "/v1/tokens", "Tokens that were handed out, the newest first", "", Part("tokens", "TokenView")),
    made("/v1/tokens", "Makes a token; its secret is shown this once", "TokenRequest", One("NewToken")),
    route("delete", "/v1/tokens/{id}", "Revokes a token", "", One("TokenView")),
    route("get", "/v1/audit", "Every change and who made it, the newest first", "", Part("entries", "Entry")),
    route("get", "/v1/openapi.json", "This document", "", Object),
    route("get", "/metrics", "Metrics for Prometheus", "", Text("text/plain")),
];

/// `GET /v1/openapi.json`
pub async fn serve() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_string()).as_str();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let item = paths
            .entry(route.path)
            .or_insert_with(|| Value::Object(Map::new()));
        item[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "DWCP control plane",
            "description": "Moves running virtual machines between hypervisors, and steers how.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "version": env!("CARGO_PKG_VERSION"),
        },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let method = Method::from_bytes(route.method.to_ascii_uppercase().as_bytes());
    let scope = method.map_or("admin", |method| needed(&method, route.path).as_str());
    let name: String = route
        .path
        .split(['/', '{', '}', '-', '.'])
        .filter(|part| !part.is_empty() && *part != "v1")
        .collect::<Vec<_>>()
        .join("_");
    let tag = route
        .path
        .trim_start_matches("/v1/")
        .trim_start_matches('/');
    let tag = tag.split('/').next().unwrap_or(tag);
    let mut responses = json!({
        "default": {
            "description": "A refusal: what happened, and what to do",
            "content": { "application/problem+json": { "schema": reference("Problem") } },
        },
    });
    let answer =
        json!({ "description": "As asked", "content": content(&route.answer, route.path) });
    if route.path.starts_with("/v1/health") {
        responses["503"] = json!({
            "description": "No migration could start",
            "content": content(&route.answer, route.path),
        });
    }
    if route.path.starts_with("/ofrep") {
        let failure = json!({
            "description": "A refusal in the protocol's form",
            "content": { "application/json": { "schema": reference("OfrepFailure") } },
        });
        responses["400"] = failure.clone();
        responses["404"] = failure;
        responses["304"] = json!({ "description": "Nothing changed since the ETag that was sent" });
    }
    responses[route.status.to_string()] = answer;
    let mut operation = json!({
        "operationId": format!("{}_{name}", route.method),
        "tags": [tag],
        "summary": route.summary,
        "description": format!("Needs a token with the scope `{scope}`."),
        "parameters": parameters(route),
        "responses": responses,
    });
    if !route.body.is_empty() {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": reference(route.body) } },
        });
    }
    operation
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn content(answer: &Answer, path: &str) -> Value {
    let schema = match answer {
        One(name) => reference(name),
        Part(list, kind) => {
            let items = if kind.is_empty() {
                json!({ "type": "object" })
            } else {
                reference(kind)
            };
            json!({
                "type": "object",
                "required": [list],
                "properties": {
                    *list: { "type": "array", "items": items },
                    "next": { "type": "string", "description": "cursor of the part after this one" },
                },
            })
        }
        Object => json!({ "type": "object" }),
        Text(kind) => {
            let text = json!({ "schema": { "type": "string" } });
            return if path == "/v1/perf/flamegraph" {
                json!({ *kind: text, "text/plain": text })
            } else {
                json!({ *kind: text })
            };
        }
    };
    json!({ "application/json": { "schema": schema } })
}

fn parameters(route: &Route) -> Value {
    let mut all = Vec::new();
    let mut add = |place: &str, name: &str, required: bool, schema: Value| {
        all.push(json!({ "in": place, "name": name, "required": required, "schema": schema }));
    };
    for name in route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{'))
    {
        let name = name.trim_end_matches('}');
        let of_session = ["/v1/migrations", "/v1/incoming"]
            .iter()
            .any(|root| route.path.starts_with(root));
        let schema = match (name, of_session) {
            ("id" | "session", true) => json!({ "type": "string", "pattern": "^[0-9a-f]{32}$" }),
            ("id", _) if route.path.starts_with("/v1/cluster") => {
                json!({ "type": "integer", "minimum": 0 })
            }
            ("number", _) => json!({ "type": "integer", "minimum": 0 }),
            ("peer", _) => {
                json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
            }
            _ => json!({ "type": "string", "minLength": 1 }),
        };
        add("path", name, true, schema);
    }
    let whole =
        |least: u64, most: u64| json!({ "type": "integer", "minimum": least, "maximum": most });
    if matches!(route.answer, Part(..)) {
        add(
            "query",
            "limit",
            false,
            whole(1, super::page::LIMIT_MAX as u64),
        );
        add("query", "cursor", false, json!({ "type": "string" }));
    }
    if route.path == "/v1/feature-flags/{feature}" {
        add("query", "agreed", false, json!({ "type": "boolean" }));
    }
    if route.path == "/v1/baselines" && route.method == "get" {
        add("query", "tenant", false, json!({ "type": "string" }));
    }
    if matches!(route.path, "/v1/perf/flamegraph" | "/v1/perf/hardware") {
        add(
            "query",
            "seconds",
            false,
            whole(1, super::perf::SECONDS_MAX),
        );
    }
    if route.path == "/v1/perf/flamegraph" {
        add(
            "query",
            "hz",
            false,
            whole(1, u64::from(super::perf::HZ_MAX)),
        );
        add(
            "query",
            "format",
            false,
            json!({ "enum": ["svg", "folded"] }),
        );
    }
    if route.path == "/ofrep/v1/evaluate/flags" {
        add(
            "header",
            "If-None-Match",
            false,
            json!({ "type": "string" }),
        );
    }
    let once = route.path != super::auth::KILL_SWITCH && !route.path.starts_with("/ofrep");
    if route.method == "post" && once {
        let key =
            json!({ "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$" });
        add("header", "Idempotency-Key", false, key);
    }
    Value::Array(all)
}

fn schemas() -> Map<String, Value> {
    let mut found = Vec::new();
    fn add<T: ToSchema + PartialSchema>(
        found: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>,
    ) {
        found.push((T::name().into_owned(), T::schema()));
        T::schemas(found);
    }
    add::<Problem>(&mut found);
    add::<MigrationRequest>(&mut found);
    add::<MigrationView>(&mut found);
    add::<migrations::PatchRequest>(&mut found);
    add::<cluster::MemberRequest>(&mut found);
    add::<cluster::LeaderRequest>(&mut found);
    add::<IncomingRequest>(&mut found);
    add::<IncomingView>(&mut found);
    add::<RecoverRequest>(&mut found);
    add::<Verdict>(&mut found);
    add::<flags::SetRequest>(&mut found);
    add::<flags::ExcludeRequest>(&mut found);
    add::<flags::ForceRequest>(&mut found);
    add::<FlagsView>(&mut found);
    add::<FlagView>(&mut found);
    add::<ForceView>(&mut found);
    add::<ofrep::Asked>(&mut found);
    add::<ofrep::Evaluated>(&mut found);
    add::<ofrep::Bulk>(&mut found);
    add::<ofrep::Failure>(&mut found);
    add::<Plan>(&mut found);
    add::<RolloutView>(&mut found);
    add::<Decided>(&mut found);
    add::<modes::SetRequest>(&mut found);
    add::<ModesView>(&mut found);
    add::<PeerView>(&mut found);
    add::<link::LinkRequest>(&mut found);
    add::<LinkLimitView>(&mut found);
    add::<nics::ProfileRequest>(&mut found);
    add::<nics::ApplyRequest>(&mut found);
    add::<nics::RevertRequest>(&mut found);
    add::<AddRequest>(&mut found);
    add::<TokenRequest>(&mut found);
    add::<tokens::TokenView>(&mut found);
    add::<tokens::NewToken>(&mut found);
    add::<audit::Entry>(&mut found);
    found
        .into_iter()
        .map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

    #[test]
    fn the_kept_document_is_this_one() {
        let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("DWCP_WRITE_OPENAPI").is_some() {
            std::fs::write(KEPT, &text).unwrap();
        }
        let kept = std::fs::read_to_string(KEPT).unwrap();
        assert!(
            kept == text,
            "the API changed: DWCP_WRITE_OPENAPI=1 cargo test -p dwcp-controlplane --lib openapi writes {KEPT} anew"
        );
    }

    #[test]
    fn every_route_of_the_router_is_in_the_document() {
        let router = include_str!("mod.rs");
        let mut routes = 0;
        for (at, _) in router.match_indices(".route(") {
            let rest = &router[at..];
            let path = rest.split('"').nth(1).unwrap();
            let end = rest[1..].find(".route(").unwrap_or(rest.len() - 1);
            for method in ["get", "post", "put", "patch", "delete"] {
                let takes = rest[..=end].contains(&format!("{method}("));
                let told = ROUTES
                    .iter()
                    .any(|route| route.path == path && route.method == method);
                if !path.starts_with("/docs") {
                    assert_eq!(takes, told, "{method} {path}");
                }
                routes += usize::from(takes);
            }
        }
        assert!(routes >= ROUTES.len(), "{routes} routes were found");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn look(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(path) = map.get("$ref").and_then(Value::as_str) {
                        let place = path.strip_prefix('#').unwrap();
                        assert!(document.pointer(place).is_some(), "{path}");
                    }
                    map.values().for_each(|value| look(value, document));
                }
                Value::Array(all) => all.iter().for_each(|value| look(value, document)),
                _ => {}
            }
        }
        let document = document();
        look(&document, &document);
    }
}
