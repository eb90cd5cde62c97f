//! What a data plane shows: the stats and switches segments, and who owns which part of them.
//!
//! In: counters and session pictures from workers. Out: two sealed segments that a control plane maps.
//! Promises: one writer per worker block and per session cell; a cell is given to one session at a time.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use dwcp_api::door::DoorCounters;
use dwcp_api::layout::{
    DOOR_OFFSET, SESSION_STRIDE, SESSIONS_OFFSET, WORKER_STRIDE, stats_layout, switches_layout,
};
use dwcp_api::session::{SESSIONS_MAX, SessionSnapshot};
use dwcp_api::switches::Switches;
use dwcp_api::worker::{WORKERS_MAX, WorkerCounters};
use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::segment::{PeerAccess, Segment, SegmentError};

use super::seats::{Seat, Seats};

/// The two segments that live as long as the data plane.
#[derive(Debug)]
pub struct Board {
    stats: Segment,
    switches: Segment,
    free_cells: ArrayQueue<usize>,
    seats: Arc<Seats>,
}

/// The cell of one session in the table, written by its worker alone.
#[derive(Debug)]
pub struct SessionCell {
    board: Arc<Board>,
    index: usize,
}

impl Board {
    /// Makes both segments; `instance` is random per start.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn new(instance: u64) -> Result<Self, SegmentError> {
        let stats = Segment::create("dwcp-stats", stats_layout(), instance, PeerAccess::ReadOnly)?;
        let switches = Segment::create(
            "dwcp-switches",
            switches_layout(),
            instance,
            PeerAccess::ReadWrite,
        )?;
        let free_cells = ArrayQueue::new(SESSIONS_MAX);
        for index in 0..SESSIONS_MAX {
            // The queue holds exactly as many as there are.
            let _ = free_cells.push(index);
        }
        let board = Self {
            stats,
            switches,
            free_cells,
            seats: Arc::default(),
        };
        // A fresh segment is all zeros, and a zero word already reads as v1: the safe beginning.
        board.switches()?;
        Ok(board)
    }

    /// The stats segment.
    #[must_use]
    pub const fn stats(&self) -> &Segment {
        &self.stats
    }

    /// The switches segment.
    #[must_use]
    pub const fn switches_segment(&self) -> &Segment {
        &self.switches
    }

    /// The words that every batch reads.
    ///
    /// # Errors
    /// [`SegmentError`] if the layout were wrong.
    pub fn switches(&self) -> Result<&Switches, SegmentError> {
        self.switches.body().at::<Switches>(0)
    }

    /// The counters of worker `index`, which alone may write them.
    ///
    /// # Errors
    /// [`SegmentError`] for an index past [`WORKERS_MAX`].
    pub fn worker(&self, index: usize) -> Result<&WorkerCounters, SegmentError> {
        self.stats
            .body()
            .at::<WorkerCounters>(index.min(WORKERS_MAX) * WORKER_STRIDE)
    }

    /// What sessions that share a link tell each other.
    #[must_use]
    pub fn seats(&self) -> &Seats {
        &self.seats
    }

    /// The counters of the door, which alone may write them.
    ///
    /// # Errors
    /// [`SegmentError`] if the layout were wrong.
    pub fn door(&self) -> Result<&DoorCounters, SegmentError> {
        self.stats.body().at::<DoorCounters>(DOOR_OFFSET)
    }

    /// Takes a cell for a session; `None` if all are in use.
    #[must_use]
    pub fn take_cell(self: &Arc<Self>) -> Option<SessionCell> {
        let index = self.free_cells.pop()?;
        Some(SessionCell {
            board: Arc::clone(self),
            index,
        })
    }
}

impl SessionCell {
    fn cell(&self) -> Result<&SeqCell<SessionSnapshot>, SegmentError> {
        let offset = SESSIONS_OFFSET + self.index * SESSION_STRIDE;
        self.board
            .stats
            .body()
            .at::<SeqCell<SessionSnapshot>>(offset)
    }

    /// The seat of the same session, which goes over `link`.
    #[must_use]
    pub fn seat(&self, link: u64) -> Seat {
        self.board.seats.take(self.index, link)
    }

    /// Publishes a picture.
    pub fn publish(&self, snapshot: &SessionSnapshot) {
        if let Ok(cell) = self.cell() {
            cell.write(snapshot);
        }
    }
}

impl Drop for SessionCell {
    fn drop(&mut self) {
        self.publish(&SessionSnapshot::FREE);
        // Taken from this queue, so there is room.
        let _ = self.board.free_cells.push(self.index);
    }
}
