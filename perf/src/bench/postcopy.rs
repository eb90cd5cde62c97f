//! How long a guest waits for its pages in post-copy over a thin and far line, through two data planes and by
//! the hypervisor alone. In: how many pairs. Out: the time that its processor stood still for pages, by
//! request and in all, the guest's longest gap, and how long both phases took. Promises: both move the same
//! saved guest over the same line, both with the hypervisor's pre-empt channel, and switch at the same time;
//! the waits are the receiving hypervisor's own measure; the guest checks its memory after each.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig, UNLIMITED_BANDWIDTH};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::ticks::Side;
use serde_json::{Value, json};

use crate::cores::own_core;
use crate::row::Row;

const PAIRS: usize = 5;
const LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is watched after the end.
const AFTER: Duration = Duration::from_millis(1_000);
const STEP: Duration = Duration::from_millis(5);
const PORT: u16 = 4444;
const GUEST_MB: u32 = 256;
const PAGES_PER_S: u32 = 500;
/// The hypervisor sends for so long before it switches.
const BEFORE_MS: u64 = 500;
const RATE_MBIT: f64 = 200.0;
const DELAY_MS: f64 = 40.0;

/// One migration.
#[derive(Clone, Copy)]
struct Sample {
    wait_per_request_ms: f64,
    waited_ms: f64,
    requests: f64,
    gap_ms: f64,
    total_ms: f64,
    postcopy_ms: f64,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let link = LinkConfig::symmetric(Shape::new(RATE_MBIT, DELAY_MS, 0.0));
    let buffers = link.a_to_b.round_trip_bytes().saturating_mul(2);
    let link = WanLink::start(&a, &b, link)?;
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(buffers.max(4 << 20))?;
    }
    let management = Cable::management(&a, &b, 1)?;
    let node = |index, host, name, data, management| {
        let mut config = NodeConfig::new(name, data, management);
        config.dataplane_extra = own_core(index);
        Node::start(host, config)
    };
    let nodes = [
        node(0, &a, "a", link.a, management.a)?,
        node(1, &b, "b", link.b, management.b)?,
    ];
    let (mut ours, mut direct) = (Vec::new(), Vec::new());
    for pair in 0..runs.unwrap_or(PAIRS) {
        let order = if pair % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        };
        for through_planes in order {
            let uri = format!("tcp:{}:{PORT}", link.b);
            let nodes = through_planes.then_some(&nodes);
            let sample = migrate([&a, &b], nodes, &uri)?;
            eprintln!(
                "{}: {:.0} requests, {:.0} ms waited, {:.1} ms each; {:.0} ms in post-copy, {:.0} ms in all, gap {:.0} ms",
                if through_planes { "planes" } else { "direct" },
                sample.requests,
                sample.waited_ms,
                sample.wait_per_request_ms,
                sample.postcopy_ms,
                sample.total_ms,
                sample.gap_ms,
            );
            if through_planes {
                ours.push(sample);
            } else {
                direct.push(sample);
            }
        }
    }
    type Pick = fn(&Sample) -> f64;
    let row = |what: &str, unit, of: Pick| {
        let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<f64>>();
        let name = format!("postcopy, {what}");
        Row::new(&name, unit, &values(&ours), &values(&direct))
    };
    Ok(vec![
        row("wait for a page", "ms", |sample| sample.wait_per_request_ms),
        row("waits in all", "ms", |sample| sample.waited_ms),
        row("pages asked for", "", |sample| sample.requests),
        row("guest gap", "ms", |sample| sample.gap_ms),
        row("guest there, memory not", "ms", |sample| sample.postcopy_ms),
        row("total time", "ms", |sample| sample.total_ms),
    ])
}

