//! What a member knows besides the log, in redb: the chain of epochs, and the snapshot of the present one.
//!
//! In: a state and what it contains. Out: the same after a crash. Promise: each write is one
//! transaction, on disk when it returns; an epoch's snapshot goes with the row that opens the next.

use std::io;
use std::sync::Arc;

use redb::{Database, Durability, Error, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::command::EpochDesc;
use crate::conf::{Epoch, SnapshotMeta};
use crate::database::Reopening;
use crate::disk::{Disk, Work};
use crate::plant::{Bug, planted};
use crate::state::State;

const FILE: &str = "state.redb";
const CACHE_BYTES: usize = 4 << 20;
const CHAIN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("chain");
const GENESIS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("genesis");
const SNAPSHOT: TableDefinition<'_, u64, (&[u8], &[u8])> = TableDefinition::new("snapshot");

/// How an epoch began: enough for a member that was away to begin it too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The epoch.
    pub desc: EpochDesc,
    /// The state it began with, as bytes.
    #[serde(with = "text")]
    pub genesis: Vec<u8>,
}

/// A state's bytes are JSON: as text they stay short inside JSON.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&String::from_utf8_lossy(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(input)?;
        if text.len() > crate::wire::FRAME_BYTES_MAX {
            return Err(de::Error::custom("a state longer than a frame"));
        }
        Ok(text.into_bytes())
    }
}

/// The store; a clone is the same.
#[derive(Clone)]
pub(crate) struct Vault {
    database: Arc<Reopening>,
    /// Does what waits for the disk while others go on.
    aside: Arc<dyn Fn(Work) + Send + Sync>,
    /// Held by what is done aside.
    busy: Arc<tokio::sync::Mutex<()>>,
}

fn garbled(error: &serde_json::Error) -> Error {
    Error::Corrupted(format!("a row does not decode: {error}"))
}

impl Vault {
    /// Opens the store, or begins it.
    pub(crate) fn open(disk: &impl Disk) -> io::Result<Self> {
        let pages = disk.clone();
        let opened = Reopening::new(move || {
            let pages = pages.pages(FILE)?;
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            builder.create_with_backend(pages).map_err(Error::from)
        });
        let disk = disk.clone();
        Ok(Self {
            database: Arc::new(opened.map_err(io::Error::other)?),
            aside: Arc::new(move |work| disk.aside(work)),
            busy: Arc::default(),
        })
    }

    /// The newest epoch this member knows.
    pub(crate) fn newest(&self) -> io::Result<Option<Handover>> {
        let found = self.database.with(|database| {
            let read = database.begin_read()?;
            let chain = match read.open_table(CHAIN) {
                Ok(chain) => chain,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some((epoch, desc)) = chain.last()? else {
                return Ok(None);
            };
            let genesis = read.open_table(GENESIS)?;
            let state = genesis.get(epoch.value())?;
            let state = state.map(|state| state.value().to_vec());
            Ok(Some((desc.value().to_vec(), state)))
        });
        let Some((desc, state)) = found.map_err(io::Error::other)? else {
            return Ok(None);
        };
        Ok(Some(Handover {
            desc: serde_json::from_slice(&desc)?,
            genesis: state.ok_or_else(|| io::Error::other("an epoch without its first state"))?,
        }))
    }

    /// Begins an epoch, and forgets the snapshot and the first state of those before it.
    pub(crate) fn begin(&self, handover: &Handover) -> io::Result<()> {
        let epoch = handover.desc.epoch;
        let desc = serde_json::to_vec(&handover.desc)?;
        let begun = self.database.with(|database| {
            let write = database.begin_write()?;
            {
                let mut chain = write.open_table(CHAIN)?;
                chain.insert(epoch, desc.as_slice())?;
                let mut genesis = write.open_table(GENESIS)?;
                genesis.retain(|old, _| old >= epoch)?;
                genesis.insert(epoch, handover.genesis.as_slice())?;
                let mut snapshot = write.open_table(SNAPSHOT)?;
                snapshot.retain(|old, _| old >= epoch)?;
            }
            Ok(write.commit()?)
        });
        begun.map_err(io::Error::other)
    }

    /// Keeps a snapshot, while the log goes on; gives its bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) async fn keep_aside(&self, meta: SnapshotMeta, state: State) -> io::Result<Vec<u8>> {
        let busy = self.busy.clone().lock_owned().await;
        let (done, told) = tokio::sync::oneshot::channel();
        let vault = self.clone();
        (self.aside)(Box::new(move || {
            let bytes = state.to_bytes().map_err(io::Error::from);
            let kept = bytes.and_then(|bytes| {
                vault.keep(state.epoch, &meta, &bytes)?;
                Ok(bytes)
            });
            drop(busy);
            let _ = done.send(kept);
        }));
        told.await
            .map_err(|_| io::Error::other("a snapshot was not written to its end"))?
    }

    /// Returns when nothing is done aside any more.
    pub(crate) async fn settled(&self) {
        drop(self.busy.lock().await);
    }

    /// Keeps a snapshot of an epoch in place of the one before, unless that one holds more: what is written
    /// aside may be overtaken by what a leader sent, and the log was cut for the newer one.
    pub(crate) fn keep(&self, epoch: Epoch, meta: &SnapshotMeta, state: &[u8]) -> io::Result<()> {
        let last = meta.last_log_id;
        let meta = serde_json::to_vec(meta)?;
        let kept = self.database.with(|database| {
            let mut write = database.begin_write()?;
            if planted(Bug::SnapshotNotSynced) {
                write.set_durability(Durability::None)?;
            }
            {
                let mut table = write.open_table(SNAPSHOT)?;
                let kept = match table.get(epoch)? {
                    Some(row) => {
                        let meta: Result<SnapshotMeta, _> = serde_json::from_slice(row.value().0);
                        meta.map_err(|error| garbled(&error))?.last_log_id
                    }
                    None => None,
                };
                if kept <= last {
                    table.insert(epoch, (meta.as_slice(), state))?;
                }
            }
            Ok(write.commit()?)
        });
        kept.map_err(io::Error::other)
    }

    /// The snapshot of an epoch.
    pub(crate) fn snapshot(&self, epoch: Epoch) -> io::Result<Option<(SnapshotMeta, Vec<u8>)>> {
        let found = self.database.with(|database| {
            let table = match database.begin_read()?.open_table(SNAPSHOT) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let row = table.get(epoch)?;
            Ok(row.map(|row| {
                let (meta, state) = row.value();
                (meta.to_vec(), state.to_vec())
            }))
        });
        let Some((meta, state)) = found.map_err(io::Error::other)? else {
            return Ok(None);
        };
        Ok(Some((serde_json::from_slice(&meta)?, state)))
    }
}
