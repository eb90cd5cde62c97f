//! Reads the JSON body of a request, and the word in its path.
//!
//! In: whatever a client sends. Out: a typed value or a [`Problem`]. Promise: at most
//! [`BODY_BYTES_MAX`] are kept and at most [`BODY_TIME_MAX`] is waited, however slowly they come.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Longest body taken.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest wait for a whole body.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// A JSON body of type `T`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = collect(&parts.headers, body).await?;
        if bytes.is_empty() {
            return Err(Problem::bad_request(
                "the request has no body, a JSON object is expected",
            ));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            // The message may quote a value from the body: only so much of it goes back.
            let message: String = error.to_string().chars().take(300).collect();
            Problem::bad_request(format!("the body is not what this route takes: {message}"))
        })
    }
}

/// The one word that a path holds.
pub struct PathWord(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathWord {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(word)) => Ok(Self(word)),
            Err(_) => Err(Problem::bad_request("the path is not UTF-8")),
        }
    }
}

/// A whole body.
///
/// # Errors
/// [`Problem`] with status 400, 408 or 413.
pub async fn collect(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    tokio::time::timeout(BODY_TIME_MAX, read(body))
        .await
        .map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "too_slow",
                format!(
                    "the body did not arrive within {} s",
                    BODY_TIME_MAX.as_secs()
                ),
                "send the request again over a working connection",
            )
        })?
}

async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
        if bytes.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("the body is longer than {BODY_BYTES_MAX} bytes"),
        "send less at once",
    )
}
