//! The hot half of a back end: one worker's lanes.
//!
//! Comes in: endpoints and frames to send. Goes out: [`LaneEvent`]s from [`LaneGroup::poll`].
//! Promises, for every back end (`conformance` holds them to it):
//! - frames of one lane arrive whole, identical and in the order of their `submit`, or not at all,
//!   and what arrives is a prefix of what was submitted;
//! - every lane that was added ends with exactly one [`LaneEvent::Closed`], its last event;
//! - memory is bounded: `submit` refuses when a lane's queue is full, and a lane whose pools are
//!   empty stops reading until a buffer comes back;
//! - nothing runs outside these calls, and none of them blocks.

use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::frame::{Frame, FramePools};

/// One lane of one group. Never used again for another lane of that group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

/// What `poll` found.
#[derive(Debug)]
pub enum LaneEvent {
    /// A frame arrived.
    Frame {
        /// On this lane.
        lane: LaneId,
        /// Whole.
        frame: Frame,
    },
    /// The lane is gone: no event follows and its id is unknown from now on.
    Closed {
        /// Which.
        lane: LaneId,
        /// Why.
        reason: LaneClosed,
    },
    /// A lane that had refused a frame as [`RefusedReason::Full`] has room again.
    Writable {
        /// Which.
        lane: LaneId,
    },
}

/// Why a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LaneClosed {
    /// Both sides finished between two frames, and all that was submitted here was handed over.
    #[error("finished")]
    Finished,
    /// This side called [`LaneGroup::close`].
    #[error("closed by this side")]
    Local,
    /// The peer ended in the middle of a frame.
    #[error("the peer ended in the middle of a frame: reconnect and resend")]
    Truncated,
    /// The peer announced a frame that no lane carries. The bytes behind it cannot be trusted.
    #[error(
        "the peer announced a frame of {announced_bytes} bytes: wrong peer or a corrupted stream"
    )]
    BadLength {
        /// What it announced: 0, or more than [`crate::MAX_FRAME_BYTES`].
        announced_bytes: u32,
    },
    /// The connection failed.
    #[error("the connection failed with errno {errno}: reconnect and resend")]
    Failed {
        /// As the kernel said it.
        errno: i32,
    },
}

/// Whether `poll` did anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// This many pieces of work: poll again soon.
    Busy(u32),
    /// Nothing: the worker may back off.
    Idle,
}

/// Why a lane was not added.
#[derive(Debug, Error)]
pub enum AddError {
    /// All lanes of this group are in use, those counted that are still closing.
    #[error("the group has all its {0} lanes in use: close some, or open a group for more")]
    GroupFull(usize),
    /// The endpoint is not what the back end carries.
    #[error("not an endpoint of this back end: {0}")]
    WrongEndpoint(&'static str),
    /// The kernel said no.
    #[error("the kernel refused the lane ({step}): {cause}")]
    Kernel {
        /// While doing what.
        step: &'static str,
        /// Its answer.
        cause: std::io::Error,
    },
}

impl AddError {
    /// The connection was lost before it became a lane. The next one may do better.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        let Self::Kernel { cause, .. } = self else {
            return false;
        };
        matches!(cause.kind(), NotConnected | ConnectionReset | BrokenPipe)
    }
}

/// A frame that was not taken, and comes back.
#[derive(Debug)]
pub struct Refused {
    /// The frame.
    pub frame: Frame,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RefusedReason {
    /// The lane's queue is full: wait for [`LaneEvent::Writable`], or use another lane.
    #[error("the lane's queue is full: wait until it is writable")]
    Full,
    /// No such lane, or it is finishing.
    #[error("no open lane has this id: use another")]
    Unknown,
}

/// What the network below a lane looks like, as far as the back end knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneStats {
    /// Smoothed round trip.
    pub rtt_us: u32,
    /// Smallest round trip seen.
    pub rtt_min_us: u32,
    /// Segments sent again since the lane began.
    pub retransmits: u32,
    /// Recent rate at which the peer acknowledged, in bytes per second.
    pub delivery_rate_bytes_per_s: u64,
    /// That rate is what there was to send, not what the path carries.
    pub is_app_limited: bool,
    /// Bytes that the peer acknowledged since the connection began.
    pub acked_bytes: u64,
    /// Bytes that the kernel took and did not send yet.
    pub unsent_bytes: u32,
    /// Segments that are on the way.
    pub unacked_segments: u32,
    /// Congestion window, in segments.
    pub cwnd_segments: u32,
    /// Largest segment, in bytes.
    pub mss_bytes: u32,
    /// Congestion control by name, padded with zeros.
    pub congestion: [u8; 16],
}

