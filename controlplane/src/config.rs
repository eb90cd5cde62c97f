//! Settings of the control plane.
//!
//! In: a TOML file, then the environment (`DWCP_…`), then flags; the later one wins. Out: [`Config`],
//! checked. Promise: a key that is not known is refused and named, so that a typing error never
//! means a default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, Parser};
use dwcp_service::layers::{LayerError, Layers, Origin};
use dwcp_service::show::{Shown, show};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterConfig;
use crate::flags::NodeId;
use crate::tls::{self, TlsError};

/// Where the file is looked for when none is named; it may be missing there.
pub const FILE_DEFAULT: &str = "/etc/dwcp/controlplane.toml";

/// The control plane of one host.
#[derive(Parser, Clone, Debug, Default)]
#[command(name = "dwcp-controlplane", version, about, long_about = None)]
pub struct Args {
    /// Settings file; without it /etc/dwcp/controlplane.toml is read if it exists
    #[arg(
        long,
        global = true,
        env = "DWCP_CONTROLPLANE_CONFIG",
        value_name = "PATH"
    )]
    pub config: Option<PathBuf>,
    /// The settings themselves
    #[command(flatten)]
    pub settings: Settings,
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Looks at the settings; those given as flags come before this word
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// What can be asked about the settings.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum ConfigCommand {
    /// Checks the settings and the token files
    Check,
    /// Prints the values in force and where each came from
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// The settings as one source gives them: what is absent is left to the source before.
#[derive(clap::Args, Deserialize, Serialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address of the API [default: 127.0.0.1:7780]
    #[arg(long, env = "DWCP_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Attach socket of the data plane [default: /run/dwcp/dataplane.sock]
    #[arg(long, env = "DWCP_ATTACH", value_name = "PATH")]
    pub attach: Option<PathBuf>,
    /// Folder of what outlives a restart [default: /var/lib/dwcp]
    #[arg(long, env = "DWCP_STATE_DIR", value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Folder of the sockets that hypervisors connect to [default: /run/dwcp/sessions]
    #[arg(long, env = "DWCP_SOCKET_DIR", value_name = "PATH")]
    pub socket_dir: Option<PathBuf>,
    /// Folders whose QMP sockets may be used, separated by colons [default: /run/dwcp/qmp]
    #[arg(
        long,
        env = "DWCP_QMP_ALLOWED_DIRS",
        value_name = "PATH",
        value_delimiter = ':'
    )]
    pub qmp_allowed_dirs: Option<Vec<PathBuf>>,
    /// Name of this node in rollouts [default: the host's name]
    #[arg(long, env = "DWCP_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// File with the API's bearer token, mode 0600 [default: /etc/dwcp/token]
    #[arg(long, env = "DWCP_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// File with the token for peers' APIs [default: token_file]
    #[arg(long, env = "DWCP_PEER_TOKEN_FILE", value_name = "PATH")]
    pub peer_token_file: Option<PathBuf>,
    /// Serve /metrics without a token [default: false]
    #[arg(long, env = "DWCP_METRICS_OPEN", value_name = "BOOL")]
    pub metrics_open: Option<bool>,
    /// The API's certificate and what lies between it and its authority, PEM; with it the API speaks TLS alone
    #[arg(long, env = "DWCP_TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM, mode 0600
    #[arg(long, env = "DWCP_TLS_KEY", value_name = "PATH")]
    pub tls_key: Option<PathBuf>,
    /// Authorities of peers' APIs, PEM; without it peers are spoken to over http alone
    #[arg(long, env = "DWCP_TLS_CA", value_name = "PATH")]
    pub tls_ca: Option<PathBuf>,
    /// Requests a second that each caller may send, twice as many at once; 0: any number [default: 500]
    #[arg(long, env = "DWCP_REQUESTS_PER_S", value_name = "N")]
    pub requests_per_s: Option<u32>,
    /// Collector of traces, OTLP over HTTP; without it nothing is traced
    #[arg(long, env = "DWCP_TRACE_ENDPOINT", value_name = "URL")]
    pub trace_endpoint: Option<String>,
    /// Share of the migrations that are traced, 0 to 1 [default: 1]
    #[arg(long, env = "DWCP_TRACE_SHARE", value_name = "SHARE")]
    pub trace_share: Option<f64>,
    /// Where sysfs is mounted; a container sees its host's elsewhere [default: /sys]
    #[arg(long, env = "DWCP_SYSFS", value_name = "PATH")]
    pub sysfs: Option<PathBuf>,
    /// Where procfs is mounted [default: /proc]
    #[arg(long, env = "DWCP_PROCFS", value_name = "PATH")]
    pub procfs: Option<PathBuf>,
    /// Folder of the baselines, the same as in the data plane's [baseline] dir [default: none are kept]
    #[arg(long, env = "DWCP_BASELINE_DIR", value_name = "PATH")]
    pub baseline_dir: Option<PathBuf>,
    /// Bytes that they may take, the same as in the data plane's [baseline] max_bytes [default: 2147483648]
    #[arg(long, env = "DWCP_BASELINE_MAX_BYTES", value_name = "BYTES")]
    pub baseline_max_bytes: Option<u64>,
    /// Threads that serve requests, 1 to 16 [default: 1]
    #[arg(long, env = "DWCP_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// The cluster, in the file alone; without it this node is a cluster of its own
    #[arg(skip)]
    pub cluster: Option<ClusterConfig>,
}

