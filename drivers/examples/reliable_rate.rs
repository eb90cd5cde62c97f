//! What reliable lanes cost: frames over a network in memory, so that nothing but the transport and its
//! copies is measured.
//!
//! `cargo run --release -p dwcp-drivers --example reliable_rate -- [frame bytes] [payload bytes]
//! [tagged|sealed] [cubic|bbr] [seconds] [lost per million]`
//! Both sides run in turn on one thread; the time of each is taken apart. Prints MB/s, datagrams per second
//! and nanoseconds per data datagram of each side, acknowledgements included.

use std::time::{Duration, Instant};

use dwcp_drivers::frame::{Frame, FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneEvent, LaneGroup};
use dwcp_drivers::loopback::{FaultMangler, FaultRates};
use dwcp_drivers::reliable::memory::{MemoryNetwork, MemoryPort};
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Plan {
    frame_bytes: usize,
    payload_bytes: usize,
    protection: Protection,
    config: ReliableConfig,
    duration: Duration,
    faults: FaultRates,
}

fn plan() -> Outcome<Plan> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &'static str| args.get(at).map_or(default, String::as_str);
    Ok(Plan {
        frame_bytes: arg(0, "4096").parse()?,
        payload_bytes: arg(1, "4160").parse()?,
        protection: match arg(2, "tagged") {
            "sealed" => Protection::Sealed,
            _ => Protection::Tagged,
        },
        config: ReliableConfig {
            congestion: match arg(3, "cubic") {
                "bbr" => Congestion::Bbr,
                _ => Congestion::Cubic,
            },
            queue_frames_max: 64,
            ..ReliableConfig::default()
        },
        duration: Duration::from_secs(arg(4, "3").parse()?),
        faults: FaultRates {
            drop_ppm: arg(5, "0").parse()?,
            ..FaultRates::default()
        },
    })
}

fn pools() -> Outcome<FramePools> {
    Ok(FramePools::new(&FramePoolsConfig {
        small: 1024,
        medium: 512,
        large: 16,
        backing: BackingPolicy::PreferHuge,
    })?)
}

fn group(plan: &Plan, port: MemoryPort, seed: u64) -> Outcome<ReliableLanes<MemoryPort>> {
    let port = if plan.faults == FaultRates::default() {
        port
    } else {
        port.mangled(Box::new(FaultMangler::new(seed, plan.faults)))
    };
    Ok(ReliableLanes::new(port, plan.config.clone())?)
}

fn main() -> Outcome<()> {
    let plan = plan()?;
    let network = MemoryNetwork::new(2048, plan.payload_bytes);
    let (near, far) = (network.port()?, network.port()?);
    let there = far.address();
    let mut sender = group(&plan, near, 1)?;
    let mut receiver = group(&plan, far, 2)?;
    let (sends, lands) = (pools()?, pools()?);
    let end = |meeting| ReliableEndpoint {
        meeting,
        connection: 1,
        secret: [7; 32],
        protection: plan.protection,
    };
    let lane = sender.add(end(Meeting::Connect(there)), &lands)?;
    receiver.add(end(Meeting::Accept), &lands)?;
    let frames: Vec<Frame> = (0..64u8)
        .map(|seed| sends.copy(&vec![seed; plan.frame_bytes]).ok_or("no buffer"))
        .collect::<Result<_, _>>()?;
    let mut events: Vec<LaneEvent> = Vec::with_capacity(256);
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    let (mut submitted, mut arrived) = (0usize, 0u64);
    let start = Instant::now();
    while start.elapsed() < plan.duration {
        let turn = Instant::now();
        while sender
            .submit(lane, frames[submitted % frames.len()].clone())
            .is_ok()
        {
            submitted += 1;
        }
        sender.poll(&mut events);
        events.clear();
        let half = Instant::now();
        sending += half - turn;
        receiver.poll(&mut events);
        arrived += events.len() as u64;
        events.clear();
        receiving += half.elapsed();
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = sender.wire_bytes(lane).sent as f64;
    let stats = sender.stats(lane).ok_or("the lane is gone")?;
    let datagrams = network.delivered() as f64;
    let data = bytes / plan.frame_bytes.min(plan.payload_bytes - 54) as f64;
    println!(
        "{:.0} MB/s with both sides on one core; {:.0} frames/s; about {:.0} data datagrams/s, {:.2} \
         datagrams in all for each; sending {:.0} ns, receiving {:.0} ns for each",
        bytes / 1e6 / seconds,
        arrived as f64 / seconds,
        data / seconds,
        datagrams / data,
        sending.as_nanos() as f64 / data,
        receiving.as_nanos() as f64 / data,
    );
    println!(
        "one side alone would reach {:.0} MB/s sending, {:.0} MB/s receiving; {stats:?}",
        bytes / 1e6 / sending.as_secs_f64(),
        bytes / 1e6 / receiving.as_secs_f64(),
    );
    Ok(())
}
