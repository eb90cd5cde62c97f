//! What is written down of a migration. In: every change of state. Out: enough for a restarted control
//! plane to go on, and the result for as long as it is kept. The file holds peers' tokens: it belongs
//! to its owner alone.

use dwcp_api::SessionId;
use serde::{Deserialize, Serialize};

use super::request::{IncomingRequest, MigrationRequest};
use super::view::{
    BytesView, DestinationView, FailureView, GuestSide, GuestVerdict, IncomingState, IncomingView,
    LanesView, MigrationState, MigrationView, PagesView, RatesView,
};

/// Ended migrations that are kept, each way.
pub const ENDED_KEPT_MAX: usize = 1000;
/// Table of the migrations that start here.
pub const SOURCE_TABLE: &str = "migrations";
/// Table of the migrations that come here.
pub const INCOMING_TABLE: &str = "incoming";

/// How far a source job got: what must be undone, and whether the hypervisor was asked to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing that cannot be taken back.
    Preparing,
    /// `migrate` is being given, or was.
    Sending,
}

/// A migration that starts here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceRecord {
    /// What was asked for.
    pub request: MigrationRequest,
    /// What is shown.
    pub view: MigrationView,
    /// How far it got.
    pub stage: Stage,
    /// The data plane that has its session.
    pub instance: Option<u64>,
    /// The guest has stood still for the hand-over, or may have.
    pub handed: bool,
    /// The hypervisor was asked to turn the migration into post-copy.
    #[serde(default)]
    pub postcopy_asked: bool,
    /// The session of the data planes that carries it since it was recovered, if it was.
    #[serde(default)]
    pub carrier: Option<String>,
}

/// A migration that comes here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncomingRecord {
    /// What was asked for.
    pub request: IncomingRequest,
    /// What is shown.
    pub view: IncomingView,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The data plane that has its session.
    pub instance: Option<u64>,
    /// The session of the data planes that carries it since it was recovered, if it was.
    #[serde(default)]
    pub carrier: Option<String>,
}

/// The session that carries a migration: its own, or the last that it was recovered over.
fn carried_by(carrier: Option<&String>, session: SessionId) -> SessionId {
    carrier
        .and_then(|carrier| SessionId::parse(carrier))
        .unwrap_or(session)
}

impl SourceRecord {
    /// A migration that was just asked for.
    #[must_use]
    pub fn new(request: MigrationRequest, session: String, now_unix_ms: u64) -> Self {
        let view = MigrationView {
            id: session,
            vm: request.vm.clone(),
            destination: DestinationView {
                api: request.destination.api.clone(),
                qmp: request.destination.qmp.clone(),
                dataplane: None,
            },
            options: request.options.clone(),
            state: MigrationState::Setup,
            phase: "preparing the destination".to_owned(),
            progress: None,
            started_unix_ms: now_unix_ms,
            total_ms: 0,
            downtime_ms: None,
            setup_ms: None,
            version: None,
            negotiated_version: None,
            mode: None,
            bytes: BytesView::default(),
            rates: RatesView::default(),
            remaining_bytes: None,
            expected_finish_s: None,
            expected_downtime_ms: None,
            held_bytes: 0,
            held_bytes_max: 0,
            held_bytes_limit: 0,
            rtt_us: 0,
            rounds: 0,
            pages: PagesView::default(),
            lanes: LanesView::default(),
            guest: GuestSide::Source,
            failure: None,
            rollback: None,
            notes: Vec::new(),
        };
        Self {
            request,
            view,
            stage: Stage::Preparing,
            instance: None,
            handed: false,
            postcopy_asked: false,
            carrier: None,
        }
    }

    /// The session that carries migration `session` now.
    #[must_use]
    pub fn carrier(&self, session: SessionId) -> SessionId {
        carried_by(self.carrier.as_ref(), session)
    }
}

impl IncomingRecord {
    /// A migration that was just announced.
    #[must_use]
    pub fn new(request: IncomingRequest, dataplane: String, now_unix_ms: u64) -> Self {
        let view = IncomingView {
            session: request.session.to_ascii_lowercase(),
            dataplane,
            state: IncomingState::Setup,
            guest: GuestVerdict::Unknown,
            postcopy_preempt: false,
            hypervisor: None,
            failure: None,
        };
        Self {
            request,
            view,
            started_unix_ms: now_unix_ms,
            instance: None,
            carrier: None,
        }
    }

    /// The session that carries migration `session` now.
    #[must_use]
    pub fn carrier(&self, session: SessionId) -> SessionId {
        carried_by(self.carrier.as_ref(), session)
    }
}

/// A failure, in the three parts that every failure has.
#[must_use]
pub fn failure(code: &str, detail: impl Into<String>, cure: impl Into<String>) -> FailureView {
    FailureView {
        code: code.to_owned(),
        detail: detail.into(),
        cure: cure.into(),
    }
}

/// What to do about a failure of the data plane.
#[must_use]
pub const fn failure_cure(failure: dwcp_api::Failure) -> &'static str {
    use dwcp_api::Failure as F;
    match failure {
        F::None | F::Cancelled => "nothing",
        F::PeerLost => "check the link between the hosts, then start the migration again",
        F::WrongKey => {
            "give both data planes the same key file, or good certificates of one authority; the detail says which"
        }
        F::Refused | F::PeerAborted => "look at the destination's data plane log",
        F::VersionMismatch => "allow v1 on both hosts, or install one release on both",
        F::Corrupted => "start again; if it repeats, check memory and network cards of both hosts",
        F::Protocol => "install one release on both hosts",
        F::Hypervisor => "look at the logs of both hypervisors",
        F::Limit => "wait for other migrations to end, or raise the limit",
        F::System => "look at the data plane's log: it names what the system refused",
        F::BadCommand => "install control plane and data plane from one release",
        F::DataPlaneGone => "look why dwcp-dataplane ended, then start the migration again",
        F::WrongNode => {
            "correct the destination's address or the node that is named, then start the migration again"
        }
        F::NoHypervisor => "look at the hypervisor's log, then start the migration again",
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::jobs::request::PeerToken;

    pub(crate) fn view() -> MigrationView {
        let request = serde_json::from_str(
            r#"{"vm":{"qmp":"/a"},"destination":{"api":"http://h:1","qmp":"/b","token":"secret"}}"#,
        )
        .unwrap();
        SourceRecord::new(request, "01".repeat(16), 1).view
    }

    #[test]
    fn a_record_reads_back_and_its_view_shows_no_token() {
        let request: MigrationRequest = serde_json::from_str(
            r#"{"vm":{"qmp":"/a"},"destination":{"api":"http://h:1","qmp":"/b","token":"secret"}}"#,
        )
        .unwrap();
        let record = SourceRecord::new(request, "01".repeat(16), 7);
        assert!(
            !serde_json::to_string(&record.view)
                .unwrap()
                .contains("secret")
        );
        let read: SourceRecord =
            serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(read.view, record.view);
        assert_eq!(
            read.request.destination.token,
            Some(PeerToken("secret".to_owned()))
        );
    }
}
