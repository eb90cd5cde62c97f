//! One end of a lane, alone in its process: sends as fast as the lane takes, or receives until the other
//! end is done. In: a lane group with a lane. Out: bytes, time, processor time. Promise: it rests when the
//! lane has nothing to do, as a worker does, so that processor time is work only.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId, Polled};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::tcp::{SocketTuning, TcpLanes, TcpOptions, TcpPort, tune};
use dwcp_hugepages::arena::BackingPolicy;
use dwcp_lab::procs::Proc;
use dwcp_lab::watchdog::poll_until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(30);
/// A lane that has nothing to do looks this often whether its time is over.
const LOOK_EVERY_NS: i64 = 50_000_000;
const EVENTS_MAX: usize = 64;

/// What one end measured, from its first frame to its last.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Processor time of the whole process, user and system.
    pub(crate) cpu_s: f64,
}

/// The command line of an end; for this program itself, not for people.
#[derive(clap::Args, Clone, Debug)]
pub struct EndArguments {
    /// What to do
    role: Role,
    /// Where the receiving end listens
    address: SocketAddr,
    /// How long to send
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Length of each frame
    #[arg(long, default_value_t = 512 << 10)]
    frame_bytes: usize,
    /// Core to run on
    #[arg(long)]
    core: usize,
}

/// Which end.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Role {
    Send,
    Receive,
}

/// Runs one end of a TCP lane and prints what it measured as JSON.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(arguments: &EndArguments) -> anyhow::Result<()> {
    pin(arguments.core)?;
    let mut end = TcpEnd::open(arguments.role, arguments.address)?;
    let measured = match arguments.role {
        Role::Send => {
            let duration = Duration::from_secs_f64(arguments.seconds);
            let (lane, frame_bytes) = (end.lane, arguments.frame_bytes);
            send(
                &mut end.group,
                lane,
                &end.pools,
                frame_bytes,
                duration,
                rest,
            )
        }
        Role::Receive => receive(&mut end.group, rest),
    }?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// The line of JSON that an end printed, whether or not it has ended.
pub(crate) fn said(process: &mut Proc, patience: Duration) -> anyhow::Result<String> {
    let log = process.log().to_owned();
    poll_until(patience, || {
        let gone = process.ended();
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        match whole.find(|line| line.starts_with(['{', '['])) {
            Some(line) => Some(Ok(line.trim().to_owned())),
            None => gone.map(|status| Err(anyhow!("{status}: {text}"))),
        }
    })
    .context("an end says nothing")?
}

/// Keeps the calling thread on this core.
pub(crate) fn pin(id: usize) -> anyhow::Result<()> {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id });
    anyhow::ensure!(pinned, "core {id} cannot be used");
    Ok(())
}

/// A worker's lanes over TCP, with one lane to the worker at the other end.
pub(crate) struct TcpEnd {
    pub(crate) group: TcpLanes,
    pub(crate) lane: LaneId,
    pub(crate) pools: FramePools,
    // Last: lanes are gone before their port.
    _port: TcpPort,
}

impl TcpEnd {
    /// Meets the other end at `address`, where the receiving one listens.
    pub(crate) fn open(role: Role, address: SocketAddr) -> anyhow::Result<Self> {
        let mut port = TcpPort::new(TcpOptions::default());
        port.open(PortConfig {
            lanes_max: 1,
            ..PortConfig::default()
        })?;
        port.start()?;
        let mut group = port.lanes()?;
        let pools = pools()?;
        let socket = match role {
            Role::Send => poll_until(PATIENCE, || TcpStream::connect(address).ok())
                .with_context(|| format!("nobody listens on {address}"))?,
            Role::Receive => TcpListener::bind(address)?.accept()?.0,
        };
        tune(&socket, &SocketTuning::default())?;
        let lane = group.add(OwnedFd::from(socket), &pools)?;
        Ok(Self {
            group,
            lane,
            pools,
            _port: port,
        })
    }
}

pub(crate) fn pools() -> anyhow::Result<FramePools> {
    Ok(FramePools::new(&FramePoolsConfig {
        small: 256,
        medium: 256,
        large: 64,
        backing: BackingPolicy::PreferHuge,
    })?)
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

struct Stopwatch {
    begun: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self {
            begun: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn stop(&self, bytes: u64) -> Measured {
        Measured {
            bytes,
            seconds: self.begun.elapsed().as_secs_f64(),
            cpu_s: (cpu_time() - self.cpu).as_secs_f64(),
        }
    }
}

/// Sleeps until there is something to do, at most for a moment.
pub(crate) fn rest<G: LaneGroup>(group: &mut G) -> anyhow::Result<()> {
    if group.prepare_park()
        && let Some(fd) = group.park_fd()
    {
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_EVERY_NS,
        };
        poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&patience),
        )?;
    }
    Ok(())
}

/// Sends one frame again and again: it is the lane that is measured, not the filling of frames. `rest` is what
/// the worker does when its lanes have nothing to do.
pub(crate) fn send<G: LaneGroup>(
    group: &mut G,
    lane: LaneId,
    pools: &FramePools,
    frame_bytes: usize,
    duration: Duration,
    mut rest: impl FnMut(&mut G) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let frame = pools
        .copy(&vec![0x5a; frame_bytes])
        .context("no buffer of this length")?;
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let (mut full, mut finishing, mut bytes) = (false, false, 0);
    let watch = Stopwatch::start();
    loop {
        if !finishing && watch.begun.elapsed() >= duration {
            group.finish(lane);
            finishing = true;
        }
        while !full && !finishing {
            full = group.submit(lane, frame.clone()).is_err();
            bytes += if full { 0 } else { frame_bytes as u64 };
        }
        if group.poll(&mut events) == Polled::Idle {
            rest(group)?;
        }
        for event in events.drain(..) {
            match event {
                LaneEvent::Writable { .. } => full = false,
                LaneEvent::Closed {
                    reason: LaneClosed::Finished,
                    ..
                } => return Ok(watch.stop(bytes)),
                LaneEvent::Closed { reason, .. } => bail!("the lane closed: {reason}"),
                LaneEvent::Frame { .. } => bail!("a frame came back"),
            }
        }
    }
}

/// Receives until the other end has finished.
pub(crate) fn receive<G: LaneGroup>(
    group: &mut G,
    mut rest: impl FnMut(&mut G) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut bytes = 0;
    let mut watch = Stopwatch::start();
    loop {
        if group.poll(&mut events) == Polled::Idle {
            rest(group)?;
        }
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => {
                    if bytes == 0 {
                        watch = Stopwatch::start();
                    }
                    bytes += frame.bytes().len() as u64;
                }
                LaneEvent::Closed {
                    reason: LaneClosed::Finished,
                    ..
                } => return Ok(watch.stop(bytes)),
                LaneEvent::Closed { lane, reason } => bail!("lane {} closed: {reason}", lane.0),
                LaneEvent::Writable { .. } => {}
            }
        }
    }
}
