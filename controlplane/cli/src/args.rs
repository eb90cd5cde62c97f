//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::access::Tokens;
use crate::baseline::Baseline;
use crate::exit;
use crate::nic::Nic;
use crate::pki::Pki;

/// Moves running virtual machines, and steers how.
#[derive(Parser, Debug)]
#[command(name = "dwcpctl", version, after_help = exit::HELP)]
pub struct Cli {
    /// Address of this host's control plane
    #[arg(
        long,
        env = "DWCP_API",
        global = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:7780"
    )]
    pub api: String,
    /// File that holds the token [default: /etc/dwcp/token; DWCP_TOKEN may hold the token itself]
    #[arg(long, env = "DWCP_TOKEN_FILE", global = true, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Authorities of control planes that speak TLS, PEM; needed for https://
    #[arg(long, env = "DWCP_CA", global = true, value_name = "PATH")]
    pub ca: Option<PathBuf>,
    /// Results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Move a running guest to another host and follow it to its end
    Migrate(Migrate),
    /// Show all migrations, or one
    Status {
        /// Which one
        id: Option<String>,
        /// Follow it to its end, or without an id show all again whenever something changes
        #[arg(long)]
        watch: bool,
    },
    /// Cancel a migration; the guest goes on at the source
    Cancel {
        /// Which one
        id: String,
    },
    /// Show or change how many bytes a second go on the wire, at once and while migrations run
    Limit {
        /// Of this migration
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// Of all migrations of this host together
        #[arg(long)]
        all: bool,
        /// The new limit, with K, M or G for powers of 1000; 0 lifts it; without it the limit is shown
        #[arg(long, value_name = "BYTES", value_parser = bytes)]
        to: Option<u64>,
    },
    /// The destination of a migration has another address on the migration network: go on there
    Redirect {
        /// Which one
        id: String,
        /// Where its data plane is now
        #[arg(long, value_name = "ADDRESS:PORT")]
        to: std::net::SocketAddr,
    },
    /// Connect both sides of a post-copy migration again that is paused, and follow it to its end
    Recover {
        /// Which one
        id: String,
        /// Do not follow it
        #[arg(long)]
        detach: bool,
    },
    /// Show or change feature flags
    #[command(args_conflicts_with_subcommands = true)]
    Flags {
        /// Show them again whenever something changes
        #[arg(long)]
        watch: bool,
        /// What to do with them [default: list]
        #[command(subcommand)]
        command: Option<Flags>,
    },
    /// Show in which mode each peer's sessions are and why, or override it
    #[command(args_conflicts_with_subcommands = true)]
    Mode {
        /// Show them again whenever something changes
        #[arg(long)]
        watch: bool,
        /// What to do [default: show]
        #[command(subcommand)]
        command: Option<ModeCommand>,
    },
    /// Show the cluster, or change its members or its leader
    #[command(args_conflicts_with_subcommands = true)]
    Cluster {
        /// Show it again whenever something changes
        #[arg(long)]
        watch: bool,
        /// What to do [default: status]
        #[command(subcommand)]
        command: Option<ClusterCommand>,
    },
    /// Bring a version to more and more nodes, judged by what it does; it goes back by itself
    Rollout {
        /// What to do [default: list]
        #[command(subcommand)]
        command: Option<RolloutCommand>,
    },
    /// Throw the kill switch: everything goes back to v1, running migrations included
    Rollback {
        /// Release it: the flags decide again
        #[arg(long)]
        off: bool,
    },
    /// Show the NICs of this host, or give one to migrations by a profile
    Nic {
        /// What to do with them
        #[command(subcommand)]
        command: Nic,
    },
    /// Show or change what this host keeps on disk so that it need not travel: images, earlier migrations
    Baseline {
        /// What to do with them
        #[command(subcommand)]
        command: Baseline,
    },
    /// Is this node fit to move guests?
    Health {
        /// With everything behind the judgement
        #[arg(long)]
        detailed: bool,
        /// Judge again, and say when the judgement changes
        #[arg(long)]
        watch: bool,
    },
    /// Where the data plane's time goes
    Perf {
        /// What to show
        #[command(subcommand)]
        command: Perf,
    },
    /// Hand out tokens for the API, show or revoke them
    Tokens {
        /// What to do with them
        #[command(subcommand)]
        command: Tokens,
    },
    /// Who changed what, the newest first
    Audit {
        /// So many entries
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Print what a shell needs to complete this command line; needs no control plane
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder; needs no control plane
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Make certificates for TLS between data planes, in a folder; needs no control plane
    Pki {
        /// What to make
        #[command(subcommand)]
        command: Pki,
    },
}

