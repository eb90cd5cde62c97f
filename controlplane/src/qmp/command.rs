//! The commands that may be sent: a closed set. Anything else a monitor can do (run programs, open
//! files, change devices) cannot be expressed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// A command of the monitor.
#[derive(Clone, Debug, PartialEq)]
pub enum QmpCommand {
    /// Ends the negotiation that every connection starts with.
    Capabilities,
    /// Does the guest run?
    QueryStatus,
    /// How far is the migration?
    QueryMigrate,
    /// What can this hypervisor do, and what is switched on?
    QueryMigrateCapabilities,
    /// The migration's parameters.
    QueryMigrateParameters,
    /// Switches capabilities.
    MigrateSetCapabilities(Vec<(&'static str, bool)>),
    /// Sets parameters.
    MigrateSetParameters(Map<String, Value>),
    /// Sends the guest to whoever listens on this UNIX socket.
    Migrate(PathBuf),
    /// Listens on this UNIX socket for a guest.
    MigrateIncoming(PathBuf),
    /// Stops the migration that runs.
    MigrateCancel,
    /// Lets the guest run.
    Cont,
    /// Stops the guest; before a guest has come in: it will not start by itself.
    Stop,
    /// Ends the hypervisor.
    Quit,
}

impl QmpCommand {
    /// The command's name on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::QueryMigrate => "query-migrate",
            Self::QueryMigrateCapabilities => "query-migrate-capabilities",
            Self::QueryMigrateParameters => "query-migrate-parameters",
            Self::MigrateSetCapabilities(_) => "migrate-set-capabilities",
            Self::MigrateSetParameters(_) => "migrate-set-parameters",
            Self::Migrate(_) => "migrate",
            Self::MigrateIncoming(_) => "migrate-incoming",
            Self::MigrateCancel => "migrate_cancel",
            Self::Cont => "cont",
            Self::Stop => "stop",
            Self::Quit => "quit",
        }
    }

    /// How long an answer may take. `cont` and `stop` wait for the guest's disks.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        match self {
            Self::Cont | Self::Stop | Self::Migrate(_) | Self::MigrateCancel => {
                Duration::from_secs(15)
            }
            _ => Duration::from_secs(5),
        }
    }

    /// One line of the wire, without its end.
    #[must_use]
    pub fn encode(&self, id: u64) -> Value {
        // A path that is no UTF-8 cannot be written in JSON; ours are made of hexadecimal digits
        // below a configured directory, and the hypervisor refuses what it cannot find.
        let uri = |path: &PathBuf| json!({ "uri": format!("unix:{}", path.display()) });
        let arguments = match self {
            Self::MigrateSetCapabilities(list) => {
                let list: Vec<Value> = list
                    .iter()
                    .map(|(name, on)| json!({ "capability": name, "state": on }))
                    .collect();
                Some(json!({ "capabilities": list }))
            }
            Self::MigrateSetParameters(parameters) => Some(Value::Object(parameters.clone())),
            Self::Migrate(path) | Self::MigrateIncoming(path) => Some(uri(path)),
            _ => None,
        };
        let mut message = json!({ "execute": self.name(), "id": id });
        if let (Some(arguments), Some(object)) = (arguments, message.as_object_mut()) {
            object.insert("arguments".to_owned(), arguments);
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_the_monitor_wants_it() {
        let line = QmpCommand::Migrate("/run/x.sock".into()).encode(7);
        assert_eq!(
            line,
            json!({"execute":"migrate","id":7,"arguments":{"uri":"unix:/run/x.sock"}})
        );
        let line = QmpCommand::MigrateSetCapabilities(vec![("events", true)]).encode(8);
        assert_eq!(
            line["arguments"],
            json!({"capabilities":[{"capability":"events","state":true}]})
        );
        assert_eq!(
            QmpCommand::QueryStatus.encode(9),
            json!({"execute":"query-status","id":9})
        );
    }
}
