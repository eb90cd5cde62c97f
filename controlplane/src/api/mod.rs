//! The REST API: JSON in, JSON or `application/problem+json` out, a bearer token on every route.
//!
//! In: requests. Out: calls into [`crate::jobs`], [`crate::flags`] and [`crate::telemetry`]. Promises:
//! nothing without the token; every size and every wait is bounded; a client that goes away or stops
//! reading costs a bounded time; stopping the API stops no migration.
//!
//! | module | routes or part |
//! |---|---|
//! | [`migrations`] | `/v1/migrations`, `/v1/incoming` |
//! | [`events`] | `/v1/events`, `/v1/migrations/{id}/events` |
//! | [`flags`] | `/v1/feature-flags` |
//! | [`ofrep`] | `/ofrep/v1/evaluate/flags`: the flags, for OpenFeature's SDKs |
//! | [`rollouts`] | `/v1/rollouts` |
//! | [`cluster`] | `/v1/cluster` |
//! | [`modes`] | `/v1/modes` |
//! | [`link`] | `/v1/link` |
//! | [`nics`] | `/v1/nics` |
//! | [`baselines`] | `/v1/baselines`, `/v1/baseline-work` |
//! | [`health`] | `/v1/health`, `/metrics` |
//! | [`perf`] | `/v1/perf/counters`, `/v1/perf/flamegraph`, `/v1/perf/hardware` |
//! | [`tokens`], [`audit`] | `/v1/tokens`, `/v1/audit` |
//! | [`openapi`] | `/v1/openapi.json`: every route, as a document |
//! | [`docs`] | `/docs/`: the same for people |
//! | [`ui`] | `/ui/`: the page |
//! | [`auth`] | the token, its scope, how often it may ask |
//! | [`changes`] | what changes something runs once and is recorded |
//! | [`page`] | long lists in parts |
//! | [`body`] | bounded reading of bodies |
//! | [`problem`] | refusals |
//! | [`serve`] | connections |

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use tokio::sync::{Mutex, Semaphore, watch};

pub mod audit;
pub mod auth;
pub mod baselines;
pub mod body;
pub mod changes;
pub mod cluster;
pub mod docs;
pub mod events;
pub mod flags;
pub mod health;
pub mod link;
pub mod migrations;
pub mod modes;
pub mod nics;
pub mod ofrep;
pub mod openapi;
pub mod page;
pub mod perf;
pub mod problem;
pub mod rollouts;
pub mod serve;
pub mod tokens;
pub mod ui;

use crate::access::audit::Audit;
use crate::access::idempotency::Keys;
use crate::access::rate::Rates;
use crate::access::tokens::Tokens;
use crate::baselines::Baselines;
use crate::cluster::Cluster;
use crate::flags::Flags;
use crate::host::Host;
use crate::jobs::Jobs;
use crate::link_limit::LinkLimit;
use crate::mode::Modes;
use crate::nics::Nics;
use crate::rollout::Rollouts;
use crate::store::Store;
use crate::telemetry::health::StoreHealth;
use crate::telemetry::tally::Tally;
use crate::telemetry::trace::Traces;
use problem::Problem;

/// What the routes work on; a clone is the same.
#[derive(Clone)]
pub struct App {
    /// The data plane.
    pub host: Host,
    /// Migrations.
    pub jobs: Jobs,
    /// Feature flags.
    pub flags: Flags,
    /// What the nodes agree on.
    pub cluster: Cluster,
    /// Rollouts.
    pub rollouts: Rollouts,
    /// Modes of peers.
    pub modes: Modes,
    /// What all migrations together may send.
    pub link: LinkLimit,
    /// NICs.
    pub nics: Nics,
    /// Baselines on disk.
    pub baselines: Baselines,
    /// What the control plane counts.
    pub tally: Tally,
    /// The store, for probing it.
    pub store: Store,
    /// Who may ask.
    pub tokens: Tokens,
    /// What was changed.
    pub audit: Audit,
    /// Requests that run once.
    pub keys: Keys,
    /// How often each may ask.
    pub rates: Arc<Rates>,
    /// Serve `/metrics` without it.
    pub metrics_open: bool,
    /// Traces of migrations.
    pub traces: Traces,
    /// Becomes true when the process stops.
    pub stop: watch::Receiver<bool>,
    /// When the process began.
    pub started: Instant,
    /// What the page keeps.
    pub ui: Arc<ui::Ui>,
    streams: Arc<Semaphore>,
    /// One look at the data plane from outside at a time.
    looking: Arc<Semaphore>,
    probe: Arc<Mutex<Option<(Instant, StoreHealth)>>>,
}

