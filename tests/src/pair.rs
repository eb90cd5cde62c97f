//! Two data planes in this process, joined by TCP, with a passive socket at one and a hypervisor's
//! listener at the other.
//!
//! In: versions, limits, whether a man stands in the middle. Out: connected sockets. Promise: no wait is
//! without an end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test has nothing better to do than to stop"
)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_dataplane::config::{Config, Hugepages, IdlePolicy, PassiveSource, PassiveTarget};
use dwcp_dataplane::engine::start::Engine;
use dwcp_lab::mitm::Mitm;
use dwcp_lab::watchdog::poll_until;

/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The key that both nodes share, as their key files have it.
pub const PSK: &str = "a shared key for tests only";
/// The name under which the receiving node knows its hypervisor.
pub const TARGET: &str = "vm";

/// How the two are set up.
#[derive(Clone, Copy, Debug)]
pub struct PairOptions {
    /// Highest version of the sending node.
    pub source_version: u32,
    /// Highest version of the receiving node.
    pub destination_version: u32,
    /// Bytes held, at most.
    pub window_limit_bytes: u64,
    /// A man stands between the two and damages what he is told to.
    pub mitm: bool,
    /// How long the link may be gone, ms.
    pub resume_limit_ms: u64,
    /// How long a session waits for its beginning, ms.
    pub setup_limit_ms: u64,
    /// The core that each has its worker on, as an index into those there are; it wraps.
    pub core: usize,
    /// Workers of the receiving node.
    pub destination_workers: usize,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            source_version: 3,
            destination_version: 3,
            window_limit_bytes: 8 << 20,
            mitm: false,
            resume_limit_ms: 30_000,
            setup_limit_ms: 60_000,
            core: usize::MAX,
            destination_workers: 1,
        }
    }
}

/// See the module.
pub struct Pair {
    mitm: Option<Mitm>,
    source: Engine,
    destination: Engine,
    listener: UnixListener,
    dir: tempfile::TempDir,
}

fn config(dir: &Path, node: &str, version: u32, window_limit_bytes: u64) -> Config {
    Config {
        node: node.to_owned(),
        control_socket: dir.join(format!("{node}.control")),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        psk_file: dir.join(format!("{node}.psk")),
        idle: Some(IdlePolicy::Test),
        max_version: version,
        lanes_v1: 8,
        lanes_v3: 4,
        lanes_max: 4,
        window_limit_bytes,
        store_bytes: 16 << 20,
        hugepages: Hugepages::Off,
        ..Config::default()
    }
}

