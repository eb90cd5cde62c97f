//! What all jobs of this host share: who runs, which hypervisor is taken, what is written down. In:
//! changes. Out: rows on disk, views to whoever listens. Ended jobs beyond the limit are forgotten,
//! the oldest first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_api::command::Command;
use dwcp_api::{SessionId, SessionState};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::host::Host;
use crate::qmp::MonitorPath;
use crate::store::Store;

use super::api::JobsConfig;
use super::error::JobError;
use super::record::{ENDED_KEPT_MAX, INCOMING_TABLE, IncomingRecord, SOURCE_TABLE, SourceRecord};
use super::sockets::SocketDir;
use super::view::{IncomingView, MigrationView, Verdict};

/// Migrations that run at once on one host, both ways: what a data plane holds.
pub const RUNNING_MAX: usize = dwcp_api::session::SESSIONS_MAX;
/// Views that a slow listener may lag behind.
const VIEWS_KEPT: usize = 1024;
/// How often a session that carries nothing is told to end and to be forgotten.
const FORGET_TRIES: u32 = 50;
const FORGET_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What a running source job can be told.
pub(super) enum SourceOrder {
    /// Stop, if that is still possible.
    Cancel(oneshot::Sender<Result<MigrationView, JobError>>),
    /// Connect both sides of a broken post-copy migration again.
    Recover(oneshot::Sender<Result<MigrationView, JobError>>),
    /// Change the bandwidth limit.
    Limit(u64, oneshot::Sender<Result<MigrationView, JobError>>),
    /// The destination's data plane is reached at this `address:port` from now on.
    Redirect(String, oneshot::Sender<Result<MigrationView, JobError>>),
}

/// What a running incoming job can be told.
pub(super) enum IncomingOrder {
    /// Fail closed and say where the guest is.
    Verdict(oneshot::Sender<Verdict>),
    /// Wait for the source of a broken post-copy migration over this session.
    Recover(SessionId, oneshot::Sender<Result<IncomingView, JobError>>),
}

/// A job as the table knows it.
pub(super) struct Entry<R, O> {
    pub(super) record: Mutex<R>,
    /// Absent once it has ended.
    pub(super) orders: Mutex<Option<mpsc::Sender<O>>>,
}

pub(super) type SourceEntry = Entry<SourceRecord, SourceOrder>;
pub(super) type IncomingEntry = Entry<IncomingRecord, IncomingOrder>;

impl<R: Clone, O> Entry<R, O> {
    pub(super) fn new(record: R, orders: Option<mpsc::Sender<O>>) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            orders: Mutex::new(orders),
        })
    }

    /// A copy of the record.
    pub(super) fn record(&self) -> R {
        lock(&self.record).clone()
    }

    /// The way to its task, if it still runs.
    pub(super) fn orders(&self) -> Option<mpsc::Sender<O>> {
        lock(&self.orders).clone()
    }

    pub(super) fn is_running(&self) -> bool {
        lock(&self.orders).is_some()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by every handle and every task.
pub(super) struct Table {
    pub(super) host: Host,
    pub(super) store: Store,
    pub(super) config: JobsConfig,
    pub(super) client: reqwest::Client,
    pub(super) sockets: SocketDir,
    pub(super) sources: Mutex<BTreeMap<SessionId, Arc<SourceEntry>>>,
    pub(super) incoming: Mutex<BTreeMap<SessionId, Arc<IncomingEntry>>>,
    claims: Mutex<HashMap<MonitorPath, SessionId>>,
    views: broadcast::Sender<MigrationView>,
}

/// A hypervisor that a job has for itself, until this is dropped.
pub(super) struct Claim {
    table: Arc<Table>,
    path: MonitorPath,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.table.claims).remove(&self.path);
    }
}

impl Claim {
    pub(super) const fn path(&self) -> &MonitorPath {
        &self.path
    }
}

impl Table {
    pub(super) fn new(
        host: Host,
        store: Store,
        config: JobsConfig,
        client: reqwest::Client,
        sockets: SocketDir,
    ) -> Self {
        Self {
            host,
            store,
            config,
            client,
            sockets,
            sources: Mutex::default(),
            incoming: Mutex::default(),
            claims: Mutex::default(),
            views: broadcast::channel(VIEWS_KEPT).0,
        }
    }

    /// Takes a hypervisor for one session.
    pub(super) fn claim(
        self: &Arc<Self>,
        path: MonitorPath,
        session: SessionId,
    ) -> Result<Claim, JobError> {
        let mut claims = lock(&self.claims);
        if let Some(holder) = claims.get(&path) {
            return Err(JobError::Busy {
                qmp: path.as_path().display().to_string(),
                session: holder.to_string(),
            });
        }
        if claims.len() >= RUNNING_MAX {
            return Err(JobError::TooMany(claims.len()));
        }
        claims.insert(path.clone(), session);
        drop(claims);
        Ok(Claim {
            table: Arc::clone(self),
            path,
        })
    }

