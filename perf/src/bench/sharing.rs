//! Four guests at once over one thin and far line, from one host to another. In: how often. Out: how evenly
//! they share the line while all of them send, how much of it they use, and each guest's longest gap beside
//! the gap of one that moves alone while the other three run where they are: all that differs is that they move
//! too, not what the machine's cores have to do. Promises: the bytes are the data plane's own counts, read
//! together; each guest is verified where it arrives; one alone and four at once take turns.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::link::{LinkConfig, Shape, WanLink};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::ticks::Side;
use serde_json::{Value, json};

use crate::row::{Row, median};

const RUNS: usize = 3;
const GUESTS: usize = 4;
const GUEST_MB: u32 = 256;
const DIRTY_PAGES_PER_S: u32 = 200;
const RATE_MBIT: f64 = 200.0;
const ONE_WAY_MS: f64 = 40.0;
/// What sockets may hold: twice what the line does.
const SOCKET_BYTES: u64 = 8 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(170);

struct Ground<'h> {
    hosts: [&'h Host; 2],
    link: &'h WanLink,
    nodes: [Node<'h>; 2],
}

struct Moving {
    source: Guest,
    destination: Guest,
    id: String,
    began: Instant,
}

/// The bytes that each had sent at one moment.
type Sent = Vec<u64>;

/// What four at once did while all of them sent.
struct Together {
    /// Part of the bytes of each, an even part being 1.
    parts: Vec<f64>,
    used: f64,
    window_s: f64,
    total_s: f64,
    gaps_ms: Vec<f64>,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let shape = Shape::new(RATE_MBIT, ONE_WAY_MS, 0.0);
    let link = WanLink::start(&a, &b, LinkConfig::symmetric(shape))?;
    let management = Cable::management(&a, &b, 1)?;
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(SOCKET_BYTES)?;
    }
    let node = |host, name, data, management| {
        let mut config = NodeConfig::new(name, data, management);
        config.dataplane_extra = "store_bytes = 67108864\n".to_owned();
        Node::start(host, config)
    };
    let ground = Ground {
        hosts: [&a, &b],
        link: &link,
        nodes: [
            node(&a, "a", link.a, management.a)?,
            node(&b, "b", link.b, management.b)?,
        ],
    };
    let (mut alone_ms, mut together) = (Vec::new(), Vec::new());
    for _ in 0..runs.unwrap_or(RUNS) {
        alone_ms.extend(ground.several(1, GUESTS - 1)?.gaps_ms);
        together.push(ground.several(GUESTS, 0)?);
    }
    Ok(rows(&alone_ms, &together))
}

fn rows(alone_ms: &[f64], together: &[Together]) -> Vec<Row> {
    let of = |pick: fn(&Together) -> f64| together.iter().map(pick).collect::<Vec<f64>>();
    let off = of(|run| {
        let worst = |worst: f64, part: &f64| worst.max((part - 1.0).abs());
        100.0 * run.parts.iter().fold(0.0, worst)
    });
    let jain = of(|run| {
        let (sum, squares) = run.parts.iter().fold((0.0, 0.0), |(sum, squares), part| {
            (sum + part, squares + part * part)
        });
        sum * sum / (run.parts.len() as f64 * squares)
    });
    let gaps: Vec<f64> = together
        .iter()
        .flat_map(|run| run.gaps_ms.iter().copied())
        .collect();
    let growth = median(&gaps).unwrap_or(f64::NAN) - median(alone_ms).unwrap_or(f64::NAN);
    let windows: Vec<String> = together
        .iter()
        .map(|run| format!("{:.1}", run.window_s))
        .collect();
    let parts: Vec<String> = together
        .iter()
        .map(|run| format!("{:.2?}", run.parts))
        .collect();
    vec![
        Row::new(
            "sharing, largest deviation from an even part",
            "%",
            &off,
            &[],
        )
        .noted(format!("parts {}", parts.join(" "))),
        Row::new("sharing, Jain's index", "", &jain, &[]),
        Row::new(
            "sharing, line used while all four send",
            "",
            &of(|run| run.used),
            &[],
        )
        .noted(format!("for {} s", windows.join(", "))),
        Row::new("sharing, all four moved", "s", &of(|run| run.total_s), &[]),
        Row::new(
            "sharing, longest gap of each of four, beside one alone",
            "ms",
            &gaps,
            alone_ms,
        )
        .noted(format!(
            "medians differ by {growth:.0} ms; a round trip is {:.0} ms",
            2.0 * ONE_WAY_MS
        )),
    ]
}

