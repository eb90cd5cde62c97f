//! The page around its sections, the form to enter, and short answers.
//!
//! In: who asks. Out: whole documents. Promise: each is complete without scripts.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::door::Visitor;
use super::words::moment;
use super::{App, Look, SECTIONS};
use crate::api::auth::unix_s;

/// What a form to enter has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet.
    Nothing,
    /// The token is nobody's.
    Unknown,
}

/// `GET /ui/`
pub async fn page(State(app): State<App>, visitor: Visitor) -> Response {
    let look = Look {
        app: &app,
        identity: &visitor.entered.identity,
        proof: &visitor.entered.proof,
    };
    let node = app.flags.node().as_str();
    let body = html! {
        a.skip href="#main" { "To the content" }
        header.top {
            h1 { span.mark aria-hidden="true" {} "DWCP " span.node { (node) } }
            // Without scripts it stays so.
            p #live role="status" { "As of " (moment(unix_s() * 1_000)) ", " a href="/ui/" { "load again" } }
            form method="post" action="/ui/logout" {
                span.who {
                    (look.identity.name) " · " (look.identity.scope.as_str())
                }
                input type="hidden" name="proof" value=(look.proof);
                button type="submit" { "Leave" }
            }
        }
        main #main {
            @for section in SECTIONS {
                section id=(section.id) aria-labelledby=(heading(section.id)) {
                    h2 id=(heading(section.id)) { (section.title) }
                    div.body { ((section.make)(&look)) }
                }
            }
        }
        footer {
            p {
                "All of this is also in the " a href="/docs/" { "API" } " and at "
                code { "dwcpctl" } ". Rates in bytes a second, units of a thousand."
            }
        }
    };
    document(StatusCode::OK, &format!("{node} · DWCP"), true, &body)
}

fn heading(id: &str) -> String {
    format!("{id}-title")
}

/// The form to enter.
pub fn login(status: StatusCode, encrypted: bool, said: Said) -> Response {
    let wrong = said == Said::Unknown;
    let body = html! {
        main.door {
            h1 { span.mark aria-hidden="true" {} "DWCP" }
            p { "Moves running virtual machines. Enter with a token of this node." }
            @if wrong {
                p.bad role="alert" { strong { "That token is not known here." } " It may have been revoked, or be another node's." }
            }
            @if !encrypted {
                p.warn { strong { "This connection is not encrypted." } " Whoever can see it can read the token: enter only from the host itself or over a network of your own, or set " code { "tls_cert" } "." }
            }
            form method="post" action="/ui/login" {
                label for="token" { "Token" }
                input #token name="token" type="password" autocomplete="current-password" required maxlength="256" autofocus aria-describedby="help" aria-invalid=[wrong.then_some("true")];
                p.help #help { code { "dwcpctl tokens create NAME --scope read" } " makes one that can only look." }
                button type="submit" { "Enter" }
            }
        }
    };
    document(status, "Enter · DWCP", false, &body)
}

/// A short answer.
pub fn told(status: StatusCode, title: &str, words: &str) -> Response {
    let body = html! {
        main.door {
            h1 { (title) }
            p { (words) }
            p { a href="/ui/" { "Back to the page" } }
        }
    };
    document(status, title, false, &body)
}

fn document(status: StatusCode, title: &str, moves: bool, body: &Markup) -> Response {
    let text = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="icon" href="/ui/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/ui/ui.css";
                @if moves { script src="/ui/ui.js" defer {} }
            }
            body { (body) }
        }
    };
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (status, kind, text.into_string()).into_response()
}
