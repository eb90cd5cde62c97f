//! Which mode each peer's sessions are in: measured, unless an operator says otherwise.
//!
//! In: the data plane's samples of each path, an operator's overrides. Out: orders to the data plane, views, events.
//! Promises: an override of a peer counts before one of all peers, and that before what was measured; an override is
//! on disk before it is in force; each change is kept with its reason; memory is bounded.
//!
//! | module | what |
//! |---|---|
//! | [`decider`] | one peer's mode, from samples |
//! | [`peers`] | all peers: whose samples are whose, overrides, changes |
//! | [`view`] | what the API says about them |
//! | [`run`] | the task that looks, decides and orders |

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Mode, SessionId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};

pub mod decider;
pub mod peers;
pub mod run;
pub mod view;

use crate::store::{Store, StoreError};
use peers::Peers;
use view::{ChangeView, ModesView, OverrideView, PeerView};

const TABLE: &str = "modes";
/// The row of the override of all peers; a peer's row has its address as its key.
const ALL_ROW: &str = "all";
/// Changes that a slow reader may lag behind.
const CHANGES_KEPT: usize = 256;

/// What an operator said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The mode, in its word.
    #[serde(with = "word")]
    pub mode: Mode,
    /// Who said it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Why an override was refused.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// Too many peers have one.
    #[error("{0} peers have an override already")]
    TooMany(usize),
    /// The disk refused it; nothing was changed.
    #[error("nothing was changed: {0}")]
    Store(#[from] StoreError),
}

/// The modes of this node's peers; a clone is the same set.
#[derive(Clone)]
pub struct Modes {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    peers: Mutex<Peers>,
    /// Orders the changes that go to disk.
    disk: Mutex<()>,
    changes: broadcast::Sender<ChangeView>,
    overridden: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modes {
    /// Reads the overrides of this node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: Store) -> Result<Self, StoreError> {
        let mut peers = Peers::default();
        for (key, kept) in store.list_json::<Override>(TABLE)? {
            match key.parse() {
                Ok(peer) => _ = peers.set(Some(peer), Some(kept)),
                Err(_) if key == ALL_ROW => _ = peers.set(None, Some(kept)),
                Err(_) => tracing::warn!(key, "an override of no peer is left alone"),
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                peers: Mutex::new(peers),
                disk: Mutex::new(()),
                changes: broadcast::channel(CHANGES_KEPT).0,
                overridden: Notify::new(),
            }),
        })
    }

    /// Takes the session table in. Gives the sessions that are not in the mode of their peer, with that mode.
    pub fn observe(&self, sessions: &[SessionSnapshot]) -> Vec<(SessionId, Mode)> {
        let (orders, changes) = {
            let mut peers = lock(&self.inner.peers);
            let changes = peers.observe(sessions, unix_ms());
            (peers.orders(sessions), changes)
        };
        self.tell(changes);
        orders
    }

    /// Sets the mode of one peer, or of all, until it is taken back. Blocks for one fsync.
    ///
    /// # Errors
    /// [`ModeError`]; then nothing was changed.
    pub fn set(&self, peer: Option<IpAddr>, mode: Mode, by: &str) -> Result<(), ModeError> {
        let _ordered = lock(&self.inner.disk);
        let said = Override {
            mode,
            by: by.to_owned(),
            since_unix_ms: unix_ms(),
        };
        lock(&self.inner.peers).check_room(peer)?;
        self.inner.store.put_json(TABLE, &row(peer), &said)?;
        let changes = lock(&self.inner.peers).set(peer, Some(said));
        self.tell(changes);
        self.inner.overridden.notify_one();
        Ok(())
    }

    /// Takes an override back: what was measured decides again. Blocks for one fsync.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was changed.
    pub fn clear(&self, peer: Option<IpAddr>) -> Result<(), StoreError> {
        let _ordered = lock(&self.inner.disk);
        self.inner.store.delete(TABLE, &row(peer))?;
        let changes = lock(&self.inner.peers).set(peer, None);
        self.tell(changes);
        self.inner.overridden.notify_one();
        Ok(())
    }

    /// All peers as the API shows them.
    #[must_use]
    pub fn view(&self, sessions: &[SessionSnapshot]) -> ModesView {
        lock(&self.inner.peers).view(sessions)
    }

    /// One peer as the API shows it; none if nothing is known of it.
    #[must_use]
    pub fn peer(&self, peer: IpAddr, sessions: &[SessionSnapshot]) -> Option<PeerView> {
        lock(&self.inner.peers).peer_view(peer, sessions)
    }

    /// The override of all peers.
    #[must_use]
    pub fn override_of_all(&self) -> Option<OverrideView> {
        lock(&self.inner.peers).override_of_all()
    }

    /// Changes of modes from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ChangeView> {
        self.inner.changes.subscribe()
    }

    /// Changes of modes since this process began, and how many peers there are, by mode.
    #[must_use]
    pub fn figures(&self) -> Figures {
        lock(&self.inner.peers).figures()
    }

    fn tell(&self, changes: Vec<ChangeView>) {
        for change in changes {
            tracing::info!(
                peer = %change.peer, mode = change.mode, by = change.by, reason = change.reason, "mode"
            );
            // Nobody listening is fine.
            let _ = self.inner.changes.send(change);
        }
    }
}

/// What metrics count of modes, in the order of [`Mode::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Changes to a mode, the first one of a peer counted.
    pub changes: [u64; 3],
    /// Peers that are in it.
    pub peers: [u64; 3],
}

fn row(peer: Option<IpAddr>) -> String {
    peer.map_or_else(|| ALL_ROW.to_owned(), |peer| peer.to_string())
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A mode as the word that the API uses.
pub mod word {
    use dwcp_api::Mode;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    /// The mode of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Mode> {
        Mode::ALL.iter().copied().find(|mode| mode.as_str() == word)
    }

    /// Writes the word.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(mode: &Mode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(mode.as_str())
    }

    /// Reads the word.
    ///
    /// # Errors
    /// For a word that is no mode.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        let word = String::deserialize(from)?;
        parse(&word).ok_or_else(|| {
            D::Error::custom("a mode is one of `datacenter`, `internet` and `hybrid`")
        })
    }
}
