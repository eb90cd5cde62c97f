//! A reliable lane over a DPDK port against kernel TCP, both with the same congestion control, over the same
//! emulated line with the same seed. In: how many pairs. Out: rows by congestion control and by what the line
//! does: goodput, and the longest pause between two pieces. Promises: every sample has a line of its own, whose
//! nth packet meets the same fault for both; counted is what the receiving side handed up in a fixed time from
//! its first piece on, slow start included; what cannot run here is an error that says why.
//!
//! The line carries Ethernet frames between two network namespaces. The kernel has TAP devices at its ends;
//! DPDK takes the same devices over by AF_XDP.

pub mod end;
#[cfg(feature = "dpdk")]
mod lane;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::dir::LabDir;
use dwcp_lab::link::{Layer, LinkConfig, Shape, WanLink};
use dwcp_lab::netns::Host;
use dwcp_lab::procs::Proc;

use self::end::Measured;
use crate::row::Row;

const PAIRS: usize = 5;
/// The line: an ordinary one between two sites.
const RATE_MBIT: f64 = 100.0;
const DELAY_MS: f64 = 20.0;
/// Packets that each fault strikes, in percent.
const FAULT_PERCENTS: [f64; 2] = [1.0, 5.0];
/// More than the line and its queue hold, so that no buffer is the limit.
const TCP_BUFFER_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Whose lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ours,
    Kernel,
}

/// One row's ground.
#[derive(Clone, Copy)]
struct Case {
    congestion: &'static str,
    percent: f64,
    /// Also late and twice.
    mangled: bool,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let grounds = FAULT_PERCENTS
            .into_iter()
            .flat_map(|percent| [false, true].map(|mangled| (percent, mangled)));
        grounds.flat_map(|(percent, mangled)| {
            ["cubic", "bbr"].map(|congestion| Self {
                congestion,
                percent,
                mangled,
            })
        })
    }

    fn name(&self) -> String {
        let faults = if self.mangled {
            "lost, as many late, as many twice"
        } else {
            "lost"
        };
        format!("lossy, {}, {} % {faults}", self.congestion, self.percent)
    }

    fn shape(&self) -> Shape {
        let shape = Shape::new(RATE_MBIT, DELAY_MS, self.percent);
        if self.mangled {
            shape.mangled(self.percent, self.percent)
        } else {
            shape
        }
    }

    fn carry(&self, way: Way, seed: u64) -> anyhow::Result<Measured> {
        let hosts = [Host::new("a")?, Host::new("b")?];
        for host in &hosts {
            host.set_tcp_buffer_limit(TCP_BUFFER_BYTES)?;
        }
        let config = LinkConfig {
            layer: Layer::Ethernet,
            seed,
            ..LinkConfig::symmetric(self.shape())
        };
        let link = WanLink::start(&hosts[0], &hosts[1], config)?;
        let dir = LabDir::new("lossy")?;
        let over = match way {
            Way::Ours => format!("lane wan{}", config.number),
            Way::Kernel => format!("tcp {}", link.b),
        };
        let end = |at: usize, role: &str| -> anyhow::Result<Proc> {
            let words = format!("lossy-end {over} {role} {}", self.congestion);
            let mut command = hosts[at].command(std::env::current_exe()?);
            command.args(words.split(' '));
            Ok(Proc::spawn(command, &dir.path().join(role))?)
        };
        let _sender = end(0, "send")?;
        measured(&mut end(1, "receive")?).with_context(|| said(dir.path()))
    }
}

/// What the receiving end printed.
fn measured(receiver: &mut Proc) -> anyhow::Result<Measured> {
    let status = receiver.wait(PATIENCE)?;
    let text = std::fs::read_to_string(receiver.log())?;
    ensure!(status.success(), "the receiving end failed: {status}");
    let last = text.lines().last().context("it said nothing")?;
    serde_json::from_str(last).with_context(|| last.to_owned())
}

/// What both ends said.
fn said(dir: &Path) -> String {
    let text = |role| std::fs::read_to_string(dir.join(role)).unwrap_or_default();
    format!("sender: {}\nreceiver: {}", text("send"), text("receive"))
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    ensure!(
        cfg!(feature = "dpdk"),
        "built without lanes over DPDK: build dwcp-perf with --features dpdk"
    );
    let cases: Vec<Case> = Case::all().collect();
    let mut samples = vec![[Vec::new(), Vec::new()]; cases.len()];
    for pair in 0..runs.unwrap_or(PAIRS) {
        for (case, samples) in cases.iter().zip(&mut samples) {
            let mut order = [(0, Way::Ours), (1, Way::Kernel)];
            order.rotate_left(pair % 2);
            for (at, way) in order {
                let measured = case
                    .carry(way, pair as u64)
                    .with_context(|| format!("{}, {way:?}", case.name()))?;
                samples[at].push(measured);
            }
        }
    }
    let rows = |(case, samples): (&Case, &[Vec<Measured>; 2])| {
        let row = |what: &str, unit, of: fn(&Measured) -> f64| {
            let [ours, kernel] = samples
                .each_ref()
                .map(|samples| samples.iter().map(of).collect::<Vec<f64>>());
            Row::new(&format!("{}, {what}", case.name()), unit, &ours, &kernel)
        };
        [
            row("goodput", "Mbit/s", |measured| measured.mbit_per_s),
            row("longest pause", "ms", |measured| measured.pause_ms),
        ]
    };
    Ok(cases.iter().zip(&samples).flat_map(rows).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ground_has_a_row_of_its_own() {
        let names: std::collections::BTreeSet<String> =
            Case::all().map(|case| case.name()).collect();
        assert_eq!(names.len(), 8);
        let worst = Case::all().last().unwrap();
        let shape = worst.shape();
        assert_eq!(
            (shape.loss_percent, shape.late_percent, shape.twice_percent),
            (5.0, 5.0, 5.0)
        );
    }
}
