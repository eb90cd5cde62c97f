//! `dwcpctl migrate`, `status --watch`, `cancel`: one migration from here to its end.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::args::Migrate;
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::follow::{End, follow};
use crate::progress::{Progress, printable, size};
use crate::say;
use crate::view::Migration;

/// Why this program itself wants the migration to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    None,
    Interrupted,
    TimedOut,
}

/// Starts a migration and, unless it is to be detached, follows it.
pub async fn migrate(api: &Api, args: &Migrate, as_json: bool) -> Result<Exit, ApiError> {
    let mut body = json!({
        "vm": { "qmp": args.vm, "name": args.name },
        "destination": { "api": args.to, "qmp": args.to_qmp },
        "options": {
            "max_version": args.max_version.as_str(),
            "multifd_channels": args.multifd,
            "downtime_limit_ms": args.downtime_limit_ms,
            "bandwidth_limit_bytes_per_s": args.bandwidth_limit,
        },
    });
    // Only what was asked for is said, so that a control plane of an earlier release understands it.
    if let Some(node) = &args.to_node {
        body["destination"]["node"] = json!(node);
    }
    match args.postcopy {
        None => {}
        Some(None) => body["options"]["postcopy"] = json!("after_first_pass"),
        Some(Some(after_ms)) => body["options"]["postcopy"] = json!({ "after_ms": after_ms }),
    }
    if let Some(tenant) = &args.tenant {
        body["options"]["tenant"] = json!(tenant);
    }
    if args.no_auto_recover {
        body["options"]["postcopy_auto_recover"] = json!(false);
    }
    let started = api
        .json(Method::POST, "/v1/migrations", Some(&body))
        .await?;
    let id = started
        .get("id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if args.detach {
        if as_json {
            say::result(format_args!("{started}"));
        } else {
            say::result(format_args!("{id}"));
        }
        return Ok(Exit::Done);
    }
    say::aside(format_args!("migration {id}"));
    attend(api, &id, args.timeout, as_json).await
}

/// Follows a migration of ours: Ctrl-C and the timeout cancel it.
async fn attend(
    api: &Api,
    id: &str,
    limit: Option<Duration>,
    as_json: bool,
) -> Result<Exit, ApiError> {
    let mut progress = Progress::new();
    let (release, mut let_go) = mpsc::channel(1);
    let (wishes, mut wished) = mpsc::channel(1);
    let steering = tokio::spawn(steer(api.clone(), id.to_owned(), limit, release, wishes));
    let end = follow(api, id, &mut progress, &mut |_| (), &mut let_go).await;
    progress.finish();
    steering.abort();
    let mut wish = Wish::None;
    while let Ok(next) = wished.try_recv() {
        wish = next;
    }
    let exit = match end {
        Ok(End::Settled(last)) => {
            let (value, view) = *last;
            report(&value, &view, as_json);
            view.exit()
        }
        Ok(End::LetGo) => {
            say::aside(format_args!(
                "let go; it goes on: dwcpctl status {id} --watch"
            ));
            return Ok(Exit::Interrupted);
        }
        Err(error) => {
            say::aside(format_args!(
                "the migration goes on by itself; ask again: dwcpctl status {id}"
            ));
            return Err(error);
        }
    };
    // Who asked for the end decides the number, if the end is what was asked for.
    Ok(match (exit, wish) {
        (Exit::Cancelled, Wish::Interrupted) => Exit::Interrupted,
        (Exit::Cancelled, Wish::TimedOut) => Exit::TimedOut,
        (exit, _) => exit,
    })
}

/// Turns the first Ctrl-C, or the timeout, into a cancel, and the second Ctrl-C into letting go.
async fn steer(
    api: Api,
    id: String,
    limit: Option<Duration>,
    release: mpsc::Sender<()>,
    wishes: mpsc::Sender<Wish>,
) {
    let timeout = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let (wish, text) = tokio::select! {
        _ = tokio::signal::ctrl_c() => (
            Wish::Interrupted,
            "cancelling, the guest goes on at the source; Ctrl-C again lets the migration go on alone",
        ),
        () = timeout => (Wish::TimedOut, "the time is over; cancelling"),
    };
    say::aside(format_args!("{text}"));
    let _ = wishes.send(wish).await;
    let path = format!("/v1/migrations/{id}");
    let cancel = api.json(Method::DELETE, &path, None);
    tokio::select! {
        answer = cancel => {
            if let Err(error) = answer {
                say::aside(format_args!("not cancelled: {error}"));
            }
            let _ = tokio::signal::ctrl_c().await;
        }
        _ = tokio::signal::ctrl_c() => {}
    }
    let _ = release.send(()).await;
}

