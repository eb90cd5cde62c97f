//! One end of a line with faults, alone in its process. In: over what, a role, a congestion control. Out: at
//! the receiving end, Mbit/s of what it handed up in [`WINDOW`] from its first byte on. Promise: the sending
//! end sends as fast as it may until it is ended.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dwcp_lab::watchdog::poll_until;
use rustix::net::sockopt::set_tcp_congestion;

const WINDOW: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 5202;
const BLOCK_BYTES: usize = 64 << 10;

/// The command line of an end; for this program itself, not for people.
#[derive(clap::Args, Clone, Debug)]
pub struct LossyEndArguments {
    #[command(subcommand)]
    over: Over,
}

/// What carries.
#[derive(clap::Subcommand, Clone, Debug)]
enum Over {
    /// The kernel, to this address
    Tcp {
        /// Of the receiving end
        address: Ipv4Addr,
        /// What to do
        role: Role,
        /// Congestion control of the sending end
        congestion: String,
    },
    /// A lane, over this interface
    Lane {
        /// Its name
        interface: String,
        /// What to do
        role: Role,
        /// Congestion control of the sending end
        congestion: String,
    },
}

/// Which end.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(super) enum Role {
    /// The one that sends.
    Send,
    /// The one that measures.
    Receive,
}

/// Counts what is handed up.
#[derive(Default)]
pub(super) struct Meter {
    first: Option<Instant>,
    bytes: u64,
}

impl Meter {
    /// Takes what came. Mbit/s once the time is over.
    pub(super) fn count(&mut self, bytes: usize) -> Option<f64> {
        let first = *self.first.get_or_insert_with(Instant::now);
        self.bytes += bytes as u64;
        let elapsed = first.elapsed();
        (elapsed >= WINDOW).then(|| self.bytes as f64 * 8.0 / 1e6 / elapsed.as_secs_f64())
    }
}

/// Runs one end; the receiving one prints its goodput in Mbit/s.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(arguments: &LossyEndArguments) -> anyhow::Result<()> {
    let mbit = match &arguments.over {
        Over::Tcp {
            address,
            role: Role::Receive,
            ..
        } => tcp_receive((*address, PORT).into()),
        Over::Tcp {
            address,
            congestion,
            ..
        } => tcp_send((*address, PORT).into(), congestion),
        Over::Lane {
            interface,
            role,
            congestion,
        } => lane(interface, *role, congestion),
    }?;
    println!("{mbit}");
    Ok(())
}

fn tcp_receive(address: SocketAddr) -> anyhow::Result<f64> {
    let mut socket = TcpListener::bind(address)?.accept()?.0;
    let mut block = vec![0; BLOCK_BYTES];
    let mut meter = Meter::default();
    loop {
        let bytes = socket.read(&mut block)?;
        anyhow::ensure!(bytes > 0, "the sending end left");
        if let Some(mbit) = meter.count(bytes) {
            return Ok(mbit);
        }
    }
}

/// Ends only by an error: that the receiving end left.
fn tcp_send(address: SocketAddr, congestion: &str) -> anyhow::Result<f64> {
    let mut socket = poll_until(PATIENCE, || TcpStream::connect(address).ok())
        .with_context(|| format!("nobody listens on {address}"))?;
    set_tcp_congestion(&socket, congestion)
        .with_context(|| format!("no {congestion} in this kernel: load tcp_{congestion}"))?;
    let block = vec![0x5a; BLOCK_BYTES];
    loop {
        socket.write_all(&block)?;
    }
}

#[cfg(feature = "dpdk")]
fn lane(interface: &str, role: Role, congestion: &str) -> anyhow::Result<f64> {
    super::lane::run(interface, role, congestion)
}

#[cfg(not(feature = "dpdk"))]
fn lane(_: &str, _: Role, _: &str) -> anyhow::Result<f64> {
    anyhow::bail!("built without lanes over DPDK: build dwcp-perf with --features dpdk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goodput_counts_from_the_first_byte_until_the_time_is_over() {
        let mut meter = Meter::default();
        assert_eq!(meter.count(1_000_000), None);
        meter.first = Instant::now().checked_sub(WINDOW * 2);
        let mbit = meter.count(2_000_000).unwrap();
        assert!((1.5..=2.0).contains(&mbit), "{mbit}");
    }
}
