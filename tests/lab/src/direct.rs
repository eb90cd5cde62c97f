//! The reference: QEMU's own migration over the same link, in its best configuration.
//!
//! In: a guest, a link, the number of multifd channels. Out: [`MigrationFigures`], measured from
//! outside: ticks, bytes on the line, the guest's own check of its memory. The same measuring is
//! open to other ways of migrating through [`observe`].

use crate::guest::{Arrival, Guest, GuestConfig, GuestError, UNLIMITED_BANDWIDTH};
use crate::link::{LinkConfig, LinkError, WanLink};
use crate::netns::{Host, NetnsError};
use crate::qemu::QemuVersion;
use crate::qmp::QmpError;
use crate::ticks::Side;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PORT: u16 = 4444;
/// How long the guest is watched after the switchover.
const AFTER: Duration = Duration::from_millis(1_500);

/// Why a migration could not be measured. A migration that failed is measured all the same.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A guest failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A monitor failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A host failed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What starts the migration failed.
    #[error("the migration did not start: {0}")]
    Start(String),
}

/// One measured migration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrationFigures {
    /// QEMU's word at the source: `completed`, `failed`, `cancelled`.
    pub status: String,
    /// QEMU's own total time, ms.
    pub total_ms: u64,
    /// QEMU's own downtime, ms; it does not see what happens at the destination.
    pub downtime_ms: u64,
    /// Longest time without a tick from the start to well after the end, ms.
    pub guest_gap_ms: f64,
    /// Bytes that left the source's QEMU.
    pub hypervisor_bytes: u64,
    /// IP bytes on the line, both directions.
    pub wire_bytes: u64,
    /// Passes over memory.
    pub rounds: u64,
    /// The guest checked its memory where it runs now and found every byte right.
    pub guest_memory_ok: bool,
    /// Both memories are equal; known only when the destination stayed paused.
    pub identical: Option<bool>,
    /// Ticks that came twice: must be 0, else the guest ran on both sides.
    pub doubled_ticks: u64,
    /// Ticks that never came; one line may be cut by the switchover.
    pub missing_ticks: u64,
    /// Processor time of the source's QEMU during the migration, ms.
    pub source_cpu_ms: u64,
    /// The same at the destination.
    pub destination_cpu_ms: u64,
}

/// What to migrate and how.
#[derive(Clone, Copy, Debug)]
pub struct DirectConfig {
    /// The guest at the source.
    pub guest: GuestConfig,
    /// QEMU release at the destination.
    pub destination: QemuVersion,
    /// The line.
    pub link: LinkConfig,
    /// Pages the guest changes per second.
    pub dirty_pages_per_s: u32,
    /// Multifd channels; `None` is the plain single connection.
    pub multifd: Option<u8>,
    /// QEMU's downtime limit, ms.
    pub downtime_limit_ms: u32,
    /// Run at once or stay paused for a comparison of both memories.
    pub arrival: Arrival,
    /// When to give up.
    pub limit: Duration,
}

/// Makes two hosts and a link, migrates once, directly, and measures.
pub fn run(config: &DirectConfig) -> Result<(MigrationFigures, u64), MigrationError> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let link = WanLink::start(&a, &b, config.link)?;
    let buffer_bytes = config
        .link
        .a_to_b
        .round_trip_bytes()
        .saturating_mul(2)
        .max(4 << 20);
    for host in [&a, &b] {
        host.set_tcp_buffer_limit(buffer_bytes)?;
    }
    let mut source = Guest::saved(Some(&a), config.guest)?;
    let mut destination =
        Guest::start_incoming(Some(&b), &source, config.destination, config.arrival)?;
    source.set_rate(config.dirty_pages_per_s)?;
    let link_cpu_ms = link.cpu_ms();
    let (limit_ms, multifd) = (config.downtime_limit_ms, config.multifd);
    prepare(&mut source, &mut destination, limit_ms, multifd)?;
    let figures = observe(
        &mut source,
        &mut destination,
        &|| link.wire_bytes(),
        config.limit,
        |source, target| {
            let listen = format!("tcp:{}:{PORT}", link.b);
            target.execute("migrate-incoming", json!({ "uri": listen }))?;
            source.execute("migrate", json!({ "uri": listen }))?;
            Ok(())
        },
    )?;
    Ok((figures, link.cpu_ms() - link_cpu_ms))
}

