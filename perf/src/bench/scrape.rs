//! What a scrape costs a busy node. In: how many. Out: processor time of the control plane for one `/metrics`, while a
//! guest that never converges is moved. Promise: what the control plane does anyhow in the same time is measured in
//! turns with it and taken off.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};

use super::endless::Endless;
use crate::row::Row;

const SCRAPES: usize = 200;
/// A scrape and what it leaves behind are over within this.
const WINDOW: Duration = Duration::from_millis(20);

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let line = Shape::new(400.0, 5.0, 0.0);
    let link = WanLink::start(&a, &b, LinkConfig::symmetric(line))?;
    let management = Cable::management(&a, &b, 1)?;
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(4 << 20)?;
    }
    let mut scene = Endless::begin([&a, &b], &link, &management)?;
    scene.wait("v3 batches", |view| {
        view["version"] == "v3" && view["bytes"]["hypervisor"].as_u64() > Some(8 << 20)
    })?;
    let pid = scene.a.controlplane().id();
    let mut with = Vec::new();
    let mut without = Vec::new();
    for _ in 0..runs.unwrap_or(SCRAPES) {
        let before_ns = processor_ns(pid)?;
        std::thread::sleep(WINDOW);
        let between_ns = processor_ns(pid)?;
        let (status, _) = scene.a.api("GET", "/metrics", None)?;
        ensure!(status == 200, "no metrics: {status}");
        std::thread::sleep(WINDOW);
        let after_ns = processor_ns(pid)?;
        let ms = |from_ns: u64, to_ns: u64| to_ns.saturating_sub(from_ns) as f64 / 1e6;
        without.push(ms(before_ns, between_ns));
        with.push(ms(between_ns, after_ns));
    }
    let verdict = scene.end()?;
    let cost: Vec<f64> = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with - without)
        .collect();
    let row = Row::new("scrape of a busy node, processor time", "ms", &cost, &[]);
    Ok(vec![row.noted(format!(
        "one /metrics, connection included; guest at the source at the end: {verdict}"
    ))])
}

/// Time on a processor of all threads of a process.
pub(super) fn processor_ns(pid: u32) -> anyhow::Result<u64> {
    let mut total_ns = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = std::fs::read_to_string(&path)?;
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        let spent_ns: u64 = first.with_context(|| format!("{}: {text}", path.display()))?;
        total_ns += spent_ns;
    }
    Ok(total_ns)
}