/// The settings in force.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Config {
    /// Address of the API.
    pub listen: SocketAddr,
    /// Attach socket of the data plane.
    pub attach: PathBuf,
    /// Folder of what outlives a restart.
    pub state_dir: PathBuf,
    /// Folder of the sockets that hypervisors connect to.
    pub socket_dir: PathBuf,
    /// Folders whose QMP sockets may be used.
    pub qmp_allowed_dirs: Vec<PathBuf>,
    /// Name of this node in rollouts.
    pub node: NodeId,
    /// File with the API's bearer token.
    pub token_file: PathBuf,
    /// File with the token for peers' APIs.
    pub peer_token_file: PathBuf,
    /// Serve `/metrics` without a token.
    pub metrics_open: bool,
    /// The API's certificate.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key.
    pub tls_key: Option<PathBuf>,
    /// Authorities of peers' APIs.
    pub tls_ca: Option<PathBuf>,
    /// Requests a second that each caller may send.
    pub requests_per_s: u32,
    /// Collector of traces.
    pub trace_endpoint: Option<String>,
    /// Share of the migrations that are traced.
    pub trace_share: f64,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Where procfs is mounted.
    pub procfs: PathBuf,
    /// Folder of the baselines.
    pub baseline_dir: Option<PathBuf>,
    /// Bytes that they may take.
    pub baseline_max_bytes: u64,
    /// Threads that serve requests.
    pub threads: usize,
    /// The cluster this node is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterConfig>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// File meant.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is no TOML, or has a key or a value that is not known.
    #[error(
        "{path}: {reason}\ncorrect the key or remove it; `dwcp-controlplane --help` lists the settings"
    )]
    Refused {
        /// File meant.
        path: PathBuf,
        /// What the parser said, with the line and the key.
        reason: String,
    },
    /// A source is not understood.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A setting cannot be shown.
    #[error("the settings cannot be shown: {0}")]
    Unshown(#[from] toml::ser::Error),
    /// A value is outside its limits.
    #[error("{key} = {found:?} {why}")]
    Value {
        /// Key meant.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is wrong and what would be right.
        why: &'static str,
    },
}

impl Args {
    /// The file to read, if there is one.
    fn file(&self) -> Option<&Path> {
        let default = Path::new(FILE_DEFAULT);
        let default = default.exists().then_some(default);
        self.config.as_deref().or(default)
    }
}

