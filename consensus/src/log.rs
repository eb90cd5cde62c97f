//! One epoch's log, as openraft wants it.
//!
//! In: votes, entries, cuts. Out: the same after a crash. Promises: what is appended can be read at
//! once and is acknowledged after the sync; votes and entries reach the disk in one order; there are
//! no holes. Entries live in memory too: how many is bounded by how often a snapshot is taken.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::conf::{Conf, Entry, LogId, Vote};
use crate::disk::Disk;
use crate::journal::{self, Image, Record};
use crate::plant::{Bug, planted};
use crate::writer::{Queue, Writer, files, remove_all};

/// The log; a clone is the same.
#[derive(Clone)]
pub(crate) struct Log {
    kept: Arc<Mutex<Kept>>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Kept {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Log {
    /// Reads a log back, or begins one, and writes it into a new file.
    pub(crate) fn open<D: Disk>(disk: &D, prefix: &str) -> io::Result<Self> {
        let mut image = Image::default();
        let found = files(disk, prefix)?;
        let newest = found.first().map_or(0, |(number, _)| *number);
        for (_, name) in &found {
            let bytes = disk.read(name)?;
            if let Some(read) = journal::replay(name, &bytes).map_err(io::Error::other)? {
                image = read;
                break;
            }
        }
        let entries = image.entries.iter().map(|(at, bytes)| {
            journal::decode_entry(bytes)
                .map(|entry| (*at, entry))
                .map_err(io::Error::other)
        });
        let kept = Kept {
            vote: image.vote,
            committed: image.committed,
            purged: image.purged,
            entries: entries.collect::<io::Result<_>>()?,
        };
        let (writer, queue) = Writer::begin(disk, prefix, newest + 1, image)?;
        disk.drive(writer)?;
        Ok(Self {
            kept: Arc::new(Mutex::new(kept)),
            queue,
        })
    }

    /// Ends it; what was handed in is still written.
    pub(crate) async fn close(&self) {
        self.queue.close().await;
    }

    /// Removes every file of a log that is not needed any more.
    pub(crate) fn forget<D: Disk>(disk: &D, prefix: &str) -> io::Result<()> {
        remove_all(disk, prefix)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each change is whole before anything can panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn written(&self, record: Record) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        self.queue.push(
            vec![record],
            Some(Box::new(move |result| {
                let _ = done.send(result);
            })),
        );
        told.await
            .map_err(|_| io::Error::other("the log is closed"))?
    }

    /// Entries, for whoever compares logs.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> BTreeMap<u64, (LogId, String)> {
        let kept = self.kept();
        let entries = kept.entries.iter();
        entries
            .map(|(at, entry)| (*at, (entry.log_id, entry.payload.to_string())))
            .collect()
    }
}

impl<C: Conf> RaftLogReader<C> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let kept = self.kept();
        Ok(kept
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.kept().vote)
    }
}

impl<C: Conf> RaftLogStorage<C> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let kept = self.kept();
        let last = kept.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState {
            last_purged_log_id: kept.purged,
            last_log_id: last.or(kept.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.kept().vote = Some(*vote);
        if planted(Bug::VoteNotSaved) {
            return Ok(());
        }
        self.written(Record::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(upto) = committed {
            self.kept().committed = Some(upto);
            // Nothing depends on it but how fresh the state is right after a restart.
            self.queue.push(vec![Record::Committed(upto)], None);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.kept().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut kept = self.kept();
            for entry in entries {
                let index = entry.log_id.index;
                records.push(Record::Entry(index, journal::encode_entry(&entry)?));
                kept.entries.insert(index, entry);
            }
        }
        let done = Box::new(move |result| callback.io_completed(result));
        self.queue.push(records, Some(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let last = last.map(|id| id.index);
        {
            let mut kept = self.kept();
            match last {
                Some(last) => drop(kept.entries.split_off(&(last + 1))),
                None => kept.entries.clear(),
            }
        }
        if !planted(Bug::TruncateNotSaved) {
            self.queue.push(vec![Record::Truncate(last)], None);
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut kept = self.kept();
            kept.entries = kept.entries.split_off(&(upto.index + 1));
            kept.purged = Some(upto);
        }
        self.queue.push(vec![Record::Purge(upto)], None);
        Ok(())
    }
}
