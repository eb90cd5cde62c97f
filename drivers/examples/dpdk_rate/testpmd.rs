//! DPDK's own test program, sending at one end and dropping at the other.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::{FRAME_BYTES, Outcome, PAYLOAD_BYTES, Plan, WARM_UP, median};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(plan: &Plan, host: u8) -> Outcome<Running> {
    let (role, forward) = if host == 2 {
        ("server", "rxonly")
    } else {
        ("client", "txonly")
    };
    let device = format!(
        "net_memif0,role={role},socket-abstract=no,socket={},bsize=8192,rsize=9",
        plan.socket().display()
    );
    let cpu = host - 1;
    let mut command = Command::new("dpdk-testpmd");
    command
        .args(["--no-huge", "-m", "128", "--no-pci", "--no-telemetry"])
        .args(["--no-shconf", "--iova-mode=va", "--log-level=error"])
        .args([
            "--file-prefix",
            &format!("dwcp-pmd-{host}-{}", std::process::id()),
        ])
        // Its console sleeps on the processor where its one worker spins.
        .args(["--lcores", &format!("0@{cpu},1@{cpu}")])
        .args(["--vdev", &device, "--"])
        .args([&format!("--forward-mode={forward}"), "--auto-start"])
        .args(["--nb-cores=1", "--total-num-mbufs=4096", "--mbuf-size=8192"])
        .args([&format!("--txpkts={FRAME_BYTES}"), "--stats-period=1"])
        .args(["--no-lsc-interrupt", "--burst=32"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    Ok(Running(command.spawn().map_err(|cause| {
        format!("cannot run dpdk-testpmd: {cause}; install it (Debian: dpdk)")
    })?))
}

/// The median of what the receiver prints each second.
pub(crate) fn measure(plan: &Plan) -> Outcome<f64> {
    let mut receiver = start(plan, 2)?;
    let start_of_link = Instant::now();
    while !plan.socket().exists() {
        if start_of_link.elapsed().as_secs() > 10 {
            return Err("testpmd makes no socket".into());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let _sender = start(plan, 1)?;
    let lines = BufReader::new(receiver.0.stdout.take().ok_or("no output")?).lines();
    let mut rates = Vec::new();
    let mut began = None;
    for line in lines {
        // As `  Rx-pps:       327105          Rx-bps:  10886056800`.
        let line = line?;
        let Some(rest) = line.trim().strip_prefix("Rx-pps:") else {
            continue;
        };
        let frames: f64 = rest.split_whitespace().next().unwrap_or("0").parse()?;
        if frames == 0.0 {
            if start_of_link.elapsed().as_secs() > 20 {
                return Err("testpmd receives nothing".into());
            }
            continue;
        }
        let start = *began.get_or_insert_with(Instant::now);
        if start.elapsed() > WARM_UP {
            rates.push(frames * PAYLOAD_BYTES as f64 / 1e6);
        }
        if start.elapsed() > WARM_UP + plan.duration {
            break;
        }
    }
    Ok(median(rates))
}
