//! What must outlive the process: one redb file, JSON rows in named tables.
//!
//! In: a table's name, a key, a value that serialises. Out: the same value, also after a crash.
//! Promise: when a write returns, it is on disk (one fsync'ed transaction each); a second control
//! plane on the same file is refused; the file is readable by its owner alone, since jobs may hold a
//! peer's token.
//!
//! Every call blocks for one disk access. Callers on the async runtime use `spawn_blocking` where an
//! fsync of some milliseconds would be in the way.

use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_consensus::database::Reopening;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest value, as JSON text.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Memory that redb may use as a cache: the rows are few and small.
const CACHE_BYTES: usize = 4 << 20;

/// Handle to the store; a clone is the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Reopening,
    path: PathBuf,
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error(
        "{0} is held by another control plane: stop that one, or give this one its own state_dir"
    )]
    Held(PathBuf),
    /// The file or its folder cannot be used.
    #[error(
        "cannot open {path}: {reason}; check that the folder exists and that this user may write there"
    )]
    Open {
        /// File meant.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A read or a write failed.
    #[error("cannot {action} table {table} of {path}: {reason}; check the disk's space and health")]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// Table meant.
        table: String,
        /// File meant.
        path: PathBuf,
        /// What redb said.
        reason: String,
    },
    /// A row is not what its reader expects.
    #[error(
        "row {key} of table {table} cannot be read ({reason}): it was written by another version; go back to that version or delete the row"
    )]
    Decode {
        /// Table meant.
        table: String,
        /// Key of the row.
        key: String,
        /// What the decoder said.
        reason: String,
    },
    /// A value does not become JSON, or is too long.
    #[error("value of {key} for table {table} cannot be stored: {reason}")]
    Encode {
        /// Table meant.
        table: String,
        /// Key of the row.
        key: String,
        /// Why not.
        reason: String,
    },
}

/// A row ready to be written.
pub struct Row {
    table: String,
    key: String,
    json: Vec<u8>,
}

impl Row {
    /// Turns a value into a row.
    ///
    /// # Errors
    /// [`StoreError::Encode`] if it is no JSON or longer than [`VALUE_BYTES_MAX`].
    pub fn new(table: &str, key: &str, value: &impl Serialize) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::Encode {
            table: table.to_owned(),
            key: key.to_owned(),
            reason,
        };
        let json = serde_json::to_vec(value).map_err(|error| bad(error.to_string()))?;
        if json.len() > VALUE_BYTES_MAX {
            return Err(bad(format!(
                "{} bytes, at most {VALUE_BYTES_MAX} are kept",
                json.len()
            )));
        }
        Ok(Self {
            table: table.to_owned(),
            key: key.to_owned(),
            json,
        })
    }
}

type Rows<'a> = TableDefinition<'a, &'static str, &'static [u8]>;

