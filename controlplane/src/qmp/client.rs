//! One connection to a monitor. In: commands. Out: answers, matched by id, and events. One task reads;
//! a call waits for its answer and for nothing else. When the last handle goes, the connection closes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::command::QmpCommand;
use super::error::QmpError;
use super::line::{Message, parse, read_line};
use super::path::MonitorPath;
use super::status::{MigrationInfo, RunState};

/// How long a monitor may take to greet. One that serves somebody else never does.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Events that a slow reader may lag behind.
const EVENTS_KEPT: usize = 256;
/// Commands that may wait for an answer on one connection.
const PENDING_MAX: usize = 64;

/// What was returned, or class and words of a refusal.
type Answer = Result<Value, (String, String)>;

/// Something that the hypervisor reported.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Its name, such as `MIGRATION` or `STOP`.
    pub name: String,
    /// What belongs to it.
    pub data: Value,
}

/// A connection to a monitor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Qmp {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    reader: JoinHandle<()>,
    /// Some commands overtake others.
    oob: bool,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Pending {
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects, reads the greeting and ends the negotiation.
    ///
    /// # Errors
    /// [`QmpError::Missing`] if nobody listens, [`QmpError::Silent`] if the monitor serves somebody
    /// else, [`QmpError::Garbled`] if it is none.
    pub async fn connect(path: &MonitorPath) -> Result<Self, QmpError> {
        Self::connect_within(path.as_path(), GREETING_LIMIT).await
    }

    async fn connect_within(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let missing = |error: std::io::Error| QmpError::Missing {
            path: path.to_owned(),
            problem: error.to_string(),
        };
        let silent = |_| QmpError::Silent(path.to_owned());
        let stream = timeout(limit, UnixStream::connect(path))
            .await
            .map_err(silent)?
            .map_err(missing)?;
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let mut line = Vec::new();
        timeout(limit, read_line(&mut reader, &mut line))
            .await
            .map_err(silent)??;
        let Message::Greeting { oob } = parse(&line)? else {
            return Err(QmpError::Garbled(
                "its first line is no greeting".to_owned(),
            ));
        };
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            events: broadcast::channel(EVENTS_KEPT).0,
            closed: watch::channel(false).0,
        });
        let reader = tokio::spawn(read_loop(reader, line, Arc::clone(&shared)));
        let qmp = Self {
            inner: Arc::new(Inner {
                writer: tokio::sync::Mutex::new(write),
                shared,
                next_id: AtomicU64::new(1),
                reader,
                oob,
            }),
        };
        qmp.execute(QmpCommand::Capabilities { oob }).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for its answer, at most for the command's deadline.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with the hypervisor's words, [`QmpError::TimedOut`], or
    /// [`QmpError::Closed`] if the connection is gone.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a command is built for one call"
    )]
    pub async fn execute(&self, command: QmpCommand) -> Result<Value, QmpError> {
        // Relaxed: only uniqueness matters.
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = command.encode(id, self.inner.oob).to_string().into_bytes();
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        self.inner.shared.register(id, sender)?;
        let limit = command.deadline();
        let late = |_| QmpError::TimedOut {
            command: command.name(),
            limit_ms: limit.as_millis(),
        };
        let exchange = async {
            let written = timeout(limit, self.write(&line)).await;
            if !matches!(written, Ok(Ok(()))) {
                // Part of a line may be out: whatever followed it would be misread.
                self.inner.shared.close();
            }
            written.map_err(late)??;
            timeout(limit, answer)
                .await
                .map_err(late)?
                .map_err(|_| QmpError::Closed)
        };
        let outcome = exchange.await;
        self.inner.shared.forget(id);
        outcome?.map_err(|(class, description)| QmpError::Refused {
            command: command.name(),
            class,
            description,
        })
    }

    async fn write(&self, line: &[u8]) -> Result<(), QmpError> {
        self.inner
            .writer
            .lock()
            .await
            .write_all(line)
            .await
            .map_err(|_| QmpError::Closed)
    }

    /// `query-status`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn run_state(&self) -> Result<RunState, QmpError> {
        Ok(RunState::read(
            &self.execute(QmpCommand::QueryStatus).await?,
        ))
    }

    /// `query-migrate`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migration(&self) -> Result<MigrationInfo, QmpError> {
        Ok(MigrationInfo::read(
            &self.execute(QmpCommand::QueryMigrate).await?,
        ))
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.inner.shared.events.subscribe()
    }

    /// Is the connection gone?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.inner.shared.closed.borrow()
    }

    /// Returns when the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.inner.shared.closed.subscribe();
        // An error means that the sender is gone, and it lives as long as we do.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

