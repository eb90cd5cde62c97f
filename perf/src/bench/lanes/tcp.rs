//! A TCP lane against `iperf3` with a single stream, over one veth pair between two network namespaces,
//! one worker a side, each side on a core of its own where there are two. Both send from memory that they
//! do not fill anew and do not look at what comes. System calls are counted at full speed, by the
//! kernel's tracepoint: a tracer that stops the process at each call would change how much one call does.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::dir::LabDir;
use dwcp_lab::netns::{Cable, Host};
use dwcp_lab::procs::Proc;
use serde_json::Value;

use super::end::Measured;
use crate::row::Row;

const PAIRS: usize = 5;
const SECONDS: u32 = 4;
const PORT: u16 = 5201;
const PATIENCE: Duration = Duration::from_secs(60);

/// One run of one of the two.
struct Sample {
    gb_per_s: f64,
    gb_per_cpu_s: f64,
    /// Of the sending side and of the receiving side.
    calls_per_mb: [f64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ours,
    Iperf3,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    for tool in ["iperf3", "perf"] {
        let found = Command::new(tool).arg("--version").output();
        ensure!(
            found.is_ok_and(|out| out.status.success()),
            "{tool} does not run: install iperf3 and linux-perf"
        );
    }
    let (a, b) = (Host::new("a")?, Host::new("b")?);
    let cable = Cable::lan(&a, &b, 1)?;
    let ground = Ground {
        hosts: [&a, &b],
        address: SocketAddr::from((cable.b, PORT)),
        cores: super::cores(),
    };
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for pair in 0..runs.unwrap_or(PAIRS) {
        let order = if pair % 2 == 0 {
            [Way::Ours, Way::Iperf3]
        } else {
            [Way::Iperf3, Way::Ours]
        };
        for way in order {
            let sample = ground.carry(way).with_context(|| format!("{way:?}"))?;
            match way {
                Way::Ours => ours.push(sample),
                Way::Iperf3 => reference.push(sample),
            }
        }
    }
    let row = |what: &str, unit, of: fn(&Sample) -> f64| {
        let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<f64>>();
        let name = format!("lanes tcp, {what}");
        Row::new(&name, unit, &values(&ours), &values(&reference))
    };
    Ok(vec![
        row("rate", "GB/s", |sample| sample.gb_per_s),
        row("rate at equal processor time", "GB/cpu-s", |sample| {
            sample.gb_per_cpu_s
        }),
        row("system calls", "1/MB", |sample| {
            sample.calls_per_mb.iter().sum()
        }),
        row("system calls, sending", "1/MB", |sample| {
            sample.calls_per_mb[0]
        }),
        row("system calls, receiving", "1/MB", |sample| {
            sample.calls_per_mb[1]
        }),
    ])
}

struct Ground<'h> {
    hosts: [&'h Host; 2],
    address: SocketAddr,
    cores: [usize; 2],
}

impl Ground<'_> {
    fn carry(&self, way: Way) -> anyhow::Result<Sample> {
        let dir = LabDir::new("lanes")?;
        let program = std::env::current_exe()?;
        let commands: [Vec<String>; 2] = match way {
            Way::Ours => {
                [("send", self.cores[0]), ("receive", self.cores[1])].map(|(role, core)| {
                    let program = program.display();
                    words(&format!(
                        "{program} lane-end {role} {} --seconds {SECONDS} --core {core}",
                        self.address
                    ))
                })
            }
            Way::Iperf3 => {
                let (host, port, [near, far]) =
                    (self.address.ip(), self.address.port(), self.cores);
                [
                    words(&format!(
                        "iperf3 --json -c {host} -p {port} -t {SECONDS} -A {near},{far}"
                    )),
                    words(&format!("iperf3 --json -s -1 -B {host} -p {port}")),
                ]
            }
        };
        let [sender, receiver] = commands;
        let mut receiver = Side::start(self.hosts[1], &receiver, dir.path(), "receive")?;
        if way == Way::Iperf3 {
            // Its client does not try again.
            std::thread::sleep(Duration::from_millis(300));
        }
        let mut sender = Side::start(self.hosts[0], &sender, dir.path(), "send")?;
        let (sent, received) = (sender.end()?, receiver.end()?);
        let calls = [sender.calls()?, receiver.calls()?];
        let figures = match way {
            Way::Ours => ours(&sent, &received)?,
            Way::Iperf3 => iperf3(&sent)?,
        };
        let (bytes, seconds, cpu_s) = figures;
        ensure!(bytes > 0.0 && cpu_s > 0.0, "nothing was carried");
        Ok(Sample {
            gb_per_s: bytes / 1e9 / seconds,
            gb_per_cpu_s: bytes / 1e9 / cpu_s,
            calls_per_mb: calls.map(|calls| calls as f64 / (bytes / 1e6)),
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Bytes, seconds, processor seconds of both sides.
fn ours(sent: &Value, received: &Value) -> anyhow::Result<(f64, f64, f64)> {
    let sent: Measured = serde_json::from_value(sent.clone())?;
    let received: Measured = serde_json::from_value(received.clone())?;
    ensure!(
        sent.bytes == received.bytes,
        "{} bytes sent, {} received",
        sent.bytes,
        received.bytes
    );
    let cpu_s = sent.cpu_s + received.cpu_s;
    Ok((received.bytes as f64, received.seconds, cpu_s))
}

/// The same from the client's report, which has the server's figures too.
fn iperf3(report: &Value) -> anyhow::Result<(f64, f64, f64)> {
    let end = &report["end"];
    let number = |value: &Value| value.as_f64().context("a figure is missing in its report");
    let received = &end["sum_received"];
    let (bytes, seconds) = (number(&received["bytes"])?, number(&received["seconds"])?);
    let shares = &end["cpu_utilization_percent"];
    let percent = number(&shares["host_total"])? + number(&shares["remote_total"])?;
    Ok((bytes, seconds, percent / 100.0 * seconds))
}

/// A process that prints JSON and whose system calls are counted.
struct Side {
    process: Proc,
    counts: std::path::PathBuf,
}

impl Side {
    fn start(host: &Host, command: &[String], dir: &Path, name: &str) -> anyhow::Result<Self> {
        let counts = dir.join(format!("{name}.calls"));
        let mut counted = host.command("perf");
        counted
            .args(["stat", "-e", "raw_syscalls:sys_enter", "-x,", "-o"])
            .arg(&counts)
            .arg("--")
            .args(command);
        let process = Proc::spawn(counted, &dir.join(name))?;
        Ok(Self { process, counts })
    }

    /// What it printed.
    fn end(&mut self) -> anyhow::Result<Value> {
        let status = self.process.wait(PATIENCE)?;
        let text = std::fs::read_to_string(self.process.log())?;
        ensure!(status.success(), "{status}: {text}");
        let start = text.find('{').context("no JSON")?;
        serde_json::from_str(&text[start..]).with_context(|| text.clone())
    }

    /// System calls of the process, its start included.
    fn calls(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(&self.counts)?;
        calls(&text).with_context(|| {
            format!("perf counts no system calls ({text}): run as root, with tracefs")
        })
    }
}

/// The count in the lines of `perf stat -x,`.
fn calls(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_are_read() {
        let text = "# started on Sat\n\n144,,raw_syscalls:sys_enter,1425189,100.00,,\n";
        assert_eq!(calls(text), Some(144));
        assert_eq!(
            calls("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"),
            None
        );
        let report = json!({ "end": {
            "sum_received": { "bytes": 8_000_000_000u64, "seconds": 4.0 },
            "cpu_utilization_percent": { "host_total": 90.0, "remote_total": 60.0 },
        }});
        let (bytes, seconds, cpu_s) = iperf3(&report).unwrap();
        assert!((bytes - 8e9).abs() < 1.0 && (seconds - 4.0).abs() < 1e-9);
        assert!((cpu_s - 6.0).abs() < 1e-9);
        assert!(iperf3(&json!({ "error": "refused" })).is_err());
    }

    #[test]
    fn bytes_that_did_not_arrive_are_an_error() {
        let end = |bytes: u64| json!({ "bytes": bytes, "seconds": 1.0, "cpu_s": 0.5 });
        assert!(ours(&end(5), &end(5)).is_ok());
        assert!(ours(&end(5), &end(4)).is_err());
    }
}
