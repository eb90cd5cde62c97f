//! Is this node fit to move guests?
//!
//! In: a picture, the data plane's status and what the store last said. Out: a judgement with reasons
//! and cures. Promise: "ok" means that a migration could start now.

use serde::Serialize;

use super::picture::{Picture, figure};
use crate::flags::FlagsView;
use crate::host::HostStatus;

/// A worker with sessions that has not turned for so long is stuck. One without any may be parked for
/// ever; one with some turns at least to keep their lanes alive.
pub const STUCK_AFTER_MS: u64 = 10_000;
/// A worker that turned so lately is alive.
const ALIVE_WITHIN_MS: u64 = 1_000;

/// The judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// A migration could start now.
    Ok,
    /// It could, but something is worse than it should be.
    Degraded,
    /// It could not.
    Unavailable,
}

/// What one worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It turned lately.
    Alive,
    /// Parked, and nothing is expected of it.
    Idle,
    /// It has sessions and does not turn.
    Stuck,
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerHealth {
    /// Its number.
    pub worker: usize,
    /// What it does.
    pub state: WorkerState,
    /// Time since its last turn ended.
    pub last_turn_ago_ms: u64,
    /// Sessions it holds.
    pub sessions: u64,
}

/// One session in the data plane's table.
#[derive(Clone, Debug, Serialize)]
pub struct SessionHealth {
    /// Which one.
    pub id: String,
    /// Our end of it.
    pub role: Option<&'static str>,
    /// Where it stands.
    pub state: Option<&'static str>,
    /// Why it failed; `none` if it did not.
    pub failure: &'static str,
    /// The same in words.
    pub detail: String,
    /// Version of its last batch.
    pub version: Option<&'static str>,
    /// Bytes held.
    pub held_bytes: u64,
    /// Lanes that are up.
    pub lanes_up: u64,
}

/// What the store last said to a probe.
#[derive(Clone, Debug, Serialize)]
pub struct StoreHealth {
    /// A row was written and is on disk.
    pub writable: bool,
    /// What it said if not.
    pub detail: Option<String>,
}

/// The door for peers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HandshakeHealth {
    /// Under way now, with peers that dialled this node.
    pub under_way: u64,
    /// Lanes let in since the data plane started.
    pub admitted: u64,
    /// Peers turned away since then, by reason; reasons that never came are left out.
    pub refused: std::collections::BTreeMap<&'static str, u64>,
    /// Connections to peers that are ready to be lanes.
    pub pool_ready: u64,
    /// Connections of peers that wait here until they are wanted.
    pub pool_parked: u64,
    /// Lanes that came up on a connection that was ready.
    pub pool_hits: u64,
    /// Lanes for which there was none.
    pub pool_misses: u64,
    /// Times that changed certificate files came into use.
    pub certificate_reloads: u64,
    /// Times that they could not be used.
    pub certificate_reload_failures: u64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// The judgement.
    pub status: Status,
    /// What is wrong, each with what to do.
    pub problems: Vec<String>,
    /// Release of the control plane.
    pub version: &'static str,
    /// Since when it runs.
    pub uptime_s: u64,
    /// The data plane.
    pub data_plane: HostStatus,
    /// Its workers; empty if none is attached.
    pub workers: Vec<WorkerHealth>,
    /// The door for peers; `null` if no data plane is attached.
    pub handshakes: Option<HandshakeHealth>,
    /// Arenas that had to use ordinary pages.
    pub hugepage_fallbacks: u64,
    /// The store.
    pub store: StoreHealth,
    /// Sessions in the table.
    pub sessions: Vec<SessionHealth>,
    /// The flags and the kill switch.
    pub flags: FlagsView,
}

