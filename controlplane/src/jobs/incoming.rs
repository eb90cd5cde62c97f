//! A migration at its destination: one task. In: the hypervisor's events, the data plane's session,
//! orders. Out: a guest that runs here, or a hypervisor that never will, and the word for it.
//!
//! The monitor is kept from before the hypervisor listens until the end, so that no start of the guest
//! is missed: what this task says about the guest is what the source stakes its copy on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::command::Command;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, SessionId, SessionState};
use serde_json::Value;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::host::{HostError, HostStatus};
use crate::qmp::{
    MigrationInfo, MigrationPhase, MonitorPath, Qmp, QmpCommand, QmpError, QmpEvent, phase_of,
};

use super::error::JobError;
use super::part::Part;
use super::prepare::{can_preempt, check_destination, configure};
use super::record::{IncomingRecord, failure, failure_cure, unix_ms};
use super::request::IncomingRequest;
use super::settings::End;
use super::sockets::path_text;

use super::table::{Claim, Entry, IncomingEntry, IncomingOrder, Table, lock};
use super::view::{FailureView, GuestVerdict, IncomingState, IncomingView, Verdict};
use super::watch::next_event;

/// How often the hypervisor is looked at.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long a source may take to begin.
const SOURCE_LIMIT: Duration = Duration::from_secs(120);
/// How long a session may take to end once the guest is here and the link is up.
const SESSION_END_LIMIT: Duration = Duration::from_secs(10);

/// Everything that the task works with.
pub(super) struct Incoming {
    pub(super) table: Arc<Table>,
    /// The migration.
    pub(super) id: SessionId,
    /// The session that carries it: its own, until it is recovered over another.
    pub(super) session: SessionId,
    pub(super) entry: Arc<IncomingEntry>,
    orders: mpsc::Receiver<IncomingOrder>,
    pub(super) qmp: Option<Qmp>,
    pub(super) events: Option<broadcast::Receiver<QmpEvent>>,
    pub(super) path: Option<MonitorPath>,
    /// The guest was seen to have come in.
    pub(super) here: bool,
    /// And has part of its memory: the rest is at the source.
    pub(super) in_part: bool,
    /// The hypervisor's last word of the migration, by an event or an answer.
    pub(super) phase: MigrationPhase,
    /// A question to a hypervisor that may not answer for as long as it waits for a page.
    pub(super) asked: Option<JoinHandle<Result<MigrationInfo, QmpError>>>,
    /// The monitor was watched without a gap since before the hypervisor listened.
    pub(super) watched: bool,
    began: Instant,
    _claim: Option<Claim>,
}

/// Prepares a hypervisor and starts its task.
pub(super) async fn open(
    table: Arc<Table>,
    session: SessionId,
    request: IncomingRequest,
    claim: Claim,
    qmp: Qmp,
    sender: mpsc::Sender<IncomingOrder>,
    orders: mpsc::Receiver<IncomingOrder>,
) -> Result<IncomingView, JobError> {
    let HostStatus::Connected {
        listen, instance, ..
    } = table.host.status()
    else {
        return Err(JobError::Host(HostError::Disconnected(
            "it was lost just now".to_owned(),
        )));
    };
    check_destination(&qmp, &request.qmp).await?;
    let mut record = IncomingRecord::new(request.clone(), listen, unix_ms());
    record.instance = Some(instance);
    let entry = Entry::new(record.clone(), Some(sender));
    {
        let mut known = lock(&table.incoming);
        if known.contains_key(&session) {
            return Err(JobError::Duplicate(session.to_string()));
        }
        known.insert(session, Arc::clone(&entry));
    }
    let mut job = Incoming {
        id: session,
        session,
        entry,
        orders,
        events: Some(qmp.events()),
        qmp: Some(qmp.clone()),
        path: Some(claim.path().clone()),
        here: false,
        in_part: false,
        phase: MigrationPhase::None,
        asked: None,
        watched: true,
        began: Instant::now(),
        _claim: Some(claim),
        table,
    };
    if let Err(error) = job.prepare(&request, &qmp).await {
        let shown = failure(error.code(), error.to_string(), error.cure());
        // Its task only cleans up: the hypervisor may already listen.
        tokio::spawn(async move {
            let guest = job.fail_closed().await;
            job.finish(guest, Some(shown)).await;
        });
        return Err(error);
    }
    job.update(|view| view.state = IncomingState::Active);
    let view = job.entry.record().view;
    tokio::spawn(job.run());
    Ok(view)
}

