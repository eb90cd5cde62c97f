//! Traces of migrations across both hosts, for OpenTelemetry.
//!
//! In: views as they change. Out: one trace for each migration that is traced, in OTLP over HTTP. Promises: a span for
//! a migration and one for each of its phases, never one for a batch, so that nothing on the way of a page knows of
//! it; a collector that is slow or gone costs bounded memory and delays nothing.
//!
//! The session's number is the number of its trace, so that both hosts and whoever reads a log agree on it, and the
//! source decides by it whether a migration is traced. The destination hears of that by the header `traceparent` (W3C)
//! of the request that asks it for a session.
//!
//! | module | what |
//! |---|---|
//! | [`context`] | numbers of traces and spans, and the header |
//! | [`export`] | the way to the collector |
//! | [`source`] | spans of migrations that leave |
//! | [`arrival`] | spans of those that arrive |

use std::sync::Arc;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::sync::Semaphore;

pub mod arrival;
pub mod context;
pub mod export;
pub mod source;

/// Traces of this node; a clone is the same. Without a collector it does nothing.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    on: Option<On>,
}

#[derive(Clone, Debug)]
struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// Arrivals followed at once.
    arrivals: Arc<Semaphore>,
}

impl Traces {
    /// With this way to the collector.
    fn with(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer("dwcp");
        Self {
            on: Some(On {
                provider,
                tracer,
                arrivals: Arc::new(Semaphore::new(arrival::ARRIVALS_MAX)),
            }),
        }
    }

    /// Sends what is left. Blocks until it is sent, for a bounded time.
    pub fn stop(&self) {
        if let Some(on) = &self.on
            && let Err(error) = on.provider.shutdown_with_timeout(export::SEND)
        {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}
