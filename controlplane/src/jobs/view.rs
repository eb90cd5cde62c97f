//! What callers see. In: a job's record, the hypervisor's figures, the data plane's snapshot. Out:
//! the JSON of the REST API. A figure that nobody measured is absent, never zero.

use serde::{Deserialize, Serialize};

use super::request::{MigrationOptions, VmRef};

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// Both ends are being prepared.
    Setup,
    /// RAM flows while the guest runs at the source.
    Active,
    /// The link is gone and is being dialled again.
    Reconnecting,
    /// The guest is stopped at the source; the destination may take over at any moment.
    Switchover,
    /// The guest is at the destination and fetches the rest of its memory from the source.
    PostcopyActive,
    /// The same, but the two are not connected: the guest stands still where it needs a page.
    PostcopyPaused,
    /// The two are being connected again.
    Recovering,
    /// It is not known yet which side runs the guest; both are held until it is.
    Undecided,
    /// The guest is at the destination.
    Completed,
    /// It failed; see the failure.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl MigrationState {
    /// Nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Is the guest's memory on both sides?
    #[must_use]
    pub const fn is_postcopy(self) -> bool {
        matches!(
            self,
            Self::PostcopyActive | Self::PostcopyPaused | Self::Recovering
        )
    }

    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Active => "active",
            Self::Reconnecting => "reconnecting",
            Self::Switchover => "switchover",
            Self::PostcopyActive => "postcopy_active",
            Self::PostcopyPaused => "postcopy_paused",
            Self::Recovering => "recovering",
            Self::Undecided => "undecided",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Which side has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestSide {
    /// The source: nothing was lost.
    Source,
    /// The destination.
    Destination,
    /// Not known: see the state `undecided`.
    Undecided,
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailureView {
    /// A word that programs may compare.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do.
    pub cure: String,
}

/// Bytes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BytesView {
    /// Taken from the sending hypervisor.
    pub hypervisor: u64,
    /// Put on the wire, headers included.
    pub wire: u64,
    /// Delivered at the far end: taken and no longer held.
    pub delivered: u64,
    /// Share of the hypervisor's bytes that never went over the wire, −∞..1; absent before the first.
    pub saved_fraction: Option<f64>,
}

/// Bytes a second, measured over the last second or so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RatesView {
    /// From the hypervisor.
    pub hypervisor_bytes_per_s: f64,
    /// On the wire.
    pub wire_bytes_per_s: f64,
    /// What the guest dirties, by the hypervisor's account; absent before its first pass has ended.
    #[serde(default)]
    pub dirty_bytes_per_s: Option<f64>,
}

/// Pages of guest RAM so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PagesView {
    /// Seen in the stream.
    pub total: u64,
    /// All zero.
    pub zero: u64,
    /// Sent as a reference.
    pub duplicate: u64,
    /// Sent as a reference to a block of a baseline.
    #[serde(default)]
    pub known: u64,
    /// Sent as a delta.
    pub delta: u64,
}

/// What lanes run over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LaneDriver {
    /// The kernel's TCP.
    #[default]
    Tcp,
    /// Datagrams of a DPDK port.
    Dpdk,
    /// Queue pairs of an RDMA device.
    Rdma,
}

impl LaneDriver {
    /// From the number in a snapshot; one that is not known counts as TCP.
    #[must_use]
    pub fn from_code(code: u64) -> Self {
        let name = usize::try_from(code)
            .ok()
            .and_then(|code| dwcp_api::session::DRIVER_NAMES.get(code));
        match name {
            Some(&"dpdk") => Self::Dpdk,
            Some(&"rdma") => Self::Rdma,
            _ => Self::Tcp,
        }
    }
}

/// Connections between the two data planes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LanesView {
    /// Up now.
    pub up: u64,
    /// Wanted.
    pub wanted: u64,
    /// Dialled again after a loss.
    pub replaced: u64,
    /// What they run over: `tcp`, `dpdk` or `rdma`.
    pub driver: LaneDriver,
    /// Times that they went back to TCP because another driver did not carry.
    pub fallbacks: u64,
}

/// What the kill switch did to this session; times are `CLOCK_MONOTONIC` nanoseconds of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RollbackView {
    /// When the switch was thrown.
    pub thrown_ns: u64,
    /// When the first v1 batch after it left; absent: none yet.
    pub first_v1_batch_ns: Option<u64>,
    /// When the last v3 batch left; absent: there was none.
    pub last_v3_batch_ns: Option<u64>,
    /// From the throw to the first v1 batch.
    pub rollback_us: Option<u64>,
}