impl Config {
    /// Reads the file and lays the environment and the flags (both in `args`) over it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let file = match args.file() {
            Some(path) => read_file(path)?,
            None => Settings::default(),
        };
        Self::resolve(args.settings.clone().over(file))
    }

    /// The settings in force and where each came from; `matches` is what `args` were made of.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn shown(&self, args: &Args, matches: &ArgMatches) -> Result<Shown, ConfigError> {
        let layers = match args.file() {
            Some(path) => {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                Layers::file(path, &text)?
            }
            None => Layers::default(),
        };
        let command = Args::command();
        let origin = |key: &str| {
            let known = command.get_arguments().find(|it| it.get_id() == key);
            let source = known.and_then(|_| matches.value_source(key));
            match (source, known.and_then(Arg::get_env)) {
                (Some(ValueSource::CommandLine), _) => {
                    Origin::Flag(format!("--{}", key.replace('_', "-")))
                }
                (Some(ValueSource::EnvVariable), Some(name)) => {
                    Origin::Environment(name.to_string_lossy().into_owned())
                }
                _ => layers.origin(key),
            }
        };
        Ok(show(self, origin)?)
    }

    fn resolve(settings: Settings) -> Result<Self, ConfigError> {
        let path = |given: Option<PathBuf>, default: &str| given.unwrap_or_else(|| default.into());
        let node = settings.node.unwrap_or_else(|| {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        });
        let token_file = path(settings.token_file, "/etc/dwcp/token");
        let config = Self {
            listen: settings
                .listen
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7780))),
            attach: path(settings.attach, "/run/dwcp/dataplane.sock"),
            state_dir: path(settings.state_dir, "/var/lib/dwcp"),
            socket_dir: path(settings.socket_dir, "/run/dwcp/sessions"),
            qmp_allowed_dirs: settings
                .qmp_allowed_dirs
                .unwrap_or_else(|| vec!["/run/dwcp/qmp".into()]),
            node: NodeId::new(&node).ok_or(ConfigError::Value {
                key: "node",
                found: node,
                why: "is no node name: 1 to 64 characters out of A-Z a-z 0-9 . _ -",
            })?,
            peer_token_file: settings
                .peer_token_file
                .unwrap_or_else(|| token_file.clone()),
            token_file,
            metrics_open: settings.metrics_open.unwrap_or(false),
            tls_cert: settings.tls_cert,
            tls_key: settings.tls_key,
            tls_ca: settings.tls_ca,
            requests_per_s: settings.requests_per_s.unwrap_or(500),
            trace_endpoint: settings.trace_endpoint,
            trace_share: settings.trace_share.unwrap_or(1.0),
            sysfs: path(settings.sysfs, "/sys"),
            procfs: path(settings.procfs, "/proc"),
            baseline_dir: settings.baseline_dir,
            baseline_max_bytes: settings.baseline_max_bytes.unwrap_or(2 << 30),
            threads: settings.threads.unwrap_or(1),
            cluster: settings.cluster,
        };
        config.check()?;
        Ok(config)
    }

    /// What the API shows, if it speaks TLS.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn tls(&self) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => tls::server(cert, key).map(Some),
            _ => Ok(None),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |key, found: &dyn ToString, why| {
            Err(ConfigError::Value {
                key,
                found: found.to_string(),
                why,
            })
        };
        if let Some((key, found, why)) = self.cluster.as_ref().and_then(ClusterConfig::flaw) {
            return value(key, &found, why);
        }
        if !(1..=16).contains(&self.threads) {
            return value("threads", &self.threads, "is outside 1 to 16");
        }
        if !(0.0..=1.0).contains(&self.trace_share) {
            return value("trace_share", &self.trace_share, "is outside 0 to 1");
        }
        if let Some(endpoint) = &self.trace_endpoint
            && !["http://", "https://"]
                .iter()
                .any(|it| endpoint.starts_with(it))
        {
            let why = "is no address of a collector: http://HOST:4318 or https://HOST:4318";
            return value("trace_endpoint", endpoint, why);
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let found = self.tls_cert.as_ref().or(self.tls_key.as_ref());
            let found = found.map_or_else(String::new, |path| path.display().to_string());
            return value(
                "tls_cert",
                &found,
                "and tls_key belong together: give both or none",
            );
        }
        let tls = [
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("tls_ca", &self.tls_ca),
        ];
        let tls = tls
            .into_iter()
            .filter_map(|(key, path)| path.as_ref().map(|path| (key, path)));
        let single = [
            ("attach", &self.attach),
            ("state_dir", &self.state_dir),
            ("socket_dir", &self.socket_dir),
            ("token_file", &self.token_file),
            ("peer_token_file", &self.peer_token_file),
            ("sysfs", &self.sysfs),
            ("procfs", &self.procfs),
        ];
        let allowed = self
            .qmp_allowed_dirs
            .iter()
            .map(|path| ("qmp_allowed_dirs", path));
        let baseline = self.baseline_dir.iter().map(|path| ("baseline_dir", path));
        let all = single.into_iter().chain(tls).chain(allowed);
        for (key, path) in all.chain(baseline) {
            if !path.is_absolute() {
                return value(key, &path.display(), "is no absolute path: begin it with /");
            }
        }
        if self.qmp_allowed_dirs.is_empty() {
            return value(
                "qmp_allowed_dirs",
                &"",
                "is empty: name the folders of the QMP sockets",
            );
        }
        Ok(())
    }
}