/// A migration that a control plane before this one prepared.
pub(super) async fn go_on(
    table: Arc<Table>,
    session: SessionId,
    entry: Arc<IncomingEntry>,
    orders: mpsc::Receiver<IncomingOrder>,
    claim: Option<Claim>,
) {
    let record = entry.record();
    let mut job = Incoming {
        id: session,
        session: record.carrier(session),
        orders,
        qmp: None,
        events: None,
        path: claim.as_ref().map(|claim| claim.path().clone()),
        here: matches!(
            record.view.guest,
            GuestVerdict::Here | GuestVerdict::HereInPart
        ),
        in_part: record.view.guest == GuestVerdict::HereInPart,
        phase: MigrationPhase::None,
        asked: None,
        watched: false,
        began: Instant::now(),
        _claim: claim,
        entry,
        table,
    };
    if let Some(instance) = record.instance {
        let mut status = job.table.host.status_changes();
        let host = job.table.host.clone();
        let found =
            status.wait_for(|status| status.instance().is_some() || host.has_ended(instance));
        let _ = timeout(Duration::from_secs(5), found).await;
    }
    job.connect().await;
    job.run().await;
}

impl Incoming {
    async fn prepare(&mut self, request: &IncomingRequest, qmp: &Qmp) -> Result<(), JobError> {
        let record = self.entry.record();
        self.table.write_incoming(&record)?;
        let mut options = request.options.clone();
        options.multifd_channels = request.multifd_channels;
        let preempt = request.postcopy_preempt && can_preempt(qmp).await?;
        configure(qmp, &request.qmp, &options, End::Destination, preempt).await?;
        self.update(|view| view.postcopy_preempt = preempt);
        let path = self.table.sockets.paths(self.session).into;
        let connect = path_text(&path)?;
        qmp.execute(QmpCommand::MigrateIncoming(path)).await?;
        let limits = options.session_limits();
        let open = Command::OpenDestination {
            session: self.session,
            connect,
            limits,
        };
        self.table.host.command(open).await?;
        Ok(())
    }

    /// Opens the monitor, again if need be. False if nobody listens any more.
    pub(super) async fn connect(&mut self) -> bool {
        if self.qmp.as_ref().is_some_and(|qmp| !qmp.is_closed()) {
            return true;
        }
        self.qmp = None;
        if self.path.is_none() {
            let qmp = self.entry.record().request.qmp;
            self.path = MonitorPath::check(qmp.as_ref(), &self.table.config.qmp_allowed_dirs).ok();
        }
        let Some(path) = &self.path else { return false };
        match Qmp::connect(path).await {
            Ok(qmp) => {
                // What happened since the last connection closed was not seen.
                self.watched &= self.events.is_none();
                self.events = Some(qmp.events());
                self.qmp = Some(qmp);
                true
            }
            Err(crate::qmp::QmpError::Missing { .. }) => false,
            Err(error) => {
                tracing::warn!(session = %self.id, %error, "destination's monitor");
                true
            }
        }
    }

    pub(super) fn update(&mut self, change: impl FnOnce(&mut IncomingView)) {
        let record = {
            let mut record = lock(&self.entry.record);
            let before = record.view.clone();
            change(&mut record.view);
            if record.view == before {
                return;
            }
            record.clone()
        };
        tracing::info!(session = %self.id, state = ?record.view.state,
            guest = ?record.view.guest, "incoming migration");
        // An error was logged; what is in memory still answers the source.
        let _ = self.table.write_incoming(&record);
    }

    async fn run(mut self) {
        let (guest, reason) = self.watch().await;
        self.finish(guest, reason).await;
    }