/// Sets capabilities and parameters at both ends as a good operator would: return path and events
/// on, no bandwidth limit of QEMU's own.
pub fn prepare(
    source: &mut Guest,
    destination: &mut Guest,
    downtime_limit_ms: u32,
    multifd: Option<u8>,
) -> Result<(), MigrationError> {
    for guest in [source, destination] {
        guest.qmp().set_capabilities(&[
            ("events", true),
            ("return-path", true),
            ("multifd", multifd.is_some()),
        ])?;
        let mut parameters =
            json!({ "max-bandwidth": UNLIMITED_BANDWIDTH, "downtime-limit": downtime_limit_ms });
        if let Some(channels) = multifd {
            parameters["multifd-channels"] = json!(channels);
        }
        guest.execute("migrate-set-parameters", parameters)?;
    }
    Ok(())
}

/// Measures the migration that `start` begins, whoever carries it.
pub fn observe(
    source: &mut Guest,
    destination: &mut Guest,
    wire_bytes: &dyn Fn() -> u64,
    limit: Duration,
    start: impl FnOnce(&mut Guest, &mut Guest) -> Result<(), MigrationError>,
) -> Result<MigrationFigures, MigrationError> {
    let wire_before = wire_bytes();
    let cpu_before = [source.process().cpu_ms(), destination.process().cpu_ms()];
    let began = Instant::now();
    start(source, destination)?;
    let state = wait_end(source, limit)?;
    let wire_bytes = wire_bytes() - wire_before;
    let status = state["status"].as_str().unwrap_or_default().to_owned();
    let completed = status == "completed";
    let identical = if completed {
        compare(source, destination)?
    } else {
        None
    };
    let side = if completed {
        Side::Destination
    } else {
        Side::Source
    };
    let runs = if completed { &*destination } else { &*source };
    runs.wait_tick()?;
    std::thread::sleep(AFTER);
    let ticks = runs.ticks().clone();
    let guest_gap_ms = ticks.longest_gap_ms(began, ticks.last(side).map_or(began, |t| t.at));
    let guest_memory_ok = runs.verify()?.ok;
    let [source_cpu_ms, destination_cpu_ms] = [
        source.process().cpu_ms() - cpu_before[0],
        destination.process().cpu_ms() - cpu_before[1],
    ];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Ok(MigrationFigures {
        status,
        total_ms: number(&state["total-time"]),
        downtime_ms: number(&state["downtime"]),
        guest_gap_ms,
        hypervisor_bytes: number(&state["ram"]["transferred"]),
        wire_bytes,
        rounds: number(&state["ram"]["dirty-sync-count"]),
        guest_memory_ok,
        identical,
        doubled_ticks: ticks.doubled(),
        missing_ticks: ticks.missing(),
        source_cpu_ms,
        destination_cpu_ms,
    })
}

/// Waits for the end; past the limit the migration is cancelled, which is an end as well.
fn wait_end(source: &mut Guest, limit: Duration) -> Result<Value, MigrationError> {
    match source.qmp().wait_migration(limit) {
        Err(QmpError::Deadline { .. }) => {
            source.execute("migrate_cancel", Value::Null)?;
            Ok(source.qmp().wait_migration(Duration::from_secs(60))?)
        }
        other => Ok(other?),
    }
}

/// Compares both memories if the destination stayed paused, then lets it run.
fn compare(source: &mut Guest, destination: &mut Guest) -> Result<Option<bool>, MigrationError> {
    // The source is done when the destination said so on the return path, but the destination's
    // state word changes a moment later.
    let state = crate::watchdog::poll_until(Duration::from_secs(60), || {
        destination
            .qmp()
            .query_status()
            .ok()
            .filter(|state| state != "inmigrate")
    });
    if state.as_deref() != Some("paused") {
        return Ok(None);
    }
    let identical = source.memory_hash()? == destination.memory_hash()?;
    destination.execute("cont", Value::Null)?;
    Ok(Some(identical))
}