impl Shared {
    fn register(&self, id: u64, sender: oneshot::Sender<Answer>) -> Result<(), QmpError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.closed {
            return Err(QmpError::Closed);
        }
        if pending.answers.len() >= PENDING_MAX {
            return Err(QmpError::Garbled(format!(
                "{PENDING_MAX} commands wait for an answer"
            )));
        }
        pending.answers.insert(id, sender);
        Ok(())
    }

    fn forget(&self, id: u64) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answers
            .remove(&id);
    }

    fn answer(&self, id: Option<u64>, answer: Answer) {
        let Some(id) = id else { return };
        let sender = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answers
            .remove(&id);
        if let Some(sender) = sender {
            // The caller may have given up.
            let _ = sender.send(answer);
        }
    }

    fn close(&self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.closed = true;
        pending.answers.clear();
        drop(pending);
        self.closed.send_replace(true);
    }
}

async fn read_loop(mut reader: BufReader<OwnedReadHalf>, mut line: Vec<u8>, shared: Arc<Shared>) {
    loop {
        let message = match read_line(&mut reader, &mut line).await {
            Ok(()) => parse(&line),
            Err(error) => Err(error),
        };
        match message {
            Ok(Message::Return { id, value }) => shared.answer(id, Ok(value)),
            Ok(Message::Error {
                id,
                class,
                description,
            }) => {
                shared.answer(id, Err((class, description)));
            }
            Ok(Message::Event { name, data }) => {
                // Nobody listening is fine.
                let _ = shared.events.send(QmpEvent { name, data });
            }
            Ok(Message::Greeting { .. } | Message::Other) => {}
            Err(error) => {
                if error != QmpError::Closed {
                    tracing::warn!(%error, "monitor dropped");
                }
                shared.close();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;
    use tokio::net::UnixListener;

    const GREETING: &str = "{\"QMP\":{}}\n";

    async fn monitor(
        script: impl AsyncFnOnce(BufReader<OwnedReadHalf>, OwnedWriteHalf) + 'static,
    ) -> Result<Qmp, QmpError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let listener = UnixListener::bind(&path).unwrap();
        let local = tokio::task::LocalSet::new();
        let server = local.spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, write) = stream.into_split();
            script(BufReader::new(read), write).await;
        });
        local
            .run_until(async {
                let qmp = Qmp::connect_within(&path, Duration::from_millis(500)).await;
                if let Ok(qmp) = &qmp {
                    let _ = qmp.run_state().await;
                }
                server.await.unwrap();
                qmp
            })
            .await
    }

    #[tokio::test]
    async fn answers_are_matched_by_id_even_out_of_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut read = BufReader::new(read);
            let mut line = String::new();
            write.write_all(GREETING.as_bytes()).await.unwrap();
            read.read_line(&mut line).await.unwrap();
            write
                .write_all(b"{\"return\":{},\"id\":1}\n")
                .await
                .unwrap();
            read.read_line(&mut line).await.unwrap();
            read.read_line(&mut line).await.unwrap();
            write
                .write_all(
                    b"{\"event\":\"STOP\"}\n{\"id\":77,\"return\":{}}\n\
                      {\"id\":3,\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n\
                      {\"id\":2,\"return\":{\"status\":\"running\",\"running\":true}}\n",
                )
                .await
                .unwrap();
            read.read_line(&mut line).await.unwrap();
        });
        let qmp = Qmp::connect_within(&path, Duration::from_secs(5))
            .await
            .unwrap();
        let mut events = qmp.events();
        let (state, refused) = tokio::join!(qmp.run_state(), qmp.execute(QmpCommand::Cont));
        assert!(state.unwrap().running);
        assert!(matches!(
            refused,
            Err(QmpError::Refused {
                command: "cont",
                ..
            })
        ));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        drop(qmp);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_monitor_is_told() {
        let human = monitor(async |_, mut write: OwnedWriteHalf| {
            write.write_all(b"QEMU 10.0.2 monitor\n").await.unwrap();
        })
        .await;
        assert!(matches!(human, Err(QmpError::Garbled(_))));
        let busy = monitor(async |mut read: BufReader<OwnedReadHalf>, _write| {
            // Says nothing until the client gives up.
            let mut line = String::new();
            let _ = read.read_line(&mut line).await;
        })
        .await;
        assert!(matches!(busy, Err(QmpError::Silent(_))));
    }

    #[tokio::test]
    async fn a_monitor_that_ends_fails_every_call() {
        let qmp = monitor(
            async |mut read: BufReader<OwnedReadHalf>, mut write: OwnedWriteHalf| {
                let mut line = String::new();
                write.write_all(GREETING.as_bytes()).await.unwrap();
                read.read_line(&mut line).await.unwrap();
                write
                    .write_all(b"{\"return\":{},\"id\":1}\n")
                    .await
                    .unwrap();
                read.read_line(&mut line).await.unwrap();
            },
        )
        .await
        .unwrap();
        qmp.closed().await;
        assert!(qmp.is_closed());
        assert_eq!(qmp.run_state().await, Err(QmpError::Closed));
    }
}
