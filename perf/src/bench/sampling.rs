//! What it costs to be sampled for a flame graph. In: how many pairs. Out: what two data planes carry while
//! both are sampled, beside what they carry when nobody looks, and what the samplers themselves spend.
//! Promises: windows with and without take turns over one stream; a window with begins after sampling has
//! begun and ends before it ends; each picture must show samples. A window with is also compared with the mean
//! of the two around it, so that a machine that grows slower or faster meanwhile changes nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::procs;
use dwcp_lab::stack::Node;

use super::stream::window;
use crate::processes::cpu_ms;
use crate::pump::Pump;
use crate::row::{Row, median_interval};

const PAIRS: usize = 30;
/// Short, so that what else the machine does meets both windows of a pair alike.
const WINDOW: Duration = Duration::from_secs(2);
/// Sampling begins so long before its window and ends so long after.
const AROUND: Duration = Duration::from_millis(500);
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
    without.take(window(&pump, &planes, WINDOW)?);
    for _ in 0..runs.unwrap_or(PAIRS) {
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
        without.take(window(&pump, &planes, WINDOW)?);
    }
    let row = |what: &str, unit, of: fn(&Side) -> &[f64]| {
        let name = format!("sampling at {HZ} Hz, {what}");
        Row::new(&name, unit, of(&with), of(&without))
    };
    let shares = |what: &str, of: fn(&Side) -> &[f64]| {
        let name = format!("sampling at {HZ} Hz, {what}, each against its neighbours");
        let shares = beside_neighbours(of(&with), of(&without));
        let row = Row::new(&name, "x", &shares, &[]);
        match median_interval(&shares) {
            Some((low, high)) => row.noted(format!(
                "the median is between {low:.4} and {high:.4} with 95 % confidence"
            )),
            None => row.noted("too few windows to say how sure the median is"),
        }
    };
    let look_s = look_time().as_secs();
    let each = format!("sampling at {HZ} Hz, a sampler's processor time in a look of {look_s} s");
    Ok(vec![
        row("carried", "MB/s", |side| &side.mb_per_s),
        shares("carried", |side| &side.mb_per_s),
        row("data planes' processor time", "s/GB", |side| &side.s_per_gb),
        shares("data planes' processor time", |side| &side.s_per_gb),
        Row::new(&each, "s", &sampler_s, &[]),
        Row::new(
            &format!("sampling at {HZ} Hz, samples of a look"),
            "",
            &samples,
            &[],
        ),
    ])
}

/// Each figure of a window with, by the mean of the windows without just before and just after it.
fn beside_neighbours(with: &[f64], without: &[f64]) -> Vec<f64> {
    let around = without.windows(2).map(|two| f64::midpoint(two[0], two[1]));
    with.iter()
        .zip(around)
        .map(|(one, mean)| one / mean)
        .collect()
}

const fn look_time() -> Duration {
    AROUND.saturating_mul(2).saturating_add(WINDOW)
}

/// Has a node sample its data plane; how many samples there were.
fn look(node: &Node<'_>) -> anyhow::Result<u64> {
    let folded = node.dir().join("folded");
    let file = folded.display().to_string();
    let seconds = look_time().as_secs().to_string();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_grows_faster_meanwhile_shows_no_gain() {
        let shares = beside_neighbours(&[110.0, 130.0], &[100.0, 120.0, 140.0]);
        assert_eq!(shares, [1.0, 1.0]);
        let halved = beside_neighbours(&[55.0, 65.0], &[100.0, 120.0, 140.0]);
        assert_eq!(halved, [0.5, 0.5]);
    }

    #[test]
    fn a_look_is_as_long_as_its_window_and_what_is_around_it() {
        assert_eq!(look_time(), WINDOW + 2 * AROUND);
        assert_eq!(
            look_time().subsec_nanos(),
            0,
            "it is asked for in whole seconds"
        );
    }
}
