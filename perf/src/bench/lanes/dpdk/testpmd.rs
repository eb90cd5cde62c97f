//! DPDK's own test program over a memif: one process sends, the other drops. In: a folder, two cores, how
//! long. Out: what arrived. Promise: what comes before the link is up and the caches are warm does not
//! count.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::procs::Proc;
use dwcp_lab::watchdog::poll_until;

use super::{ETHERNET_FRAME_BYTES, HEADERS_BYTES, PATIENCE, RING_BUFFER_BYTES, RING_LOG2};

pub(super) const PROGRAM: &str = "dpdk-testpmd";
/// Reports of the receiver that do not count, one a second.
const WARM_UP_REPORTS: usize = 1;
/// Room in front of a frame that DPDK leaves.
const HEADROOM_BYTES: u16 = 128;

/// What arrived.
pub(super) struct Carried {
    pub(super) gb_per_s: f64,
    pub(super) gb_per_cpu_s: f64,
}

pub(super) fn carry(dir: &Path, cores: [usize; 2], seconds: u32) -> anyhow::Result<Carried> {
    let socket = dir.join("memif");
    let receiver = start(dir, "server", "rxonly", cores[1])?;
    poll_until(PATIENCE, || socket.exists().then_some(())).context("it makes no socket")?;
    let sender = start(dir, "client", "txonly", cores[0])?;
    let processes = [&receiver, &sender];
    let cpu_ms = || processes.map(Proc::cpu_ms).iter().sum::<u64>();
    let reports = || rates(&std::fs::read_to_string(receiver.log()).unwrap_or_default());
    poll_until(PATIENCE, || {
        (reports().len() > WARM_UP_REPORTS).then_some(())
    })
    .context("nothing arrives")?;
    let (before, cpu_before_ms) = (reports().len(), cpu_ms());
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let cpu_s = (cpu_ms() - cpu_before_ms) as f64 / 1e3;
    let counted = reports().split_off(before);
    ensure!(
        !counted.is_empty() && cpu_s > 0.0,
        "its receiver reports nothing"
    );
    let frames_per_s = counted.iter().sum::<f64>() / counted.len() as f64;
    let frame_bytes = f64::from(ETHERNET_FRAME_BYTES - HEADERS_BYTES);
    let gb_per_s = frames_per_s * frame_bytes / 1e9;
    Ok(Carried {
        gb_per_s,
        gb_per_cpu_s: gb_per_s * f64::from(seconds) / cpu_s,
    })
}

fn start(dir: &Path, role: &str, forward: &str, core: usize) -> anyhow::Result<Proc> {
    let socket = dir.join("memif");
    let device = format!(
        "net_memif0,role={role},socket-abstract=no,socket={},bsize={RING_BUFFER_BYTES},rsize={RING_LOG2}",
        socket.display()
    );
    let mut command = Command::new(PROGRAM);
    command
        .args(["--no-huge", "-m", "192", "--no-pci", "--no-telemetry"])
        .args(["--no-shconf", "--iova-mode=va", "--log-level=error"])
        .args([
            "--file-prefix",
            &format!("dwcp-{role}-{}", std::process::id()),
        ])
        // Its console sleeps on the core where its one worker spins.
        .args(["--lcores", &format!("0@{core},1@{core}")])
        .args(["--vdev", &device, "--"])
        .args([&format!("--forward-mode={forward}"), "--auto-start"])
        .args(["--nb-cores=1", "--total-num-mbufs=4096", "--burst=32"])
        .arg(format!(
            "--mbuf-size={}",
            RING_BUFFER_BYTES + HEADROOM_BYTES
        ))
        .arg(format!("--txpkts={ETHERNET_FRAME_BYTES}"))
        .args(["--stats-period=1", "--no-lsc-interrupt"]);
    Ok(Proc::spawn(command, &dir.join(role))?)
}

/// Frames a second of each report that has any, as `  Rx-pps:       327105          Rx-bps:  1088605680`.
fn rates(log: &str) -> Vec<f64> {
    log.lines()
        .filter_map(|line| line.trim().strip_prefix("Rx-pps:"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .filter(|rate| *rate > 0.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_before_the_link_is_up_do_not_count() {
        let report = |rate| format!("  Rx-pps:  {rate}   Rx-bps:  8\n  Tx-pps:  77   Tx-bps: 9\n");
        let log = format!("{}{}{}", report(0), report(327_105), report(5));
        assert_eq!(rates(&log), [327_105.0, 5.0]);
    }
}
