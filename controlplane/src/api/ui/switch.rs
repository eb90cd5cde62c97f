//! The kill switch: what it says, and the form that turns it.
//!
//! In: a form of this page. Out: the same call that the API makes. Promises: nobody without the scope `operate` sees
//! the form or may send it; a turn is in the audit log as that of the API is.

use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde_json::json;

use super::door::{Visitor, word};
use super::words::moment;
use super::{App, Look, ROOT};
use crate::access::audit::Entry;
use crate::access::scope::{Scope, needed};
use crate::api::auth::{KILL_SWITCH, unix_s};
use crate::api::body::JsonBody;
use crate::api::flags::{ForceRequest, force_v1};

fn scope() -> Scope {
    needed(&axum::http::Method::POST, KILL_SWITCH)
}

/// Makes the section.
pub fn make(look: &Look<'_>) -> Markup {
    let flags = look.app.flags.view();
    let on = flags.force_v1;
    html! {
        div.switch.on[on] {
            p {
                @if on {
                    strong.state { "On: everything runs in v1." }
                } @else {
                    strong.state { "Off: the flags decide." }
                }
                " "
                @if flags.force_v1_changed_unix_ms > 0 {
                    span.note { "Since " (moment(flags.force_v1_changed_unix_ms)) "." }
                }
            }
            @if look.identity.scope < scope() {
                p.note { "Turning it takes a token with the scope " code { (scope().as_str()) } "." }
            } @else {
                details #turn {
                    @if on {
                        summary { "Let the flags decide again…" }
                        p { "Components go back to the version their flags give them, at the next batch of each migration. With a cluster, a quorum must agree." }
                    } @else {
                        summary { "Send everything back to v1…" }
                        p { "Each running migration goes on in v1 from its next batch, within milliseconds. Nothing is lost and nothing restarts. It needs no quorum." }
                    }
                    form method="post" action="/ui/switch" {
                        input type="hidden" name="proof" value=(look.proof);
                        input type="hidden" name="force_v1" value=(if on { "false" } else { "true" });
                        button.danger[!on] type="submit" {
                            @if on { "Let the flags decide" } @else { "Everything back to v1 now" }
                        }
                    }
                }
            }
        }
    }
}

/// `POST /ui/switch`
pub async fn turn(
    State(app): State<App>,
    visitor: Visitor,
    request: Request,
) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    let words = visitor.form(&parts.headers, body, scope()).await?;
    let on = word(&words, "force_v1") == "true";
    // Goes on to its end and into the log even if the browser goes away.
    let work = async move {
        let caller = visitor.caller.clone();
        let request = JsonBody(ForceRequest { force_v1: on });
        let turned = force_v1(State(app.clone()), Extension(caller), request).await;
        let response = match turned {
            Ok(_) => Redirect::to(ROOT).into_response(),
            Err(problem) => problem.into_response(),
        };
        record(&app, &visitor, on, response.status().as_u16()).await;
        response
    };
    match tokio::spawn(work).await {
        Ok(response) => Ok(response),
        Err(error) => Err(crate::api::problem::Problem::lost_task(&error).into_response()),
    }
}

async fn record(app: &App, visitor: &Visitor, on: bool, status: u16) {
    let caller = &visitor.caller;
    let entry = Entry {
        number: 0,
        at_unix_ms: unix_s().saturating_mul(1_000),
        by: format!("{} (page)", caller.name),
        token: caller.token.clone(),
        token_name: caller.token_name.clone(),
        scope: caller.scope,
        method: "POST".to_owned(),
        path: KILL_SWITCH.to_owned(),
        request: Some(json!({ "force_v1": on })),
        status,
    };
    let audit = app.audit.clone();
    let written = tokio::task::spawn_blocking(move || audit.record(entry)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::error!(?written, "a change is not in the audit log");
    }
}
