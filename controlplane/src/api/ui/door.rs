//! Entering the page with a token, and leaving it.
//!
//! In: a form with a token; later a cookie. Out: a [`Visitor`], or the way to the form. Promises: a token is read from
//! a form of this page alone, and never kept, logged or sent back; the cookie is out of reach of scripts and of other
//! sites; whoever guesses waits.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::layout::{self, Said};
use super::session::Entered;
use super::{App, ROOT};
use crate::access::scope::Scope;
use crate::api::auth::{Caller, Encrypted, PeerAddress, unix_s};
use crate::api::body::collect;
use crate::api::problem::Problem;

/// Cookie over TLS: the prefix makes browsers refuse one that another host set.
const COOKIE_OVER_TLS: &str = "__Host-dwcp";
const COOKIE: &str = "dwcp";
const LOGIN: &str = "/ui/login";

/// Attempts to enter, a second, of each address; twice as many at once.
pub const ATTEMPTS_PER_S: u32 = 2;

/// Whoever has entered.
pub struct Visitor {
    /// Token and proof.
    pub entered: Entered,
    /// For the routes of the API and the audit log.
    pub caller: Caller,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let now = Instant::now();
        let address = address(parts.extensions.get::<PeerAddress>());
        let found = secret_of(parts)
            .and_then(|secret| app.ui.sessions.find(secret, &app.tokens, now, unix_s()));
        let who = match &found {
            Some(entered) => format!("{} {address}", entered.identity.id),
            None => address.clone(),
        };
        if let Err(wait) = app.rates.take(&who, now) {
            return Err(Problem::too_often(wait).into_response());
        }
        let Some(entered) = found else {
            return Err(if parts.uri.path() == ROOT {
                Redirect::to(LOGIN).into_response()
            } else {
                layout::told(
                    StatusCode::UNAUTHORIZED,
                    "You have to enter again",
                    "The session is over, or its token was revoked.",
                )
            });
        };
        let caller = Caller {
            name: address,
            token: entered.identity.id.clone(),
            token_name: entered.identity.name.clone(),
            scope: entered.identity.scope,
            since: now,
        };
        Ok(Self { entered, caller })
    }
}

impl Visitor {
    /// The words of a form that came from this page, from somebody who may do what it asks.
    ///
    /// # Errors
    /// The answer to give instead.
    pub async fn form(
        &self,
        headers: &HeaderMap,
        body: Body,
        needs: Scope,
    ) -> Result<Vec<(String, String)>, Response> {
        let words = form(headers, body).await?;
        if !self.entered.proves(word(&words, "proof")) {
            return Err(layout::told(
                StatusCode::FORBIDDEN,
                "That form is not from this page",
                "It bears no proof, or that of a session that is over: go back, reload the page and try again.",
            ));
        }
        if self.entered.identity.scope < needs {
            let problem = Problem::forbidden(self.entered.identity.scope, needs);
            return Err(problem.into_response());
        }
        Ok(words)
    }
}

/// `GET /ui/login`
pub async fn door(request: Request) -> Response {
    let (parts, _) = request.into_parts();
    layout::login(StatusCode::OK, is_encrypted(&parts), Said::Nothing)
}

/// `POST /ui/login`
pub async fn enter(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let now = Instant::now();
    let address = address(parts.extensions.get::<PeerAddress>());
    let encrypted = is_encrypted(&parts);
    if let Err(wait) = app.ui.attempts.take(&address, now) {
        return Problem::too_often(wait).into_response();
    }
    let words = match form(&parts.headers, body).await {
        Ok(words) => words,
        Err(refusal) => return refusal,
    };
    let offered = word(&words, "token").trim();
    let Some(identity) = app.tokens.identify(offered.as_bytes(), unix_s()) else {
        tracing::warn!(
            from = address,
            "a token that is not known was tried at the page"
        );
        return layout::login(StatusCode::UNAUTHORIZED, encrypted, Said::Unknown);
    };
    let secret = match app.ui.sessions.begin(&identity, now) {
        Ok(secret) => secret,
        Err(error) => {
            tracing::error!(%error, "no session can be begun");
            return layout::told(
                StatusCode::INTERNAL_SERVER_ERROR,
                "No session can be begun",
                "The system gives no random bytes; see the control plane's log.",
            );
        }
    };
    tracing::info!(from = address, token = identity.name, "entered the page");
    with_cookie(Redirect::to(ROOT).into_response(), &secret, encrypted, None)
}

