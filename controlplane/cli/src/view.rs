//! What the API says, as far as it is shown. Unknown fields are ignored and missing ones have a
//! default, so that this program works with older and newer control planes.

use serde::Deserialize;

use crate::exit::Exit;

/// A migration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Migration {
    /// Its id.
    pub id: String,
    /// Its guest.
    pub vm: Vm,
    /// Where it goes.
    pub destination: Destination,
    /// Where it stands.
    pub state: String,
    /// The same for people.
    pub phase: String,
    /// 0 to 1.
    pub progress: Option<f64>,
    /// How long it takes or took.
    pub total_ms: u64,
    /// How long the guest stood still.
    pub downtime_ms: Option<u64>,
    /// Version of the last batch.
    pub version: Option<String>,
    /// Bytes so far.
    pub bytes: Bytes,
    /// Bytes a second.
    pub rates: Rates,
    /// Seconds to the end.
    pub expected_finish_s: Option<f64>,
    /// Bytes between the two hypervisors.
    pub held_bytes: u64,
    /// Who has the guest.
    pub guest: String,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What the kill switch did.
    pub rollback: Option<Rollback>,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// A guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Vm {
    /// Its QMP socket.
    pub qmp: String,
    /// Its name.
    pub name: Option<String>,
}

/// A destination.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// Its control plane.
    pub api: String,
    /// QMP socket there.
    pub qmp: String,
}

/// Bytes so far.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Bytes {
    /// From the hypervisor.
    pub hypervisor: u64,
    /// On the wire.
    pub wire: u64,
    /// Share that never went over the wire.
    pub saved_fraction: Option<f64>,
}

/// Bytes a second.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// From the hypervisor.
    pub hypervisor_bytes_per_s: f64,
    /// On the wire.
    pub wire_bytes_per_s: f64,
}

/// Why it failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// A word for programs.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do.
    pub cure: String,
}

/// What the kill switch did.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rollback {
    /// From the throw to the first v1 batch.
    pub rollback_us: Option<u64>,
    /// When that batch left.
    pub first_v1_batch_ns: Option<u64>,
}

impl Migration {
    /// Nothing will change any more.
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "failed" | "cancelled")
    }

    /// The guest's name, or its socket.
    pub fn guest_name(&self) -> &str {
        self.vm.name.as_deref().unwrap_or(&self.vm.qmp)
    }

    /// How the program ends when this is the last view.
    pub fn exit(&self) -> Exit {
        match self.state.as_str() {
            "completed" => Exit::Done,
            "cancelled" => Exit::Cancelled,
            // The number says that the guest is safe at the source, so that must be so.
            "failed" if self.guest == "source" => Exit::Failed,
            _ => Exit::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_never_claims_a_safe_guest_without_one() {
        for (state, guest, exit) in [
            ("completed", "destination", Exit::Done),
            ("cancelled", "source", Exit::Cancelled),
            ("failed", "source", Exit::Failed),
            ("failed", "undecided", Exit::Undecided),
            ("failed", "", Exit::Undecided),
            ("undecided", "undecided", Exit::Undecided),
            ("new_word", "source", Exit::Undecided),
        ] {
            let view = Migration {
                state: state.to_owned(),
                guest: guest.to_owned(),
                ..Migration::default()
            };
            assert_eq!(view.exit(), exit, "{state} {guest}");
        }
    }

    #[test]
    fn a_view_of_another_release_is_read() {
        let view: Migration =
            serde_json::from_str(r#"{"id":"a","state":"active","new":{"x":1},"progress":null}"#)
                .unwrap();
        assert_eq!(
            (view.id.as_str(), view.progress, view.is_final()),
            ("a", None, false)
        );
    }
}
