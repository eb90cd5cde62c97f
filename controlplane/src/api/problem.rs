//! What a client is told when something is refused: `application/problem+json` (RFC 9457) with one
//! more member, `cure`.
//!
//! In: an error of a module. Out: a response. Promise: every refusal says what happened and what to
//! do next; none repeats a token or more than a few words of what the client sent.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use dwcp_consensus::SubmitError;

use crate::access::scope::Scope;
use crate::access::tokens::TokensError;
use crate::cluster::ChangeError;
use crate::flags::FlagError;
use crate::jobs::JobError;
use crate::mode::ModeError;
use crate::nics::NicsError;
use crate::rollout::RolloutError;
use crate::store::StoreError;

/// A refusal.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:dwcp:problem:` and a word that programs may compare.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    cure: String,
    #[serde(skip)]
    challenge: Option<&'static str>,
    #[serde(skip)]
    retry_after_s: Option<u16>,
}

impl Problem {
    /// A refusal with a word for programs, an account of what happened, and what to do.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: &str,
        detail: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            kind: format!("urn:dwcp:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            cure: cure.into(),
            challenge: None,
            retry_after_s: None,
        }
    }

    /// 400: the request is not what this route takes.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        let cure = "correct the request; the API's documentation shows one for each route";
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail, cure)
    }

    /// 401 with a challenge: who asks is not known.
    #[must_use]
    pub fn unauthorized(detail: &str, challenge: &'static str) -> Self {
        let cure = "send `authorization: Bearer TOKEN` with the token of this node's token_file";
        Self {
            challenge: Some(challenge),
            ..Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail, cure)
        }
    }

    /// 403: the token is good, but not for this.
    #[must_use]
    pub fn forbidden(has: Scope, needs: Scope) -> Self {
        let (has, needs) = (has.as_str(), needs.as_str());
        Self {
            challenge: Some("Bearer realm=\"dwcp\", error=\"insufficient_scope\""),
            ..Self::new(
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                format!("the token has the scope {has}, this needs {needs}"),
                format!("use a token with the scope {needs}: `dwcpctl tokens create` makes one"),
            )
        }
    }

    /// 429: too many at once.
    #[must_use]
    pub fn too_often(wait: Duration) -> Self {
        let wait_s = u16::try_from(wait.as_secs() + 1).unwrap_or(u16::MAX);
        Self {
            retry_after_s: Some(wait_s),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_often",
                "too many requests in a short time",
                format!("wait {wait_s} s; requests_per_s in the settings is the limit"),
            )
        }
    }

    /// 404: nothing of that name.
    #[must_use]
    pub fn not_found(detail: impl Into<String>, cure: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail, cure)
    }

    /// 500: a task of ours ended without an answer.
    #[must_use]
    pub fn lost_task(error: &tokio::task::JoinError) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("the work ended without an answer: {error}"),
            "look at the control plane's log; then ask again",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(challenge) = self.challenge {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        if let Some(wait_s) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, wait_s.into());
        }
        response
    }
}

impl From<FlagError> for Problem {
    fn from(error: FlagError) -> Self {
        match error {
            FlagError::Unknown(_) => Self::not_found(
                error.to_string(),
                "list the flags with GET /v1/feature-flags or `dwcpctl flags list`",
            ),
            FlagError::TooMany { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "too_many_nodes",
                error.to_string(),
                "exclude fewer nodes, or lower the percentage",
            ),
            FlagError::Store(error) => error.into(),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let (status, code) = match &error {
            SubmitError::NoQuorum { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_quorum"),
            SubmitError::NotReady { .. } => (StatusCode::CONFLICT, "not_ready"),
            SubmitError::Refused(_) => (StatusCode::CONFLICT, "refused"),
            SubmitError::Lost => (StatusCode::CONFLICT, "unknown_outcome"),
            SubmitError::TooLong(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too_long"),
        };
        Self::new(
            status,
            code,
            error.to_string(),
            "see `dwcpctl cluster status`; the kill switch works without a quorum",
        )
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Submit(error) => error.into(),
            ChangeError::Flag(error) => error.into(),
        }
    }
}

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Self {
        let detail = error.to_string();
        match error {
            RolloutError::Unknown(_) => Self::not_found(
                detail,
                "list the rollouts with GET /v1/rollouts or `dwcpctl rollout list`",
            ),
            RolloutError::Plan(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad_plan",
                detail,
                "correct the plan; the API's documentation shows one",
            ),
            RolloutError::Stage(_) => Self::new(
                StatusCode::CONFLICT,
                "wrong_stage",
                detail,
                "look at it with `dwcpctl rollout show ID`",
            ),
            RolloutError::Change(error) => error.into(),
        }
    }
}

impl From<ModeError> for Problem {
    fn from(error: ModeError) -> Self {
        match error {
            ModeError::TooMany(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "too_many_overrides",
                error.to_string(),
                "take some back with DELETE /v1/modes/{peer}, or override all peers with PUT /v1/modes",
            ),
            ModeError::Store(error) => error.into(),
        }
    }
}

impl From<TokensError> for Problem {
    fn from(error: TokensError) -> Self {
        match error {
            TokensError::Name | TokensError::Life => Self::bad_request(error.to_string()),
            TokensError::TooMany => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "too_many_tokens",
                error.to_string(),
                "revoke some with DELETE /v1/tokens/{id} or `dwcpctl tokens revoke ID`",
            ),
            TokensError::Unknown(_) => Self::not_found(
                error.to_string(),
                "list the tokens with GET /v1/tokens or `dwcpctl tokens list`",
            ),
            TokensError::NoEntropy(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                error.to_string(),
                "look at the control plane's log; then ask again",
            ),
            TokensError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "store",
            error.to_string(),
            "check the space and the health of the disk that holds state_dir",
        )
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let status =
            StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.code(), error.to_string(), error.cure())
    }
}

impl From<NicsError> for Problem {
    fn from(error: NicsError) -> Self {
        let status =
            StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.code(), error.to_string(), error.cure())
    }
}
