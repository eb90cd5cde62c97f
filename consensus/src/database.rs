//! A redb file that is opened again after its disk failed.
//!
//! In: how to open it; work on it. Out: what the work gave. Promises: redb answers nothing after a failed read or
//! write until it is opened anew, as it would be after a restart; here that is done as soon as there is work, so a
//! disk that was full for a while needs no restart. The work is then done again, so it must be of the kind that may
//! be done twice. As long as the disk fails, each work ends with its error.

use std::sync::{PoisonError, RwLock};

use redb::{Database, Error};

type Open = Box<dyn Fn() -> Result<Database, Error> + Send + Sync>;

/// See the module.
pub struct Reopening {
    open: Open,
    /// None after it could not be opened again.
    database: RwLock<Option<Database>>,
}

/// Does redb refuse everything from here on?
const fn is_fatal(error: &Error) -> bool {
    matches!(error, Error::Io(_) | Error::PreviousIo)
}

impl Reopening {
    /// Opens it.
    ///
    /// # Errors
    /// What `open` says.
    pub fn new(
        open: impl Fn() -> Result<Database, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let database = open()?;
        Ok(Self {
            open: Box::new(open),
            database: RwLock::new(Some(database)),
        })
    }

    /// Does work on it; twice if the disk failed before or under it.
    ///
    /// # Errors
    /// What the work or the opening says.
    pub fn with<T>(&self, work: impl Fn(&Database) -> Result<T, Error>) -> Result<T, Error> {
        {
            // Who panicked in here changed nothing of it.
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = &*database {
                match work(database) {
                    Err(error) if is_fatal(&error) => {}
                    done => return done,
                }
            }
        }
        let mut place = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*place {
            // Another one may have opened it meanwhile.
            match work(database) {
                Err(error) if is_fatal(&error) => {}
                done => return done,
            }
        }
        // The old one first: it holds the file's lock.
        *place = None;
        work(place.insert((self.open)()?))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::backends::FileBackend;
    use redb::{ReadableDatabase, StorageBackend, TableDefinition};

    use super::*;

    const ROWS: TableDefinition<'_, u64, u64> = TableDefinition::new("rows");

    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn room(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.room().and_then(|()| self.file.set_len(len))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room().and_then(|()| self.file.write(offset, data))
        }
    }

    fn put(database: &Reopening, key: u64) -> Result<(), Error> {
        database.with(|database| {
            let write = database.begin_write()?;
            write.open_table(ROWS)?.insert(key, key)?;
            Ok(write.commit()?)
        })
    }

    fn get(database: &Reopening, key: u64) -> Result<Option<u64>, Error> {
        database.with(|database| {
            let rows = database.begin_read()?.open_table(ROWS)?;
            Ok(rows.get(key)?.map(|row| row.value()))
        })
    }

    #[test]
    fn a_disk_that_has_space_again_is_written_to_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.redb");
        let full = Arc::new(AtomicBool::new(false));
        let seen = full.clone();
        let database = Reopening::new(move || {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            let (file, full) = (FileBackend::new(file)?, seen.clone());
            let opened = Database::builder().create_with_backend(Disk { file, full });
            opened.map_err(Error::from)
        });
        let database = database.unwrap();
        put(&database, 1).unwrap();
        full.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            let refused = put(&database, 2).unwrap_err().to_string();
            assert!(!refused.contains("Previous"), "no reason: {refused}");
        }
        full.store(false, Ordering::SeqCst);
        assert_eq!(get(&database, 1).unwrap(), Some(1));
        assert_eq!(get(&database, 2).unwrap(), None);
        put(&database, 3).unwrap();
        assert_eq!(get(&database, 3).unwrap(), Some(3));
    }
}
