//! Post-copy at its source. In: the hypervisor's word, the session, orders to recover. Out: a migration that
//! turned into post-copy when it was asked to, and one that goes on over a new session of the data planes
//! after its own was lost. Promises: connections are broken only once the hypervisor can no longer run the
//! guest again; nothing here ends a hypervisor while the guest needs its memory.

use std::time::{Duration, Instant};

use dwcp_api::SessionState;
use dwcp_api::command::{Command, Verdict as Resolution};
use dwcp_api::session::SessionSnapshot;
use dwcp_api::text::Text;
use tokio::sync::oneshot;

use crate::host::{HostError, HostStatus};
use crate::qmp::{MigrationInfo, MigrationPhase, QmpCommand};

use super::api::new_session;
use super::error::JobError;
use super::record::failure;
use super::request::RecoverRequest;
use super::settle::moved;
use super::sockets::path_text;
use super::source::{Outcome, Run};
use super::view::{
    GuestSide, GuestVerdict, IncomingState, IncomingView, MigrationState, MigrationView,
};
use super::watch::Found;

/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long the hypervisor may take to leave its pause once it was told to.
const RESUME_LIMIT: Duration = Duration::from_secs(5);

/// Where a recovery stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recovery {
    /// None is under way; the next may begin then.
    Idle(Instant),
    /// A new session is open at both ends, and its link is waited for.
    Linking,
    /// The hypervisor was told to go on over it.
    Resuming(Instant),
}

impl Run {
    /// Turns the migration into post-copy, if that was asked for and it is time.
    pub(super) async fn turn_into_postcopy(&mut self, info: &MigrationInfo) {
        let since = *self.sending_since.get_or_insert_with(Instant::now);
        let record = self.record();
        if record.postcopy_asked
            || !record
                .request
                .options
                .postcopy
                .is_due(info, since.elapsed())
        {
            return;
        }
        let Ok(qmp) = self.monitor().await else {
            return;
        };
        match qmp.execute(QmpCommand::MigrateStartPostcopy).await {
            Ok(_) => self.update(|record| record.postcopy_asked = true),
            Err(error) => tracing::warn!(session = %self.id, %error, "post-copy not begun"),
        }
    }

    /// Looks at a migration whose guest has gone and whose memory has not yet.
    pub(super) async fn look_at_postcopy(
        &mut self,
        info: &MigrationInfo,
        snapshot: Option<&SessionSnapshot>,
        dead: bool,
    ) -> Found {
        let state = snapshot.and_then(SessionSnapshot::state);
        let (shown, phase) = match info.phase() {
            MigrationPhase::PostcopyPaused => return self.look_at_pause(snapshot).await,
            _ if dead || state == Some(SessionState::Undecided) => {
                self.break_off(dead).await;
                (MigrationState::PostcopyPaused, "what carried it is gone")
            }
            MigrationPhase::PostcopyRecovering => (
                MigrationState::Recovering,
                "both sides agree what is still missing",
            ),
            _ if state == Some(SessionState::Reconnecting) => (
                MigrationState::Reconnecting,
                "the link is gone; lanes are being dialled again, and the guest waits where it needs a page",
            ),
            _ => (
                MigrationState::PostcopyActive,
                "the guest runs at the destination; the rest of its memory follows",
            ),
        };
        self.recovery = Recovery::Idle(Instant::now());
        self.why_not = None;
        self.show_gone(shown, phase);
        Found::Nothing
    }

    fn show_gone(&mut self, state: MigrationState, phase: &str) {
        self.update(|record| {
            record.view.state = state;
            record.view.guest = GuestSide::Destination;
            phase.clone_into(&mut record.view.phase);
        });
    }

    /// Lets the hypervisor see that its connections are broken, which makes it pause. A hypervisor that
    /// answers, has stopped its guest and calls it post-copy has done its part of the switch: it holds its
    /// main lock until then. Before, a broken connection would let it run the guest again.
    async fn break_off(&mut self, dead: bool) {
        let Ok(qmp) = self.monitor().await else {
            return;
        };
        let stopped = qmp.run_state().await.is_ok_and(|state| !state.running);
        let gone = qmp
            .migration()
            .await
            .is_ok_and(|info| info.phase().is_postcopy());
        if !(stopped && gone) {
            return;
        }
        if dead {
            self.table.host.escrow_shutdown(self.session);
        } else {
            let (session, verdict) = (self.session, Resolution::GuestStays);
            let outcome = self
                .table
                .host
                .command(Command::Resolve { session, verdict })
                .await;
            tracing::info!(%session, ?outcome, "an undecided session in post-copy was closed");
        }
    }

    /// The hypervisor waits for new connections.
    async fn look_at_pause(&mut self, snapshot: Option<&SessionSnapshot>) -> Found {
        let next = match self.recovery {
            Recovery::Idle(after) => {
                let auto = self.record().request.options.postcopy_auto_recover;
                let phase = match (&self.why_not, auto) {
                    (Some(why), _) => why.clone(),
                    (None, true) => "waiting until both sides can be connected again".to_owned(),
                    (None, false) => "waiting for the order to recover it".to_owned(),
                };
                self.show_gone(MigrationState::PostcopyPaused, &phase);
                if !auto || Instant::now() < after {
                    return Found::Nothing;
                }
                match self.begin_recovery().await {
                    Ok(Some(outcome)) => return Found::Ended(outcome),
                    Ok(None) => return Found::Nothing,
                    Err(error) => self.explain_failure(&error),
                }
                Recovery::Idle(Instant::now() + RETRY_PAUSE)
            }
            Recovery::Linking => match snapshot {
                Some(snapshot) if snapshot.state().is_some_and(SessionState::is_final) => {
                    Recovery::Idle(Instant::now() + RETRY_PAUSE)
                }
                Some(snapshot) if snapshot.lanes_up > 0 => self.resume_hypervisor().await,
                Some(_) => Recovery::Linking,
                None => Recovery::Idle(Instant::now() + RETRY_PAUSE),
            },
            Recovery::Resuming(since) if since.elapsed() < RESUME_LIMIT => self.recovery,
            Recovery::Resuming(_) => Recovery::Idle(Instant::now()),
        };
        self.recovery = next;
        Found::Nothing
    }

