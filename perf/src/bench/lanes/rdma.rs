//! An RDMA lane against `ib_write_bw`, over two software RDMA devices in one virtual machine: this machine's
//! kernel has none. In: how many pairs. Out: rows by length of a frame. Promises: ours and the reference
//! take turns in one machine that boots once; a run that carried nothing is an error.
//!
//! The reference writes into the same memory of its peer again and again: its peer does nothing, learns
//! nothing, and is asked nothing. A lane delivers frames: its peer is asked for memory, told of each frame,
//! and hands it over. Both sides of both spin, as the reference knows no other way; how a lane does whose
//! sides sleep is a row more. System calls are counted in runs of their own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use dwcp_lab::vm::{Shape, Vm, VmConfig};
use serde_json::Value;

use crate::row::Row;

const PAIRS: usize = 5;
/// Lengths of frames: many in a message, one in a packet, and the length that rates are quoted for.
const LENGTHS: [usize; 3] = [64, 4096, 65_536];
/// The longest of them is also carried by sides that sleep.
const SLEEPERS_BYTES: usize = LENGTHS[2];
const SECONDS: u32 = 2;
/// What booting and one sample take on a slow machine.
const BOOT: Duration = Duration::from_secs(120);
const SAMPLE: Duration = Duration::from_secs(20);
/// Begins the line that names what the lines behind it are about.
const MARK: &str = "sample";

/// Takes samples and prints each behind a line with its name and length. Who connects tries until somebody
/// listens. The count of `perf` is of the whole process, its start and its end included.
const TAKE: &str = r#"
set -e
cd /tmp
mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null || true
port=7700
until_it_connects() {
    for _ in $(seq 50); do
        if "$@" >sent 2>&1; then return 0; fi
        sleep 0.1
    done
    cat sent
    return 1
}
ours() {
    port=$((port + 1))
    echo "sample $1 $2"
    $3 "$RATE" listen "10.77.0.2:$port" "$1" >received &
    until_it_connects $4 "$RATE" send 10.77.0.1 "10.77.0.2:$port" "$1" "$2" "$SECONDS_EACH"
    wait $!
    cat received
}
theirs() {
    port=$((port + 1))
    echo "sample reference $1"
    ib_write_bw -F -d rxe1 -p "$port" -s "$1" -D "$SECONDS_EACH" >/dev/null &
    until_it_connects ib_write_bw -F -d rxe0 -p "$port" -s "$1" -D "$SECONDS_EACH" 10.77.0.2
    wait $!
    cat sent
}
calls() {
    count="perf stat -x, -e raw_syscalls:sys_enter,syscalls:sys_enter_write -o"
    ours dedicated "$1" "$count far.calls --" "$count near.calls --" >counted
    echo "sample calls $1"
    sed -n 's/frames\/s.*/frames\/s; finished/p' counted
    for side in near far; do
        sed -n "s/^\([0-9]*\),.*sys_enter_write.*/$side write \1/p; s/^\([0-9]*\),.*raw_syscalls.*/$side all \1/p" $side.calls
    done
}
"#;

/// One run: bytes and frames a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    mb_per_s: f64,
    frames_per_s: f64,
}

/// System calls of one run of ours, by side and kind.
#[derive(Clone, Debug, Default, PartialEq)]
struct Calls {
    frames: f64,
    by_name: HashMap<String, f64>,
}

/// Everything that was measured, by what and by length.
#[derive(Debug, Default)]
struct Samples {
    rates: HashMap<(String, usize), Vec<Rate>>,
    calls: HashMap<usize, Calls>,
}

