//! A control plane in this process, on a port of its own, for the API's tests.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use dwcp_controlplane::config::{Args, Config};
use dwcp_controlplane::node;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};

pub const TOKEN: &str = "0123456789abcdef-token";

pub struct Server {
    pub address: SocketAddr,
    pub http: reqwest::Client,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<(), node::NodeError>>,
}

/// Settings of a node whose files all lie in `folder`.
pub fn config(folder: &Path, more: &[&str]) -> Config {
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = folder.join("controlplane.toml");
    std::fs::write(&file, "").unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let (file, attach, state, sockets, qmp, token) = (
        path("controlplane.toml"),
        path("attach.sock"),
        path("state"),
        path("sockets"),
        path("qmp"),
        path("token"),
    );
    let mut args = vec![
        "dwcp-controlplane",
        "--config",
        &file,
        "--node",
        "node-000000",
    ];
    args.extend([
        "--attach",
        &attach,
        "--state-dir",
        &state,
        "--socket-dir",
        &sockets,
    ]);
    args.extend(["--qmp-allowed-dirs", &qmp, "--token-file", &token]);
    args.extend(more);
    Config::load(&Args::try_parse_from(args).unwrap()).unwrap()
}

impl Server {
    /// Starts it on a thread and a runtime of its own, so that its end frees everything, as the end of
    /// its process would.
    pub async fn start(folder: &Path, more: &[&str]) -> Self {
        let config = config(folder, more);
        let (stop, stopped) = watch::channel(false);
        let (ready, address) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                node::run(&config, listener, stopped).await
            })
        });
        let address = watchdog(address).await.unwrap();
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .tls_backend_preconfigured(dwcp_controlplane::tls::client(None).unwrap())
            .build()
            .unwrap();
        Self {
            address,
            http,
            stop,
            thread,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.http.request(method, self.url(path)).bearer_auth(TOKEN)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request("GET", path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request("POST", path).json(&body)).await
    }

    /// Waits until `path` answers what `good` wants.
    pub async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        watchdog(async {
            loop {
                let (_, value) = self.get(path).await;
                if good(&value) {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Stops it as a signal would, and waits until it is gone.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        drop(self.http);
        let thread = self.thread;
        let ended = tokio::task::spawn_blocking(move || thread.join().unwrap());
        watchdog(ended).await.unwrap().unwrap();
    }
}

pub async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = watchdog(request.send()).await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

/// Ends a hang.
pub async fn watchdog<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("hangs")
}
