//! The samples of this node.
//!
//! In: sessions and migrations that ended. Out: this node's account for rollouts. Promises: each piece of work counts
//! once, also across restarts; at most [`SAMPLES_MAX`] are kept, the newest; a sample is on disk before it is told.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, SessionState, Version};
use serde::{Deserialize, Serialize};

use super::sample::{Figures, SAMPLES_MAX, Sample, Side, Work};
use crate::flags::Flags;
use crate::host::{Host, HostStatus};
use crate::jobs::MigrationView;
use crate::jobs::view::MigrationState;
use crate::life::unix_ms;
use crate::store::{Store, StoreError};
use crate::telemetry::tally::is_error;

const TABLE: &str = "rollout_samples";

/// See the module; a clone is the same.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    procfs: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    samples: VecDeque<Sample>,
    next: u64,
}

#[derive(Serialize, Deserialize)]
struct Row {
    number: u64,
    sample: Sample,
}

const fn side(version: Version) -> Side {
    match version {
        Version::V1 => Side::V1,
        Version::V3 => Side::V3,
    }
}

impl Recorder {
    /// Reads what was kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: Store, procfs: &Path) -> Result<Self, StoreError> {
        let mut rows: Vec<Row> = store
            .list_json::<Row>(TABLE)?
            .into_iter()
            .map(|(_, row)| row)
            .collect();
        rows.sort_by_key(|row| row.number);
        let kept = Kept {
            next: rows.last().map_or(0, |row| row.number + 1),
            samples: rows.into_iter().map(|row| row.sample).collect(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                procfs: procfs.to_owned(),
                kept: Mutex::new(kept),
            }),
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each change is whole.
        self.inner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what ended and was not kept. Blocks for the disk if there is any.
    ///
    /// # Errors
    /// [`StoreError`]; then it is tried again with the next look.
    pub fn observe_sessions(&self, sessions: &[SessionSnapshot]) -> Result<(), StoreError> {
        let ended = sessions.iter().filter_map(|session| {
            let state = session.state()?;
            let failure = session.failure();
            let failed = state == SessionState::Failed && is_error(failure);
            if !failed && state != SessionState::Completed {
                return None;
            }
            let negotiated = u32::try_from(session.negotiated_version).ok();
            // One that failed before any batch counts against v3: what is new is suspect first.
            let version = session
                .batch_version()
                .or_else(|| Version::from_code(negotiated?))
                .unwrap_or(Version::V3);
            Some(Sample {
                id: session.id.to_string(),
                at_unix_ms: unix_ms(),
                work: Work::Session,
                version: side(version),
                mode: session.mode().map_or("", |mode| mode.as_str()).to_owned(),
                ok: !failed,
                harm: failed && matches!(failure, Failure::Corrupted | Failure::Protocol),
                bytes: 0,
                wire_bytes: 0,
                total_ms: 0,
                downtime_ms: None,
                memory_bytes: None,
            })
        });
        ended.into_iter().try_for_each(|sample| self.keep(sample))
    }

