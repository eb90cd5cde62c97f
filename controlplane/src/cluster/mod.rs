//! This node's part of the replicated truth.
//!
//! In: `[cluster]`, operators' changes of flags and of the kill switch. Out: changes that a quorum agreed
//! on, applied to this node's [`Flags`] whoever asked for them. Promises: a flag changes only by the log;
//! the kill switch acts here first, then on every node that can be reached, quorum or not, and is recorded as soon
//! as a quorum is there; it is released only by the log, and not if it was thrown again meanwhile.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the table |
//! | [`follow`] | what the log says, applied here |
//! | [`throws`] | the kill switch from node to node |
//! | [`figures`] | what the nodes count |
//! | [`door`] | what peers ask |

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dwcp_consensus::command::FlagValue;
use dwcp_consensus::tls::{CredentialError, Credentials, Dialer, listen};
use dwcp_consensus::wire::{Answer, Boxed, Change, Envelope, Wire, WireError};
use dwcp_consensus::{
    Chain, Command, Folder, NodeNumber, Peer, Replicator, State, Status, SubmitError, Tokio, Tuning,
};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

pub mod config;
mod door;
mod figures;
mod follow;
pub mod throws;

pub use config::ClusterConfig;
use door::Door;
pub use figures::NodeFigures;
pub use throws::{Throwing, Throws};

use crate::config::Config;
use crate::flags::{FlagError, FlagView, Flags, NodeId, Percentage, Released};
use crate::life::unix_ms;
use crate::store::StoreError;

/// How long an operator waits for a quorum.
const WITHIN: Duration = Duration::from_secs(8);
/// Space that the log wants: a file and the one that follows it, and the snapshot.
const LOG_ROOM_MIB: u32 = 16;

