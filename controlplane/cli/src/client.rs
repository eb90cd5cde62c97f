//! Speaks to the control plane.
//!
//! In: a route and a JSON value. Out: the answer, or an error that says what failed, why, and what to
//! type next. Promise: the token is read from a file or the environment, never from an argument that
//! other users could see.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::exit::Exit;
use crate::tls;

const TOKEN_FILE_DEFAULT: &str = "/etc/dwcp/token";
/// A start asks a hypervisor and a peer, a cancel waits for both: longer than either takes.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A control plane.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
    actor: String,
}

/// A refusal as the API words it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    title: String,
    detail: String,
    cure: String,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer.
    #[error(
        "the control plane at {base} does not answer: {reason}\n  next: start it (systemctl start dwcp-controlplane), or name another with --api URL"
    )]
    Unreachable {
        /// Its address.
        base: String,
        /// Why.
        reason: String,
    },
    /// The token is missing.
    #[error("no token: {reason}\n  next: name its file with --token-file PATH, or set DWCP_TOKEN")]
    NoToken {
        /// Why.
        reason: String,
    },
    /// Nobody is trusted.
    #[error(
        "no TLS: {0}\n  next: name the file with the authority of the control planes with --ca PATH"
    )]
    NoTrust(String),
    /// A file that was named cannot be read.
    #[error("cannot read {path}: {reason}\n  next: name a file that this user may read")]
    Unreadable {
        /// File meant.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token is wrong.
    #[error(
        "the control plane at {base} does not accept the token: {detail}\n  next: use the token_file of that node with --token-file PATH"
    )]
    Authentication {
        /// Its address.
        base: String,
        /// Its words.
        detail: String,
    },
    /// It said no.
    #[error("{what}: {detail}\n  next: {cure}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its status.
        status: StatusCode,
        /// Its words.
        detail: String,
        /// Its advice.
        cure: String,
    },
    /// It said something else.
    #[error(
        "{what}: the answer is not understood ({reason})\n  next: check that --api names a DWCP control plane of the same release"
    )]
    Garbled {
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
}

impl ApiError {
    /// How the program ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Unreadable { .. } | Self::NoTrust(_) => Exit::Usage,
            Self::NoToken { .. } | Self::Authentication { .. } => Exit::Authentication,
            Self::Refused { status, .. } => match *status {
                StatusCode::BAD_REQUEST => Exit::Usage,
                StatusCode::FORBIDDEN => Exit::Refused,
                StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Exit::TimedOut,
                _ => Exit::Failed,
            },
            Self::Garbled { .. } => Exit::Failed,
        }
    }

    /// It did not answer, which may pass.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl Api {
    /// Finds the token and prepares to speak to `base`.
    pub fn new(
        base: &str,
        token_file: Option<PathBuf>,
        authorities: Option<&Path>,
    ) -> Result<Self, ApiError> {
        let base = base.trim_end_matches('/').to_owned();
        let token = match (token_file, std::env::var("DWCP_TOKEN")) {
            (None, Ok(token)) if !token.is_empty() => token,
            (file, _) => {
                let path = file.unwrap_or_else(|| TOKEN_FILE_DEFAULT.into());
                std::fs::read_to_string(&path).map_err(|error| ApiError::NoToken {
                    reason: format!("{}: {error}", path.display()),
                })?
            }
        };
        if base.starts_with("https://") && authorities.is_none() {
            return Err(ApiError::NoTrust(
                "it is not said whose certificates are good".to_owned(),
            ));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::trust(authorities).map_err(ApiError::NoTrust)?)
            .connect_timeout(CONNECT_TIME_MAX)
            .build()
            .map_err(|error| ApiError::Unreachable {
                base: base.clone(),
                reason: error.to_string(),
            })?;
        let actor = std::env::var("USER")
            .or_else(|_| std::env::var("LOGNAME"))
            .unwrap_or_default();
        Ok(Self {
            http,
            base,
            token: token.trim().to_owned(),
            actor,
        })
    }

    /// Sends a request and returns a response that is a success.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Option<Duration>,
    ) -> Result<Response, ApiError> {
        let (what, response) = self.exchange(method, path, body, limit).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let problem: Problem = serde_json::from_str(&text).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            return Err(ApiError::Authentication {
                base: self.base.clone(),
                detail: problem.detail,
            });
        }
        let or = |text: String, other: &str| {
            if text.is_empty() {
                other.to_owned()
            } else {
                text
            }
        };
        let detail = or(problem.detail, &or(problem.title, status.as_str()));
        let cure = or(problem.cure, "look at the control plane's log");
        Err(ApiError::Refused {
            what,
            status,
            detail,
            cure,
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Option<Duration>,
    ) -> Result<(String, Response), ApiError> {
        let what = format!("{method} {path}");
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .header("dwcp-actor", &self.actor);
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        Ok((what, response))
    }

    /// An answer as JSON.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let what = format!("{method} {path}");
        let response = self.send(method, path, body, Some(ANSWER_TIME_MAX)).await?;
        self.read(what, response).await
    }

    /// An answer as it is.
    pub async fn text(
        &self,
        method: Method,
        path: &str,
        limit: Duration,
    ) -> Result<String, ApiError> {
        let response = self.send(method, path, None, Some(limit)).await?;
        let text = response.text().await;
        text.map_err(|error| self.unreachable(&error))
    }

    /// An answer as JSON whatever its status: a health report comes with 503 as well.
    pub async fn report(&self, path: &str) -> Result<(StatusCode, Value), ApiError> {
        let (what, response) = self
            .exchange(Method::GET, path, None, Some(ANSWER_TIME_MAX))
            .await?;
        let status = response.status();
        if status != StatusCode::OK && status != StatusCode::SERVICE_UNAVAILABLE {
            // The same again, for its error.
            self.send(Method::GET, path, None, Some(ANSWER_TIME_MAX))
                .await?;
        }
        Ok((status, self.read(what, response).await?))
    }

    async fn read(&self, what: String, response: Response) -> Result<Value, ApiError> {
        let text = response
            .text()
            .await
            .map_err(|error| self.unreachable(&error))?;
        serde_json::from_str(&text).map_err(|error| ApiError::Garbled {
            what,
            reason: error.to_string(),
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> ApiError {
        // The innermost cause is the one that helps: "connection refused".
        let mut reason: &dyn std::error::Error = error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        ApiError::Unreachable {
            base: self.base.clone(),
            reason: reason.to_string(),
        }
    }

    /// Its address.
    pub fn base(&self) -> &str {
        &self.base
    }
}
