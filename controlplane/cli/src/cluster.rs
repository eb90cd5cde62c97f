//! `dwcpctl cluster …`: who is in it, who leads, and changes of both.
//!
//! In: numbers, names, addresses. Out: a table for people, the API's own answer with `--json`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::args::ClusterCommand;
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::say;

/// `dwcpctl cluster …`
pub async fn cluster(
    api: &Api,
    command: Option<ClusterCommand>,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let members = "/v1/cluster/members";
    let (method, path, body) = match command.unwrap_or(ClusterCommand::Status) {
        ClusterCommand::Status => (Method::GET, "/v1/cluster".to_owned(), None),
        ClusterCommand::Add { id, name, address } => {
            let body = json!({ "id": id, "name": name, "address": address });
            (Method::POST, members.to_owned(), Some(body))
        }
        ClusterCommand::Remove { id } => (Method::DELETE, format!("{members}/{id}"), None),
        ClusterCommand::Transfer { id } => {
            let path = "/v1/cluster/leader".to_owned();
            (Method::PUT, path, Some(json!({ "id": id })))
        }
    };
    let answer = api.json(method, &path, body.as_ref()).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    say::result(format_args!(
        "node {} is {} in epoch {}, term {}; log {}, committed {}, applied {}",
        word(&answer["id"]),
        word(&answer["role"]),
        word(&answer["epoch"]),
        word(&answer["term"]),
        word(&answer["last_index"]),
        word(&answer["committed"]),
        word(&answer["applied"]),
    ));
    for throw in answer["throws"].as_array().into_iter().flatten() {
        say::result(format_args!(
            "kill switch thrown by {} ({})",
            word(&throw["node"]),
            word(&throw["by"])
        ));
    }
    if let Some(why) = answer["failed"].as_str() {
        say::result(format_args!("it takes no part: {}", printable(why)));
    }
    for member in answer["members"].as_array().into_iter().flatten() {
        let leads = member["id"] == answer["leader"];
        say::result(format_args!(
            "{:>4}  {:<20}  {:<24}  {:<8}  {}",
            word(&member["id"]),
            word(&member["name"]),
            word(&member["address"]),
            match (leads, member["voter"].as_bool()) {
                (true, _) => "leads",
                (false, Some(true)) => "votes",
                _ => "learns",
            },
            word(&member["matched"]),
        ));
    }
    Ok(Exit::Done)
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
