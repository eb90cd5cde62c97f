//! `dwcpctl perf`: where the data plane's time goes.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use crate::args::Perf;
use crate::client::{Api, ApiError};
use crate::exit::Exit;
use crate::progress::printable;
use crate::rates::Reading;
use crate::say;

const COUNTERS: &str = "/v1/perf/counters";
/// What an answer may take beyond the time of the look itself: names of functions are found after it.
const PATIENCE: Duration = Duration::from_secs(60);
/// To the upper left corner, and clears all below.
const HOME: &str = "\u{1b}[H\u{1b}[J";

/// `dwcpctl perf …`
pub async fn perf(api: &Api, command: Perf, as_json: bool) -> Result<Exit, ApiError> {
    match command {
        Perf::Top { interval, once } => top(api, interval, once, as_json).await,
        Perf::Flamegraph {
            output,
            seconds,
            hz,
            folded,
        } => flamegraph(api, &output, seconds, hz, folded).await,
        Perf::Hardware { seconds } => hardware(api, seconds, as_json).await,
    }
}

async fn read(api: &Api) -> Result<Reading, ApiError> {
    let value = api.json(Method::GET, COUNTERS, None).await?;
    serde_json::from_value(value).map_err(|error| ApiError::Garbled {
        what: format!("GET {COUNTERS}"),
        reason: error.to_string(),
    })
}

async fn top(api: &Api, interval: Duration, once: bool, as_json: bool) -> Result<Exit, ApiError> {
    // On a terminal each table takes the place of the one before.
    let home = if std::io::stdout().is_terminal() && !once && !as_json {
        HOME
    } else {
        ""
    };
    let mut before = read(api).await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
        let now = read(api).await?;
        match now.since(&before) {
            Some(rates) if as_json => {
                let text = serde_json::to_string(&rates).unwrap_or_default();
                say::result(format_args!("{text}"));
            }
            Some(rates) => say::result(format_args!("{home}{}\n", rates.table())),
            None => say::aside(format_args!("the data plane was started again")),
        }
        if once {
            return Ok(Exit::Done);
        }
        before = now;
    }
}

async fn flamegraph(
    api: &Api,
    output: &Path,
    seconds: u64,
    hz: u32,
    folded: bool,
) -> Result<Exit, ApiError> {
    let format = if folded { "folded" } else { "svg" };
    let path = format!("/v1/perf/flamegraph?seconds={seconds}&hz={hz}&format={format}");
    let limit = Duration::from_secs(seconds) + PATIENCE;
    let text = api.text(Method::GET, &path, limit).await?;
    if let Err(error) = std::fs::write(output, &text) {
        say::aside(format_args!(
            "{} cannot be written: {error}\n  next: name another file with -o FILE",
            output.display()
        ));
        return Ok(Exit::Failed);
    }
    say::result(format_args!("{}: {} bytes", output.display(), text.len()));
    Ok(Exit::Done)
}

async fn hardware(api: &Api, seconds: u64, as_json: bool) -> Result<Exit, ApiError> {
    let path = format!("/v1/perf/hardware?seconds={seconds}");
    let value = api.json(Method::GET, &path, None).await?;
    if as_json {
        say::result(format_args!("{value}"));
        return Ok(Exit::Done);
    }
    let threads = value.get("threads").and_then(Value::as_array);
    for thread in threads.into_iter().flatten() {
        let name = thread.get("name").and_then(Value::as_str).unwrap_or("?");
        let counts = thread.get("counts").and_then(Value::as_object);
        let counts: Vec<String> = counts
            .into_iter()
            .flatten()
            .map(|(counter, count)| format!("{} {count}", printable(counter)))
            .collect();
        say::result(format_args!(
            "{:<12} {}",
            printable(name),
            counts.join("  ")
        ));
    }
    let absent = value.get("absent").and_then(Value::as_object);
    for (counter, why) in absent.into_iter().flatten() {
        let why = why.as_str().unwrap_or("?");
        say::result(format_args!(
            "{} absent: {}",
            printable(counter),
            printable(why)
        ));
    }
    Ok(Exit::Done)
}
