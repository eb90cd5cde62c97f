//! The life of a migration at its source: one task. In: the hypervisor's events and figures, the data
//! plane's session, orders. Out: a migration that ended, with exactly one runnable copy of the guest.
//!
//! Prepare → send → watch until the hypervisor says how it ended → settle what is open → clean up. A
//! task of a restarted control plane enters at "watch".

use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::command::{Command, Verdict as Resolution};
use dwcp_api::session::SessionSnapshot;
use dwcp_api::text::Text;
use dwcp_api::{SessionId, SessionState};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::host::HostError;
use crate::qmp::{MigrationInfo, MigrationPhase, MonitorPath, Qmp, QmpCommand, QmpError, QmpEvent};

use super::error::JobError;
use super::peer::Peer;
use super::prepare::{can_preempt, configure};
use super::progress::Progress;
use super::record::{SourceRecord, Stage, failure, unix_ms};
use super::recover::Recovery;
use super::request::IncomingRequest;
use super::settings::End;
use super::sockets::path_text;
use super::table::{Claim, SourceEntry, SourceOrder, Table, lock};
use super::view::{FailureView, GuestSide, MigrationState, MigrationView};

/// How long the session may take to see that its hypervisor has ended it.
const SESSION_END_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks at a session that ends.
const END_PAUSE: Duration = Duration::from_millis(20);

/// How it ended.
pub(super) struct Outcome {
    pub(super) state: MigrationState,
    pub(super) guest: GuestSide,
    pub(super) failure: Option<FailureView>,
}

/// Everything that the task works with.
pub(super) struct Run {
    pub(super) table: Arc<Table>,
    /// The migration.
    pub(super) id: SessionId,
    /// The session that carries it: its own, until it is recovered over another.
    pub(super) session: SessionId,
    pub(super) entry: Arc<SourceEntry>,
    pub(super) orders: mpsc::Receiver<SourceOrder>,
    pub(super) peer: Peer,
    /// The monitor, while it answers.
    pub(super) qmp: Option<Qmp>,
    pub(super) events: Option<broadcast::Receiver<QmpEvent>>,
    pub(super) path: Option<MonitorPath>,
    progress: Progress,
    began: Instant,
    /// Who cancelled, and waits for the end.
    pub(super) cancelled_by: Option<oneshot::Sender<Result<MigrationView, JobError>>>,
    /// Since when the session has been over while the hypervisor still migrates.
    pub(super) stale_since: Option<Instant>,
    /// Since when the hypervisor sends.
    pub(super) sending_since: Option<Instant>,
    pub(super) recovery: Recovery,
    /// Why the last attempt at one failed.
    pub(super) why_not: Option<String>,
    _claim: Option<Claim>,
}

/// A new migration.
pub(super) async fn run(
    table: Arc<Table>,
    session: SessionId,
    entry: Arc<SourceEntry>,
    orders: mpsc::Receiver<SourceOrder>,
    claim: Claim,
    qmp: Qmp,
) {
    let mut run = Run::new(table, session, entry, orders, Some(claim));
    run.use_monitor(qmp);
    let outcome = match run.prepare_or_cancel().await {
        Ok(()) => run.watch().await,
        Err(outcome) => outcome,
    };
    run.finish(outcome).await;
}

/// A migration that a control plane before this one started.
pub(super) async fn go_on(
    table: Arc<Table>,
    session: SessionId,
    entry: Arc<SourceEntry>,
    orders: mpsc::Receiver<SourceOrder>,
    claim: Option<Claim>,
) {
    let mut run = Run::new(table, session, entry, orders, claim);
    let outcome = if run.record().stage == Stage::Preparing {
        // Its hypervisor was not asked to send, so the guest is here.
        Outcome {
            state: MigrationState::Failed,
            guest: GuestSide::Source,
            failure: Some(failure(
                "control_plane_restarted",
                "the control plane ended while it prepared this migration",
                "start the migration again",
            )),
        }
    } else {
        run.await_data_plane().await;
        run.watch().await
    };
    run.finish(outcome).await;
}

impl Run {
    fn new(
        table: Arc<Table>,
        id: SessionId,
        entry: Arc<SourceEntry>,
        orders: mpsc::Receiver<SourceOrder>,
        claim: Option<Claim>,
    ) -> Self {
        let record = entry.record();
        let session = record.carrier(id);
        let token = record
            .request
            .destination
            .token
            .or_else(|| table.config.peer_token.clone());
        let peer = Peer::new(&table.client, &record.request.destination.api, token)
            .traced(table.config.sampling.header(id));
        let age = Duration::from_millis(unix_ms().saturating_sub(record.view.started_unix_ms));
        Self {
            id,
            session,
            entry,
            orders,
            peer,
            qmp: None,
            events: None,
            path: claim.as_ref().map(|claim| claim.path().clone()),
            progress: Progress::default(),
            began: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            cancelled_by: None,
            stale_since: None,
            sending_since: None,
            recovery: Recovery::Idle(Instant::now()),
            why_not: None,
            _claim: claim,
            table,
        }
    }

    fn use_monitor(&mut self, qmp: Qmp) {
        self.events = Some(qmp.events());
        self.qmp = Some(qmp);
    }

