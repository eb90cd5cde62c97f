//! The virtual log: epochs, one after the other, each ordered by an engine.
//!
//! In: commands, reads, changes, peers' messages. Out: what became of them. Promises: a command that
//! was answered is on a quorum's disks and stays; it runs once however often it had to be sent; a read
//! sees everything answered before it began, across a change of epoch too; an epoch is followed by the
//! one its first seal names, which begins with exactly the state at the seal.
//!
//! A member that finds a peer in a newer epoch asks it how that one began, and goes there. So the log of
//! a sealed epoch may be forgotten as soon as the next epoch's first state is on this member's disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::JoinHandleOf;
use tokio::sync::Notify;

use crate::command::{Command, EngineKind, EpochDesc, Request};
use crate::conf::{Conf, Epoch, NodeNumber, Peer};
use crate::disk::Disk;
use crate::machine::OnApply;
use crate::network::{ATTEMPT, Caller};
use crate::raft::RaftEngine;
use crate::session::Pool;
use crate::state::State;
use crate::status::Status;
use crate::vault::{Handover, Vault};
use crate::wire::{Answer, Answerer, Boxed, Envelope, Message, Wire};

/// Pause between attempts.
pub(crate) const PAUSE: Duration = Duration::from_millis(40);
/// How often the present engine is looked at when nothing happens.
const LOOK: Duration = Duration::from_millis(500);

/// Called after each change of the state, with the index that changed it; it must not block.
pub type Observer = Arc<dyn Fn(&State, u64) + Send + Sync>;

/// Times and sizes of an engine.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// A leader's sign of life, milliseconds.
    pub heartbeat_ms: u64,
    /// Silence before an election, at least, milliseconds.
    pub election_ms_min: u64,
    /// Silence before an election, at most, milliseconds.
    pub election_ms_max: u64,
    /// Entries between two snapshots.
    pub entries_per_snapshot: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            // Followers believe in a leader for the longest time-out, then wait for one of their own: a leader that
            // is gone has a successor after 1.1 s at most, and after 1.6 s if two asked for votes at once.
            election_ms_min: 300,
            election_ms_max: 500,
            entries_per_snapshot: 2_000,
        }
    }
}

/// Who a member is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number, never used before in this cluster.
    pub id: NodeNumber,
    /// Name of the cluster.
    pub cluster: String,
    /// Its name, and where its peers find it.
    pub me: Peer,
    /// The members at the very beginning; none: it waits until a cluster adds it.
    pub founders: BTreeMap<NodeNumber, Peer>,
}

/// A member; a clone is the same.
pub struct Chain<C: Conf, D: Disk> {
    pub(crate) inner: Arc<Inner<C, D>>,
    keeper: Arc<Mutex<Option<JoinHandleOf<C, ()>>>>,
}

impl<C: Conf, D: Disk> Clone for Chain<C, D> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            keeper: self.keeper.clone(),
        }
    }
}

pub(crate) struct Inner<C: Conf, D: Disk> {
    disk: D,
    vault: Vault,
    pub(crate) caller: Caller,
    tuning: Tuning,
    on_apply: OnApply,
    now: Mutex<Now<C>>,
    /// Told when an epoch began.
    began: Notify,
    stopping: AtomicBool,
    pub(crate) sessions: Pool,
}

struct Now<C: Conf> {
    handover: Option<Handover>,
    engine: Option<Arc<RaftEngine<C>>>,
    failed: Option<String>,
}

