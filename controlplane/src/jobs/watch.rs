//! What the source's task looks at while a migration runs. In: the hypervisor's answers and events, the
//! data plane's session, orders. Out: the moment at which it is over, and what is open then.

use std::time::{Duration, Instant};

use dwcp_api::command::Command;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::text::Text;
use dwcp_api::{Failure, SessionState};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::{MissedTickBehavior, interval};

use crate::host::HostError;
use crate::qmp::{MigrationInfo, MigrationPhase, QmpCommand, QmpError, QmpEvent};

use super::error::JobError;
use super::record::{failure, failure_cure};
use super::source::{Outcome, Run};
use super::table::SourceOrder;
use super::verdict::Hold;
use super::view::{FailureView, MigrationState, MigrationView};

/// How often figures are read.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long the hypervisor may take to see that its data plane has closed its connections.
const HYPERVISOR_END_LIMIT: Duration = Duration::from_secs(10);

/// What the watch found.
pub(super) enum Found {
    /// Nothing new.
    Nothing,
    /// The hypervisor says that the destination has the guest.
    Completed,
    /// It is open who has the guest, or the source has it: settle.
    Open(Hold, FailureView),
    /// It has ended.
    Ended(Outcome),
}

impl Run {
    pub(super) async fn watch(&mut self) -> Outcome {
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
                    Some(SourceOrder::Recover(answer)) => {
                        if let Some(outcome) = self.answer_recover(answer).await {
                            return outcome;
                        }
                    }
                    Some(SourceOrder::Limit(bytes_per_s, answer)) => {
                        let _ = answer.send(self.limit(bytes_per_s).await);
                    }
                    Some(SourceOrder::Redirect(to, answer)) => {
                        let _ = answer.send(self.redirect(&to).await);
                    }
                    None => {}
                },
            }
            match self.look().await {
                Found::Nothing => {}
                Found::Completed => {
                    if let Some(outcome) = self.confirm().await {
                        return outcome;
                    }
                }
                Found::Open(hold, reason) => {
                    if let Some(outcome) = self.settle(hold, reason).await {
                        return outcome;
                    }
                }
                Found::Ended(outcome) => return outcome,
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
        if info.phase() == MigrationPhase::Device || info.phase().is_postcopy() {
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
            phase if phase.is_postcopy() => {
                return self.look_at_postcopy(&info, snapshot.as_ref(), dead).await;
            }
            _ if dead => {
                return Found::Open(self.hold(), self.reason(snapshot.as_ref(), &info, true));
            }
            MigrationPhase::Active => self.turn_into_postcopy(&info).await,
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
            // What is kept for it must not hide the end from the hypervisor.
            self.table.host.escrow_release(self.session);
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
}

impl Run {
    async fn redirect(&mut self, to: &str) -> Result<MigrationView, JobError> {
        let command = Command::Redirect {
            session: self.session,
            peer: Text::new(to).map_err(HostError::from)?,
        };
        self.table.host.command(command).await?;
        self.update(|record| record.view.destination.dataplane = Some(to.to_owned()));
        Ok(self.record().view)
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
