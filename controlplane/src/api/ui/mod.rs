//! The page: what this node and its fleet do, and the kill switch, for people with a browser.
//!
//! In: requests of browsers. Out: HTML made here, one style sheet, one script, and events. Promises: nothing is
//! loaded from anywhere else and nothing runs that is not in the script's file; without scripts everything can be
//! read and the switch works; nobody sees or does more than their token allows.
//!
//! | module | what |
//! |---|---|
//! | [`door`] | entering with a token, and leaving |
//! | [`session`] | who has entered |
//! | [`layout`] | the page around its sections |
//! | [`summary`], [`switch`], [`migrations`], [`fleet`], [`versions`] | the sections |
//! | [`chart`], [`history`] | dirty rate against throughput, over time |
//! | [`stream`] | sections again, when they change |
//! | [`words`] | figures with their units |
//!
//! A further section is a function that makes it and a row in [`SECTIONS`].

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::Markup;

mod chart;
pub mod door;
mod fleet;
pub mod history;
mod layout;
mod migrations;
pub mod session;
mod stream;
mod summary;
mod switch;
mod versions;
mod words;

use super::App;
use crate::access::rate::Rates;
use crate::access::tokens::Identity;

/// Where it lies.
pub const ROOT: &str = "/ui/";

/// Nothing from elsewhere, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What a section is made of.
pub struct Look<'a> {
    app: &'a App,
    identity: &'a Identity,
    /// Proof that a form came from this page.
    proof: &'a str,
}

/// What the page keeps, in memory alone.
pub struct Ui {
    /// Who has entered.
    pub sessions: session::Sessions,
    /// How migrations went.
    pub history: history::History,
    /// Attempts to enter.
    attempts: Rates,
}

impl Default for Ui {
    fn default() -> Self {
        Self {
            sessions: session::Sessions::default(),
            history: history::History::default(),
            attempts: Rates::new(door::ATTEMPTS_PER_S),
        }
    }
}

/// One section.
struct Section {
    /// Its place in the page, and its name in events.
    id: &'static str,
    title: &'static str,
    make: fn(&Look<'_>) -> Markup,
}

/// In the order of the page.
const SECTIONS: &[Section] = &[
    Section {
        id: "summary",
        title: "Now",
        make: summary::make,
    },
    Section {
        id: "switch",
        title: "Kill switch",
        make: switch::make,
    },
    Section {
        id: "migrations",
        title: "Migrations",
        make: migrations::make,
    },
    Section {
        id: "fleet",
        title: "Fleet",
        make: fleet::make,
    },
    Section {
        id: "versions",
        title: "Versions",
        make: versions::make,
    },
];

/// Its routes; each looks at the session itself.
pub fn router(app: &App) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/ui", get(root))
        .route("/ui/", get(layout::page))
        .route("/ui/login", get(door::door).post(door::enter))
        .route("/ui/logout", post(door::leave))
        .route("/ui/switch", post(switch::turn))
        .route("/ui/events", get(stream::events))
        .route("/ui/ui.js", get(script))
        .route("/ui/ui.css", get(style))
        .route("/ui/icon.svg", get(icon))
        .method_not_allowed_fallback(super::no_method)
        .layer(map_response(guarded))
        .with_state(app.clone())
}

async fn root() -> Redirect {
    Redirect::to(ROOT)
}

/// Headers of every answer.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: a form would then say that it came from nowhere.
        (header::REFERRER_POLICY, "same-origin"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let kept = HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(kept);
    response
}

fn file(kind: &'static str, bytes: &'static [u8]) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        // Asked for again after an upgrade, and otherwise not within an hour.
        (header::CACHE_CONTROL, "max-age=3600"),
    ];
    (headers, bytes).into_response()
}

async fn script() -> Response {
    let script = include_bytes!("../../../assets/ui/ui.js");
    file("text/javascript; charset=utf-8", script)
}

async fn style() -> Response {
    let style = include_bytes!("../../../assets/ui/ui.css");
    file("text/css; charset=utf-8", style)
}

async fn icon() -> Response {
    let icon = include_bytes!("../../../assets/ui/icon.svg");
    file("image/svg+xml", icon)
}
