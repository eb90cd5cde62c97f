//! The way to the collector: OTLP as protobuf over HTTP.
//!
//! In: spans that ended. Out: requests to `ENDPOINT/v1/traces`. Promises: they are sent by a thread of their own, some
//! seconds after; what a collector does not take in time is dropped, and so is what comes while the queue is full.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;

use super::Traces;
use super::context::Numbers;

/// How long a request may take.
pub const SEND: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The address.
    #[error(
        "trace_endpoint = {endpoint:?} cannot be used: {error}; give http://HOST:PORT of a collector"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What the library said.
        error: ExporterBuildError,
    },
    /// The client.
    #[error("no spans can be sent: {0}")]
    Client(#[from] reqwest::Error),
}

impl Traces {
    /// Sends to a collector at `http://HOST:PORT`. To be called within a runtime.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn to(endpoint: &str, node: &str, tls: rustls::ClientConfig) -> Result<Self, ExportError> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .timeout(SEND)
            .build()?;
        let sender = Sender {
            client,
            runtime: Handle::current(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| ExportError::Endpoint {
                endpoint: endpoint.to_owned(),
                error,
            })?;
        let resource = Resource::builder()
            .with_service_name("dwcp-controlplane")
            .with_attributes([
                KeyValue::new("service.instance.id", node.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        // Which migrations are traced was decided before: what gets here is sent.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_id_generator(Numbers::default())
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self::with(provider))
    }
}

/// Sends from the exporter's thread, on our runtime.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let mut answer = client.execute(request.try_into()?).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                std::mem::swap(headers, answer.headers_mut());
            }
            let mut body = Vec::new();
            while let Some(piece) = answer.chunk().await? {
                if body.len() + piece.len() > ANSWER_BYTES_MAX {
                    return Err("the collector's answer is too long".into());
                }
                body.extend_from_slice(&piece);
            }
            Ok::<_, HttpError>(response.body(Bytes::from(body))?)
        });
        sent.await?
    }
}
