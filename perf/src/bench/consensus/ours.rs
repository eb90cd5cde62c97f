//! Three members of ours, and requests to their leader over mutual TLS.
//!
//! In: a folder. Out: clients of the leader. Promises: each member has a thread of its own, as each of etcd's has
//! a process, so that the system shares the cores among them; each client has a session of its own, as a node has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use dwcp_consensus::command::{Decision, Outcome, Reply, Request};
use dwcp_consensus::tls::{Credentials, Dialer, TlsFiles, listen};
use dwcp_consensus::wire::{Answer, Envelope, Message, Wire as _};
use dwcp_consensus::{
    Chain, Command, Folder, Identity, NodeNumber, Peer, Replicator as _, Tokio, Tuning,
};
use dwcp_lab::pki::Authority;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use super::VALUE_BYTES;

const NODES: [&str; 4] = ["node1", "node2", "node3", "client"];
const WITHIN: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Ours {
    _stopper: watch::Sender<bool>,
    _authority: Authority,
    credentials: Credentials,
    leader: (NodeNumber, Peer),
}

/// One client.
pub(super) struct Client {
    dialer: Dialer,
    leader: (NodeNumber, Peer),
    session: u64,
}

fn files(authority: &Authority, node: &str) -> TlsFiles {
    let table = authority.table(node);
    let mut paths = table.split('"').skip(1).step_by(2).map(PathBuf::from);
    let mut next = || paths.next().unwrap_or_default();
    let (ca, crl, cert, key) = (next(), next(), next(), next());
    TlsFiles {
        ca,
        cert,
        key,
        crl: Some(crl),
    }
}

/// A member's thread, until `stop` has no sender any more.
fn member(
    listener: std::net::TcpListener,
    credentials: Credentials,
    folder: Folder,
    identity: Identity,
    mut stop: watch::Receiver<bool>,
    ready: oneshot::Sender<anyhow::Result<Chain<Tokio, Folder>>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error.into()))),
    };
    runtime.block_on(async move {
        let wire = Arc::new(Dialer::new(credentials.clone()));
        let on_apply = Arc::new(|_: &dwcp_consensus::State, _: u64| {});
        let opened = async {
            let listener = TcpListener::from_std(listener)?;
            let chain = Chain::open(identity, folder, wire, Tuning::default(), on_apply).await?;
            let answerer = Arc::new(chain.clone());
            tokio::spawn(listen(listener, credentials, answerer, stop.clone()));
            Ok(chain)
        };
        let opened = opened.await;
        let _ = ready.send(opened);
        while stop.changed().await.is_ok() {}
    });
}

impl Ours {
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let authority = Authority::new(&NODES)?;
        let (stopper, stop) = watch::channel(false);
        let mut listeners = Vec::new();
        let mut founders = BTreeMap::new();
        for (id, name) in (1..).zip(&NODES[..3]) {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            let peer = Peer {
                name: (*name).to_owned(),
                address: listener.local_addr()?.to_string(),
            };
            founders.insert(id, peer);
            listeners.push(listener);
        }
        let mut members = Vec::new();
        for (listener, (id, me)) in listeners.into_iter().zip(founders.clone()) {
            let credentials = Credentials::read(&files(&authority, &me.name))?;
            let folder = Folder::open(&dir.join(&me.name))?;
            let identity = Identity {
                id,
                cluster: "bench".to_owned(),
                me,
                founders: founders.clone(),
            };
            let (ready, is_ready) = oneshot::channel();
            let stop = stop.clone();
            std::thread::Builder::new()
                .name(format!("member {id}"))
                .spawn(move || member(listener, credentials, folder, identity, stop, ready))?;
            members.push(is_ready.await.context("a member ended")??);
        }
        let first = members.first().context("no member")?;
        first.read(WITHIN).await?;
        let leader = first.status().leader.context("no leader")?;
        Ok(Self {
            leader: (leader, founders[&leader].clone()),
            credentials: Credentials::read(&files(&authority, "client"))?,
            _stopper: stopper,
            _authority: authority,
        })
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let mut client = Client {
            dialer: Dialer::new(self.credentials.clone()),
            leader: self.leader.clone(),
            session: 0,
        };
        match client.ask(0, Command::OpenSession).await? {
            Reply::Session(session) => client.session = session,
            other => bail!("no session: {other:?}"),
        }
        Ok(client)
    }
}

impl Client {
    async fn ask(&self, number: u64, command: Command) -> anyhow::Result<Reply> {
        let (to, peer) = &self.leader;
        let envelope = Envelope {
            cluster: "bench".to_owned(),
            from: 99,
            sender: Peer {
                name: "client".to_owned(),
                address: String::new(),
            },
            to: *to,
            epoch: 1,
            message: Message::Propose(Request {
                session: self.session,
                number,
                command,
            }),
        };
        match self.dialer.ask(peer, envelope).await? {
            Answer::Proposed(Outcome::Ran(reply)) => Ok(reply),
            other => bail!("not committed: {other:?}"),
        }
    }
}

impl super::Client for Client {
    async fn commit(&mut self, number: u64) -> anyhow::Result<()> {
        let decision = Decision {
            at_unix_ms: number,
            by: "bench".to_owned(),
            text: "v".repeat(VALUE_BYTES),
            about: String::new(),
        };
        self.ask(number, Command::Record { decision })
            .await
            .map(drop)
    }
}