    /// Keeps a migration that ended, by itself or by a failure after its first batch. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn observe_migration(&self, view: &MigrationView, host: &Host) -> Result<(), StoreError> {
        let ok = view.state == MigrationState::Completed;
        if !ok && view.state != MigrationState::Failed {
            return Ok(());
        }
        let Some(version) = &view.version else {
            return Ok(());
        };
        self.keep(Sample {
            id: view.id.clone(),
            at_unix_ms: view.started_unix_ms.saturating_add(view.total_ms),
            work: Work::Migration,
            version: if version == Version::V1.as_str() {
                Side::V1
            } else {
                Side::V3
            },
            mode: view.mode.clone().unwrap_or_default(),
            ok,
            harm: false,
            bytes: view.bytes.hypervisor,
            wire_bytes: view.bytes.wire,
            total_ms: view.total_ms,
            downtime_ms: view.downtime_ms,
            memory_bytes: self.memory_bytes(host),
        })
    }

    fn keep(&self, sample: Sample) -> Result<(), StoreError> {
        let number = {
            let kept = self.kept();
            let mut all = kept.samples.iter();
            if all.any(|it| it.id == sample.id && it.work == sample.work) {
                return Ok(());
            }
            kept.next
        };
        let key = format!("{:04}", number % SAMPLES_MAX as u64);
        let row = Row { number, sample };
        self.inner.store.put_json(TABLE, &key, &row)?;
        let mut kept = self.kept();
        kept.next = kept.next.max(number + 1);
        kept.samples.push_back(row.sample);
        while kept.samples.len() > SAMPLES_MAX {
            kept.samples.pop_front();
        }
        Ok(())
    }

    /// Resident memory of the data plane.
    fn memory_bytes(&self, host: &Host) -> Option<u64> {
        let HostStatus::Connected { pid, .. } = host.status() else {
            return None;
        };
        let statm = self.inner.procfs.join(format!("{pid}/statm"));
        let text = std::fs::read_to_string(statm).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// This node's account.
    #[must_use]
    pub fn figures(&self, flags: &Flags, host: &Host) -> Figures {
        let view = flags.view();
        let versions: BTreeMap<String, Side> = view
            .flags
            .iter()
            .map(|flag| {
                let v3 = flag.version_here == Version::V3.as_str();
                let side = if v3 { Side::V3 } else { Side::V1 };
                (flag.feature.to_owned(), side)
            })
            .collect();
        let highest = match host.status() {
            HostStatus::Connected { max_version, .. } => Some(max_version),
            HostStatus::Disconnected { .. } => None,
        };
        Figures {
            versions,
            highest,
            forced: view.force_v1,
            samples: self.kept().samples.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_api::SessionId;

    fn ended(id: u8, state: SessionState, failure: Failure, version: u64) -> SessionSnapshot {
        SessionSnapshot {
            id: SessionId([id; 16]),
            state: u64::from(state.code()),
            failure: u64::from(failure.code()),
            batch_version: version,
            ..SessionSnapshot::FREE
        }
    }

    #[test]
    fn work_counts_once_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let table = [
            ended(1, SessionState::Completed, Failure::None, 3),
            ended(2, SessionState::Failed, Failure::Corrupted, 3),
            ended(3, SessionState::Failed, Failure::Cancelled, 3),
            ended(4, SessionState::Failed, Failure::PeerLost, 1),
            ended(5, SessionState::Active, Failure::None, 3),
        ];
        for _ in 0..2 {
            let store = Store::open(&path).unwrap();
            let recorder = Recorder::open(store, Path::new("/proc")).unwrap();
            for _ in 0..2 {
                recorder.observe_sessions(&table).unwrap();
            }
            let kept = recorder.kept();
            let seen: Vec<(Side, bool, bool)> = kept
                .samples
                .iter()
                .map(|it| (it.version, it.ok, it.harm))
                .collect();
            assert_eq!(
                seen,
                [
                    (Side::V3, true, false),
                    (Side::V3, false, true),
                    (Side::V1, false, false)
                ]
            );
        }
    }

    #[test]
    fn the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let store = Store::open(&path).unwrap();
        let recorder = Recorder::open(store.clone(), Path::new("/proc")).unwrap();
        for number in 0..SAMPLES_MAX as u64 + 3 {
            let sample = Sample {
                id: number.to_string(),
                at_unix_ms: number,
                work: Work::Session,
                version: Side::V3,
                mode: String::new(),
                ok: true,
                harm: false,
                bytes: 0,
                wire_bytes: 0,
                total_ms: 0,
                downtime_ms: None,
                memory_bytes: None,
            };
            recorder.keep(sample).unwrap();
        }
        let again = Recorder::open(store, Path::new("/proc")).unwrap();
        for recorder in [recorder, again] {
            let kept = recorder.kept();
            assert_eq!(kept.samples.len(), SAMPLES_MAX);
            assert_eq!(kept.samples[0].at_unix_ms, 3);
        }
    }
}
