//! Spans of migrations that leave: one for each, and below it one for each phase.
//!
//! In: views in their order. Out: spans. Promise: at most [`LIVE_MAX`] are open; a migration that was under way before
//! this process began has the spans from then on.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dwcp_api::SessionId;
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use super::Traces;
use super::context::{Sampling, numbered, root};
use crate::jobs::MigrationView;
use crate::jobs::view::MigrationState;

/// Migrations traced at once.
pub const LIVE_MAX: usize = 256;

/// Follows the migrations of this node.
pub struct Leaving {
    tracer: Option<SdkTracer>,
    sampling: Sampling,
    live: BTreeMap<String, Live>,
}

struct Live {
    root: Span,
    phase: Span,
    state: MigrationState,
    version: Option<String>,
    mode: Option<String>,
}

impl Leaving {
    /// Traces a share of them.
    #[must_use]
    pub fn new(traces: &Traces, sampling: Sampling) -> Self {
        Self {
            tracer: traces.on.as_ref().map(|on| on.tracer.clone()),
            sampling,
            live: BTreeMap::new(),
        }
    }

    /// Takes a view in.
    pub fn take(&mut self, view: &MigrationView) {
        let Some(tracer) = &self.tracer else {
            return;
        };
        let Some(session) = SessionId::parse(&view.id).filter(|id| self.sampling.takes(*id)) else {
            return;
        };
        if !self.live.contains_key(&view.id) {
            if view.state.is_final() || self.live.len() >= LIVE_MAX {
                return;
            }
            self.live
                .insert(view.id.clone(), Live::begin(tracer, session, view));
        }
        let Some(live) = self.live.get_mut(&view.id) else {
            return;
        };
        live.take(tracer, view);
        if view.state.is_final() {
            self.live.remove(&view.id);
        }
    }
}

impl Live {
    fn begin(tracer: &SdkTracer, session: SessionId, view: &MigrationView) -> Self {
        let name = view.vm.name.as_ref().unwrap_or(&view.vm.qmp);
        let builder = tracer
            .span_builder("migration")
            .with_kind(SpanKind::Client)
            .with_start_time(moment(view.started_unix_ms))
            .with_attributes([
                KeyValue::new("dwcp.session", view.id.clone()),
                KeyValue::new("dwcp.vm", name.clone()),
                KeyValue::new("dwcp.destination", view.destination.api.clone()),
            ]);
        let root = numbered(&root(session), || {
            tracer.build_with_context(builder, &Context::new())
        });
        let phase = phase(tracer, root.span_context(), view.state.as_str());
        Self {
            root,
            phase,
            state: view.state,
            version: None,
            mode: None,
        }
    }

    fn take(&mut self, tracer: &SdkTracer, view: &MigrationView) {
        for (what, now, before) in [
            ("version", &view.version, &mut self.version),
            ("mode", &view.mode, &mut self.mode),
        ] {
            if now != before
                && let Some(word) = now
            {
                let said = vec![KeyValue::new(format!("dwcp.{what}"), word.clone())];
                self.root.add_event(what, said);
                before.clone_from(now);
            }
        }
        if view.state == self.state {
            return;
        }
        self.phase.set_attributes(figures(view));
        self.phase.end();
        self.state = view.state;
        if view.state.is_final() {
            self.end(view);
        } else {
            self.phase = phase(tracer, self.root.span_context(), view.state.as_str());
        }
    }

    fn end(&mut self, view: &MigrationView) {
        self.root.set_attributes(figures(view));
        let numbers = [
            ("dwcp.downtime_ms", view.downtime_ms),
            ("dwcp.expected_downtime_ms", view.expected_downtime_ms),
            ("dwcp.total_ms", Some(view.total_ms)),
        ];
        let told = numbers
            .into_iter()
            .filter_map(|(name, number)| Some(KeyValue::new(name, signed(number?))));
        self.root.set_attributes(told);
        self.root
            .set_attribute(KeyValue::new("dwcp.state", view.state.as_str()));
        self.root.set_status(match &view.failure {
            Some(failure) => Status::error(failure.detail.clone()),
            None => Status::Ok,
        });
        self.root.end();
    }
}

/// A span below another, from now on.
pub(super) fn phase(tracer: &SdkTracer, above: &SpanContext, name: &'static str) -> Span {
    let below = Context::new().with_remote_span_context(above.clone());
    tracer.start_with_context(name, &below)
}

fn figures(view: &MigrationView) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("dwcp.bytes.hypervisor", signed(view.bytes.hypervisor)),
        KeyValue::new("dwcp.bytes.wire", signed(view.bytes.wire)),
        KeyValue::new("dwcp.rounds", signed(view.rounds)),
    ];
    let version = view.version.clone();
    all.extend(version.map(|version| KeyValue::new("dwcp.version", version)));
    all
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn moment(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms)
}
