//! The open ends of a migration at its source. In: what holds the hypervisor's connections, the
//! hypervisor, the destination's word. Out: the guest on exactly one side, by the table of
//! [`super::verdict`]. Nothing here gives up: as long as it is not known, both sides are held.

use std::time::{Duration, Instant};

use dwcp_api::SessionState;
use dwcp_api::command::{Command, Verdict as Resolution};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::host::HostError;
use crate::qmp::{MigrationPhase, QmpCommand, QmpError};

use super::error::JobError;
use super::record::failure;
use super::recover::{stranded, torn};
use super::source::{Outcome, Run, cancelled};
use super::table::SourceOrder;
use super::verdict::{Action, Hold, SourceGuest, decide};
use super::view::{FailureView, GuestSide, GuestVerdict, MigrationState, MigrationView};

/// Pause between two questions to the destination.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// How long the destination may take to show the guest after the source has handed it over; then it is
/// asked for a verdict.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
/// How long the source's guest may take to go on.
const RESUME_LIMIT: Duration = Duration::from_secs(10);
/// How long a hypervisor may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// How long a session may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl Run {
    /// The source's hypervisor says that the destination took over: does it run there?
    pub(super) async fn confirm(&mut self) -> Option<Outcome> {
        self.update(|record| {
            record.handed = true;
            record.view.state = MigrationState::Switchover;
            record.view.guest = GuestSide::Destination;
            "waiting for the destination to show the guest".clone_into(&mut record.view.phase);
        });
        let deadline = Instant::now() + CONFIRM_LIMIT;
        while Instant::now() < deadline {
            match self.peer.look(self.id).await {
                Ok(there) if there.guest == GuestVerdict::Here => return Some(moved()),
                Ok(there) if there.guest == GuestVerdict::NeverHere => break,
                Ok(_) => sleep(LOOK_PAUSE).await,
                Err(_) => sleep(ASK_PAUSE).await,
            }
        }
        let reason = failure(
            "destination_silent",
            "the destination did not show the guest after the hand-over",
            "bring the destination's control plane back",
        );
        self.settle(self.hold(), reason).await
    }

    /// Goes by the table until the guest is on exactly one side. Without an outcome when it is, with memory on
    /// both: then the migration goes on.
    pub(super) async fn settle(&mut self, mut hold: Hold, reason: FailureView) -> Option<Outcome> {
        let mut answer = None;
        loop {
            let source = self.source_guest().await;
            let handed = self.record().handed;
            match decide(hold, source, handed, answer) {
                Action::Ask => {
                    self.update(|record| {
                        record.view.state = MigrationState::Undecided;
                        record.view.guest = GuestSide::Undecided;
                        "asking the destination where the guest is"
                            .clone_into(&mut record.view.phase);
                    });
                    answer = Some(match self.peer.verdict(self.id).await {
                        Ok(verdict) => verdict.guest,
                        Err(error) => {
                            tracing::warn!(session = %self.id, %error, "no verdict yet");
                            GuestVerdict::Unknown
                        }
                    });
                }
                Action::Wait => {
                    self.explain(source);
                    self.pause().await;
                    answer = None;
                    // The data plane may have died meanwhile; what held then holds no more.
                    if hold != Hold::Nothing {
                        hold = self.hold();
                    }
                }
                Action::Stay => return Some(self.stay(hold, reason).await),
                Action::Move => {
                    if self.quit_source().await {
                        self.let_go(hold, Resolution::GuestMoved).await;
                        self.note("the source's hypervisor was ended, since the destination runs the guest");
                        return Some(moved());
                    }
                    self.explain(SourceGuest::Silent);
                    self.pause().await;
                }
                Action::Moved => {
                    self.let_go(hold, Resolution::GuestMoved).await;
                    return Some(moved());
                }
                Action::Conflict => return Some(self.conflict().await),
                Action::Recover => {
                    self.let_go(hold, Resolution::GuestStays).await;
                    return None;
                }
                Action::Torn => {
                    self.let_go(hold, Resolution::GuestMoved).await;
                    return Some(torn(&reason.detail));
                }
                Action::Stranded => {
                    self.let_go(hold, Resolution::GuestMoved).await;
                    return Some(stranded());
                }
                Action::Lost => {
                    self.let_go(hold, Resolution::GuestStays).await;
                    return Some(Outcome {
                        state: MigrationState::Failed,
                        guest: GuestSide::Source,
                        failure: Some(reason),
                    });
                }
                Action::Dropped => {
                    self.let_go(hold, Resolution::GuestStays).await;
                    return Some(Outcome {
                        state: MigrationState::Failed,
                        guest: GuestSide::Destination,
                        failure: Some(failure(
                            "destination_lost",
                            "the destination took the guest over and ended before it was seen to run",
                            "the source still has the guest, stopped: `cont` it there once the destination is known to be gone",
                        )),
                    });
                }
            }
        }
    }

    /// Where the source's guest is.
    async fn source_guest(&mut self) -> SourceGuest {
        let qmp = match self.monitor().await {
            Ok(qmp) => qmp,
            Err(QmpError::Missing { .. } | QmpError::Forbidden(_)) => return SourceGuest::Gone,
            Err(_) => return SourceGuest::Silent,
        };
        let (state, info) = match (qmp.run_state().await, qmp.migration().await) {
            (Ok(state), Ok(info)) => (state, info),
            // The next look finds its socket dead, or answers.
            _ => return SourceGuest::Silent,
        };
        if info.phase() == MigrationPhase::Completed && !state.running {
            SourceGuest::HandedOver
        } else if info.phase().is_postcopy() && !state.running {
            SourceGuest::Postcopy
        } else if state.running {
            SourceGuest::Running
        } else {
            SourceGuest::Stopped
        }
    }

    /// The source has the guest: release its connections as failed and see that it runs.
    async fn stay(&mut self, hold: Hold, reason: FailureView) -> Outcome {
        self.let_go(hold, Resolution::GuestStays).await;
        let resumed = self.resume().await;
        let (detail, cure) = if resumed {
            (reason.detail, reason.cure)
        } else {
            (
                format!("{}; and the source's guest does not run", reason.detail),
                "look at the source's hypervisor; `cont` lets its guest go on".to_owned(),
            )
        };
        Outcome {
            state: MigrationState::Failed,
            guest: GuestSide::Source,
            failure: Some(failure(&reason.code, detail, cure)),
        }
    }

    /// Waits until the source's guest runs; helps if its hypervisor leaves it standing.
    async fn resume(&mut self) -> bool {
        let began = Instant::now();
        let mut cancelled = false;
        while began.elapsed() < RESUME_LIMIT {
            if let Ok(qmp) = self.monitor().await
                && let (Ok(state), Ok(info)) = (qmp.run_state().await, qmp.migration().await)
            {
                let over = matches!(
                    info.phase(),
                    MigrationPhase::Failed | MigrationPhase::Cancelled | MigrationPhase::None
                );
                if over && state.running {
                    return true;
                }
                if !over && !cancelled && began.elapsed() > RESUME_LIMIT / 5 {
                    cancelled = true;
                    let _ = qmp.execute(QmpCommand::MigrateCancel).await;
                }
                if over && began.elapsed() > RESUME_LIMIT / 5 {
                    let _ = qmp.execute(QmpCommand::Cont).await;
                }
            }
            sleep(LOOK_PAUSE).await;
        }
        false
    }

    /// Ends the source's hypervisor. True once it is gone for certain.
    pub(super) async fn quit_source(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < QUIT_LIMIT {
            match self.monitor().await {
                Ok(qmp) => {
                    // Its answer may be lost with the connection.
                    let _ = qmp.execute(QmpCommand::Quit).await;
                    let _ = tokio::time::timeout(QUIT_LIMIT, qmp.closed()).await;
                }
                Err(QmpError::Missing { .. }) => return true,
                Err(_) => {}
            }
            sleep(LOOK_PAUSE).await;
        }
        false
    }

    /// Releases the hypervisor's connections, whoever holds them.
    async fn let_go(&mut self, hold: Hold, verdict: Resolution) {
        if hold == Hold::Session && self.close_session(verdict).await {
            return;
        }
        match verdict {
            Resolution::GuestStays => self.table.host.escrow_shutdown(self.session),
            Resolution::GuestMoved => self.table.host.escrow_release(self.session),
        };
    }

    /// Brings the session to its end, now that it is known who has the guest. An undecided one takes
    /// the verdict; one that may still be in its switchover refuses to be cancelled until its peer has
    /// closed, so it is asked again. True once it has ended.
    pub(super) async fn close_session(&mut self, verdict: Resolution) -> bool {
        let (host, session) = (self.table.host.clone(), self.session);
        let began = Instant::now();
        loop {
            let state = match host.session(session) {
                Ok(Some(snapshot)) => snapshot.state(),
                Ok(None) | Err(HostError::Disconnected(_)) => return false,
                Err(_) => None,
            };
            let command = match state {
                Some(state) if state.is_final() => return true,
                Some(SessionState::Undecided) => Command::Resolve { session, verdict },
                _ => Command::Cancel { session },
            };
            let outcome = host.command(command).await;
            if began.elapsed() > CLOSE_LIMIT {
                tracing::warn!(%session, ?outcome, "session does not end");
                return false;
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    /// Two copies may have run: one is stopped at once, none is thrown away.
    async fn conflict(&mut self) -> Outcome {
        if let Ok(qmp) = self.monitor().await {
            let _ = qmp.execute(QmpCommand::Stop).await;
        }
        Outcome {
            state: MigrationState::Failed,
            guest: GuestSide::Destination,
            failure: Some(failure(
                "both_ran",
                "control plane and data plane of the source were gone during the hand-over: the source resumed while the destination ran; the source's guest was stopped",
                "check the guest's disks, keep one copy and `quit` the other hypervisor",
            )),
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        self.update(|record| record.view.notes.push(text.to_owned()));
    }

    fn explain(&mut self, source: SourceGuest) {
        let phase = if source == SourceGuest::Silent {
            "the source's hypervisor does not answer: free its monitor, or end it"
        } else {
            "the destination does not say where the guest is: bring its control plane back; both hypervisors are held until then"
        };
        self.update(|record| {
            record.view.state = MigrationState::Undecided;
            record.view.guest = GuestSide::Undecided;
            phase.clone_into(&mut record.view.phase);
        });
    }

    /// A second, or until an order comes: all orders are refused while nobody knows.
    async fn pause(&mut self) {
        let refused = || Err(JobError::Undecided(self.id.to_string()));
        tokio::select! {
            () = sleep(ASK_PAUSE) => {}
            order = self.orders.recv() => {
                match order {
                    Some(
                        SourceOrder::Cancel(answer)
                        | SourceOrder::Limit(_, answer)
                        | SourceOrder::Redirect(_, answer)
                        | SourceOrder::Recover(answer),
                    ) => {
                        let _ = answer.send(refused());
                    }
                    None => {}
                }
                sleep(ASK_PAUSE).await;
            }
        }
    }

    /// Has the source's hypervisor given the guest away?
    async fn is_in_postcopy(&mut self) -> bool {
        let info = self.migration().await;
        info.is_ok_and(|info| info.phase().is_postcopy())
    }

    /// Cancels, if that is still possible. The destination fails closed first: what it says then holds
    /// for ever, so that the source may go on.
    pub(super) async fn cancel(
        &mut self,
        answer: oneshot::Sender<Result<MigrationView, JobError>>,
    ) -> Option<Outcome> {
        let id = self.id.to_string();
        if self.record().postcopy_asked {
            // The destination must not fail closed now: the guest is there, or on its way.
            let refusal = match self.is_in_postcopy().await {
                true => JobError::TooLate(id),
                false => JobError::Undecided(id),
            };
            let _ = answer.send(Err(refusal));
            return None;
        }
        let verdict = self.peer.verdict(self.id).await;
        let refusal = match verdict.map_or(GuestVerdict::Unknown, |verdict| verdict.guest) {
            GuestVerdict::NeverHere => {
                self.let_go(self.hold(), Resolution::GuestStays).await;
                None
            }
            GuestVerdict::Here | GuestVerdict::HereInPart => Some(JobError::TooLate(id)),
            GuestVerdict::Unknown if self.record().handed => Some(JobError::Undecided(id)),
            // The destination cannot be asked. Our data plane knows whether the end of RAM has left it,
            // and refuses if so; if not, the destination is incomplete for ever.
            GuestVerdict::Unknown => {
                let cancel = Command::Cancel {
                    session: self.session,
                };
                let outcome = self.table.host.command(cancel).await;
                outcome.is_err().then_some(JobError::Undecided(id))
            }
        };
        if let Some(refusal) = refusal {
            let _ = answer.send(Err(refusal));
            return None;
        }
        if let Ok(qmp) = self.monitor().await {
            let _ = qmp.execute(QmpCommand::MigrateCancel).await;
        }
        self.table.host.escrow_shutdown(self.session);
        let resumed = self.resume().await;
        let mut outcome = cancelled();
        if !resumed {
            outcome.failure = Some(failure(
                "not_resumed",
                "cancelled, but the source's guest does not run",
                "look at the source's hypervisor; `cont` lets its guest go on",
            ));
        }
        self.cancelled_by = Some(answer);
        Some(outcome)
    }
}

pub(super) const fn moved() -> Outcome {
    Outcome {
        state: MigrationState::Completed,
        guest: GuestSide::Destination,
        failure: None,
    }
}
