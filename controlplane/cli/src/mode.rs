//! `dwcpctl mode …`: in which mode each peer's sessions are, and why.
//!
//! In: a peer, a mode. Out: a table for people, the API's own answer with `--json`.

use std::net::IpAddr;

use reqwest::Method;
use serde_json::{Value, json};

use crate::args::ModeCommand;
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::say;

/// `dwcpctl mode …`
pub async fn mode(
    api: &Api,
    command: Option<ModeCommand>,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let command = command.unwrap_or(ModeCommand::Show { peer: None });
    let (method, peer, body) = match command {
        ModeCommand::Show { peer } => (Method::GET, peer, None),
        ModeCommand::Set { mode, peer } => {
            (Method::PUT, peer, Some(json!({ "mode": mode.as_str() })))
        }
        ModeCommand::Auto { peer } => (Method::DELETE, peer, None),
    };
    let answer = api.json(method, &path(peer), body.as_ref()).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    let peers = match answer.get("peers").and_then(Value::as_array) {
        Some(peers) => peers.clone(),
        None => vec![answer.clone()],
    };
    if let Some(said) = answer
        .get("peers")
        .and_then(|_| answer["override"].as_object())
    {
        let said = Value::Object(said.clone());
        say::result(format_args!(
            "all peers: {}, by {} (dwcpctl mode auto)",
            word(&said["mode"]),
            word(&said["by"])
        ));
    }
    if peers.is_empty() {
        say::result(format_args!(
            "no peer is known yet: modes are measured while sessions run"
        ));
    }
    for peer in &peers {
        show(peer);
    }
    Ok(Exit::Done)
}

fn path(peer: Option<IpAddr>) -> String {
    peer.map_or_else(
        || "/v1/modes".to_owned(),
        |peer| format!("/v1/modes/{peer}"),
    )
}

fn show(peer: &Value) {
    say::result(format_args!(
        "{}  {}  {}",
        word(&peer["peer"]),
        word(&peer["mode"]),
        peer["reason"].as_str().map(printable).unwrap_or_default()
    ));
    let measured = &peer["measured"];
    if peer["override"].is_object() && measured["mode"].is_string() {
        say::result(format_args!("  measured: {}", word(&measured["mode"])));
    }
    for session in peer["sessions"].as_array().into_iter().flatten() {
        say::result(format_args!(
            "  session {} ({}): {} for {} ms; sample {}: round trip {} us, {} bytes/s, {}",
            word(&session["session"]),
            word(&session["role"]),
            word(&session["mode"]),
            word(&session["for_ms"]),
            word(&session["sample"]),
            word(&session["rtt_us"]),
            word(&session["bytes_per_s"]),
            word(&session["load"]),
        ));
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
