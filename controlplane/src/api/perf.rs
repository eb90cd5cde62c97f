//! Routes that show where the data plane's time goes.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/perf/counters` | each worker's counters, as they are and by stage |
//! | `GET /v1/perf/flamegraph?seconds=10&hz=99&format=svg` | a flame graph of the running data plane; `format=folded` gives its stacks as text |
//! | `GET /v1/perf/hardware?seconds=1` | cycles, instructions, misses and switches of each of its threads, and what this machine does not count |
//!
//! All answer 503 if no data plane is attached. The last two look at the process from outside, one such
//! look at a time: 409 to who comes second. A client that goes away ends the look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::problem::Problem;
use crate::host::{HostError, HostStatus};
use crate::profile::{self, Profile, ProfileError, Request};
use crate::telemetry::stages;

/// Longest look.
pub const SECONDS_MAX: u64 = 60;
/// Most samples of a thread in a second.
pub const HZ_MAX: u32 = 999;
const SECONDS_DEFAULT: u64 = 10;
/// No divisor of anything that a worker does at a fixed pace.
const HZ_DEFAULT: u32 = 99;

/// Query of `/v1/perf/flamegraph`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlameQuery {
    seconds: Option<u64>,
    hz: Option<u32>,
    #[serde(default)]
    format: Format,
}

/// What a flame graph is written as.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Svg,
    Folded,
}

/// Query of `/v1/perf/hardware`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardwareQuery {
    seconds: Option<u64>,
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, error.code(), error.to_string(), error.cure())
    }
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Self {
        let status = match error {
            ProfileError::Missing | ProfileError::Forbidden { .. } => StatusCode::NOT_IMPLEMENTED,
            ProfileError::Gone { .. } | ProfileError::NoRoom { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ProfileError::Kernel { .. } | ProfileError::Program { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, error.code(), error.to_string(), error.cure())
    }
}

/// `GET /v1/perf/counters`
pub async fn counters(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let workers: Vec<Value> = app
        .host
        .workers()?
        .into_iter()
        .enumerate()
        .map(|(worker, figures)| {
            let (stages, busy_ns) = (stages::stages(&figures), stages::busy_ns(&figures));
            let counters: Map<String, Value> = figures
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect();
            json!({
                "worker": worker,
                "busy_ns": busy_ns,
                "stages": stages,
                "counters": counters,
            })
        })
        .collect();
    Ok(Json(
        json!({ "taken_ns": dwcp_api::monotonic_ns(), "workers": workers }),
    ))
}

/// `GET /v1/perf/flamegraph`
pub async fn flamegraph(
    State(app): State<App>,
    query: Result<Query<FlameQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(bad_query)?;
    let duration = seconds(query.seconds, SECONDS_DEFAULT)?;
    let hz = query.hz.unwrap_or(HZ_DEFAULT);
    if !(1..=HZ_MAX).contains(&hz) {
        return Err(Problem::bad_request(format!(
            "hz is 1 to {HZ_MAX}, not {hz}"
        )));
    }
    let (pid, node) = data_plane(&app)?;
    let text = look(&app, move |stop| {
        let request = Request { pid, duration, hz };
        profile::record(request, stop).map(|profile| write(&profile, query.format, &node))
    });
    let text = text.await?;
    let kind = match query.format {
        Format::Svg => "image/svg+xml",
        Format::Folded => "text/plain; charset=utf-8",
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

fn write(profile: &Profile, format: Format, node: &str) -> String {
    match format {
        Format::Svg => profile::svg(profile, &format!("data plane of {node}")),
        Format::Folded => profile.folded.text(),
    }
}

/// `GET /v1/perf/hardware`
pub async fn hardware(
    State(app): State<App>,
    query: Result<Query<HardwareQuery>, QueryRejection>,
) -> Result<Json<profile::Counts>, Problem> {
    let Query(query) = query.map_err(bad_query)?;
    let window = seconds(query.seconds, 1)?;
    let (pid, _) = data_plane(&app)?;
    let counts = look(&app, move |stop| profile::count(pid, window, stop));
    Ok(Json(counts.await?))
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "it is what map_err gives away"
)]
fn bad_query(rejection: QueryRejection) -> Problem {
    let message: String = rejection.body_text().chars().take(300).collect();
    Problem::bad_request(message)
}

fn seconds(asked: Option<u64>, default: u64) -> Result<Duration, Problem> {
    match asked.unwrap_or(default) {
        seconds @ 1..=SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        other => {
            let words = format!("seconds is 1 to {SECONDS_MAX}, not {other}");
            Err(Problem::bad_request(words))
        }
    }
}

fn data_plane(app: &App) -> Result<(u32, String), Problem> {
    match app.host.status() {
        HostStatus::Connected { pid, node, .. } => Ok((pid, node)),
        HostStatus::Disconnected { reason, .. } => Err(HostError::Disconnected(reason).into()),
    }
}

/// Set when nobody waits for the answer any more.
struct StopAtEnd(Arc<AtomicBool>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks at the data plane from outside, on a thread that may wait.
async fn look<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&AtomicBool) -> Result<T, ProfileError> + Send + 'static,
) -> Result<T, Problem> {
    let Ok(turn) = Arc::clone(&app.looking).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "profile_running",
            "another look at the data plane is under way",
            "wait for its end, a minute at most, and ask again",
        ));
    };
    let stop = StopAtEnd(Arc::default());
    let told = Arc::clone(&stop.0);
    let working = tokio::task::spawn_blocking(move || {
        // Until the look has ended, not only its request.
        let _turn = turn;
        work(&told)
    });
    let done = working.await.map_err(|error| Problem::lost_task(&error))?;
    Ok(done?)
}
