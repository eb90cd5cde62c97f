//! Three members of ours, and requests to their leader over mutual TLS.
//!
//! In: a folder. Out: clients of the leader. Promise: each client has a session of its own, as a node has.

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
use tokio::sync::{mpsc, watch};

use super::VALUE_BYTES;

const NODES: [&str; 4] = ["node1", "node2", "node3", "client"];
const WITHIN: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Ours {
    /// Its end ends the members.
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

impl Ours {
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let authority = Authority::new(&NODES)?;
        let (stopper, stop) = watch::channel(false);
        let mut listeners = Vec::new();
        let mut founders = BTreeMap::new();
        for (id, name) in (1..).zip(&NODES[..3]) {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let peer = Peer {
                name: (*name).to_owned(),
                address: listener.local_addr()?.to_string(),
            };
            founders.insert(id, peer);
            listeners.push(listener);
        }
        let (told, mut leaders) = mpsc::unbounded_channel();
        for (listener, (id, me)) in listeners.into_iter().zip(founders.clone()) {
            let member = Member {
                credentials: Credentials::read(&files(&authority, &me.name))?,
                folder: Folder::open(&dir.join(&me.name))?,
                identity: Identity {
                    id,
                    cluster: "bench".to_owned(),
                    me,
                    founders: founders.clone(),
                },
                listener: listener.into_std()?,
                stop: stop.clone(),
            };
            let told = told.clone();
            std::thread::Builder::new()
                .name(format!("member{id}"))
                .spawn(move || drop(told.send(member.run(&told))))?;
        }
        let leader = match leaders.recv().await {
            Some(Ok(leader)) => leader,
            Some(Err(error)) => return Err(error),
            None => bail!("no member runs"),
        };
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

/// One member, on a thread and a runtime of its own, as a node's control plane has it.
struct Member {
    credentials: Credentials,
    folder: Folder,
    identity: Identity,
    listener: std::net::TcpListener,
    stop: watch::Receiver<bool>,
}

type Told = mpsc::UnboundedSender<anyhow::Result<NodeNumber>>;

impl Member {
    /// Tells who leads as soon as a quorum has agreed on it; returns when it is stopped.
    fn run(self, told: &Told) -> anyhow::Result<NodeNumber> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let wire = Arc::new(Dialer::new(self.credentials.clone()));
            let on_apply = Arc::new(|_: &dwcp_consensus::State, _: u64| {});
            let tuning = Tuning::default();
            let chain: Chain<Tokio, Folder> =
                Chain::open(self.identity, self.folder, wire, tuning, on_apply).await?;
            let listener = TcpListener::from_std(self.listener)?;
            let answerer = Arc::new(chain.clone());
            let stop = self.stop;
            let answering = tokio::spawn(listen(listener, self.credentials, answerer, stop));
            chain.read(WITHIN).await?;
            let leader = chain.status().leader.context("no leader")?;
            let _ = told.send(Ok(leader));
            answering.await?;
            Ok(leader)
        })
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
        };
        self.ask(number, Command::Record { decision })
            .await
            .map(drop)
    }
}
