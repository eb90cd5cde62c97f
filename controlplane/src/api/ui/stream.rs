//! Sections again, when they change, as server-sent events.
//!
//! In: a browser that has entered. Out: `event: section` with the section's id and its HTML, and `event: beat` with
//! the time, once a second. Promises: a session that ends ends its stream; at most two looks a second, whatever
//! changes; streams are counted with those of the API.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::door::{Visitor, secret_of};
use super::words::moment;
use super::{App, Look, SECTIONS, layout};
use crate::api::auth::unix_s;
use crate::api::serve::stopped;
use crate::jobs::MigrationView;

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What one stream knows.
struct Watch {
    app: App,
    secret: String,
    changes: broadcast::Receiver<MigrationView>,
    /// What was sent of each section.
    sent: Vec<String>,
    first: bool,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// `GET /ui/events`
pub async fn events(State(app): State<App>, _: Visitor, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let Some(secret) = secret_of(&parts) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        return layout::told(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many pages are open",
            "Close one, or load this page again to see the present state.",
        );
    };
    let mut stop = app.stop.clone();
    let watch = Watch {
        changes: app.jobs.subscribe(),
        secret: secret.to_owned(),
        sent: vec![String::new(); SECTIONS.len()],
        first: true,
        app,
        _permit: permit,
    };
    let turns = stream::unfold(watch, |mut watch| async move {
        if !std::mem::take(&mut watch.first) {
            watch.wait().await;
        }
        let events = watch.look()?;
        Some((
            stream::iter(events.into_iter().map(Ok::<_, Infallible>)),
            watch,
        ))
    });
    let turns = futures_util::StreamExt::flatten(turns);
    let turns = futures_util::StreamExt::take_until(
        turns,
        Box::pin(async move { stopped(&mut stop).await }),
    );
    Sse::new(turns).into_response()
}

impl Watch {
    /// Until something changed, but not for longer than a beat.
    async fn wait(&mut self) {
        tokio::time::sleep(PAUSE).await;
        let changed = async {
            loop {
                match self.changes.recv().await {
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = tokio::time::timeout(BEAT - PAUSE, changed).await;
        while !matches!(
            self.changes.try_recv(),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
        ) {}
    }

    /// What changed since the last look; nothing if the session is over.
    fn look(&mut self) -> Option<Vec<Event>> {
        let (app, now_s) = (&self.app, unix_s());
        let sessions = &app.ui.sessions;
        let entered = sessions.find(&self.secret, &app.tokens, Instant::now(), now_s)?;
        let look = Look {
            app,
            identity: &entered.identity,
            proof: &entered.proof,
        };
        let mut events = Vec::new();
        for (section, sent) in SECTIONS.iter().zip(&mut self.sent) {
            let html = (section.make)(&look).into_string();
            if html != *sent {
                let data = json!({ "id": section.id, "html": html }).to_string();
                events.push(Event::default().event("section").data(data));
                *sent = html;
            }
        }
        let beat = json!({ "html": moment(now_s * 1_000).into_string() }).to_string();
        events.push(Event::default().event("beat").data(beat));
        Some(events)
    }
}