pub(super) fn run(runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
    for (tool, package) in [("ib_write_bw", "perftest"), ("perf", "linux-perf")] {
        let found = Command::new(tool).arg("--version").output();
        ensure!(found.is_ok(), "{tool} does not run: install {package}");
    }
    let pairs = runs.unwrap_or(PAIRS);
    let program = example()?;
    let samples = u32::try_from(pairs * (2 * LENGTHS.len() + 1) + 2)?;
    let config = VmConfig {
        limit: BOOT + SAMPLE * samples,
        ..VmConfig::new(Shape::Rxe)
    };
    let outcome = Vm::run(&config, Path::new("/tmp"), &job(&program, pairs))?;
    ensure!(
        outcome.status == 0,
        "the job ended with {}: {}",
        outcome.status,
        outcome.said
    );
    rows(&read(&outcome.said)?, pairs)
}

/// Builds the program that drives a lane from one end, and says where it is.
fn example() -> anyhow::Result<PathBuf> {
    let built = Command::new("cargo")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "dwcp-drivers",
        ])
        .args(["--features", "rdma", "--example", "rdma_rate"])
        .arg("--message-format=json-render-diagnostics")
        .output()
        .context("cargo does not run")?;
    ensure!(
        built.status.success(),
        "{}\nrdma_rate does not build: install libibverbs-dev, librdmacm-dev and libclang-dev",
        String::from_utf8_lossy(&built.stderr)
    );
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|said| said["target"]["name"] == "rdma_rate")
        .find_map(|said| said["executable"].as_str().map(PathBuf::from))
        .context("cargo built rdma_rate and does not say where")
}

fn job(program: &Path, pairs: usize) -> String {
    let mut job = format!("RATE='{}'\nSECONDS_EACH={SECONDS}\n", program.display());
    job.push_str(TAKE);
    for _ in 0..pairs {
        for bytes in LENGTHS {
            job.push_str(&format!("ours dedicated {bytes}\ntheirs {bytes}\n"));
        }
        job.push_str(&format!("ours shared {SLEEPERS_BYTES}\n"));
    }
    for bytes in [LENGTHS[0], LENGTHS[2]] {
        job.push_str(&format!("calls {bytes}\n"));
    }
    job
}

fn read(said: &str) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let (mut name, mut bytes) = ("", 0);
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [MARK, what, length] => (name, bytes) = (what, length.parse()?),
            [mb, "MB/s,", frames, "frames/s;", how] => {
                ensure!(how == "finished", "a lane did not finish: {line}");
                let rate = Rate {
                    mb_per_s: mb.parse()?,
                    frames_per_s: frames.parse()?,
                };
                if name == "calls" {
                    let frames = rate.frames_per_s * f64::from(SECONDS);
                    samples.calls.entry(bytes).or_default().frames = frames;
                } else {
                    let key = (name.to_owned(), bytes);
                    samples.rates.entry(key).or_default().push(rate);
                }
            }
            [side @ ("near" | "far"), what, count] if name == "calls" => {
                let calls = samples.calls.entry(bytes).or_default();
                let count = count.parse()?;
                calls.by_name.insert(format!("{side} {what}"), count);
            }
            // Its report: length, iterations, peak and average in MiB/s, whatever its head calls them,
            // millions of messages a second.
            [length, _, _, mib, millions] if name == "reference" && length.parse() == Ok(bytes) => {
                let rate = Rate {
                    mb_per_s: mib.parse::<f64>()? * f64::from(1 << 20) / 1e6,
                    frames_per_s: millions.parse::<f64>()? * 1e6,
                };
                let key = (name.to_owned(), bytes);
                samples.rates.entry(key).or_default().push(rate);
            }
            _ => {}
        }
    }
    Ok(samples)
}

