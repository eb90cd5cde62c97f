//! The main job, shown: a guest moves between two hosts over a thin, far line, by `dwcpctl migrate`,
//! and once more by its hypervisor alone.
//!
//! In: the line, what to show. Out: [`DemoReport`], the table's figures. Promises: both migrations move
//! the same saved guest, one after the other; bytes on the wire are counted by the line.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::direct::{MigrationError, MigrationFigures, observe};
use crate::guest::{Arrival, Guest, GuestConfig};
use crate::link::{LinkConfig, Shape, WanLink};
use crate::netns::{Cable, Host};
use crate::qemu::QemuVersion;
use crate::stack::{Node, NodeConfig, StackError};

/// What the demo does.
#[derive(Clone, Copy, Debug)]
pub struct DemoConfig {
    /// The line, each way.
    pub shape: Shape,
    /// Memory of the guest, MiB.
    pub guest_mb: u32,
    /// Pages that the guest changes per second.
    pub dirty_pages_per_s: u32,
    /// Extra connections of the hypervisor; 0: the single stream.
    pub multifd: u32,
    /// Throw the kill switch half-way.
    pub rollback_midway: bool,
    /// Show the same by the hypervisor alone.
    pub compare: bool,
    /// The hypervisor's downtime limit, ms.
    pub downtime_limit_ms: u32,
}

/// What the demo measured.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// `completed`, or what it came to.
    pub status: String,
    /// The hypervisor's total time, ms.
    pub total_ms: u64,
    /// The hypervisor's downtime, ms.
    pub downtime_ms: u64,
    /// Longest time without a tick of the guest, ms.
    pub guest_gap_ms: f64,
    /// Bytes taken from the hypervisor.
    pub hypervisor_bytes: u64,
    /// IP bytes on the line, both directions.
    pub wire_bytes: u64,
    /// Share of the hypervisor's bytes that the line did not see.
    pub saved_fraction: f64,
    /// Every byte taken at the source was vouched for and delivered at the destination.
    pub identical: bool,
    /// The guest checked every byte of its memory where it runs now.
    pub guest_memory_ok: bool,
    /// Version of the last batch.
    pub version: Option<String>,
    /// From the kill switch to the first v1 batch, ms; only with a rollback.
    pub rollback_ms: Option<f64>,
    /// The same guest over the same line by the hypervisor alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuReport>,
}

/// The same figures for the hypervisor alone, where they apply.
#[derive(Clone, Debug, Serialize)]
pub struct QemuReport {
    /// `completed`, or what it came to.
    pub status: String,
    /// Total time, ms.
    pub total_ms: u64,
    /// Downtime, ms.
    pub downtime_ms: u64,
    /// Longest time without a tick, ms.
    pub guest_gap_ms: f64,
    /// Bytes that left the hypervisor.
    pub hypervisor_bytes: u64,
    /// IP bytes on the line.
    pub wire_bytes: u64,
    /// The guest checked its memory.
    pub guest_memory_ok: bool,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] MigrationError),
    /// The product.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// `dwcpctl` failed.
    #[error("dwcpctl ended with {0}; its words stand above")]
    Ctl(std::process::ExitStatus),
}

macro_rules! lab_error {
    ($($from:ty),+) => { $(impl From<$from> for DemoError {
        fn from(error: $from) -> Self { Self::Lab(error.into()) }
    })+ };
}
lab_error!(
    crate::guest::GuestError,
    crate::netns::NetnsError,
    crate::link::LinkError,
    crate::qmp::QmpError
);

/// When to give up.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs the demo; `say` is told each step.
///
/// # Errors
/// [`DemoError`]; a migration that failed is reported, not an error.
pub fn run(config: &DemoConfig, say: &dyn Fn(&str)) -> Result<DemoReport, DemoError> {
    let guest = GuestConfig::sized(config.guest_mb);
    say(&format!(
        "preparing a guest of {} MiB (saved once, then restored)",
        config.guest_mb
    ));
    let mut report = through_dwcp(config, guest, say)?;
    if config.compare {
        say("the same guest over the same line, by QEMU alone");
        let (figures, _) = crate::direct::run(&crate::direct::DirectConfig {
            guest,
            destination: QemuVersion::V10,
            link: LinkConfig::symmetric(config.shape),
            dirty_pages_per_s: config.dirty_pages_per_s,
            multifd: u8::try_from(config.multifd).ok().filter(|count| *count > 0),
            downtime_limit_ms: config.downtime_limit_ms,
            arrival: Arrival::Run,
            limit: LIMIT,
        })?;
        report.qemu = Some(qemu_report(figures));
    }
    Ok(report)
}

