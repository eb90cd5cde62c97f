//! The destination's control plane. In: its base address and token. Out: five calls, each with a
//! deadline and a bounded answer. What it says is read like any stranger's: typed, or refused.

use std::time::Duration;

use dwcp_api::SessionId;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::telemetry::trace::context::TRACEPARENT;

use super::request::{IncomingRequest, PeerToken, RecoverRequest};
use super::view::{IncomingView, Verdict};

/// How long a call may take. A verdict may take longer: the peer waits for its hypervisor to settle.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// See [`CALL_LIMIT`].
const VERDICT_LIMIT: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A call that failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    /// Nobody answered.
    #[error("the destination's control plane at {api} cannot be reached: {problem}")]
    Unreachable {
        /// Its base address.
        api: String,
        /// What the system said.
        problem: String,
    },
    /// It refused the token.
    #[error("the destination's control plane at {0} refused our token")]
    Unauthorized(String),
    /// It refused the request, and said why.
    #[error("the destination refused: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        detail: String,
        /// Its cure.
        cure: String,
    },
    /// It answered what is none of our protocol.
    #[error("{api} answered what is no answer of a control plane: {problem}")]
    Garbled {
        /// Its base address.
        api: String,
        /// What is wrong.
        problem: String,
    },
}

impl PeerError {
    /// A word that programs may compare.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "peer_unreachable",
            Self::Unauthorized(_) => "peer_unauthorized",
            Self::Refused { .. } => "peer_refused",
            Self::Garbled { .. } => "peer_garbled",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "start dwcp-controlplane there, and check the address and the firewall".to_owned()
            }
            Self::Unauthorized(_) => {
                "give the destination's token in destination.token, or in peer_token_file"
                    .to_owned()
            }
            Self::Refused { cure, .. } => cure.clone(),
            Self::Garbled { .. } => "check that destination.api is a control plane".to_owned(),
        }
    }
}

/// The part of a problem+json answer that we use.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    cure: String,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct Peer {
    client: Client,
    api: String,
    token: Option<PeerToken>,
    /// Header of the trace that the calls belong to.
    traceparent: Option<String>,
}

impl Peer {
    /// A peer; nothing is sent yet.
    #[must_use]
    pub fn new(client: &Client, api: &str, token: Option<PeerToken>) -> Self {
        Self {
            client: client.clone(),
            api: api.trim_end_matches('/').to_owned(),
            token,
            traceparent: None,
        }
    }

    /// The same, whose calls belong to a trace.
    #[must_use]
    pub fn traced(self, traceparent: Option<String>) -> Self {
        Self {
            traceparent,
            ..self
        }
    }