/// The parts of an [`App`] that come from outside.
pub struct Parts {
    /// The data plane.
    pub host: Host,
    /// Migrations.
    pub jobs: Jobs,
    /// Feature flags.
    pub flags: Flags,
    /// What the nodes agree on.
    pub cluster: Cluster,
    /// Rollouts.
    pub rollouts: Rollouts,
    /// Modes of peers.
    pub modes: Modes,
    /// What all migrations together may send.
    pub link: LinkLimit,
    /// NICs.
    pub nics: Nics,
    /// Baselines on disk.
    pub baselines: Baselines,
    /// The store.
    pub store: Store,
    /// Who may ask.
    pub tokens: Tokens,
    /// What was changed.
    pub audit: Audit,
    /// Requests that run once.
    pub keys: Keys,
    /// Requests a second of each caller, 0 for any number.
    pub requests_per_s: u32,
    /// Serve `/metrics` without it.
    pub metrics_open: bool,
    /// Traces of migrations.
    pub traces: Traces,
    /// Becomes true when the process stops.
    pub stop: watch::Receiver<bool>,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            host: parts.host,
            jobs: parts.jobs,
            flags: parts.flags,
            cluster: parts.cluster,
            rollouts: parts.rollouts,
            modes: parts.modes,
            link: parts.link,
            nics: parts.nics,
            baselines: parts.baselines,
            tally: Tally::default(),
            store: parts.store,
            tokens: parts.tokens,
            audit: parts.audit,
            keys: parts.keys,
            rates: Arc::new(Rates::new(parts.requests_per_s)),
            metrics_open: parts.metrics_open,
            traces: parts.traces,
            stop: parts.stop,
            started: Instant::now(),
            ui: Arc::default(),
            streams: Arc::new(Semaphore::new(events::STREAMS_MAX)),
            looking: Arc::new(Semaphore::new(1)),
            probe: Arc::default(),
        }
    }

    /// Every route, behind the token; the page's are behind its sessions.
    pub fn router(self) -> Router {
        let page = ui::router(&self);
        Router::new()
            .route(
                "/v1/migrations",
                get(migrations::list).post(migrations::start),
            )
            .route(
                "/v1/migrations/{id}",
                get(migrations::get)
                    .patch(migrations::patch)
                    .delete(migrations::cancel),
            )
            .route("/v1/migrations/{id}/events", get(events::one))
            .route("/v1/migrations/{id}/recover", post(migrations::recover))
            .route("/v1/events", get(events::all))
            .route(
                "/v1/incoming",
                get(migrations::incoming_list).post(migrations::incoming_open),
            )
            .route(
                "/v1/incoming/{session}",
                get(migrations::incoming_get).delete(migrations::incoming_cancel),
            )
            .route(
                "/v1/incoming/{session}/verdict",
                post(migrations::incoming_verdict),
            )
            .route(
                "/v1/incoming/{session}/recover",
                post(migrations::incoming_recover),
            )
            .route("/v1/feature-flags", get(flags::list).post(flags::set))
            .route("/v1/feature-flags/history", get(flags::history))
            .route("/v1/feature-flags/exclude", post(flags::exclude))
            .route("/v1/feature-flags/force-v1", post(flags::force_v1))
            .route("/v1/feature-flags/{feature}", get(flags::get))
            .route("/ofrep/v1/evaluate/flags", post(ofrep::all))
            .route("/ofrep/v1/evaluate/flags/{key}", post(ofrep::one))
            .route("/v1/rollouts", get(rollouts::list).post(rollouts::create))
            .route("/v1/rollouts/{id}", get(rollouts::get))
            .route("/v1/rollouts/{id}/decisions", get(rollouts::decisions))
            .route("/v1/rollouts/{id}/pause", post(rollouts::pause))
            .route("/v1/rollouts/{id}/resume", post(rollouts::resume))
            .route("/v1/rollouts/{id}/abort", post(rollouts::abort))
            .route("/v1/cluster", get(cluster::status))
            .route("/v1/cluster/members", post(cluster::add))
            .route(
                "/v1/cluster/members/{id}",
                axum::routing::delete(cluster::remove),
            )
            .route("/v1/cluster/leader", axum::routing::put(cluster::transfer))
            .route(
                "/v1/modes",
                get(modes::list)
                    .put(modes::set_all)
                    .delete(modes::clear_all),
            )
            .route(
                "/v1/modes/{peer}",
                get(modes::get).put(modes::set).delete(modes::clear),
            )
            .route("/v1/link", get(link::get).patch(link::patch))
            .route("/v1/nics", get(nics::list))
            .route("/v1/nics/plan", post(nics::plan))
            .route("/v1/nics/apply", post(nics::apply))
            .route("/v1/nics/verify", post(nics::verify))
            .route("/v1/nics/revert", post(nics::revert))
            .route("/v1/baselines", get(baselines::list).post(baselines::add))
            .route(
                "/v1/baselines/{tenant}/{id}",
                axum::routing::delete(baselines::remove),
            )
            .route(
                "/v1/baselines/{tenant}/{id}/verify",
                post(baselines::verify),
            )
            .route(
                "/v1/baseline-work/{number}",
                get(baselines::work).delete(baselines::stop),
            )
            .route("/v1/health", get(health::simple))
            .route("/v1/health/detailed", get(health::detailed))
            .route("/v1/perf/counters", get(perf::counters))
            .route("/v1/perf/flamegraph", get(perf::flamegraph))
            .route("/v1/perf/hardware", get(perf::hardware))
            .route("/metrics", get(health::metrics))
            .route("/v1/tokens", get(tokens::list).post(tokens::create))
            .route("/v1/tokens/{id}", delete(tokens::revoke))
            .route("/v1/audit", get(audit::list))
            .route("/v1/openapi.json", get(openapi::serve))
            .route("/docs", get(docs::root))
            .route("/docs/", get(docs::page))
            .route("/docs/docs.js", get(docs::script))
            .route("/docs/swagger-ui-bundle.js", get(docs::bundle))
            .route("/docs/swagger-ui.css", get(docs::style))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(from_fn_with_state(self.clone(), changes::once_and_recorded))
            .layer(from_fn_with_state(self.clone(), auth::require_token))
            .with_state(self)
            .merge(page)
    }
}

async fn no_route(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::not_found(
        format!("there is no {path}"),
        "see the API's documentation for the routes; they begin with /v1",
    )
}

async fn no_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this route does not take that method",
        "see the API's documentation for the methods of each route",
    )
}
