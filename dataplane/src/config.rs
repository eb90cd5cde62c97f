//! What the operator says to a data plane, read once at start. In: a TOML file, then variables `DWCP_DATAPLANE_…`,
//! then flags `--set KEY=VALUE`, the later one wins. Out: a [`Config`] in which every value lies inside its limits.
//! An unknown key is refused by name.

mod baseline;
mod driver;
mod pool;
mod tls;

use std::io::ErrorKind::NotFound;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dwcp_hugepages::arena::BackingPolicy;
use dwcp_service::layers::{LayerError, Layers};
use serde::{Deserialize, Serialize};

pub use baseline::BaselineConfig;
pub use driver::{
    BadDriverText, Cidr, CongestionControl, DpdkConfig, DpdkDevice, Driver, RdmaConfig,
    TcpCongestion,
};
pub use pool::PoolConfig;
pub use tls::TlsConfig;

/// Largest shared key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// Shortest shared key, in bytes: below this it can be guessed.
const KEY_BYTES_MIN: usize = 16;

/// Encoders beside the workers where the configuration does not say.
const ENCODERS_DEFAULT_MAX: usize = 4;

/// Lanes of one worker and one back end, over all its sessions.
pub const LANES_OF_A_WORKER: u16 = 1024;

/// Where the file is looked for when none is named; it may be missing there.
pub const FILE_DEFAULT: &str = "/etc/dwcp/dataplane.toml";
/// Variables of the environment that hold settings begin like this.
const VARIABLES: &str = "DWCP_DATAPLANE_";
/// The one that names the file instead.
const FILE_VARIABLE: &str = "DWCP_DATAPLANE_CONFIG";

/// How a worker without work waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdlePolicy {
    /// Spins for ever: for cores that belong to the data plane alone.
    Dedicated,
    /// Spins for at most 50 µs, yields for at most 200 µs, then parks.
    Shared,
    /// Parks at once: for tests on few cores.
    Test,
}

/// Where arenas come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hugepages {
    /// Hugepages if there are any, else ordinary pages, with a warning.
    Prefer,
    /// Hugepages or no start.
    Require,
    /// Ordinary pages.
    Off,
}

impl Hugepages {
    /// The arena's word for it.
    #[must_use]
    pub const fn policy(self) -> BackingPolicy {
        match self {
            Self::Prefer => BackingPolicy::PreferHuge,
            Self::Require => BackingPolicy::RequireHuge,
            Self::Off => BackingPolicy::Ordinary,
        }
    }
}

/// A UNIX socket that any hypervisor may connect to without being announced.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PassiveSource {
    /// Socket to create.
    pub listen: PathBuf,
    /// The peer data plane.
    pub peer: SocketAddr,
    /// Name under which the peer knows the hypervisor to deliver to.
    pub target: String,
    /// The node that must answer there; without it any that proves itself.
    #[serde(default)]
    pub node: Option<String>,
}

/// A hypervisor that unannounced sessions may be delivered to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PassiveTarget {
    /// Name that the peer asks for.
    pub target: String,
    /// The receiving hypervisor's UNIX socket.
    pub connect: PathBuf,
}