/// Where it goes; the token is never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DestinationView {
    /// Base address of the destination's control plane.
    pub api: String,
    /// QMP socket there.
    pub qmp: String,
    /// The destination's data plane, once it is known.
    pub dataplane: Option<String>,
}

/// One migration, as its source sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MigrationView {
    /// The session, 32 hexadecimal digits.
    pub id: String,
    /// What moves.
    pub vm: VmRef,
    /// Where to.
    pub destination: DestinationView,
    /// How.
    pub options: MigrationOptions,
    /// Where it stands.
    pub state: MigrationState,
    /// The same for people, with what is waited for.
    pub phase: String,
    /// 0..1; absent while nothing is known.
    pub progress: Option<f64>,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Time since it began, or that it took.
    pub total_ms: u64,
    /// How long the guest stood still, by the hypervisor's own measure.
    pub downtime_ms: Option<u64>,
    /// How long it was to stand still, as the hypervisor last expected it before the handover.
    #[serde(default)]
    pub expected_downtime_ms: Option<u64>,
    /// The hypervisor's setup time.
    pub setup_ms: Option<u64>,
    /// Version of the last batch: `v1` or `v3`.
    pub version: Option<String>,
    /// Highest version both ends may use.
    pub negotiated_version: Option<String>,
    /// Mode in force: `datacenter`, `internet` or `hybrid`; absent before it is known.
    pub mode: Option<String>,
    /// Bytes so far.
    pub bytes: BytesView,
    /// Bytes a second.
    pub rates: RatesView,
    /// Guest RAM still to send, by the hypervisor's account.
    pub remaining_bytes: Option<u64>,
    /// Seconds to the end at the present rates; absent while it does not converge.
    pub expected_finish_s: Option<f64>,
    /// Bytes taken from the hypervisor and not yet delivered.
    pub held_bytes: u64,
    /// The most that ever was.
    pub held_bytes_max: u64,
    /// What it never passes.
    pub held_bytes_limit: u64,
    /// Round-trip time between the data planes.
    pub rtt_us: u64,
    /// Passes over RAM.
    pub rounds: u64,
    /// Pages so far.
    pub pages: PagesView,
    /// Connections between the data planes.
    pub lanes: LanesView,
    /// Who has the guest.
    pub guest: GuestSide,
    /// Why it failed; absent if it did not.
    pub failure: Option<FailureView>,
    /// What the kill switch did; absent if it was never thrown.
    pub rollback: Option<RollbackView>,
    /// Things worth knowing that are no failure.
    pub notes: Vec<String>,
}

/// Where an incoming migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncomingState {
    /// The hypervisor is being prepared.
    Setup,
    /// Ready, or receiving.
    Active,
    /// The guest is here and fetches the rest of its memory.
    PostcopyActive,
    /// The same, but nothing comes: the guest stands still where it needs a page.
    PostcopyPaused,
    /// The guest is here.
    Completed,
    /// It failed: the guest never ran here, or could not go on without the memory that was still to come.
    Failed,
    /// What happened is not known; see the guest.
    Undecided,
}

impl IncomingState {
    /// Nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// Is the guest at the destination?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestVerdict {
    /// It is, or it was: the destination's hypervisor took it over.
    Here,
    /// It runs here with part of its memory; the rest is at the source and nowhere else.
    HereInPart,
    /// It never ran here and never will.
    NeverHere,
    /// Nobody can say.
    Unknown,
}

/// Answer to `POST /v1/incoming/{session}/verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    /// Is the guest here?
    pub guest: GuestVerdict,
}

/// One incoming migration, as its destination sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IncomingView {
    /// The session, 32 hexadecimal digits.
    pub session: String,
    /// Where the source's data plane shall send, `address:port`.
    pub dataplane: String,
    /// Where it stands.
    pub state: IncomingState,
    /// Is the guest here? Unknown until it is settled.
    pub guest: GuestVerdict,
    /// In post-copy, pages that the guest waits for come over a connection of their own.
    #[serde(default)]
    pub postcopy_preempt: bool,
    /// The hypervisor's own word for its state, as last seen.
    pub hypervisor: Option<String>,
    /// Why it failed; absent if it did not.
    pub failure: Option<FailureView>,
}
