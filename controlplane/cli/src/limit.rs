//! `dwcpctl limit`, `redirect`: how much of the line migrations may take, and where it leads, while they run.

use std::net::SocketAddr;

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::say;

/// Shows or changes the limit of one migration, or without `id` of all of this host together.
pub async fn limit(
    api: &Api,
    id: Option<&str>,
    bytes_per_s: Option<u64>,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let path = id.map_or_else(
        || "/v1/link".to_owned(),
        |id| format!("/v1/migrations/{id}"),
    );
    let body = bytes_per_s.map(|limit| json!({ "bandwidth_limit_bytes_per_s": limit }));
    let method = if body.is_some() {
        Method::PATCH
    } else {
        Method::GET
    };
    let answer = api.json(method, &path, body.as_ref()).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    let holder = if id.is_some() {
        answer.get("options").unwrap_or(&Value::Null)
    } else {
        &answer
    };
    let limit = holder
        .get("bandwidth_limit_bytes_per_s")
        .and_then(Value::as_u64);
    let whose = id.map_or("all migrations together", |_| "this migration");
    match limit {
        Some(0) => say::result(format_args!("{whose}: no limit")),
        Some(limit) => say::result(format_args!("{whose}: {limit} bytes a second at most")),
        None => say::result(format_args!("{whose}: {answer}")),
    }
    if answer.get("in_force") == Some(&Value::Bool(false)) {
        say::aside(format_args!(
            "note: no data plane is attached; the limit is kept and applied when one attaches"
        ));
    }
    Ok(Exit::Done)
}

/// Tells a migration where its destination's data plane is now.
pub async fn redirect(
    api: &Api,
    id: &str,
    to: SocketAddr,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let path = format!("/v1/migrations/{id}");
    let body = json!({ "dataplane": to.to_string() });
    let answer = api.json(Method::PATCH, &path, Some(&body)).await?;
    if as_json {
        say::result(format_args!("{answer}"));
    } else {
        say::result(format_args!("lanes are dialled to {to} from now on"));
    }
    Ok(Exit::Done)
}
