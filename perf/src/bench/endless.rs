//! A guest whose migration never converges, so that something can be done to it under way as often as one likes.
//!
//! In: two hosts, a line and a management network between them. Out: a migration under way, and what the source's
//! control plane says of it. Promise: at the end the migration is cancelled and the guest must run at the source,
//! every byte of its memory right.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::guest::{Arrival, Guest, GuestConfig};
use dwcp_lab::link::WanLink;
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::qemu::QemuVersion;
use dwcp_lab::stack::{Node, NodeConfig};
use dwcp_lab::watchdog::poll_until;
use serde_json::{Value, json};

/// How long anything may take before it is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// More than the hypervisor may send, so that the guest never converges.
const DIRTY_PAGES_PER_S: u32 = 100_000;
/// Less than the guest changes: a line without a limit would carry whatever a guest under emulation can write.
const HYPERVISOR_BYTES_PER_S: u64 = 150_000_000;
/// Spread widely, so that no round is short.
const HOT_PAGES: u32 = 40_000;
const GUEST_MB: u32 = 256;

/// See the module.
pub(super) struct Endless<'h> {
    /// The source's node.
    pub(super) a: Node<'h>,
    b: Node<'h>,
    source: Guest,
    destination: Guest,
    id: String,
}

impl<'h> Endless<'h> {
    /// Begins.
    pub(super) fn begin(
        [a, b]: [&'h Host; 2],
        link: &WanLink,
        management: &Cable,
    ) -> anyhow::Result<Self> {
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
            // With none at all the hypervisor would take the end of its first pass for the end.
            "options": { "downtime_limit_ms": 1 },
        });
        let (status, view) = a.api("POST", "/v1/migrations", Some(&body))?;
        ensure!(status == 201, "the migration was refused: {status} {view}");
        let id = view["id"]
            .as_str()
            .context("a migration without an id")?
            .to_owned();
        let mut endless = Self {
            a,
            b,
            source,
            destination,
            id,
        };
        endless.wait("a migration under way", |view| view["state"] == "active")?;
        let limit = json!({ "max-bandwidth": HYPERVISOR_BYTES_PER_S });
        endless.source.execute("migrate-set-parameters", limit)?;
        Ok(endless)
    }

    /// The migration as the source shows it.
    pub(super) fn view(&self) -> anyhow::Result<Value> {
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

    /// Waits until `wanted` holds of the migration.
    pub(super) fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let found = poll_until(PATIENCE, || match self.view() {
            Ok(view) if wanted(&view) => Some(Ok(view)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        found.with_context(|| format!("never came: {what}"))?
    }

    /// Cancels, and says what became of the guest.
    pub(super) fn end(mut self) -> anyhow::Result<String> {
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