/// `dwcpctl perf`
#[derive(Subcommand, Debug)]
pub enum Perf {
    /// Rates by worker and by stage, again and again
    Top {
        /// Time between two tables
        #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
        interval: Duration,
        /// One table and end
        #[arg(long)]
        once: bool,
    },
    /// Sample the running data plane and draw a flame graph (SVG)
    Flamegraph {
        /// File to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// For how long
        #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
        seconds: u64,
        /// Samples of each thread in a second of its running time
        #[arg(long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=999))]
        hz: u32,
        /// Stacks as text, for other tools, and no picture
        #[arg(long)]
        folded: bool,
    },
    /// Cycles, instructions, misses and switches of each thread, where the machine counts them
    Hardware {
        /// For how long
        #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=50))]
        seconds: u64,
    },
}

/// `dwcpctl migrate`
#[derive(Args, Debug)]
pub struct Migrate {
    /// QMP socket of the guest on this host
    #[arg(long, value_name = "QMP")]
    pub vm: String,
    /// Control plane of the destination
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// QMP socket of the waiting hypervisor (`-incoming defer`) on the destination
    #[arg(long, value_name = "PATH")]
    pub to_qmp: String,
    /// Node that must answer there, as its data plane's `node` says; without it any that proves itself
    #[arg(long, value_name = "NODE")]
    pub to_node: Option<String>,
    /// A name for the guest
    #[arg(long)]
    pub name: Option<String>,
    /// Extra migration connections of the hypervisor; 0: the single stream
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub multifd: u32,
    /// Highest protocol version to use
    #[arg(long, value_enum, default_value_t = MaxVersion::V3)]
    pub max_version: MaxVersion,
    /// The hypervisor's downtime limit
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime_limit_ms: u64,
    /// Bytes a second on the wire, with K, M or G for powers of 1000; 0: no limit
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    pub bandwidth_limit: u64,
    /// Post-copy: the guest goes to the destination before all its memory is there, once every page was sent
    /// once, or after so many milliseconds. Then it cannot be cancelled any more
    #[arg(long, value_name = "MS", num_args = 0..=1, require_equals = true)]
    pub postcopy: Option<Option<u64>>,
    /// A post-copy migration that loses its link waits for `dwcpctl recover`
    #[arg(long, requires = "postcopy")]
    pub no_auto_recover: bool,
    /// Whose baselines the guest is held against, and whose it is added to [default: default]
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Cancel it after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Do not follow it: print its id
    #[arg(long, conflicts_with = "timeout")]
    pub detach: bool,
}

/// A protocol version.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum MaxVersion {
    /// The plain and proven way
    V1,
    /// Everything since
    V3,
}

impl MaxVersion {
    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V3 => "v3",
        }
    }
}

/// `dwcpctl cluster`
#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Who is in it, who leads, and how far each has come
    Status,
    /// Add a node that runs with this cluster's name and without founders
    Add {
        /// Its number, never used before in this cluster
        id: u64,
        /// Its name, as its certificate has it
        name: String,
        /// Its listener for peers
        #[arg(value_name = "HOST:PORT")]
        address: String,
    },
    /// Remove a node; its number is not used again
    Remove {
        /// Its number
        id: u64,
    },
    /// Let another node lead
    Transfer {
        /// Its number
        id: u64,
    },
}

