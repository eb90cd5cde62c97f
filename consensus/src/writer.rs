//! Group commit: everything asked since the last sync goes to disk with one write and one sync.
//!
//! In: records and who waits for them, in one order. Out: the waiters told, after the sync. Promises:
//! the order on disk is the order asked; nobody is told before; a record that nobody waits for goes with the
//! next one, or after [`LAZY`]: a sync of its own would stand in the way of the next commit; after an error
//! nothing more is written and everyone who waits is told so; the queue is bounded by what the engine lets
//! be open.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use crate::disk::{Disk, DiskFile};
use crate::journal::{Image, Record, encode};
use crate::plant::{Bug, planted};

/// A file of the log gets a successor when it has grown to this, bytes; it grows on until that is ready.
const FILE_BYTES: usize = 3 << 20;
/// Ends of the names of files that are read back, and of those that are not yet.
const NAMED: &str = ".log";
const UNNAMED: &str = ".new";

/// How long a record that nobody waits for may stay in memory.
pub(crate) const LAZY: Duration = Duration::from_millis(100);

/// Told when the records are on disk, or that they are not.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Job {
    records: Vec<Record>,
    done: Option<Done>,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    /// Somebody waits for one of them.
    pressing: bool,
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
        // One that nobody waits for wakes the writer as well: from here on it counts the time.
        waiting.pressing |= done.is_some();
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

/// Tells the queue that the writer is gone, once all that works for it is.
struct Presence(Arc<Queue>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.gone.add_permits(1);
    }
}

/// The file that will follow, while it is written aside.
struct Successor<F> {
    number: u64,
    /// The file, once all that was known when it was begun is on disk.
    file: Arc<Mutex<Option<io::Result<F>>>>,
    /// What came since.
    since: Vec<Record>,
}

/// Writes what a [`Queue`] holds.
///
/// A file that has grown long is followed by one that begins with what is still needed. That one is written
/// aside, under a name that nobody reads back, while commits go on in the old one; then what came meanwhile is
/// added to it, and only then it gets its name.
pub struct Writer<D: Disk> {
    queue: Arc<Queue>,
    presence: Arc<Presence>,
    disk: D,
    image: Image,
    prefix: String,
    file: D::File,
    file_number: u64,
    successor: Option<Successor<D::File>>,
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
        let file = name_file(disk, prefix, file_number, file)?;
        let queue = Arc::new(Queue::default());
        let writer = Self {
            queue: queue.clone(),
            presence: Arc::new(Presence(queue.clone())),
            disk: disk.clone(),
            image,
            prefix: prefix.to_owned(),
            file,
            file_number,
            successor: None,
            batch: 1,
            written: 0,
            open: None,
        };
        Ok((writer, queue))
    }

    /// Blocks until there is something to do; false when there never will be.
    pub fn wait(&self) -> bool {
        let arrived = &self.queue.arrived;
        let idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.closed;
        let waiting = arrived
            .wait_while(self.queue.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let lazy = |waiting: &mut Waiting| !waiting.pressing && !waiting.closed;
        let (waiting, _) = arrived
            .wait_timeout_while(waiting, LAZY, lazy)
            .unwrap_or_else(PoisonError::into_inner);
        !waiting.jobs.is_empty()
    }

    /// Returns when there is something to do, without a thread; false when there never will be.
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

    /// Returns when somebody waits for it; not to be awaited for longer than [`LAZY`].
    pub async fn pressed(&mut self) {
        loop {
            {
                let waiting = self.queue.lock();
                if waiting.pressing || waiting.closed {
                    return;
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
        let jobs = {
            let mut waiting = self.queue.lock();
            waiting.pressing = false;
            std::mem::take(&mut waiting.jobs)
        };
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
        for record in records {
            self.image.take(record);
            if let Some(successor) = &mut self.successor {
                successor.since.push(record.clone());
            }
        }
        if self.successor.is_some() {
            self.succeed()
        } else {
            if self.written >= FILE_BYTES || self.disk_wants_new_file() {
                self.begin_successor();
            }
            Ok(())
        }
    }

    fn begin_successor(&mut self) {
        let number = self.file_number + 1;
        let file = Arc::new(Mutex::new(None));
        let (disk, prefix, image) = (self.disk.clone(), self.prefix.clone(), self.image.clone());
        let (place, presence) = (file.clone(), self.presence.clone());
        self.disk.aside(Box::new(move || {
            let begun = begin_file(&disk, &prefix, number, &image);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
            drop(presence);
        }));
        self.successor = Some(Successor {
            number,
            file,
            since: Vec::new(),
        });
    }

    /// Goes over to the next file if it is ready.
    fn succeed(&mut self) -> io::Result<()> {
        let ready = self.successor.take_if(|successor| {
            let file = successor.file.lock();
            file.unwrap_or_else(PoisonError::into_inner).is_some()
        });
        let Some(successor) = ready else {
            return Ok(());
        };
        let begun = {
            let mut file = successor
                .file
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            file.take()
        };
        let Some(begun) = begun else {
            return Ok(());
        };
        let mut file = begun?;
        let since = encode(1, &successor.since)?;
        let whole = !planted(Bug::CheckpointTooOld);
        if whole {
            file.append(&since)?;
            file.sync()?;
        }
        self.file = name_file(&self.disk, &self.prefix, successor.number, file)?;
        self.file_number = successor.number;
        self.batch = 1 + u64::from(whole);
        self.written = since.len();
        Ok(())
    }

    /// Tests replace files often, so that replacing is tested.
    fn disk_wants_new_file(&self) -> bool {
        cfg!(test) && self.batch > 40
    }
}

/// Writes a file that holds the whole image; nobody reads it back before it is named.
fn begin_file<D: Disk>(disk: &D, prefix: &str, number: u64, image: &Image) -> io::Result<D::File> {
    let name = unnamed(prefix, number);
    if disk.list()?.contains(&name) {
        disk.remove(&name)?;
    }
    let mut file = disk.create(&name)?;
    file.append(&encode(0, &image.records())?)?;
    file.sync()?;
    Ok(file)
}

/// Makes a file the one that is read back, then removes the others.
fn name_file<D: Disk>(disk: &D, prefix: &str, number: u64, file: D::File) -> io::Result<D::File> {
    let name = file_name(prefix, number);
    let file = disk.rename(file, &unnamed(prefix, number), &name)?;
    for other in disk.list()? {
        if is_of(&other, prefix) && other != name {
            disk.remove(&other)?;
        }
    }
    Ok(file)
}

fn unnamed(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:016x}{UNNAMED}")
}

fn file_name(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:016x}{NAMED}")
}

/// Removes every file of a log.
pub(crate) fn remove_all<D: Disk>(disk: &D, prefix: &str) -> io::Result<()> {
    for name in disk.list()? {
        if is_of(&name, prefix) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

fn is_of(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.ends_with(NAMED) || rest.ends_with(UNNAMED))
}

/// The files of a log, the newest first.
pub(crate) fn files<D: Disk>(disk: &D, prefix: &str) -> io::Result<Vec<(u64, String)>> {
    let mut found: Vec<(u64, String)> = disk
        .list()?
        .into_iter()
        .filter_map(|name| {
            let middle = name.strip_prefix(prefix)?.strip_suffix(NAMED)?;
            let number = u64::from_str_radix(middle, 16).ok()?;
            Some((number, name))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}