fn qemu_report(figures: MigrationFigures) -> QemuReport {
    QemuReport {
        status: figures.status,
        total_ms: figures.total_ms,
        downtime_ms: figures.downtime_ms,
        guest_gap_ms: figures.guest_gap_ms,
        hypervisor_bytes: figures.hypervisor_bytes,
        wire_bytes: figures.wire_bytes,
        guest_memory_ok: figures.guest_memory_ok,
    }
}

fn through_dwcp(
    config: &DemoConfig,
    guest: GuestConfig,
    say: &dyn Fn(&str),
) -> Result<DemoReport, DemoError> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let link = WanLink::start(&a, &b, LinkConfig::symmetric(config.shape))?;
    let management = Cable::management(&a, &b, 1)?;
    let buffer_bytes = config
        .shape
        .round_trip_bytes()
        .saturating_mul(2)
        .max(4 << 20);
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(buffer_bytes)?;
    }
    let node_a = Node::start(&a, NodeConfig::new("a", link.a, management.a))?;
    let node_b = Node::start(&b, NodeConfig::new("b", link.b, management.b))?;
    let mut source = Guest::saved(Some(&a), guest)?;
    let mut destination = Guest::start_incoming(Some(&b), &source, QemuVersion::V10, Arrival::Run)?;
    source.set_rate(config.dirty_pages_per_s)?;
    let source_qmp = source.control_monitor().display().to_string();
    let target_qmp = destination.control_monitor().display().to_string();
    let multifd = config.multifd.to_string();
    let downtime = config.downtime_limit_ms.to_string();
    let arguments = [
        "migrate",
        "--vm",
        &source_qmp,
        "--to",
        &node_b.url(),
        "--to-qmp",
        &target_qmp,
        "--multifd",
        &multifd,
        "--downtime-limit-ms",
        &downtime,
        "--name",
        "demo",
    ];
    say(&format!("dwcpctl {}", arguments.join(" ")));
    let mut command = node_a.ctl(&arguments)?;
    let mut ctl = None;
    let mut rollback = None;
    let figures = observe(
        &mut source,
        &mut destination,
        &|| link.wire_bytes(),
        LIMIT,
        |source, _| {
            let spawned = command
                .spawn()
                .map_err(|error| MigrationError::Start(error.to_string()));
            let ctl = ctl.insert(spawned?);
            wait_begun(source, ctl)?;
            if config.rollback_midway {
                rollback = Some(rollback_midway(&node_a));
            }
            Ok(())
        },
    )?;
    if let Some(mut ctl) = ctl {
        let status = ctl.wait().map_err(StackError::from)?;
        if !status.success() {
            return Err(DemoError::Ctl(status));
        }
    }
    if let Some(outcome) = rollback {
        outcome?;
    }
    let (_, list) = node_a.api("GET", "/v1/migrations", None)?;
    let view = list["migrations"][0].clone();
    Ok(report(&figures, &view))
}

/// Until `dwcpctl`'s request reached it, QEMU reports the migration by which it was restored itself.
fn wait_begun(source: &mut Guest, ctl: &mut std::process::Child) -> Result<(), MigrationError> {
    let begun = crate::watchdog::poll_until(LIMIT, || {
        if ctl.try_wait().ok().flatten().is_some() {
            return Some(false);
        }
        let state = source.qmp().query_migrate().ok()?;
        matches!(
            state["status"].as_str(),
            Some("setup" | "active" | "device")
        )
        .then_some(true)
    });
    if begun == Some(true) {
        return Ok(());
    }
    Err(MigrationError::Start(
        "dwcpctl began no migration; its words stand above".to_owned(),
    ))
}

