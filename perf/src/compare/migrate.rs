//! One migration, measured. In: a guest, a line, a way. Out: a [`Sample`], or why there is none. Promises:
//! hosts, line, planes and both hypervisors are new, so nothing is learnt from one run for the next; the
//! guest is the saved one, and was seen at work at the source before and at the destination after; a guest
//! that is not well afterwards is no sample.
//!
//! Time runs from the command to migrate, before either side listens, to the moment when the source's
//! hypervisor has completed and the guest runs at the destination. Bytes are those of the line in that time,
//! both ways. Processor time is that of both hypervisors, the guest's own work in it, and of the four
//! processes of the product.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::debian::{DebianGuest, WORK_LIMIT, goes_on};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::pki::Authority;
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{DATA_PORT, Node, NodeConfig};
use dwcp_lab::ticks::Side;
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

use super::baselines::Shelf;
use super::configs::{Config, DOWNTIME_LIMIT_MS, prepare};
use super::links::{Line, Link};
use super::usage;
use crate::cores::own_core;
use crate::processes::cpu_ms;

/// When to give up.
pub(super) const LIMIT: Duration = Duration::from_secs(300);
/// What a restored guest is given to get back to its work.
const SETTLE: Duration = Duration::from_secs(2);
/// What connections are given to be made and to become warm.
const POOL_FILLS: Duration = Duration::from_secs(5);
/// How long the guest is watched after the switchover.
const AFTER: Duration = Duration::from_millis(1_500);
/// How often both hypervisors are asked; the resolution of the total time.
const STEP: Duration = Duration::from_millis(10);
const PORT: u16 = 4444;
/// Of the lab's own guest.
pub(super) const LOAD_MEMORY_MB: u32 = 512;
const LOAD_PAGES_PER_S: u32 = 500;

/// A saved guest.
pub(crate) enum Saved {
    /// The lab's own, whose whole memory checks itself.
    Load,
    /// One with an operating system.
    Debian(DebianGuest),
}

/// One migration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) total_ms: f64,
    /// The source hypervisor's figure.
    pub(super) downtime_ms: f64,
    /// Longest time without a tick of the guest.
    pub(super) gap_ms: f64,
    pub(super) wire_bytes: f64,
    /// Both hypervisors.
    pub(super) qemu_cpu_s: f64,
    /// The product's planes, zero without them.
    pub(super) planes_cpu_s: f64,
    /// Not on a line without a rate.
    pub(super) link_used: Option<f64>,
    /// What the line sent, Mbit/s in each slot of [`usage::SLOT_S`].
    pub(super) timeline: Vec<f64>,
}

/// Whom the command is given to, and who is asked when it failed.
enum Mover<'h> {
    Product {
        nodes: Box<[Node<'h>; 2]>,
        /// Extra connections of both hypervisors.
        multifd: u32,
        id: RefCell<String>,
        /// Its files are looked at while the nodes run.
        _authority: Option<Authority>,
    },
    Hypervisor {
        uri: String,
    },
}

impl Saved {
    /// A running copy, its memory on hugepages that are free or on ordinary pages.
    pub(crate) fn restored(&self, host: Option<&Host>, hugepages: bool) -> anyhow::Result<Guest> {
        match self {
            Self::Load => {
                let config = GuestConfig {
                    hugepages,
                    ..GuestConfig::sized(LOAD_MEMORY_MB)
                };
                let guest = Guest::saved(host, config)?;
                guest.set_rate(LOAD_PAGES_PER_S)?;
                Ok(guest)
            }
            Self::Debian(saved) => Ok(saved.restored(host, hugepages)?),
        }
    }

    /// The guest's work was done right before, and is done right now.
    pub(crate) fn works(&self, guest: &Guest, side: Side, mark: usize) -> anyhow::Result<()> {
        if let Self::Debian(_) = self {
            goes_on(guest.ticks(), side, mark, WORK_LIMIT)?;
        }
        Ok(())
    }
}

/// Moves the guest once, by the product with so many extra connections of both hypervisors. `shelves` is what both
/// hosts hold on disk.
pub(super) fn once(
    saved: &Saved,
    link: Link,
    config: (Config, u32),
    shelves: Option<&[Shelf; 2]>,
) -> anyhow::Result<Sample> {
    once_then(saved, link, config, shelves, &|_| Ok(()))
}

