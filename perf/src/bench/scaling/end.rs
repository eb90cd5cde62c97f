//! All workers of one side: threads of one process, each on its core with lanes, a lane and frame pools of
//! its own. In: where each meets its partner. Out: what each measured, as JSON. Promise: over DPDK they
//! share one port, as workers of a data plane do.

use std::net::SocketAddr;
#[cfg(feature = "dpdk")]
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use dwcp_drivers::frame::FramePools;
use dwcp_drivers::lane::{LaneGroup, LaneId};
#[cfg(feature = "dpdk")]
use dwcp_drivers::{dpdk::port::PacketPort, reliable::Protection};

#[cfg(feature = "dpdk")]
use crate::bench::lanes::dpdk::end::{self as dpdk, Rest};
use crate::bench::lanes::end::{self, Measured, Role, TcpEnd, pin};

/// The command line of a side; for this program itself, not for people.
#[derive(clap::Args, Clone, Debug)]
pub struct ScalingEndArguments {
    /// What to do
    role: Role,
    /// How long to send
    #[arg(long)]
    seconds: f64,
    /// Length of each frame
    #[arg(long)]
    frame_bytes: usize,
    /// A core for each worker
    #[arg(long, value_delimiter = ',', required = true)]
    cores: Vec<usize>,
    /// Where each receiving worker listens
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<SocketAddr>,
    /// Where the two sides' memif meets, in place of TCP
    #[cfg(feature = "dpdk")]
    #[arg(long, conflicts_with = "tcp")]
    memif: Option<PathBuf>,
    /// Over memif: let others run when there is nothing to do, for the cores are shared
    #[cfg(feature = "dpdk")]
    #[arg(long)]
    shared: bool,
}

/// Runs one side and prints what its workers measured as JSON.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(arguments: &ScalingEndArguments) -> anyhow::Result<()> {
    #[cfg(feature = "dpdk")]
    if let Some(socket) = &arguments.memif {
        let (_port, measured) = over_memif(arguments, socket)?;
        print(&measured)?;
        loop {
            std::thread::park(); // until killed: what the other side has not read goes with the port
        }
    }
    ensure!(
        arguments.tcp.len() == arguments.cores.len(),
        "give an address for each core"
    );
    let meetings = arguments.tcp.iter().copied();
    let measured = each(&arguments.cores, meetings, |_, address| {
        let mut end = TcpEnd::open(arguments.role, address)?;
        one(arguments, &mut end.group, end.lane, &end.pools, end::rest)
    })?;
    print(&measured)
}

fn print(measured: &[Measured]) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(measured)?);
    Ok(())
}

/// One port, a pair of queues for each worker.
#[cfg(feature = "dpdk")]
fn over_memif(
    arguments: &ScalingEndArguments,
    socket: &Path,
) -> anyhow::Result<(PacketPort, Vec<Measured>)> {
    let (role, queues) = (arguments.role, u16::try_from(arguments.cores.len())?);
    let rest = if arguments.shared {
        Rest::Yield
    } else {
        Rest::Spin
    };
    let (mut port, seats) = dpdk::open(role, socket, queues)?;
    dpdk::wait_for_link(&mut port)?;
    let measured = each(&arguments.cores, seats.into_iter(), |worker, seat| {
        let mut group = dpdk::lanes(seat, role, queues)?;
        let pools = dpdk::pools()?;
        let endpoint = dpdk::endpoint(role, worker, Protection::Tagged);
        let lane = group.add(endpoint, &pools)?;
        let measured = one(arguments, &mut group, lane, &pools, |_| rest.take())?;
        dpdk::linger(&mut group);
        Ok(measured)
    })?;
    Ok((port, measured))
}

/// Runs a worker on each core, with its number and its way to its partner.
fn each<M: Send>(
    cores: &[usize],
    meetings: impl Iterator<Item = M>,
    work: impl Fn(u16, M) -> anyhow::Result<Measured> + Sync,
) -> anyhow::Result<Vec<Measured>> {
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(cores)
            .zip(meetings)
            .map(|((worker, &core), meeting)| {
                scope.spawn(move || {
                    pin(core)?;
                    work(worker, meeting)
                })
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, anyhow::Result<Measured>>| {
            let panicked = |_| Err(anyhow::anyhow!("a worker panicked"));
            worker.join().unwrap_or_else(panicked)
        };
        workers.into_iter().map(join).collect()
    })
}

fn one<G: LaneGroup>(
    arguments: &ScalingEndArguments,
    group: &mut G,
    lane: LaneId,
    pools: &FramePools,
    rest: impl FnMut(&mut G) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    match arguments.role {
        Role::Send => {
            let duration = Duration::from_secs_f64(arguments.seconds);
            end::send(group, lane, pools, arguments.frame_bytes, duration, rest)
        }
        Role::Receive => end::receive(group, rest),
    }
}
