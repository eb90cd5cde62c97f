//! The handle that everybody else holds. In: questions and commands. Out: copies, answers, direct
//! stores to the switch words. No call here waits for the task that keeps the connection, save
//! [`Host::command`] for its answer.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use dwcp_api::command::{Command, CommandRecord};
use dwcp_api::event::Event;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::switches::Switches;
use dwcp_api::{Failure, SessionId, monotonic_ns};
use serde::Serialize;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::HostError;
use super::escrow::Escrow;
use super::link::{DoorFigures, Link};
use super::run;

/// How long the data plane may take to answer a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Events that a slow reader may lag behind.
const EVENTS_KEPT: usize = 1024;
/// Data planes remembered as dead.
const ENDED_KEPT: usize = 64;

/// Is there a data plane?
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HostStatus {
    /// One is attached.
    Connected {
        /// Grows with every attach to it.
        generation: u64,
        /// Random per start of it.
        instance: u64,
        /// Its process.
        pid: u32,
        /// Workers it runs.
        workers: u32,
        /// Highest protocol version it may use, 1 or 3.
        max_version: u32,
        /// Where peers reach it, `address:port`.
        listen: String,
        /// Its node's name.
        node: String,
    },
    /// None is; attaching is tried again twice a second.
    Disconnected {
        /// Since when, milliseconds since 1970.
        since_unix_ms: u64,
        /// Why, and what to do.
        reason: String,
    },
}

impl HostStatus {
    /// The instance that is attached.
    #[must_use]
    pub const fn instance(&self) -> Option<u64> {
        match self {
            Self::Connected { instance, .. } => Some(*instance),
            Self::Disconnected { .. } => None,
        }
    }
}

/// The data plane of this host. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    link: RwLock<Option<Arc<Link>>>,
    status: watch::Sender<HostStatus>,
    attaches: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    escrow: Mutex<Escrow>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Result<(), HostError>>>>,
    ended: Mutex<VecDeque<u64>>,
    /// Nobody listens on the attach socket: whatever data plane there was has ended.
    absent: AtomicBool,
    next_id: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Starts attaching to the data plane behind `attach_path`, for ever.
    #[must_use]
    pub fn spawn(attach_path: PathBuf) -> (Self, JoinHandle<()>) {
        let status = HostStatus::Disconnected {
            since_unix_ms: unix_ms(),
            reason: "not tried yet".to_owned(),
        };
        let host = Self {
            shared: Arc::new(Shared {
                link: RwLock::new(None),
                status: watch::channel(status).0,
                attaches: watch::channel(0).0,
                events: broadcast::channel(EVENTS_KEPT).0,
                escrow: Mutex::default(),
                pending: Mutex::default(),
                ended: Mutex::default(),
                absent: AtomicBool::new(false),
                // A restarted control plane must not repeat the ids of the one before it.
                next_id: AtomicU64::new(monotonic_ns()),
            }),
        };
        let task = tokio::spawn(run::run(attach_path, host.clone()));
        (host, task)
    }

    /// Is there a data plane?
    #[must_use]
    pub fn status(&self) -> HostStatus {
        self.shared.status.borrow().clone()
    }

    /// Changes of the status: an attach, a loss, a death.
    #[must_use]
    pub fn status_changes(&self) -> watch::Receiver<HostStatus> {
        self.shared.status.subscribe()
    }

    /// Counts attaches: whoever owns the switch words stores them again at each.
    #[must_use]
    pub fn on_attach(&self) -> watch::Receiver<u64> {
        self.shared.attaches.subscribe()
    }

    /// Has this data plane ended for certain? Its sessions are then gone with it.
    #[must_use]
    pub fn has_ended(&self, instance: u64) -> bool {
        // Acquire: pairs with the Release in `disconnected`.
        self.shared.absent.load(Ordering::Acquire)
            || lock(&self.shared.ended).contains(&instance)
            || self.status().instance().is_some_and(|now| now != instance)
    }

    /// Gives the switch words to `f`: a store there is seen by the next batch.
    ///
    /// # Errors
    /// [`HostError::Disconnected`].
    pub fn with_switches<R>(&self, f: impl FnOnce(&Switches) -> R) -> Result<R, HostError> {
        Ok(f(&self.live()?.switches))
    }

    /// Wakes the data plane, so that a change of the switch words is seen by who waits for something else.
    pub fn ring(&self) {
        if let Ok(link) = self.live() {
            link.ring();
        }
    }

    /// Every session of the data plane.
    ///
    /// # Errors
    /// [`HostError::Disconnected`], [`HostError::Unreadable`].
    pub fn sessions(&self) -> Result<Vec<SessionSnapshot>, HostError> {
        self.live()?.sessions()
    }

    /// One session of the data plane; `None` if it does not know it.
    ///
    /// # Errors
    /// [`HostError::Disconnected`], [`HostError::Unreadable`].
    pub fn session(&self, id: SessionId) -> Result<Option<SessionSnapshot>, HostError> {
        self.live()?.session(id)
    }

    /// The last figures of a session, also if the data plane has died since.
    #[must_use]
    pub fn last_session(&self, id: SessionId) -> Option<SessionSnapshot> {
        self.last()?.session(id).ok().flatten()
    }

    /// Counters of every worker, by name.
    ///
    /// # Errors
    /// [`HostError::Disconnected`].
    pub fn workers(&self) -> Result<Vec<Vec<(&'static str, u64)>>, HostError> {
        self.live()?.workers()
    }

    /// What the data plane's door counts.
    ///
    /// # Errors
    /// [`HostError::Disconnected`].
    pub fn door(&self) -> Result<DoorFigures, HostError> {
        self.live()?.door()
    }

    /// Sends a command and waits for its answer, at most five seconds.
    ///
    /// # Errors
    /// [`HostError::Refused`] with the data plane's words, or why there was no answer.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a command is built for one call"
    )]
    pub async fn command(&self, command: Command) -> Result<(), HostError> {
        let link = self.live()?;
        // Relaxed: only uniqueness matters.
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.shared.pending).insert(id, sender);
        let outcome = match link.send(&CommandRecord::encode(id, &command)) {
            Err(error) => Err(error),
            Ok(()) => match timeout(ANSWER_LIMIT, answer).await {
                Err(_) => Err(HostError::TimedOut(ANSWER_LIMIT.as_secs())),
                Ok(Err(_)) => Err(self.disconnected()),
                Ok(Ok(outcome)) => outcome,
            },
        };
        lock(&self.shared.pending).remove(&id);
        outcome
    }

    /// Events from now on: hints to look, the session table has the facts.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Is a hypervisor connection of this session kept here?
    #[must_use]
    pub fn escrow_holds(&self, session: SessionId) -> bool {
        lock(&self.shared.escrow).holds(session)
    }

    /// Ends the kept connections of a session: its hypervisor sees the end of file. Returns how many
    /// there were.
    pub fn escrow_shutdown(&self, session: SessionId) -> usize {
        lock(&self.shared.escrow).shutdown(session)
    }

    /// Lets the kept connections of a session go without ending them. Returns how many there were.
    pub fn escrow_release(&self, session: SessionId) -> usize {
        lock(&self.shared.escrow).release(session)
    }

    fn last(&self) -> Option<Arc<Link>> {
        self.shared
            .link
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn live(&self) -> Result<Arc<Link>, HostError> {
        let link = self.last();
        match &*self.shared.status.borrow() {
            HostStatus::Connected { .. } => {
                link.ok_or_else(|| HostError::Disconnected("attaching".to_owned()))
            }
            HostStatus::Disconnected { reason, .. } => Err(HostError::Disconnected(reason.clone())),
        }
    }

    fn disconnected(&self) -> HostError {
        match self.status() {
            HostStatus::Connected { .. } => {
                HostError::Disconnected("it was lost and came back".to_owned())
            }
            HostStatus::Disconnected { reason, .. } => HostError::Disconnected(reason),
        }
    }
}

