//! Routes that only look.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/health` | 200 if a migration could start now, else 503; `{"status","data_plane","store"}` |
//! | `GET /v1/health/detailed` | the same status code, and everything behind it |
//! | `GET /metrics` | Prometheus text, or OpenMetrics to those who accept it |

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::problem::Problem;
use crate::host::HostStatus;
use crate::telemetry::exposition;
use crate::telemetry::health::{Health, Status, StoreHealth};
use crate::telemetry::picture::Picture;

/// How long a probe of the store counts: asking often must not wear the disk.
const PROBE_COUNTS_FOR: Duration = Duration::from_secs(10);

async fn judge(app: &App) -> Health {
    let store = probe(app).await;
    let picture = Picture::take(&app.host, &app.flags, &app.modes, &app.tally);
    Health::judge(
        picture,
        app.host.status(),
        store,
        app.started.elapsed().as_secs(),
    )
}

const fn code(status: Status) -> StatusCode {
    match status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `GET /v1/health`
pub async fn simple(State(app): State<App>) -> Response {
    let health = judge(&app).await;
    let attached = matches!(health.data_plane, HostStatus::Connected { .. });
    let body = json!({
        "status": health.status,
        "data_plane": attached,
        "store": health.store.writable,
    });
    (code(health.status), Json(body)).into_response()
}

/// `GET /v1/health/detailed`
pub async fn detailed(State(app): State<App>) -> Response {
    let health = judge(&app).await;
    (code(health.status), Json(health)).into_response()
}

/// Writes a row and says whether that went well, at most once in [`PROBE_COUNTS_FOR`].
async fn probe(app: &App) -> StoreHealth {
    // Held over the write: who asks at the same time waits for this answer.
    let mut last = app.probe.lock().await;
    if let Some((at, health)) = &*last
        && at.elapsed() < PROBE_COUNTS_FOR
    {
        return health.clone();
    }
    let store = app.store.clone();
    let write = tokio::task::spawn_blocking(move || store.put_json("health", "probe", &true));
    let detail = match write.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    let health = StoreHealth {
        writable: detail.is_none(),
        detail,
    };
    *last = Some((Instant::now(), health.clone()));
    health
}

/// `GET /metrics`
pub async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let picture = Picture::take(&app.host, &app.flags, &app.modes, &app.tally);
    let text = exposition::openmetrics(picture).map_err(|error| {
        let detail = format!("the metrics could not be written: {error}");
        let cure = "ask again; if it stays so, report the bug";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail, cure)
    })?;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let (kind, text) = if accept.contains("application/openmetrics-text") {
        (exposition::OPENMETRICS_TYPE, text)
    } else {
        (exposition::PROMETHEUS_TYPE, exposition::prometheus(&text))
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
