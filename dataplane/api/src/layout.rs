//! Where everything lies inside the three segments, and the hash that both planes compare at attach.
//!
//! | segment | who writes | what |
//! |---|---|---|
//! | stats | data plane; mapped read-only by the control plane | worker counters, then the session table, then the door's counters |
//! | switches | control plane | [`crate::switches::Switches`] |
//! | rings | one ring each, new at every attach | command ring, event ring, two park flags |

use core::mem::{align_of, offset_of, size_of};

use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::segment::{SegmentLayout, layout_hash};

use crate::command::CommandRecord;
use crate::door::DoorCounters;
use crate::event::EventRecord;
use crate::session::{SESSIONS_MAX, SessionSnapshot};
use crate::switches::Switches;
use crate::worker::{WORKERS_MAX, WorkerCounters};

/// Raised when the meaning of a field changes though its place does not.
pub const ABI_VERSION: u32 = 1;

/// Commands that may wait.
pub const COMMAND_SLOTS: u32 = 64;
/// Events that may wait; more are dropped and counted, the session table keeps the facts.
pub const EVENT_SLOTS: u32 = 1024;

const fn round_up(value: usize, to: usize) -> usize {
    value.div_ceil(to) * to
}

/// Distance of one worker's block to the next: two workers never share a cache line.
pub const WORKER_STRIDE: usize = round_up(size_of::<WorkerCounters>(), 128);
/// Offset of the session table in the stats segment.
pub const SESSIONS_OFFSET: usize = round_up(WORKER_STRIDE * WORKERS_MAX, 4096);
/// Distance of one session's cell to the next.
pub const SESSION_STRIDE: usize = round_up(size_of::<SeqCell<SessionSnapshot>>(), 128);
/// Offset of the door's counters in the stats segment.
pub const DOOR_OFFSET: usize = SESSIONS_OFFSET + SESSION_STRIDE * SESSIONS_MAX;
/// Bytes of the stats segment's body.
pub const STATS_BYTES: usize = DOOR_OFFSET + round_up(size_of::<DoorCounters>(), 128);

/// Offset of the park flag of the command doorbell in the rings segment.
pub const COMMAND_PARK_OFFSET: usize = 0;
/// Offset of the park flag of the event doorbell.
pub const EVENT_PARK_OFFSET: usize = 128;
/// Offset of the command ring.
pub const COMMAND_RING_OFFSET: usize = 256;

/// Offset of the event ring.
#[must_use]
pub fn event_ring_offset() -> usize {
    COMMAND_RING_OFFSET
        + round_up(
            dwcp_hugepages::ring::RingMem::bytes_needed::<CommandRecord>(COMMAND_SLOTS),
            128,
        )
}

/// Bytes of the rings segment's body.
#[must_use]
pub fn rings_bytes() -> usize {
    event_ring_offset()
        + round_up(
            dwcp_hugepages::ring::RingMem::bytes_needed::<EventRecord>(EVENT_SLOTS),
            128,
        )
}

/// Hash of every offset and size that crosses the border.
pub const LAYOUT_HASH: u64 = layout_hash(&[
    ("command", 0, size_of::<CommandRecord>()),
    ("command.align", 0, align_of::<CommandRecord>()),
    ("event", 0, size_of::<EventRecord>()),
    ("switches", 0, size_of::<Switches>()),
    ("worker", WORKER_STRIDE, size_of::<WorkerCounters>()),
    ("session", SESSIONS_OFFSET, SESSION_STRIDE),
    ("door", DOOR_OFFSET, size_of::<DoorCounters>()),
    (
        "session.state",
        offset_of!(SessionSnapshot, state),
        size_of::<SessionSnapshot>(),
    ),
    ("session.held", offset_of!(SessionSnapshot, held_bytes), 8),
    ("session.detail", offset_of!(SessionSnapshot, detail), 200),
    ("commands", COMMAND_RING_OFFSET, COMMAND_SLOTS as usize),
    ("events", 0, EVENT_SLOTS as usize),
    ("workers", 0, WORKERS_MAX),
]);

/// Layout of the stats segment.
#[must_use]
pub const fn stats_layout() -> SegmentLayout {
    SegmentLayout {
        magic: u64::from_le_bytes(*b"DWCPSTAT"),
        abi: ABI_VERSION,
        layout_hash: LAYOUT_HASH,
        body_bytes: STATS_BYTES,
    }
}

/// Layout of the switches segment.
#[must_use]
pub const fn switches_layout() -> SegmentLayout {
    SegmentLayout {
        magic: u64::from_le_bytes(*b"DWCPSWCH"),
        abi: ABI_VERSION,
        layout_hash: LAYOUT_HASH,
        body_bytes: 4096,
    }
}

/// Layout of the rings segment.
#[must_use]
pub fn rings_layout() -> SegmentLayout {
    SegmentLayout {
        magic: u64::from_le_bytes(*b"DWCPRING"),
        abi: ABI_VERSION,
        layout_hash: LAYOUT_HASH,
        body_bytes: rings_bytes(),
    }
}
