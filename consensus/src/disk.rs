//! The folder that a member keeps its log and its state in.
//!
//! In: bytes. Out: the same bytes, after a crash too, once [`DiskFile::sync`] has returned. Promise: a
//! new file has its name on disk before it is written to. The second implementation is the simulated
//! disk that forgets what was not synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::writer::Writer;

/// Zeros that a file of the log begins with: a sync of bytes inside a file's size is cheaper.
const FILL_BYTES: usize = 4 << 20;

/// Something that waits for the disk.
pub type Work = Box<dyn FnOnce() + Send>;

/// A folder.
pub trait Disk: Clone + Send + Sync + 'static {
    /// A file of the log.
    type File: DiskFile;
    /// Where redb keeps its pages.
    type Pages: StorageBackend;

    /// Names of its files.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A whole file.
    ///
    /// # Errors
    /// What the system says.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Begins a file that is not there; its name is on disk when this returns.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name, which is on disk when this returns.
    ///
    /// # Errors
    /// What the system says; then the file must not be written to any more.
    fn rename(&self, file: Self::File, from: &str, to: &str) -> io::Result<Self::File>;

    /// Has something done that waits for the disk, while the caller goes on.
    fn aside(&self, work: Work);

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Where redb keeps its pages.
    ///
    /// # Errors
    /// What the system says.
    fn pages(&self, name: &str) -> io::Result<Self::Pages>;

    /// Calls [`Writer::turn`] whenever there is something to write, until the writer is closed.
    ///
    /// # Errors
    /// What the system says.
    fn drive(&self, writer: Writer<Self>) -> io::Result<()>;
}

/// A file that grows.
pub trait DiskFile: Send + 'static {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// What the system says; then the file must not be written to any more.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything added is on disk.
    ///
    /// # Errors
    /// What the system says; then the file must not be written to any more.
    fn sync(&mut self) -> io::Result<()>;
}

/// A real folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: Arc<PathBuf>,
}

impl Folder {
    /// Uses a folder, or makes it with mode 0700.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        Ok(Self {
            path: Arc::new(path.to_owned()),
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&*self.path)?.sync_all()
    }
}

impl Disk for Folder {
    type File = Appended;
    type Pages = FileBackend;

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&*self.path)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Appended> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))?;
        file.write_all(&vec![0; FILL_BYTES])?;
        file.sync_all()?;
        self.sync_names()?;
        Ok(Appended { file, at: 0 })
    }

    fn rename(&self, file: Appended, from: &str, to: &str) -> io::Result<Appended> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync_names()?;
        Ok(file)
    }

    fn aside(&self, work: Work) {
        let held = Arc::new(Mutex::new(Some(work)));
        let run = |held: &Mutex<Option<Work>>| {
            let work = held.lock().unwrap_or_else(PoisonError::into_inner).take();
            work.into_iter().for_each(|work| work());
        };
        let taken = held.clone();
        let thread = std::thread::Builder::new().name("dwcp-disk".to_owned());
        if thread.spawn(move || run(&taken)).is_err() {
            // No thread to be had: it is done all the same, and the caller waits.
            run(&held);
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))?;
        self.sync_names()
    }

    fn pages(&self, name: &str) -> io::Result<FileBackend> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(name))?;
        self.sync_names()?;
        FileBackend::new(file).map_err(io::Error::other)
    }

    fn drive(&self, mut writer: Writer<Self>) -> io::Result<()> {
        std::thread::Builder::new()
            .name("dwcp-log".to_owned())
            .spawn(move || while writer.wait() && writer.turn() {})
            .map(|_| ())
    }
}

/// A file of a [`Folder`].
pub struct Appended {
    file: File,
    at: u64,
}

impl DiskFile for Appended {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
