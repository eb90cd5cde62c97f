//! Streams of changes, as server-sent events.
//!
//! | route | events |
//! |---|---|
//! | `GET /v1/events` | every migration's view at each change, and every change of a peer's mode |
//! | `GET /v1/migrations/{id}/events` | its view at once, then at each change; ends after the last |
//!
//! Each event has `event: migration` or `event: mode`, an `id:` that grows, and the whole view or change as its data:
//! a client that missed some loses nothing but the way there. A comment comes every [`HEARTBEAT`], so that a dead
//! stream is noticed. At most [`STREAMS_MAX`] are open at once.

use std::convert::Infallible;
use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;

use super::App;
use super::body::PathWord;
use super::migrations::session;
use super::problem::Problem;
use super::serve::stopped;
use crate::jobs::{JobError, MigrationView};
use crate::mode::view::ChangeView;

/// Time between two comments.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Streams open at once: fewer than connections, so that the other routes are always served.
pub const STREAMS_MAX: usize = 64;

/// Numbers the events of this process.
static EVENT_ID: AtomicU64 = AtomicU64::new(1);

/// `GET /v1/events`
pub async fn all(State(app): State<App>) -> Result<Response, Problem> {
    let permit = permit(&app)?;
    let views = changes(&app, None).map(|view| Told::new("migration", &view));
    let modes = modes(&app).map(|change| Told::new("mode", &change));
    Ok(sse(stream::select(views, modes), &app, permit))
}

/// `GET /v1/migrations/{id}/events`
pub async fn one(State(app): State<App>, PathWord(id): PathWord) -> Result<Response, Problem> {
    let id = session(&id)?;
    let permit = permit(&app)?;
    // Subscribed before the first look, so that no change falls between the two.
    let later = changes(&app, Some(id.clone()));
    let first = app.jobs.get(&id).ok_or(JobError::Unknown(id))?;
    let views = stream::iter([first]).chain(later);
    // Up to and with the first final view, and closed at once after it.
    let views = views
        .flat_map(|view| {
            let end = view.state.is_final().then_some(None);
            stream::iter([Some(view)].into_iter().chain(end))
        })
        .take_while(|view| ready(view.is_some()))
        .filter_map(ready)
        .map(|view| Told::new("migration", &view));
    Ok(sse(views, &app, permit))
}

/// What an event tells.
struct Told {
    kind: &'static str,
    data: String,
}

impl Told {
    fn new(kind: &'static str, what: &impl Serialize) -> Self {
        let data = serde_json::to_string(what).unwrap_or_default();
        Self { kind, data }
    }
}

/// Changes of modes; those that came too fast are missed, `/v1/modes` has the last of each peer.
fn modes(app: &App) -> impl Stream<Item = ChangeView> + use<> {
    stream::unfold(app.modes.subscribe(), |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(change) => return Some((change, receiver)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

fn permit(app: &App) -> Result<OwnedSemaphorePermit, Problem> {
    app.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_streams",
            format!("{STREAMS_MAX} event streams are already open"),
            "poll GET /v1/migrations/{id} instead, or close a stream",
        )
    })
}

/// Views as they change; of one migration, or of all.
fn changes(app: &App, only: Option<String>) -> impl Stream<Item = MigrationView> + use<> {
    let receiver = app.jobs.subscribe();
    let jobs = app.jobs.clone();
    stream::unfold(
        (receiver, only, jobs),
        |(mut receiver, only, jobs)| async move {
            loop {
                match receiver.recv().await {
                    Ok(view) if only.as_ref().is_none_or(|id| *id == view.id) => {
                        return Some((view, (receiver, only, jobs)));
                    }
                    Ok(_) => {}
                    // Too slow: what was missed may have been the last change, so look again.
                    Err(RecvError::Lagged(_)) => {
                        let missed = only.as_ref().and_then(|id| jobs.get(id));
                        if let Some(view) = missed {
                            return Some((view, (receiver, only, jobs)));
                        }
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        },
    )
}

fn sse(
    told: impl Stream<Item = Told> + Send + 'static,
    app: &App,
    permit: OwnedSemaphorePermit,
) -> Response {
    let mut stop = app.stop.clone();
    let stopped = async move { stopped(&mut stop).await };
    let events = told.take_until(Box::pin(stopped)).map(move |told| {
        let _held = &permit;
        let id = EVENT_ID.fetch_add(1, Ordering::Relaxed);
        Ok::<Event, Infallible>(
            Event::default()
                .event(told.kind)
                .id(id.to_string())
                .data(told.data),
        )
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"))
        .into_response()
}
