//! A request that is sent twice runs once.
//!
//! In: a client's key, a digest of its request, and in the end the answer. Out: run it, or the answer of the first
//! time. Promises: the key is on disk before the request runs and the answer before it is given, so a restart in
//! between runs nothing again; keys are each caller's own; the last [`KEYS_MAX`] are kept, for [`KEPT_S`] at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreError};

/// Keys kept at once.
pub const KEYS_MAX: usize = 1_000;
/// How long one is kept.
pub const KEPT_S: u64 = 86_400;
/// Longest key.
pub const KEY_CHARS_MAX: usize = 128;
/// Longest answer that is kept.
pub const ANSWER_BYTES_MAX: usize = 256 << 10;

const TABLE: &str = "idempotency";

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its content type.
    pub content_type: String,
    /// Its body.
    pub body: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    request: String,
    at_unix_s: u64,
    answer: Option<Answer>,
}

/// What to do with a request that carries a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is new: run it, and say how it ended.
    Run,
    /// It ran: this was the answer.
    Ran(Answer),
    /// The same key came with another request.
    Other,
    /// It is running, or the process ended while it was.
    Unfinished,
    /// Too many requests are running.
    Full,
}

/// All keys; a clone is the same.
#[derive(Clone)]
pub struct Keys {
    store: Store,
    kept: Arc<Mutex<HashMap<String, Kept>>>,
}

impl Keys {
    /// Those that the store has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: Store) -> Result<Self, StoreError> {
        let kept = store.list_json(TABLE)?.into_iter().collect();
        Ok(Self {
            store,
            kept: Arc::new(Mutex::new(kept)),
        })
    }

    /// May this request run? `place` is the caller's id and its key. Blocks for an fsync.
    ///
    /// # Errors
    /// [`StoreError`], and then it must not run.
    pub fn begin(
        &self,
        place: &str,
        request: &str,
        now_unix_s: u64,
    ) -> Result<Verdict, StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |kept: &Kept| kept.at_unix_s.saturating_add(KEPT_S) <= now_unix_s;
        if let Some(found) = kept.get(place).filter(|kept| !old(kept)) {
            return Ok(match (&found.answer, found.request == request) {
                (_, false) => Verdict::Other,
                (Some(answer), true) => Verdict::Ran(answer.clone()),
                (None, true) => Verdict::Unfinished,
            });
        }
        while kept.len() >= KEYS_MAX {
            // The oldest one whose answer is known: what runs must not be forgotten.
            let done = kept
                .iter()
                .filter(|(_, kept)| kept.answer.is_some() || old(kept));
            let oldest = done.min_by_key(|(_, kept)| kept.at_unix_s);
            let Some(oldest) = oldest.map(|(place, _)| place.clone()) else {
                return Ok(Verdict::Full);
            };
            self.store.delete(TABLE, &oldest)?;
            kept.remove(&oldest);
        }
        let new = Kept {
            request: request.to_owned(),
            at_unix_s: now_unix_s,
            answer: None,
        };
        self.store.put_json(TABLE, place, &new)?;
        kept.insert(place.to_owned(), new);
        Ok(Verdict::Run)
    }

    /// The request ended with this answer; without one it may be sent again. Blocks for an fsync.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end(&self, place: &str, answer: Option<Answer>) -> Result<(), StoreError> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some(answer) => {
                let Some(kept) = all.get_mut(place) else {
                    return Ok(());
                };
                kept.answer = Some(answer);
                self.store.put_json(TABLE, place, &*kept)
            }
            None => {
                all.remove(place);
                self.store.delete(TABLE, place).map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        Answer {
            status: 201,
            content_type: "application/json".into(),
            body: "{}".into(),
        }
    }

    #[test]
    fn a_key_runs_once_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        {
            let keys = Keys::open(Store::open(&path).unwrap()).unwrap();
            assert_eq!(keys.begin("a/1", "r", 0).unwrap(), Verdict::Run);
            assert_eq!(keys.begin("a/1", "r", 0).unwrap(), Verdict::Unfinished);
            assert_eq!(
                keys.begin("b/1", "r", 0).unwrap(),
                Verdict::Run,
                "each caller has its own"
            );
            keys.end("a/1", Some(answer())).unwrap();
        }
        let keys = Keys::open(Store::open(&path).unwrap()).unwrap();
        assert_eq!(keys.begin("a/1", "r", 1).unwrap(), Verdict::Ran(answer()));
        assert_eq!(keys.begin("a/1", "other", 1).unwrap(), Verdict::Other);
        assert_eq!(
            keys.begin("b/1", "r", 1).unwrap(),
            Verdict::Unfinished,
            "it may have run"
        );
        assert_eq!(
            keys.begin("a/1", "other", KEPT_S).unwrap(),
            Verdict::Run,
            "a day later"
        );
        keys.end("a/1", None).unwrap();
        assert_eq!(keys.begin("a/1", "r", KEPT_S).unwrap(), Verdict::Run);
    }

    #[test]
    fn the_oldest_that_is_done_gives_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(Store::open(&folder.path().join("s")).unwrap()).unwrap();
        let fill = |n: usize| keys.begin(&format!("a/{n}"), "r", 10).unwrap();
        for n in 0..KEYS_MAX {
            // Without the disk, which is another test's.
            let new = Kept {
                request: "r".into(),
                at_unix_s: n as u64,
                answer: None,
            };
            keys.kept.lock().unwrap().insert(format!("a/{n}"), new);
        }
        assert_eq!(fill(KEYS_MAX), Verdict::Full);
        keys.end("a/7", Some(answer())).unwrap();
        assert_eq!(fill(KEYS_MAX), Verdict::Run);
        assert_eq!(keys.begin("a/8", "r", 10).unwrap(), Verdict::Unfinished);
        assert_eq!(keys.kept.lock().unwrap().len(), KEYS_MAX);
    }
}