impl Health {
    /// Judges.
    #[must_use]
    pub fn judge(
        picture: Picture,
        data_plane: HostStatus,
        store: StoreHealth,
        uptime_s: u64,
    ) -> Self {
        let workers: Vec<WorkerHealth> = picture
            .workers
            .iter()
            .flatten()
            .enumerate()
            .map(|(n, w)| worker(n, w, &picture))
            .collect();
        let hugepage_fallbacks = picture.total("hugepage_fallbacks_total").unwrap_or(0);
        let mut status = Status::Ok;
        let mut problems = Vec::new();
        let mut found = |weight: Status, problem: String| {
            status = status.max(weight);
            problems.push(problem);
        };
        if let HostStatus::Disconnected { reason, .. } = &data_plane {
            found(
                Status::Unavailable,
                format!("no data plane is attached: {reason}"),
            );
        }
        for stuck in workers
            .iter()
            .filter(|worker| worker.state == WorkerState::Stuck)
        {
            found(
                Status::Unavailable,
                format!(
                    "worker {} holds {} sessions and has not turned for {} ms: look at the data plane's log and its core",
                    stuck.worker, stuck.sessions, stuck.last_turn_ago_ms
                ),
            );
        }
        if !store.writable {
            let why = store.detail.as_deref().unwrap_or("no answer");
            found(
                Status::Unavailable,
                format!("the store cannot be written: {why}"),
            );
        }
        if hugepage_fallbacks > 0 {
            found(
                Status::Degraded,
                format!(
                    "{hugepage_fallbacks} arenas use ordinary pages: reserve hugepages (vm.nr_hugepages) and restart the data plane between migrations"
                ),
            );
        }
        if picture.flags.force_v1 {
            found(
                Status::Degraded,
                "the kill switch is on, everything goes in v1: `dwcpctl rollback --off` when its cause is gone"
                    .to_owned(),
            );
        }
        let handshakes = picture.door.as_ref().map(|door| HandshakeHealth {
            under_way: door.under_way,
            admitted: door.admitted,
            refused: door
                .refused
                .iter()
                .copied()
                .filter(|(_, count)| *count > 0)
                .collect(),
            pool_ready: door.pool_ready,
            pool_parked: door.pool_parked,
            pool_hits: door.pool_lanes[0],
            pool_misses: door.pool_lanes[1],
            certificate_reloads: door.reloads,
            certificate_reload_failures: door.reload_failures,
        });
        let sessions = picture
            .sessions
            .iter()
            .map(|session| SessionHealth {
                id: session.id.to_string(),
                role: session.role().map(|role| role.as_str()),
                state: session.state().map(|state| state.as_str()),
                failure: session.failure().as_str(),
                detail: session.detail.as_str().to_owned(),
                version: session.batch_version().map(|version| version.as_str()),
                held_bytes: session.held_bytes,
                lanes_up: session.lanes_up,
            })
            .collect();
        Self {
            status,
            problems,
            version: env!("CARGO_PKG_VERSION"),
            uptime_s,
            data_plane,
            workers,
            handshakes,
            hugepage_fallbacks,
            store,
            sessions,
            flags: picture.flags,
        }
    }
}

fn worker(number: usize, figures: &super::picture::WorkerFigures, at: &Picture) -> WorkerHealth {
    let ago_ns = at.taken_ns.saturating_sub(figure(figures, "last_turn_ns"));
    let last_turn_ago_ms = ago_ns / 1_000_000;
    let sessions = figure(figures, "sessions");
    let state = if last_turn_ago_ms <= ALIVE_WITHIN_MS {
        WorkerState::Alive
    } else if sessions > 0 && last_turn_ago_ms > STUCK_AFTER_MS {
        WorkerState::Stuck
    } else {
        WorkerState::Idle
    };
    WorkerHealth {
        worker: number,
        state,
        last_turn_ago_ms,
        sessions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{FlagsView, NodeId};
    use crate::telemetry::tally::Tally;

    fn picture(workers: Option<Vec<Vec<(&'static str, u64)>>>) -> Picture {
        Picture {
            taken_ns: 100_000_000_000,
            taken_unix_s: 0.0,
            workers,
            door: None,
            sessions: Vec::new(),
            flags: FlagsView {
                node: NodeId::new("n").unwrap(),
                force_v1: false,
                force_v1_changed_unix_ms: 0,
                in_force: true,
                flags: Vec::new(),
            },
            switch_changes: (0, 0),
            modes: crate::mode::Figures::default(),
            tally: Tally::default(),
        }
    }

    fn connected() -> HostStatus {
        HostStatus::Connected {
            generation: 1,
            instance: 1,
            pid: 1,
            workers: 1,
            max_version: 3,
            listen: "a:1".to_owned(),
            node: "n".to_owned(),
        }
    }

    fn judge(picture: Picture, writable: bool) -> Health {
        Health::judge(
            picture,
            connected(),
            StoreHealth {
                writable,
                detail: None,
            },
            0,
        )
    }

    #[test]
    fn only_a_worker_with_sessions_can_be_stuck() {
        for (ago_ns, sessions, state, status) in [
            (0, 1, WorkerState::Alive, Status::Ok),
            (5_000_000_000, 1, WorkerState::Idle, Status::Ok),
            (60_000_000_000, 0, WorkerState::Idle, Status::Ok),
            (60_000_000_000, 1, WorkerState::Stuck, Status::Unavailable),
        ] {
            let last = 100_000_000_000 - ago_ns;
            let figures = vec![("last_turn_ns", last), ("sessions", sessions)];
            let health = judge(picture(Some(vec![figures])), true);
            assert_eq!((health.workers[0].state, health.status), (state, status));
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_the_worst_counts() {
        let fallback = vec![
            ("last_turn_ns", 100_000_000_000),
            ("hugepage_fallbacks_total", 2),
        ];
        let health = judge(picture(Some(vec![fallback.clone()])), true);
        assert_eq!(
            (health.status, health.problems.len()),
            (Status::Degraded, 1)
        );
        let health = judge(picture(Some(vec![fallback])), false);
        assert_eq!(
            (health.status, health.problems.len()),
            (Status::Unavailable, 2)
        );
        let gone = HostStatus::Disconnected {
            since_unix_ms: 0,
            reason: "r".to_owned(),
        };
        let store = StoreHealth {
            writable: true,
            detail: None,
        };
        let health = Health::judge(picture(None), gone, store, 0);
        assert_eq!(health.status, Status::Unavailable);
    }
}
