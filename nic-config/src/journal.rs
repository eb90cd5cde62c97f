//! What was done to a NIC, on disk before it is done.
//!
//! In: changes. Out: the same changes, also after a crash. Promises: when [`Journal::intend`] returns,
//! the change and what was there before are on disk; a line that a crash cut off stands for a change
//! that was not begun; one process at a time works with a folder of journals.
//!
//! One file for each NIC, named after its PCI address: a line of JSON for the beginning, one for each
//! change, one for the end. The file is there as long as there is something to take back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::kernel::{Kernel, KernelError};
use crate::pci::PciAddress;
use crate::plan::PlanView;
use crate::tree;

/// Longest journal read. A plan has a dozen changes.
const JOURNAL_BYTES_MAX: u64 = 4 << 20;

/// The journals of this machine.
#[derive(Clone, Debug)]
pub struct Journals {
    folder: PathBuf,
}

/// Who holds it may change NICs.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// How a journal begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// The NIC.
    pub nic: PciAddress,
    /// The plan's id.
    pub plan: String,
    /// The profile's name.
    pub profile: Option<String>,
    /// Seconds since 1970.
    pub unix_s: u64,
    /// The start of the machine that it belongs to: the settings do not outlive it.
    boot: String,
}

/// A line.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Entry {
    Begin(Beginning),
    Intend(Change),
    Complete(u64),
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its beginning.
    pub beginning: Beginning,
    /// The changes, in the order in which they were begun.
    pub changes: Vec<Change>,
    /// All of them were made.
    pub complete: bool,
    /// The machine was restarted since, so nothing of it is left.
    pub stale: bool,
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file or its folder.
    #[error("cannot {action} {path}: {source}; check the space and the permissions there")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File meant.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} line {line} is no entry of a journal ({reason}): it was damaged or written by another release; undo its other lines by hand, then remove it"
    )]
    Damaged {
        /// File meant.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// Somebody else is at it.
    #[error("another process changes NICs with the journals in {0}; try again when it is done")]
    Busy(PathBuf),
    /// The kernel does not tell which start this is.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> JournalError + use<'a> {
    move |source| JournalError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl Journals {
    /// Journals in this folder, which is made if need be.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Keeps all others out until it is dropped, by the end of the process if not before.
    ///
    /// # Errors
    /// [`JournalError::Busy`].
    pub fn lock(&self) -> Result<Lock, JournalError> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Busy(self.folder.clone())),
            Err(errno) => Err(failed("lock", &path)(errno.into())),
        }
    }

    fn path(&self, nic: PciAddress) -> PathBuf {
        self.folder.join(format!("{nic}.journal"))
    }

    /// Begins one.
    ///
    /// # Errors
    /// [`JournalError`]; also if there is one for this NIC.
    pub fn begin(&self, kernel: &dyn Kernel, plan: &PlanView) -> Result<Journal, JournalError> {
        let path = self.path(plan.nic);
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("begin", &path))?;
        let mut journal = Journal { file, path };
        journal.append(&Entry::Begin(Beginning {
            nic: plan.nic,
            plan: plan.id.clone(),
            profile: plan.profile.clone(),
            unix_s: unix_s(),
            boot: boot(kernel)?,
        }))?;
        self.sync()?;
        Ok(journal)
    }

    /// Reads the journal of a NIC; `None` if nothing was begun.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn read(
        &self,
        kernel: &dyn Kernel,
        nic: PciAddress,
    ) -> Result<Option<Record>, JournalError> {
        let path = self.path(nic);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => {
                let read = file.take(JOURNAL_BYTES_MAX).read_to_string(&mut text);
                read.map_err(failed("read", &path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let mut record: Option<Record> = None;
        let boot = boot(kernel)?;
        // What follows the last end of a line was cut off.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (index, line) in whole.lines().enumerate() {
            let damaged = |reason: String| JournalError::Damaged {
                path: path.clone(),
                line: index + 1,
                reason,
            };
            let entry = serde_json::from_str(line).map_err(|error| damaged(error.to_string()))?;
            match (entry, &mut record) {
                (Entry::Begin(beginning), None) if beginning.nic == nic => {
                    record = Some(Record {
                        stale: beginning.boot != boot,
                        beginning,
                        changes: Vec::new(),
                        complete: false,
                    });
                }
                (Entry::Intend(change), Some(record)) => record.changes.push(change),
                (Entry::Complete(_), Some(record)) => record.complete = true,
                _ => return Err(damaged("out of place".to_owned())),
            }
        }
        Ok(record)
    }

    /// Removes the journal of a NIC: there is nothing to take back any more.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn close(&self, nic: PciAddress) -> Result<(), JournalError> {
        let path = self.path(nic);
        match std::fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn sync(&self) -> Result<(), JournalError> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("write", &self.folder))
    }
}

impl Journal {
    /// Writes down that a change is about to be made.
    ///
    /// # Errors
    /// [`JournalError::Io`]; then it must not be made.
    pub fn intend(&mut self, change: &Change) -> Result<(), JournalError> {
        self.append(&Entry::Intend(change.clone()))
    }

    /// Writes down that all changes were made.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn complete(&mut self) -> Result<(), JournalError> {
        self.append(&Entry::Complete(unix_s()))
    }

    fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let mut write = || {
            let mut line = serde_json::to_string(entry)?;
            // What cannot be read back must not be relied on.
            if serde_json::from_str::<Entry>(&line)? != *entry {
                return Err(io::ErrorKind::InvalidData.into());
            }
            line.push('\n');
            self.file.write_all(line.as_bytes())?;
            self.file.sync_all()
        };
        write().map_err(failed("write", &self.path))
    }
}

fn boot(kernel: &dyn Kernel) -> Result<String, KernelError> {
    let path = kernel.proc().join("sys/kernel/random/boot_id");
    tree::text(&path)?.ok_or(KernelError::Read {
        path,
        source: io::ErrorKind::NotFound.into(),
    })
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
