//! The program, and a control plane of its own in this process.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use clap::Parser;
use dwcp_controlplane::config::{Args, Config};
use dwcp_controlplane::node;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const TOKEN: &str = "0123456789abcdef-token";

pub async fn watchdog<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(180), work)
        .await
        .expect("hangs")
}

/// The program with an address and a good token.
pub fn ctl(api: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcpctl"));
    command
        .env_remove("DWCP_TOKEN_FILE")
        .env("DWCP_API", api)
        .env("DWCP_TOKEN", TOKEN)
        .env("USER", "alice")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .args(args);
    command
}

pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout.clone()).unwrap(),
        err: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

pub async fn run(api: &str, args: &[&str]) -> Said {
    said(&watchdog(ctl(api, args).output()).await.unwrap())
}

/// The real control plane.
pub struct Node {
    pub api: String,
    pub stop: watch::Sender<bool>,
    pub task: JoinHandle<()>,
}

pub async fn node(folder: &Path) -> Node {
    let token = folder.join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(folder.join("c.toml"), "").unwrap();
    let mut args = vec![
        "x".to_owned(),
        "--node".to_owned(),
        "node-000000".to_owned(),
    ];
    for (flag, name) in [
        ("--config", "c.toml"),
        ("--attach", "dp.sock"),
        ("--state-dir", "state"),
        ("--socket-dir", "sockets"),
        ("--qmp-allowed-dirs", "qmp"),
        ("--token-file", "token"),
    ] {
        args.extend([flag.to_owned(), folder.join(name).display().to_string()]);
    }
    let config = Config::load(&Args::try_parse_from(args).unwrap()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(async move { node::run(&config, listener, stopped).await.unwrap() });
    Node { api, stop, task }
}
