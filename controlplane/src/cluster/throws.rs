//! Throws of the kill switch, from node to node, without a quorum.
//!
//! In: throws of this node, signed throws of others. Out: the word in the data plane's memory, at once; the same throw
//! to every member that can be reached; a row on disk. Promises: a throw of another node acts before it is written
//! anywhere; nothing here waits for the disk or for the log; a throw that the log released does not act again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dwcp_consensus::throw::{Ask, Known, Spread, Statement, Throw, Told};
use dwcp_consensus::tls::Credentials;
use dwcp_consensus::wire::{Answer, Envelope, Message, Wire};
use dwcp_consensus::{NodeNumber, Peer, Replicator, State};
use tokio::sync::{Notify, Semaphore};

use super::unix_ms;
use crate::flags::Flags;
use crate::store::{Store, StoreError};

const TABLE: &str = "throws";
/// How long a question may be on its way; meanwhile others follow it.
const ASK_LIFE: Duration = Duration::from_secs(3);
/// Questions to one peer that are on their way.
const ASKS_MAX: usize = 4;

/// How this node speaks to others.
pub(super) struct Link {
    pub(super) credentials: Credentials,
    pub(super) wire: Arc<dyn Wire>,
    pub(super) cluster: String,
    pub(super) id: NodeNumber,
    pub(super) me: Peer,
}

/// The throws that this node knows; a clone is the same set.
#[derive(Clone)]
pub struct Throws {
    inner: Arc<Inner>,
}

struct Inner {
    /// None: a cluster of its own, with nobody to tell.
    link: Option<Link>,
    spread: Mutex<Spread>,
    flags: Flags,
    store: Store,
    members: Mutex<BTreeMap<String, Member>>,
    /// Throws of this node that act already and are not signed yet.
    begun: AtomicU64,
    /// Told when there is somebody to tell.
    wake: Notify,
    /// Told when the log is to know.
    changed: Arc<Notify>,
    started: Instant,
}

#[derive(Clone)]
struct Member {
    id: NodeNumber,
    peer: Peer,
    places: Arc<Semaphore>,
}

/// A throw of this node from before it acts until it is signed; meanwhile no release undoes it.
pub struct Throwing<'a> {
    throws: &'a Throws,
}

