//! What the product costs where it has nothing to save: a migration over a free local link, through two
//! data planes and by the hypervisor alone. In: how many pairs. Out: total time, the guest's gap,
//! downtime, processor time and wire bytes by byte of the hypervisor, for a busy guest and an idle one.
//! Promises: both move the same saved guest over the same cable with the machine's own TCP settings, and
//! guests lie on hugepages that were touched before, for on a machine that is virtual itself a page that
//! was free for a while is fetched from its host at several times the cost of moving it;
//! the guest checks its memory after each; a migration that did not complete ends the bench.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::direct::{MigrationError, MigrationFigures, observe, prepare};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;
use serde_json::json;

use crate::cores::own_core;
use crate::hugepages::{PLANES_MB, Reserved};
use crate::processes::cpu_ms;
use crate::row::Row;

const PAIRS: usize = 5;
const LIMIT: Duration = Duration::from_secs(300);
const DOWNTIME_LIMIT_MS: u32 = 300;
const BUSY_PAGES_PER_S: u32 = 500;
const PORT: u16 = 4444;
/// Guest memory, MiB; another size by this variable of the environment.
const GUEST_MB: u32 = 1024;
/// Lines of each log that a failure shows.
const LOG_LINES: usize = 20;
const GUEST_MB_VARIABLE: &str = "DWCP_PERF_GUEST_MB";