    pub(super) fn source(&self, session: SessionId) -> Option<Arc<SourceEntry>> {
        lock(&self.sources).get(&session).cloned()
    }

    pub(super) fn incoming(&self, session: SessionId) -> Option<Arc<IncomingEntry>> {
        lock(&self.incoming).get(&session).cloned()
    }

    /// Shows a view to whoever listens.
    pub(super) fn publish(&self, view: &MigrationView) {
        // Nobody listening is fine.
        let _ = self.views.send(view.clone());
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<MigrationView> {
        self.views.subscribe()
    }

    pub(super) fn write_source(&self, record: &SourceRecord) -> Result<(), JobError> {
        self.write(SOURCE_TABLE, &record.view.id, record)
    }

    pub(super) fn write_incoming(&self, record: &IncomingRecord) -> Result<(), JobError> {
        self.write(INCOMING_TABLE, &record.view.session, record)
    }

    fn write(&self, table: &str, key: &str, row: &impl Serialize) -> Result<(), JobError> {
        self.store.put_json(table, key, row).map_err(|error| {
            tracing::error!(table, key, %error, "job not written down");
            JobError::Store(error.to_string())
        })
    }

    /// Forgets the oldest ended jobs beyond the limit.
    pub(super) fn prune(&self) {
        let sources = &mut *lock(&self.sources);
        prune(&self.store, SOURCE_TABLE, sources, |record| {
            record.view.started_unix_ms
        });
        let incoming = &mut *lock(&self.incoming);
        prune(&self.store, INCOMING_TABLE, incoming, |record| {
            record.started_unix_ms
        });
    }

    /// Sessions of jobs that have ended already: a control plane before this one ended before it could
    /// have them forgotten.
    pub(super) async fn sweep(&self) {
        for snapshot in self.host.sessions().unwrap_or_default() {
            let session = snapshot.id;
            let over = snapshot.state().is_some_and(SessionState::is_final);
            let source = lock(&self.sources).iter().any(|(id, entry)| {
                let carries = *id == session || entry.record().carrier(*id) == session;
                carries && !entry.is_running()
            });
            let incoming = lock(&self.incoming).iter().any(|(id, entry)| {
                let carries = *id == session || entry.record().carrier(*id) == session;
                carries && !entry.is_running()
            });
            if over && (source || incoming) {
                let outcome = self.host.command(Command::Forget { session }).await;
                tracing::info!(%session, ?outcome, "left-over session forgotten");
                self.host.escrow_release(session);
                self.sockets.clear(session);
            }
        }
    }

    /// Lets go of a session that no longer carries its migration, whatever state it is in. Its hypervisor
    /// has seen the end of its connections already.
    pub(super) fn drop_carrier(self: &Arc<Self>, session: SessionId) {
        self.host.escrow_release(session);
        self.sockets.clear(session);
        let table = Arc::clone(self);
        tokio::spawn(async move {
            for _ in 0..FORGET_TRIES {
                let state = match table.host.session(session) {
                    Ok(Some(snapshot)) => snapshot.state(),
                    Ok(None) | Err(_) => return,
                };
                let command = if state.is_some_and(SessionState::is_final) {
                    Command::Forget { session }
                } else {
                    Command::Cancel { session }
                };
                // Asked again until the session is gone: it may have to end first.
                let _ = table.host.command(command).await;
                tokio::time::sleep(FORGET_PAUSE).await;
            }
            tracing::warn!(%session, "a session that carries nothing is not forgotten");
        });
    }

    pub(super) fn source_views(&self) -> Vec<MigrationView> {
        lock(&self.sources)
            .values()
            .map(|entry| entry.record().view)
            .collect()
    }

    pub(super) fn incoming_views(&self) -> Vec<IncomingView> {
        lock(&self.incoming)
            .values()
            .map(|entry| entry.record().view)
            .collect()
    }
}

fn prune<R: Clone, O>(
    store: &Store,
    table: &str,
    entries: &mut BTreeMap<SessionId, Arc<Entry<R, O>>>,
    started: impl Fn(&R) -> u64,
) {
    let mut ended: Vec<(u64, SessionId)> = entries
        .iter()
        .filter(|(_, entry)| !entry.is_running())
        .map(|(session, entry)| (started(&lock(&entry.record)), *session))
        .collect();
    if ended.len() <= ENDED_KEPT_MAX {
        return;
    }
    ended.sort_unstable();
    let surplus = ended.len() - ENDED_KEPT_MAX;
    for (_, session) in ended.into_iter().take(surplus) {
        entries.remove(&session);
        if let Err(error) = store.delete(table, &session.to_string()) {
            tracing::warn!(table, %session, %error, "old job not deleted");
        }
    }
}