    pub(super) fn record(&self) -> SourceRecord {
        self.entry.record()
    }

    /// Changes the view; a change of state or phase is written down and shown at once.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut SourceRecord)) {
        let total_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (record, worth_writing) = {
            let mut record = lock(&self.entry.record);
            let key = |record: &SourceRecord| {
                (
                    record.view.state,
                    record.view.phase.clone(),
                    record.stage,
                    record.handed,
                )
            };
            let before = key(&record);
            change(&mut record);
            record.view.total_ms = total_ms;
            (record.clone(), key(&record) != before)
        };
        if worth_writing {
            tracing::info!(session = %self.id, state = record.view.state.as_str(),
                phase = record.view.phase, "migration");
            // An error was logged; the migration itself needs no disk to end well.
            let _ = self.table.write_source(&record);
        }
        self.table.publish(&record.view);
    }

    pub(super) fn show(&mut self, state: MigrationState, phase: &str) {
        self.update(|record| {
            record.view.state = state;
            phase.clone_into(&mut record.view.phase);
        });
    }

    async fn prepare_or_cancel(&mut self) -> Result<(), Outcome> {
        let table = Arc::clone(&self.table);
        let entry = Arc::clone(&self.entry);
        let (Some(qmp), record) = (self.qmp.clone(), self.record()) else {
            return Err(failed(&JobError::Qmp(QmpError::Closed)));
        };
        let (peer, session) = (self.peer.clone(), self.session);
        let work = prepare(&table, session, &entry, &record, &peer, &qmp);
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => {
                    outcome.map_err(|error| failed(&error))?;
                    break;
                }
                order = self.orders.recv() => match order {
                    Some(SourceOrder::Cancel(answer)) => {
                        // What was begun is undone by the clean-up.
                        self.cancelled_by = Some(answer);
                        return Err(cancelled());
                    }
                    Some(SourceOrder::Recover(answer)) => {
                        let _ = answer.send(Err(JobError::NotPaused {
                            id: session.to_string(),
                            state: record.view.state.as_str(),
                        }));
                    }
                    Some(SourceOrder::Limit(_, answer) | SourceOrder::Redirect(_, answer)) => {
                        let _ = answer.send(Err(JobError::WrongState {
                            qmp: record.request.vm.qmp.clone(),
                            found: "being prepared".to_owned(),
                            wanted: "a migration that sends already",
                        }));
                    }
                    None => return Err(cancelled()),
                },
            }
        }
        self.update(|record| {
            record.stage = Stage::Sending;
            "the hypervisor connects".clone_into(&mut record.view.phase);
        });
        let paths = self.table.sockets.paths(self.session);
        if let Err(error) = qmp.execute(QmpCommand::Migrate(paths.out)).await {
            // Without an answer it may have begun: that is watched, not guessed.
            if matches!(error, QmpError::Refused { .. }) {
                return Err(failed(&JobError::Qmp(error)));
            }
        }
        Ok(())
    }

    /// Gives the data plane some time to be found after a restart.
    async fn await_data_plane(&mut self) {
        let Some(instance) = self.record().instance else {
            return;
        };
        let mut status = self.table.host.status_changes();
        let host = self.table.host.clone();
        let found =
            status.wait_for(|status| status.instance().is_some() || host.has_ended(instance));
        let _ = timeout(SESSION_END_LIMIT, found).await;
    }

    /// Reads the hypervisor's migration, over a new connection if the old one was lost.
    pub(super) async fn migration(&mut self) -> Result<MigrationInfo, QmpError> {
        self.monitor().await?.migration().await
    }

    /// The monitor, connected anew if need be.
    pub(super) async fn monitor(&mut self) -> Result<Qmp, QmpError> {
        if let Some(qmp) = &self.qmp
            && !qmp.is_closed()
        {
            return Ok(qmp.clone());
        }
        self.qmp = None;
        let path = match &self.path {
            Some(path) => path.clone(),
            None => {
                let qmp = self.record().request.vm.qmp;
                let path = MonitorPath::check(qmp.as_ref(), &self.table.config.qmp_allowed_dirs)?;
                self.path = Some(path.clone());
                path
            }
        };
        let qmp = Qmp::connect(&path).await?;
        self.use_monitor(qmp.clone());
        Ok(qmp)
    }

    pub(super) fn measure(
        &mut self,
        info: Option<&MigrationInfo>,
        snapshot: Option<&SessionSnapshot>,
    ) {
        let mut progress = std::mem::take(&mut self.progress);
        self.update(|record| progress.measure(Instant::now(), info, snapshot, &mut record.view));
        self.progress = progress;
    }

    /// Undoes and removes everything, then writes the result down.
    async fn finish(mut self, outcome: Outcome) {
        if let Some(qmp) = &self.qmp
            && outcome.guest == GuestSide::Source
            && let Ok(info) = qmp.migration().await
            && matches!(info.phase(), MigrationPhase::Setup | MigrationPhase::Active)
        {
            let _ = qmp.execute(QmpCommand::MigrateCancel).await;
        }
        if outcome.state != MigrationState::Completed
            && let Err(error) = self.peer.cancel(self.id).await
        {
            tracing::info!(session = %self.id, %error, "destination not told");
        }
        let verdict = match outcome.guest {
            GuestSide::Source => Resolution::GuestStays,
            GuestSide::Destination | GuestSide::Undecided => Resolution::GuestMoved,
        };
        self.end_session(outcome.state == MigrationState::Completed, verdict)
            .await;
        let (host, session) = (self.table.host.clone(), self.session);
        host.escrow_release(session);
        self.table.sockets.clear(session);
        if outcome.state == MigrationState::Completed && self.record().request.options.quit_source {
            self.quit_source().await;
        }
        self.update(|record| {
            record.view.state = outcome.state;
            outcome.state.as_str().clone_into(&mut record.view.phase);
            record.view.guest = outcome.guest;
            record.view.failure = outcome.failure;
            record.view.expected_finish_s = None;
            if outcome.state == MigrationState::Completed {
                record.view.progress = Some(1.0);
                record.view.remaining_bytes = Some(0);
            }
        });
        // From here on nobody reaches this task; what was ordered meanwhile hears that it ended.
        *lock(&self.entry.orders) = None;
        if let Some(answer) = self.cancelled_by.take() {
            let _ = answer.send(Ok(self.record().view));
        }
        self.table.prune();
    }

    /// Waits for the session's last figures, ends it if it does not end by itself, and forgets it.
    async fn end_session(&mut self, completed: bool, verdict: Resolution) {
        let (host, session) = (self.table.host.clone(), self.session);
        let is_over =
            |snapshot: &SessionSnapshot| snapshot.state().is_some_and(SessionState::is_final);
        // A migration that completed ends its session by itself; any other has no more use for it.
        let began = Instant::now();
        while completed && began.elapsed() < SESSION_END_LIMIT {
            match host.session(session) {
                Ok(Some(snapshot)) if !is_over(&snapshot) => sleep(END_PAUSE).await,
                _ => break,
            }
        }
        self.close_session(verdict).await;
        if let Ok(Some(snapshot)) = host.session(session)
            && is_over(&snapshot)
        {
            self.measure(None, Some(&snapshot));
            if let Err(error) = host.command(Command::Forget { session }).await {
                tracing::warn!(%session, %error, "session not forgotten");
            }
        }
    }
}

