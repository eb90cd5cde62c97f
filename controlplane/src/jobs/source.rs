//! The life of a migration at its source: one task. In: the hypervisor's events and figures, the data
//! plane's session, orders. Out: a migration that ended, with exactly one runnable copy of the guest.
//!
//! Prepare → send → watch until the hypervisor says how it ended → settle what is open → clean up. A
//! task of a restarted control plane enters at "watch".

use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::command::Command;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::text::Text;
use dwcp_api::{Failure, SessionId, SessionState};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::host::HostError;
use crate::qmp::{MigrationInfo, MigrationPhase, MonitorPath, Qmp, QmpCommand, QmpError, QmpEvent};

use super::error::JobError;
use super::peer::Peer;
use super::prepare::configure;
use super::progress::Progress;
use super::record::{SourceRecord, Stage, failure, failure_cure, unix_ms};
use super::request::IncomingRequest;
use super::settings::End;
use super::sockets::path_text;
use super::table::{Claim, SourceEntry, SourceOrder, Table, lock};
use super::verdict::Hold;
use super::view::{FailureView, GuestSide, MigrationState, MigrationView};

/// How often figures are read.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long the session may take to see that its hypervisor has ended it.
const SESSION_END_LIMIT: Duration = Duration::from_secs(5);
/// How long the hypervisor may take to see that its data plane has closed its connections.
const HYPERVISOR_END_LIMIT: Duration = Duration::from_secs(10);

/// How it ended.
pub(super) struct Outcome {
    pub(super) state: MigrationState,
    pub(super) guest: GuestSide,
    pub(super) failure: Option<FailureView>,
}

/// What the watch found.
enum Found {
    /// Nothing new.
    Nothing,
    /// The hypervisor says that the destination has the guest.
    Completed,
    /// It is open who has the guest, or the source has it: settle.
    Open(Hold, FailureView),
}

