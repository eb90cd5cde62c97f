//! Everything there is to see, at one moment.
//!
//! In: the live parts. Out: plain numbers, so that metrics and health are functions of numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_api::monotonic_ns;
use dwcp_api::session::SessionSnapshot;

use super::tally::Tally;
use crate::flags::{Flags, FlagsView};
use crate::host::{DoorFigures, Host};
use crate::mode::{Figures, Modes};

/// Counters of one worker, by name.
pub type WorkerFigures = Vec<(&'static str, u64)>;

/// Figures taken together.
#[derive(Clone, Debug)]
pub struct Picture {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub taken_ns: u64,
    /// Seconds since 1970.
    pub taken_unix_s: f64,
    /// Each worker's counters; `None` if no data plane is attached.
    pub workers: Option<Vec<WorkerFigures>>,
    /// What the door counts; `None` if no data plane is attached.
    pub door: Option<DoorFigures>,
    /// Sessions in the table, ended ones included.
    pub sessions: Vec<SessionSnapshot>,
    /// The flags and the kill switch.
    pub flags: FlagsView,
    /// How often the kill switch was thrown and released since this process began.
    pub switch_changes: (u64, u64),
    /// Changes of modes, and peers by mode.
    pub modes: Figures,
    /// What the control plane counts.
    pub tally: Tally,
}

impl Picture {
    /// Looks at everything.
    #[must_use]
    pub fn take(host: &Host, flags: &Flags, modes: &Modes, tally: &Tally) -> Self {
        let workers = host.workers().ok();
        let door = host.door().ok();
        let sessions = host.sessions().unwrap_or_default();
        tally.observe_sessions(&sessions);
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            taken_ns: monotonic_ns(),
            taken_unix_s: since_epoch.as_secs_f64(),
            workers,
            door,
            sessions,
            flags: flags.view(),
            switch_changes: flags.switch_changes(),
            modes: modes.figures(),
            tally: tally.clone(),
        }
    }

    /// One counter over all workers; `None` if no data plane is attached.
    #[must_use]
    pub fn total(&self, name: &str) -> Option<u64> {
        let workers = self.workers.as_ref()?;
        Some(workers.iter().map(|worker| figure(worker, name)).sum())
    }
}

/// One counter of one worker; zero if the data plane does not have it.
#[must_use]
pub fn figure(worker: &WorkerFigures, name: &str) -> u64 {
    worker
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(0, |(_, value)| *value)
}
