//! The handle to all migrations of this host. In: checked requests. Out: views. Each running job has a
//! task; a call here talks to it, or reads what it wrote last.

use std::path::PathBuf;
use std::sync::Arc;

use dwcp_api::SessionId;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::host::{Host, HostError, HostStatus};
use crate::qmp::{MonitorPath, Qmp};
use crate::store::Store;

use super::error::JobError;
use super::peer::Peer;
use super::record::{INCOMING_TABLE, IncomingRecord, SOURCE_TABLE, SourceRecord, unix_ms};
use super::request::{IncomingRequest, MigrationRequest, PeerToken, RecoverRequest};
use super::sockets::SocketDir;
use super::table::{Claim, Entry, IncomingOrder, SourceOrder, Table, lock};
use super::view::{GuestVerdict, IncomingView, MigrationView, Verdict};
use crate::telemetry::trace::context::Sampling;

use super::{incoming, prepare, source};

/// Orders that may wait for one job.
const ORDERS_MAX: usize = 8;

/// What jobs need to know of this host.
#[derive(Clone, Debug)]
pub struct JobsConfig {
    /// Where the sockets between hypervisor and data plane are made.
    pub socket_dir: PathBuf,
    /// Directories that QMP sockets may lie in.
    pub qmp_allowed_dirs: Vec<PathBuf>,
    /// Whom this host trusts to be a peer's API.
    pub peer_tls: rustls::ClientConfig,
    /// Token for peers' APIs, if a request brings none.
    pub peer_token: Option<PeerToken>,
    /// Which migrations are traced; their destinations are told.
    pub sampling: Sampling,
}

/// All migrations of this host. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    table: Arc<Table>,
}

impl Jobs {
    /// Reads what was written down and goes on with it.
    ///
    /// # Errors
    /// [`JobError::Socket`] or [`JobError::Store`].
    pub fn new(host: Host, store: Store, config: JobsConfig) -> Result<Self, JobError> {
        let sockets = SocketDir::open(&config.socket_dir)?;
        let client = Peer::client(config.peer_tls.clone())
            .map_err(|error| JobError::Random(error.to_string()))?;
        let jobs = Self {
            table: Arc::new(Table::new(host, store, config, client, sockets)),
        };
        jobs.go_on()?;
        let table = Arc::clone(&jobs.table);
        tokio::spawn(async move {
            let mut attaches = table.host.on_attach();
            attaches.mark_changed();
            while attaches.changed().await.is_ok() {
                table.sweep().await;
            }
        });
        Ok(jobs)
    }

    fn go_on(&self) -> Result<(), JobError> {
        let table = &self.table;
        let bad = |error: crate::store::StoreError| JobError::Store(error.to_string());
        for (key, record) in table
            .store
            .list_json::<SourceRecord>(SOURCE_TABLE)
            .map_err(bad)?
        {
            let Some(session) = SessionId::parse(&key) else {
                continue;
            };
            if record.view.state.is_final() {
                lock(&table.sources).insert(session, Entry::new(record, None));
                continue;
            }
            let claim = self.reclaim(&record.request.vm.qmp, session);
            let (sender, orders) = mpsc::channel(ORDERS_MAX);
            let entry = Entry::new(record, Some(sender));
            lock(&table.sources).insert(session, Arc::clone(&entry));
            tokio::spawn(source::go_on(
                Arc::clone(table),
                session,
                entry,
                orders,
                claim,
            ));
        }
        for (key, record) in table
            .store
            .list_json::<IncomingRecord>(INCOMING_TABLE)
            .map_err(bad)?
        {
            let Some(session) = SessionId::parse(&key) else {
                continue;
            };
            if record.view.state.is_final() {
                lock(&table.incoming).insert(session, Entry::new(record, None));
                continue;
            }
            let claim = self.reclaim(&record.request.qmp, session);
            let (sender, orders) = mpsc::channel(ORDERS_MAX);
            let entry = Entry::new(record, Some(sender));
            lock(&table.incoming).insert(session, Arc::clone(&entry));
            tokio::spawn(incoming::go_on(
                Arc::clone(table),
                session,
                entry,
                orders,
                claim,
            ));
        }
        Ok(())
    }

    /// A hypervisor that ended meanwhile has no socket any more: then there is nothing to claim.
    fn reclaim(&self, qmp: &str, session: SessionId) -> Option<Claim> {
        let path = MonitorPath::check(qmp.as_ref(), &self.table.config.qmp_allowed_dirs).ok()?;
        self.table.claim(path, session).ok()
    }