/// The same, and then something else while both nodes still run.
pub(super) fn once_then(
    saved: &Saved,
    link: Link,
    (config, multifd): (Config, u32),
    shelves: Option<&[Shelf; 2]>,
    then: &dyn Fn(&Sample) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let line = Line::lay(link, &a, &b)?;
    let management = Cable::management(&a, &b, 1)?;
    let mut mover = mover((config, multifd), [&a, &b], &line, &management, shelves)?;
    let mut source = saved.restored(Some(&a), true)?;
    let mut destination = Guest::start_incoming(Some(&b), &source, QemuVersion::V10, Arrival::Run)?;
    if !config.is_ours() {
        prepare(config, &mut source, &mut destination)?;
    }
    std::thread::sleep(SETTLE);
    if config == Config::DwcpPool {
        std::thread::sleep(POOL_FILLS);
    }
    saved.works(&source, Side::Source, 0)?;

    let qemus = [source.process().id(), destination.process().id()];
    let planes = mover.planes();
    let cpu = || [cpu_ms(&qemus), cpu_ms(&planes)];
    let (wire_before, cpu_before) = (line.wire_bytes(&a)?, cpu());
    let (began, began_at) = (Instant::now(), SystemTime::now());
    let (moved, record) = usage::watch(&|| line.given_bytes(), began, || {
        mover.start(&mut source, &mut destination)?;
        mover.wait(&mut source, &mut destination)
    });
    let done = moved.with_context(|| mover.words(&source, &destination))?;
    let total = began.elapsed();
    let (wire_after, cpu_after) = (line.wire_bytes(&a)?, cpu());
    let mark = destination.ticks().mark();
    destination.wait_tick()?;
    std::thread::sleep(AFTER);
    let ticks = destination.ticks();
    let last = ticks.last(Side::Destination).map_or(began, |tick| tick.at);
    let gap_ms = ticks.longest_gap_ms(began, last);
    check(saved, &destination, mark)?;

    let stop = stopped(&mut source, began_at).unwrap_or(total);
    let rate = link.rate_bytes_per_s();
    let cpu_s = |index: usize| cpu_after[index].saturating_sub(cpu_before[index]) as f64 / 1e3;
    let sample = Sample {
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: done["downtime"].as_f64().unwrap_or_default(),
        gap_ms,
        wire_bytes: wire_after.saturating_sub(wire_before) as f64,
        qemu_cpu_s: cpu_s(0),
        planes_cpu_s: cpu_s(1),
        link_used: rate.and_then(|rate| usage::link_used(&record, rate, stop)),
        timeline: rate.map_or_else(Vec::new, |rate| usage::timeline(&record, rate)),
    };
    then(&sample)?;
    Ok(sample)
}

fn mover<'h>(
    (config, multifd): (Config, u32),
    hosts: [&'h Host; 2],
    line: &Line,
    management: &Cable,
    shelves: Option<&[Shelf; 2]>,
) -> anyhow::Result<Mover<'h>> {
    let addresses = line.addresses();
    if !config.is_ours() {
        let uri = format!("tcp:{}:{PORT}", addresses[1]);
        return Ok(Mover::Hypervisor { uri });
    }
    let authority = match config {
        Config::DwcpTls => Some(Authority::new(&["a", "b"])?),
        _ => None,
    };
    let node = |index: usize, name, management| {
        let mut made = NodeConfig::new(name, addresses[index], management);
        let table = authority.as_ref().map(|authority| authority.table(name));
        let shelf = shelves.map(|shelves| shelves[index].table());
        let pool = (config == Config::DwcpPool && index == 0)
            .then(|| format!("[pool]\npeers = [\"{}:{DATA_PORT}\"]\n", addresses[1]));
        let tables = [table, shelf, pool].map(Option::unwrap_or_default).concat();
        made.dataplane_extra = format!("{}\n{tables}", own_core(index));
        Node::start(hosts[index], made)
    };
    Ok(Mover::Product {
        nodes: Box::new([node(0, "a", management.a)?, node(1, "b", management.b)?]),
        multifd,
        id: RefCell::default(),
        _authority: authority,
    })
}

