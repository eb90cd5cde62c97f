//! What [`super::Outbound`] asks of whoever drives it.
//!
//! In: nothing. Out: the next step of sending, and verdicts on lanes and the link. Promise: each names all that
//! is needed to carry it out.

use crate::transport::{BatchSeq, LaneIx};

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum SendStep<F> {
    /// Write the frame to the lane.
    Send(LaneIx, F),
    /// v3 is not allowed now and this batch, which is next, is v3: encode its raw bytes as v1,
    /// call [`super::Outbound::replace`], and ask again.
    NeedsTranscode(BatchSeq),
    /// Nothing to send, or no lane has room.
    Idle,
}

/// What the engine must see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The lane stalls while others move. Its batches go out again over others; replace it.
    Suspect(LaneIx),
    /// Nothing was heard for two seconds, or nothing of ours was answered for longer: dial all lanes
    /// anew. Repeated while it lasts.
    Redial,
    /// Nothing was heard for the resume limit: the session is over. Said once.
    Expired,
}
