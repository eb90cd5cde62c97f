//! One attached data plane: its mapped segments and the writing side of its command ring. In: checked
//! descriptors. Out: copies of what it counts, references to the words it reads. A link outlives the
//! data plane it belongs to, so that the last figures of its sessions can still be read.

use std::sync::{Arc, Mutex, PoisonError};

use dwcp_api::SessionId;
use dwcp_api::command::CommandRecord;
use dwcp_api::door::{DoorCounters, Refusal};
use dwcp_api::layout::{DOOR_OFFSET, SESSION_STRIDE, SESSIONS_OFFSET, WORKER_STRIDE};
use dwcp_api::session::{SESSIONS_MAX, SessionSnapshot};
use dwcp_api::switches::Switches;
use dwcp_api::worker::WorkerCounters;
use dwcp_hugepages::counters::{Counter, SeqCell};
use dwcp_hugepages::doorbell::Doorbell;
use dwcp_hugepages::ring::Producer;
use dwcp_hugepages::segment::Segment;
use dwcp_hugepages::shared_pod::SharedRef;

use super::error::HostError;

/// What the data plane's door counts.
#[derive(Clone, Debug, Default)]
pub struct DoorFigures {
    /// Handshakes under way with peers that dialled this node.
    pub under_way: u64,
    /// Lanes let in.
    pub admitted: u64,
    /// Connections to peers that are ready to be lanes.
    pub pool_ready: u64,
    /// Peers' connections that are parked here.
    pub pool_parked: u64,
    /// Lanes that came up on a ready connection, and those for which there was none.
    pub pool_lanes: [u64; 2],
    /// Bytes of padding sent.
    pub pool_padding_bytes: u64,
    /// Times that changed certificates came into use.
    pub reloads: u64,
    /// Times that they did not.
    pub reload_failures: u64,
    /// Peers turned away, by reason.
    pub refused: Vec<(&'static str, u64)>,
}

pub(super) struct Link {
    pub(super) instance: u64,
    pub(super) workers: usize,
    pub(super) stats: Arc<Segment>,
    pub(super) switches: SharedRef<Switches>,
    pub(super) commands: Mutex<Commands>,
}

/// The command ring's writing side.
pub(super) struct Commands {
    pub(super) ring: Producer<CommandRecord>,
    pub(super) bell: Doorbell,
}

impl Link {
    /// Hands a record over and wakes the data plane.
    pub(super) fn send(&self, record: &CommandRecord) -> Result<(), HostError> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.ring.push(record).is_err() {
            commands
                .ring
                .check()
                .map_err(|error| HostError::Disconnected(error.to_string()))?;
            // Perhaps it only sleeps.
            commands.bell.ring();
            return Err(HostError::Full);
        }
        commands.bell.ring();
        Ok(())
    }

    /// Wakes the data plane.
    pub(super) fn ring(&self) {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.bell.ring();
    }

    /// Every session in the table.
    pub(super) fn sessions(&self) -> Result<Vec<SessionSnapshot>, HostError> {
        let mut found = Vec::new();
        for slot in 0..SESSIONS_MAX {
            let snapshot = self.slot(slot)?;
            if !snapshot.is_free() {
                found.push(snapshot);
            }
        }
        Ok(found)
    }

    /// One session, if it is in the table.
    pub(super) fn session(&self, id: SessionId) -> Result<Option<SessionSnapshot>, HostError> {
        let mut unreadable = false;
        for slot in 0..SESSIONS_MAX {
            match self.slot(slot) {
                Ok(snapshot) if snapshot.id == id => return Ok(Some(snapshot)),
                Ok(_) => {}
                Err(_) => unreadable = true,
            }
        }
        if unreadable {
            Err(HostError::Unreadable)
        } else {
            Ok(None)
        }
    }

    fn slot(&self, slot: usize) -> Result<SessionSnapshot, HostError> {
        let offset = SESSIONS_OFFSET + slot * SESSION_STRIDE;
        let cell = self
            .stats
            .body()
            .at::<SeqCell<SessionSnapshot>>(offset)
            .map_err(|error| HostError::Disconnected(error.to_string()))?;
        cell.read().map_err(|_| HostError::Unreadable)
    }

    /// Counters of every worker.
    pub(super) fn workers(&self) -> Result<Vec<Vec<(&'static str, u64)>>, HostError> {
        (0..self.workers)
            .map(|worker| {
                let block = self
                    .stats
                    .body()
                    .at::<WorkerCounters>(worker * WORKER_STRIDE)
                    .map_err(|error| HostError::Disconnected(error.to_string()))?;
                Ok(block.read().collect())
            })
            .collect()
    }

    /// What the door counts.
    pub(super) fn door(&self) -> Result<DoorFigures, HostError> {
        let door = self
            .stats
            .body()
            .at::<DoorCounters>(DOOR_OFFSET)
            .map_err(|error| HostError::Disconnected(error.to_string()))?;
        let refused = |refusal: &Refusal| (refusal.as_str(), door.refused(*refusal));
        Ok(DoorFigures {
            under_way: door.under_way.get(),
            admitted: door.admitted_total.get(),
            pool_ready: door.pool_ready.get(),
            pool_parked: door.pool_parked.get(),
            pool_lanes: [&door.pool_hits_total, &door.pool_misses_total].map(Counter::get),
            pool_padding_bytes: door.pool_padding_bytes_total.get(),
            reloads: door.reloads_total.get(),
            reload_failures: door.reload_failures_total.get(),
            refused: Refusal::ALL.iter().map(refused).collect(),
        })
    }
}