/// Moves the guest once, through the planes of `nodes` or, without them, over `uri`.
fn migrate(hosts: [&Host; 2], nodes: Option<&[Node<'_>; 2]>, uri: &str) -> anyhow::Result<Sample> {
    let mut source = Guest::saved(Some(hosts[0]), GuestConfig::sized(GUEST_MB))?;
    let mut destination =
        Guest::start_incoming(Some(hosts[1]), &source, QemuVersion::V10, Arrival::Run)?;
    source.set_rate(PAGES_PER_S)?;
    destination
        .qmp()
        .set_capabilities(&[("postcopy-blocktime", true)])?;
    if nodes.is_none() {
        for guest in [&mut source, &mut destination] {
            guest.qmp().set_capabilities(&[
                ("events", true),
                ("return-path", true),
                ("postcopy-ram", true),
                ("postcopy-preempt", true),
            ])?;
            let parameters = json!({ "max-bandwidth": UNLIMITED_BANDWIDTH });
            guest.execute("migrate-set-parameters", parameters)?;
        }
    }
    let began = Instant::now();
    match nodes {
        Some([a, b]) => {
            let body = json!({
                "vm": { "qmp": source.control_monitor() },
                "destination": { "api": b.url(), "qmp": destination.control_monitor() },
                "options": { "postcopy": { "after_ms": BEFORE_MS } },
            });
            let (status, view) = a.api("POST", "/v1/migrations", Some(&body))?;
            ensure!(status == 201, "{status} {view}");
        }
        None => {
            destination.execute("migrate-incoming", json!({ "uri": uri }))?;
            source.execute("migrate", json!({ "uri": uri }))?;
        }
    }
    let (done, switched) = wait(&mut source, began, nodes.is_none())?;
    let total = began.elapsed();
    let target = destination.qmp().query_migrate()?;
    destination.wait_tick()?;
    std::thread::sleep(AFTER);
    let ticks = destination.ticks();
    let last = ticks.last(Side::Destination).map_or(began, |tick| tick.at);
    let gap_ms = ticks.longest_gap_ms(began, last);
    let verdict = destination.verify()?;
    ensure!(verdict.ok, "the guest's memory is wrong: {}", verdict.line);
    ensure!(
        destination.ticks().doubled() == 0,
        "the guest ran on both sides"
    );
    let waited_ms = target["postcopy-vcpu-blocktime"][0]
        .as_f64()
        .with_context(|| format!("no waits are told: {target}"))?;
    let requests = done["ram"]["postcopy-requests"]
        .as_f64()
        .unwrap_or_default();
    Ok(Sample {
        wait_per_request_ms: waited_ms / requests.max(1.0),
        waited_ms,
        requests,
        gap_ms,
        total_ms: total.as_secs_f64() * 1e3,
        postcopy_ms: (total - switched).as_secs_f64() * 1e3,
    })
}

/// Until the source's hypervisor is done: its figures, and when it switched.
fn wait(source: &mut Guest, began: Instant, switch: bool) -> anyhow::Result<(Value, Duration)> {
    let mut sending = None;
    let mut asked = false;
    let mut switched = None;
    while began.elapsed() < LIMIT {
        let state = source.qmp().query_migrate()?;
        match state["status"].as_str() {
            // Until it has begun it tells of the migration that restored it.
            Some("completed") if switched.is_some() || sending.is_some() => {
                let switched = switched.context("it was over before it switched")?;
                return Ok((state, switched));
            }
            Some("active") => {
                let since = *sending.get_or_insert_with(Instant::now);
                if switch && !asked && since.elapsed() >= Duration::from_millis(BEFORE_MS) {
                    asked = true;
                    source.execute("migrate-start-postcopy", Value::Null)?;
                }
            }
            Some("postcopy-active") => {
                switched.get_or_insert_with(|| began.elapsed());
            }
            Some(word @ ("failed" | "cancelled" | "postcopy-paused")) => {
                bail!("the migration came to {word}: {state}")
            }
            _ => {}
        }
        std::thread::sleep(STEP);
    }
    bail!("no end within {} s", LIMIT.as_secs())
}
