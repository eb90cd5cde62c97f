//! Lets a request in, or not.
//!
//! In: a request. Out: the same request with [`Caller`] attached, or 401. Promise: without the token
//! nothing is told, not even which routes exist; only `/metrics` may be opened by the settings.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use super::problem::Problem;

/// Header in which a client may give its user's name for the history of changes.
pub const ACTOR_HEADER: &str = "dwcp-actor";

/// Address of the client, put on each request by the server.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Who asks, and since when.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its address, and in brackets the name it gave for itself.
    pub name: String,
    /// When its request's head had arrived.
    pub since: Instant,
}

/// The check itself, in front of every route.
///
/// # Errors
/// [`Problem`] with status 401.
pub async fn require_token(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let since = Instant::now();
    let open = app.metrics_open && request.uri().path() == "/metrics";
    if !open {
        let offered = bearer(request.headers()).ok_or_else(|| {
            Problem::unauthorized(
                "the request carries no bearer token",
                "Bearer realm=\"dwcp\"",
            )
        })?;
        if !app.token.matches(offered) {
            let challenge = "Bearer realm=\"dwcp\", error=\"invalid_token\"";
            return Err(Problem::unauthorized(
                "the token is not this node's",
                challenge,
            ));
        }
    }
    let address = request.extensions().get::<PeerAddress>();
    let address = address.map_or_else(|| "unknown".to_owned(), |peer| peer.0.ip().to_string());
    let name = match actor(request.headers()) {
        Some(actor) => format!("{address} ({actor})"),
        None => address,
    };
    request.extensions_mut().insert(Caller { name, since });
    Ok(next.run(request).await)
}

/// The token of exactly one `authorization: Bearer …` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (value, second) = (all.next()?.as_bytes(), all.next());
    if second.is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// The name a client gives for itself: at most 64 plain characters, since it ends up in logs.
fn actor(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(ACTOR_HEADER)?.to_str().ok()?;
    let plain = |c: &char| c.is_ascii_alphanumeric() || "@._- ".contains(*c);
    let name: String = text.chars().filter(plain).take(64).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn exactly_one_bearer_header_counts() {
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some(&b"abc"[..]));
        assert_eq!(bearer(&headers(&["bEARER abc"])), Some(&b"abc"[..]));
        assert_eq!(bearer(&headers(&["Bearer "])), Some(&b""[..]));
        for none in [
            &[][..],
            &["Basic abc"],
            &["Bearer"],
            &["Bearerabc"],
            &["Bearer a", "Bearer b"],
        ] {
            assert_eq!(bearer(&headers(none)), None, "{none:?}");
        }
    }

    #[test]
    fn a_name_is_cleaned() {
        let mut map = HeaderMap::new();
        map.insert(
            ACTOR_HEADER,
            HeaderValue::from_static("alice@host<script>\t"),
        );
        assert_eq!(actor(&map).unwrap(), "alice@hostscript");
        map.insert(ACTOR_HEADER, HeaderValue::from_static("<>"));
        assert_eq!(actor(&map), None);
    }
}
