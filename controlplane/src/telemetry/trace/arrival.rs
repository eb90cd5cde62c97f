//! Spans of migrations that arrive: one for each, below the span of its source, and one for each phase.
//!
//! In: a peer's header with the request for a session. Out: spans. Promise: only what the peer traces is followed, at
//! most [`ARRIVALS_MAX`] at once, each for at most [`LIFE`].

use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

use super::Traces;
use super::source::phase;
use crate::jobs::view::IncomingState;
use crate::jobs::{IncomingView, Jobs};

/// Arrivals followed at once.
pub const ARRIVALS_MAX: usize = 64;
/// The longest that one is followed.
pub const LIFE: Duration = Duration::from_secs(24 * 3_600);
/// How often it is looked at: phases here last as long as a migration does.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Traces {
    /// Follows an arrival below its source's span, until it is over.
    pub fn follow(&self, jobs: &Jobs, session: &str, source: &SpanContext) {
        let Some(on) = self.on.clone() else {
            return;
        };
        let Ok(place) = on.arrivals.clone().try_acquire_owned() else {
            return;
        };
        let (jobs, session, source) = (jobs.clone(), session.to_owned(), source.clone());
        tokio::spawn(async move {
            let _place = place;
            let above = Context::new().with_remote_span_context(source);
            let builder = on
                .tracer
                .span_builder("arrival")
                .with_kind(SpanKind::Server)
                .with_attributes([KeyValue::new("dwcp.session", session.clone())]);
            let mut whole = on.tracer.build_with_context(builder, &above);
            let mut now: Option<(IncomingState, opentelemetry_sdk::trace::Span)> = None;
            let end = Instant::now() + LIFE;
            while Instant::now() < end {
                let Some(view) = jobs.incoming_get(&session) else {
                    break;
                };
                if now.as_ref().is_none_or(|(state, _)| *state != view.state) {
                    if let Some((_, mut before)) = now.take() {
                        before.end();
                    }
                    if view.state.is_final() {
                        settle(&mut whole, &view);
                        break;
                    }
                    let name = word(view.state);
                    now = Some((view.state, phase(&on.tracer, whole.span_context(), name)));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            whole.end();
        });
    }
}

fn settle(whole: &mut opentelemetry_sdk::trace::Span, view: &IncomingView) {
    whole.set_attribute(KeyValue::new("dwcp.state", word(view.state)));
    whole.set_status(match &view.failure {
        Some(failure) => Status::error(failure.detail.clone()),
        None => Status::Ok,
    });
}

const fn word(state: IncomingState) -> &'static str {
    match state {
        IncomingState::Setup => "setup",
        IncomingState::Active => "active",
        IncomingState::PostcopyActive => "postcopy_active",
        IncomingState::PostcopyPaused => "postcopy_paused",
        IncomingState::Completed => "completed",
        IncomingState::Failed => "failed",
        IncomingState::Undecided => "undecided",
    }
}