/// Throws the kill switch once a third of the guest is across.
fn rollback_midway(node: &Node<'_>) -> Result<(), StackError> {
    let _ = crate::watchdog::poll_until(LIMIT, || {
        let (_, list) = node.api("GET", "/v1/migrations", None).ok()?;
        let progress = list["migrations"][0]["progress"].as_f64()?;
        (progress > 0.33).then_some(())
    });
    let body = serde_json::json!({ "force_v1": true });
    let (status, answer) = node.api("POST", "/v1/feature-flags/force-v1", Some(&body))?;
    if status != 200 {
        return Err(StackError::Http(format!("{status}: {answer}")));
    }
    Ok(())
}

fn report(figures: &MigrationFigures, view: &Value) -> DemoReport {
    let taken = view["bytes"]["hypervisor"].as_u64().unwrap_or(0);
    let delivered = view["bytes"]["delivered"].as_u64().unwrap_or(0);
    let wire = figures.wire_bytes as f64;
    DemoReport {
        status: view["state"].as_str().unwrap_or("unknown").to_owned(),
        total_ms: figures.total_ms,
        downtime_ms: figures.downtime_ms,
        guest_gap_ms: figures.guest_gap_ms,
        hypervisor_bytes: taken,
        wire_bytes: figures.wire_bytes,
        saved_fraction: if taken == 0 {
            0.0
        } else {
            1.0 - wire / taken as f64
        },
        identical: view["state"] == "completed" && taken > 0 && taken == delivered,
        guest_memory_ok: figures.guest_memory_ok && figures.doubled_ticks == 0,
        version: view["version"].as_str().map(str::to_owned),
        rollback_ms: view["rollback"]["rollback_us"]
            .as_f64()
            .map(|us| us / 1000.0),
        qemu: None,
    }
}

/// The report as a table for people.
#[must_use]
pub fn table(report: &DemoReport) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let qemu = report.qemu.as_ref();
    let mut row = |name: &str, ours: String, theirs: Option<String>| {
        let theirs = if qemu.is_some() {
            theirs.unwrap_or_else(|| "-".to_owned())
        } else {
            String::new()
        };
        let _ = writeln!(text, "{name:<28} {ours:>16} {theirs:>16}");
    };
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let yes = |good: bool| {
        if good {
            "yes".to_owned()
        } else {
            "NO".to_owned()
        }
    };
    row("", "DWCP".to_owned(), Some("QEMU alone".to_owned()));
    row(
        "outcome",
        report.status.clone(),
        qemu.map(|q| q.status.clone()),
    );
    row(
        "total time",
        format!("{:.2} s", report.total_ms as f64 / 1e3),
        qemu.map(|q| format!("{:.2} s", q.total_ms as f64 / 1e3)),
    );
    row(
        "downtime (QEMU's figure)",
        format!("{} ms", report.downtime_ms),
        qemu.map(|q| format!("{} ms", q.downtime_ms)),
    );
    row(
        "longest gap in the ticks",
        format!("{:.0} ms", report.guest_gap_ms),
        qemu.map(|q| format!("{:.0} ms", q.guest_gap_ms)),
    );
    row(
        "bytes from QEMU",
        mb(report.hypervisor_bytes),
        qemu.map(|q| mb(q.hypervisor_bytes)),
    );
    row(
        "bytes on the wire",
        mb(report.wire_bytes),
        qemu.map(|q| mb(q.wire_bytes)),
    );
    row(
        "saved",
        format!("{:.1} %", report.saved_fraction * 100.0),
        None,
    );
    row("stream identical", yes(report.identical), None);
    row(
        "memory verified by the guest",
        yes(report.guest_memory_ok),
        qemu.map(|q| yes(q.guest_memory_ok)),
    );
    if let Some(version) = &report.version {
        row("version of the last batch", version.clone(), None);
    }
    if let Some(ms) = report.rollback_ms {
        row("switch to first v1 batch", format!("{ms:.2} ms"), None);
    }
    text
}
