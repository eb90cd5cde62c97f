//! The product on a lab host: a data plane, a control plane, and the operator's commands.
//!
//! In: a host, its addresses on the migration and the management network. Out: running processes of the
//! real binaries, a client of the API, `dwcpctl` as a command. Promises: the binaries are those built
//! beside the calling program (or in `DWCP_BIN_DIR`); either plane can be killed and started again; all
//! processes and files go with the value.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::dir::LabDir;
use crate::netns::{Host, NetnsError};
use crate::procs::{Proc, ProcError};
use crate::watchdog::poll_until;

/// Port of every data plane in the lab.
pub const DATA_PORT: u16 = 4790;
/// Port of every API in the lab.
pub const API_PORT: u16 = 7780;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const KEY: &str = "the lab's shared key of the data planes";
const START_LIMIT: Duration = Duration::from_secs(60);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Why the product does not run here.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A binary is missing.
    #[error(
        "{0} is missing: build the workspace's binaries first (cargo build --bins), or set DWCP_BIN_DIR"
    )]
    Missing(PathBuf),
    /// A file of its configuration.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A process.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The host.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It never became ready.
    #[error("{what} was not ready in time; its log:\n{log}")]
    NotReady {
        /// Which process.
        what: &'static str,
        /// The end of its log.
        log: String,
    },
    /// The API answered what is no HTTP.
    #[error("the API's answer is not understood: {0}")]
    Http(String),
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name.
    pub name: String,
    /// Address on the migration network.
    pub data: Ipv4Addr,
    /// Address on the management network.
    pub management: Ipv4Addr,
    /// Highest protocol version, 1 or 3.
    pub max_version: u32,
    /// The data plane listens on every address of its host, and peers are told this one.
    pub listen_any: bool,
    /// More lines for the data plane's configuration.
    pub dataplane_extra: String,
    /// Key of the data planes, if not the lab's.
    pub key: Option<String>,
    /// Settings of the control plane, by its environment.
    pub controlplane_environment: Vec<(String, String)>,
}

impl NodeConfig {
    /// A v3 node with defaults.
    #[must_use]
    pub fn new(name: &str, data: Ipv4Addr, management: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            data,
            management,
            max_version: 3,
            listen_any: false,
            dataplane_extra: String::new(),
            key: None,
            controlplane_environment: Vec::new(),
        }
    }
}

/// Both planes of one host.
pub struct Node<'h> {
    host: &'h Host,
    config: NodeConfig,
    dir: LabDir,
    dataplane: Proc,
    controlplane: Proc,
}

/// The binary `name` of this build.
///
/// # Errors
/// [`StackError::Missing`].
pub fn binary(name: &str) -> Result<PathBuf, StackError> {
    let dir = match std::env::var_os("DWCP_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let program = std::env::current_exe()?;
            let dir = program.parent().unwrap_or(Path::new("/")).to_owned();
            // Test programs lie one folder below the binaries.
            if dir.ends_with("deps") {
                dir.join("..")
            } else {
                dir
            }
        }
    };
    let path = dir.join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(StackError::Missing(path))
    }
}