impl<C: Conf, D: Disk> Chain<C, D> {
    /// Takes the log up where this member left it, or begins it.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn open(
        identity: Identity,
        disk: D,
        wire: Arc<dyn Wire>,
        tuning: Tuning,
        on_apply: Observer,
    ) -> io::Result<Self> {
        let vault = Vault::open(&disk)?;
        let mut handover = vault.newest()?;
        if handover.is_none() && !identity.founders.is_empty() {
            let first = Handover {
                desc: EpochDesc {
                    epoch: 1,
                    engine: EngineKind::Raft,
                    members: identity.founders,
                },
                genesis: State::new(1).to_bytes()?,
            };
            vault.begin(&first)?;
            handover = Some(first);
        }
        let caller = Caller {
            wire,
            cluster: identity.cluster.into(),
            id: identity.id,
            me: identity.me,
            ahead: Arc::default(),
            wake: Arc::default(),
        };
        let wake = caller.wake.clone();
        let on_apply: OnApply = Arc::new(move |state: &State, index| {
            on_apply(state, index);
            if state.sealed.is_some() {
                wake.notify_one();
            }
        });
        let chain = Self {
            keeper: Arc::default(),
            inner: Arc::new(Inner {
                disk,
                vault,
                caller,
                tuning,
                on_apply,
                now: Mutex::new(Now {
                    handover,
                    engine: None,
                    failed: None,
                }),
                began: Notify::new(),
                stopping: AtomicBool::new(false),
                sessions: Pool::default(),
            }),
        };
        chain.inner.run_engine().await?;
        let keeper = C::spawn(chain.inner.clone().keep());
        *chain.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(chain)
    }

    /// Ends this member's part; its files stay.
    pub async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.caller.wake.notify_one();
        let keeper = {
            let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            keeper.take()
        };
        if let Some(keeper) = keeper {
            let _ = keeper.await;
        }
        let engine = self.inner.now().engine.take();
        if let Some(engine) = engine {
            engine.stop().await;
        }
    }
}

impl<C: Conf, D: Disk> Inner<C, D> {
    fn now(&self) -> MutexGuard<'_, Now<C>> {
        // Each change is one assignment.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn engine(&self) -> Option<Arc<RaftEngine<C>>> {
        self.now().engine.clone()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        let now = self.now();
        now.handover.as_ref().map_or(0, |it| it.desc.epoch)
    }

    /// Is the present epoch this one? Nothing if there is none yet.
    pub(crate) fn began_as(&self, desc: &EpochDesc) -> Option<bool> {
        self.now().handover.as_ref().map(|it| it.desc == *desc)
    }

    pub(crate) fn local(&self) -> State {
        self.engine().map_or_else(
            || State::new(self.epoch()),
            |engine| engine.machine().state().0,
        )
    }

    pub(crate) fn status(&self) -> Status {
        if let Some(engine) = self.engine() {
            return engine.status();
        }
        let now = self.now();
        Status {
            id: self.caller.id,
            epoch: now.handover.as_ref().map_or(0, |it| it.desc.epoch),
            role: "waiting".to_owned(),
            failed: now.failed.clone(),
            ..Status::default()
        }
    }

    async fn run_engine(&self) -> io::Result<()> {
        let handover = self.now().handover.clone();
        let Some(handover) = handover else {
            return Ok(());
        };
        let started = RaftEngine::start(
            self.caller.clone(),
            &self.disk,
            self.vault.clone(),
            &handover,
            &self.tuning,
            self.on_apply.clone(),
        );
        match started.await {
            Ok(engine) => {
                let mut now = self.now();
                now.engine = Some(Arc::new(engine));
                now.failed = None;
                drop(now);
                self.began.notify_waiters();
                Ok(())
            }
            Err(error) => {
                self.now().failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Keeps an engine running, and goes from epoch to epoch.
    async fn keep(self: Arc<Self>) {
        loop {
            let wake = self.caller.wake.clone();
            let _ = C::timeout(LOOK, wake.notified()).await;
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if let Err(error) = self.look().await {
                // Full disks become free again, and peers come back: the next look tries again.
                tracing::warn!(%error, "the replicated log of this member is at rest");
            }
        }
    }

    async fn look(&self) -> io::Result<()> {
        if let Some(engine) = self.engine() {
            let (state, _) = engine.machine().state();
            if let Some(next) = state.sealed.clone() {
                let genesis = state.handed_over(next.epoch).to_bytes()?;
                let members = next.members.clone();
                self.advance(Handover {
                    desc: next,
                    genesis,
                })
                .await?;
                self.tell(members).await;
                return Ok(());
            }
            if let Some(why) = engine.failed() {
                tracing::warn!(why, "the log of this member failed and is opened again");
                self.now().engine = None;
                engine.stop().await;
            } else if !state.opened && engine.leader().map(|it| it.0) == Some(self.caller.id) {
                self.open_epoch(&engine).await;
            }
        }
        let ahead = {
            let mut ahead = self
                .caller
                .ahead
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *ahead)
        };
        for (id, peer) in ahead {
            self.catch_up(id, &peer).await?;
        }
        if self.engine().is_none() && !self.stopping.load(Ordering::Acquire) {
            self.run_engine().await?;
        }
        Ok(())
    }

    /// Lets every member compare the state that the epoch began with.
    async fn open_epoch(&self, engine: &RaftEngine<C>) {
        let request = Request {
            session: 0,
            number: 0,
            command: Command::Open {
                state_hash: engine.machine().genesis_hash().to_owned(),
            },
        };
        let _ = C::timeout(ATTEMPT, engine.propose(request)).await;
    }

    /// Asks a peer how its epoch began, and goes there if it is newer.
    async fn catch_up(&self, id: NodeNumber, peer: &Peer) -> io::Result<()> {
        let asked = self.caller.ask(id, peer, self.epoch(), Message::Handover);
        let Ok(Ok(Answer::Handover(Some(handover)))) = C::timeout(ATTEMPT, asked).await else {
            return Ok(());
        };
        let first = State::from_bytes(&handover.genesis)?;
        if handover.desc.epoch <= self.epoch() || first.epoch != handover.desc.epoch {
            return Ok(());
        }
        self.advance(handover).await
    }

    async fn advance(&self, handover: Handover) -> io::Result<()> {
        let before = self.epoch();
        self.vault.begin(&handover)?;
        let engine = {
            let mut now = self.now();
            now.handover = Some(handover);
            now.engine.take()
        };
        if let Some(engine) = engine {
            engine.stop().await;
        }
        RaftEngine::<C>::forget(&self.disk, before)?;
        self.run_engine().await
    }

    /// Wakes the members of the new epoch that have not seen the seal.
    async fn tell(&self, members: BTreeMap<NodeNumber, Peer>) {
        for (id, peer) in members {
            if id != self.caller.id {
                let asked = self.caller.ask(id, &peer, self.epoch(), Message::Ping);
                let _ = C::timeout(PAUSE, asked).await;
            }
        }
    }
}

impl<C: Conf, D: Disk> Answerer for Chain<C, D> {
    fn answer(self: Arc<Self>, envelope: Envelope) -> Boxed<Answer> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.answer(envelope).await })
    }
}