/// Why this node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The log or the state on disk.
    #[error(
        "the replicated log cannot be opened in {path}: {error}; give it {} MiB of space there, writable for this user, and start it again",
        LOG_ROOM_MIB
    )]
    Disk {
        /// Its folder.
        path: std::path::PathBuf,
        /// What is wrong and what to do.
        error: io::Error,
    },
    /// A TLS file.
    #[error("cluster.tls: {0}")]
    Tls(#[from] CredentialError),
    /// The certificate is another node's.
    #[error("cluster.tls.cert names {found}, but this node is {node}: issue one for it")]
    AnotherNode {
        /// Name in the certificate.
        found: String,
        /// Name of this node.
        node: String,
    },
    /// The throws that were kept.
    #[error("the kill switch's record cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The socket.
    #[error("cannot listen on {address} for peers: {error}; choose another cluster.listen")]
    Listen {
        /// Address meant.
        address: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The log.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The flags of this node.
    #[error(transparent)]
    Flag(#[from] FlagError),
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        Self::Flag(error.into())
    }
}

/// This node's part; a clone is the same.
#[derive(Clone)]
pub struct Cluster {
    replicator: Arc<dyn Replicator>,
    flags: Flags,
    store: crate::store::Store,
    /// Held while a release or the log's state is applied here.
    applying: Arc<Mutex<()>>,
    /// Told when the log or the kill switch of this node changed.
    changed: Arc<Notify>,
    throws: Throws,
    counts: Counts,
    wire: Arc<dyn Wire>,
    here: Identified,
    me: Peer,
}

/// What this node counts, once it does.
type Counts = Arc<OnceLock<Box<dyn Fn() -> serde_json::Value + Send + Sync>>>;

/// Whom a message must be for.
#[derive(Clone)]
struct Identified {
    cluster: String,
    id: NodeNumber,
}

/// Nobody is to be reached: the wire of a node without a cluster.
struct Nobody;

impl Wire for Nobody {
    fn ask(&self, peer: &Peer, envelope: Envelope) -> Boxed<Result<Answer, WireError>> {
        let error = WireError::Unreachable {
            to: envelope.to,
            address: peer.address.clone(),
            reason: "this node has no [cluster]".to_owned(),
        };
        Box::pin(async move { Err(error) })
    }
}

impl Cluster {
    /// Takes part, or is a cluster of its own.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn open(
        config: &Config,
        flags: Flags,
        store: crate::store::Store,
        stop: watch::Receiver<bool>,
    ) -> Result<(Self, Vec<JoinHandle<()>>), ClusterError> {
        let path = config.state_dir.join("cluster");
        let disk = |error| ClusterError::Disk {
            path: path.clone(),
            error,
        };
        let folder = Folder::open(&path).map_err(disk)?;
        let changed = Arc::new(Notify::new());
        let told = changed.clone();
        let on_apply = Arc::new(move |_: &State, _: u64| told.notify_one());
        let name = config.node.as_str();
        let mut tasks = Vec::new();
        let open_throws = |link| Throws::open(link, flags.clone(), store.clone(), changed.clone());
        let counts = Counts::default();
        let (chain, throws, wire, here): (_, _, Arc<dyn Wire>, _);
        let identity = config
            .cluster
            .as_ref()
            .map_or_else(|| config::alone(name), |table| table.identity(name));
        let me = identity.me.clone();
        here = Identified {
            cluster: identity.cluster.clone(),
            id: identity.id,
        };
        if let Some(table) = &config.cluster {
            let credentials = Credentials::read(&table.tls)?;
            if credentials.name != name {
                return Err(ClusterError::AnotherNode {
                    found: credentials.name,
                    node: name.to_owned(),
                });
            }
            let listener = TcpListener::bind(table.listen).await;
            let listener = listener.map_err(|error| ClusterError::Listen {
                address: table.listen,
                error,
            })?;
            wire = Arc::new(Dialer::new(credentials.clone()));
            throws = open_throws(Some(throws::Link {
                credentials: credentials.clone(),
                wire: wire.clone(),
                cluster: identity.cluster.clone(),
                id: identity.id,
                me: me.clone(),
            }))?;
            let tuning = Tuning::default();
            let opened: Result<Chain<Tokio, Folder>, _> =
                Chain::open(identity, folder, wire.clone(), tuning, on_apply).await;
            chain = opened.map_err(disk)?;
            let answerer = Arc::new(Door {
                log: Arc::new(chain.clone()),
                throws: throws.clone(),
                counts: counts.clone(),
                here: here.clone(),
            });
            tasks.push(tokio::spawn(listen(listener, credentials, answerer, stop)));
        } else {
            // Nobody else can be elected: there is no reason to wait for them.
            let tuning = Tuning {
                heartbeat_ms: 20,
                election_ms_min: 60,
                election_ms_max: 120,
                ..Tuning::default()
            };
            wire = Arc::new(Nobody);
            throws = open_throws(None)?;
            let opened = Chain::open(identity, folder, wire.clone(), tuning, on_apply).await;
            chain = opened.map_err(disk)?;
        }
        let cluster = Self {
            replicator: Arc::new(chain),
            flags,
            store,
            applying: Arc::default(),
            changed,
            throws,
            counts,
            wire,
            here,
            me,
        };
        let spreading = cluster.throws.clone().run(cluster.replicator.clone());
        tasks.push(tokio::spawn(spreading));
        tasks.push(tokio::spawn(cluster.clone().follow()));
        Ok((cluster, tasks))
    }

    /// This node's view of the cluster.
    #[must_use]
    pub fn status(&self) -> Status {
        self.replicator.status()
    }

    /// The log itself.
    #[must_use]
    pub fn log(&self) -> Arc<dyn Replicator> {
        self.replicator.clone()
    }

    /// Ends this node's part.
    pub async fn stop(&self) {
        self.replicator.stop().await;
    }

    /// Changes the members or the leader.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn change(&self, change: Change) -> Result<(), SubmitError> {
        self.replicator.change(change, 4 * WITHIN).await
    }

    /// Changes a flag's switch, its share or both, on every node, when a quorum agrees.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn set_flag(
        &self,
        feature: &str,
        enabled: Option<bool>,
        percentage: Option<Percentage>,
        by: &str,
    ) -> Result<FlagView, ChangeError> {
        let state = self.begin(feature, by).await?;
        let before = self.flags.get(feature)?.flag;
        let known = state.flags.get(feature).and_then(|flag| flag.value);
        let known = known.unwrap_or(FlagValue {
            enabled: before.enabled,
            share: before.percentage.buckets(),
        });
        let command = Command::SetFlag {
            feature: feature.to_owned(),
            value: FlagValue {
                enabled: enabled.unwrap_or(known.enabled),
                share: percentage.map_or(known.share, Percentage::buckets),
            },
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
        };
        self.replicator.submit(command, WITHIN).await?;
        self.adopted(feature).await
    }

    /// A flag with everything that was answered on any node before this was called.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn agreed_flag(&self, feature: &str) -> Result<FlagView, ChangeError> {
        self.flags.get(feature)?;
        self.adopted(feature).await
    }

    /// Keeps nodes out of a flag, or lets them in again, when a quorum agrees.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn exclude(
        &self,
        feature: &str,
        nodes: &[NodeId],
        excluded: bool,
        by: &str,
    ) -> Result<FlagView, ChangeError> {
        self.begin(feature, by).await?;
        let command = Command::Exclude {
            feature: feature.to_owned(),
            nodes: nodes.iter().map(|node| node.as_str().to_owned()).collect(),
            excluded,
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
        };
        self.replicator.submit(command, WITHIN).await?;
        self.adopted(feature).await
    }

    /// Lets the flags decide again, on every node, when a quorum agrees; and here at once. What was thrown anywhere
    /// after this was called stays.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn release(&self, by: &str) -> Result<Released, ChangeError> {
        let _applying = self.applying.lock().await;
        let throws = self.flags.throws();
        let mut state = self.replicator.read(WITHIN).await?;
        // A release undoes what the log knows.
        let unrecorded = self.throws.unrecorded(&state);
        if !unrecorded.is_empty() {
            for throw in unrecorded {
                let command = follow::recording(&throw);
                self.replicator.submit(command, WITHIN).await?;
            }
            state = self.replicator.read(WITHIN).await?;
        }
        let command = Command::Force {
            on: false,
            seen: state.force.generation,
            at_unix_ms: unix_ms(),
            by: by.to_owned(),
            throw: None,
        };
        self.replicator.submit(command, WITHIN).await?;
        let (this, by) = (self.clone(), by.to_owned());
        let released = tokio::task::spawn_blocking(move || {
            this.throws.released(&state.force.thrown)?;
            this.seen(state.force.generation + 1)?;
            if this.throws.are_in_force() {
                return Ok(Released {
                    overtaken: true,
                    applied: false,
                });
            }
            Ok(this.flags.release_v1(&by, throws)?)
        });
        let released = released.await.unwrap_or_else(|_| Err(lost().into()));
        self.changed.notify_one();
        released
    }

    /// The kill switch of this node is about to be thrown: others are to know, and the log.
    #[must_use]
    pub fn throwing(&self) -> Throwing<'_> {
        self.throws.begin()
    }

    /// The throws that are in force, whichever node made them.
    #[must_use]
    pub fn throws_in_force(&self) -> Vec<dwcp_consensus::throw::Throw> {
        self.throws.in_force()
    }

    /// Before its first change the log does not know whom a flag keeps out here.
    pub(crate) async fn begin(&self, feature: &str, by: &str) -> Result<State, ChangeError> {
        let before = self.flags.get(feature)?.flag;
        let state = self.replicator.read(WITHIN).await?;
        if !state.flags.contains_key(feature) && !before.excluded_nodes.is_empty() {
            let nodes = before.excluded_nodes.iter();
            let command = Command::Exclude {
                feature: feature.to_owned(),
                nodes: nodes.map(|node| node.as_str().to_owned()).collect(),
                excluded: true,
                at_unix_ms: unix_ms(),
                by: by.to_owned(),
            };
            self.replicator.submit(command, WITHIN).await?;
        }
        Ok(state)
    }

    async fn adopted(&self, feature: &str) -> Result<FlagView, ChangeError> {
        let state = self.replicator.read(WITHIN).await?;
        let flags = self.flags.clone();
        let adopted = tokio::task::spawn_blocking(move || follow::adopt_flags(&flags, &state));
        adopted.await.unwrap_or_else(|_| Err(lost()))?;
        Ok(self.flags.get(feature)?)
    }
}

/// A task of ours that ended without an answer: it panicked over the disk.
fn lost() -> FlagError {
    FlagError::Store(StoreError::Io {
        action: "write",
        table: "flags".to_owned(),
        path: "controlplane.redb".into(),
        reason: "the work ended without an answer".to_owned(),
    })
}
