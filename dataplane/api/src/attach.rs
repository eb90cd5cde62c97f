//! Messages on the attach socket (UNIX, SEQPACKET), each one packet with descriptors beside it.
//!
//! The data plane listens; one control plane at a time connects and gets [`Greeting`] with five
//! descriptors: stats, switches and rings segments, command and event doorbells. Afterwards the data
//! plane sends [`Escrow`] packets: a second descriptor of every hypervisor connection it holds. While
//! the control plane keeps it, the death of the data plane is not an end-of-file to the hypervisor, so
//! a source that already handed its last byte over does not resume beside a running destination. Where
//! the guest runs is then decided by asking, and the descriptors are shut down or dropped accordingly.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::SessionId;
use crate::text::Text;

/// Descriptors beside a [`Greeting`], in this order: stats, switches, rings, command doorbell, event
/// doorbell.
pub const GREETING_FDS: usize = 5;

/// "DWCPHELO" as a little-endian number.
pub const GREETING_MAGIC: u64 = u64::from_le_bytes(*b"DWCPHELO");
/// "DWCPBUSY": another control plane is attached.
pub const BUSY_MAGIC: u64 = u64::from_le_bytes(*b"DWCPBUSY");
/// "DWCPKEEP": keep the descriptor beside this packet.
pub const KEEP_MAGIC: u64 = u64::from_le_bytes(*b"DWCPKEEP");
/// "DWCPDROP": the descriptors of this session are no longer needed.
pub const DROP_MAGIC: u64 = u64::from_le_bytes(*b"DWCPDROP");

/// First packet of the data plane.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Greeting {
    /// [`GREETING_MAGIC`] or [`BUSY_MAGIC`].
    pub magic: u64,
    /// Grows with every attach to one data plane.
    pub generation: u64,
    /// Random per start of the data plane.
    pub instance: u64,
    /// [`crate::LAYOUT_HASH`] of the data plane.
    pub layout_hash: u64,
    /// [`crate::ABI_VERSION`] of the data plane.
    pub abi: u32,
    /// Process id of the data plane.
    pub pid: u32,
    /// Workers it runs.
    pub workers: u32,
    /// Highest protocol version it may use, 1 or 3.
    pub max_version: u32,
    /// Where peers reach it, `address:port`.
    pub listen: Text<64>,
    /// Name of this node.
    pub node: Text<64>,
}

/// A descriptor to keep ([`KEEP_MAGIC`], one descriptor) or a session's to let go ([`DROP_MAGIC`]).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Escrow {
    /// [`KEEP_MAGIC`] or [`DROP_MAGIC`].
    pub magic: u64,
    /// Whose connection it is.
    pub session: SessionId,
    /// Channel of the session.
    pub channel: u32,
    /// [`crate::Role`] as a number.
    pub role: u32,
}
