//! What it costs to be sampled for a flame graph. In: how many pairs. Out: what two data planes carry while
//! both are sampled, beside what they carry when nobody looks, and what the samplers themselves spend.
//! Promises: windows with and without take turns over one stream; a window with begins after sampling has
//! begun and ends before it ends; each picture must show samples.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::procs;
use dwcp_lab::stack::Node;

use super::stream::window;
use crate::processes::cpu_ms;
use crate::pump::Pump;
use crate::row::Row;

const PAIRS: usize = 10;
const WINDOW: Duration = Duration::from_secs(4);
/// Sampling begins so long before its window and ends so long after.
const AROUND: Duration = Duration::from_secs(1);
const HZ: u32 = 99;

/// Figures of one kind of window.
#[derive(Default)]
struct Side {
    mb_per_s: Vec<f64>,
    s_per_gb: Vec<f64>,
}

impl Side {
    fn take(&mut self, (mb_per_s, s_per_gb): (f64, f64)) {
        self.mb_per_s.push(mb_per_s);
        self.s_per_gb.push(s_per_gb);
    }
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let cable = Cable::lan(&a, &b, 1)?;
    let management = Cable::management(&a, &b, 1)?;
    let mut pump = Pump::start([&a, &b], &cable, &management)?;
    let ids = pump
        .nodes()
        .each_mut()
        .map(|node| (node.dataplane().id(), node.controlplane().id()));
    let (planes, samplers) = (ids.map(|(data, _)| data), ids.map(|(_, control)| control));
    let (mut with, mut without) = (Side::default(), Side::default());
    let (mut sampler_s, mut samples) = (Vec::new(), Vec::new());
    for pair in 0..runs.unwrap_or(PAIRS) {
        for sampled in [pair % 2 == 0, pair % 2 == 1] {
            if !sampled {
                without.take(window(&pump, &planes, WINDOW)?);
                continue;
            }
            let before_ms = cpu_ms(&samplers);
            let figures = std::thread::scope(|scope| {
                let looks = pump
                    .asked()
                    .each_ref()
                    .map(|node| scope.spawn(move || look(node)));
                std::thread::sleep(AROUND);
                let figures = window(&pump, &planes, WINDOW);
                for look in looks {
                    let seen = look.join().ok().context("a look panicked")??;
                    samples.push(seen as f64);
                }
                figures
            })?;
            with.take(figures);
            let spent_ms = cpu_ms(&samplers) - before_ms;
            sampler_s.push(spent_ms as f64 / 1e3 / samplers.len() as f64);
        }
    }
    let row = |what: &str, unit, of: fn(&Side) -> &[f64]| {
        let name = format!("sampling at {HZ} Hz, {what}");
        Row::new(&name, unit, of(&with), of(&without))
    };
    let each = format!("sampling at {HZ} Hz, a sampler's processor time in a look of 6 s");
    Ok(vec![
        row("carried", "MB/s", |side| &side.mb_per_s),
        row("data planes' processor time", "s/GB", |side| &side.s_per_gb),
        Row::new(&each, "s", &sampler_s, &[]),
        Row::new(
            &format!("sampling at {HZ} Hz, samples of a look"),
            "",
            &samples,
            &[],
        ),
    ])
}

/// Has a node sample its data plane; how many samples there were.
fn look(node: &Node<'_>) -> anyhow::Result<u64> {
    let folded = node.dir().join("folded");
    let file = folded.display().to_string();
    let seconds = (WINDOW + 2 * AROUND).as_secs().to_string();
    let hz = HZ.to_string();
    let arguments = [
        "perf",
        "flamegraph",
        "--folded",
        "-o",
        &file,
        "--seconds",
        &seconds,
        "--hz",
        &hz,
    ];
    procs::run(node.ctl(&arguments)?)?;
    let text = std::fs::read_to_string(&folded)?;
    let counts = text.lines().filter_map(|line| line.rsplit(' ').next());
    let samples = counts.filter_map(|count| count.parse::<u64>().ok()).sum();
    ensure!(samples > 0, "a busy data plane showed no samples");
    Ok(samples)
}