/// Everything up to the point where the hypervisor can be asked to send. The two ends are made ready side by
/// side: the destination, and with its answer the session, whose lanes are being dialled meanwhile; and the
/// source's hypervisor, which needs to know of the destination only for post-copy.
async fn prepare(
    table: &Table,
    session: SessionId,
    entry: &SourceEntry,
    record: &SourceRecord,
    peer: &Peer,
    qmp: &Qmp,
) -> Result<(), JobError> {
    let request = &record.request;
    let ready = |preempt| configure(qmp, &request.vm.qmp, &request.options, End::Source, preempt);
    if request.options.postcopy.is_never() {
        // Both are waited for, whatever comes of one: a command that a hypervisor was given half is one too many.
        let (opened, configured) = tokio::join!(
            open(table, session, entry, record, peer, false),
            ready(false)
        );
        return opened.and(configured);
    }
    let preempt = can_preempt(qmp).await?;
    let preempt = open(table, session, entry, record, peer, preempt).await?;
    ready(preempt).await
}

/// Has the destination made ready, and opens the session to it. Answers whether pages that the guest waits for
/// have a connection of their own.
async fn open(
    table: &Table,
    session: SessionId,
    entry: &SourceEntry,
    record: &SourceRecord,
    peer: &Peer,
    preempt: bool,
) -> Result<bool, JobError> {
    let request = &record.request;
    let incoming = IncomingRequest {
        session: session.to_string(),
        qmp: request.destination.qmp.clone(),
        multifd_channels: request.options.multifd_channels,
        options: request.options.clone(),
        postcopy_preempt: preempt,
    };
    let there = peer.open(&incoming).await?;
    let instance = table.host.status().instance();
    {
        let mut record = lock(&entry.record);
        record.instance = instance;
        record.view.destination.dataplane = Some(there.dataplane.clone());
        "preparing the source".clone_into(&mut record.view.phase);
    }
    let record = entry.record();
    table.write_source(&record)?;
    table.publish(&record.view);
    let peer_address = Text::new(&there.dataplane).map_err(HostError::from)?;
    table
        .host
        .command(Command::OpenSource {
            session,
            listen: path_text(&table.sockets.paths(session).out)?,
            peer: peer_address,
            peer_node: request.destination.node_text()?,
            max_version: request.options.max_version.into(),
            limits: request.options.session_limits(),
        })
        .await?;
    Ok(there.postcopy_preempt)
}

pub(super) fn failed(error: &JobError) -> Outcome {
    Outcome {
        state: MigrationState::Failed,
        guest: GuestSide::Source,
        failure: Some(failure(error.code(), error.to_string(), error.cure())),
    }
}

pub(super) const fn cancelled() -> Outcome {
    Outcome {
        state: MigrationState::Cancelled,
        guest: GuestSide::Source,
        failure: None,
    }
}
