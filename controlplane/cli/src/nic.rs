//! `dwcpctl nic …`: the NICs of one host, and the profile that one of them is given to.
//!
//! In: a profile's file or a PCI address. Out: tables and differences for people, the API's own answers
//! with `--json`. Promise: what the control plane says is shown without what could steer a terminal.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::say;

/// `dwcpctl nic`
#[derive(Subcommand, Debug)]
pub enum Nic {
    /// Show them
    List,
    /// Show what a profile would change
    Plan {
        /// The profile, a TOML file
        profile: PathBuf,
    },
    /// Change it; if a change fails, everything is put back
    Apply {
        /// The profile, a TOML file
        profile: PathBuf,
        /// Only if it is still this plan
        #[arg(long, value_name = "ID")]
        plan: Option<String>,
    },
    /// Compare a NIC with a profile; ends with 1 if they differ
    Verify {
        /// The profile, a TOML file
        profile: PathBuf,
    },
    /// Put a NIC back as it was before its plan
    Revert {
        /// Its PCI address, for example 0000:3b:00.0
        nic: String,
    },
}

/// Does it.
pub async fn nic(api: &Api, command: Nic, as_json: bool) -> Result<Exit, ApiError> {
    match command {
        Nic::List => list(api, as_json).await,
        Nic::Plan { profile } => {
            let body = json!({ "profile": read(&profile)? });
            let plan = api.json(Method::POST, "/v1/nics/plan", Some(&body)).await?;
            show(&plan, as_json, || difference(&plan));
            Ok(Exit::Done)
        }
        Nic::Apply { profile, plan } => {
            let mut body = json!({ "profile": read(&profile)? });
            if let Some(plan) = plan {
                body["plan"] = plan.into();
            }
            let plan = api
                .json(Method::POST, "/v1/nics/apply", Some(&body))
                .await?;
            show(&plan, as_json, || {
                difference(&plan);
                say::result(format_args!("applied"));
            });
            Ok(Exit::Done)
        }
        Nic::Verify { profile } => {
            let body = json!({ "profile": read(&profile)? });
            let verified = api
                .json(Method::POST, "/v1/nics/verify", Some(&body))
                .await?;
            let holds = verified["holds"] == Value::Bool(true);
            show(&verified, as_json, || {
                difference(&verified["plan"]);
                say::result(format_args!(
                    "{}",
                    if holds {
                        "as the profile wants it"
                    } else {
                        "not as the profile wants it"
                    }
                ));
            });
            Ok(if holds { Exit::Done } else { Exit::Failed })
        }
        Nic::Revert { nic } => {
            let body = json!({ "nic": nic });
            let reverted = api
                .json(Method::POST, "/v1/nics/revert", Some(&body))
                .await?;
            show(&reverted, as_json, || {
                for setting in texts(&reverted["restored"]) {
                    say::result(format_args!("  {setting}: as it was"));
                }
                let by_restart = reverted["by_restart"] == Value::Bool(true);
                say::result(format_args!(
                    "{}",
                    if by_restart {
                        "the restart of the machine had put everything back"
                    } else {
                        "reverted"
                    }
                ));
            });
            Ok(Exit::Done)
        }
    }
}

fn read(path: &Path) -> Result<String, ApiError> {
    std::fs::read_to_string(path).map_err(|error| ApiError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn show(value: &Value, as_json: bool, for_people: impl FnOnce()) {
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        for_people();
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(word).collect()
}

/// A plan's lines, below each other.
fn difference(plan: &Value) {
    let (id, nic) = (word(&plan["id"]), word(&plan["nic"]));
    say::result(format_args!("plan {id} for NIC {nic}"));
    let lines = plan["lines"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for line in lines {
        let [setting, from, to] = ["setting", "from", "to"].map(|key| word(&line[key]));
        say::result(format_args!("  {setting}: {from} -> {to}"));
        if let Some(cure) = line["needs_reboot"].as_str() {
            say::result(format_args!("    needs reboot: {}", printable(cure)));
        }
    }
    if lines.is_empty() {
        say::result(format_args!("  nothing to change"));
    }
    for note in texts(&plan["notes"]) {
        say::aside(format_args!("note: {note}"));
    }
}

async fn list(api: &Api, as_json: bool) -> Result<Exit, ApiError> {
    let value = api.json(Method::GET, "/v1/nics", None).await?;
    show(&value, as_json, || {
        say::result(format_args!(
            "{:<12} {:<15} {:<11} {:>4} {:>7} {:>5} {:>6} {:>6} {:<14} state",
            "pci", "interface", "driver", "node", "mbit/s", "mtu", "queues", "vfs", "rdma"
        ));
        for nic in value["nics"].as_array().into_iter().flatten() {
            row(nic);
        }
    });
    Ok(Exit::Done)
}

fn row(nic: &Value) {
    let none = [Value::Null];
    let interfaces = match nic["interfaces"].as_array() {
        Some(interfaces) if !interfaces.is_empty() => interfaces.as_slice(),
        _ => &none[..],
    };
    let vfs = match &nic["sriov"] {
        Value::Null => "-".to_owned(),
        sriov => format!("{}/{}", sriov["vfs"], sriov["vfs_max"]),
    };
    let rdma = match texts(&nic["rdma"]) {
        names if names.is_empty() => "-".to_owned(),
        names => names.join(","),
    };
    let state = match (&nic["plan"], &nic["guarded"]) {
        (Value::Null, Value::Null) => "free".to_owned(),
        (Value::Null, _) => "needed by the host".to_owned(),
        (plan, _) => format!("plan {} {}", word(&plan["plan"]), word(&plan["state"])),
    };
    for interface in interfaces {
        let columns = ["name", "speed_mbps", "mtu", "rx_queues"].map(|key| word(&interface[key]));
        let [name, speed, mtu, queues] = columns;
        say::result(format_args!(
            "{:<12} {name:<15} {:<11} {:>4} {speed:>7} {mtu:>5} {queues:>6} {vfs:>6} {rdma:<14} {state}",
            word(&nic["pci"]),
            word(&nic["driver"]),
            word(&nic["numa_node"]),
        ));
    }
}
