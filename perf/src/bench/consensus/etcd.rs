//! Three etcd members, and its `Put` over gRPC.
//!
//! In: a folder. Out: clients of the leader. Promise: the processes end with the value.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tokio::net::TcpStream;

use super::VALUE_BYTES;

const PORTS: [(u16, u16); 3] = [(23791, 23801), (23792, 23802), (23793, 23803)];

/// See the module.
pub(super) struct Etcd {
    members: Vec<Child>,
    leader: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// One connection.
pub(super) struct Client {
    send: h2::client::SendRequest<Bytes>,
    port: u16,
}

impl Etcd {
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let cluster: Vec<String> = PORTS
            .iter()
            .enumerate()
            .map(|(at, (_, peers))| format!("e{at}=http://127.0.0.1:{peers}"))
            .collect();
        let mut etcd = Self {
            members: Vec::new(),
            leader: 0,
        };
        for (at, (clients, peers)) in PORTS.iter().enumerate() {
            let url = |port: &u16| format!("http://127.0.0.1:{port}");
            let child = Command::new("etcd")
                .args(["--name", &format!("e{at}")])
                .arg("--data-dir")
                .arg(dir.join(format!("etcd{at}")))
                .args(["--listen-client-urls", &url(clients)])
                .args(["--advertise-client-urls", &url(clients)])
                .args(["--listen-peer-urls", &url(peers)])
                .args(["--initial-advertise-peer-urls", &url(peers)])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--log-level", "error"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("etcd does not start: apt-get install etcd-server etcd-client")?;
            etcd.members.push(child);
        }
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Some(leader) = leader()? {
                etcd.leader = leader;
                return Ok(etcd);
            }
        }
        bail!("etcd has no leader after 10 s")
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let tcp = TcpStream::connect(("127.0.0.1", self.leader)).await?;
        tcp.set_nodelay(true)?;
        let (send, connection) = h2::client::handshake(tcp).await?;
        tokio::spawn(connection);
        Ok(Client {
            send,
            port: self.leader,
        })
    }
}

/// Client port of the member that leads.
fn leader() -> anyhow::Result<Option<u16>> {
    let urls: Vec<String> = PORTS
        .iter()
        .map(|(clients, _)| format!("http://127.0.0.1:{clients}"))
        .collect();
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["endpoint", "status", "--endpoints", &urls.join(",")])
        .output()
        .context("etcdctl does not start: apt-get install etcd-client")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Address, number, version, size, leads, …
    let leads = said
        .lines()
        .find(|line| line.split(", ").nth(4) == Some("true"));
    Ok(leads.and_then(|line| line.split(", ").next()?.rsplit(':').next()?.parse().ok()))
}

impl super::Client for Client {
    async fn commit(&mut self, number: u64) -> anyhow::Result<()> {
        let request = http::Request::post(format!(
            "http://127.0.0.1:{}/etcdserverpb.KV/Put",
            self.port
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
        let mut send = self.send.clone().ready().await?;
        let (answer, mut body) = send.send_request(request, false)?;
        body.send_data(put(number), true)?;
        let mut answer = answer.await?.into_body();
        while let Some(piece) = answer.data().await {
            let length = piece?.len();
            answer.flow_control().release_capacity(length)?;
        }
        let trailers = answer.trailers().await?.context("no status")?;
        let status = trailers.get("grpc-status").map(|status| status.as_bytes());
        ensure!(status == Some(b"0"), "etcd refused: {trailers:?}");
        Ok(())
    }
}

/// A `PutRequest` in its gRPC frame: key is field 1, value field 2.
fn put(number: u64) -> Bytes {
    let key = format!("key{:04}", number % 1_000);
    let mut message = vec![0x0a, key.len() as u8];
    message.extend_from_slice(key.as_bytes());
    // 256 as a varint has two bytes.
    message.extend_from_slice(&[
        0x12,
        (VALUE_BYTES % 128) as u8 | 0x80,
        (VALUE_BYTES / 128) as u8,
    ]);
    message.extend_from_slice(&[b'v'; VALUE_BYTES]);
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}
