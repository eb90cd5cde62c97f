//! What watching costs what is watched: whole migrations left alone, scraped ten times a second on both hosts, and
//! traced to a collector on each host. In: how many of each. Out: the guest's gap, the total time and the control
//! planes' processor time of the scraped and of the traced, beside those left alone. Promises: the three take turns,
//! over one line and with the same saved guest; every collector must have been sent something; a guest that did not
//! arrive with every byte of its memory ends the bench.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;
use serde_json::json;

use super::scrape::processor_ns;
use crate::row::Row;

const ROUNDS: usize = 5;
const GUEST_MB: u32 = 192;
const DIRTY_PAGES_PER_S: u32 = 300;
const SCRAPE_EVERY: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(120);
/// Before and behind a migration the guest's ticks are looked at for so long.
const AROUND: Duration = Duration::from_millis(300);
/// Where each traced host's collector listens, in the host's own network.
const COLLECTOR: &str = "127.0.0.1:4318";
/// The control planes' setting, by their environment.
const ENDPOINT_VARIABLE: &str = "DWCP_TRACE_ENDPOINT";

/// Two hosts, the line between them, and their nodes.
struct Pair<'h> {
    hosts: [&'h Host; 2],
    nodes: [Node<'h>; 2],
}

#[derive(Default)]
struct Side {
    gap_ms: Vec<f64>,
    total_ms: Vec<f64>,
    control_ms: Vec<f64>,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let hosts = [
        Host::new("a")?,
        Host::new("b")?,
        Host::new("c")?,
        Host::new("d")?,
    ];
    let [a, b, c, d] = &hosts;
    let line = || LinkConfig::symmetric(Shape::new(400.0, 5.0, 0.0));
    let (plain_link, traced_link) = (WanLink::start(a, b, line())?, WanLink::start(c, d, line())?);
    let plain_cable = Cable::management(a, b, 1)?;
    let traced_cable = Cable::management(c, d, 1)?;
    let mut plain = Pair::start([a, b], &plain_link, &plain_cable, None)?;
    let received = Arc::new(AtomicU64::new(0));
    for host in [c, d] {
        let listener = host.enter(|| TcpListener::bind(COLLECTOR))??;
        collect(listener, received.clone());
    }
    let mut traced = Pair::start(
        [c, d],
        &traced_link,
        &traced_cable,
        Some(&format!("http://{COLLECTOR}")),
    )?;
    let mut sides: [Side; 3] = Default::default();
    for round in 0..=runs.unwrap_or(ROUNDS) {
        let mut thrown_away: [Side; 3] = Default::default();
        // The first round fills caches.
        let [alone, scraped, followed] = if round == 0 {
            &mut thrown_away
        } else {
            &mut sides
        };
        plain.migrate(alone, false)?;
        plain.migrate(scraped, true)?;
        traced.migrate(followed, false)?;
    }
    // Spans leave within some seconds.
    let sent = poll_until(LIMIT, || {
        (received.load(Ordering::Relaxed) > 0).then_some(())
    });
    sent.context("no collector was sent anything")?;
    let [alone, scraped, followed] = &sides;
    let mut rows = Vec::new();
    for (word, side) in [("scraped 10/s", scraped), ("traced", followed)] {
        let row = |what: &str, of: fn(&Side) -> &[f64]| {
            let name = format!("{word}, {what}, against left alone");
            Row::new(&name, "ms", of(side), of(alone))
        };
        rows.push(row("longest gap in the ticks", |side| &side.gap_ms));
        rows.push(row("total time", |side| &side.total_ms));
        rows.push(row("control planes' processor time", |side| {
            &side.control_ms
        }));
    }
    Ok(rows)
}

impl<'h> Pair<'h> {
    fn start(
        hosts: [&'h Host; 2],
        link: &WanLink,
        management: &Cable,
        endpoint: Option<&str>,
    ) -> anyhow::Result<Self> {
        for host in hosts {
            host.set_tcp_buffer_limit(4 << 20)?;
        }
        let start = |host, name, data, control| {
            let mut config = NodeConfig::new(name, data, control);
            let variable = endpoint.map(|it| (ENDPOINT_VARIABLE.to_owned(), it.to_owned()));
            config.controlplane_environment.extend(variable);
            Node::start(host, config)
        };
        let nodes = [
            start(hosts[0], "a", link.a, management.a)?,
            start(hosts[1], "b", link.b, management.b)?,
        ];
        Ok(Self { hosts, nodes })
    }

    fn control_ns(&mut self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for node in &mut self.nodes {
            sum += processor_ns(node.controlplane().id())?;
        }
        Ok(sum)
    }

    fn migrate(&mut self, into: &mut Side, scraped: bool) -> anyhow::Result<()> {
        let source = Guest::saved(Some(self.hosts[0]), GuestConfig::sized(GUEST_MB))?;
        let destination =
            Guest::start_incoming(Some(self.hosts[1]), &source, QemuVersion::V10, Arrival::Run)?;
        source.set_rate(DIRTY_PAGES_PER_S)?;
        source.wait_tick()?;
        let over = AtomicBool::new(false);
        let before_ns = self.control_ns()?;
        let from = Instant::now();
        let nodes = &self.nodes;
        let view = std::thread::scope(|scope| {
            if scraped {
                for node in nodes {
                    let over = &over;
                    scope.spawn(move || {
                        while !over.load(Ordering::Relaxed) {
                            let _ = node.api("GET", "/metrics", None);
                            std::thread::sleep(SCRAPE_EVERY);
                        }
                    });
                }
            }
            let moved = moved(nodes, &source, &destination);
            over.store(true, Ordering::Relaxed);
            moved
        })?;
        std::thread::sleep(AROUND);
        let gap_ms = source.ticks().longest_gap_ms(from, Instant::now());
        let spent_ns = self.control_ns()?.saturating_sub(before_ns);
        let verdict = destination.verify()?;
        ensure!(verdict.ok, "the guest's memory is wrong: {}", verdict.line);
        into.gap_ms.push(gap_ms);
        into.total_ms
            .push(view["total_ms"].as_f64().unwrap_or(f64::NAN));
        into.control_ms.push(spent_ns as f64 / 1e6);
        Ok(())
    }
}

fn moved(
    nodes: &[Node<'_>; 2],
    source: &Guest,
    destination: &Guest,
) -> anyhow::Result<serde_json::Value> {
    let body = json!({
        "vm": { "qmp": source.control_monitor() },
        "destination": { "api": nodes[1].url(), "qmp": destination.control_monitor() },
    });
    let (status, view) = nodes[0].api("POST", "/v1/migrations", Some(&body))?;
    ensure!(status == 201, "the migration was refused: {status} {view}");
    let path = format!("/v1/migrations/{}", view["id"].as_str().unwrap_or_default());
    let deadline = Instant::now() + LIMIT;
    loop {
        // Seldom, for each look costs what is measured.
        std::thread::sleep(Duration::from_millis(500));
        let (_, view) = nodes[0].api("GET", &path, None)?;
        match view["state"].as_str() {
            Some("completed") => return Ok(view),
            Some("failed" | "cancelled") => anyhow::bail!("the migration failed: {view}"),
            _ => ensure!(
                Instant::now() < deadline,
                "the migration does not end: {view}"
            ),
        }
    }
}

/// Takes whatever is posted, and counts its bytes.
fn collect(listener: TcpListener, received: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let received = received.clone();
            std::thread::spawn(move || drop(posts(stream, &received)));
        }
    });
}

fn posts(stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let mut answers = stream.try_clone()?;
    let mut asked = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if asked.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse().unwrap_or(0);
            }
        }
        let read = std::io::copy(&mut asked.by_ref().take(length), &mut std::io::sink())?;
        received.fetch_add(read, Ordering::Relaxed);
        answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}