/// Everything a data plane is told at start.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this node, as peers see it.
    pub node: String,
    /// UNIX socket on which a control plane attaches.
    pub control_socket: PathBuf,
    /// Where peers connect, on the migration NIC.
    pub listen: SocketAddr,
    /// Where peers are told to connect, if that is not `listen`: where that is the wildcard address, so that the
    /// host's may change, or behind a router that translates.
    pub advertise: Option<SocketAddr>,
    /// File with the key shared by all data planes; not read where every peer needs TLS.
    pub psk_file: PathBuf,
    /// Peers prove themselves by certificates; without it by the shared key, and pages travel readable.
    pub tls: Option<TlsConfig>,
    /// Cores to pin workers to, one worker each; empty: one worker, on the last core.
    pub cores: Vec<usize>,
    /// Threads that compress batches beside the workers; absent: one for each core that no worker has, 4 at most.
    pub encoders: Option<usize>,
    /// How a worker waits; absent: `shared` on up to two cores, else `dedicated`.
    pub idle: Option<IdlePolicy>,
    /// Highest protocol version, 1 or 3.
    pub max_version: u32,
    /// Lanes of a session whose transport is v1.
    pub lanes_v1: u16,
    /// Lanes that a session whose transport is v3 begins with, half of them on a near path.
    pub lanes_v3: u16,
    /// It never has fewer; 0: as the kind of path suggests.
    pub lanes_min: u16,
    /// It never has more; see [`Config::lanes_offered`].
    pub lanes_max: u16,
    /// What decides over the rate of a TCP lane.
    pub tcp_congestion: TcpCongestion,
    /// Bytes held between two hypervisors, at most, per session.
    pub window_limit_bytes: u64,
    /// Mirrored page store, per session.
    pub store_bytes: u64,
    /// What the page stores, windows and compressors of all sessions take together, at most.
    pub memory_limit_bytes: u64,
    /// What the lanes of sessions that begin here are to run over.
    pub driver: Driver,
    /// A DPDK port for lanes.
    pub dpdk: Option<DpdkConfig>,
    /// An RDMA device for lanes.
    pub rdma: Option<RdmaConfig>,
    /// Lanes run over TCP when the driver that they are to run over does not carry.
    pub driver_fallback: bool,
    /// Connections that are ready before a session wants them.
    pub pool: PoolConfig,
    /// Blocks that are kept on disk; without it none are.
    pub baseline: Option<BaselineConfig>,
    /// How long a link may be gone before a session fails closed.
    pub resume_limit_ms: u64,
    /// How long a session waits for its hypervisor or its peer at the beginning.
    pub setup_limit_ms: u64,
    /// Sessions at once, at most.
    pub sessions_max: usize,
    /// Where arenas come from.
    pub hugepages: Hugepages,
    /// Sockets for hypervisors that are not announced.
    pub passive: Vec<PassiveSource>,
    /// Hypervisors that unannounced sessions may be delivered to.
    pub incoming: Vec<PassiveTarget>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: "node".to_owned(),
            control_socket: PathBuf::from("/run/dwcp/dataplane.sock"),
            listen: SocketAddr::from(([127, 0, 0, 1], 4790)),
            advertise: None,
            psk_file: PathBuf::from("/etc/dwcp/psk"),
            tls: None,
            cores: Vec::new(),
            encoders: None,
            idle: None,
            max_version: 3,
            lanes_v1: 32,
            lanes_v3: 16,
            window_limit_bytes: 40 << 20,
            lanes_min: 0,
            lanes_max: 64,
            tcp_congestion: TcpCongestion::Auto,
            store_bytes: 224 << 20,
            memory_limit_bytes: 2_000_000_000,
            driver: Driver::Tcp,
            dpdk: None,
            rdma: None,
            driver_fallback: true,
            pool: PoolConfig::default(),
            baseline: None,
            resume_limit_ms: 30_000,
            setup_limit_ms: 60_000,
            sessions_max: 16,
            hugepages: Hugepages::Prefer,
            passive: Vec::new(),
            incoming: Vec::new(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}; give an existing file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and key.
        message: String,
    },
    /// A source is not understood.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A value outside its limits.
    #[error("{key} = {found}: {rule}")]
    Limit {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        rule: &'static str,
    },
    /// The key file is readable by others.
    #[error("{path} can be read by others (mode {mode:o}): chmod 600 it")]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is too short.
    #[error(
        "{path} holds {found} bytes of key; use at least {KEY_BYTES_MIN}, for example from: head -c 32 /dev/urandom | xxd -p -c 64"
    )]
    KeyShort {
        /// The file.
        path: PathBuf,
        /// Bytes in it, blanks at the ends not counted.
        found: usize,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and the rule.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::of(&Self::layers(path, [], &[])?, path)
    }

    /// Reads all sources: the file, the environment's `variables`, and flags `KEY=VALUE`.
    ///
    /// # Errors
    /// [`ConfigError`] for what cannot be read at all.
    pub fn layers(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Layers, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // Then the environment and flags say it all.
            Err(error) if error.kind() == NotFound && path == Path::new(FILE_DEFAULT) => {
                String::new()
            }
            Err(source) => {
                let path = path.to_owned();
                return Err(ConfigError::Read { path, source });
            }
        };
        // For the place of a mistake in the file: sources laid over one another have none.
        let given_alone = toml::from_str::<Self>(&text).map_err(|error| error.to_string());
        let mut layers = Layers::file(path, &text)?;
        layers.environment(VARIABLES, &[FILE_VARIABLE], variables)?;
        layers.flags(flags)?;
        match given_alone {
            Err(message) if layers.overrides().is_empty() => Err(ConfigError::Parse {
                path: path.to_owned(),
                message,
            }),
            _ => Ok(layers),
        }
    }

    /// What the sources say together; `path` is the file's.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and the rule.
    pub fn of(layers: &Layers, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            layers
                .table()
                .clone()
                .try_into()
                .map_err(|error: toml::de::Error| ConfigError::Parse {
                    path: path.to_owned(),
                    message: format!(
                        "{}; over the file lie: {}",
                        error.to_string().trim(),
                        layers.overrides().join(", ")
                    ),
                })?;
        config.check()?;
        Ok(config)
    }

    /// What is offered to a peer: `lanes_max`, but no more than all sessions there may be can have at once.
    #[must_use]
    pub fn lanes_offered(&self) -> u16 {
        let each = usize::from(LANES_OF_A_WORKER) / self.sessions_max.max(1);
        let each = u16::try_from(each).unwrap_or(u16::MAX);
        self.lanes_max.min(each.max(self.lanes_v3))
    }

    /// How many threads compress batches beside `workers` workers.
    #[must_use]
    pub fn encoders(&self, workers: usize) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.encoders
            .unwrap_or_else(|| cores().saturating_sub(workers).min(ENCODERS_DEFAULT_MAX))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let limit = |ok: bool, key, found: String, rule| {
            if ok {
                Ok(())
            } else {
                Err(ConfigError::Limit { key, found, rule })
            }
        };
        limit(
            !self.node.is_empty() && self.node.len() <= 64,
            "node",
            self.node.clone(),
            "1 to 64 bytes",
        )?;
        limit(
            matches!(self.max_version, 1 | 3),
            "max_version",
            self.max_version.to_string(),
            "1 or 3",
        )?;
        for (key, lanes) in [("lanes_v1", self.lanes_v1), ("lanes_v3", self.lanes_v3)] {
            limit((1..=64).contains(&lanes), key, lanes.to_string(), "1 to 64")?;
        }
        limit(
            (1..=512).contains(&self.lanes_max),
            "lanes_max",
            self.lanes_max.to_string(),
            "1 to 512",
        )?;
        limit(
            self.lanes_min <= self.lanes_max,
            "lanes_min",
            self.lanes_min.to_string(),
            "at most lanes_max",
        )?;
        limit(
            ((2 << 20)..=(1 << 30)).contains(&self.window_limit_bytes),
            "window_limit_bytes",
            self.window_limit_bytes.to_string(),
            "2 MiB to 1 GiB",
        )?;
        limit(
            ((1 << 20)..=(64 << 30)).contains(&self.store_bytes),
            "store_bytes",
            self.store_bytes.to_string(),
            "1 MiB to 64 GiB",
        )?;
        limit(
            ((256 << 20)..=(1 << 40)).contains(&self.memory_limit_bytes),
            "memory_limit_bytes",
            self.memory_limit_bytes.to_string(),
            "256 MiB, with less no session can be opened, to 1 TiB",
        )?;
        limit(
            (1..=dwcp_api::session::SESSIONS_MAX).contains(&self.sessions_max),
            "sessions_max",
            self.sessions_max.to_string(),
            "1 to 64",
        )?;
        limit(
            self.encoders.is_none_or(|encoders| encoders <= 64),
            "encoders",
            self.encoders.unwrap_or_default().to_string(),
            "0 to 64",
        )?;
        limit(
            (1..=64).contains(&self.pool.lanes),
            "pool.lanes",
            self.pool.lanes.to_string(),
            "1 to 64",
        )?;
        limit(
            (1..=86_400).contains(&self.pool.keep_s),
            "pool.keep_s",
            self.pool.keep_s.to_string(),
            "1 to 86400 seconds",
        )?;
        limit(
            self.pool.peers.len() <= PoolConfig::PEERS_MAX,
            "pool.peers",
            format!("{} of them", self.pool.peers.len()),
            "at most 32 addresses",
        )?;
        if let Some(baseline) = &self.baseline {
            limit(
                baseline.dir.is_absolute(),
                "baseline.dir",
                baseline.dir.display().to_string(),
                "an absolute path",
            )?;
            limit(
                baseline.max_bytes >= 16 << 20,
                "baseline.max_bytes",
                baseline.max_bytes.to_string(),
                "16 MiB or more",
            )?;
        }
        if let Some(tls) = &self.tls {
            limit(
                tls.required || !tls.trusted_networks.is_empty(),
                "tls.required",
                "false".to_owned(),
                "needs trusted_networks: name the networks in which the shared key is enough",
            )?;
        }
        limit(
            self.cores.len() <= dwcp_api::worker::WORKERS_MAX,
            "cores",
            self.cores.len().to_string(),
            "at most 64 cores",
        )
    }

    /// Is there a peer for which the shared key is enough?
    #[must_use]
    pub fn uses_psk(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.required)
    }

    /// Reads the shared key.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is missing, readable by others, or too short.
    pub fn read_psk(&self) -> Result<Vec<u8>, ConfigError> {
        let path = &self.psk_file;
        let read = |source| ConfigError::Read {
            path: path.clone(),
            source,
        };
        let meta = std::fs::metadata(path).map_err(read)?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ConfigError::KeyMode {
                path: path.clone(),
                mode,
            });
        }
        if meta.len() > KEY_FILE_BYTES_MAX {
            return Err(ConfigError::Limit {
                key: "psk_file",
                found: format!("{} bytes", meta.len()),
                rule: "at most 4096 bytes",
            });
        }
        let key = std::fs::read(path).map_err(read)?.trim_ascii().to_vec();
        if key.len() < KEY_BYTES_MIN {
            return Err(ConfigError::KeyShort {
                path: path.clone(),
                found: key.len(),
            });
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests;