/// `dwcpctl rollout`
#[derive(Subcommand, Debug)]
pub enum RolloutCommand {
    /// Begin one
    Create(RolloutBegin),
    /// Show one, with its nodes, its criteria and its decisions
    Show {
        /// Which one
        id: String,
        /// Follow it to its end: 0 completed, 1 rolled back, 3 aborted
        #[arg(long)]
        watch: bool,
    },
    /// Show all of them
    List,
    /// It stays where it is, and is still rolled back if a criterion breaks
    Pause {
        /// Which one
        id: String,
    },
    /// It goes on
    Resume {
        /// Which one
        id: String,
    },
    /// End it; v1 everywhere
    Abort {
        /// Which one
        id: String,
    },
}

/// `dwcpctl rollout create`
#[derive(Args, Debug)]
pub struct RolloutBegin {
    /// For example dwcp_v3_hde
    #[arg(required_unless_present = "plan")]
    pub feature: Option<String>,
    /// A plan in JSON, as `POST /v1/rollouts` takes it: phases, criteria with their limits
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Shares of the nodes, growing [default: 10,50,100]
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    pub phases: Vec<f64>,
    /// Each phase lasts at least so many seconds [default: 600]
    #[arg(long, value_name = "S", requires = "phases")]
    pub min_time: Option<u64>,
    /// Each criterion needs so many samples [default: 50]
    #[arg(long, value_name = "N", requires = "phases")]
    pub min_samples: Option<u64>,
    /// All criteria must have held for so many seconds without a break [default: 60]
    #[arg(long, value_name = "S")]
    pub settle: Option<u64>,
    /// Follow it to its end
    #[arg(long)]
    pub watch: bool,
}

/// `dwcpctl mode`
#[derive(Subcommand, Debug)]
pub enum ModeCommand {
    /// Show them
    Show {
        /// Address of one peer's data plane
        peer: Option<IpAddr>,
    },
    /// Put all peers, or one, into a mode whatever is measured
    Set {
        /// The mode
        #[arg(value_enum)]
        mode: Mode,
        /// Address of one peer's data plane
        #[arg(long, value_name = "ADDRESS")]
        peer: Option<IpAddr>,
    },
    /// Take that back: what is measured decides
    Auto {
        /// Address of one peer's data plane
        #[arg(long, value_name = "ADDRESS")]
        peer: Option<IpAddr>,
    },
}

/// A mode.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Mode {
    /// Near and fast
    Datacenter,
    /// Far or thin
    Internet,
    /// In between
    Hybrid,
}

impl Mode {
    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Datacenter => "datacenter",
            Self::Internet => "internet",
            Self::Hybrid => "hybrid",
        }
    }
}

/// `dwcpctl flags`
#[derive(Subcommand, Debug)]
pub enum Flags {
    /// Show them
    List,
    /// Switch one, or change its share of the nodes
    Set {
        /// For example dwcp_v3_hde
        feature: String,
        /// Share of the nodes, 0 to 100
        #[arg(long, value_name = "N", required_unless_present = "enabled")]
        percentage: Option<f64>,
        /// On or off
        #[arg(long, value_name = "BOOL")]
        enabled: Option<bool>,
    },
    /// Keep nodes out of a flag whatever its share
    Exclude {
        /// For example dwcp_v3_hde
        feature: String,
        /// Names of the nodes
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Let them in again
        #[arg(long)]
        undo: bool,
    },
    /// Show who changed what
    History,
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "write a whole number, or one with K, M or G".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "that is too much".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=86_400_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("write whole seconds, at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts_are_read_or_refused() {
        assert_eq!(bytes("250M"), Ok(250_000_000));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "M", "1.5G", "-1", "1MB", "99999999999G", "é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(seconds("0").is_err() && seconds("x").is_err());
    }
}