    fn explain_failure(&mut self, error: &JobError) {
        tracing::info!(session = %self.id, %error, "not recovered");
        let phase = format!("cannot be recovered yet: {error}; next: {}", error.cure());
        self.show_gone(MigrationState::PostcopyPaused, &phase);
        self.why_not = Some(phase);
    }

    async fn resume_hypervisor(&mut self) -> Recovery {
        self.show_gone(
            MigrationState::Recovering,
            "the source's hypervisor connects",
        );
        let path = self.table.sockets.paths(self.session).out;
        let outcome = match self.monitor().await {
            Ok(qmp) => qmp.execute(QmpCommand::MigrateResume(path)).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => Recovery::Resuming(Instant::now()),
            Err(error) => {
                self.explain_failure(&error.into());
                Recovery::Idle(Instant::now() + RETRY_PAUSE)
            }
        }
    }

    /// Somebody asks for a recovery now. Gives an outcome if the destination has ended meanwhile.
    pub(super) async fn answer_recover(
        &mut self,
        answer: oneshot::Sender<Result<MigrationView, JobError>>,
    ) -> Option<Outcome> {
        let state = self.record().view.state;
        let begun = match self.recovery {
            Recovery::Linking | Recovery::Resuming(_) => Ok(None),
            Recovery::Idle(_) if state == MigrationState::PostcopyPaused => {
                self.begin_recovery().await
            }
            Recovery::Idle(_) => Err(JobError::NotPaused {
                id: self.id.to_string(),
                state: state.as_str(),
            }),
        };
        let (said, outcome) = match begun {
            Ok(outcome) => (Ok(self.record().view), outcome),
            Err(error) => (Err(error), None),
        };
        let _ = answer.send(said);
        outcome
    }

    /// Opens a new session at both ends. Gives an outcome if the destination has ended meanwhile.
    async fn begin_recovery(&mut self) -> Result<Option<Outcome>, JobError> {
        let there = self.peer.look(self.id).await?;
        if there.state.is_final() {
            return Ok(Some(self.end_of(&there).await));
        }
        let HostStatus::Connected { instance, .. } = self.table.host.status() else {
            let reason = "it is not attached".to_owned();
            return Err(HostError::Disconnected(reason).into());
        };
        let next = new_session()?;
        let request = RecoverRequest {
            session: next.to_string(),
        };
        let there = self.peer.recover(self.id, &request).await?;
        let old = std::mem::replace(&mut self.session, next);
        self.table.drop_carrier(old);
        self.update(|record| {
            record.carrier = Some(next.to_string());
            record.instance = Some(instance);
            record.view.destination.dataplane = Some(there.dataplane.clone());
            "waiting for the link between the data planes".clone_into(&mut record.view.phase);
        });
        // The peer has begun: what fails now is tried again from the start.
        self.recovery = Recovery::Idle(Instant::now() + RETRY_PAUSE);
        let request = self.record().request;
        let options = request.options;
        let open = Command::OpenSource {
            session: next,
            listen: path_text(&self.table.sockets.paths(next).out)?,
            peer: Text::new(&there.dataplane).map_err(HostError::from)?,
            peer_node: request.destination.node_text()?,
            max_version: options.max_version.into(),
            limits: options.session_limits(),
        };
        self.table.host.command(open).await?;
        self.recovery = Recovery::Linking;
        Ok(None)
    }

    /// The destination is done, one way or the other, and this hypervisor does not know.
    async fn end_of(&mut self, there: &IncomingView) -> Outcome {
        if there.state == IncomingState::Completed {
            // The last word was lost with the link. The hypervisor here waits for it for ever.
            self.note("the source's hypervisor was ended: the destination has all of the guest");
            self.quit_source().await;
            return moved();
        }
        if there.guest == GuestVerdict::NeverHere {
            return stranded();
        }
        let why = there.failure.as_ref();
        torn(why.map_or("the destination does not say why", |why| &why.detail))
    }
}

/// The guest ran at the destination and cannot go on.
pub(super) fn torn(why: &str) -> Outcome {
    Outcome {
        state: MigrationState::Failed,
        guest: GuestSide::Destination,
        failure: Some(failure(
            "postcopy_torn",
            format!(
                "one of the hypervisors ended while the guest's memory was on both sides, so the guest is lost: {why}"
            ),
            "end the hypervisor that is left and start the guest again from its disks",
        )),
    }
}

/// The guest was given away and never arrived.
pub(super) fn stranded() -> Outcome {
    Outcome {
        state: MigrationState::Failed,
        guest: GuestSide::Undecided,
        failure: Some(failure(
            "postcopy_stranded",
            "the destination ended before it ran the guest, when the source's hypervisor had given it away: it stands still there and this hypervisor cannot run it again",
            "end the source's hypervisor and start the guest again from its disks",
        )),
    }
}
