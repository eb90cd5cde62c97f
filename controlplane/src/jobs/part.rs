//! A guest that runs at its destination with part of its memory. In: the hypervisor's word, the data plane's
//! life, orders to recover. Out: whether the rest still comes. Promises: as long as it may come, nothing is
//! ended; a new road is opened only when the old one is closed for good.

use std::time::{Duration, Instant};

use dwcp_api::SessionId;
use dwcp_api::command::Command;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::host::{HostError, HostStatus};
use crate::qmp::{MigrationPhase, QmpCommand, QmpError};

use super::error::JobError;
use super::incoming::Incoming;
use super::record::failure;
use super::sockets::path_text;
use super::view::{FailureView, GuestVerdict, IncomingState, IncomingView};

/// How long the hypervisor may take to see that its connections have ended.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);
/// After so long it is told.
const PAUSE_HELP: Duration = Duration::from_secs(1);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// How much of the guest is here.
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Not all; the rest is still to come.
    Some,
    /// Not all, and the rest will not come.
    Torn(FailureView),
}

impl Incoming {
    /// Looks how much of a guest that runs here has come.
    pub(super) async fn part(&mut self) -> Part {
        if self.entry.record().request.options.postcopy.is_never() {
            return Part::Whole;
        }
        if let Err(QmpError::Closed | QmpError::Missing { .. }) = self.ask().await
            && !self.connect().await
        {
            return self.torn_by_its_end();
        }
        match self.phase {
            MigrationPhase::Completed => {
                self.in_part = false;
                return Part::Whole;
            }
            MigrationPhase::Failed => return self.torn_by_its_end(),
            phase => self.in_part |= phase.is_postcopy(),
        }
        if self.in_part {
            if self.data_plane_died() {
                // What is kept for it must not hide the end from the hypervisor.
                self.table.host.escrow_shutdown(self.session);
            }
            let paused = self.phase == MigrationPhase::PostcopyPaused;
            self.update(|view| {
                view.guest = GuestVerdict::HereInPart;
                view.state = if paused {
                    IncomingState::PostcopyPaused
                } else {
                    IncomingState::PostcopyActive
                };
            });
        }
        Part::Some
    }

    /// Takes an answer that has come and asks again. Events tell the same sooner, but not those from before the
    /// monitor was opened.
    async fn ask(&mut self) -> Result<(), QmpError> {
        let Some(qmp) = self.qmp.clone().filter(|qmp| !qmp.is_closed()) else {
            return Err(QmpError::Closed);
        };
        if self.asked.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(asked) = self.asked.take()
            && let Ok(Ok(info)) = asked.await
        {
            self.phase = info.phase();
        }
        // What happened while it was on its way is in the events.
        self.drain_events();
        if self.asked.is_none() {
            self.asked = Some(tokio::spawn(async move { qmp.migration().await }));
        }
        Ok(())
    }

    fn torn_by_its_end(&self) -> Part {
        if !self.in_part {
            return Part::Whole;
        }
        Part::Torn(failure(
            "hypervisor_gone",
            "the destination's hypervisor ended before all of the guest's memory was in",
            "look at its log, then start the guest again from its disks",
        ))
    }

    /// Closes the old road and waits for the source on a new one.
    pub(super) async fn recover(&mut self, next: SessionId) -> Result<IncomingView, JobError> {
        let id = self.id.to_string();
        let refused = |state| JobError::NotPaused {
            id: id.clone(),
            state,
        };
        self.look().await;
        if !matches!(self.part().await, Part::Some) || !self.in_part {
            return Err(refused("not in post-copy here"));
        }
        let HostStatus::Connected {
            listen, instance, ..
        } = self.table.host.status()
        else {
            let reason = "it is not attached".to_owned();
            return Err(HostError::Disconnected(reason).into());
        };
        self.close_road().await;
        let qmp = self.qmp.clone().ok_or(QmpError::Closed)?;
        let path = self.table.sockets.paths(next).into;
        let open = Command::OpenDestination {
            session: next,
            connect: path_text(&path)?,
            limits: self.entry.record().request.options.session_limits(),
        };
        // It is refused until the hypervisor has seen that its connections have ended.
        let began = Instant::now();
        let mut helped = false;
        while let Err(error) = qmp.execute(QmpCommand::MigrateRecover(path.clone())).await {
            if began.elapsed() > PAUSE_LIMIT || !matches!(error, QmpError::Refused { .. }) {
                self.table.sockets.clear(next);
                return Err(error.into());
            }
            if !helped && began.elapsed() > PAUSE_HELP {
                helped = true;
                let _ = qmp.execute(QmpCommand::MigratePause).await;
            }
            sleep(LOOK_PAUSE).await;
        }
        let old = std::mem::replace(&mut self.session, next);
        self.table.drop_carrier(old);
        let view = self.note_carrier(next, instance, listen);
        self.table.host.command(open).await?;
        Ok(view)
    }
}
