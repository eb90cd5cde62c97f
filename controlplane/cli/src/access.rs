//! `dwcpctl tokens`, `audit`: who may do what, and who did.

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::say;

/// What a token allows; each allows what those before it do.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Scope {
    /// Looking
    Read,
    /// Moving guests, flags, modes, limits, the kill switch
    Operate,
    /// Tokens, the audit log, NICs, the cluster
    Admin,
}

/// `dwcpctl tokens`
#[derive(Subcommand, Debug)]
pub enum Tokens {
    /// Show those that were handed out
    List,
    /// Make one; it is printed this once and never again
    Create {
        /// A name for people: A-Z a-z 0-9 . _ -
        name: String,
        /// What it is to allow
        #[arg(long, value_enum)]
        scope: Scope,
        /// For so many days; without it until it is revoked
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: Option<u64>,
    },
    /// Take one back; it is good for nothing from now on
    Revoke {
        /// Its id
        id: String,
    },
}

fn word(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// `dwcpctl tokens …`
pub async fn tokens(api: &Api, command: Tokens, as_json: bool) -> Result<Exit, ApiError> {
    let (method, path, body) = match &command {
        Tokens::List => (Method::GET, "/v1/tokens".to_owned(), None),
        Tokens::Create { name, scope, days } => {
            let scope = match scope {
                Scope::Read => "read",
                Scope::Operate => "operate",
                Scope::Admin => "admin",
            };
            let mut body = json!({ "name": name, "scope": scope });
            if let Some(days) = days {
                body["expires_in_s"] = (days * 86_400).into();
            }
            (Method::POST, "/v1/tokens".to_owned(), Some(body))
        }
        Tokens::Revoke { id } => (Method::DELETE, format!("/v1/tokens/{id}"), None),
    };
    let answer = api.json(method, &path, body.as_ref()).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    match command {
        Tokens::Create { .. } => {
            // Alone on standard output, so that it can go to a file.
            say::result(format_args!("{}", word(&answer, "token")));
            say::aside(format_args!(
                "token {} ({}) was made: it is not shown again",
                word(&answer, "id"),
                word(&answer, "scope")
            ));
        }
        Tokens::Revoke { .. } => say::result(format_args!(
            "token {} ({}) is revoked",
            word(&answer, "id"),
            word(&answer, "name")
        )),
        Tokens::List => {
            say::result(format_args!(
                "{:<12} {:<20} {:<8} {:>12} {:>12}  by",
                "id", "name", "scope", "made", "until"
            ));
            for token in answer["tokens"].as_array().into_iter().flatten() {
                say::result(format_args!(
                    "{:<12} {:<20} {:<8} {:>12} {:>12}  {}",
                    word(token, "id"),
                    word(token, "name"),
                    word(token, "scope"),
                    word(token, "created_unix_s"),
                    word(token, "expires_unix_s"),
                    word(token, "created_by"),
                ));
            }
        }
    }
    Ok(Exit::Done)
}

/// `dwcpctl audit`
pub async fn audit(api: &Api, limit: u16, as_json: bool) -> Result<Exit, ApiError> {
    let path = format!("/v1/audit?limit={limit}");
    let answer = api.json(Method::GET, &path, None).await?;
    if as_json {
        say::result(format_args!("{answer}"));
        return Ok(Exit::Done);
    }
    for entry in answer["entries"].as_array().into_iter().flatten() {
        say::result(format_args!(
            "{} {} {} {} by {} with {}  {}",
            word(entry, "at_unix_ms"),
            word(entry, "status"),
            word(entry, "method"),
            word(entry, "path"),
            word(entry, "by"),
            word(entry, "token_name"),
            printable(&entry["request"].to_string()),
        ));
    }
    Ok(Exit::Done)
}