/// Everything that the task works with.
pub(super) struct Run {
    pub(super) table: Arc<Table>,
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
    /// Since when the session has been over while the hypervisor still migrates.
    stale_since: Option<Instant>,
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
        session: SessionId,
        entry: Arc<SourceEntry>,
        orders: mpsc::Receiver<SourceOrder>,
        claim: Option<Claim>,
    ) -> Self {
        let record = entry.record();
        let token = record
            .request
            .destination
            .token
            .or_else(|| table.config.peer_token.clone());
        let peer = Peer::new(&table.client, &record.request.destination.api, token);
        let age = Duration::from_millis(unix_ms().saturating_sub(record.view.started_unix_ms));
        Self {
            session,
            entry,
            orders,
            peer,
            qmp: None,
            events: None,
            path: claim.as_ref().map(|claim| claim.path().clone()),
            progress: Progress::default(),
            began: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            stale_since: None,
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
            tracing::info!(session = %self.session, state = record.view.state.as_str(),
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
                        let _ = answer.send(Ok(record.view.clone()));
                        return Err(cancelled());
                    }
                    Some(SourceOrder::Limit(_, answer)) => {
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

    async fn watch(&mut self) -> Outcome {
        let mut tick = interval(POLL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut host_events = self.table.host.events();
        let mut host_status = self.table.host.status_changes();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = next_event(&mut self.events) => {}
                _ = host_events.recv() => {}
                _ = host_status.changed() => {}
                order = self.orders.recv() => match order {
                    Some(SourceOrder::Cancel(answer)) => {
                        if let Some(outcome) = self.cancel(answer).await {
                            return outcome;
                        }
                    }
                    Some(SourceOrder::Limit(bytes_per_s, answer)) => {
                        let _ = answer.send(self.limit(bytes_per_s).await);
                    }
                    None => {}
                },
            }
            match self.look().await {
                Found::Nothing => {}
                Found::Completed => return self.confirm().await,
                Found::Open(hold, reason) => return self.settle(hold, reason).await,
            }
        }
    }

    /// Looks once at everything.
    async fn look(&mut self) -> Found {
        let info = match self.migration().await {
            Ok(info) => Some(info),
            Err(QmpError::Closed | QmpError::Missing { .. }) => None,
            // Slow or occupied: the session still tells its part.
            Err(_) => Some(MigrationInfo::default()),
        };
        self.drain_events();
        let snapshot = self.snapshot();
        if snapshot.is_some_and(|snapshot| snapshot.ram_end != 0) {
            self.note_handed();
        }
        let Some(info) = info else {
            let reason = failure(
                "hypervisor_gone",
                "the source's hypervisor ended, or closed its monitor, during the migration",
                "look at the hypervisor's log",
            );
            return Found::Open(self.hold(), reason);
        };
        if info.phase() == MigrationPhase::Device {
            self.note_handed();
        }
        self.measure(Some(&info), snapshot.as_ref());
        let record = self.record();
        let dead = record
            .instance
            .is_none_or(|instance| self.table.host.has_ended(instance));
        match info.phase() {
            MigrationPhase::Completed => return Found::Completed,
            MigrationPhase::Failed | MigrationPhase::Cancelled => {
                return Found::Open(Hold::Nothing, self.reason(snapshot.as_ref(), &info, dead));
            }
            _ if dead => {
                return Found::Open(self.hold(), self.reason(snapshot.as_ref(), &info, true));
            }
            _ => {}
        }
        self.judge_session(snapshot.as_ref(), &info, record.handed)
            .await
    }

    /// What the session says while the hypervisor still migrates.
    async fn judge_session(
        &mut self,
        snapshot: Option<&SessionSnapshot>,
        info: &MigrationInfo,
        handed: bool,
    ) -> Found {
        let state = snapshot.and_then(SessionSnapshot::state);
        if state == Some(SessionState::Undecided) {
            return Found::Open(Hold::Session, self.reason(snapshot, info, false));
        }
        // Over, or unknown to a data plane that is attached: the hypervisor must see it soon.
        let over = match (state, self.table.host.status().instance()) {
            (Some(state), _) => state.is_final(),
            (None, attached) => attached.is_some(),
        };
        if over {
            let since = *self.stale_since.get_or_insert_with(Instant::now);
            if since.elapsed() > HYPERVISOR_END_LIMIT {
                if let Some(qmp) = &self.qmp {
                    let _ = qmp.execute(QmpCommand::MigrateCancel).await;
                }
                return Found::Open(Hold::Nothing, self.reason(snapshot, info, false));
            }
            return Found::Nothing;
        }
        self.stale_since = None;
        let (state, phase) = match (state, info.phase()) {
            (Some(SessionState::Reconnecting), _) => (
                MigrationState::Reconnecting,
                "the link is gone; lanes are being dialled again",
            ),
            (Some(SessionState::Switchover), _) | (_, MigrationPhase::Device) => {
                (MigrationState::Switchover, "the guest is handed over")
            }
            _ if handed => (MigrationState::Switchover, "the guest is handed over"),
            (Some(SessionState::Waiting), _) | (_, MigrationPhase::Setup) => {
                (MigrationState::Setup, "the hypervisor connects")
            }
            (None, _) => (
                MigrationState::Active,
                "memory is copied; no data plane is attached",
            ),
            _ => (
                MigrationState::Active,
                "memory is copied while the guest runs",
            ),
        };
        self.show(state, phase);
        Found::Nothing
    }

    /// Reads the hypervisor's migration, over a new connection if the old one was lost.
    async fn migration(&mut self) -> Result<MigrationInfo, QmpError> {
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

    /// The session's figures: from the data plane, or the last ones of one that has died.
    pub(super) fn snapshot(&self) -> Option<SessionSnapshot> {
        match self.table.host.session(self.session) {
            Ok(found) => found,
            Err(_) => self.table.host.last_session(self.session),
        }
    }

    /// What holds the hypervisor's connections open.
    pub(super) fn hold(&self) -> Hold {
        let dead = self
            .record()
            .instance
            .is_none_or(|instance| self.table.host.has_ended(instance));
        if !dead {
            let state = self.snapshot().as_ref().and_then(SessionSnapshot::state);
            if state.is_some_and(|state| !state.is_final()) {
                return Hold::Session;
            }
        }
        if self.table.host.escrow_holds(self.session) {
            Hold::Escrow
        } else {
            Hold::Nothing
        }
    }

    fn note_handed(&mut self) {
        if !self.record().handed {
            self.update(|record| record.handed = true);
        }
    }

    /// Events that were sent before the last answer: the guest may have stopped in between.
    fn drain_events(&mut self) {
        let mut stopped = false;
        if let Some(events) = &mut self.events {
            loop {
                match events.try_recv() {
                    Ok(event) => stopped |= event.name == "STOP",
                    // Something was missed, so anything may have happened.
                    Err(TryRecvError::Lagged(_)) => stopped = true,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
        if stopped {
            self.note_handed();
        }
    }

    fn measure(&mut self, info: Option<&MigrationInfo>, snapshot: Option<&SessionSnapshot>) {
        let mut progress = std::mem::take(&mut self.progress);
        self.update(|record| progress.measure(Instant::now(), info, snapshot, &mut record.view));
        self.progress = progress;
    }

    /// Why it failed: the first cause that is known, from the wire to the hypervisor.
    fn reason(
        &self,
        snapshot: Option<&SessionSnapshot>,
        info: &MigrationInfo,
        dead: bool,
    ) -> FailureView {
        if let Some(snapshot) = snapshot {
            let code = snapshot.failure();
            let detail = snapshot.detail.as_str();
            if code != Failure::None {
                return failure(code.as_str(), detail, failure_cure(code));
            }
        }
        if dead {
            let code = Failure::DataPlaneGone;
            return failure(
                code.as_str(),
                "the source's data plane ended",
                failure_cure(code),
            );
        }
        if snapshot.and_then(SessionSnapshot::state) == Some(SessionState::Undecided) {
            let code = Failure::PeerLost;
            return failure(
                code.as_str(),
                "the peer was lost while the guest was handed over",
                failure_cure(code),
            );
        }
        let code = Failure::Hypervisor;
        let detail = info.error.clone().unwrap_or_else(|| {
            format!(
                "the source's hypervisor says {}",
                info.word.as_deref().unwrap_or("nothing")
            )
        });
        failure(code.as_str(), detail, failure_cure(code))
    }

    async fn limit(&mut self, bytes_per_s: u64) -> Result<MigrationView, JobError> {
        let command = Command::Limit {
            session: self.session,
            rate_limit_bytes_per_s: bytes_per_s,
        };
        self.table.host.command(command).await?;
        self.update(|record| record.view.options.bandwidth_limit_bytes_per_s = bytes_per_s);
        Ok(self.record().view)
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
            && let Err(error) = self.peer.cancel(self.session).await
        {
            tracing::info!(session = %self.session, %error, "destination not told");
        }
        self.end_session(outcome.state == MigrationState::Completed)
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
        self.table.prune();
    }

    /// Waits for the session's last figures, ends it if it does not end by itself, and forgets it.
    async fn end_session(&mut self, completed: bool) {
        let (host, session) = (self.table.host.clone(), self.session);
        // A migration that completed ends its session by itself; any other has no more use for it.
        let mut asked = false;
        let mut deadline = Instant::now()
            + if completed {
                SESSION_END_LIMIT
            } else {
                Duration::ZERO
            };
        loop {
            let snapshot = match host.session(session) {
                Ok(Some(snapshot)) => snapshot,
                // Gone with its data plane, or never opened.
                Ok(None) | Err(HostError::Disconnected(_)) => return,
                Err(_) => SessionSnapshot::FREE,
            };
            if snapshot.state().is_some_and(SessionState::is_final) {
                self.measure(None, Some(&snapshot));
                if let Err(error) = host.command(Command::Forget { session }).await {
                    tracing::warn!(%session, %error, "session not forgotten");
                }
                return;
            }
            if Instant::now() >= deadline {
                if asked {
                    tracing::warn!(%session, "session does not end");
                    return;
                }
                asked = true;
                deadline = Instant::now() + SESSION_END_LIMIT;
                let _ = host.command(Command::Cancel { session }).await;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Ends when something happened at the hypervisor; never without a monitor.
pub(super) async fn next_event(events: &mut Option<broadcast::Receiver<QmpEvent>>) {
    // Only looked at: the events themselves are taken, in order, before the next judgement.
    match events {
        Some(events) if !events.is_empty() => {}
        Some(events) => {
            let mut look = events.resubscribe();
            if look.recv().await.is_err() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

/// Everything up to the point where the hypervisor can be asked to send.
async fn prepare(
    table: &Table,
    session: SessionId,
    entry: &SourceEntry,
    record: &SourceRecord,
    peer: &Peer,
    qmp: &Qmp,
) -> Result<(), JobError> {
    let request = &record.request;
    let incoming = IncomingRequest {
        session: session.to_string(),
        qmp: request.destination.qmp.clone(),
        multifd_channels: request.options.multifd_channels,
        options: request.options.clone(),
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
            max_version: request.options.max_version.into(),
            digest: request.options.digest.into(),
            limits: request.options.session_limits(),
        })
        .await?;
    configure(qmp, &request.vm.qmp, &request.options, End::Source).await
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
