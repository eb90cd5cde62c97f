//! The commands that may be sent: a closed set. Anything else a monitor can do (run programs, open
//! files, change devices) cannot be expressed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// A command of the monitor.
#[derive(Clone, Debug, PartialEq)]
pub enum QmpCommand {
    /// Ends the negotiation that every connection starts with.
    Capabilities {
        /// Commands that [`may_overtake`](Self::may_overtake) others shall do so.
        oob: bool,
    },
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
    /// Turns the migration that runs into post-copy.
    MigrateStartPostcopy,
    /// Breaks the connections of a post-copy migration, which then waits to be recovered.
    MigratePause,
    /// At the destination: listens on this UNIX socket for the source of a broken post-copy migration.
    MigrateRecover(PathBuf),
    /// At the source: goes on with a broken post-copy migration, to whoever listens on this UNIX socket.
    MigrateResume(PathBuf),
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
            Self::Capabilities { .. } => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::QueryMigrate => "query-migrate",
            Self::QueryMigrateCapabilities => "query-migrate-capabilities",
            Self::QueryMigrateParameters => "query-migrate-parameters",
            Self::MigrateSetCapabilities(_) => "migrate-set-capabilities",
            Self::MigrateSetParameters(_) => "migrate-set-parameters",
            Self::Migrate(_) | Self::MigrateResume(_) => "migrate",
            Self::MigrateIncoming(_) => "migrate-incoming",
            Self::MigrateCancel => "migrate_cancel",
            Self::MigrateStartPostcopy => "migrate-start-postcopy",
            Self::MigratePause => "migrate-pause",
            Self::MigrateRecover(_) => "migrate-recover",
            Self::Cont => "cont",
            Self::Stop => "stop",
            Self::Quit => "quit",
        }
    }

    /// How long an answer may take. `cont` and `stop` wait for the guest's disks.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        match self {
            Self::Cont
            | Self::Stop
            | Self::Migrate(_)
            | Self::MigrateResume(_)
            | Self::MigrateCancel => Duration::from_secs(15),
            _ => Duration::from_secs(5),
        }
    }

    /// Is it carried out although the monitor's other commands hang? They may, in a hypervisor that waits for
    /// a page of its guest which only a recovery brings.
    #[must_use]
    pub const fn may_overtake(&self) -> bool {
        matches!(self, Self::MigratePause | Self::MigrateRecover(_))
    }

    /// One line of the wire, without its end. `oob`: the monitor was told that commands may overtake.
    #[must_use]
    pub fn encode(&self, id: u64, oob: bool) -> Value {
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
            Self::Capabilities { oob: true } => Some(json!({ "enable": ["oob"] })),
            Self::MigrateSetParameters(parameters) => Some(Value::Object(parameters.clone())),
            Self::Migrate(path) | Self::MigrateIncoming(path) | Self::MigrateRecover(path) => {
                Some(uri(path))
            }
            Self::MigrateResume(path) => {
                let mut arguments = uri(path);
                arguments["resume"] = true.into();
                Some(arguments)
            }
            _ => None,
        };
        let verb = if oob && self.may_overtake() {
            "exec-oob"
        } else {
            "execute"
        };
        let mut message = json!({ verb: self.name(), "id": id });
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
        let line = QmpCommand::Migrate("/run/x.sock".into()).encode(7, true);
        assert_eq!(
            line,
            json!({"execute":"migrate","id":7,"arguments":{"uri":"unix:/run/x.sock"}})
        );
        let line = QmpCommand::MigrateResume("/run/x.sock".into()).encode(7, true);
        assert_eq!(
            line["arguments"],
            json!({"uri":"unix:/run/x.sock","resume":true})
        );
        let line = QmpCommand::MigrateSetCapabilities(vec![("events", true)]).encode(8, true);
        assert_eq!(
            line["arguments"],
            json!({"capabilities":[{"capability":"events","state":true}]})
        );
        let recover = QmpCommand::MigrateRecover("/run/x.sock".into());
        assert_eq!(
            recover.encode(3, true),
            json!({"exec-oob":"migrate-recover","id":3,"arguments":{"uri":"unix:/run/x.sock"}})
        );
        assert_eq!(recover.encode(3, false)["execute"], "migrate-recover");
        assert_eq!(
            QmpCommand::QueryStatus.encode(9, true),
            json!({"execute":"query-status","id":9})
        );
    }
}
