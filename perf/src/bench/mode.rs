//! How soon the mode follows the line: a guest that never converges is being migrated while the line changes again
//! and again. In: how many changes. Out: from the moment before a change to the new mode in force in the data plane.
//! Promises: the moments are on one clock, the data plane's own for the second; at the end the guest's memory is
//! verified.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::watchdog::poll_until;
use serde_json::Value;

use super::endless::{Endless, PATIENCE};
use crate::row::Row;

const CHANGES: usize = 30;
/// How long a line stays as it is once its mode is in force, at least.
const HOLD: Duration = Duration::from_millis(1_500);

/// A line and the mode it is to come to.
struct Line {
    mode: &'static str,
    mbit: f64,
    one_way_ms: f64,
}

const LINES: [Line; 3] = [
    Line {
        mode: "datacenter",
        mbit: 0.0,
        one_way_ms: 0.1,
    },
    Line {
        mode: "internet",
        mbit: 200.0,
        one_way_ms: 40.0,
    },
    Line {
        mode: "hybrid",
        mbit: 0.0,
        one_way_ms: 12.5,
    },
];
/// Each line comes after each other one.
const ORDER: [usize; 6] = [1, 2, 0, 2, 1, 0];

impl Line {
    fn shape(&self) -> Shape {
        Shape::new(self.mbit, self.one_way_ms, 0.0)
    }
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let link = WanLink::start(&a, &b, LinkConfig::symmetric(LINES[0].shape()))?;
    let management = Cable::management(&a, &b, 1)?;
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(4 << 20)?;
    }
    let endless = Endless::begin([&a, &b], &link, &management)?;
    let peer = link.b.to_string();
    let (mut taken, mut at, mut strays) = (Vec::new(), 0, Vec::new());
    let mut since_ns = wait(&endless, &peer, LINES[0].mode)?;
    for number in 0..runs.unwrap_or(CHANGES) {
        // At no fixed moment of what the planes do in turns.
        sleep(HOLD + Duration::from_millis(number as u64 * 37 % 211));
        let to = ORDER[number % ORDER.len()];
        let (from, line) = (&LINES[at], &LINES[to]);
        let steady_ns = wait(&endless, &peer, from.mode)?;
        if steady_ns != since_ns {
            strays.push(format!("{}: {}", from.mode, last_reasons(&endless, &peer)?));
        }
        let changed_ns = dwcp_api::monotonic_ns();
        link.set(line.shape(), line.shape());
        since_ns = wait(&endless, &peer, line.mode).with_context(|| {
            format!("change {}, from {} to {}", number + 1, from.mode, line.mode)
        })?;
        ensure!(since_ns > changed_ns, "{} was in force before", line.mode);
        let took_ms = (since_ns - changed_ns) as f64 / 1e6;
        let why = last_reasons(&endless, &peer)?;
        eprintln!("{} to {}: {took_ms:.0} ms: {why}", from.mode, line.mode);
        taken.push((at, to, took_ms));
        at = to;
    }
    let verdict = endless.end()?;
    for stray in &strays {
        eprintln!("left without a change of the line: {stray}");
    }
    let mut rows = rows(&taken, &verdict);
    let strays = vec![strays.len() as f64];
    rows.push(Row::new(
        "mode, changes without one of the line",
        "changes",
        &strays,
        &[],
    ));
    Ok(rows)
}

/// Waits until the session is in this mode, and gives since when.
fn wait(endless: &Endless<'_>, peer: &str, mode: &str) -> anyhow::Result<u64> {
    let path = format!("/v1/modes/{peer}");
    let mut last = Value::Null;
    let found = poll_until(PATIENCE, || {
        let (_, view) = endless.a.api("GET", &path, None).ok()?;
        let session = view["sessions"][0].clone();
        last = view;
        if session["mode"] == mode {
            return session["since_ns"].as_u64().map(Ok);
        }
        // Without a migration under way no mode comes.
        endless.view().err().map(Err)
    });
    found.with_context(|| format!("the mode {mode} never came: {last:#}"))?
}

/// Why the last changes came.
fn last_reasons(endless: &Endless<'_>, peer: &str) -> anyhow::Result<String> {
    let (_, view) = endless.a.api("GET", &format!("/v1/modes/{peer}"), None)?;
    let changes = view["changes"].as_array().into_iter().flatten();
    let words = |change: &Value| format!("{} ({})", change["mode"], change["reason"]);
    let last: Vec<String> = changes.take(2).map(words).collect();
    Ok(last.join(" after "))
}

fn rows(taken: &[(usize, usize, f64)], verdict: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (from, to) in (0..LINES.len()).flat_map(|from| (0..LINES.len()).map(move |to| (from, to))) {
        let of = |(f, t, ms): &(usize, usize, f64)| (*f == from && *t == to).then_some(*ms);
        let samples: Vec<f64> = taken.iter().filter_map(of).collect();
        if !samples.is_empty() {
            let name = format!("mode, from {} to {}", LINES[from].mode, LINES[to].mode);
            rows.push(Row::new(&name, "ms", &samples, &[]));
        }
    }
    let all: Vec<f64> = taken.iter().map(|(_, _, ms)| *ms).collect();
    let all = Row::new("mode, every change", "ms", &all, &[]);
    rows.push(all.noted(format!("guest at the source at the end: {verdict}")));
    rows
}