impl Ground<'_> {
    fn guests(&self) -> anyhow::Result<(Guest, Guest)> {
        let [a, b] = self.hosts;
        let source = Guest::saved(Some(a), GuestConfig::sized(GUEST_MB))?;
        let destination = Guest::start_incoming(Some(b), &source, QemuVersion::V10, Arrival::Run)?;
        source.set_rate(DIRTY_PAGES_PER_S)?;
        Ok((source, destination))
    }

    fn begin(&self, source: Guest, destination: Guest) -> anyhow::Result<Moving> {
        let body = json!({
            "vm": { "qmp": source.control_monitor() },
            "destination": { "api": self.nodes[1].url(), "qmp": destination.control_monitor() },
        });
        let began = Instant::now();
        let (status, view) = self.nodes[0].api("POST", "/v1/migrations", Some(&body))?;
        ensure!(status == 201, "the migration was refused: {status} {view}");
        let id = view["id"].as_str().context("a migration without an id")?;
        Ok(Moving {
            id: id.to_owned(),
            source,
            destination,
            began,
        })
    }

    /// Moves so many at once, while others run where they are.
    fn several(&self, count: usize, staying: usize) -> anyhow::Result<Together> {
        let stay = (0..staying)
            .map(|_| self.guests())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let guests = (0..count)
            .map(|_| self.guests())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let start = Instant::now();
        let mut moving = guests
            .into_iter()
            .map(|(source, destination)| self.begin(source, destination))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let looks = self.follow(&moving)?;
        let total_s = start.elapsed().as_secs_f64();
        let mut gaps_ms = Vec::new();
        for one in &mut moving {
            let tick = one.source.ticks().wait_tick(Side::Destination, LIMIT);
            ensure!(tick.is_some(), "the guest says nothing at the destination");
            let gap = one.source.ticks().longest_gap_ms(one.began, Instant::now());
            let verdict = one.destination.verify()?;
            ensure!(verdict.ok, "the guest's memory is wrong: {}", verdict.line);
            ensure!(
                one.source.ticks().doubled() == 0,
                "the guest ran on both sides"
            );
            gaps_ms.push(gap);
        }
        drop(stay);
        let ((from, first, wire_from), (to, last, wire_to)) = (
            looks.first().context("they never all sent")?,
            looks.last().context("they never all sent")?,
        );
        let sent: Vec<f64> = first
            .iter()
            .zip(last)
            .map(|(first, last)| last.saturating_sub(*first) as f64)
            .collect();
        let even = sent.iter().sum::<f64>() / sent.len() as f64;
        let window_s = (*to - *from).as_secs_f64();
        let wire = wire_to.saturating_sub(*wire_from) as f64;
        Ok(Together {
            parts: sent.iter().map(|bytes| bytes / even).collect(),
            used: wire * 8.0 / (RATE_MBIT * 1e6 * window_s),
            window_s,
            total_s,
            gaps_ms,
        })
    }

    /// Follows them to their ends. Gives the looks at which all were sending: when, each one's bytes, the line's.
    fn follow(&self, moving: &[Moving]) -> anyhow::Result<Vec<(Instant, Sent, u64)>> {
        let start = Instant::now();
        let mut looks = Vec::new();
        loop {
            let (status, answer) = self.nodes[0].api("GET", "/v1/migrations", None)?;
            ensure!(status == 200, "{status} {answer}");
            let (now, wire) = (Instant::now(), self.link.traffic()[0].wire_bytes);
            let all = answer["migrations"].as_array().context("no list")?;
            let views = moving
                .iter()
                .map(|one| all.iter().find(|view| view["id"] == one.id.as_str()))
                .collect::<Option<Vec<&Value>>>()
                .context("a migration is not in the list")?;
            if let Some(view) = views
                .iter()
                .find(|view| view["state"] == "failed" || view["state"] == "cancelled")
            {
                bail!("a migration did not complete: {view}");
            }
            let sent: Sent = views
                .iter()
                .map(|view| view["bytes"]["wire"].as_u64().unwrap_or(0))
                .collect();
            let sends = |view: &&Value| view["state"] == "active";
            if views.iter().all(sends) && sent.iter().all(|bytes| *bytes > 0) {
                looks.push((now, sent, wire));
            }
            if views.iter().all(|view| view["state"] == "completed") {
                return Ok(looks);
            }
            ensure!(
                start.elapsed() < LIMIT,
                "they did not end in time: {answer}"
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
