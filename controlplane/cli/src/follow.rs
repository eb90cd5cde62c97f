//! Follows a migration to its end.
//!
//! In: its id. Out: its last view. Promises: a broken event stream becomes polling, and a control plane
//! that dies and comes back within [`AWAY_MAX`] is joined again, both said plainly; the migration itself
//! needs neither this program nor the control plane.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::Method;
use tokio::sync::mpsc;

use crate::client::{Api, ApiError};
use crate::progress::Progress;
use crate::sse::Parser;
use crate::view::Migration;

/// How long the control plane may be away.
pub const AWAY_MAX: Duration = Duration::from_secs(60);
/// The API sends a sign of life more often than this.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Time between two polls.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long an undecided migration, or one paused in post-copy, is followed: it may stay so until somebody acts.
const UNDECIDED_MAX: Duration = Duration::from_secs(60);

/// Why following ended.
pub enum End {
    /// Nothing will change any more, or nothing by itself.
    Settled(Box<(serde_json::Value, Migration)>),
    /// It was told to let go.
    LetGo,
}

type Chunks = BoxStream<'static, reqwest::Result<Vec<u8>>>;

/// An open event stream.
struct Events {
    chunks: Chunks,
    parser: Parser,
    ready: std::collections::VecDeque<String>,
}

impl Events {
    async fn open(api: &Api, id: &str) -> Result<Self, ApiError> {
        let path = format!("/v1/migrations/{id}/events");
        let opening = api.send(Method::GET, &path, None, None);
        let response = tokio::time::timeout(SILENCE_MAX, opening)
            .await
            .map_err(|_| ApiError::Unreachable {
                base: api.base().to_owned(),
                reason: "it is silent".to_owned(),
            })??;
        let chunks = response
            .bytes_stream()
            .map(|chunk| chunk.map(|bytes| bytes.to_vec()))
            .boxed();
        Ok(Self {
            chunks,
            parser: Parser::default(),
            ready: std::collections::VecDeque::new(),
        })
    }

    /// The data of the next event; `None` if the stream is over or broken.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let chunk = tokio::time::timeout(SILENCE_MAX, self.chunks.next())
                .await
                .ok()??
                .ok()?;
            self.ready.extend(self.parser.push(&chunk).ok()?);
        }
    }
}

/// Follows migration `id` until it has ended or `let_go` says so.
pub async fn follow(
    api: &Api,
    id: &str,
    progress: &mut Progress,
    on_view: &mut dyn FnMut(&serde_json::Value),
    let_go: &mut mpsc::Receiver<()>,
) -> Result<End, ApiError> {
    let mut events: Option<Events> = None;
    let mut away_since: Option<Instant> = None;
    let mut undecided_since: Option<Instant> = None;
    let mut polling = false;
    loop {
        let next = async {
            match &mut events {
                Some(stream) => match stream.next().await {
                    Some(text) => Next::View(serde_json::from_str(&text).ok()),
                    None => Next::Broken,
                },
                None => match Events::open(api, id).await {
                    Ok(stream) => Next::Opened(stream),
                    Err(error) => Next::NotOpened(error),
                },
            }
        };
        let next = tokio::select! {
            next = next => next,
            Some(()) = let_go.recv() => return Ok(End::LetGo),
        };
        let view = match next {
            Next::View(view) => view,
            Next::Broken => {
                events = None;
                None
            }
            Next::Opened(stream) => {
                if let Some(since) = away_since.take() {
                    progress.note(&format!(
                        "the control plane is back after {} s; following on",
                        since.elapsed().as_secs()
                    ));
                }
                polling = false;
                events = Some(stream);
                None
            }
            Next::NotOpened(error) => {
                let polled = api
                    .json(Method::GET, &format!("/v1/migrations/{id}"), None)
                    .await;
                match polled {
                    Ok(value) => {
                        if let Some(since) = away_since.take() {
                            progress.note(&format!(
                                "the control plane is back after {} s; following on",
                                since.elapsed().as_secs()
                            ));
                        }
                        if !polling {
                            progress.note("no event stream; asking once a second instead");
                            polling = true;
                        }
                        Some(value)
                    }
                    Err(lost) if lost.is_unreachable() => {
                        let since = *away_since.get_or_insert_with(|| {
                            progress.note(&format!(
                                "the control plane does not answer; the migration goes on without it; trying again for {} s",
                                AWAY_MAX.as_secs()
                            ));
                            Instant::now()
                        });
                        if since.elapsed() > AWAY_MAX {
                            return Err(lost);
                        }
                        None
                    }
                    // The id is not known, or the token not accepted: trying again will not help.
                    Err(_) if away_since.is_none() && !polling => return Err(error),
                    Err(other) => return Err(other),
                }
            }
        };
        if let Some(value) = view
            && let Ok(migration) = serde_json::from_value::<Migration>(value.clone())
        {
            progress.show(&migration);
            on_view(&value);
            if matches!(migration.state.as_str(), "undecided" | "postcopy_paused") {
                undecided_since.get_or_insert_with(Instant::now);
            } else {
                undecided_since = None;
            }
            let stuck = undecided_since.is_some_and(|since| since.elapsed() > UNDECIDED_MAX);
            if migration.is_final() || stuck {
                return Ok(End::Settled(Box::new((value, migration))));
            }
        }
        if events.is_none() {
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                Some(()) = let_go.recv() => return Ok(End::LetGo),
            }
        }
    }
}

enum Next {
    View(Option<serde_json::Value>),
    Broken,
    Opened(Events),
    NotOpened(ApiError),
}
