//! What a monitor's answers mean. In: JSON of any version of the hypervisor. Out: the few figures we
//! use. A field that is missing, or of another type than ours, reads as absent; a word that is not
//! known is kept as it is.

use serde_json::Value;

/// Does the guest run, and why not? `query-status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunState {
    /// The hypervisor's word: `running`, `paused`, `inmigrate`, `finish-migrate`, `postmigrate`, …
    pub word: String,
    /// The guest's processors run.
    pub running: bool,
}

impl RunState {
    /// Reads an answer.
    #[must_use]
    pub fn read(value: &Value) -> Self {
        Self {
            word: value
                .get("status")
                .and_then(Value::as_str)
                .unwrap_or("")
                .chars()
                .take(64)
                .collect(),
            running: value
                .get("running")
                .and_then(Value::as_bool)
                .unwrap_or(false),
        }
    }

    /// The guest has not come in yet.
    #[must_use]
    pub fn is_incoming(&self) -> bool {
        self.word == "inmigrate"
    }

    /// The guest stands still because of a migration: it is being handed over, or was.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        matches!(self.word.as_str(), "finish-migrate" | "postmigrate")
    }
}

/// Where the hypervisor sees its migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationPhase {
    /// There was none.
    None,
    /// It is being set up.
    Setup,
    /// RAM flows.
    Active,
    /// The guest stands still and the rest is sent.
    Device,
    /// Post-copy: the guest runs at the destination and fetches its memory.
    Postcopy,
    /// Post-copy with broken connections: it waits to be recovered.
    PostcopyPaused,
    /// Post-copy that goes on over new connections and is agreeing with the other side what is missing.
    PostcopyRecovering,
    /// The destination has it.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// On its way to one of the last two, or a word that is not known.
    Other,
}

/// `query-migrate`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MigrationInfo {
    /// The hypervisor's word for the status.
    pub word: Option<String>,
    /// Why it failed, in the hypervisor's words: to show, never to parse.
    pub error: Option<String>,
    /// How long the guest stood still.
    pub downtime_ms: Option<u64>,
    /// How long it would stand still if it were handed over now, as the hypervisor expects.
    pub expected_downtime_ms: Option<u64>,
    /// How long the setup took.
    pub setup_ms: Option<u64>,
    /// Guest RAM altogether.
    pub ram_total_bytes: Option<u64>,
    /// Guest RAM still to send.
    pub ram_remaining_bytes: Option<u64>,
    /// Bytes put into the stream.
    pub ram_transferred_bytes: Option<u64>,
    /// RAM that the guest dirties.
    pub dirty_bytes_per_s: Option<f64>,
    /// Passes over RAM.
    pub rounds: Option<u64>,
}

impl MigrationPhase {
    /// Is the guest's memory on both sides?
    #[must_use]
    pub const fn is_postcopy(self) -> bool {
        matches!(
            self,
            Self::Postcopy | Self::PostcopyPaused | Self::PostcopyRecovering
        )
    }
}

impl MigrationInfo {
    /// Reads an answer.
    #[must_use]
    pub fn read(value: &Value) -> Self {
        let top = |name: &str| value.get(name).and_then(Value::as_u64);
        let ram = |name: &str| value.get("ram").and_then(|ram| ram.get(name));
        let ram_number = |name: &str| ram(name).and_then(Value::as_u64);
        let text = |name: &str, limit: usize| {
            value
                .get(name)
                .and_then(Value::as_str)
                .map(|text| text.chars().take(limit).collect())
        };
        let page_bytes = ram_number("page-size").unwrap_or(4096);
        Self {
            word: text("status", 64),
            error: text("error-desc", 500),
            downtime_ms: top("downtime"),
            expected_downtime_ms: top("expected-downtime"),
            setup_ms: top("setup-time"),
            ram_total_bytes: ram_number("total"),
            ram_remaining_bytes: ram_number("remaining"),
            ram_transferred_bytes: ram_number("transferred"),
            // Precise enough: a rate in pages a second is far below 2^53.
            dirty_bytes_per_s: ram("dirty-pages-rate")
                .and_then(Value::as_f64)
                .map(|pages| pages * u32::try_from(page_bytes).map_or(4096.0, f64::from)),
            rounds: ram_number("dirty-sync-count"),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> MigrationPhase {
        self.word.as_deref().map_or(MigrationPhase::None, phase_of)
    }
}

/// Reads a status word, as `query-migrate` and the event `MIGRATION` carry it.
#[must_use]
pub fn phase_of(word: &str) -> MigrationPhase {
    match word {
        "none" => MigrationPhase::None,
        "setup" | "wait-unplug" => MigrationPhase::Setup,
        "active" => MigrationPhase::Active,
        "pre-switchover" | "device" => MigrationPhase::Device,
        "postcopy-active" | "postcopy-device" => MigrationPhase::Postcopy,
        "postcopy-paused" => MigrationPhase::PostcopyPaused,
        "postcopy-recover-setup" | "postcopy-recover" => MigrationPhase::PostcopyRecovering,
        "completed" => MigrationPhase::Completed,
        "failed" => MigrationPhase::Failed,
        "cancelled" => MigrationPhase::Cancelled,
        _ => MigrationPhase::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_read_and_strange_ones_are_absent() {
        let info = MigrationInfo::read(&json!({
            "status": "active", "setup-time": 5, "downtime": "soon", "expected-downtime": 300, "new-field": [],
            "ram": {"total": 100, "remaining": 40, "page-size": 4096, "dirty-pages-rate": 10}
        }));
        assert_eq!(info.phase(), MigrationPhase::Active);
        assert_eq!((info.setup_ms, info.downtime_ms), (Some(5), None));
        assert_eq!(info.expected_downtime_ms, Some(300));
        assert_eq!(
            (info.ram_total_bytes, info.ram_remaining_bytes),
            (Some(100), Some(40))
        );
        assert_eq!(info.dirty_bytes_per_s, Some(40_960.0));
        assert_eq!(info.ram_transferred_bytes, None);
    }

    #[test]
    fn a_new_word_is_no_error() {
        assert_eq!(
            MigrationInfo::read(&json!({"status":"quantum"})).phase(),
            MigrationPhase::Other
        );
        assert_eq!(
            MigrationInfo::read(&json!({})).phase(),
            MigrationPhase::None
        );
        assert_eq!(
            MigrationInfo::read(&json!([1])).phase(),
            MigrationPhase::None
        );
        let state = RunState::read(&json!({"status":"running","running":true,"singlestep":false}));
        assert!(state.running && !state.is_incoming());
        assert!(!RunState::read(&Value::Null).running);
    }
}