impl<C: Conf, D: Disk> Inner<C, D> {
    /// Members bear the names under which they were added; who is no member is trusted for its certificate.
    fn is_known_as(&self, from: NodeNumber, sender: &Peer) -> bool {
        let known = self.engine().and_then(|engine| engine.member(from));
        known.is_none_or(|known| known.name == sender.name)
    }

    async fn answer(&self, envelope: Envelope) -> Answer {
        if envelope.cluster != self.caller.cluster.as_ref() || envelope.to != self.caller.id {
            return Answer::NotNow(format!(
                "here is node {} of cluster {}",
                self.caller.id, self.caller.cluster
            ));
        }
        if !self.is_known_as(envelope.from, &envelope.sender) {
            return Answer::NotNow(format!(
                "node {} is known under another name than {}",
                envelope.from, envelope.sender.name
            ));
        }
        if matches!(envelope.message, Message::Handover) {
            return Answer::Handover(self.now().handover.clone());
        }
        let mine = self.epoch();
        if envelope.epoch > mine {
            self.caller.note_ahead(envelope.from, &envelope.sender);
            return Answer::NotNow("it is in an older epoch and catches up".to_owned());
        }
        if envelope.epoch < mine {
            return Answer::Epoch(mine);
        }
        match self.engine() {
            Some(engine) => engine.answer(envelope.from, envelope.message).await,
            None => Answer::NotNow("its log is at rest".to_owned()),
        }
    }
}