struct Ground<'h> {
    hosts: [&'h Host; 2],
    cable: &'h Cable,
    nodes: [Node<'h>; 2],
    /// The four processes of ours.
    planes: Vec<u32>,
    guest: GuestConfig,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Ours,
    Direct,
}

/// One migration.
struct Sample {
    total_ms: f64,
    gap_ms: f64,
    downtime_ms: f64,
    cpu_s_per_gb: f64,
    planes_cpu_s_per_gb: f64,
    wire_share: f64,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let cable = Cable::lan(&a, &b, 1)?;
    let management = Cable::management(&a, &b, 1)?;
    let memory_mb = match std::env::var(GUEST_MB_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{GUEST_MB_VARIABLE}={text}: MiB"))?,
        Err(_) => GUEST_MB,
    };
    let _reserved = Reserved::hugepages(2 * memory_mb + PLANES_MB)?;
    let mut nodes = [
        Node::start(&a, node("a", &cable, &management, 0))?,
        Node::start(&b, node("b", &cable, &management, 1))?,
    ];
    let planes = nodes
        .iter_mut()
        .flat_map(|node| [node.dataplane().id(), node.controlplane().id()])
        .collect();
    let guest = GuestConfig {
        hugepages: true,
        ..GuestConfig::sized(memory_mb)
    };
    let ground = Ground {
        hosts: [&a, &b],
        cable: &cable,
        nodes,
        planes,
        guest,
    };
    let mut rows = Vec::new();
    for (word, pages_per_s) in [("busy", BUSY_PAGES_PER_S), ("idle", 0)] {
        let (mut ours, mut direct) = (Vec::new(), Vec::new());
        for pair in 0..runs.unwrap_or(PAIRS) {
            let order = if pair % 2 == 0 {
                [Way::Ours, Way::Direct]
            } else {
                [Way::Direct, Way::Ours]
            };
            for way in order {
                let sample = ground.migrate(way, pages_per_s)?;
                match way {
                    Way::Ours => ours.push(sample),
                    Way::Direct => direct.push(sample),
                }
            }
        }
        rows.extend(figures(word, &ours, &direct));
    }
    Ok(rows)
}

fn node(name: &str, cable: &Cable, management: &Cable, index: usize) -> NodeConfig {
    let addresses = [(cable.a, management.a), (cable.b, management.b)];
    let (data, control) = addresses[index.min(1)];
    let mut config = NodeConfig::new(name, data, control);
    config.dataplane_extra = own_core(index);
    config
}

fn figures(word: &str, ours: &[Sample], direct: &[Sample]) -> Vec<Row> {
    type Pick = fn(&Sample) -> f64;
    let row = |what: &str, unit, of: Pick| {
        let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<f64>>();
        Row::new(
            &format!("inpath {word}, {what}"),
            unit,
            &values(ours),
            &values(direct),
        )
    };
    let planes: Vec<f64> = ours
        .iter()
        .map(|sample| sample.planes_cpu_s_per_gb)
        .collect();
    let mut rows = vec![
        row("total time", "ms", |sample| sample.total_ms),
        row("guest gap", "ms", |sample| sample.gap_ms),
        row("downtime", "ms", |sample| sample.downtime_ms),
        row("processor time", "s/GB", |sample| sample.cpu_s_per_gb),
        Row::new(
            &format!("inpath {word}, of it our planes"),
            "s/GB",
            &planes,
            &[],
        ),
        row("wire bytes", "B/B", |sample| sample.wire_share),
    ];
    let gap = &rows[1];
    let more = gap
        .reference
        .map_or(f64::NAN, |reference| gap.ours - reference);
    rows[1] = gap
        .clone()
        .noted(format!("{more:+.1} ms against the hypervisor alone"));
    rows
}

impl Ground<'_> {
    fn migrate(&self, way: Way, pages_per_s: u32) -> anyhow::Result<Sample> {
        let [a, b] = self.hosts;
        let mut source = Guest::saved(Some(a), self.guest)?;
        let mut destination =
            Guest::start_incoming(Some(b), &source, QemuVersion::V10, Arrival::Run)?;
        source.set_rate(pages_per_s)?;
        let mut watched = vec![source.process().id(), destination.process().id()];
        if matches!(way, Way::Ours) {
            watched.extend(&self.planes);
        }
        // Asked for at the start and at the very end, which is when processor time is wanted too.
        let moments = Cell::new([(0, 0); 2]);
        let wire_bytes = || {
            let [_, before] = moments.get();
            moments.set([before, (cpu_ms(&watched), cpu_ms(&self.planes))]);
            self.cable
                .bytes(a)
                .map_or(0, |(sent, received)| sent + received)
        };
        let done = match way {
            Way::Direct => {
                prepare(&mut source, &mut destination, DOWNTIME_LIMIT_MS, None)?;
                observe(
                    &mut source,
                    &mut destination,
                    &wire_bytes,
                    LIMIT,
                    |source, target| {
                        let uri = format!("tcp:{}:{PORT}", self.cable.b);
                        target.execute("migrate-incoming", json!({ "uri": uri }))?;
                        source.execute("migrate", json!({ "uri": uri }))?;
                        Ok(())
                    },
                )
            }
            Way::Ours => observe(
                &mut source,
                &mut destination,
                &wire_bytes,
                LIMIT,
                |from, to| {
                    self.ask(from, to)
                        .map_err(|error| MigrationError::Start(format!("{error:#}")))
                },
            ),
        }?;
        check(&done).with_context(|| self.last_words(way))?;
        eprintln!(
            "{way:?}, {pages_per_s} pages/s: {} ms in all, gap {:.0} ms, down {} ms, {} rounds, {:.0} MB",
            done.total_ms,
            done.guest_gap_ms,
            done.downtime_ms,
            done.rounds,
            done.hypervisor_bytes as f64 / 1e6,
        );
        let [(all_before, planes_before), (all, planes)] = moments.get();
        let gb = done.hypervisor_bytes as f64 / 1e9;
        let per_gb = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1e3 / gb;
        Ok(Sample {
            total_ms: done.total_ms as f64,
            gap_ms: done.guest_gap_ms,
            downtime_ms: done.downtime_ms as f64,
            cpu_s_per_gb: per_gb(all, all_before),
            planes_cpu_s_per_gb: per_gb(planes, planes_before),
            wire_share: done.wire_bytes as f64 / done.hypervisor_bytes as f64,
        })
    }

    /// What our planes say of their last migration, for a failure.
    fn last_words(&self, way: Way) -> String {
        if matches!(way, Way::Direct) {
            return "the hypervisor alone".to_owned();
        }
        let mut words = String::new();
        for node in &self.nodes {
            if let Ok((_, list)) = node.api("GET", "/v1/migrations", None) {
                words.push_str(&list["migrations"][0].to_string());
            }
            for log in ["dataplane.log", "controlplane.log"] {
                let text = std::fs::read_to_string(node.dir().join(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                words.push_str(&format!("\n--- {log}\n"));
                words.push_str(&lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
            }
        }
        words
    }

    fn ask(&self, source: &mut Guest, destination: &Guest) -> anyhow::Result<()> {
        let [a, b] = &self.nodes;
        let body = json!({
            "vm": { "qmp": source.control_monitor() },
            "destination": { "api": b.url(), "qmp": destination.control_monitor() },
            "options": { "downtime_limit_ms": DOWNTIME_LIMIT_MS },
        });
        let (status, view) = a.api("POST", "/v1/migrations", Some(&body))?;
        ensure!(status == 201, "{status} {view}");
        // Until the request reached it, the hypervisor tells of the migration that restored it.
        let begun = poll_until(LIMIT, || {
            let state = source.qmp().query_migrate().ok()?;
            matches!(
                state["status"].as_str(),
                Some("setup" | "active" | "device")
            )
            .then_some(())
        });
        begun.context("the hypervisor began no migration")
    }
}

fn check(done: &MigrationFigures) -> anyhow::Result<()> {
    ensure!(
        done.status == "completed",
        "a migration came to {}: {done:?}",
        done.status
    );
    ensure!(
        done.guest_memory_ok,
        "the guest's memory is wrong: {done:?}"
    );
    ensure!(
        done.doubled_ticks == 0,
        "the guest ran on both sides: {done:?}"
    );
    Ok(())
}
