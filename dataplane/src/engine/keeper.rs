//! Threads that read and write baselines, so that no worker waits for a disk.
//!
//! In: tenants whose baselines a session wants; page histories of migrations that went well; blocks that came
//! over the wire where one on disk was damaged. Out: baselines, to the worker that asked. Promises: asking
//! takes no lock that is held over a disk's time; sessions of one tenant share what is loaded; one page history
//! at most waits to be written beside the one at work, and what finds no place is let go.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use dwcp_api::SessionId;
use dwcp_baseline::{Baseline, Block, Blocks, Kind, Store, StoreError, Tenant};

use super::budget::Reservation;
use super::mailbox::Sender;
use super::messages::ToWorker;
use crate::codec::{PageStore, SlotId};
use crate::config::BaselineConfig;
use crate::transport::wire::baseline::MAX_OFFERS;

/// Requests that may wait.
const WAITING_MAX: usize = 64;
/// Memory for the baselines of one session.
const MEMORY_BYTES_MAX: usize = 64 << 20;

/// A session wants the baselines of its tenant.
struct Load {
    session: SessionId,
    tenant: Tenant,
    to: Sender<ToWorker>,
}

/// What is to be written.
enum Keep {
    Pages {
        tenant: Tenant,
        name: String,
        pages: Box<PageStore>,
        /// What the pages take, given back with them.
        memory: Option<Reservation>,
    },
    Block {
        of: Arc<Baseline>,
        number: u32,
        block: Box<Block>,
    },
    Used(Vec<Arc<Baseline>>),
}

/// The way to the threads; see the module.
#[derive(Clone)]
pub struct Keeper {
    loads: SyncSender<Load>,
    keeps: SyncSender<Keep>,
    keeps_migrations: bool,
    /// A page history waits.
    waiting: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
}

impl Keeper {
    /// Opens the store and starts the threads.
    ///
    /// # Errors
    /// What the store or the system said.
    pub fn start(config: &BaselineConfig) -> anyhow::Result<(Self, Vec<JoinHandle<()>>)> {
        let store = Store::open(Path::new(&config.dir), config.limits())?;
        let (loads, to_load) = sync_channel(WAITING_MAX);
        let (keeps, to_keep) = sync_channel(WAITING_MAX);
        let keeper = Self {
            loads,
            keeps,
            keeps_migrations: config.keep_migrations > 0,
            waiting: Arc::default(),
            stopping: Arc::default(),
        };
        let reading = store.clone();
        let loader = std::thread::Builder::new()
            .name("baseline-load".to_owned())
            .spawn(move || load(&reading, &to_load))?;
        let (waiting, stopping) = (Arc::clone(&keeper.waiting), Arc::clone(&keeper.stopping));
        let writer = std::thread::Builder::new()
            .name("baseline-keep".to_owned())
            .spawn(move || keep(&store, &to_keep, &waiting, &stopping))?;
        Ok((keeper, vec![loader, writer]))
    }

    /// Asks for the baselines of a tenant; they come as [`ToWorker::Baselines`].
    pub fn load(&self, session: SessionId, tenant: Tenant, to: Sender<ToWorker>) {
        let load = Load {
            session,
            tenant,
            to,
        };
        if self.loads.try_send(load).is_err() {
            tracing::warn!(%session, "too many sessions wait for baselines: this one goes without");
        }
    }

    /// Has the pages of a migration kept, if any are; with them comes the memory that is reserved for them.
    pub fn keep(
        &self,
        tenant: Tenant,
        name: String,
        (pages, memory): (PageStore, Option<Reservation>),
    ) {
        if !self.keeps_migrations || pages.used() == 0 {
            return;
        }
        // Relaxed: a count of one, that orders nothing.
        if self.waiting.swap(true, Ordering::Relaxed) {
            tracing::info!(%tenant, "another migration is being kept: this one is not");
            return;
        }
        let pages = Box::new(pages);
        let kept = Keep::Pages {
            tenant,
            name,
            pages,
            memory,
        };
        if self.keeps.try_send(kept).is_err() {
            self.waiting.store(false, Ordering::Relaxed);
        }
    }

