//! One suite that every back end passes, unchanged.
//!
//! Comes in: a [`Harness`] for the back end. Goes out: a panic where the back end does not do what
//! [`crate::lane`] promises. A test target names its harness once, with [`crate::conformance_suite!`].
//! Nothing asserts a maximum time; a watchdog ends a hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed check is a panic

mod delivery;
mod ends;
mod parking;
mod pressure;

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwcp_hugepages::arena::BackingPolicy;

pub use delivery::*;
pub use ends::*;
pub use parking::*;
pub use pressure::*;

use crate::frame::{Available, Frame, FramePools, FramePoolsConfig};
use crate::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId, Polled, RefusedReason};

/// What the suite needs of a back end. Groups are made on the thread that uses them.
pub trait Harness: Sync {
    /// The back end's lanes; room for 64 in a group.
    type Lanes: LaneGroup;
    /// A group for the calling thread.
    fn lanes(&self) -> Self::Lanes;
    /// Two ends of one lane.
    fn pair(&self) -> (Ends<Self>, Ends<Self>);
    /// One end of a lane, and the bare byte stream of the other; none for a back end without one.
    /// Dropping the stream ends it in good order.
    fn raw(&self) -> Option<(Ends<Self>, Box<dyn Write + Send>)>;
}

/// What becomes a lane of a harness's back end.
pub type Ends<H> = <<H as Harness>::Lanes as LaneGroup>::Endpoint;

/// Makes a test of every check of the suite, for the back end whose harness is `$harness`.
#[macro_export]
macro_rules! conformance_suite {
    ($name:ident, $harness:expr) => {
        $crate::conformance_suite!(@each $name, $harness,
            frames_of_every_size_arrive,
            interleaved_lanes_keep_their_order,
            sixty_four_lanes_at_once,
            a_long_frame_waits_for_nothing_behind_it,
            two_threads_exchange_long_frames,
            events_never_outgrow_their_vector,
            bytes_are_counted_and_backlog_is_honest,
            a_slow_reader_holds_the_sender,
            empty_pools_pause_a_lane_and_only_that_lane,
            relief_from_another_thread_wakes_a_parked_group,
            close_never_gives_a_partial_frame,
            finish_delivers_what_is_queued_both_ways,
            a_dropped_group_gives_everything_back,
            an_end_within_a_frame_is_told,
            a_bad_length_closes_the_lane,
            a_stream_in_single_bytes_is_cut_right,
            churn_leaks_nothing,
            no_frame_waits_for_a_parked_worker,
        );
    };
    (@each $name:ident, $harness:expr, $($check:ident,)*) => {
        mod $name {
            $(#[test]
            fn $check() {
                $crate::conformance::check(|| $crate::conformance::$check(&$harness));
            })*
        }
    };
}

/// Runs one check: alone in this process, for some count descriptors, and under a watchdog.
pub fn check(run: impl FnOnce()) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone: MutexGuard<'_, ()> = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    run();
}

