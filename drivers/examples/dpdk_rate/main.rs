//! What two processes move over one memif: DPDK's own test program, our datagrams without any
//! reliability, and QUIC (quinn-proto) driven from the same poll loop. In alternation, so that the
//! machine's mood falls on all alike; the medians are printed.
//!
//! `cargo run --release -p dwcp-drivers --features dpdk,bench-quic --example dpdk_rate -- \
//!     [--rounds N] [--seconds N] [--only testpmd|datagrams|quic]`
//!
//! Every frame has 4,160 bytes from its Ethernet header on: a page of 4 KiB and what goes in front
//! of it. The sender runs on processor 0, the receiver on processor 1, memory is ordinary pages.
//! MB/s are of payload above UDP for ours and QUIC's stream, and of 4,118 bytes a frame for testpmd.

mod datagrams;
mod quic;
mod testpmd;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dwcp_drivers::dpdk::datagrams::{Address, Datagrams, NetConfig};
use dwcp_drivers::dpdk::device::{Device, Memif, MemifRole};
use dwcp_drivers::dpdk::eal::{Eal, EalConfig, Memory};
use dwcp_drivers::dpdk::port::{PacketPort, PortPlan};
use rustix::thread::{CpuSet, sched_setaffinity};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// From the Ethernet header on.
pub(crate) const FRAME_BYTES: u16 = 4160;
/// Of one frame, above UDP over IPv4.
pub(crate) const PAYLOAD_BYTES: usize = FRAME_BYTES as usize - 42;
pub(crate) const PORT: u16 = 4800;
/// Which a measurement does not count: links come up, windows open, clocks rise.
pub(crate) const WARM_UP: Duration = Duration::from_millis(1500);

/// What one process of a pair needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) folder: PathBuf,
    pub(crate) duration: Duration,
}

impl Plan {
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("memif.sock")
    }
}

/// Host 1 sends and is the memif client; host 2 receives and is the server.
pub(crate) fn address(host: u8) -> Address {
    Address {
        ip: [10, 77, 0, host].into(),
        prefix_bits: 24,
        gateway: None,
    }
}

/// A port on this process's processor.
pub(crate) fn open(plan: &Plan, host: u8) -> Outcome<(PacketPort, Datagrams)> {
    let eal = Eal::start(&EalConfig {
        memory: Memory::Ordinary { mib: 128 },
        pci: false,
    })?;
    let mut set = CpuSet::new();
    set.set(usize::from(host - 1));
    sched_setaffinity(None, &set)?;
    let device = Device::Memif(Memif {
        socket: plan.socket(),
        role: if host == 2 {
            MemifRole::Server
        } else {
            MemifRole::Client
        },
        frame_bytes: 8192,
        ring_log2: 9,
    });
    let port_plan = PortPlan {
        queues: 1,
        mtu_bytes: FRAME_BYTES - 14,
        packets_per_queue: 4096,
    };
    let (port, mut seats) = PacketPort::open(eal, &device, &port_plan)?;
    let queue = seats.pop().ok_or("no queue")?.sit()?;
    let net = NetConfig {
        v4: Some(address(host)),
        v6: None,
        port_base: PORT,
        queues: 1,
        mtu_bytes: port_plan.mtu_bytes,
    };
    Ok((port, Datagrams::new(queue, &net)?))
}

/// Runs this program twice more, as receiver and as sender; the receiver says what it got.
fn pair(plan: &Plan, kind: &str) -> Outcome<f64> {
    let program = std::env::current_exe()?;
    let role = |end: &str| {
        let mut command = Command::new(&program);
        command
            .args(["--role", &format!("{kind}-{end}")])
            .arg("--folder")
            .arg(&plan.folder)
            .args(["--seconds", &plan.duration.as_secs().to_string()]);
        command
    };
    let receiver = role("receive").stdout(Stdio::piped()).spawn()?;
    let mut sender = role("send").spawn()?;
    let said = receiver.wait_with_output()?;
    sender.kill()?;
    sender.wait()?;
    let text = String::from_utf8(said.stdout)?;
    let rate = text
        .trim()
        .strip_prefix("MB/s ")
        .ok_or(format!("{kind}: {text}"))?;
    Ok(rate.parse()?)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value behind an option's name.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() -> Outcome<()> {
    let scratch;
    let folder = if let Some(folder) = option("--folder") {
        PathBuf::from(folder)
    } else {
        scratch = tempfile::tempdir()?;
        scratch.path().to_owned()
    };
    let plan = Plan {
        folder,
        duration: Duration::from_secs(option("--seconds").unwrap_or("5".into()).parse()?),
    };
    match option("--role").as_deref() {
        Some("datagrams-send") => return datagrams::send(&plan),
        Some("datagrams-receive") => return datagrams::receive(&plan),
        Some("quic-send") => return quic::send(&plan),
        Some("quic-receive") => return quic::receive(&plan),
        Some(other) => return Err(format!("no role {other}").into()),
        None => {}
    }
    let rounds: usize = option("--rounds").unwrap_or("5".into()).parse()?;
    let only = option("--only");
    type Measure = fn(&Plan) -> Outcome<f64>;
    let kinds: [(&str, Measure); 3] = [
        ("testpmd", testpmd::measure),
        ("datagrams", |plan| pair(plan, "datagrams")),
        ("quic", |plan| {
            quic::make_certificate(&plan.folder)?;
            pair(plan, "quic")
        }),
    ];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); kinds.len()];
    for round in 0..rounds {
        for ((name, measure), rates) in kinds.iter().zip(&mut rates) {
            if only.as_deref().is_some_and(|only| only != *name) {
                continue;
            }
            remove(&plan.socket())?;
            let rate = measure(&plan)?;
            println!("round {round} {name}: {rate:.0} MB/s");
            rates.push(rate);
        }
    }
    for ((name, _), rates) in kinds.iter().zip(rates) {
        println!(
            "median of {} {name}: {:.0} MB/s",
            rates.len(),
            median(rates)
        );
    }
    Ok(())
}

/// A receiver that was killed leaves its socket.
fn remove(socket: &Path) -> Outcome<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