    async fn watch(&mut self) -> (GuestVerdict, Option<FailureView>) {
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
                    Some(IncomingOrder::Verdict(answer)) => {
                        let guest = self.fail_closed().await;
                        let _ = answer.send(Verdict { guest });
                        if matches!(guest, GuestVerdict::Here | GuestVerdict::NeverHere) {
                            let reason = failure("cancelled", "the source ended this migration", "nothing");
                            return (guest, (guest == GuestVerdict::NeverHere).then_some(reason));
                        }
                    }
                    Some(IncomingOrder::Recover(session, answer)) => {
                        let _ = answer.send(self.recover(session).await);
                    }
                    None => {}
                },
            }
            if self.look().await {
                match self.part().await {
                    Part::Whole => return (GuestVerdict::Here, None),
                    Part::Some => continue,
                    Part::Torn(reason) => return (GuestVerdict::Here, Some(reason)),
                }
            }
            if let Some(reason) = self.broken().await {
                tracing::warn!(session = %self.session, code = reason.code, reason = reason.detail,
                    "an incoming migration cannot go on");
                let guest = self.fail_closed().await;
                if guest == GuestVerdict::HereInPart {
                    continue;
                }
                if guest == GuestVerdict::Unknown {
                    self.update(|view| {
                        view.state = IncomingState::Undecided;
                        view.failure = Some(reason);
                    });
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
                return (guest, (guest == GuestVerdict::NeverHere).then_some(reason));
            }
        }
    }

    /// Is the guest here? Once it was, it was.
    pub(super) async fn look(&mut self) -> bool {
        self.drain_events();
        // Once it is here it stays, and a hypervisor that waits for a page may not answer.
        let silent = self.here && (self.in_part || self.phase.is_postcopy());
        if !silent
            && let Some(qmp) = self.qmp.clone()
            && let Ok(state) = qmp.run_state().await
        {
            // Whatever it is, it is no longer waiting for a guest.
            self.here |= !state.is_incoming() && !state.word.is_empty();
            self.update(|view| view.hypervisor = Some(state.word));
        }
        self.drain_events();
        self.here
    }

    pub(super) fn drain_events(&mut self) {
        let Some(events) = &mut self.events else {
            return;
        };
        loop {
            match events.try_recv() {
                Ok(event) => {
                    self.here |= event.name == "RESUME";
                    if event.name == "MIGRATION"
                        && let Some(word) = event.data.get("status").and_then(Value::as_str)
                    {
                        self.phase = phase_of(word);
                    }
                }
                Err(TryRecvError::Lagged(_)) => self.watched = false,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
    }

    /// Why it cannot succeed any more, if so.
    async fn broken(&mut self) -> Option<FailureView> {
        if self.qmp.as_ref().is_none_or(Qmp::is_closed) && !self.connect().await {
            return Some(failure(
                "hypervisor_gone",
                "the destination's hypervisor ended before the guest was in",
                "look at its log: machine and devices must be the same on both hosts",
            ));
        }
        if self.data_plane_died() {
            let code = Failure::DataPlaneGone;
            let detail = "the destination's data plane ended";
            return Some(failure(code.as_str(), detail, failure_cure(code)));
        }
        let snapshot = match self.table.host.session(self.session) {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => {
                let code = Failure::BadCommand;
                return Some(failure(
                    code.as_str(),
                    "the session is gone",
                    failure_cure(code),
                ));
            }
            Err(_) => return None,
        };
        match snapshot.state() {
            Some(SessionState::Failed) => {
                let code = snapshot.failure();
                Some(failure(
                    code.as_str(),
                    snapshot.detail.as_str(),
                    failure_cure(code),
                ))
            }
            Some(SessionState::Waiting) if self.began.elapsed() > SOURCE_LIMIT => Some(failure(
                "no_source",
                format!("no source came within {} s", SOURCE_LIMIT.as_secs()),
                "start the migration again",
            )),
            _ => None,
        }
    }

    /// Writes down over which session and by which data plane it goes on.
    pub(super) fn note_carrier(
        &mut self,
        session: SessionId,
        instance: u64,
        dataplane: String,
    ) -> IncomingView {
        let record = {
            let mut record = lock(&self.entry.record);
            record.carrier = Some(session.to_string());
            record.instance = Some(instance);
            record.view.dataplane = dataplane;
            record.clone()
        };
        // An error was logged; what is in memory goes on.
        let _ = self.table.write_incoming(&record);
        record.view
    }

    pub(super) fn data_plane_died(&self) -> bool {
        self.entry
            .record()
            .instance
            .is_none_or(|instance| self.table.host.has_ended(instance))
    }

    async fn finish(mut self, guest: GuestVerdict, reason: Option<FailureView>) {
        // The word first: the source may be waiting for it.
        self.update(|view| {
            view.guest = guest;
            view.failure = reason;
            view.state = match (guest, &view.failure) {
                (GuestVerdict::Here, None) => IncomingState::Completed,
                _ => IncomingState::Failed,
            };
        });
        // Others may use the monitor from here on.
        (self.qmp, self.events) = (None, None);
        self.end_session().await;
        self.table.host.escrow_release(self.session);
        self.table.sockets.clear(self.session);
        *lock(&self.entry.orders) = None;
        self.table.prune();
    }

    /// The last bytes of the return path may still be on their way; only then is the session forgotten.
    async fn end_session(&mut self) {
        let (host, session) = (self.table.host.clone(), self.session);
        // A link that was cut just now may come back: the source waits for the last bytes so long.
        let resume_ms = self.entry.record().request.options.resume_limit_ms;
        let mut deadline = Instant::now() + Duration::from_millis(resume_ms) + SESSION_END_LIMIT;
        let mut asked = false;
        loop {
            // Answered at once: the word is final.
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    IncomingOrder::Verdict(answer) => {
                        let _ = answer.send(Verdict {
                            guest: self.entry.record().view.guest,
                        });
                    }
                    IncomingOrder::Recover(_, answer) => {
                        let _ = answer.send(Err(JobError::Ended(self.id.to_string())));
                    }
                }
            }
            let state = match host.session(session) {
                Ok(Some(snapshot)) => snapshot.state(),
                Ok(None) | Err(HostError::Disconnected(_)) => return,
                Err(_) => SessionSnapshot::FREE.state(),
            };
            if state.is_some_and(SessionState::is_final) {
                if let Err(error) = host.command(Command::Forget { session }).await {
                    tracing::warn!(%session, %error, "session not forgotten");
                }
                return;
            }
            if Instant::now() > deadline {
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