impl LaneStats {
    /// The name of the congestion control, such as `bbr`.
    #[must_use]
    pub fn congestion_name(&self) -> &str {
        let end = self
            .congestion
            .iter()
            .position(|&b| b == 0)
            .unwrap_or(self.congestion.len());
        self.congestion
            .get(..end)
            .and_then(|name| std::str::from_utf8(name).ok())
            .unwrap_or("")
    }
}

/// Bytes that went over a lane, with their framing, since it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireBytes {
    /// Taken by the kernel or device to be sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

/// One worker's lanes of one back end. Used through generics, so that `poll` is inlined into the
/// worker's loop; a group stays on the thread that made it.
pub trait LaneGroup {
    /// What becomes a lane: a connected socket, a queue pair.
    type Endpoint: Send;

    /// Makes a lane of `endpoint`; its received frames land in `pools`. Send from other pools: two
    /// sides that fill all buffers with frames to send have none to receive what would free them.
    ///
    /// # Errors
    /// See [`AddError`]; the endpoint is closed then.
    fn add(&mut self, endpoint: Self::Endpoint, pools: &FramePools) -> Result<LaneId, AddError>;

    /// Queues a frame; [`LaneGroup::poll`] sends it.
    ///
    /// # Errors
    /// [`Refused`] gives the frame back.
    fn submit(&mut self, lane: LaneId, frame: Frame) -> Result<(), Refused>;

    /// Sends, receives, and pushes at most `out`'s spare capacity of events, so that `out` never
    /// grows. What did not fit comes with the next call.
    fn poll(&mut self, out: &mut Vec<LaneEvent>) -> Polled;

    /// Bytes submitted and not yet taken by the kernel or device, with their framing. 0 for an
    /// unknown lane.
    fn backlog_bytes(&self, lane: LaneId) -> usize;

    /// What went over the lane so far. Zero for an unknown lane.
    fn wire_bytes(&self, lane: LaneId) -> WireBytes;

    /// The state of the path below the lane; none when unknown. May cost a system call.
    fn stats(&self, lane: LaneId) -> Option<LaneStats>;

    /// Spreads what the lane sends over time, at no more than so many bytes a second from now on; 0 lifts
    /// that. A back end that paces itself by its congestion control alone does nothing, and neither does an
    /// unknown lane.
    fn pace(&mut self, lane: LaneId, bytes_per_s: u64) {
        let _ = (lane, bytes_per_s);
    }

    /// The path below the lane became another one: what its congestion control learnt is forgotten, and it looks for
    /// the rate from the beginning. A back end without one does nothing, and neither does an unknown lane.
    fn learn_anew(&mut self, lane: LaneId) {
        let _ = lane;
    }

    /// Ends the lane at once: what is queued is lost, the peer is told so. `Closed` follows.
    fn close(&mut self, lane: LaneId);

    /// Takes no more frames, sends what is queued, tells the peer, and goes on receiving until the
    /// peer has done the same; then `Closed` follows. A peer that never ends keeps the lane: `close`
    /// it when patience is over.
    fn finish(&mut self, lane: LaneId);

    /// A descriptor that becomes readable when `poll` would find something, after
    /// [`LaneGroup::prepare_park`] said true.
    fn park_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Hands everything pending to the kernel and arms [`LaneGroup::park_fd`]. True: sleep on it.
    /// False: there is work already, poll again.
    fn prepare_park(&mut self) -> bool;
}
