//! Reliable lanes over datagrams.
//!
//! Comes in: a [`port::DatagramPort`], endpoints that both sides agreed on, and frames. Goes out: what
//! [`crate::lane`] promises, over a path that loses, doubles, reorders and corrupts. What a lane sends
//! is one stream of bytes, each frame its length and its payload; datagrams carry pieces of it, are
//! numbered, acknowledged in ranges, and never sent twice: what is lost goes out again under a new number
//! (the manner of QUIC, RFC 9000 and 9002). `packet` has the format.
//!
//! - [`port`]: what is needed of a network
//! - [`endpoint`]: what becomes a lane, and how lanes are tuned
//! - `lanes`: [`ReliableLanes`], the poll loop over one port; `parking`: its sleep; `tombs`: peers that did not
//!   hear of a lane's end
//! - `connection`: one lane as a state machine without clock or socket
//! - `outgoing`, `incoming`: frames to pieces of the stream, and back
//! - `sent`, `arrivals`, `ranges`: packet numbers of both directions
//! - `congestion`, `pacer`, `rtt`: how much, how fast, how long
//! - `setup`, `seal`, `packet`: how sides meet, who may speak, and the bytes
//! - [`memory`], [`simulated`]: ports without a network, for tests and measurements

mod arrivals;
mod congestion;
mod connection;
pub mod endpoint;
#[cfg(fuzzing)]
pub mod hostile;
mod incoming;
mod lanes;
pub mod memory;
mod outgoing;
mod pacer;
mod packet;
mod parking;
pub mod port;
mod ranges;
mod rtt;
mod seal;
mod sent;
mod setup;
pub mod simulated;
#[cfg(test)]
mod testing;
mod tombs;

pub use congestion::Congestion;
pub use endpoint::{Meeting, ReliableConfig, ReliableEndpoint};
pub use lanes::{Dropped, ReliableError, ReliableLanes};
pub use seal::Protection;

/// Frames that a lane keeps until the peer has them, and frames that it puts together at a time.
const FRAMES_HELD_MAX: usize = 2048;
