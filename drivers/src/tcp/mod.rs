//! Lanes over kernel TCP, driven by io_uring: one ring per worker.
//!
//! Comes in: connected TCP sockets and frames. Goes out: what [`crate::lane`] promises.
//! On the wire each frame is its length (u32, little endian, 1 to [`crate::MAX_FRAME_BYTES`]) and its
//! bytes; the length is checked before any memory is taken for it. Authentication and encryption
//! are the business of whoever made the socket.
//!
//! - [`port`]: [`TcpPort`], what the kernel can do, and how lanes are given to workers
//! - [`socket`]: how a socket is set up for a lane, and what the kernel knows about its path
//! - `lanes`: [`TcpLanes`], the poll loop
//! - `connection`: one lane: its send queue, its receive side, its end
//! - `inbox`, `reassembly`, `scatter`: received bytes to frames
//! - `ring`, `registry`: the io_uring and the memory registered with it

mod connection;
mod inbox;
mod lanes;
pub mod port;
mod reassembly;
mod registry;
mod ring;
mod scatter;
pub mod socket;

pub use lanes::TcpLanes;
pub use port::{LanesError, RecvMode, SendMode, TcpOptions, TcpPort};
pub use socket::{SocketTuning, TuneError, stats, tune};
