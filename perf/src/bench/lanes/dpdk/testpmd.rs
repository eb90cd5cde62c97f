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
    let (frames, bits) = counted.iter().fold((0.0, 0.0), |sum, rate| {
        (sum.0 + rate.frames, sum.1 + rate.bits)
    });
    let frame_bytes = bits / 8.0 / frames;
    ensure!(
        (frame_bytes - f64::from(ETHERNET_FRAME_BYTES)).abs() < 1.0,
        "its frames have {frame_bytes} bytes, not {ETHERNET_FRAME_BYTES}"
    );
    let frames_per_s = frames / counted.len() as f64;
    let payload_bytes = f64::from(ETHERNET_FRAME_BYTES - HEADERS_BYTES);
    let gb_per_s = frames_per_s * payload_bytes / 1e9;
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

/// What one report says, by the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    frames: f64,
    bits: f64,
}

/// Each report with frames in it, as `  Rx-pps:       327105          Rx-bps:  1088605680`.
fn rates(log: &str) -> Vec<Rate> {
    log.lines()
        .filter_map(|line| {
            let (frames, bits) = line.trim().strip_prefix("Rx-pps:")?.split_once("Rx-bps:")?;
            Some(Rate {
                frames: frames.trim().parse().ok()?,
                bits: bits.trim().parse().ok()?,
            })
        })
        .filter(|rate| rate.frames > 0.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_before_the_link_is_up_do_not_count() {
        let report = |frames| {
            let bits = frames * 8 * 4200;
            format!("  Rx-pps:  {frames}   Rx-bps:  {bits}\n  Tx-pps:  77   Tx-bps: 9\n")
        };
        let log = format!("{}{}{}", report(0), report(327_105_u64), report(5));
        let frames: Vec<f64> = rates(&log).iter().map(|rate| rate.frames).collect();
        assert_eq!(frames, [327_105.0, 5.0]);
        let bits = rates(&log).pop().map(|rate| rate.bits);
        assert_eq!(bits, Some(168_000.0));
    }
}
