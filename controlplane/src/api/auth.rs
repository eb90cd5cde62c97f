//! Lets a request in, or not.
//!
//! In: a request. Out: the same request with [`Caller`] attached, or 401, 403, 429. Promises: without a token
//! nothing is told, not even which routes exist; only the files of `/docs/`, which tell nothing of this
//! node, are for everybody, and `/metrics` if the settings say so; whoever asks too
//! often waits, and who has no token takes nothing from those who have; the kill switch is never refused for that.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::problem::Problem;
use super::{App, docs};
use crate::access::scope::{Scope, needed};
use crate::access::tokens::Identity;

/// The route that is never refused for asking too often.
pub const KILL_SWITCH: &str = "/v1/feature-flags/force-v1";
/// Header in which a client may give its user's name for the history of changes.
pub const ACTOR_HEADER: &str = "dwcp-actor";

/// Address of the client, put on each request by the server.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// On each request that came over TLS, put there by the server.
#[derive(Clone, Copy, Debug)]
pub struct Encrypted;

/// Who asks, and since when.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its address, and in brackets the name it gave for itself.
    pub name: String,
    /// Id of its token; empty where none was needed.
    pub token: String,
    /// Name of that token.
    pub token_name: String,
    /// What the token allows.
    pub scope: Scope,
    /// When its request's head had arrived.
    pub since: Instant,
}

/// The check itself, in front of every route.
///
/// # Errors
/// [`Problem`] with status 401, 403 or 429.
pub async fn require_token(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let since = Instant::now();
    let path = request.uri().path();
    let address = request.extensions().get::<PeerAddress>();
    let address = address.map_or_else(|| "unknown".to_owned(), |peer| peer.0.ip().to_string());
    let offered = bearer(request.headers());
    let identity = offered.and_then(|offered| app.tokens.identify(offered, unix_s()));
    let wait = |who: &str| app.rates.take(who, since).map_err(Problem::too_often);
    let open =
        (app.metrics_open && path == "/metrics") || path.starts_with(docs::ROOT) || path == "/docs";
    let identity = match identity {
        Some(identity) => {
            if path != KILL_SWITCH {
                wait(&format!("{} {address}", identity.id))?;
            }
            let needs = needed(request.method(), path);
            if identity.scope < needs {
                tracing::warn!(
                    from = address,
                    token = identity.name,
                    has = identity.scope.as_str(),
                    needs = needs.as_str(),
                    "refused"
                );
                return Err(Problem::forbidden(identity.scope, needs));
            }
            identity
        }
        None => {
            wait(&address)?;
            if !open {
                return Err(stranger(offered.is_some()));
            }
            Identity {
                id: String::new(),
                name: String::new(),
                scope: Scope::Read,
            }
        }
    };
    let name = match actor(request.headers()) {
        Some(actor) => format!("{address} ({actor})"),
        None => address,
    };
    request.extensions_mut().insert(Caller {
        name,
        token: identity.id,
        token_name: identity.name,
        scope: identity.scope,
        since,
    });
    Ok(next.run(request).await)
}

fn stranger(offered: bool) -> Problem {
    if offered {
        let challenge = "Bearer realm=\"dwcp\", error=\"invalid_token\"";
        Problem::unauthorized("the token is not this node's", challenge)
    } else {
        let detail = "the request carries no bearer token";
        Problem::unauthorized(detail, "Bearer realm=\"dwcp\"")
    }
}

/// Now.
pub fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
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