// What the task that keeps the connection does with the shared state.
impl Shared {
    pub(super) fn connected(&self, link: Link, status: HostStatus) {
        self.absent.store(false, Ordering::Release);
        lock(&self.ended).retain(|instance| *instance != link.instance);
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(link));
        self.status.send_replace(status);
        self.attaches.send_modify(|count| *count += 1);
    }

    /// `ended`: the instance that is known to be dead. `absent`: nobody listens.
    pub(super) fn disconnected(&self, reason: String, ended: Option<u64>, absent: bool) {
        // Release: pairs with the Acquire in `has_ended`.
        self.absent.store(absent, Ordering::Release);
        if let Some(instance) = ended {
            let mut list = lock(&self.ended);
            if !list.contains(&instance) {
                if list.len() == ENDED_KEPT {
                    list.pop_front();
                }
                list.push_back(instance);
            }
        }
        self.status.send_modify(|status| {
            let since_unix_ms = match status {
                HostStatus::Disconnected { since_unix_ms, .. } => *since_unix_ms,
                HostStatus::Connected { .. } => unix_ms(),
            };
            *status = HostStatus::Disconnected {
                since_unix_ms,
                reason,
            };
        });
        // Nobody will answer; dropping the senders says so.
        lock(&self.pending).clear();
    }

    pub(super) fn escrow(&self) -> MutexGuard<'_, Escrow> {
        lock(&self.escrow)
    }

    pub(super) fn event(&self, event: Event) {
        if let Event::Answer {
            command_id,
            failure,
            detail,
            ..
        } = event
            && let Some(sender) = lock(&self.pending).remove(&command_id)
        {
            let outcome = match failure {
                Failure::None => Ok(()),
                failure => Err(HostError::Refused {
                    failure,
                    detail: detail.as_str().to_owned(),
                }),
            };
            // The caller may have given up.
            let _ = sender.send(outcome);
        }
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