fn rows(samples: &Samples, pairs: usize) -> anyhow::Result<Vec<Row>> {
    let figures = |name: &str, bytes, pick: fn(&Rate) -> f64| -> anyhow::Result<Vec<f64>> {
        let rates = samples.rates.get(&(name.to_owned(), bytes));
        let rates = rates.map_or(&[][..], Vec::as_slice);
        if rates.len() != pairs || rates.iter().any(|rate| pick(rate) <= 0.0) {
            bail!("{name} at {bytes} bytes: {rates:?} are not {pairs} runs that carried something");
        }
        Ok(rates.iter().map(pick).collect())
    };
    let mb = |rate: &Rate| rate.mb_per_s;
    let frames = |rate: &Rate| rate.frames_per_s;
    let mut rows = Vec::new();
    for (bytes, unit, pick) in [
        (LENGTHS[2], "MB/s", mb as fn(&Rate) -> f64),
        (LENGTHS[1], "frames/s", frames),
        (LENGTHS[0], "frames/s", frames),
    ] {
        let reference = figures("reference", bytes, pick)?;
        let ours = figures("dedicated", bytes, pick)?;
        let name = format!("rdma, frames of {bytes} bytes");
        rows.push(Row::new(&name, unit, &ours, &reference));
        if bytes == SLEEPERS_BYTES {
            let ours = figures("shared", bytes, pick)?;
            let name = format!("{name}, both sides sleep when idle");
            rows.push(Row::new(&name, unit, &ours, &reference));
        }
    }
    for bytes in [LENGTHS[0], LENGTHS[2]] {
        rows.extend(calls(bytes, samples.calls.get(&bytes))?);
    }
    Ok(rows)
}

/// A software device is rung by a call to write; a device of hardware by a store. All else is ours.
fn calls(bytes: usize, calls: Option<&Calls>) -> anyhow::Result<Vec<Row>> {
    let calls = calls.context("system calls were not counted")?;
    let count = |side: &str, what: &str| {
        let count = calls.by_name.get(&format!("{side} {what}")).copied();
        count.context("perf counts no system calls: is linux-perf as new as the kernel?")
    };
    let mut rows = Vec::new();
    for (side, role) in [("near", "sender"), ("far", "receiver")] {
        let (all, write) = (count(side, "all")?, count(side, "write")?);
        let row = |what: &str, calls: f64, unit: &str| {
            Row::new(
                &format!("rdma, frames of {bytes} bytes: {what}, {role}"),
                unit,
                &[calls],
                &[],
            )
        };
        rows.push(row("doorbells", write / calls.frames * 1e3, "/1000 fr"));
        rows.push(row("other calls", all - write, "calls").noted(format!(
            "of {:.0} frames; start, connection and end included",
            calls.frames
        )));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
sample dedicated 65536
over rxe1
52.00 MB/s, 793 frames/s; finished
sample reference 65536
                    RDMA_Write BW Test
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      1600             0.00               50.00              0.000800
sample calls 65536
50.00 MB/s, 1000 frames/s; finished
near write 500
near all 700
far write 250
far all 260
";

    #[test]
    fn what_both_say_is_read() {
        let samples = read(SAID).unwrap();
        let ours = &samples.rates[&("dedicated".to_owned(), 65_536)];
        assert_eq!(ours.len(), 1);
        assert!((ours[0].mb_per_s - 52.0).abs() < 1e-9 && ours[0].frames_per_s > 792.0);
        let theirs = samples.rates[&("reference".to_owned(), 65_536)][0];
        assert!((theirs.mb_per_s - 52.4288).abs() < 1e-9);
        assert!((theirs.frames_per_s - 800.0).abs() < 1e-6);
        let rows = calls(65_536, samples.calls.get(&65_536)).unwrap();
        let figures: Vec<f64> = rows.iter().map(|row| row.ours).collect();
        assert_eq!(figures, [250.0, 200.0, 125.0, 10.0]);
    }

    #[test]
    fn a_run_that_is_missing_or_broke_is_an_error() {
        assert!(rows(&read(SAID).unwrap(), 1).is_err(), "two lengths miss");
        assert!(read("sample dedicated 64\n1.00 MB/s, 5 frames/s; failed\n").is_err());
        assert!(calls(64, Some(&Calls::default())).is_err());
    }
}