impl Drop for Throwing<'_> {
    fn drop(&mut self) {
        // Pairs with the load in `are_in_force`: what was signed before is seen by who sees the count go.
        self.throws.inner.begun.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left whole rows.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Throws {
    pub(super) fn open(
        link: Option<Link>,
        flags: Flags,
        store: Store,
        changed: Arc<Notify>,
    ) -> Result<Self, StoreError> {
        let (cluster, me) = link
            .as_ref()
            .map_or(("", ""), |it| (it.cluster.as_str(), it.me.name.as_str()));
        let mut spread = Spread::new(cluster, me);
        for (_, statement) in store.list_json::<Statement>(TABLE)? {
            // One of a cluster that this node was in before acts in that one alone.
            if statement.throw.cluster == cluster {
                spread.keep(statement);
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                link,
                spread: Mutex::new(spread),
                flags,
                store,
                members: Mutex::default(),
                begun: AtomicU64::new(0),
                wake: Notify::new(),
                changed,
                started: Instant::now(),
            }),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Call it before the word is stored, and [`Throwing::sign`] after.
    #[must_use]
    pub fn begin(&self) -> Throwing<'_> {
        self.inner.begun.fetch_add(1, Ordering::SeqCst);
        Throwing { throws: self }
    }

    /// Can this node's throws be signed?
    pub(super) fn can_sign(&self) -> bool {
        self.inner.link.is_some()
    }

    /// Is a throw in force that the log has not released?
    pub(super) fn are_in_force(&self) -> bool {
        self.inner.begun.load(Ordering::SeqCst) > 0 || lock(&self.inner.spread).is_thrown()
    }

    /// The throws in force.
    #[must_use]
    pub fn in_force(&self) -> Vec<Throw> {
        let spread = lock(&self.inner.spread);
        spread.in_force().map(|it| it.throw.clone()).collect()
    }

    /// Those in force that the log does not have.
    pub(super) fn unrecorded(&self, state: &State) -> Vec<Throw> {
        let recorded = |throw: &Throw| state.force.thrown.get(&throw.node).copied().unwrap_or(0);
        let mut throws = self.in_force();
        throws.retain(|throw| recorded(throw) < throw.number);
        throws
    }

    /// What the log released. Blocks for the disk if that ends any.
    pub(super) fn released(&self, released: &Known) -> Result<(), StoreError> {
        let ended: Vec<String> = {
            let mut spread = lock(&self.inner.spread);
            let before: Vec<String> = spread.in_force().map(|it| it.throw.node.clone()).collect();
            spread.released(released);
            let stays = |node: &String| spread.in_force().any(|it| it.throw.node == *node);
            before.into_iter().filter(|node| !stays(node)).collect()
        };
        for node in ended {
            self.inner.store.delete(TABLE, &node)?;
        }
        Ok(())
    }

    /// Takes a peer's words in, acts on what is new, and answers.
    pub(super) fn hear(&self, from: &str, told: Told) -> Told {
        let now = self.now_ms();
        let Some(link) = &self.inner.link else {
            return Told::default();
        };
        let (heard, answer) = {
            let mut spread = lock(&self.inner.spread);
            let heard = spread.hear(now, from, told, &link.credentials);
            if !heard.news.is_empty() {
                // Under the lock: a release that looks for throws sees both or neither.
                self.inner.flags.throw_v1();
            }
            let answer = spread.answer(now, from);
            (heard, answer)
        };
        for (node, refusal) in &heard.refused {
            tracing::warn!(from, node, %refusal, "a throw of the kill switch counts for nothing");
        }
        if !heard.news.is_empty() {
            self.inner.wake.notify_one();
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.record(&heard.news));
        }
        answer
    }

    /// Blocks for the disk.
    fn record(&self, news: &[Statement]) {
        for statement in news {
            let throw = &statement.throw;
            let (node, by) = (throw.node.as_str(), throw.by.as_str());
            tracing::warn!(node, by, "kill switch on: everything goes back to v1");
            let kept = self.inner.store.put_json(TABLE, node, statement);
            let recorded =
                kept.and_then(|()| self.inner.flags.record_throw(&format!("{node}: {by}")));
            if let Err(error) = recorded {
                tracing::error!(%error, node, "a throw is in force, but not on disk");
            }
        }
        self.inner.changed.notify_one();
    }

    /// Who the members are; while the log is at rest, those that were known last.
    fn learn_members(&self, replicator: &dyn Replicator) {
        let found = replicator.status().members;
        if found.is_empty() {
            return;
        }
        let mut members = lock(&self.inner.members);
        let known = |view: &dwcp_consensus::status::MemberView| {
            let member = members.get(&view.name)?;
            (member.id == view.id && member.peer.address == view.address).then(|| member.clone())
        };
        let new = |view: &dwcp_consensus::status::MemberView| Member {
            id: view.id,
            peer: Peer {
                name: view.name.clone(),
                address: view.address.clone(),
            },
            places: Arc::new(Semaphore::new(ASKS_MAX)),
        };
        let now: BTreeMap<String, Member> = found
            .iter()
            .map(|view| (view.name.clone(), known(view).unwrap_or_else(|| new(view))))
            .collect();
        *members = now;
        let names = members.keys().cloned().collect();
        drop(members);
        lock(&self.inner.spread).members(&names);
    }

    /// Tells whoever lacks a throw, for ever.
    pub(super) async fn run(self, replicator: Arc<dyn Replicator>) {
        if self.inner.link.is_none() {
            return;
        }
        loop {
            self.learn_members(replicator.as_ref());
            let now = self.now_ms();
            let (asks, next) = {
                let mut spread = lock(&self.inner.spread);
                (spread.asks(now), spread.next_ms())
            };
            for ask in asks {
                self.ask(ask);
            }
            let wait = Duration::from_millis(next.saturating_sub(now).max(1));
            let _ = tokio::time::timeout(wait, self.inner.wake.notified()).await;
        }
    }

    fn ask(&self, ask: Ask) {
        let member = lock(&self.inner.members).get(&ask.to).cloned();
        let (Some(link), Some(member)) = (&self.inner.link, member) else {
            return;
        };
        // Too many are on their way already: the machine asks again.
        let Ok(place) = member.places.clone().try_acquire_owned() else {
            return;
        };
        let envelope = Envelope {
            cluster: link.cluster.clone(),
            from: link.id,
            sender: link.me.clone(),
            to: member.id,
            epoch: 0,
            message: Message::Throws(ask.told),
        };
        let asked = link.wire.ask(&member.peer, envelope);
        let this = self.clone();
        tokio::spawn(async move {
            let answered = tokio::time::timeout(ASK_LIFE, asked).await;
            drop(place);
            match answered {
                Ok(Ok(Answer::Throws(told))) => {
                    this.hear(&ask.to, told);
                    this.inner.wake.notify_one();
                }
                Ok(Ok(other)) => tracing::debug!(to = ask.to, ?other, "no answer to throws"),
                Ok(Err(error)) => tracing::debug!(%error, "throws were not told"),
                Err(_) => tracing::debug!(to = ask.to, "throws were not answered in time"),
            }
        });
    }
}

impl Throwing<'_> {
    /// Signs it and lets everybody know. Blocks for a signature, not for the disk.
    pub fn sign(self, by: &str) {
        let inner = &self.throws.inner;
        if let Some(link) = &inner.link {
            let mut spread = lock(&inner.spread);
            let at_unix_ms = unix_ms();
            let throw = Throw {
                cluster: link.cluster.clone(),
                node: link.me.name.clone(),
                number: spread.next_number(at_unix_ms),
                at_unix_ms,
                by: by.chars().take(200).collect(),
            };
            match throw.sign(&link.credentials) {
                Ok(statement) => {
                    spread.keep(statement.clone());
                    drop(spread);
                    inner.wake.notify_one();
                    let (store, node) = (inner.store.clone(), link.me.name.clone());
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = store.put_json(TABLE, &node, &statement) {
                            tracing::error!(%error, "this node's throw is in force, but not on disk");
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "the throw cannot be signed: others hear of it by the log alone");
                }
            }
        }
        inner.changed.notify_one();
    }
}