impl Store {
    /// Opens the file, or creates it with mode 0600.
    ///
    /// # Errors
    /// [`StoreError::Held`] or [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError::Open {
            path: path.to_path_buf(),
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| refused(error.to_string()))?;
        let mode = file
            .metadata()
            .map_err(|error| refused(error.to_string()))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(refused(format!(
                "mode {:o} lets others read it: chmod 600 it",
                mode & 0o777
            )));
        }
        let taken = |error| match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::Held(path.to_path_buf()),
            other => refused(other.to_string()),
        };
        let database = Reopening::new(move || {
            let file = FileBackend::new(file.try_clone()?)?;
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            builder.create_with_backend(file).map_err(redb::Error::from)
        })
        .map_err(taken)?;
        Ok(Self {
            inner: Arc::new(Inner {
                database,
                path: path.to_path_buf(),
            }),
        })
    }

    /// Writes one row; when this returns, it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Encode`] or [`StoreError::Io`].
    pub fn put_json(
        &self,
        table: &str,
        key: &str,
        value: &impl Serialize,
    ) -> Result<(), StoreError> {
        self.put_rows(&[Row::new(table, key, value)?])
    }

    /// Writes rows together: after a crash either all are there or none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put_rows(&self, rows: &[Row]) -> Result<(), StoreError> {
        let first = rows.first().map_or("", |row| row.table.as_str());
        let written = self.inner.database.with(|database| {
            let write = database.begin_write()?;
            for row in rows {
                let mut table = write.open_table(Rows::new(&row.table))?;
                table.insert(row.key.as_str(), row.json.as_slice())?;
            }
            Ok(write.commit()?)
        });
        written.map_err(|error| self.io("write", first, &error))
    }

    /// Reads one row.
    ///
    /// # Errors
    /// [`StoreError::Decode`] or [`StoreError::Io`].
    pub fn get_json<T: DeserializeOwned>(
        &self,
        table: &str,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        let found = self.inner.database.with(|database| {
            let rows = match database.begin_read()?.open_table(Rows::new(table)) {
                Ok(rows) => rows,
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let row = rows.get(key)?;
            Ok(row.map(|json| decode(table, key, json.value())))
        });
        let found = found.map_err(|error| self.io("read", table, &error))?;
        found.transpose()
    }

    /// Reads a whole table, in the order of its keys.
    ///
    /// # Errors
    /// [`StoreError::Decode`] or [`StoreError::Io`].
    pub fn list_json<T: DeserializeOwned>(
        &self,
        table: &str,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let found = self.inner.database.with(|database| {
            let rows = match database.begin_read()?.open_table(Rows::new(table)) {
                Ok(rows) => rows,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut found = Vec::new();
            for row in rows.iter()? {
                let (key, json) = row?;
                let value = decode(table, key.value(), json.value());
                found.push(value.map(|value| (key.value().to_owned(), value)));
            }
            Ok(found)
        });
        let found = found.map_err(|error| self.io("read", table, &error))?;
        found.into_iter().collect()
    }

    /// Deletes one row and says whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn delete(&self, table: &str, key: &str) -> Result<bool, StoreError> {
        let deleted = self.inner.database.with(|database| {
            let write = database.begin_write()?;
            let found = write.open_table(Rows::new(table))?.remove(key)?.is_some();
            write.commit()?;
            Ok(found)
        });
        deleted.map_err(|error| self.io("write", table, &error))
    }

    fn io(&self, action: &'static str, table: &str, error: &redb::Error) -> StoreError {
        StoreError::Io {
            action,
            table: table.to_owned(),
            path: self.inner.path.clone(),
            reason: error.to_string(),
        }
    }
}

fn decode<T: DeserializeOwned>(table: &str, key: &str, json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Decode {
        table: table.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        n: u32,
    }

    #[test]
    fn rows_outlive_the_handle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        {
            let store = Store::open(&path).unwrap();
            store.put_json("jobs", "b", &Note { n: 2 }).unwrap();
            store.put_json("jobs", "a", &Note { n: 1 }).unwrap();
            store.put_json("jobs", "a", &Note { n: 3 }).unwrap();
            assert!(store.delete("jobs", "b").unwrap());
            assert!(!store.delete("jobs", "b").unwrap());
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(
            store.get_json::<Note>("jobs", "a").unwrap(),
            Some(Note { n: 3 })
        );
        assert_eq!(store.get_json::<Note>("jobs", "b").unwrap(), None);
        assert_eq!(store.get_json::<Note>("other", "a").unwrap(), None);
        assert_eq!(
            store.list_json::<Note>("jobs").unwrap(),
            [("a".to_owned(), Note { n: 3 })]
        );
        assert_eq!(store.list_json::<Note>("other").unwrap(), []);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let _first = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Held(_))));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        drop(Store::open(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    }

    #[test]
    fn a_row_of_another_shape_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.redb")).unwrap();
        store.put_json("jobs", "a", &"text").unwrap();
        let error = store.get_json::<Note>("jobs", "a").unwrap_err();
        assert!(error.to_string().contains("row a of table jobs"), "{error}");
        let long = "x".repeat(VALUE_BYTES_MAX);
        assert!(matches!(
            store.put_json("jobs", "b", &long),
            Err(StoreError::Encode { .. })
        ));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        std::fs::write(&path, vec![7u8; 8192]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    }
}
