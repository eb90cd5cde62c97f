//! What only the control plane counts: failures by version and reason, downtimes and durations.
//!
//! In: the session table as it changes, and the views of migrations that ended. Out: totals since this
//! process began. Promise: a session that failed is counted once, however often it is seen; memory is
//! bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, SessionId, SessionState, Version};
use prometheus_client::metrics::histogram::Histogram;

use crate::jobs::MigrationView;
use crate::jobs::view::MigrationState;

/// Ended migrations remembered, so that none is measured twice.
const ENDED_MAX: usize = 1_024;

/// Buckets of the downtime, seconds: around the goals of 50, 100, 300 and 500 ms.
const DOWNTIME_S: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 30.0,
];
/// Buckets of a whole migration, seconds.
const DURATION_S: [f64; 12] = [
    0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0, 90.0, 180.0, 600.0, 1_800.0, 7_200.0,
];

/// The totals; a clone is the same set.
#[derive(Clone, Debug)]
pub struct Tally {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    counts: Mutex<Counts>,
    downtime: [Histogram; 2],
    duration: [Histogram; 2],
}

#[derive(Debug, Default)]
struct Counts {
    /// By version code and failure code.
    failures: BTreeMap<(u32, u32), u64>,
    /// Failed sessions that are still in the table and were counted.
    counted: BTreeSet<SessionId>,
    ended: VecDeque<String>,
}

impl Default for Tally {
    fn default() -> Self {
        let histograms = |buckets: [f64; 12]| [Histogram::new(buckets), Histogram::new(buckets)];
        Self {
            inner: Arc::new(Inner {
                counts: Mutex::default(),
                downtime: histograms(DOWNTIME_S),
                duration: histograms(DURATION_S),
            }),
        }
    }
}

const fn place(version: Version) -> usize {
    match version {
        Version::V1 => 0,
        Version::V3 => 1,
    }
}

/// Is this an error of the product, and not somebody's decision?
#[must_use]
pub const fn is_error(failure: Failure) -> bool {
    !matches!(failure, Failure::None | Failure::Cancelled)
}

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.inner
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the sessions that have failed since the last look.
    pub fn observe_sessions(&self, sessions: &[SessionSnapshot]) {
        let mut counts = self.counts();
        counts
            .counted
            .retain(|id| sessions.iter().any(|session| session.id == *id));
        for session in sessions {
            let failure = session.failure();
            if session.state() != Some(SessionState::Failed) || !is_error(failure) {
                continue;
            }
            if !counts.counted.insert(session.id) {
                continue;
            }
            let negotiated = u32::try_from(session.negotiated_version).ok();
            // A session that failed before any batch counts against v3: what is new is suspect first.
            let version = session
                .batch_version()
                .or_else(|| Version::from_code(negotiated?))
                .unwrap_or(Version::V3);
            *counts
                .failures
                .entry((version.code(), failure.code()))
                .or_default() += 1;
        }
    }

    /// Measures a migration that has completed.
    pub fn observe_migration(&self, view: &MigrationView) {
        if view.state != MigrationState::Completed {
            return;
        }
        {
            let mut counts = self.counts();
            if counts.ended.contains(&view.id) {
                return;
            }
            if counts.ended.len() == ENDED_MAX {
                counts.ended.pop_front();
            }
            counts.ended.push_back(view.id.clone());
        }
        let v1 = view.version.as_deref() == Some(Version::V1.as_str());
        let place = place(if v1 { Version::V1 } else { Version::V3 });
        if let Some(downtime_ms) = view.downtime_ms {
            self.inner.downtime[place].observe(downtime_ms as f64 / 1_000.0);
        }
        self.inner.duration[place].observe(view.total_ms as f64 / 1_000.0);
    }

    /// Sessions of a version that failed for a reason.
    #[must_use]
    pub fn failures(&self, version: Version, failure: Failure) -> u64 {
        self.counts()
            .failures
            .get(&(version.code(), failure.code()))
            .copied()
            .unwrap_or(0)
    }

    /// Downtimes of completed migrations, seconds.
    #[must_use]
    pub fn downtime(&self, version: Version) -> &Histogram {
        &self.inner.downtime[place(version)]
    }

    /// Durations of completed migrations, seconds.
    #[must_use]
    pub fn duration(&self, version: Version) -> &Histogram {
        &self.inner.duration[place(version)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(id: u8, failure: Failure, batch_version: u64) -> SessionSnapshot {
        SessionSnapshot {
            id: SessionId([id; 16]),
            state: u64::from(SessionState::Failed.code()),
            failure: u64::from(failure.code()),
            batch_version,
            ..SessionSnapshot::FREE
        }
    }

    #[test]
    fn a_failed_session_counts_once_while_it_is_in_the_table() {
        let tally = Tally::default();
        let table = [
            failed(1, Failure::PeerLost, 3),
            failed(2, Failure::Corrupted, 1),
        ];
        for _ in 0..3 {
            tally.observe_sessions(&table);
        }
        assert_eq!(tally.failures(Version::V3, Failure::PeerLost), 1);
        assert_eq!(tally.failures(Version::V1, Failure::Corrupted), 1);
        assert_eq!(tally.failures(Version::V1, Failure::PeerLost), 0);
        tally.observe_sessions(&[]);
        tally.observe_sessions(&[failed(3, Failure::PeerLost, 0)]);
        assert_eq!(tally.failures(Version::V3, Failure::PeerLost), 2);
    }

    #[test]
    fn a_cancelled_or_running_session_is_no_error() {
        let tally = Tally::default();
        let mut running = failed(1, Failure::PeerLost, 3);
        running.state = u64::from(SessionState::Reconnecting.code());
        tally.observe_sessions(&[failed(2, Failure::Cancelled, 3), running]);
        for failure in Failure::ALL {
            assert_eq!(tally.failures(Version::V3, *failure), 0);
        }
    }
}
