//! `dwcpctl flags`, `rollback`, `health`, `status`: what is said to one node at once.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::args::Flags;
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::migrate::report;
use crate::progress::printable;
use crate::say;
use crate::view::Migration;

/// How long a running migration is watched for its first v1 batch.
const FIRST_BATCH_MAX: Duration = Duration::from_secs(10);

/// A value as one word of a table.
fn word(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// `dwcpctl flags …`
pub async fn flags(api: &Api, command: Option<Flags>, as_json: bool) -> Result<Exit, ApiError> {
    let (value, rows) = match command.unwrap_or(Flags::List) {
        Flags::List => {
            let value = api.json(Method::GET, "/v1/feature-flags", None).await?;
            let rows = value
                .get("flags")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            if !as_json && value.get("force_v1") == Some(&Value::Bool(true)) {
                say::result(format_args!(
                    "kill switch: ON, everything goes in v1 (dwcpctl rollback --off)"
                ));
            }
            (value, rows)
        }
        Flags::Set {
            feature,
            percentage,
            enabled,
        } => {
            let mut body = json!({ "feature": feature });
            if let Some(percentage) = percentage {
                body["percentage"] = percentage.into();
            }
            if let Some(enabled) = enabled {
                body["enabled"] = enabled.into();
            }
            let flag = api
                .json(Method::POST, "/v1/feature-flags", Some(&body))
                .await?;
            (flag.clone(), vec![flag])
        }
        Flags::Exclude {
            feature,
            nodes,
            undo,
        } => {
            let body = json!({ "feature": feature, "nodes": nodes, "excluded": !undo });
            let flag = api
                .json(Method::POST, "/v1/feature-flags/exclude", Some(&body))
                .await?;
            (flag.clone(), vec![flag])
        }
        Flags::History => {
            let value = api
                .json(Method::GET, "/v1/feature-flags/history", None)
                .await?;
            if as_json {
                say::result(format_args!("{value}"));
            } else {
                for entry in value
                    .get("entries")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    say::result(format_args!("{entry}"));
                }
            }
            return Ok(Exit::Done);
        }
    };
    if as_json {
        say::result(format_args!("{value}"));
        return Ok(Exit::Done);
    }
    say::result(format_args!(
        "{:<14} {:>7} {:>8} {:>5} {:>5}  excluded",
        "flag", "enabled", "percent", "here", "v3"
    ));
    for flag in rows {
        let excluded: Vec<String> = flag
            .get("excluded_nodes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|node| node.as_str().map(printable))
            .collect();
        let available = if flag.get("available") == Some(&Value::Bool(true)) {
            "yes"
        } else {
            "not yet"
        };
        say::result(format_args!(
            "{:<14} {:>7} {:>8} {:>5} {:>5}  {}",
            word(&flag, "feature"),
            word(&flag, "enabled"),
            word(&flag, "percentage"),
            word(&flag, "version_here"),
            available,
            excluded.join(" ")
        ));
    }
    Ok(Exit::Done)
}

/// `dwcpctl rollback`
pub async fn rollback(api: &Api, off: bool, as_json: bool) -> Result<Exit, ApiError> {
    let body = json!({ "force_v1": !off });
    let answer = api
        .json(Method::POST, "/v1/feature-flags/force-v1", Some(&body))
        .await?;
    if as_json {
        say::result(format_args!("{answer}"));
    } else {
        let state = if answer.get("force_v1") == Some(&Value::Bool(true)) {
            "on"
        } else {
            "off"
        };
        match answer.get("applied_us").and_then(Value::as_u64) {
            Some(us) => say::result(format_args!("kill switch {state}, in force after {us} µs")),
            None => say::result(format_args!("kill switch {state}")),
        }
    }
    if let Some(note) = answer.get("note").and_then(Value::as_str) {
        say::aside(format_args!("note: {}", printable(note)));
    }
    if off || answer.get("applied") != Some(&Value::Bool(true)) {
        return Ok(Exit::Done);
    }
    first_batches(api).await
}

/// Waits until each running migration has sent its first v1 batch.
async fn first_batches(api: &Api) -> Result<Exit, ApiError> {
    let thrown = Instant::now();
    let mut said: Vec<String> = Vec::new();
    loop {
        let value = api.json(Method::GET, "/v1/migrations", None).await?;
        let all: Vec<Migration> = value
            .get("migrations")
            .and_then(|list| serde_json::from_value(list.clone()).ok())
            .unwrap_or_default();
        let mut waiting = 0;
        for view in &all {
            if view.is_final() || said.contains(&view.id) {
                continue;
            }
            let first = view
                .rollback
                .as_ref()
                .filter(|r| r.first_v1_batch_ns.is_some());
            let Some(rollback) = first else {
                // Nothing was sent in v3, so there is nothing to roll back.
                waiting += usize::from(view.version.as_deref() == Some("v3"));
                continue;
            };
            match rollback.rollback_us {
                Some(us) => say::aside(format_args!(
                    "migration {}: first v1 batch {us} µs after the throw",
                    view.id
                )),
                None => say::aside(format_args!("migration {}: goes in v1", view.id)),
            }
            said.push(view.id.clone());
        }
        if waiting == 0 {
            return Ok(Exit::Done);
        }
        if thrown.elapsed() > FIRST_BATCH_MAX {
            say::aside(format_args!(
                "{waiting} running migrations have sent nothing since the throw; what they send next goes in v1\n  next: dwcpctl status"
            ));
            return Ok(Exit::TimedOut);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `dwcpctl health`
pub async fn health(api: &Api, detailed: bool, as_json: bool) -> Result<Exit, ApiError> {
    // The short answer has no reasons: people get them from the long one.
    let long = detailed || !as_json;
    let path = if long {
        "/v1/health/detailed"
    } else {
        "/v1/health"
    };
    let (status, value) = api.report(path).await?;
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        say::result(format_args!("{}", word(&value, "status")));
        for problem in value
            .get("problems")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            say::result(format_args!(
                "  {}",
                problem.as_str().map(printable).unwrap_or_default()
            ));
        }
        if detailed {
            for key in [
                "data_plane",
                "workers",
                "handshakes",
                "store",
                "hugepage_fallbacks",
                "sessions",
                "flags",
            ] {
                say::result(format_args!(
                    "{key}: {}",
                    value.get(key).unwrap_or(&Value::Null)
                ));
            }
        }
    }
    Ok(if status == StatusCode::OK {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// `dwcpctl status`
pub async fn status(api: &Api, id: Option<&str>, as_json: bool) -> Result<Exit, ApiError> {
    if let Some(id) = id {
        let value = api
            .json(Method::GET, &format!("/v1/migrations/{id}"), None)
            .await?;
        let view: Migration = serde_json::from_value(value.clone()).unwrap_or_default();
        report(&value, &view, as_json);
        return Ok(Exit::Done);
    }
    let value = api.json(Method::GET, "/v1/migrations", None).await?;
    if as_json {
        say::result(format_args!("{value}"));
        return Ok(Exit::Done);
    }
    let list = value.get("migrations").cloned().unwrap_or_default();
    let all: Vec<Migration> = serde_json::from_value(list).unwrap_or_default();
    if all.is_empty() {
        say::result(format_args!("no migrations"));
    }
    for view in all {
        let percent = view
            .progress
            .map_or_else(|| "?".to_owned(), |part| format!("{:.0}", part * 100.0));
        say::result(format_args!(
            "{}  {:<12} {percent:>3} %  {}  {}",
            printable(&view.id),
            printable(&view.state),
            printable(view.guest_name()),
            printable(&view.destination.api)
        ));
    }
    Ok(Exit::Done)
}
