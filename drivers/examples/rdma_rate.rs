//! How fast one RDMA lane carries frames from one process to another.
//!
//! `rdma_rate listen ADDRESS:PORT POLICY` and
//! `rdma_rate send OWN_ADDRESS ADDRESS:PORT POLICY FRAME_BYTES SECONDS`
//! What an idle side does is a worker's policy: `dedicated` spins and never sleeps, `shared` yields for
//! a moment and then sleeps. The listener prints MB/s (10^6 bytes) and frames per second, from the first
//! frame to the last.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId, Polled};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::rdma::{Endpoint, RdmaLanes, RdmaOptions, RdmaPort, TOKEN_BYTES};
use dwcp_hugepages::arena::BackingPolicy;
use rustix::event::{PollFd, PollFlags, poll};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: [u8; TOKEN_BYTES] = [7; TOKEN_BYTES];

fn port() -> Outcome<RdmaPort> {
    let mut port = RdmaPort::new(RdmaOptions::default());
    port.open(PortConfig::default())?;
    port.start()?;
    Ok(port)
}

fn lane(port: &RdmaPort, endpoint: Endpoint) -> Outcome<(RdmaLanes, FramePools, LaneId)> {
    println!("over {}", endpoint.device());
    let pools = FramePools::new(&FramePoolsConfig {
        small: 256,
        medium: 64,
        large: 32,
        backing: BackingPolicy::PreferHuge,
    })?;
    let mut group = port.lanes()?;
    let lane = group.add(endpoint, &pools)?;
    Ok((group, pools, lane))
}

/// How long a side that shares its core yields before it sleeps, as a worker does.
const YIELD: Duration = Duration::from_micros(20);

/// What a side does that has nothing to do.
struct Rest {
    dedicated: bool,
    idle_since: Option<Instant>,
}

impl Rest {
    fn new(policy: &str) -> Outcome<Self> {
        let dedicated = match policy {
            "dedicated" => true,
            "shared" => false,
            other => return Err(format!("{other}: a policy is dedicated or shared").into()),
        };
        Ok(Self {
            dedicated,
            idle_since: None,
        })
    }

    fn after(&mut self, polled: Polled, group: &mut RdmaLanes) -> Outcome<()> {
        if polled != Polled::Idle {
            self.idle_since = None;
        } else if self.dedicated {
            std::hint::spin_loop();
        } else if self.idle_since.get_or_insert_with(Instant::now).elapsed() < YIELD {
            std::thread::yield_now();
        } else if group.prepare_park()
            && let Some(fd) = group.park_fd()
        {
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None)?;
        }
        Ok(())
    }
}

fn listen(at: SocketAddr, mut rest: Rest) -> Outcome<()> {
    let port = port()?;
    let listener = port.connector()?.listen(at)?;
    let request = listener.next(PATIENCE)?.ok_or("nobody came")?;
    let (mut group, _pools, _lane) = lane(&port, request.accept(PATIENCE)?)?;
    let mut events = Vec::with_capacity(64);
    let (mut frames, mut bytes) = (0u64, 0u64);
    let (mut first, mut last) = (None, Instant::now());
    loop {
        let polled = group.poll(&mut events);
        rest.after(polled, &mut group)?;
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => {
                    last = Instant::now();
                    // The first frame starts the clock and is not counted.
                    match first {
                        None => first = Some(last),
                        Some(_) => {
                            frames += 1;
                            bytes += frame.len() as u64;
                        }
                    }
                }
                LaneEvent::Closed { reason, .. } => {
                    let first = first.ok_or("no frame came")?;
                    let took_s = (last - first).as_secs_f64();
                    println!(
                        "{:.2} MB/s, {:.0} frames/s; {reason}",
                        bytes as f64 / 1e6 / took_s,
                        frames as f64 / took_s
                    );
                    return if reason == LaneClosed::Finished {
                        Ok(())
                    } else {
                        Err(reason.into())
                    };
                }
                LaneEvent::Writable { .. } => {}
            }
        }
    }
}

fn send(
    own: IpAddr,
    to: SocketAddr,
    mut rest: Rest,
    frame_bytes: usize,
    duration: Duration,
) -> Outcome<()> {
    let port = port()?;
    let connector = port.connector()?;
    let endpoint = connector.connect(Some((own, 0).into()), to, &TOKEN, PATIENCE)?;
    let (mut group, pools, lane) = lane(&port, endpoint)?;
    // One frame shared by all sends: it is the lane that is measured, not the filling of frames.
    let frame = pools
        .copy(&vec![0x5a; frame_bytes])
        .ok_or("no such frame")?;
    let mut events = Vec::with_capacity(64);
    let (start, mut finished) = (Instant::now(), false);
    loop {
        if !finished {
            while group.submit(lane, frame.clone()).is_ok() {}
            if start.elapsed() >= duration {
                finished = true;
                group.finish(lane);
            }
        }
        let polled = group.poll(&mut events);
        rest.after(polled, &mut group)?;
        for event in events.drain(..) {
            match event {
                LaneEvent::Closed {
                    reason: LaneClosed::Finished,
                    ..
                } => return Ok(()),
                LaneEvent::Closed { reason, .. } => return Err(reason.into()),
                LaneEvent::Frame { .. } | LaneEvent::Writable { .. } => {}
            }
        }
    }
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["listen", at, policy] => listen(at.parse()?, Rest::new(policy)?),
        ["send", own, to, policy, bytes, seconds] => send(
            own.parse()?,
            to.parse()?,
            Rest::new(policy)?,
            bytes.parse()?,
            Duration::from_secs(seconds.parse()?),
        ),
        _ => Err(
            "rdma_rate listen ADDRESS:PORT POLICY | send OWN ADDRESS:PORT POLICY BYTES SECONDS"
                .into(),
        ),
    }
}