/// Ends the process when it is not dropped in time.
struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    fn new(patience: Duration) -> Self {
        let (alive, watched) = channel::<()>();
        std::thread::spawn(move || {
            if watched.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                eprintln!("hang: no end after {patience:?}");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Pools for one side.
fn pools(small: usize, medium: usize, large: usize) -> FramePools {
    let backing = BackingPolicy::Ordinary;
    FramePools::new(&FramePoolsConfig {
        small,
        medium,
        large,
        backing,
    })
    .unwrap()
}

fn pools_to_send() -> FramePools {
    pools(600, 400, 64)
}

fn free(pools: &FramePools) -> usize {
    let Available {
        small,
        medium,
        large,
    } = pools.available();
    small + medium + large
}

/// `len` bytes that tell their seed and their place.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// One worker: a group, its pools, and what it got.
struct Side<L: LaneGroup> {
    group: L,
    /// Where frames to send come from. Not where received ones land: two sides that send from all
    /// the buffers that they need to receive would wait for each other.
    sends: FramePools,
    pools: FramePools,
    events: Vec<LaneEvent>,
    got: HashMap<LaneId, Vec<Frame>>,
    closed: HashMap<LaneId, LaneClosed>,
    writable: Vec<LaneId>,
}

impl<L: LaneGroup> Side<L> {
    fn new(group: L, pools: FramePools) -> Self {
        Self {
            group,
            sends: pools_to_send(),
            pools,
            events: Vec::with_capacity(32),
            got: HashMap::new(),
            closed: HashMap::new(),
            writable: Vec::new(),
        }
    }

    /// Free buffers of both kinds.
    fn free(&self) -> usize {
        free(&self.sends) + free(&self.pools)
    }

    fn add(&mut self, endpoint: L::Endpoint) -> LaneId {
        let lane = self.group.add(endpoint, &self.pools).unwrap();
        assert!(
            !self.got.contains_key(&lane) && !self.closed.contains_key(&lane),
            "id used again"
        );
        lane
    }

    /// One poll; sorts what it found.
    fn turn(&mut self) -> Polled {
        let capacity = self.events.capacity();
        let polled = self.group.poll(&mut self.events);
        assert_eq!(self.events.capacity(), capacity, "poll grew its vector");
        if polled == Polled::Idle {
            assert!(self.events.is_empty(), "idle with events");
        }
        for event in self.events.drain(..) {
            match event {
                LaneEvent::Frame { lane, frame } => {
                    assert!(!self.closed.contains_key(&lane), "a frame after Closed");
                    self.got.entry(lane).or_default().push(frame);
                }
                LaneEvent::Closed { lane, reason } => {
                    assert_eq!(self.closed.insert(lane, reason), None, "closed twice");
                }
                LaneEvent::Writable { lane } => self.writable.push(lane),
            }
        }
        polled
    }

    fn count(&self, lane: LaneId) -> usize {
        self.got.get(&lane).map_or(0, Vec::len)
    }

    fn is_closed(&self, lane: LaneId) -> bool {
        self.closed.contains_key(&lane)
    }

    /// Offers a frame once. True when it was taken.
    fn offer(&mut self, lane: LaneId, bytes: &[u8]) -> bool {
        let Some(frame) = self.sends.copy(bytes) else {
            return false;
        };
        match self.group.submit(lane, frame) {
            Ok(()) => true,
            Err(refused) => {
                assert_eq!(refused.reason, RefusedReason::Full);
                assert_eq!(
                    refused.frame.bytes(),
                    bytes,
                    "not the frame that was refused"
                );
                false
            }
        }
    }

    /// Checks that the lane got exactly these frames, and forgets them.
    fn expect(&mut self, lane: LaneId, wanted: &[Vec<u8>]) {
        let got = self.got.remove(&lane).unwrap_or_default();
        assert_eq!(got.len(), wanted.len(), "frames on {lane:?}");
        for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            assert!(got.bytes() == wanted, "frame {at} of {lane:?} differs");
        }
    }
}

/// Polls both sides until `done`.
fn until<A: LaneGroup, B: LaneGroup>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    mut done: impl FnMut(&mut Side<A>, &mut Side<B>) -> bool,
) {
    while !done(a, b) {
        let (near, far) = (a.turn(), b.turn());
        if near == Polled::Idle && far == Polled::Idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Two sides and one lane between them.
fn two_sides<H: Harness + ?Sized>(
    harness: &H,
    near: FramePools,
    far: FramePools,
) -> (Side<H::Lanes>, LaneId, Side<H::Lanes>, LaneId) {
    let (mut a, mut b) = (
        Side::new(harness.lanes(), near),
        Side::new(harness.lanes(), far),
    );
    let (near, far) = harness.pair();
    let (near, far) = (a.add(near), b.add(far));
    (a, near, b, far)
}
