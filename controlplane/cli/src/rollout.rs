//! `dwcpctl rollout …`: begins rollouts, shows them, steers them, follows them.
//!
//! In: a flag and its phases, or a plan in a file. Out: a table for people, the API's own answers with `--json`, one a
//! line while it is followed.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::args::{RolloutBegin, RolloutCommand};
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::say;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long the control plane may be away while a rollout is followed.
const AWAY_LOOKS_MAX: u32 = 30;

/// `dwcpctl rollout …`
pub async fn rollout(
    api: &Api,
    command: Option<RolloutCommand>,
    as_json: bool,
) -> Result<Exit, ApiError> {
    match command.unwrap_or(RolloutCommand::List) {
        RolloutCommand::List => list(api, as_json).await,
        RolloutCommand::Create(begin) => {
            let plan = plan(&begin)?;
            let made = api.json(Method::POST, "/v1/rollouts", Some(&plan)).await?;
            show(&made, as_json);
            match made["id"].as_str() {
                Some(id) if begin.watch => watch(api, id, as_json).await,
                _ => Ok(Exit::Done),
            }
        }
        RolloutCommand::Show { id, watch: true } => watch(api, &id, as_json).await,
        RolloutCommand::Show { id, watch: false } => {
            let found = api.json(Method::GET, &path(&id), None).await?;
            let decisions = format!("{}/decisions?limit=20", path(&id));
            let decided = api.json(Method::GET, &decisions, None).await?;
            if as_json {
                let mut found = found;
                found["decisions"] = decided["decisions"].clone();
                say::result(format_args!("{found}"));
            } else {
                show(&found, false);
                detail(&found, &decided);
            }
            Ok(Exit::Done)
        }
        RolloutCommand::Pause { id } => order(api, &id, "pause", as_json).await,
        RolloutCommand::Resume { id } => order(api, &id, "resume", as_json).await,
        RolloutCommand::Abort { id } => order(api, &id, "abort", as_json).await,
    }
}

fn path(id: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    format!(
        "/v1/rollouts/{}",
        id.chars().filter(plain).collect::<String>()
    )
}

fn unreadable(begin: &RolloutBegin, reason: String) -> ApiError {
    ApiError::Unreadable {
        path: begin.plan.clone().unwrap_or_default(),
        reason,
    }
}

/// The plan that is sent: the file's, with what was said on the command line laid over it.
fn plan(begin: &RolloutBegin) -> Result<Value, ApiError> {
    let mut plan = match &begin.plan {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| unreadable(begin, error.to_string()))?;
            let read: Result<Map<String, Value>, _> = serde_json::from_str(&text);
            read.map_err(|error| unreadable(begin, format!("no plan in JSON: {error}")))?
        }
        None => Map::new(),
    };
    if let Some(feature) = &begin.feature {
        plan.insert("feature".to_owned(), json!(feature));
    }
    if !begin.phases.is_empty() {
        let phase = |percentage: &f64| {
            let mut phase = json!({ "percentage": percentage });
            if let Some(seconds) = begin.min_time {
                phase["min_time_s"] = json!(seconds);
            }
            if let Some(samples) = begin.min_samples {
                phase["min_samples"] = json!(samples);
            }
            phase
        };
        let phases: Vec<Value> = begin.phases.iter().map(phase).collect();
        plan.insert("phases".to_owned(), json!(phases));
    }
    if let Some(seconds) = begin.settle {
        plan.insert("settle_s".to_owned(), json!(seconds));
    }
    Ok(Value::Object(plan))
}

async fn order(api: &Api, id: &str, order: &str, as_json: bool) -> Result<Exit, ApiError> {
    let path = format!("{}/{order}", path(id));
    let answer = api.json(Method::POST, &path, None).await?;
    show(&answer, as_json);
    Ok(Exit::Done)
}

