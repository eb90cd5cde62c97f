//! The kill switch under load: a guest that never converges is being migrated, and v1 is forced again and
//! again by REST. In: how many switches. Out: from the moment before the client connects to the first v1 batch,
//! and how many v3 batches left after it. Promises: the moments are the data plane's own, on the same
//! clock as ours; at the end the migration is cancelled and the guest must run at the source, every byte
//! of its memory right.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

use super::endless::{Endless, PATIENCE};
use crate::row::{Row, percentile};

const SWITCHES: usize = 100;
/// How long v1 stays forced after its first batch, so that a late v3 batch would be seen.
const HOLD: Duration = Duration::from_millis(300);
/// v3 batches that must have left before v1 is forced again.
const BATCHES_AGAIN: u64 = 8;
/// Longer than this from the switch to the first v1 batch is told as it happens.
const SLOW_NS: u64 = 10_000_000;

fn line() -> Shape {
    Shape::new(200.0, 5.0, 0.0)
}

/// One switch, milliseconds.
struct Sample {
    from_request_ms: f64,
    from_throw_ms: f64,
    late_v3_batches: u64,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let link = WanLink::start(&a, &b, LinkConfig::symmetric(line()))?;
    let management = Cable::management(&a, &b, 1)?;
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(4 << 20)?;
    }
    let scene = Endless::begin([&a, &b], &link, &management)?;
    scene.wait("v3 batches", |view| {
        view["version"] == "v3" && view["bytes"]["hypervisor"].as_u64() > Some(8 << 20)
    })?;
    let mut samples = Vec::new();
    for number in 0..runs.unwrap_or(SWITCHES) {
        // At no fixed moment of what the planes do in turns.
        std::thread::sleep(Duration::from_millis(number as u64 * 17 % 97));
        let sample = switch(&scene).with_context(|| format!("switch {}", number + 1))?;
        samples.push(sample);
    }
    let verdict = scene.end()?;
    Ok(rows(&samples, &verdict))
}

fn rows(samples: &[Sample], verdict: &str) -> Vec<Row> {
    let pick = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
    let from_request = pick(|sample| sample.from_request_ms);
    let from_throw = pick(|sample| sample.from_throw_ms);
    let late: Vec<f64> = pick(|sample| sample.late_v3_batches as f64);
    let mut rows = Vec::new();
    for (what, taken) in [("request", &from_request), ("switch word", &from_throw)] {
        for (word, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
            let name = format!("rollback, {what} to first v1 batch, {word}");
            let mut row = Row::new(&name, "ms", taken, &[]);
            row.ours = percentile(taken, percent).unwrap_or(f64::NAN);
            rows.push(row);
        }
    }
    let mut after = Row::new(
        "rollback, v3 batches after the first v1 batch",
        "batches",
        &late,
        &[],
    );
    after.ours = late.iter().sum();
    rows.push(after.noted(format!(
        "over all switches; guest at the source at the end: {verdict}"
    )));
    rows
}

/// When the request began.
fn force(scene: &Endless<'_>, on: bool) -> anyhow::Result<u64> {
    let body = json!({ "force_v1": on });
    let mut began_ns = 0;
    let path = "/v1/feature-flags/force-v1";
    let (status, answer) = scene.a.api_timed("POST", path, Some(&body), || {
        began_ns = dwcp_api::monotonic_ns();
    })?;
    if status != 200 || answer["applied"] != true {
        bail!("the switch was not applied: {status} {answer}");
    }
    Ok(began_ns)
}

fn v3_batches(scene: &Endless<'_>) -> anyhow::Result<u64> {
    let (status, answer) = scene.a.api("GET", "/v1/perf/counters", None)?;
    ensure!(status == 200, "{status} {answer}");
    let workers = answer["workers"].as_array().context("no workers")?;
    Ok(workers
        .iter()
        .filter_map(|w| w["counters"]["batches_v3_total"].as_u64())
        .sum())
}

fn switch(scene: &Endless<'_>) -> anyhow::Result<Sample> {
    let asked_ns = force(scene, true)?;
    let moment = |view: &Value, name: &str| view["rollback"][name].as_u64().unwrap_or(0);
    let view = scene.wait("a v1 batch", |view| {
        moment(view, "thrown_ns") >= asked_ns && moment(view, "first_v1_batch_ns") > 0
    })?;
    let counted = v3_batches(scene)?;
    std::thread::sleep(HOLD);
    let mut late_v3_batches = v3_batches(scene)? - counted;
    let later = scene.wait("v1 batches", |view| view["version"] == "v1")?;
    let (thrown_ns, first_ns) = (
        moment(&view, "thrown_ns"),
        moment(&view, "first_v1_batch_ns"),
    );
    let last_v3_ns = moment(&view, "last_v3_batch_ns");
    if first_ns.saturating_sub(thrown_ns) > SLOW_NS {
        eprintln!(
            "slow: {:.1} ms to the first v1 batch; the last v3 batch left {:.1} ms before the switch, {} bytes \
             held, {} rounds",
            first_ns.saturating_sub(thrown_ns) as f64 / 1e6,
            (thrown_ns as f64 - last_v3_ns as f64) / 1e6,
            view["held_bytes"],
            view["rounds"],
        );
    }
    // One that left between the first v1 batch and our first count is not in the counts.
    late_v3_batches +=
        u64::from(late_v3_batches == 0 && moment(&later, "last_v3_batch_ns") > first_ns);
    force(scene, false)?;
    let before = v3_batches(scene)?;
    let again = poll_until(PATIENCE, || match v3_batches(scene) {
        Ok(now) if now >= before + BATCHES_AGAIN => Some(Ok(())),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    again.context("v3 batches never came again")??;
    let ms = |from_ns: u64| first_ns.saturating_sub(from_ns) as f64 / 1e6;
    Ok(Sample {
        from_request_ms: ms(asked_ns),
        from_throw_ms: ms(thrown_ns),
        late_v3_batches,
    })
}
