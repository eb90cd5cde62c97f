//! A reliable lane over memif against DPDK's own test program, which sends frames from one process and
//! drops them in another, without asking what became of them. Both have one worker a side, each side on a
//! core of its own where there are two, and frames of the same length on rings of the same size, in ordinary
//! pages. Nobody fills frames anew or looks at what comes; ours are delivered in order, all of them. On a
//! wire of the same owner, which a memif is, a tag guards what the lane itself goes by; the other rows guard the
//! content too.
//!
//! Both are several times slower while the two cores are on two dies, which a virtual machine's may be at any time: a
//! sample is taken again, a few times, when they were before or after it, and a row says how near they were.
//!
//! A lane frame of 4 KiB fills one datagram. Its payload counts; of a frame of the reference all that lies
//! above UDP does.

pub mod end;
mod testpmd;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::dir::LabDir;
use dwcp_lab::procs::Proc;

use self::end::{Ended, Guard};
use super::end::said;
use super::hop::{FAR_NS, round_trip_ns};
use crate::row::Row;

/// Many and short: a virtual machine's cores are near each other at one time and far at another.
const PAIRS: usize = 7;
const SECONDS: u32 = 2;
/// A sample is taken so often until the cores are near each other.
const TRIES_MAX: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);
/// A whole frame on the memif: a lane frame of 4 KiB, what lanes add to it, UDP, IPv4, Ethernet.
pub(super) const ETHERNET_FRAME_BYTES: u16 = 4206;
/// Ethernet, IPv4, UDP.
pub(super) const HEADERS_BYTES: u16 = 42;
/// A packet buffer of the rings.
pub(super) const RING_BUFFER_BYTES: u16 = ETHERNET_FRAME_BYTES.next_multiple_of(64);
/// Packet buffers of a ring, as a power of two.
pub(super) const RING_LOG2: u8 = 9;

/// One of the ways to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Testpmd,
    Ours {
        what: &'static str,
        frame_bytes: usize,
        guard: Guard,
    },
}

const WAYS: [Way; 5] = [
    Way::Testpmd,
    Way::Ours {
        what: "4 KiB frames",
        frame_bytes: 4 << 10,
        guard: Guard::Headers,
    },
    Way::Ours {
        what: "4 KiB frames, authenticated",
        frame_bytes: 4 << 10,
        guard: Guard::Datagrams,
    },
    Way::Ours {
        what: "4 KiB frames, encrypted",
        frame_bytes: 4 << 10,
        guard: Guard::Encrypted,
    },
    Way::Ours {
        what: "512 KiB frames",
        frame_bytes: 512 << 10,
        guard: Guard::Headers,
    },
];

/// One run of one of them.
struct Sample {
    gb_per_s: f64,
    gb_per_cpu_s: f64,
    /// Of both workers, while they carried; not counted of the reference.
    calls_per_million_datagrams: f64,
    /// Between the two cores, the longer of before and after.
    round_trip_ns: f64,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let found = Command::new(testpmd::PROGRAM).arg("--version").output();
    ensure!(
        found.is_ok(),
        "{} does not run: install dpdk-dev",
        testpmd::PROGRAM
    );
    let cores = super::cores();
    let mut samples: [Vec<Sample>; WAYS.len()] = Default::default();
    for round in 0..runs.unwrap_or(PAIRS) {
        // Each begins a round as often as the others.
        for at in (0..WAYS.len()).map(|at| (at + round) % WAYS.len()) {
            let sample = carry_near(WAYS[at], cores).with_context(|| format!("{:?}", WAYS[at]))?;
            samples[at].push(sample);
        }
    }
    let [reference, ours @ ..] = &samples;
    let mut rows = Vec::new();
    for (way, ours) in WAYS[1..].iter().zip(ours) {
        let Way::Ours { what, .. } = way else {
            continue;
        };
        let row = |figure: &str, unit, of: fn(&Sample) -> f64, reference: &[Sample]| {
            let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<f64>>();
            let name = format!("lanes dpdk, {what}, {figure}");
            Row::new(&name, unit, &values(ours), &values(reference))
        };
        rows.push(row("rate", "GB/s", |sample| sample.gb_per_s, reference));
        let per_cpu = |sample: &Sample| sample.gb_per_cpu_s;
        rows.push(row(
            "rate per processor time",
            "GB/cpu-s",
            per_cpu,
            reference,
        ));
        let calls = |sample: &Sample| sample.calls_per_million_datagrams;
        rows.push(row("system calls of both workers", "1/million", calls, &[]));
        let near = |sample: &Sample| sample.round_trip_ns;
        rows.push(row("round trip between the cores", "ns", near, reference));
    }
    Ok(rows)
}

/// Carries, again if the cores were far from each other.
fn carry_near(way: Way, cores: [usize; 2]) -> anyhow::Result<Sample> {
    let mut tries = 1;
    loop {
        let before_ns = round_trip_ns(cores)?;
        let mut sample = carry(way, cores)?;
        sample.round_trip_ns = before_ns.max(round_trip_ns(cores)?);
        if sample.round_trip_ns < FAR_NS || cores[0] == cores[1] || tries == TRIES_MAX {
            return Ok(sample);
        }
        tries += 1;
    }
}

fn carry(way: Way, cores: [usize; 2]) -> anyhow::Result<Sample> {
    let dir = LabDir::new("lanes")?;
    match way {
        Way::Testpmd => {
            let carried = testpmd::carry(dir.path(), cores, SECONDS)?;
            Ok(Sample {
                gb_per_s: carried.gb_per_s,
                gb_per_cpu_s: carried.gb_per_cpu_s,
                calls_per_million_datagrams: f64::NAN,
                round_trip_ns: f64::NAN,
            })
        }
        Way::Ours {
            frame_bytes, guard, ..
        } => ours(dir.path(), cores, frame_bytes, guard),
    }
}

fn ours(dir: &Path, cores: [usize; 2], frame_bytes: usize, guard: Guard) -> anyhow::Result<Sample> {
    let start = |role: &str, core: usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["dpdk-end", role]).arg(dir.join("memif"));
        command.args(["--seconds", &SECONDS.to_string()]);
        command.args(["--frame-bytes", &frame_bytes.to_string()]);
        command.args(["--core", &core.to_string()]);
        command.args(["--guard", guard.name()]);
        Ok::<_, anyhow::Error>(Proc::spawn(command, &dir.join(role))?)
    };
    let mut receiver = start("receive", cores[1])?;
    let mut sender = start("send", cores[0])?;
    let (sent, received) = (ended(&mut sender)?, ended(&mut receiver)?);
    let (near, far) = (sent.measured, received.measured);
    ensure!(
        near.bytes == far.bytes && far.bytes > 0,
        "{} bytes sent, {} received",
        near.bytes,
        far.bytes
    );
    let bytes = far.bytes as f64;
    let datagrams = (sent.datagrams + received.datagrams) as f64;
    Ok(Sample {
        gb_per_s: bytes / 1e9 / far.seconds,
        gb_per_cpu_s: bytes / 1e9 / (near.cpu_s + far.cpu_s),
        calls_per_million_datagrams: (sent.system_calls + received.system_calls) as f64
            / (datagrams / 1e6),
        round_trip_ns: f64::NAN,
    })
}

/// What an end printed; it runs on.
fn ended(process: &mut Proc) -> anyhow::Result<Ended> {
    let line = said(process, PATIENCE)?;
    serde_json::from_str(&line).with_context(|| line.clone())
}
