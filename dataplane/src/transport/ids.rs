//! The names of things: sessions, nodes, lanes, channels, batches, versions, moments.
//!
//! Newtypes so that a channel number is never taken for a lane number, nor a wall time for a span.

use std::fmt;

pub use dwcp_api::SessionId;

/// A moment on the caller's monotonic clock, in nanoseconds from any fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Nanoseconds from `earlier` to `self`; 0 when `earlier` is later (clocks of peers lie).
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `ns` nanoseconds later.
    #[must_use]
    pub fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// A batch's place in its direction's one global sequence, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct BatchSeq(pub u64);

impl BatchSeq {
    /// The batch after this one. At 2^64 batches the sequence would end; no session lives that long.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for BatchSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hypervisor connection of the session, numbered by the side that opened it;
/// below [`super::MAX_CHANNELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct ChannelId(pub u16);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lane of the session's bundle, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct LaneIx(pub u16);

impl fmt::Display for LaneIx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An appliance: 16 bytes, stable for its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl NodeId {
    /// The id of the node that operators call `name`: the first 16 bytes of its BLAKE3 hash.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        Self(id)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which attempt at the session this is. It goes into the frame keys, so a frame of an earlier
/// attempt is foreign to a later one. A lane that comes back belongs to the same attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SessionEpoch(pub u32);

/// The data format of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Version {
    /// The baseline, understood by every node for ever.
    V1 = 1,
    /// The current format.
    V3 = 3,
}

impl Version {
    /// The version that a byte on the wire names.
    #[must_use]
    pub fn from_wire(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V1),
            3 => Some(Self::V3),
            _ => None,
        }
    }
}