fn private_file(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

impl<'h> Node<'h> {
    /// Starts both planes and waits until the control plane is attached.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn start(host: &'h Host, config: NodeConfig) -> Result<Self, StackError> {
        let dir = LabDir::new("node")?;
        private_file(&dir.file("token"), TOKEN)?;
        private_file(&dir.file("psk"), config.key.as_deref().unwrap_or(KEY))?;
        fs::create_dir_all(dir.file("state"))?;
        let mut text = String::new();
        let listen = if config.listen_any {
            format!("0.0.0.0:{DATA_PORT}\"\nadvertise = \"{}", config.data)
        } else {
            config.data.to_string()
        };
        let _ = write!(
            text,
            "node = \"{}\"\ncontrol_socket = \"{}\"\nlisten = \"{listen}:{DATA_PORT}\"\npsk_file = \"{}\"\n\
             max_version = {}\n{}",
            config.name,
            dir.file("attach").display(),
            dir.file("psk").display(),
            config.max_version,
            config.dataplane_extra,
        );
        fs::write(dir.file("dataplane.toml"), text)?;
        let text = format!(
            "node = \"{}\"\nlisten = \"{}:{API_PORT}\"\nattach = \"{}\"\nstate_dir = \"{}\"\n\
             socket_dir = \"{}\"\nqmp_allowed_dirs = [\"/tmp\"]\ntoken_file = \"{}\"\n",
            config.name,
            config.management,
            dir.file("attach").display(),
            dir.file("state").display(),
            dir.file("sessions").display(),
            dir.file("token").display(),
        );
        fs::write(dir.file("controlplane.toml"), text)?;
        let dataplane = spawn_dataplane(host, &dir)?;
        let controlplane = spawn_controlplane(host, &dir, &config)?;
        let mut node = Self {
            host,
            config,
            dir,
            dataplane,
            controlplane,
        };
        node.wait_ready()?;
        Ok(node)
    }

    fn wait_ready(&mut self) -> Result<(), StackError> {
        let ready = poll_until(START_LIMIT, || {
            if self.dataplane.ended().is_some() || self.controlplane.ended().is_some() {
                return Some(false);
            }
            let answer = self.api("GET", "/v1/health", None).ok()?;
            (answer.0 == 200).then_some(true)
        });
        if ready == Some(true) {
            return Ok(());
        }
        let log = format!(
            "{}\n{}",
            tail(self.dataplane.log()),
            tail(self.controlplane.log())
        );
        Err(StackError::NotReady {
            what: "a node",
            log,
        })
    }

    /// The data plane's process.
    pub fn dataplane(&mut self) -> &mut Proc {
        &mut self.dataplane
    }

    /// The control plane's process.
    pub fn controlplane(&mut self) -> &mut Proc {
        &mut self.controlplane
    }

    /// Kills the control plane as a crash would.
    ///
    /// # Errors
    /// What the system said.
    pub fn kill_controlplane(&mut self) -> std::io::Result<()> {
        self.controlplane.signal(Signal::KILL)
    }

    /// Kills the data plane as a crash would.
    ///
    /// # Errors
    /// What the system said.
    pub fn kill_dataplane(&mut self) -> std::io::Result<()> {
        self.dataplane.signal(Signal::KILL)
    }

    /// Starts a new control plane in the place of one that is gone.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn restart_controlplane(&mut self) -> Result<(), StackError> {
        self.controlplane = spawn_controlplane(self.host, &self.dir, &self.config)?;
        self.wait_ready()
    }

    /// Starts a new data plane in the place of one that is gone.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn restart_dataplane(&mut self) -> Result<(), StackError> {
        self.dataplane = spawn_dataplane(self.host, &self.dir)?;
        self.wait_ready()
    }

    /// URL of the API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}:{API_PORT}", self.config.management)
    }

    /// Folder of this node's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `dwcpctl` on this host, speaking to this node.
    ///
    /// # Errors
    /// [`StackError::Missing`].
    pub fn ctl(&self, arguments: &[&str]) -> Result<Command, StackError> {
        let mut command = self.host.command(binary("dwcpctl")?);
        command
            .env("DWCP_API", self.url())
            .env("DWCP_TOKEN_FILE", self.dir.file("token"));
        command.args(arguments);
        Ok(command)
    }

    /// One request to the API; the answer's status and JSON (null if it is none).
    ///
    /// # Errors
    /// [`StackError`] if nobody answers.
    pub fn api(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), StackError> {
        self.api_timed(method, path, body, || ())
    }

    /// The same, with `begins` called right before the request: the thread that it is made on, and the way into
    /// the host, take milliseconds on a busy machine.
    ///
    /// # Errors
    /// [`StackError`] if nobody answers.
    pub fn api_timed(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        begins: impl FnOnce() + Send,
    ) -> Result<(u16, Value), StackError> {
        let address = SocketAddr::from((self.config.management, API_PORT));
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = self.host.enter(|| -> std::io::Result<Vec<u8>> {
            begins();
            let mut stream = TcpStream::connect_timeout(&address, REQUEST_LIMIT)?;
            stream.set_read_timeout(Some(REQUEST_LIMIT))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })??;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| StackError::Http(text.chars().take(200).collect()))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| StackError::Http(head.to_owned()))?;
        Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }
}

fn spawn_dataplane(host: &Host, dir: &LabDir) -> Result<Proc, StackError> {
    let mut command = host.command(binary("dwcp-dataplane")?);
    command.arg("--config").arg(dir.file("dataplane.toml"));
    Ok(Proc::spawn(command, &dir.file("dataplane.log"))?)
}

fn spawn_controlplane(host: &Host, dir: &LabDir, config: &NodeConfig) -> Result<Proc, StackError> {
    let mut command = host.command(binary("dwcp-controlplane")?);
    let environment = config.controlplane_environment.iter();
    command.envs(environment.map(|(name, value)| (name, value)));
    command.arg("--config").arg(dir.file("controlplane.toml"));
    Ok(Proc::spawn(command, &dir.file("controlplane.log"))?)
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
