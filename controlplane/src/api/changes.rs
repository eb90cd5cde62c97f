//! What changes something runs once and is recorded.
//!
//! In: a request that was let in. Out: its answer. Promises: a change goes on to its end and into the audit log even
//! if its client goes away; a POST with an `Idempotency-Key` runs once, and its first answer is given to each that
//! comes after with the same key; the kill switch waits for neither and works without a disk.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::auth::{Caller, KILL_SWITCH, unix_s};
use super::body::collect;
use super::problem::Problem;
use crate::access::audit::{Entry, words};
use crate::access::idempotency::{ANSWER_BYTES_MAX, Answer, KEY_CHARS_MAX, Verdict};
use crate::access::scope::{Scope, looks};

/// Header with the client's key.
pub const KEY_HEADER: &str = "idempotency-key";
/// Header of an answer that was given before.
pub const REPLAYED_HEADER: &str = "idempotency-replayed";

/// The layer between the check of the token and the routes.
///
/// # Errors
/// [`Problem`] with status 400, 408, 409, 413 or 422.
pub async fn once_and_recorded(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if looks(request.method(), request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let (parts, body) = request.into_parts();
    let body = collect(&parts.headers, body).await?;
    let path = parts.uri.path().to_owned();
    let caller = parts.extensions.get::<Caller>().cloned();
    let mut entry = Entry {
        number: 0,
        at_unix_ms: 0,
        by: caller
            .as_ref()
            .map_or_else(String::new, |it| it.name.clone()),
        token: caller
            .as_ref()
            .map_or_else(String::new, |it| it.token.clone()),
        token_name: caller
            .as_ref()
            .map_or_else(String::new, |it| it.token_name.clone()),
        scope: caller.as_ref().map_or(Scope::Read, |it| it.scope),
        method: parts.method.to_string(),
        path: path.chars().take(200).collect(),
        request: words(&body),
        status: 0,
    };
    let key = if parts.method == Method::POST && path != KILL_SWITCH {
        key(&parts.headers)?
    } else {
        None
    };
    let place = key.map(|key| format!("{}/{key}", entry.token));
    if let Some(place) = &place {
        let mut digest = blake3::Hasher::new();
        digest.update(parts.uri.to_string().as_bytes());
        digest.update(b"\n");
        digest.update(&body);
        let (keys, place) = (app.keys.clone(), place.clone());
        let request = digest.finalize().to_hex().to_string();
        let verdict = tokio::task::spawn_blocking(move || keys.begin(&place, &request, unix_s()));
        match verdict
            .await
            .map_err(|error| Problem::lost_task(&error))??
        {
            Verdict::Run => {}
            Verdict::Ran(answer) => return Ok(replayed(answer)),
            other => return Err(refused(&other)),
        }
    }
    // An answer that shows a secret is not written to disk.
    let shows_secret = path == "/v1/tokens";
    let request = Request::from_parts(parts, Body::from(body));
    let work = async move {
        let response = next.run(request).await;
        entry.status = response.status().as_u16();
        entry.at_unix_ms = unix_s().saturating_mul(1_000);
        record(&app, entry).await;
        match place {
            Some(place) => keep(&app, place, response, shows_secret).await,
            None => Ok(response),
        }
    };
    tokio::spawn(work)
        .await
        .map_err(|error| Problem::lost_task(&error))?
}

async fn record(app: &App, entry: Entry) {
    tracing::info!(
        by = entry.by,
        token = entry.token_name,
        method = entry.method,
        path = entry.path,
        status = entry.status,
        "change"
    );
    let audit = app.audit.clone();
    let written = tokio::task::spawn_blocking(move || audit.record(entry)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::error!(?written, "a change is not in the audit log");
    }
}

/// Keeps an answer for whoever comes with the same key; one that says "try again" is not kept.
async fn keep(
    app: &App,
    place: String,
    response: Response,
    shows_secret: bool,
) -> Result<Response, Problem> {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, ANSWER_BYTES_MAX).await;
    let body = body.map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("the answer is too long to be kept for its key: {error}"),
            "look at what was done; send the request without a key",
        )
    })?;
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let final_answer = !parts.status.is_server_error();
    let answer = final_answer.then(|| {
        if shows_secret && parts.status.is_success() {
            return shown_once();
        }
        Answer {
            status: parts.status.as_u16(),
            content_type: content_type.unwrap_or("application/json").to_owned(),
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    });
    let keys = app.keys.clone();
    let written = tokio::task::spawn_blocking(move || keys.end(&place, answer)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::error!(?written, "an answer is not kept for its key");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// What is kept instead of an answer that showed a secret.
fn shown_once() -> Answer {
    let problem = Problem::new(
        StatusCode::CONFLICT,
        "shown_once",
        "the first request with this key made a token, which was shown in its answer alone",
        "if that answer was lost, revoke the token and make another with a new key",
    );
    Answer {
        status: StatusCode::CONFLICT.as_u16(),
        content_type: "application/problem+json".to_owned(),
        body: serde_json::to_string(&problem).unwrap_or_default(),
    }
}

fn replayed(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let kind = HeaderValue::from_str(&answer.content_type)
        .unwrap_or(HeaderValue::from_static("application/json"));
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    response
}

fn refused(verdict: &Verdict) -> Problem {
    match verdict {
        Verdict::Other => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key_reused",
            "this idempotency key came with another request before",
            "use a new key for each request, and the same only to send it again",
        ),
        Verdict::Full => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_keys",
            "too many requests with keys are running",
            "wait for some to end, or send it without a key",
        ),
        _ => Problem::new(
            StatusCode::CONFLICT,
            "unfinished",
            "the first request with this key is running, or its end is not known",
            "look at the list of what it was to make; then use a new key",
        ),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(KEY_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    let good = (1..=KEY_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && headers.get_all(KEY_HEADER).iter().count() == 1;
    if !good {
        return Err(Problem::bad_request(format!(
            "an idempotency key is one header of 1 to {KEY_CHARS_MAX} printable characters without spaces"
        )));
    }
    Ok(Some(text.to_owned()))
}
