//! The coherent picture of one session, written by its worker alone and read by anyone.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::{Failure, Mode, PathLoad, Role, SessionId, SessionState, Version};
use crate::text::Text;

/// What lanes may run over, by the number in [`SessionSnapshot::driver`].
pub const DRIVER_NAMES: [&str; 3] = ["tcp", "dpdk", "rdma"];

/// Sessions a data plane holds at once, ended ones not yet forgotten included.
pub const SESSIONS_MAX: usize = 64;

/// One consistent snapshot. Byte figures are totals since the session began; "forward" is the way
/// from the sending hypervisor to the receiving one. All words are 64 bits so that a two-cell seqlock
/// can carry them.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SessionSnapshot {
    /// Which session; all zeros in a free slot.
    pub id: SessionId,
    /// [`Role`] as a number.
    pub role: u64,
    /// [`SessionState`] as a number.
    pub state: u64,
    /// [`Failure`] as a number.
    pub failure: u64,
    /// Highest version that was negotiated, 1 or 3.
    pub negotiated_version: u64,
    /// Version of the last batch sent (source) or released (destination); 0: none yet.
    pub batch_version: u64,
    /// When the session was opened, `CLOCK_MONOTONIC` nanoseconds.
    pub opened_ns: u64,
    /// When it ended; 0: it has not.
    pub ended_ns: u64,
    /// Hypervisor connections carried.
    pub channels: u64,
    /// Lanes that are up.
    pub lanes_up: u64,
    /// Lanes that should be up.
    pub lanes_wanted: u64,
    /// Lanes dialled again after a loss.
    pub lanes_replaced: u64,
    /// Bytes taken from the hypervisor here.
    pub hypervisor_bytes_in: u64,
    /// Bytes delivered to the hypervisor here.
    pub hypervisor_bytes_out: u64,
    /// Bytes handed to the lanes, headers included.
    pub wire_bytes_sent: u64,
    /// Bytes that came from the lanes, headers included.
    pub wire_bytes_received: u64,
    /// Bytes taken from the hypervisor here and not yet delivered at the other end.
    pub held_bytes: u64,
    /// The most that `held_bytes` ever was.
    pub held_bytes_max: u64,
    /// What `held_bytes` never passes.
    pub held_bytes_limit: u64,
    /// The window in force.
    pub window_bytes: u64,
    /// Round-trip time, microseconds, smoothed.
    pub rtt_us: u64,
    /// Hypervisor bytes a second that the far end takes, filtered.
    pub delivery_bytes_per_s: u64,
    /// Batches sent in v1.
    pub batches_v1: u64,
    /// Batches sent in v3.
    pub batches_v3: u64,
    /// Batches sent a second time because a lane was lost or stalled.
    pub batches_resent: u64,
    /// Pages seen.
    pub pages: u64,
    /// Pages that were all zero.
    pub pages_zero: u64,
    /// Pages sent as a reference to a stored page.
    pub pages_duplicate: u64,
    /// Pages sent as a reference to a block of a baseline.
    pub pages_known: u64,
    /// Baselines that both sides hold.
    pub baselines: u64,
    /// Pages sent as a delta.
    pub pages_delta: u64,
    /// Passes over RAM that the stream showed.
    pub rounds: u64,
    /// 1 once the end of RAM was read from the hypervisor (source) or released to it (destination).
    pub ram_end: u64,
    /// Nanoseconds spent encoding (source) or decoding (destination).
    pub codec_ns: u64,
    /// Changes of the kill switch that this session's batches have seen.
    pub switches_seen: u64,
    /// When the first v1 batch after the last switch to v1 was handed to a lane; 0: none.
    pub first_v1_batch_ns: u64,
    /// When the last v3 batch was handed to a lane; 0: none.
    pub last_v3_batch_ns: u64,
    /// When the kill switch was thrown, as its writer stamped it; 0: never.
    pub switch_thrown_ns: u64,
    /// What the lanes run over, an index into [`DRIVER_NAMES`].
    pub driver: u64,
    /// Times that the lanes went back to TCP because another driver did not carry.
    pub driver_fallbacks: u64,
    /// [`Mode`] in force, as a number; 0: none was told.
    pub mode: u64,
    /// Since when, `CLOCK_MONOTONIC` nanoseconds; 0: none was told.
    pub mode_since_ns: u64,
    /// Samples of the path to the peer so far: grows by one with each, and the words below are of the last.
    pub path_samples: u64,
    /// When it was taken, `CLOCK_MONOTONIC` nanoseconds.
    pub path_sampled_ns: u64,
    /// Its round-trip time, microseconds: the least that was seen since the one before.
    pub path_rtt_us: u64,
    /// Its [`PathLoad`] as a number: how `path_bytes_per_s` is to be read.
    pub path_load: u64,
    /// Bytes a second that the path carried; 0 when idle.
    pub path_bytes_per_s: u64,
    /// The peer, `address:port`.
    pub peer: Text<64>,
    /// Why it failed and what to do.
    pub detail: Text<200>,
}

impl SessionSnapshot {
    /// A free slot.
    pub const FREE: Self = Self {
        id: SessionId([0; 16]),
        role: 0,
        state: 0,
        failure: 0,
        negotiated_version: 0,
        batch_version: 0,
        opened_ns: 0,
        ended_ns: 0,
        channels: 0,
        lanes_up: 0,
        lanes_wanted: 0,
        lanes_replaced: 0,
        hypervisor_bytes_in: 0,
        hypervisor_bytes_out: 0,
        wire_bytes_sent: 0,
        wire_bytes_received: 0,
        held_bytes: 0,
        held_bytes_max: 0,
        held_bytes_limit: 0,
        window_bytes: 0,
        rtt_us: 0,
        delivery_bytes_per_s: 0,
        batches_v1: 0,
        batches_v3: 0,
        batches_resent: 0,
        pages: 0,
        pages_zero: 0,
        pages_duplicate: 0,
        pages_known: 0,
        baselines: 0,
        pages_delta: 0,
        rounds: 0,
        ram_end: 0,
        codec_ns: 0,
        switches_seen: 0,
        first_v1_batch_ns: 0,
        last_v3_batch_ns: 0,
        switch_thrown_ns: 0,
        driver: 0,
        driver_fallbacks: 0,
        mode: 0,
        mode_since_ns: 0,
        path_samples: 0,
        path_sampled_ns: 0,
        path_rtt_us: 0,
        path_load: 0,
        path_bytes_per_s: 0,
        peer: Text::EMPTY,
        detail: Text::EMPTY,
    };

    /// Is nobody in this slot?
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.id == SessionId([0; 16])
    }

    /// The end of the session that this host serves.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        Role::from_code(u32::try_from(self.role).ok()?)
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> Option<SessionState> {
        SessionState::from_code(u32::try_from(self.state).ok()?)
    }

    /// Why it failed.
    #[must_use]
    pub fn failure(&self) -> Failure {
        u32::try_from(self.failure)
            .ok()
            .and_then(Failure::from_code)
            .unwrap_or(Failure::Protocol)
    }

    /// Version of the last batch.
    #[must_use]
    pub fn batch_version(&self) -> Option<Version> {
        Version::from_code(u32::try_from(self.batch_version).ok()?)
    }

    /// The mode in force; none until one was told.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        Mode::from_code(u32::try_from(self.mode).ok()?)
    }

    /// How the last sample's bandwidth is to be read; a word that is not known says nothing.
    #[must_use]
    pub fn path_load(&self) -> PathLoad {
        u32::try_from(self.path_load)
            .ok()
            .and_then(PathLoad::from_code)
            .unwrap_or(PathLoad::Idle)
    }
}
