//! The flags in the OpenFeature Remote Evaluation Protocol, so that existing SDKs read them.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `POST /ofrep/v1/evaluate/flags/{key}` | `{"context":{"targetingKey":"node-a"}}` | `{"key","value","variant","reason","metadata"}`: true means v3 |
//! | `POST /ofrep/v1/evaluate/flags` | the same | `{"flags":[…],"metadata"}` with an `ETag`; 304 for `If-None-Match` |
//!
//! The targeting key is a node's name. Refusals have the protocol's own form. It is a look, whatever the method: a token
//! with the scope `read` is enough, and nothing is recorded.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::App;
use super::body::{PathWord, collect};
use super::problem::Problem;
use crate::flags::evaluate::Evaluation;
use crate::flags::{FlagError, NodeId};

/// Body of both routes.
#[derive(Deserialize, utoipa::ToSchema)]
#[schema(as = OfrepRequest)]
pub struct Asked {
    #[expect(dead_code, reason = "its form is what the document shows")]
    context: Context,
}

/// Whom a flag is evaluated for.
#[derive(Deserialize, utoipa::ToSchema)]
#[schema(as = OfrepContext)]
pub struct Context {
    /// Name of a node.
    #[expect(dead_code, reason = "its form is what the document shows")]
    #[serde(rename = "targetingKey")]
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    targeting_key: String,
}

/// What a flag means for a node.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = OfrepEvaluation)]
pub struct Evaluated {
    key: &'static str,
    /// The node uses v3.
    value: bool,
    /// `v1` or `v3`.
    variant: &'static str,
    /// `STATIC`, `SPLIT`, `TARGETING_MATCH` (excluded by name) or `DISABLED`.
    reason: &'static str,
    /// `percentage`, `bucket`, `forceV1`.
    metadata: Map<String, Value>,
}

/// What every flag means for a node.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = OfrepEvaluations)]
pub struct Bulk {
    flags: Vec<Evaluated>,
    /// `node`.
    metadata: Map<String, Value>,
}

/// A refusal in the protocol's form.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = OfrepFailure)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// `PARSE_ERROR`, `TARGETING_KEY_MISSING`, `INVALID_CONTEXT` or `FLAG_NOT_FOUND`.
    error_code: &'static str,
    error_details: String,
}

impl From<Evaluation> for Evaluated {
    fn from(found: Evaluation) -> Self {
        let mut metadata = Map::new();
        metadata.insert("percentage".to_owned(), json!(found.percentage));
        metadata.insert("bucket".to_owned(), json!(found.bucket));
        metadata.insert("forceV1".to_owned(), json!(found.forced));
        Self {
            key: found.feature,
            value: found.version == dwcp_api::Version::V3,
            variant: found.version.as_str(),
            reason: found.reason.as_str(),
            metadata,
        }
    }
}

/// Why a request is refused.
enum Refused {
    /// In the protocol's form.
    Failure(StatusCode, Failure),
    /// Too long or too slow.
    Problem(Problem),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Failure(status, failure) => (status, Json(failure)).into_response(),
            Self::Problem(problem) => problem.into_response(),
        }
    }
}

fn bad(key: Option<&str>, error_code: &'static str, details: &str) -> Refused {
    let failure = Failure {
        key: key.map(|key| key.chars().take(64).collect()),
        error_code,
        error_details: details.to_owned(),
    };
    Refused::Failure(StatusCode::BAD_REQUEST, failure)
}

async fn node(headers: &HeaderMap, body: Body, key: Option<&str>) -> Result<NodeId, Refused> {
    let bytes = collect(headers, body).await.map_err(Refused::Problem)?;
    let Ok(Value::Object(asked)) = serde_json::from_slice::<Value>(&bytes) else {
        return Err(bad(key, "PARSE_ERROR", "the body is no JSON object"));
    };
    let Some(Value::Object(context)) = asked.get("context") else {
        let details = "the body has no object `context`";
        return Err(bad(key, "INVALID_CONTEXT", details));
    };
    let name = match context.get("targetingKey") {
        Some(Value::String(name)) if !name.is_empty() => name,
        Some(Value::String(_)) | None => {
            let details = "`context` has no `targetingKey`: give the name of a node";
            return Err(bad(key, "TARGETING_KEY_MISSING", details));
        }
        Some(_) => {
            let details = "`targetingKey` is no text: give the name of a node";
            return Err(bad(key, "INVALID_CONTEXT", details));
        }
    };
    NodeId::new(name).ok_or_else(|| {
        let details =
            "`targetingKey` is no node's name: 1 to 64 characters out of A-Z a-z 0-9 . _ -";
        bad(key, "INVALID_CONTEXT", details)
    })
}

/// `POST /ofrep/v1/evaluate/flags/{key}`
pub async fn one(State(app): State<App>, PathWord(key): PathWord, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let node = match node(&parts.headers, body, Some(&key)).await {
        Ok(node) => node,
        Err(refused) => return refused.into_response(),
    };
    match app.flags.evaluate(&key, &node) {
        Ok(found) => Json(Evaluated::from(found)).into_response(),
        Err(FlagError::Unknown(short)) => {
            let failure = Failure {
                key: Some(short.clone()),
                error_code: "FLAG_NOT_FOUND",
                error_details: FlagError::Unknown(short).to_string(),
            };
            (StatusCode::NOT_FOUND, Json(failure)).into_response()
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

/// `POST /ofrep/v1/evaluate/flags`
pub async fn all(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let node = match node(&parts.headers, body, None).await {
        Ok(node) => node,
        Err(refused) => return refused.into_response(),
    };
    let found = app.flags.evaluate_all(&node);
    let mut metadata = Map::new();
    metadata.insert("node".to_owned(), json!(node));
    let bulk = Bulk {
        flags: found.into_iter().map(Evaluated::from).collect(),
        metadata,
    };
    let text = serde_json::to_string(&bulk).unwrap_or_default();
    let tag = format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..32]);
    if names(&parts.headers, &tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let kind = "application/json".to_owned();
    ([(header::ETAG, tag), (header::CONTENT_TYPE, kind)], text).into_response()
}

/// Is the tag among those that the client has?
fn names(headers: &HeaderMap, tag: &str) -> bool {
    let all = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    tags.any(|one| {
        let one = one.trim().trim_start_matches("W/");
        // SDKs send it back with and without its quotes.
        one == tag || one == tag.trim_matches('"') || one == "*"
    })
}
