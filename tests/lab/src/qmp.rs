//! QEMU's machine protocol, blocking.
//!
//! In: a UNIX socket path. Out: answers and events as JSON. Promise: every wait has a deadline;
//! fields of newer QEMU versions are kept, not refused. Protocol: QEMU's "QMP specification",
//! newline-delimited JSON after a greeting and `qmp_capabilities`.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An answer that takes longer than this means a hanging QEMU.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket did not appear or broke.
    #[error("monitor {path}: {source}; has QEMU ended? see its log")]
    Socket {
        /// The monitor's path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        description: String,
    },
    /// What came is not the protocol.
    #[error("monitor {path} sent what is not QMP: {line:?}")]
    Protocol {
        /// The monitor's path.
        path: PathBuf,
        /// The line.
        line: String,
    },
    /// Nothing came in time.
    #[error("{what} did not come within {limit_s} s")]
    Deadline {
        /// The answer or event awaited.
        what: String,
        /// The limit in seconds.
        limit_s: u64,
    },
}

/// A connection to one monitor. A monitor serves one client at a time.
pub struct Qmp {
    path: PathBuf,
    reader: BufReader<UnixStream>,
    /// An unfinished line: a read may time out in the middle.
    partial: Vec<u8>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, waiting for the socket to appear.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                Err(source) => {
                    return Err(QmpError::Socket {
                        path: path.into(),
                        source,
                    });
                }
            }
        };
        let mut qmp = Self {
            path: path.into(),
            reader: BufReader::new(stream),
            partial: Vec::new(),
            events: Vec::new(),
        };
        let greeting = qmp.receive(end, "the greeting", limit)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol {
                path: path.into(),
                line: greeting.to_string(),
            });
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Runs a command; `Value::Null` means without arguments. Events that come meanwhile are kept.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let socket = |source| QmpError::Socket {
            path: self.path.clone(),
            source,
        };
        let mut line = request.to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(socket)?;
        let end = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut message = self.receive(end, command, ANSWER_LIMIT)?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                let description = error["desc"]
                    .as_str()
                    .unwrap_or("no description")
                    .to_owned();
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    description,
                });
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for an event of this name that came since it was last asked for.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Value, QmpError> {
        let end = Instant::now() + limit;
        loop {
            if let Some(index) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(index));
            }
            let message = self.receive(end, name, limit)?;
            if message.get("event").is_some() {
                self.events.push(message);
            }
        }
    }

    /// The latest event of this name that came with the answers so far and was not waited for.
    #[must_use]
    pub fn latest_event(&self, name: &str) -> Option<&Value> {
        self.events
            .iter()
            .rev()
            .find(|event| event["event"] == name)
    }

    /// The run state, for instance `running`, `postmigrate`, `inmigrate`.
    pub fn query_status(&mut self) -> Result<String, QmpError> {
        let answer = self.execute("query-status", Value::Null)?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The migration's state as QEMU tells it; `status` is missing before the first migration.
    pub fn query_migrate(&mut self) -> Result<Value, QmpError> {
        self.execute("query-migrate", Value::Null)
    }

    /// Polls the migration until it completed, failed or was cancelled.
    pub fn wait_migration(&mut self, limit: Duration) -> Result<Value, QmpError> {
        let end = Instant::now() + limit;
        loop {
            let state = self.query_migrate()?;
            if matches!(
                state["status"].as_str(),
                Some("completed" | "failed" | "cancelled")
            ) {
                return Ok(state);
            }
            if Instant::now() >= end {
                let limit_s = limit.as_secs();
                return Err(QmpError::Deadline {
                    what: format!("the end of {state}"),
                    limit_s,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Switches migration capabilities on or off.
    pub fn set_capabilities(&mut self, capabilities: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> = capabilities
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": list }))
            .map(|_| ())
    }

    fn receive(&mut self, end: Instant, what: &str, limit: Duration) -> Result<Value, QmpError> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let late = || QmpError::Deadline {
                what: what.to_owned(),
                limit_s: limit.as_secs(),
            };
            if left.is_zero() {
                return Err(late());
            }
            let socket = |source| QmpError::Socket {
                path: self.path.clone(),
                source,
            };
            self.reader
                .get_ref()
                .set_read_timeout(Some(left))
                .map_err(socket)?;
            match self.reader.read_until(b'\n', &mut self.partial) {
                Ok(0) => return Err(socket(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_slice(&line).map_err(|_| QmpError::Protocol {
                        path: self.path.clone(),
                        line: String::from_utf8_lossy(&line).into_owned(),
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that sends `script` after the capabilities were taken.
    fn monitor(script: &'static str) -> (tempfile::TempDir, Qmp) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n")
                .unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            stream.write_all(script.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_secs(30));
        });
        let qmp = Qmp::connect(&path, Duration::from_secs(10)).unwrap();
        (dir, qmp)
    }

    #[test]
    fn events_before_the_answer_are_kept() {
        let (_dir, mut qmp) =
            monitor("{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"running\"}}\n");
        assert_eq!(qmp.query_status().unwrap(), "running");
        assert!(qmp.latest_event("STOP").is_some() && qmp.latest_event("RESUME").is_none());
        assert_eq!(
            qmp.wait_event("STOP", Duration::from_secs(5)).unwrap()["event"],
            "STOP"
        );
        let again = qmp.wait_event("STOP", Duration::from_millis(20));
        assert!(matches!(again, Err(QmpError::Deadline { .. })));
    }

    #[test]
    fn a_refusal_carries_qemus_words() {
        let (_dir, mut qmp) = monitor("{\"error\": {\"class\": \"x\", \"desc\": \"not now\"}}\n");
        let error = qmp.execute("cont", Value::Null).unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
    }

    #[test]
    fn nonsense_is_an_error() {
        let (_dir, mut qmp) = monitor("hello\n");
        assert!(matches!(qmp.query_status(), Err(QmpError::Protocol { .. })));
    }
}
