//! Group commit: everything asked since the last sync goes to disk with one write and one sync.
//!
//! In: records and who waits for them, in one order. Out: the waiters told, after the sync. Promises:
//! the order on disk is the order asked; nobody is told before; after an error nothing more is
//! written and everyone who waits is told so; the queue is bounded by what the engine lets be open.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

use crate::disk::{Disk, DiskFile};
use crate::journal::{Image, Record, encode};
use crate::plant::{Bug, planted};

/// A file of the log is replaced by a new one when it has grown to this, bytes.
const FILE_BYTES_MAX: usize = 3 << 20;

/// Told when the records are on disk, or that they are not.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Job {
    records: Vec<Record>,
    done: Option<Done>,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    closed: bool,
}

/// Where records are handed in.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    notify: Notify,
    /// Has a permit once the writer is gone.
    gone: Semaphore,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            notify: Notify::new(),
            gone: Semaphore::new(0),
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A push or a take is one step: a holder that died left nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands records in.
    pub(crate) fn push(&self, records: Vec<Record>, done: Option<Done>) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            if let Some(done) = done {
                done(Err(io::Error::other("the log is closed")));
            }
            return;
        }
        waiting.jobs.push(Job { records, done });
        drop(waiting);
        self.arrived.notify_one();
        self.notify.notify_one();
    }

    /// Ends the writer once it has written what was handed in, and returns when it is gone.
    pub(crate) async fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
        self.notify.notify_one();
        let _ = self.gone.acquire().await;
    }
}

/// Writes what a [`Queue`] holds.
pub struct Writer<D: Disk> {
    queue: Arc<Queue>,
    disk: D,
    image: Image,
    prefix: String,
    file: D::File,
    file_number: u64,
    batch: u64,
    written: usize,
    /// Written and not settled: who waits, and how many bytes it was.
    open: Option<(Vec<Job>, io::Result<usize>)>,
}

impl<D: Disk> Writer<D> {
    /// Begins a file that holds the whole image, then removes the ones before it.
    pub(crate) fn begin(
        disk: &D,
        prefix: &str,
        file_number: u64,
        image: Image,
    ) -> io::Result<(Self, Arc<Queue>)> {
        let file = begin_file(disk, prefix, file_number, &image)?;
        let queue = Arc::new(Queue::default());
        let writer = Self {
            queue: queue.clone(),
            disk: disk.clone(),
            image,
            prefix: prefix.to_owned(),
            file,
            file_number,
            batch: 1,
            written: 0,
            open: None,
        };
        Ok((writer, queue))
    }

    /// Blocks until there is something to do; false when there never will be.
    pub fn wait(&self) -> bool {
        let mut waiting = self.queue.lock();
        while waiting.jobs.is_empty() && !waiting.closed {
            waiting = self
                .queue
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !waiting.jobs.is_empty()
    }

    /// Like [`Self::wait`], without a thread.
    pub async fn wait_async(&mut self) -> bool {
        loop {
            {
                let waiting = self.queue.lock();
                if !waiting.jobs.is_empty() {
                    return true;
                }
                if waiting.closed {
                    return false;
                }
            }
            self.queue.notify.notified().await;
        }
    }

    /// Writes and syncs what waits; false after an error, when it must not be called again.
    pub fn turn(&mut self) -> bool {
        self.write();
        self.settle()
    }

    /// The first half of a turn: what waits is written, and not yet on disk.
    pub(crate) fn write(&mut self) {
        let jobs = std::mem::take(&mut self.queue.lock().jobs);
        let records = jobs.iter().flat_map(|job| &job.records);
        let written = encode(self.batch, records)
            .map_err(io::Error::from)
            .and_then(|bytes| self.file.append(&bytes).map(|()| bytes.len()));
        self.open = Some((jobs, written));
    }

    /// The second half: synced, and everyone told.
    pub(crate) fn settle(&mut self) -> bool {
        let Some((jobs, written)) = self.open.take() else {
            return true;
        };
        let settled = written.and_then(|bytes| self.sync(&jobs, bytes));
        let failed = settled
            .as_ref()
            .err()
            .map(|error| (error.kind(), error.to_string()));
        for done in jobs.into_iter().filter_map(|job| job.done) {
            done(match &failed {
                None => Ok(()),
                Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            });
        }
        if failed.is_none() {
            return true;
        }
        // Whoever pushed meanwhile waits for nothing else.
        let left = {
            let mut waiting = self.queue.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.jobs)
        };
        for done in left.into_iter().filter_map(|job| job.done) {
            done(Err(io::Error::other("the log failed before")));
        }
        false
    }

    fn sync(&mut self, jobs: &[Job], bytes: usize) -> io::Result<()> {
        if !planted(Bug::FsyncSkipped) {
            self.file.sync()?;
        }
        self.batch += 1;
        self.written += bytes;
        let records = jobs.iter().flat_map(|job| &job.records);
        records.for_each(|record| self.image.take(record));
        if self.written >= FILE_BYTES_MAX || self.disk_wants_new_file() {
            let next = self.file_number + 1;
            self.file = begin_file(&self.disk, &self.prefix, next, &self.image)?;
            self.file_number = next;
            self.batch = 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Tests replace files often, so that replacing is tested.
    fn disk_wants_new_file(&self) -> bool {
        cfg!(test) && self.batch > 40
    }
}

impl<D: Disk> Drop for Writer<D> {
    fn drop(&mut self) {
        self.queue.gone.add_permits(1);
    }
}

fn begin_file<D: Disk>(disk: &D, prefix: &str, number: u64, image: &Image) -> io::Result<D::File> {
    let name = file_name(prefix, number);
    if disk.list()?.contains(&name) {
        disk.remove(&name)?;
    }
    let mut file = disk.create(&name)?;
    file.append(&encode(0, &image.records())?)?;
    file.sync()?;
    for (old, other) in files(disk, prefix)? {
        if old != number {
            disk.remove(&other)?;
        }
    }
    Ok(file)
}

fn file_name(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:016x}.log")
}

/// The files of a log, the newest first.
pub(crate) fn files<D: Disk>(disk: &D, prefix: &str) -> io::Result<Vec<(u64, String)>> {
    let mut found: Vec<(u64, String)> = disk
        .list()?
        .into_iter()
        .filter_map(|name| {
            let middle = name.strip_prefix(prefix)?.strip_suffix(".log")?;
            let number = u64::from_str_radix(middle, 16).ok()?;
            Some((number, name))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}