async fn list(api: &Api, as_json: bool) -> Result<Exit, ApiError> {
    let answer = api.json(Method::GET, "/v1/rollouts", None).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    let all = answer["rollouts"].as_array().cloned().unwrap_or_default();
    if all.is_empty() {
        say::result(format_args!("no rollouts (dwcpctl rollout create FLAG)"));
    }
    all.iter().for_each(|one| show(one, false));
    Ok(Exit::Done)
}

fn show(rollout: &Value, as_json: bool) {
    if as_json {
        say::result(format_args!("{rollout}"));
        return;
    }
    let phases = rollout["plan"]["phases"].as_array().map_or(0, Vec::len);
    say::result(format_args!(
        "{:<22}  {:<14}  {:<11}  phase {} of {phases}  {:>7} %  {}",
        word(&rollout["id"]),
        word(&rollout["plan"]["feature"]),
        word(&rollout["stage"]),
        rollout["phase"].as_u64().unwrap_or(0) + 1,
        word(&rollout["percentage"]),
        word(&rollout["why"]),
    ));
}

/// Nodes, criteria and decisions of one rollout.
fn detail(rollout: &Value, decided: &Value) {
    for node in rollout["nodes"].as_array().into_iter().flatten() {
        say::result(format_args!(
            "  node {:<20}  {:<4}  {}  {}",
            word(&node["node"]),
            word(&node["version"]),
            word(&node["part"]),
            node["silent"].as_str().map(printable).unwrap_or_default(),
        ));
    }
    for judgement in rollout["verdict"]["judgements"]
        .as_array()
        .into_iter()
        .flatten()
    {
        say::result(format_args!(
            "  {:<18}  {:<8}  {} [{}, {}] of {} (v1: {})  target {}, rolls back {}",
            word(&judgement["criterion"]),
            word(&judgement["standing"]),
            word(&judgement["value"]),
            word(&judgement["low"]),
            word(&judgement["high"]),
            word(&judgement["samples"]),
            word(&judgement["against"]),
            word(&judgement["limits"]["target"]),
            word(&judgement["limits"]["rolls_back"]),
        ));
    }
    for one in decided["decisions"].as_array().into_iter().flatten() {
        say::result(format_args!(
            "  {}  {}  {}  {}",
            word(&one["at_unix_ms"]),
            word(&one["by"]),
            word(&one["decision"]["action"]),
            word(&one["decision"]["why"]),
        ));
    }
}

/// Follows a rollout to its end; says each change once.
async fn watch(api: &Api, id: &str, as_json: bool) -> Result<Exit, ApiError> {
    let (mut seen, mut away) = (Value::Null, 0);
    loop {
        match api.json(Method::GET, &path(id), None).await {
            Ok(found) => {
                away = 0;
                if found["version"] != seen {
                    seen = found["version"].clone();
                    show(&found, as_json);
                }
                match found["stage"].as_str() {
                    Some("completed") => return Ok(Exit::Done),
                    Some("aborted") => return Ok(Exit::Cancelled),
                    Some("rolled_back") => return Ok(Exit::Failed),
                    _ => {}
                }
            }
            Err(error) if error.is_unreachable() && away < AWAY_LOOKS_MAX => away += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A value as one word.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_lies_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        std::fs::write(&file, r#"{"feature":"a","settle_s":5,"criteria":{}}"#).unwrap();
        let begin = RolloutBegin {
            feature: Some("b".to_owned()),
            plan: Some(file),
            phases: vec![10.0, 100.0],
            min_time: Some(7),
            min_samples: None,
            settle: None,
            watch: false,
        };
        let plan = plan(&begin).unwrap();
        let phases = json!([
            { "percentage": 10.0, "min_time_s": 7 },
            { "percentage": 100.0, "min_time_s": 7 },
        ]);
        let expected = json!({ "feature": "b", "settle_s": 5, "criteria": {}, "phases": phases });
        assert_eq!(plan, expected);
    }

    #[test]
    fn an_id_stays_in_its_place() {
        assert_eq!(
            path("hde-1/../../tokens?x"),
            "/v1/rollouts/hde-1....tokensx"
        );
    }
}
