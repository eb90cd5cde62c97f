//! How fast TCP lanes carry frames over loopback, and what that costs.
//!
//! `cargo run --release -p dwcp-drivers --example lane_rate -- [single|multi] [copy|zc|auto]
//! [frame KiB] [lanes] [seconds] [cpu:cpu|-] [unsent KiB]`
//! prints GB/s, frames per second, and the CPU seconds per GB of each side.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_drivers::frame::{Frame, FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneEvent, LaneGroup, Polled};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::tcp::{RecvMode, SendMode, SocketTuning, TcpLanes, TcpOptions, TcpPort, tune};
use dwcp_hugepages::arena::BackingPolicy;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Plan {
    options: TcpOptions,
    frame_bytes: usize,
    lanes: u16,
    duration: Duration,
    cpus: Option<[usize; 2]>,
    tuning: SocketTuning,
}

fn plan() -> Outcome<Plan> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &'static str| args.get(at).map_or(default, String::as_str);
    let recv = match arg(0, "single") {
        "multi" => RecvMode::Multishot,
        _ => RecvMode::SingleShot,
    };
    let send = match arg(1, "auto") {
        "copy" => SendMode::Copy,
        "zc" => SendMode::ZeroCopy,
        _ => SendMode::Auto,
    };
    let cpus = match arg(5, "0:1").split_once(':') {
        Some((near, far)) => Some([near.parse()?, far.parse()?]),
        None => None,
    };
    let unsent_kib: u32 = arg(6, "256").parse()?;
    Ok(Plan {
        options: TcpOptions {
            recv,
            send,
            backing: BackingPolicy::PreferHuge,
        },
        frame_bytes: (arg(2, "512").parse::<f64>()? * 1024.0) as usize,
        lanes: arg(3, "8").parse()?,
        duration: Duration::from_secs(arg(4, "5").parse()?),
        cpus,
        tuning: SocketTuning {
            unsent_bytes_max: unsent_kib << 10,
            ..SocketTuning::default()
        },
    })
}

/// Lanes and pools for this thread, on its core.
fn side(plan: &Plan, who: usize) -> Outcome<(TcpLanes, FramePools)> {
    if let Some(cpus) = plan.cpus {
        let mut set = CpuSet::new();
        set.set(cpus[who]);
        sched_setaffinity(None, &set)?;
    }
    let mut port = TcpPort::new(plan.options);
    port.open(PortConfig {
        lanes_max: plan.lanes,
        ..PortConfig::default()
    })?;
    port.start()?;
    let pools = FramePools::new(&FramePoolsConfig {
        small: 256,
        medium: 256,
        large: 64,
        backing: plan.options.backing,
    })?;
    Ok((port.lanes()?, pools))
}

/// Sleeps until there is something to do, so that CPU time is work only. Wakes now and then to see
/// whether the run is over.
fn rest(group: &mut TcpLanes) -> Outcome<()> {
    if group.prepare_park()
        && let Some(fd) = group.park_fd()
    {
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&patience),
        )?;
    }
    Ok(())
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

fn send(plan: &Plan, ends: Vec<OwnedFd>, stop: &AtomicBool) -> Outcome<(u64, Duration)> {
    let (mut group, pools) = side(plan, 0)?;
    let lanes = ends
        .into_iter()
        .map(|end| group.add(end, &pools))
        .collect::<Result<Vec<_>, _>>()?;
    // One frame shared by all sends: it is the lane that is measured, not the filling of frames.
    let frame: Frame = pools
        .copy(&vec![0x5a; plan.frame_bytes])
        .ok_or("no buffer")?;
    let mut events = Vec::with_capacity(64);
    let mut full = vec![false; lanes.len()];
    let before = cpu_time();
    while !stop.load(Ordering::Relaxed) {
        for (lane, full) in lanes.iter().zip(&mut full) {
            while !*full {
                *full = group.submit(*lane, frame.clone()).is_err();
            }
        }
        if group.poll(&mut events) == Polled::Idle {
            rest(&mut group)?;
        }
        for event in events.drain(..) {
            match event {
                LaneEvent::Writable { lane } => {
                    let at = lanes.iter().position(|known| *known == lane);
                    full[at.ok_or("an unknown lane")?] = false;
                }
                LaneEvent::Closed { reason, .. } => return Err(reason.into()),
                LaneEvent::Frame { .. } => {}
            }
        }
    }
    let sent = lanes.iter().map(|lane| group.wire_bytes(*lane).sent).sum();
    if let Some(stats) = group.stats(lanes[0]) {
        println!("path of lane 0: {} {stats:?}", stats.congestion_name());
    }
    Ok((sent, cpu_time() - before))
}

fn receive(plan: &Plan, ends: Vec<OwnedFd>, stop: &AtomicBool) -> Outcome<(u64, u64, Duration)> {
    let (mut group, pools) = side(plan, 1)?;
    let lanes = ends
        .into_iter()
        .map(|end| group.add(end, &pools))
        .collect::<Result<Vec<_>, _>>()?;
    let mut events = Vec::with_capacity(64);
    let mut frames = 0u64;
    let before = cpu_time();
    while !stop.load(Ordering::Relaxed) {
        if group.poll(&mut events) == Polled::Idle {
            rest(&mut group)?;
        }
        frames += events
            .iter()
            .filter(|event| matches!(event, LaneEvent::Frame { .. }))
            .count() as u64;
        events.clear();
    }
    let received = lanes
        .iter()
        .map(|lane| group.wire_bytes(*lane).received)
        .sum();
    Ok((received, frames, cpu_time() - before))
}

fn main() -> Outcome<()> {
    let plan = plan()?;
    // Two addresses, or `auto` would see one host and not even try to send without a copy.
    let listener = TcpListener::bind("127.0.0.2:0")?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..plan.lanes {
        let end = TcpStream::connect(listener.local_addr()?)?;
        let other = listener.accept()?.0;
        tune(&end, &plan.tuning)?;
        tune(&other, &plan.tuning)?;
        near.push(end.into());
        far.push(other.into());
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&plan, far, &stop));
        let sender = scope.spawn(|| send(&plan, near, &stop));
        let start = Instant::now();
        while start.elapsed() < plan.duration && !sender.is_finished() && !receiver.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let took_s = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| "the sender panicked")?;
        let received = receiver.join().map_err(|_| "the receiver panicked")?;
        let (_, sender_cpu) = sent?;
        let (bytes, frames, receiver_cpu) = received?;
        let gb = bytes as f64 / 1e9;
        println!(
            "{:.2} GB/s, {:.0} frames/s; CPU {:.3} s/GB sending, {:.3} s/GB receiving",
            gb / took_s,
            frames as f64 / took_s,
            sender_cpu.as_secs_f64() / gb,
            receiver_cpu.as_secs_f64() / gb,
        );
        Ok(())
    })
}
