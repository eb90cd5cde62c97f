//! `dwcpctl baseline …`: blocks that this host keeps on disk so that they need not travel.
//!
//! In: images and ids. Out: tables for people, the API's own answers with `--json`. Promises: what takes long
//! is followed, and Ctrl-C stops it without leaving anything; what the control plane says is shown without
//! what could steer a terminal.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::{printable, size};
use crate::say;

/// Between two questions how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// `dwcpctl baseline`
#[derive(Subcommand, Debug)]
pub enum Baseline {
    /// Add a disk image; on every host that has the same image it gets the same id
    Add {
        /// The image on the control plane's host
        image: PathBuf,
        /// Whose it is
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
        /// A name for it [default: the file's name]
        #[arg(long)]
        name: Option<String>,
        /// How it is laid out [default: by its first bytes]
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Do not follow it: print the number of the work
        #[arg(long)]
        detach: bool,
    },
    /// Show them
    List {
        /// Those of one tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Remove one, and the blocks that no other has
    Remove {
        /// Its id
        id: String,
        /// Whose it is
        #[arg(long, value_name = "TENANT", default_value = "default")]
        tenant: String,
    },
    /// Read every block of one, or of all of a tenant; ends with 1 if any is not what it was
    Verify {
        /// Its id
        id: Option<String>,
        /// Whose they are
        #[arg(long, value_name = "TENANT", default_value = "default")]
        tenant: String,
    },
}

/// How an image is laid out.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Format {
    /// Byte for byte
    Raw,
    /// QEMU's own
    Qcow2,
}

/// Does it.
pub async fn baseline(api: &Api, command: Baseline, as_json: bool) -> Result<Exit, ApiError> {
    match command {
        Baseline::Add {
            image,
            tenant,
            name,
            format,
            detach,
        } => {
            let format = format.map(|format| match format {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
            });
            let body = json!({
                "path": absolute(&image)?, "tenant": tenant, "name": name, "format": format,
            });
            let begun = api.json(Method::POST, "/v1/baselines", Some(&body)).await?;
            if detach {
                let number = if as_json { &begun } else { &begun["work"] };
                say::result(format_args!("{number}"));
                return Ok(Exit::Done);
            }
            let (exit, ended) = follow(api, &begun, "adding").await?;
            show(&ended, as_json, || {
                if exit == Exit::Done {
                    let one = &ended["baseline"];
                    say::result(format_args!(
                        "{}  {} blocks, {}",
                        word(&one["id"]),
                        word(&one["blocks"]),
                        bytes(&one["bytes"])
                    ));
                }
            });
            Ok(exit)
        }
        Baseline::List { tenant } => list(api, tenant.as_deref(), as_json).await,
        Baseline::Remove { id, tenant } => {
            let path = format!("/v1/baselines/{}/{}", segment(&tenant), segment(&id));
            let removed = api.json(Method::DELETE, &path, None).await?;
            show(&removed, as_json, || say::result(format_args!("removed")));
            Ok(Exit::Done)
        }
        Baseline::Verify { id, tenant } => verify(api, id, &tenant, as_json).await,
    }
}

async fn verify(
    api: &Api,
    id: Option<String>,
    tenant: &str,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let ids = match id {
        Some(id) => vec![id],
        None => {
            let all = fetch(api, Some(tenant)).await?;
            let all = all["baselines"].as_array().into_iter().flatten();
            all.map(|one| word(&one["id"])).collect()
        }
    };
    let mut worst = Exit::Done;
    for id in ids {
        let path = format!("/v1/baselines/{}/{}/verify", segment(tenant), segment(&id));
        let begun = api.json(Method::POST, &path, None).await?;
        let (exit, ended) = follow(api, &begun, "verifying").await?;
        let damaged = ended["damaged"].as_u64().unwrap_or(0);
        show(&ended, as_json, || {
            if exit == Exit::Done {
                say::result(format_args!(
                    "{id}  {damaged} of {} blocks damaged",
                    word(&ended["baseline"]["blocks"])
                ));
            }
        });
        if damaged > 0 {
            say::aside(format_args!(
                "next: add its image again to put them right; until then they are fetched when they are wanted"
            ));
        }
        if exit != Exit::Done {
            return Ok(exit);
        }
        if damaged > 0 {
            worst = Exit::Failed;
        }
    }
    Ok(worst)
}