/// Follows a migration that somebody else started; Ctrl-C only stops watching.
pub async fn watch(api: &Api, id: &str, as_json: bool) -> Result<Exit, ApiError> {
    let mut progress = Progress::new();
    let (release, mut let_go) = mpsc::channel(1);
    let interrupt = tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        let _ = release.send(()).await;
    });
    let mut print = |value: &Value| {
        if as_json {
            say::result(format_args!("{value}"));
        }
    };
    let end = follow(api, id, &mut progress, &mut print, &mut let_go).await;
    progress.finish();
    interrupt.abort();
    match end? {
        End::Settled(last) => {
            let (value, view) = *last;
            if !as_json {
                report(&value, &view, false);
            }
            Ok(view.exit())
        }
        End::LetGo => Ok(Exit::Interrupted),
    }
}

/// `dwcpctl cancel`
pub async fn cancel(api: &Api, id: &str, as_json: bool) -> Result<Exit, ApiError> {
    let value = api
        .json(Method::DELETE, &format!("/v1/migrations/{id}"), None)
        .await?;
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        let view: Migration = serde_json::from_value(value).unwrap_or_default();
        say::result(format_args!(
            "{}  {}  guest: {}",
            view.id,
            printable(&view.state),
            printable(&view.guest)
        ));
    }
    Ok(Exit::Done)
}

/// `dwcpctl recover`
pub async fn recover(api: &Api, id: &str, detach: bool, as_json: bool) -> Result<Exit, ApiError> {
    let path = format!("/v1/migrations/{id}/recover");
    let value = api.json(Method::POST, &path, None).await?;
    if !detach {
        return watch(api, id, as_json).await;
    }
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        let view: Migration = serde_json::from_value(value).unwrap_or_default();
        say::result(format_args!(
            "{}  {}  {}",
            view.id,
            printable(&view.state),
            printable(&view.phase)
        ));
    }
    Ok(Exit::Done)
}

/// The result, on standard output; what to do about a failure, on standard error.
pub fn report(value: &Value, view: &Migration, as_json: bool) {
    if as_json {
        say::result(format_args!("{value}"));
    } else {
        let downtime = view
            .downtime_ms
            .map_or_else(String::new, |ms| format!(", downtime {ms} ms"));
        let saved = view.bytes.saved_fraction.map_or_else(String::new, |saved| {
            format!(", saved {:.1} %", saved * 100.0)
        });
        say::result(format_args!(
            "{}  {}  {} → {}: {:.1} s{downtime}, {} from the hypervisor, {} on the wire{saved}{}",
            view.id,
            printable(&view.state),
            printable(view.guest_name()),
            printable(&view.destination.api),
            view.total_ms as f64 / 1_000.0,
            size(view.bytes.hypervisor as f64),
            size(view.bytes.wire as f64),
            view.version
                .as_deref()
                .map_or_else(String::new, |v| format!(", {}", printable(v))),
        ));
    }
    for note in &view.notes {
        say::aside(format_args!("note: {}", printable(note)));
    }
    if let Some(failure) = &view.failure {
        say::aside(format_args!(
            "failed ({}): {}",
            printable(&failure.code),
            printable(&failure.detail)
        ));
        let guest = match view.guest.as_str() {
            "source" => "runs at the source, nothing was lost",
            "destination" => "runs at the destination",
            _ => "is held on both sides until it is known which one has it",
        };
        say::aside(format_args!(
            "  guest: {guest}\n  next: {}",
            printable(&failure.cure)
        ));
    } else if view.state == "postcopy_paused" {
        say::aside(format_args!(
            "paused: the guest is at the destination with part of its memory and waits for the rest ({})\n  next: see that the link and both data planes are up, then: dwcpctl recover {}",
            printable(&view.phase),
            view.id
        ));
    } else if view.state == "undecided" {
        say::aside(format_args!(
            "undecided: the guest is held on both sides until the destination answers\n  next: bring the destination's control plane back, then: dwcpctl status {} --watch",
            view.id
        ));
    }
}
