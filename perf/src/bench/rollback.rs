//! The kill switch under load: a guest that never converges is being migrated, and v1 is forced again and
//! again by REST. In: how many switches. Out: from the moment before the request to the first v1 batch,
//! and how many v3 batches left after it. Promises: the moments are the data plane's own, on the same
//! clock as ours; at the end the migration is cancelled and the guest must run at the source, every byte
//! of its memory right.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

use crate::row::{Row, percentile};

const SWITCHES: usize = 100;
/// How long anything may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long v1 stays forced after its first batch, so that a late v3 batch would be seen.
const HOLD: Duration = Duration::from_millis(300);
/// v3 batches that must have left before v1 is forced again.
const BATCHES_AGAIN: u64 = 8;
/// More than the line carries, so that the guest never converges.
const DIRTY_PAGES_PER_S: u32 = 100_000;
/// Spread widely, so that no round is short.
const HOT_PAGES: u32 = 40_000;
const GUEST_MB: u32 = 256;
/// Longer than this from the switch to the first v1 batch is told as it happens.
const SLOW_NS: u64 = 10_000_000;

fn line() -> Shape {
    Shape::new(400.0, 5.0, 0.0)
}

struct Scene<'h> {
    a: Node<'h>,
    b: Node<'h>,
    source: Guest,
    destination: Guest,
    id: String,
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
    let scene = Scene::set([&a, &b], &link, &management)?;
    scene.wait("v3 batches", |view| {
        view["version"] == "v3" && view["bytes"]["hypervisor"].as_u64() > Some(8 << 20)
    })?;
    let mut samples = Vec::new();
    for number in 0..runs.unwrap_or(SWITCHES) {
        // At no fixed moment of what the planes do in turns.
        std::thread::sleep(Duration::from_millis(number as u64 * 17 % 97));
        let sample = scene
            .switch()
            .with_context(|| format!("switch {}", number + 1))?;
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

impl<'h> Scene<'h> {
    fn set([a, b]: [&'h Host; 2], link: &WanLink, management: &Cable) -> anyhow::Result<Self> {
        let config = GuestConfig::sized(GUEST_MB);
        let source = Guest::saved(Some(a), config)?;
        let destination = Guest::start_incoming(Some(b), &source, QemuVersion::V10, Arrival::Run)?;
        let a = Node::start(a, NodeConfig::new("a", link.a, management.a))?;
        let b = Node::start(b, NodeConfig::new("b", link.b, management.b))?;
        source.set_hot_pages(HOT_PAGES)?;
        source.set_rate(DIRTY_PAGES_PER_S)?;
        let body = json!({
            "vm": { "qmp": source.control_monitor() },
            "destination": { "api": b.url(), "qmp": destination.control_monitor() },
            "options": { "downtime_limit_ms": 1 },
        });
        let (status, view) = a.api("POST", "/v1/migrations", Some(&body))?;
        ensure!(status == 201, "the migration was refused: {status} {view}");
        let id = view["id"]
            .as_str()
            .context("a migration without an id")?
            .to_owned();
        let mut scene = Self {
            a,
            b,
            source,
            destination,
            id,
        };
        // No downtime at all: whatever the line carries, the hypervisor goes on iterating.
        scene
            .source
            .execute("migrate-set-parameters", json!({ "downtime-limit": 0 }))?;
        Ok(scene)
    }

    fn view(&self) -> anyhow::Result<Value> {
        let (status, view) = self
            .a
            .api("GET", &format!("/v1/migrations/{}", self.id), None)?;
        ensure!(status == 200, "{status} {view}");
        let state = view["state"].as_str().unwrap_or_default();
        ensure!(
            !["completed", "failed", "cancelled"].contains(&state),
            "the migration ended while it was measured: {view}"
        );
        Ok(view)
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let found = poll_until(PATIENCE, || match self.view() {
            Ok(view) if wanted(&view) => Some(Ok(view)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        found.with_context(|| format!("never came: {what}"))?
    }

    fn force(&self, on: bool) -> anyhow::Result<()> {
        let body = json!({ "force_v1": on });
        let (status, answer) = self
            .a
            .api("POST", "/v1/feature-flags/force-v1", Some(&body))?;
        if status != 200 || answer["applied"] != true {
            bail!("the switch was not applied: {status} {answer}");
        }
        Ok(())
    }

    fn v3_batches(&self) -> anyhow::Result<u64> {
        let (status, answer) = self.a.api("GET", "/v1/perf/counters", None)?;
        ensure!(status == 200, "{status} {answer}");
        let workers = answer["workers"].as_array().context("no workers")?;
        Ok(workers
            .iter()
            .filter_map(|w| w["counters"]["batches_v3_total"].as_u64())
            .sum())
    }

    fn switch(&self) -> anyhow::Result<Sample> {
        let asked_ns = dwcp_api::monotonic_ns();
        self.force(true)?;
        let moment = |view: &Value, name: &str| view["rollback"][name].as_u64().unwrap_or(0);
        let view = self.wait("a v1 batch", |view| {
            moment(view, "thrown_ns") >= asked_ns && moment(view, "first_v1_batch_ns") > 0
        })?;
        let counted = self.v3_batches()?;
        std::thread::sleep(HOLD);
        let mut late_v3_batches = self.v3_batches()? - counted;
        let later = self.wait("v1 batches", |view| view["version"] == "v1")?;
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
        self.force(false)?;
        let before = self.v3_batches()?;
        let again = poll_until(PATIENCE, || match self.v3_batches() {
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

    /// Cancels, and says what became of the guest.
    fn end(mut self) -> anyhow::Result<String> {
        let path = format!("/v1/migrations/{}", self.id);
        let (status, view) = self.a.api("DELETE", &path, None)?;
        ensure!(
            matches!(status, 200 | 202),
            "not cancelled: {status} {view}"
        );
        let runs = poll_until(PATIENCE, || {
            (self.source.qmp().query_status().ok()? == "running").then_some(())
        });
        ensure!(
            runs.is_some(),
            "the guest does not run at the source after the end"
        );
        self.source.wait_tick()?;
        self.source.set_rate(0)?;
        let verdict = self.source.verify()?;
        ensure!(verdict.ok, "the guest's memory is wrong: {}", verdict.line);
        ensure!(
            self.source.ticks().doubled() == 0,
            "the guest ran on both sides"
        );
        ensure!(
            self.destination.process().ended().is_some()
                || self
                    .destination
                    .qmp()
                    .query_status()
                    .is_ok_and(|state| state != "running"),
            "the guest runs at the destination too"
        );
        drop(self.b);
        Ok("runs, memory verified".to_owned())
    }
}
