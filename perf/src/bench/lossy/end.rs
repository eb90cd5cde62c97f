//! One end of a line with faults, alone in its process. In: over what, a role, a congestion control. Out: at
//! the receiving end, what it measured in [`WINDOW`] from its first piece on. Promises: the sending end sends as
//! fast as it may until it is ended; a piece has the same length whatever carries it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dwcp_lab::watchdog::poll_until;
use rustix::net::sockopt::set_tcp_congestion;
use serde::{Deserialize, Serialize};

const WINDOW: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 5202;
/// Of what is handed up at a time: so little that a slow line completes some every second.
pub(super) const PIECE_BYTES: usize = 16 << 10;

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

/// What the receiving end saw.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Measured {
    /// Goodput.
    pub(super) mbit_per_s: f64,
    /// Longest time between two pieces.
    pub(super) pause_ms: f64,
}

/// Counts the pieces that are handed up.
pub(super) struct Meter {
    /// When the first came, and the last.
    times: Option<(Instant, Instant)>,
    pieces: u64,
    pause: Duration,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            times: None,
            pieces: 0,
            pause: Duration::ZERO,
        }
    }

    /// Takes a piece that came now. What was measured, once the time is over.
    pub(super) fn count(&mut self, now: Instant) -> Option<Measured> {
        let (first, last) = self.times.unwrap_or((now, now));
        self.times = Some((first, now));
        self.pieces += 1;
        self.pause = self.pause.max(now - last);
        let elapsed = now - first;
        let mbit = (self.pieces * PIECE_BYTES as u64) as f64 * 8.0 / 1e6;
        (elapsed >= WINDOW).then(|| Measured {
            mbit_per_s: mbit / elapsed.as_secs_f64(),
            pause_ms: self.pause.as_secs_f64() * 1e3,
        })
    }
}

/// Runs one end; the receiving one prints what it measured as JSON.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(arguments: &LossyEndArguments) -> anyhow::Result<()> {
    let measured = match &arguments.over {
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
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn tcp_receive(address: SocketAddr) -> anyhow::Result<Measured> {
    let mut socket = TcpListener::bind(address)?.accept()?.0;
    let mut piece = vec![0; PIECE_BYTES];
    let mut meter = Meter::new();
    loop {
        socket.read_exact(&mut piece)?;
        if let Some(measured) = meter.count(Instant::now()) {
            return Ok(measured);
        }
    }
}

/// Ends only by an error: that the receiving end left.
fn tcp_send(address: SocketAddr, congestion: &str) -> anyhow::Result<Measured> {
    let mut socket = poll_until(PATIENCE, || TcpStream::connect(address).ok())
        .with_context(|| format!("nobody listens on {address}"))?;
    set_tcp_congestion(&socket, congestion)
        .with_context(|| format!("no {congestion} in this kernel: load tcp_{congestion}"))?;
    let block = vec![0x5a; PIECE_BYTES];
    loop {
        socket.write_all(&block)?;
    }
}

#[cfg(feature = "dpdk")]
fn lane(interface: &str, role: Role, congestion: &str) -> anyhow::Result<Measured> {
    super::lane::run(interface, role, congestion)
}

#[cfg(not(feature = "dpdk"))]
fn lane(_: &str, _: Role, _: &str) -> anyhow::Result<Measured> {
    anyhow::bail!("built without lanes over DPDK: build dwcp-perf with --features dpdk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_are_whole_pieces_until_the_time_is_over() {
        let mut meter = Meter::new();
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        for ms in [0, 100, 1700, 1800] {
            assert!(meter.count(at(ms)).is_none());
        }
        let measured = meter.count(at(8_000)).unwrap();
        assert!((measured.pause_ms - 6_200.0).abs() < 0.1);
        let mbit = 5.0 * PIECE_BYTES as f64 * 8.0 / 1e6;
        assert!((measured.mbit_per_s - mbit / 8.0).abs() < 1e-9);
    }
}
