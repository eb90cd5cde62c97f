//! What more workers carry: pairs of them, each with a lane, over TCP on the loopback interface and, in a
//! build with DPDK, over one memif with a pair of queues for each. In: how many rounds. Out: a row for each
//! number of workers a side, beside that many times what one carries. Promises: both sides are processes;
//! each worker has a core of its own as far as there are cores, and where not the row says so; what was left
//! out is named in a note. It needs nothing but this program.

pub mod end;

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dwcp_lab::dir::LabDir;
use dwcp_lab::procs::Proc;

use super::lanes::end::{Measured, said};
use crate::row::{Row, median};

const ROUNDS: usize = 5;
const SECONDS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(90);
/// Workers a side; those beyond the cores are left out.
const WORKERS: [usize; 5] = [1, 2, 4, 8, 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Tcp,
    Memif,
}

impl Over {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Memif => "memif",
        }
    }

    const fn frame_bytes(self) -> usize {
        match self {
            Self::Tcp => 512 << 10,
            Self::Memif => 4 << 10,
        }
    }
}

/// What this build can carry over.
const OVER: &[Over] = if cfg!(feature = "dpdk") {
    &[Over::Tcp, Over::Memif]
} else {
    &[Over::Tcp]
};

pub(super) fn run(rounds: Option<usize>) -> anyhow::Result<Vec<Row>> {
    let cores: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .map(|core| core.id)
        .collect();
    ensure!(!cores.is_empty(), "the cores of this machine are not known");
    let run_here: Vec<usize> = WORKERS
        .into_iter()
        .filter(|workers| *workers <= cores.len())
        .collect();
    let mut rates = vec![vec![Vec::new(); run_here.len()]; OVER.len()];
    for _ in 0..rounds.unwrap_or(ROUNDS) {
        for (over, rates) in OVER.iter().zip(&mut rates) {
            for (&workers, rates) in run_here.iter().zip(rates) {
                let rate = carry(*over, workers, &cores)
                    .with_context(|| format!("{workers} workers a side over {}", over.name()))?;
                rates.push(rate);
            }
        }
    }
    let mut rows = Vec::new();
    for (over, rates) in OVER.iter().zip(&rates) {
        let alone = rates.first().and_then(|rates| median(rates));
        for (&workers, rates) in run_here.iter().zip(rates) {
            let reference: Vec<f64> = alone.iter().map(|rate| rate * workers as f64).collect();
            let name = format!("scaling {}, {workers} a side", over.name());
            let row = Row::new(&name, "GB/s", rates, &reference);
            rows.push(if 2 * workers > cores.len() {
                row.noted(format!(
                    "{} workers share {} cores: the reference is out of reach",
                    2 * workers,
                    cores.len()
                ))
            } else {
                row
            });
        }
    }
    if let (Some(note), Some(last)) = (left_out(cores.len()), rows.pop()) {
        let note = last.note.iter().chain([&note]).cloned().collect::<Vec<_>>();
        rows.push(last.noted(note.join("; ")));
    }
    Ok(rows)
}

/// What is not among the rows, and why.
fn left_out(cores: usize) -> Option<String> {
    let numbers: Vec<String> = WORKERS
        .iter()
        .filter(|workers| **workers > cores)
        .map(ToString::to_string)
        .collect();
    let mut notes = Vec::new();
    if !numbers.is_empty() {
        notes.push(format!(
            "left out for want of cores: {} a side (there are {cores} cores)",
            numbers.join(", ")
        ));
    }
    if !OVER.contains(&Over::Memif) {
        notes.push("memif left out: built without --features dpdk".to_owned());
    }
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// Gigabytes a second of all pairs together.
fn carry(over: Over, workers: usize, cores: &[usize]) -> anyhow::Result<f64> {
    let dir = LabDir::new("scaling")?;
    let meeting = match over {
        Over::Tcp => addresses(workers)?,
        Over::Memif => dir.file("memif").display().to_string(),
    };
    let start = |role: &str, first: usize| {
        let cores: Vec<String> = (0..workers)
            .map(|worker| cores[(2 * worker + first) % cores.len()].to_string())
            .collect();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["scaling-end", role, "--cores", &cores.join(",")])
            .args(["--seconds", &SECONDS.to_string()])
            .args(["--frame-bytes", &over.frame_bytes().to_string()])
            .args([&format!("--{}", over.name()), &meeting]);
        Ok::<_, anyhow::Error>((command, dir.file(role)))
    };
    let shared = over == Over::Memif && 2 * workers > cores.len();
    let spawn = |(mut command, log): (Command, std::path::PathBuf)| {
        if shared {
            command.arg("--shared");
        }
        Proc::spawn(command, &log)
    };
    let mut receiver = spawn(start("receive", 1)?)?;
    let mut sender = spawn(start("send", 0)?)?;
    let (sent, received) = (measured(&mut sender)?, measured(&mut receiver)?);
    let bytes = |all: &[Measured]| all.iter().map(|one| one.bytes).sum::<u64>();
    ensure!(
        received.len() == workers && bytes(&sent) == bytes(&received),
        "{} bytes sent, {} received by {} workers",
        bytes(&sent),
        bytes(&received),
        received.len()
    );
    let rate = |one: &Measured| one.bytes as f64 / 1e9 / one.seconds;
    Ok(received.iter().map(rate).sum())
}

/// Addresses on the loopback interface that nobody listens on.
fn addresses(count: usize) -> anyhow::Result<String> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<Vec<SocketAddr>, _>>()?;
    let words: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Ok(words.join(","))
}

/// What the workers of a side printed.
fn measured(side: &mut Proc) -> anyhow::Result<Vec<Measured>> {
    let line = said(side, PATIENCE)?;
    serde_json::from_str(&line).with_context(|| line.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_silently() {
        let note = left_out(2).unwrap();
        assert!(note.contains("4, 8, 16 a side"), "{note}");
        let without_memif = !cfg!(feature = "dpdk");
        assert_eq!(note.contains("memif"), without_memif);
        assert_eq!(left_out(16).is_some(), without_memif);
        assert!(!left_out(64).unwrap_or_default().contains("cores"));
    }

    #[test]
    fn every_worker_has_an_address_of_its_own() {
        let all = addresses(16).unwrap();
        let mut words: Vec<&str> = all.split(',').collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 16);
    }
}