/// Waits for a piece of work; Ctrl-C stops it.
async fn follow(api: &Api, begun: &Value, doing: &str) -> Result<(Exit, Value), ApiError> {
    let path = format!("/v1/baseline-work/{}", word(&begun["work"]));
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        // No colours, so that NO_COLOR holds by itself.
        if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {percent:>3} %  {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    });
    let mut said = Instant::now();
    let mut interrupted = false;
    let ended = loop {
        let view = api.json(Method::GET, &path, None).await?;
        if matches!(view["state"].as_str(), Some("done" | "failed") | None) {
            break view;
        }
        let amounts = ["bytes_done", "bytes_total"].map(|key| view[key].as_u64().unwrap_or(0));
        let text = format!(
            "{doing}  {} of {}",
            bytes(&view["bytes_done"]),
            bytes(&view["bytes_total"])
        );
        match &bar {
            Some(bar) => {
                bar.set_length(amounts[1]);
                bar.set_position(amounts[0]);
                bar.set_message(text);
            }
            None if said.elapsed() >= LINE_EVERY => {
                said = Instant::now();
                say::aside(format_args!("{text}"));
            }
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                api.json(Method::DELETE, &path, None).await?;
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if ended["state"] == "done" {
        return Ok((Exit::Done, ended));
    }
    say::aside(format_args!("dwcpctl: {}", word(&ended["error"])));
    let exit = if interrupted {
        Exit::Interrupted
    } else {
        Exit::Failed
    };
    Ok((exit, ended))
}

async fn fetch(api: &Api, tenant: Option<&str>) -> Result<Value, ApiError> {
    let query = tenant.map_or_else(String::new, |name| format!("?tenant={}", segment(name)));
    let path = format!("/v1/baselines{query}");
    api.json(Method::GET, &path, None).await
}

async fn list(api: &Api, tenant: Option<&str>, as_json: bool) -> Result<Exit, ApiError> {
    let value = fetch(api, tenant).await?;
    show(&value, as_json, || {
        say::result(format_args!(
            "{:<64} {:<12} {:<9} {:>9} {:>9} name",
            "id", "tenant", "kind", "blocks", "size"
        ));
        for one in value["baselines"].as_array().into_iter().flatten() {
            say::result(format_args!(
                "{:<64} {:<12} {:<9} {:>9} {:>9} {}",
                word(&one["id"]),
                word(&one["tenant"]),
                word(&one["kind"]),
                word(&one["blocks"]),
                bytes(&one["bytes"]),
                word(&one["name"]),
            ));
        }
        say::aside(format_args!(
            "{} of {} on disk",
            bytes(&value["disk_bytes"]),
            bytes(&value["max_bytes"])
        ));
    });
    Ok(Exit::Done)
}

fn absolute(path: &Path) -> Result<String, ApiError> {
    let unreadable = |reason: String| ApiError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let absolute = std::path::absolute(path).map_err(|error| unreadable(error.to_string()))?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| unreadable("its name is not UTF-8".to_owned()))
}

/// A word as part of a path: what is none of a tenant's or an id's characters is kept out of it.
fn segment(text: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    text.chars()
        .map(|c| if plain(&c) { c } else { '_' })
        .collect()
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

fn bytes(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_changes_the_route() {
        assert_eq!(segment("team-a_1.x"), "team-a_1.x");
        assert_eq!(segment("../a?b/c d"), ".._a_b_c_d");
    }
}