    /// Has a damaged block put right; `block` is the page that came instead.
    pub fn repair(&self, of: Arc<Baseline>, number: u32, block: &Block) {
        let block = Box::new(*block);
        let _ = self.keeps.try_send(Keep::Block { of, number, block });
    }

    /// Notes that these are of use, and has them read ahead.
    pub fn used(&self, list: Vec<Arc<Baseline>>) {
        let _ = self.keeps.try_send(Keep::Used(list));
    }

    /// Waits for no other writer any more; the threads end when they are done and nobody can ask them.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn load(store: &Store, requests: &Receiver<Load>) {
    let mut known: Vec<Weak<Baseline>> = Vec::new();
    while let Ok(Load {
        session,
        tenant,
        to,
    }) = requests.recv()
    {
        known.retain(|one| one.strong_count() > 0);
        let shared = |id| {
            let mut alive = known.iter().filter_map(Weak::upgrade);
            alive.find(|one| one.id() == id && *one.tenant() == tenant)
        };
        let list = match store.load(&tenant, MAX_OFFERS, MEMORY_BYTES_MAX, shared) {
            Ok(list) => list,
            Err(error) => {
                tracing::warn!(%tenant, %error, "no baselines");
                Vec::new()
            }
        };
        for one in &list {
            if !known.iter().any(|known| known.ptr_eq(&Arc::downgrade(one))) {
                known.push(Arc::downgrade(one));
            }
        }
        if to.send(ToWorker::Baselines(session, list)).is_err() {
            tracing::warn!(%session, "a worker takes no baselines");
        }
    }
}

fn keep(store: &Store, requests: &Receiver<Keep>, waiting: &AtomicBool, stopping: &AtomicBool) {
    while let Ok(request) = requests.recv() {
        match request {
            Keep::Pages {
                tenant,
                name,
                pages,
                memory,
            } => {
                waiting.store(false, Ordering::Relaxed);
                let mut pages = Pages::new(pages);
                let named = (Kind::Migration, name.as_str());
                let mut add = || store.add(&tenant, named, &mut pages, &mut |_| true);
                let mut kept = add();
                // While an image is being added this waits, with nothing taken out of the pages yet.
                while matches!(kept, Err(StoreError::Busy { .. }))
                    && !stopping.load(Ordering::Relaxed)
                {
                    kept = add();
                }
                match kept {
                    Ok(kept) => {
                        tracing::info!(%tenant, id = %kept.id, blocks = kept.blocks, "a migration is kept");
                    }
                    Err(StoreError::Empty) => {}
                    Err(error) => tracing::warn!(%tenant, %error, "a migration is not kept"),
                }
                drop((pages, memory));
            }
            Keep::Block { of, number, block } => {
                let (tenant, id) = (of.tenant(), of.id());
                match store.repair(tenant, id, number, &block) {
                    Ok(right) => tracing::info!(%tenant, %id, number, right, "a damaged block"),
                    Err(error) => tracing::warn!(%tenant, %error, "a damaged block stays"),
                }
            }
            Keep::Used(list) => {
                for one in list {
                    one.read_ahead();
                    store.note_used(one.tenant(), one.id());
                }
            }
        }
    }
}

/// The pages of a history in the order of their slots, which both ends share.
pub struct Pages {
    pages: Box<PageStore>,
    next: u32,
}

impl Pages {
    /// From the first slot on.
    #[must_use]
    pub const fn new(pages: Box<PageStore>) -> Self {
        Self { pages, next: 0 }
    }
}

impl Blocks for Pages {
    fn next(&mut self, into: &mut Block) -> Result<bool, StoreError> {
        let Some(page) = self.pages.page(SlotId(self.next)) else {
            return Ok(false);
        };
        *into = *page;
        self.next += 1;
        Ok(true)
    }

    fn position(&self) -> u64 {
        u64::from(self.next) * dwcp_baseline::BLOCK_BYTES as u64
    }
}