/// `POST /ui/logout`
pub async fn leave(
    State(app): State<App>,
    visitor: Visitor,
    request: Request,
) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    visitor.form(&parts.headers, body, Scope::Read).await?;
    let encrypted = is_encrypted(&parts);
    if let Some(secret) = secret_of(&parts) {
        app.ui.sessions.end(secret);
    }
    let response = Redirect::to(LOGIN).into_response();
    Ok(with_cookie(response, "", encrypted, Some(0)))
}

async fn form(headers: &HeaderMap, body: Body) -> Result<Vec<(String, String)>, Response> {
    if !is_from_here(headers) {
        return Err(layout::told(
            StatusCode::FORBIDDEN,
            "That form is not from this page",
            "It was sent by another site, or by no browser; programs use the API with a bearer token.",
        ));
    }
    let body = collect(headers, body)
        .await
        .map_err(IntoResponse::into_response)?;
    Ok(form_urlencoded::parse(&body).into_owned().collect())
}

/// What a form says under a name.
pub fn word<'a>(words: &'a [(String, String)], name: &str) -> &'a str {
    let found = words.iter().find(|(key, _)| key == name);
    found.map_or("", |(_, value)| value)
}

/// Did a page of this very origin send it? Browsers say so, and scripts of other sites cannot say it for them.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = text("origin").and_then(|origin| origin.parse::<Uri>().ok());
    let from = origin.as_ref().and_then(Uri::authority);
    from.is_some_and(|from| Some(from.as_str()) == text("host"))
}

/// The secret in a request's cookie.
pub fn secret_of(parts: &Parts) -> Option<&str> {
    cookie(&parts.headers, is_encrypted(parts))
}

fn is_encrypted(parts: &Parts) -> bool {
    parts.extensions.get::<Encrypted>().is_some()
}

fn address(peer: Option<&PeerAddress>) -> String {
    peer.map_or_else(|| "unknown".to_owned(), |peer| peer.0.ip().to_string())
}

const fn cookie_name(encrypted: bool) -> &'static str {
    if encrypted { COOKIE_OVER_TLS } else { COOKIE }
}

fn cookie(headers: &HeaderMap, encrypted: bool) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|one| {
            let (name, value) = one.trim().split_once('=')?;
            (name == cookie_name(encrypted)).then_some(value)
        })
}

fn with_cookie(
    mut response: Response,
    secret: &str,
    encrypted: bool,
    life_s: Option<u64>,
) -> Response {
    let mut line = format!(
        "{}={secret}; Path=/; HttpOnly; SameSite=Strict",
        cookie_name(encrypted)
    );
    if encrypted {
        line.push_str("; Secure");
    }
    if let Some(life_s) = life_s {
        line.push_str(&format!("; Max-Age={life_s}"));
    }
    if let Ok(line) = HeaderValue::from_str(&line) {
        response.headers_mut().insert(header::SET_COOKIE, line);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in all {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_this_origin_is_here() {
        for (all, here) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("origin", "http://a:7780"), ("host", "a:7780")], true),
            (&[("origin", "http://a:7781"), ("host", "a:7780")], false),
            (&[("origin", "null"), ("host", "a:7780")], false),
            (
                &[
                    ("origin", "http://a:7780"),
                    ("host", "a:7780"),
                    ("sec-fetch-site", "cross-site"),
                ],
                false,
            ),
            (&[("host", "a:7780")], false),
        ] {
            assert_eq!(is_from_here(&headers(all)), here, "{all:?}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let all = headers(&[("cookie", "a=b; dwcp=one"), ("cookie", "__Host-dwcp=two")]);
        assert_eq!(cookie(&all, false), Some("one"));
        assert_eq!(cookie(&all, true), Some("two"));
        assert_eq!(cookie(&headers(&[("cookie", "xdwcp=one")]), false), None);
    }
}