    /// The client that all peers share: no redirects (a token must not follow one), no proxy.
    ///
    /// # Errors
    /// What the library said.
    pub fn client(tls: rustls::ClientConfig) -> Result<Client, reqwest::Error> {
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CALL_LIMIT)
            .build()
    }

    /// Asks for a session.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn open(&self, request: &IncomingRequest) -> Result<IncomingView, PeerError> {
        self.call(Method::POST, "/v1/incoming", Some(request), CALL_LIMIT)
            .await
    }

    /// Looks at a session.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn look(&self, session: SessionId) -> Result<IncomingView, PeerError> {
        self.call::<(), _>(
            Method::GET,
            &format!("/v1/incoming/{session}"),
            None,
            CALL_LIMIT,
        )
        .await
    }

    /// Asks where the guest is. The peer fails closed before it answers.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn verdict(&self, session: SessionId) -> Result<Verdict, PeerError> {
        let path = format!("/v1/incoming/{session}/verdict");
        self.call::<(), _>(Method::POST, &path, None, VERDICT_LIMIT)
            .await
    }

    /// Asks the peer to wait for the source of a broken post-copy migration over a new session.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn recover(
        &self,
        session: SessionId,
        request: &RecoverRequest,
    ) -> Result<IncomingView, PeerError> {
        let path = format!("/v1/incoming/{session}/recover");
        self.call(Method::POST, &path, Some(request), VERDICT_LIMIT)
            .await
    }

    /// Cancels a session.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn cancel(&self, session: SessionId) -> Result<IncomingView, PeerError> {
        let path = format!("/v1/incoming/{session}");
        self.call::<(), _>(Method::DELETE, &path, None, VERDICT_LIMIT)
            .await
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
        limit: Duration,
    ) -> Result<A, PeerError> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.api))
            .timeout(limit);
        if let Some(token) = &self.token {
            request = request.bearer_auth(&token.0);
        }
        if let Some(parent) = &self.traceparent {
            request = request.header(TRACEPARENT, parent);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let (status, answer) = self.exchange(request).await?;
        if status.is_success() {
            return serde_json::from_slice(&answer)
                .map_err(|error| self.garbled(format!("{status}: {error}")));
        }
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let problem: Problem = serde_json::from_slice(&answer).unwrap_or_default();
            // A 403 with words of its own is about the request, not about the token.
            if status == StatusCode::UNAUTHORIZED || problem.detail.is_empty() {
                return Err(PeerError::Unauthorized(self.api.clone()));
            }
        }
        match serde_json::from_slice::<Problem>(&answer) {
            Ok(problem) => Err(PeerError::Refused {
                status: status.as_u16(),
                detail: clipped(if problem.detail.is_empty() {
                    &problem.title
                } else {
                    &problem.detail
                }),
                cure: clipped(&problem.cure),
            }),
            Err(_) => Err(self.garbled(status.to_string())),
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), PeerError> {
        let unreachable = |error: reqwest::Error| PeerError::Unreachable {
            api: self.api.clone(),
            problem: causes(&error),
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.garbled(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok((response.status(), answer))
    }

    fn garbled(&self, problem: String) -> PeerError {
        PeerError::Garbled {
            api: self.api.clone(),
            problem,
        }
    }
}

/// The library names only the outermost cause.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    clipped(&text)
}

fn clipped(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn answered(answer: Vec<u8>) -> (Result<Verdict, PeerError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            // The client may refuse to read on.
            let _ = stream.write_all(&answer).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let client = Peer::client(crate::tls::client(None).unwrap()).unwrap();
        let peer = Peer::new(&client, &api, Some(PeerToken("t0ken".to_owned())));
        let outcome = peer.verdict(SessionId([1; 16])).await;
        (outcome, server.await.unwrap())
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    #[tokio::test]
    async fn a_verdict_is_read_and_the_token_is_sent() {
        let (outcome, request) = answered(http("200 OK", r#"{"guest":"never_here"}"#)).await;
        assert_eq!(
            outcome.unwrap().guest,
            super::super::view::GuestVerdict::NeverHere
        );
        let path = format!("POST /v1/incoming/{}/verdict HTTP/1.1", "01".repeat(16));
        assert!(request.starts_with(&path), "{request}");
        assert!(request.contains("Bearer t0ken"));
    }

    #[tokio::test]
    async fn every_other_answer_is_a_typed_error() {
        let refused = http(
            "409 Conflict",
            r#"{"title":"t","detail":"busy","cure":"wait"}"#,
        );
        assert_eq!(
            answered(refused).await.0,
            Err(PeerError::Refused {
                status: 409,
                detail: "busy".into(),
                cure: "wait".into()
            })
        );
        let error = |outcome: (Result<Verdict, PeerError>, String)| outcome.0.unwrap_err().code();
        assert_eq!(
            error(answered(http("401 Unauthorized", "{}")).await),
            "peer_unauthorized"
        );
        assert_eq!(
            error(answered(http("200 OK", r#"{"guest":"maybe"}"#)).await),
            "peer_garbled"
        );
        assert_eq!(
            error(answered(http("500 X", "<html>")).await),
            "peer_garbled"
        );
        assert_eq!(error(answered(Vec::new()).await), "peer_unreachable");
        let long = format!(
            r#"{{"guest":"here","x":"{}"}}"#,
            "x".repeat(ANSWER_BYTES_MAX)
        );
        assert_eq!(error(answered(http("200 OK", &long)).await), "peer_garbled");
        let moved =
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(error(answered(moved.to_vec()).await), "peer_garbled");
    }
}