impl Settings {
    /// These settings where they are given, `below` where not.
    fn over(self, below: Self) -> Self {
        Self {
            listen: self.listen.or(below.listen),
            attach: self.attach.or(below.attach),
            state_dir: self.state_dir.or(below.state_dir),
            socket_dir: self.socket_dir.or(below.socket_dir),
            qmp_allowed_dirs: self.qmp_allowed_dirs.or(below.qmp_allowed_dirs),
            node: self.node.or(below.node),
            token_file: self.token_file.or(below.token_file),
            peer_token_file: self.peer_token_file.or(below.peer_token_file),
            metrics_open: self.metrics_open.or(below.metrics_open),
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            tls_ca: self.tls_ca.or(below.tls_ca),
            requests_per_s: self.requests_per_s.or(below.requests_per_s),
            trace_endpoint: self.trace_endpoint.or(below.trace_endpoint),
            trace_share: self.trace_share.or(below.trace_share),
            sysfs: self.sysfs.or(below.sysfs),
            procfs: self.procfs.or(below.procfs),
            baseline_dir: self.baseline_dir.or(below.baseline_dir),
            baseline_max_bytes: self.baseline_max_bytes.or(below.baseline_max_bytes),
            threads: self.threads.or(below.threads),
            cluster: self.cluster.or(below.cluster),
        }
    }
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })?;
    toml::from_str(&text).map_err(|error| ConfigError::Refused {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, flags: &[&str]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controlplane.toml");
        std::fs::write(&path, file).unwrap();
        let mut args = vec!["dwcp-controlplane", "--config", path.to_str().unwrap()];
        args.extend(flags);
        Config::load(&Args::try_parse_from(args).unwrap())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let config = load("node = \"a\"\nthreads = 2\n", &["--threads", "3"]).unwrap();
        assert_eq!((config.node.as_str(), config.threads), ("a", 3));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7780");
        assert_eq!(config.peer_token_file, config.token_file);
        let dirs = load("", &["--qmp-allowed-dirs", "/a:/b"])
            .unwrap()
            .qmp_allowed_dirs;
        assert_eq!(dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn what_is_shown_says_where_it_came_from() {
        use clap::FromArgMatches;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controlplane.toml");
        std::fs::write(&path, "node = \"a\"\nthreads = 2\n").unwrap();
        let file = path.to_str().unwrap();
        let words = ["x", "--threads", "3", "config", "show", "--config", file];
        let matches = Args::command().get_matches_from(words);
        let args = Args::from_arg_matches(&matches).unwrap();
        let config = Config::load(&args).unwrap();
        let shown = config.shown(&args, &matches).unwrap();
        let of = |key: &str| {
            let row = shown.settings.iter().find(|row| row.key == key).unwrap();
            format!("{} {}", row.value, row.from)
        };
        assert_eq!(of("threads"), "3 flag --threads");
        assert_eq!(of("node"), format!("\"a\" file {file}"));
        assert_eq!(of("metrics_open"), "false default");
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = load("lissten = \"127.0.0.1:1\"\n", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("lissten") && error.contains("--help"),
            "{error}"
        );
        let error = load("[listen]\n", &[]).unwrap_err().to_string();
        assert!(error.contains("listen"), "{error}");
    }

    #[test]
    fn values_outside_their_limits_are_named() {
        for (file, key) in [
            ("threads = 0", "threads"),
            ("threads = 17", "threads"),
            ("node = \"a b\"", "node"),
            ("attach = \"run/attach\"", "attach"),
            ("sysfs = \"sys\"", "sysfs"),
            ("tls_cert = \"/c\"", "tls_cert"),
            ("tls_ca = \"c\"", "tls_ca"),
            ("baseline_dir = \"here\"", "baseline_dir"),
            ("qmp_allowed_dirs = []", "qmp_allowed_dirs"),
            ("qmp_allowed_dirs = [\"x\"]", "qmp_allowed_dirs"),
        ] {
            match load(file, &[]) {
                Err(ConfigError::Value { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{file}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let args = Args {
            config: Some("/nonexistent.toml".into()),
            ..Args::default()
        };
        assert!(matches!(
            Config::load(&args),
            Err(ConfigError::Unreadable { .. })
        ));
    }
}
