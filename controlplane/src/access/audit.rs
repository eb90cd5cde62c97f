//! Every change that somebody asked for, and what came of it: the last [`ENTRIES_MAX`].
//!
//! In: a request that is over. Out: a row on disk. Promises: no secret of a request is kept; the log is bounded, the
//! oldest entry gives its place to the newest; numbers grow without a gap, over restarts too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::scope::Scope;
use crate::store::{Store, StoreError};

/// Entries kept.
pub const ENTRIES_MAX: u64 = 10_000;
/// Longest request that is kept whole.
pub const REQUEST_BYTES_MAX: usize = 2_048;

const TABLE: &str = "audit";

/// One change, or an attempt at one that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Entry {
    /// Counts the entries of this node.
    pub number: u64,
    /// When it was over, Unix milliseconds.
    pub at_unix_ms: u64,
    /// The client's address, and the name it gave for itself, which nothing vouches for.
    pub by: String,
    /// Id of the token it bore.
    pub token: String,
    /// Name of that token.
    pub token_name: String,
    /// What the token allows.
    pub scope: Scope,
    /// What was asked.
    pub method: String,
    /// Of which route.
    pub path: String,
    /// With which words; secrets are left out, and so is what is longer than 2048 bytes.
    #[schema(value_type = Value)]
    pub request: Option<Value>,
    /// What came of it, an HTTP status.
    pub status: u16,
}

/// The log; a clone is the same.
#[derive(Clone)]
pub struct Audit {
    store: Store,
    next: Arc<AtomicU64>,
    writing: Arc<Mutex<()>>,
}

impl Audit {
    /// The log in this store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: Store) -> Result<Self, StoreError> {
        let rows = store.list_json::<Entry>(TABLE)?;
        let last = rows.iter().map(|(_, entry)| entry.number).max();
        Ok(Self {
            store,
            next: Arc::new(AtomicU64::new(last.map_or(0, |last| last + 1))),
            writing: Arc::default(),
        })
    }

    /// Writes an entry; its number is given here. Blocks for an fsync.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record(&self, mut entry: Entry) -> Result<(), StoreError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        entry.number = self.next.load(Ordering::Relaxed);
        let row = format!("{:05}", entry.number % ENTRIES_MAX);
        self.store.put_json(TABLE, &row, &entry)?;
        self.next.store(entry.number + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Every entry, the newest first. Blocks for a read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let rows = self.store.list_json::<Entry>(TABLE)?;
        let mut entries: Vec<Entry> = rows.into_iter().map(|(_, entry)| entry).collect();
        entries.sort_by_key(|entry| core::cmp::Reverse(entry.number));
        Ok(entries)
    }
}

/// What is kept of a request's body.
#[must_use]
pub fn words(body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    if body.len() > REQUEST_BYTES_MAX {
        return Some(format!("{} bytes", body.len()).into());
    }
    let mut value: Value = serde_json::from_slice(body).ok()?;
    hide(&mut value);
    Some(value)
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let key = key.to_ascii_lowercase();
                if ["token", "secret", "password"]
                    .iter()
                    .any(|word| key.contains(word))
                {
                    *value = "hidden".into();
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: u16) -> Entry {
        Entry {
            number: 0,
            at_unix_ms: 1,
            by: "10.0.0.1".into(),
            token: "file".into(),
            token_name: "token_file".into(),
            scope: Scope::Admin,
            method: "POST".into(),
            path: "/v1/link".into(),
            request: words(br#"{"a":1}"#),
            status,
        }
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        {
            let audit = Audit::open(Store::open(&path).unwrap()).unwrap();
            audit.record(entry(200)).unwrap();
            audit.record(entry(403)).unwrap();
            audit.next.store(ENTRIES_MAX, Ordering::Relaxed);
            audit.record(entry(201)).unwrap();
        }
        let audit = Audit::open(Store::open(&path).unwrap()).unwrap();
        audit.record(entry(202)).unwrap();
        let seen: Vec<(u64, u16)> = audit
            .list()
            .unwrap()
            .iter()
            .map(|e| (e.number, e.status))
            .collect();
        assert_eq!(seen, [(ENTRIES_MAX + 1, 202), (ENTRIES_MAX, 201)]);
    }

    #[test]
    fn secrets_and_long_words_are_left_out() {
        let kept =
            words(br#"{"destination":{"Token":"s3cret","api":"x"},"l":[{"password":1}]}"#).unwrap();
        assert_eq!(kept["destination"]["api"], "x");
        assert!(!kept.to_string().contains("s3cret"));
        assert_eq!(kept["l"][0]["password"], "hidden");
        assert_eq!(words(&[b' '; 3000]).unwrap(), "3000 bytes");
        assert_eq!(words(b""), None);
        assert_eq!(words(b"{"), None);
    }
}
