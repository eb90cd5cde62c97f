//! Lanes over RDMA: one reliable connection each, by verbs and rdma_cm.
//!
//! Comes in: addresses of peers with an RDMA device, frames. Goes out: what [`crate::lane`] promises.
//!
//! Two ways for a frame. A short one ([`message::INLINE_BYTES_MAX`]) is copied into a message and
//! sent (SEND) into a slot that the receiver keeps posted. A longer one is announced by a message; the
//! receiver takes a buffer of that length from the lane's pools and answers with its address and key;
//! the sender writes the frame there without a copy (WRITE with immediate data). So the pools hold
//! nothing for a frame that nobody sends, and a lane whose pools are empty stops its peer.
//!
//! How far the peer is trusted: it may write into the payload of a buffer once that was advertised,
//! until the lane's group lets go of the pools. It reaches no headers, nor memory that was never
//! advertised to a peer of this group. That is for peers of one's own datacenter, not for strangers.
//!
//! - [`port`]: what this host's devices can do; how workers get their lanes
//! - [`connect`]: from an address to an [`connect::Endpoint`]
//! - [`lanes`]: one worker's lanes: the poll loop
//! - `lane`, `outbox`, `inbox`, `round_trip`: one lane, what it sends, what it receives, how far the peer is
//! - `message`: the records of a message
//! - `cm`, `device`, `queue_pair`, `memory`, `registry`: owners of what verbs hand out
//! - `layout`: the C compiler's word on hand-copied types

mod cm;
pub mod connect;
mod device;
mod inbox;
mod lane;
pub mod lanes;
mod layout;
mod memory;
mod message;
mod outbox;
pub mod port;
mod queue_pair;
mod registry;
mod round_trip;

pub use connect::{ConnectError, Connector, Endpoint, Listener, Request, TOKEN_BYTES};
pub use lanes::RdmaLanes;
pub use port::{RdmaLanesError, RdmaOptions, RdmaPort};
