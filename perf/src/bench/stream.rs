//! How fast two data planes carry a stream that never ends, and what that costs. In: how many windows. Out:
//! bytes a second, and processor time of both data planes by byte. There is no reference here: it is for
//! `dwcp-perf ab`, which compares two commits.

use std::time::{Duration, Instant};

use dwcp_lab::netns::{Cable, Host};

use crate::processes::cpu_ms;
use crate::pump::Pump;
use crate::row::Row;

const WINDOWS: usize = 5;
const WINDOW: Duration = Duration::from_secs(4);

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let cable = Cable::lan(&a, &b, 1)?;
    let management = Cable::management(&a, &b, 1)?;
    let mut pump = Pump::start([&a, &b], &cable, &management)?;
    let planes: Vec<u32> = pump
        .nodes()
        .iter_mut()
        .map(|node| node.dataplane().id())
        .collect();
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..runs.unwrap_or(WINDOWS) {
        let (mb_per_s, s_per_gb) = window(&pump, &planes, WINDOW)?;
        rates.push(mb_per_s);
        costs.push(s_per_gb);
    }
    Ok(vec![
        Row::new("stream, carried", "MB/s", &rates, &[]),
        Row::new("stream, data planes' processor time", "s/GB", &costs, &[]),
    ])
}

/// Megabytes a second, and seconds of processor time of `planes` by gigabyte, in one window.
pub(super) fn window(
    pump: &Pump<'_>,
    planes: &[u32],
    length: Duration,
) -> anyhow::Result<(f64, f64)> {
    let (bytes, cpu, begun) = (pump.bytes(), cpu_ms(planes), Instant::now());
    std::thread::sleep(length);
    let carried = pump.bytes() - bytes;
    let spent_ms = cpu_ms(planes) - cpu;
    anyhow::ensure!(carried > 0, "the stream stands still");
    let mb = carried as f64 / 1e6;
    Ok((mb / begun.elapsed().as_secs_f64(), spent_ms as f64 / mb))
}