fn write_key(dir: &Path, node: &str, key: &str) {
    let path = dir.join(format!("{node}.psk"));
    std::fs::write(&path, key).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// `workers` cores from the one with index `first` on, wrapping; the last core for no wish.
fn cores(first: usize, workers: usize) -> Vec<usize> {
    let there: Vec<usize> = core_affinity::get_core_ids()
        .unwrap()
        .into_iter()
        .map(|core| core.id)
        .collect();
    let first = if first == usize::MAX {
        there.len() - 1
    } else {
        first
    };
    (0..workers)
        .map(|nth| there[(first + nth) % there.len()])
        .collect()
}

impl Pair {
    /// Starts both.
    #[must_use]
    pub fn start(options: PairOptions) -> Self {
        Self::start_with(options, |_, _| ())
    }

    /// Starts both, after `change` was told of the configurations of the sending and the receiving node.
    #[must_use]
    pub fn start_with(options: PairOptions, change: impl FnOnce(&mut Config, &mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for node in ["a", "b"] {
            write_key(dir.path(), node, PSK);
        }
        let target = dir.path().join("hypervisor-b.sock");
        let listener = UnixListener::bind(&target).unwrap();
        let window = options.window_limit_bytes;
        let mut b = config(dir.path(), "b", options.destination_version, window);
        b.resume_limit_ms = options.resume_limit_ms;
        b.setup_limit_ms = options.setup_limit_ms;
        b.cores = cores(options.core, options.destination_workers);
        b.incoming.push(PassiveTarget {
            target: TARGET.to_owned(),
            connect: target,
        });
        let mut a = config(dir.path(), "a", options.source_version, window);
        a.resume_limit_ms = options.resume_limit_ms;
        a.setup_limit_ms = options.setup_limit_ms;
        a.cores = cores(options.core, 1);
        change(&mut a, &mut b);
        let destination = Engine::start(b).unwrap();
        let mitm = options.mitm.then(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = destination.listen();
            Mitm::start(listener, move || TcpStream::connect(target), Vec::new()).unwrap()
        });
        a.passive.push(PassiveSource {
            listen: dir.path().join("to-b.sock"),
            peer: mitm
                .as_ref()
                .map_or_else(|| destination.listen(), Mitm::address),
            target: TARGET.to_owned(),
            node: None,
        });
        let source = Engine::start(a).unwrap();
        Self {
            mitm,
            source,
            destination,
            listener,
            dir,
        }
    }

    /// Where a control plane attaches to the sending node.
    #[must_use]
    pub fn source_control(&self) -> PathBuf {
        self.dir.path().join("a.control")
    }

    /// Where a control plane attaches to the receiving node.
    #[must_use]
    pub fn destination_control(&self) -> PathBuf {
        self.dir.path().join("b.control")
    }

    /// Where the receiving node awaits its peers.
    #[must_use]
    pub fn destination_address(&self) -> SocketAddr {
        self.destination.listen()
    }

    /// The socket of the receiving hypervisor.
    #[must_use]
    pub fn hypervisor(&self) -> PathBuf {
        self.dir.path().join("hypervisor-b.sock")
    }

    /// Has a worker of either ended by itself?
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.source.is_broken() || self.destination.is_broken()
    }

    /// One more sending node, `node`, whose key file holds `key`. Gives it with its passive socket and
    /// its control socket.
    #[must_use]
    pub fn add_source(&self, node: &str, key: &str) -> (Engine, PathBuf, PathBuf) {
        write_key(self.dir.path(), node, key);
        self.add_source_with(node, |_| ())
    }

    /// One more sending node, after `change` was told of its configuration. Gives it with its passive
    /// socket and its control socket.
    #[must_use]
    pub fn add_source_with(
        &self,
        node: &str,
        change: impl FnOnce(&mut Config),
    ) -> (Engine, PathBuf, PathBuf) {
        self.add_source_to(node, None, change)
    }

    /// The same, for a passive socket that names the node which must answer.
    #[must_use]
    pub fn add_source_to(
        &self,
        node: &str,
        peer_node: Option<&str>,
        change: impl FnOnce(&mut Config),
    ) -> (Engine, PathBuf, PathBuf) {
        let mut config = config(self.dir.path(), node, 3, 8 << 20);
        change(&mut config);
        if config.tls.is_none() && !config.psk_file.exists() {
            write_key(self.dir.path(), node, PSK);
        }
        let listen = self.dir.path().join(format!("{node}-to-b.sock"));
        let peer = self.destination.listen();
        let target = TARGET.to_owned();
        config.passive.push(PassiveSource {
            listen: listen.clone(),
            peer,
            target,
            node: peer_node.map(str::to_owned),
        });
        let control = config.control_socket.clone();
        (Engine::start(config).unwrap(), listen, control)
    }

    /// Where the sending hypervisor connects.
    #[must_use]
    pub fn passive_socket(&self) -> PathBuf {
        self.dir.path().join("to-b.sock")
    }

    /// Connects as the sending hypervisor does.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.passive_socket()).unwrap()
    }

    /// Takes the next connection as the receiving hypervisor does.
    #[must_use]
    pub fn accept(&self) -> UnixStream {
        self.accept_within(PATIENCE).expect("nobody connected")
    }

    /// The same, if there is one in time.
    #[must_use]
    pub fn accept_within(&self, limit: Duration) -> Option<UnixStream> {
        self.listener.set_nonblocking(true).unwrap();
        poll_until(limit, || match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                Some(stream)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        })
    }

    /// The man in the middle.
    #[must_use]
    pub fn mitm(&self) -> &Mitm {
        self.mitm.as_ref().unwrap()
    }

    /// Ends both.
    pub fn stop(self) {
        self.source.stop();
        self.destination.stop();
    }
}

/// Bytes without structure, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}
