//! How a destination fails closed. In: a hypervisor that may be in any state of receiving. Out: the
//! word that the source stakes its copy on: `here`, `never_here`, or `unknown` if it cannot be known.
//!
//! First the road is closed, so nothing more can arrive. Then the hypervisor either has everything, and
//! runs the guest, or has not, and ends. One that does neither is told `stop`: a hypervisor that still
//! waits for its guest will then never start it by itself, and can be ended without a race.

use std::time::{Duration, Instant};

use dwcp_api::command::Command;
use tokio::time::{sleep, timeout};

use crate::qmp::{QmpCommand, QmpError};

use super::incoming::Incoming;
use super::part::Part;
use super::view::GuestVerdict;

/// How long the hypervisor may take to see that its connection has ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// How long it may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// The hypervisor, as one look finds it.
enum Seen {
    /// The guest is here.
    Here,
    /// It still waits.
    Waiting,
    /// It has ended.
    Gone,
    /// It does not say.
    Silent,
}

impl Incoming {
    /// Closes the road and says where the guest is, for good unless unknown. The road of a guest that is here
    /// with part of its memory stays open.
    pub(super) async fn fail_closed(&mut self) -> GuestVerdict {
        let guest = self.close_for_good().await;
        if guest == GuestVerdict::Here
            && (!matches!(self.part().await, Part::Whole) || self.in_part)
        {
            return GuestVerdict::HereInPart;
        }
        guest
    }

    async fn close_for_good(&mut self) -> GuestVerdict {
        if self.look().await {
            return GuestVerdict::Here;
        }
        self.close_road().await;
        let began = Instant::now();
        loop {
            match self.see().await {
                Seen::Here => return GuestVerdict::Here,
                Seen::Gone => return self.of_the_dead(),
                Seen::Waiting | Seen::Silent if began.elapsed() < SETTLE_LIMIT => {
                    sleep(LOOK_PAUSE).await;
                }
                Seen::Waiting => return self.end().await,
                Seen::Silent => return GuestVerdict::Unknown,
            }
        }
    }

    pub(super) async fn close_road(&self) {
        let (host, session) = (&self.table.host, self.session);
        if !self.data_plane_died() {
            match host.command(Command::Cancel { session }).await {
                // Whoever is refused has closed already, or never opened.
                Ok(()) => {}
                Err(error) => tracing::info!(%session, %error, "session not cancelled"),
            }
        }
        // Of a data plane that is dead or does not answer, the connections are ours to end.
        host.escrow_shutdown(session);
    }

    async fn see(&mut self) -> Seen {
        let Some(qmp) = self.qmp.clone() else {
            return if self.connect().await {
                Seen::Silent
            } else {
                Seen::Gone
            };
        };
        match qmp.run_state().await {
            Ok(state) if state.is_incoming() => {
                self.drain_events();
                if self.here { Seen::Here } else { Seen::Waiting }
            }
            Ok(state) if state.word.is_empty() => Seen::Silent,
            Ok(_) => {
                self.here = true;
                Seen::Here
            }
            Err(QmpError::Closed) => {
                // What it said before it ended counts.
                self.drain_events();
                if self.connect().await {
                    Seen::Silent
                } else {
                    Seen::Gone
                }
            }
            Err(_) => Seen::Silent,
        }
    }

    /// What can be said of a hypervisor that is gone.
    fn of_the_dead(&self) -> GuestVerdict {
        if self.here {
            return GuestVerdict::Here;
        }
        if self.watched {
            return GuestVerdict::NeverHere;
        }
        // Nobody watched when it ended. If the end of RAM never reached it, it cannot have run.
        match self.table.host.last_session(self.session) {
            Some(snapshot) if snapshot.ram_end == 0 => GuestVerdict::NeverHere,
            _ => GuestVerdict::Unknown,
        }
    }

    /// Ends a hypervisor that still waits.
    async fn end(&mut self) -> GuestVerdict {
        let Some(qmp) = self.qmp.clone() else {
            return GuestVerdict::Unknown;
        };
        if qmp.execute(QmpCommand::Stop).await.is_err() {
            return GuestVerdict::Unknown;
        }
        match qmp.run_state().await {
            Ok(state) if state.is_incoming() => {}
            Ok(_) => {
                // It had everything after all. If it already ran, it goes on.
                self.drain_events();
                if self.here {
                    let _ = qmp.execute(QmpCommand::Cont).await;
                }
                self.here = true;
                return GuestVerdict::Here;
            }
            Err(_) => return GuestVerdict::Unknown,
        }
        // Its answer may be lost with the connection.
        let _ = qmp.execute(QmpCommand::Quit).await;
        let _ = timeout(QUIT_LIMIT, qmp.closed()).await;
        self.drain_events();
        if self.here {
            return GuestVerdict::Here;
        }
        let began = Instant::now();
        while began.elapsed() < QUIT_LIMIT {
            if qmp.is_closed() && !self.connect().await {
                return GuestVerdict::NeverHere;
            }
            sleep(LOOK_PAUSE).await;
        }
        GuestVerdict::Unknown
    }
}