    /// Starts a migration. Returns once the source's hypervisor is found fit; the rest goes on by
    /// itself.
    ///
    /// # Errors
    /// [`JobError`]; nothing was changed then.
    pub async fn start(&self, request: MigrationRequest) -> Result<MigrationView, JobError> {
        request.check()?;
        let table = &self.table;
        let path = MonitorPath::check(request.vm.qmp.as_ref(), &table.config.qmp_allowed_dirs)?;
        let session = new_session()?;
        let claim = table.claim(path, session)?;
        self.attached()?;
        let qmp = Qmp::connect(claim.path()).await?;
        prepare::check_source(&qmp, &request.vm.qmp).await?;

        let record = SourceRecord::new(request, session.to_string(), unix_ms());
        table.write_source(&record)?;
        let view = record.view.clone();
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let entry = Entry::new(record, Some(sender));
        lock(&table.sources).insert(session, Arc::clone(&entry));
        table.publish(&view);
        tokio::spawn(source::run(
            Arc::clone(table),
            session,
            entry,
            orders,
            claim,
            qmp,
        ));
        Ok(view)
    }

    fn attached(&self) -> Result<(), JobError> {
        match self.table.host.status() {
            HostStatus::Connected { .. } => Ok(()),
            HostStatus::Disconnected { reason, .. } => {
                Err(JobError::Host(HostError::Disconnected(reason)))
            }
        }
    }