/// The guest runs here, right and only here.
fn check(saved: &Saved, guest: &Guest, mark: usize) -> anyhow::Result<()> {
    let verdict = guest.verify()?;
    ensure!(verdict.ok, "the guest's memory is wrong: {}", verdict.line);
    let doubled = guest.ticks().doubled();
    ensure!(
        doubled == 0,
        "the guest ran on both sides: {doubled} ticks came twice"
    );
    saved.works(guest, Side::Destination, mark)
}

/// When the source's hypervisor stopped the guest, since the command.
fn stopped(source: &mut Guest, began_at: SystemTime) -> Option<Duration> {
    let event = source.qmp().latest_event("STOP")?;
    let part = |name: &str| event["timestamp"][name].as_u64();
    let since_epoch =
        Duration::from_secs(part("seconds")?) + Duration::from_micros(part("microseconds")?);
    since_epoch.checked_sub(began_at.duration_since(UNIX_EPOCH).ok()?)
}

impl Mover<'_> {
    fn planes(&mut self) -> Vec<u32> {
        match self {
            Self::Hypervisor { .. } => Vec::new(),
            Self::Product { nodes, .. } => nodes
                .iter_mut()
                .flat_map(|node| [node.dataplane().id(), node.controlplane().id()])
                .collect(),
        }
    }

    /// Gives the command and waits until the hypervisor has begun: until then it tells of the migration by
    /// which the guest was restored.
    fn start(&self, source: &mut Guest, destination: &mut Guest) -> anyhow::Result<()> {
        match self {
            Self::Hypervisor { uri } => {
                destination.execute("migrate-incoming", json!({ "uri": uri }))?;
                source.execute("migrate", json!({ "uri": uri }))?;
            }
            Self::Product {
                nodes, id, multifd, ..
            } => {
                let [a, b] = &**nodes;
                let body = json!({
                    "vm": { "qmp": source.control_monitor() },
                    "destination": { "api": b.url(), "qmp": destination.control_monitor() },
                    "options": { "downtime_limit_ms": DOWNTIME_LIMIT_MS, "multifd_channels": multifd },
                });
                let (status, view) = a.api("POST", "/v1/migrations", Some(&body))?;
                ensure!(status == 201, "the migration was refused: {status} {view}");
                view["id"]
                    .as_str()
                    .unwrap_or_default()
                    .clone_into(&mut id.borrow_mut());
            }
        }
        let begun = poll_until(LIMIT, || {
            let state = source.qmp().query_migrate().ok()?;
            let state = state["status"].as_str().unwrap_or_default();
            if self.gave_up() {
                return Some(false);
            }
            matches!(state, "setup" | "active" | "device").then_some(true)
        });
        ensure!(begun == Some(true), "the hypervisor began no migration");
        Ok(())
    }

    /// Whether the product has ended its part without success.
    fn gave_up(&self) -> bool {
        self.view()
            .is_some_and(|view| matches!(view["state"].as_str(), Some("failed" | "cancelled")))
    }

    fn view(&self) -> Option<Value> {
        let Self::Product { nodes, id, .. } = self else {
            return None;
        };
        let path = format!("/v1/migrations/{}", id.borrow());
        Some(nodes[0].api("GET", &path, None).ok()?.1)
    }

    /// Until both sides are done; what the source's hypervisor says of it.
    fn wait(&self, source: &mut Guest, destination: &mut Guest) -> anyhow::Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let state = source.qmp().query_migrate()?;
            match state["status"].as_str() {
                Some("completed") if destination.qmp().query_status()? == "running" => {
                    return Ok(state);
                }
                Some(word @ ("failed" | "cancelled")) => bail!("the migration {word}: {state}"),
                _ => {}
            }
            if Instant::now() >= end {
                bail!("no end within {} s: {state}", LIMIT.as_secs());
            }
            std::thread::sleep(STEP);
        }
    }

    /// What all had to say, for a failure.
    fn words(&self, source: &Guest, destination: &Guest) -> String {
        let view = self.view().unwrap_or_default();
        format!(
            "the product's view: {view}\nsource: {}\ndestination: {}",
            source.said(),
            destination.said()
        )
    }
}