    /// Every migration that starts here, running or kept.
    #[must_use]
    pub fn list(&self) -> Vec<MigrationView> {
        let mut views = self.table.source_views();
        views.sort_by(|a, b| (b.started_unix_ms, &b.id).cmp(&(a.started_unix_ms, &a.id)));
        views
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<MigrationView> {
        Some(self.table.source(SessionId::parse(id)?)?.record().view)
    }

    /// Cancels a migration: the destination fails closed first, then the source goes on.
    ///
    /// # Errors
    /// [`JobError::TooLate`] if the destination has the guest, [`JobError::Undecided`] if nobody
    /// knows, [`JobError::Ended`], [`JobError::Unknown`].
    pub async fn cancel(&self, id: &str) -> Result<MigrationView, JobError> {
        self.order(id, SourceOrder::Cancel).await
    }

    /// Changes the bandwidth limit of a running migration; zero lifts it.
    ///
    /// # Errors
    /// [`JobError::Host`] with the data plane's words, [`JobError::Ended`], [`JobError::Unknown`].
    pub async fn limit(&self, id: &str, bytes_per_s: u64) -> Result<MigrationView, JobError> {
        self.order(id, |answer| SourceOrder::Limit(bytes_per_s, answer))
            .await
    }

    /// The destination's data plane is reached at another `address:port` from now on: its lanes are dialled
    /// there, and the migration goes on where it was.
    ///
    /// # Errors
    /// [`JobError::BadRequest`], and those of [`Self::limit`].
    pub async fn redirect(&self, id: &str, to: &str) -> Result<MigrationView, JobError> {
        if to.parse::<std::net::SocketAddr>().is_err() {
            return Err(JobError::BadRequest {
                field: "dataplane",
                problem: "it must be address:port, as in 10.0.0.2:4790".to_owned(),
            });
        }
        self.order(id, |answer| SourceOrder::Redirect(to.to_owned(), answer))
            .await
    }

    /// Connects both sides of a post-copy migration again that lost its link or a data plane.
    ///
    /// # Errors
    /// [`JobError::NotPaused`] if it is not broken, [`JobError::Host`], [`JobError::Peer`] and
    /// [`JobError::Qmp`] with what stands in the way, [`JobError::Ended`], [`JobError::Unknown`].
    pub async fn recover(&self, id: &str) -> Result<MigrationView, JobError> {
        self.order(id, SourceOrder::Recover).await
    }

    async fn order(
        &self,
        id: &str,
        order: impl FnOnce(oneshot::Sender<Result<MigrationView, JobError>>) -> SourceOrder,
    ) -> Result<MigrationView, JobError> {
        let unknown = || JobError::Unknown(id.to_owned());
        let ended = || JobError::Ended(id.to_owned());
        let entry = SessionId::parse(id)
            .and_then(|id| self.table.source(id))
            .ok_or_else(unknown)?;
        let orders = entry.orders().ok_or_else(ended)?;
        let (sender, answer) = oneshot::channel();
        orders.send(order(sender)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Views as they change, and about four times a second while a migration runs.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<MigrationView> {
        self.table.subscribe()
    }

    /// Prepares this host for a guest that comes.
    ///
    /// # Errors
    /// [`JobError`]; the hypervisor is of no use any more if it had begun to listen.
    pub async fn incoming_open(&self, request: IncomingRequest) -> Result<IncomingView, JobError> {
        let session = request.check()?;
        let table = &self.table;
        if table.incoming(session).is_some() {
            return Err(JobError::Duplicate(session.to_string()));
        }
        let path = MonitorPath::check(request.qmp.as_ref(), &table.config.qmp_allowed_dirs)?;
        let claim = table.claim(path, session)?;
        self.attached()?;
        let qmp = Qmp::connect(claim.path()).await?;
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        // A caller that hangs up must not leave a half-prepared hypervisor without a task.
        let table = Arc::clone(table);
        let opened = tokio::spawn(async move {
            incoming::open(table, session, request, claim, qmp, sender, orders).await
        });
        opened
            .await
            .map_err(|error| JobError::Store(error.to_string()))?
    }

    /// Every migration that comes here, running or kept.
    #[must_use]
    pub fn incoming_list(&self) -> Vec<IncomingView> {
        self.table.incoming_views()
    }

    /// One of them.
    #[must_use]
    pub fn incoming_get(&self, session: &str) -> Option<IncomingView> {
        Some(
            self.table
                .incoming(SessionId::parse(session)?)?
                .record()
                .view,
        )
    }

    /// Says where the guest is. A migration that still runs is made to fail closed first, so that the
    /// answer holds for ever.
    ///
    /// # Errors
    /// [`JobError::Unknown`].
    pub async fn incoming_verdict(&self, session: &str) -> Result<Verdict, JobError> {
        let unknown = || JobError::Unknown(session.to_owned());
        let entry = SessionId::parse(session)
            .and_then(|id| self.table.incoming(id))
            .ok_or_else(unknown)?;
        if let Some(orders) = entry.orders() {
            let (sender, answer) = oneshot::channel();
            if orders.send(IncomingOrder::Verdict(sender)).await.is_ok()
                && let Ok(verdict) = answer.await
            {
                return Ok(verdict);
            }
        }
        // It has ended, perhaps just now.
        let guest = entry.record().view.guest;
        Ok(Verdict { guest })
    }

    /// Makes the hypervisor of a broken post-copy migration wait for its source over a new session.
    ///
    /// # Errors
    /// [`JobError::NotPaused`] if its guest does not wait for memory, [`JobError::Host`] and
    /// [`JobError::Qmp`] with what stands in the way, [`JobError::Ended`], [`JobError::Unknown`].
    pub async fn incoming_recover(
        &self,
        session: &str,
        request: &RecoverRequest,
    ) -> Result<IncomingView, JobError> {
        let next = request.check()?;
        let ended = || JobError::Ended(session.to_owned());
        let entry = SessionId::parse(session)
            .and_then(|id| self.table.incoming(id))
            .ok_or_else(|| JobError::Unknown(session.to_owned()))?;
        let orders = entry.orders().ok_or_else(ended)?;
        let (sender, answer) = oneshot::channel();
        let order = IncomingOrder::Recover(next, sender);
        orders.send(order).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Cancels a migration that comes here, unless the guest is here already.
    ///
    /// # Errors
    /// [`JobError::TooLate`], [`JobError::Undecided`], [`JobError::Unknown`].
    pub async fn incoming_cancel(&self, session: &str) -> Result<IncomingView, JobError> {
        match self.incoming_verdict(session).await?.guest {
            GuestVerdict::Here | GuestVerdict::HereInPart => {
                Err(JobError::TooLate(session.to_owned()))
            }
            GuestVerdict::Unknown => Err(JobError::Undecided(session.to_owned())),
            GuestVerdict::NeverHere => self
                .incoming_get(session)
                .ok_or_else(|| JobError::Unknown(session.to_owned())),
        }
    }
}

/// A session's number that nobody has.
pub(super) fn new_session() -> Result<SessionId, JobError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| JobError::Random(error.to_string()))?;
    Ok(SessionId(id))
}
