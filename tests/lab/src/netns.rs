//! Hosts: one network namespace each.
//!
//! In: a short name. Out: a [`Host`] in which programs run and sockets are opened. Promise: names
//! are unique per process, a namespace goes with its `Host`, and namespaces whose process died
//! without cleaning up are removed by the next one.

use crate::procs::{ProcError, run};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

const NETNS_DIR: &str = "/run/netns";
const PREFIX: &str = "dwcp";

/// Why a host or a cable could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The `ip` tool refused.
    #[error("{0}; network namespaces need root and iproute2")]
    Ip(#[from] ProcError),
    /// The namespace could not be entered or opened.
    #[error("cannot enter namespace {name}: {source}; run as root")]
    Enter {
        /// The namespace.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// A host: a network namespace with loopback up.
pub struct Host {
    name: String,
    netns: Arc<File>,
    /// Removed by the host itself; false for one that somebody else made.
    owned: bool,
}

impl Host {
    /// Makes a host.
    pub fn new(name: &str) -> Result<Self, NetnsError> {
        static STALE: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        STALE.call_once(remove_stale);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let born = start_time(pid).unwrap_or(0);
        let full = format!("{PREFIX}-{pid}-{born}-{count}-{name}");
        ip(&["netns", "add", &full])?;
        let mut host = Self::open(&full)?;
        host.owned = true;
        ip(&["-n", &full, "link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Opens a namespace that exists already; it is not removed at the end.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let netns =
            File::open(Path::new(NETNS_DIR).join(name)).map_err(|source| NetnsError::Enter {
                name: name.to_owned(),
                source,
            })?;
        Ok(Self {
            name: name.to_owned(),
            netns: Arc::new(netns),
            owned: false,
        })
    }

    /// The namespace's name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let netns = Arc::clone(&self.netns);
        // SAFETY: needed because only the child itself can move into the namespace before it
        // runs the program; sound because the closure makes one system call, allocates nothing,
        // and the descriptor is kept open by the command.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }

    /// Runs `work` on this host, on a thread of its own: sockets it opens belong to the host.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let kind = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(self.netns.as_fd(), kind)
                        .map_err(io::Error::from)
                        .map(|()| work())
                })
                .join()
        });
        match result {
            Ok(result) => result.map_err(|source| NetnsError::Enter {
                name: self.name.clone(),
                source,
            }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Limits the socket buffers that TCP gives itself on this host. A new host takes over what the
    /// machine has, so figures that depend on it must set it: too little stops a long fat link,
    /// too much lets the hypervisor believe in a faster link and lengthens its downtime.
    pub fn set_tcp_buffer_limit(&self, bytes: u64) -> Result<(), NetnsError> {
        let write = || {
            fs::write(
                "/proc/sys/net/ipv4/tcp_rmem",
                format!("4096 131072 {bytes}"),
            )?;
            fs::write("/proc/sys/net/ipv4/tcp_wmem", format!("4096 16384 {bytes}"))
        };
        let error = |source| NetnsError::Enter {
            name: self.name.clone(),
            source,
        };
        self.enter(write)?.map_err(error)
    }

    /// Runs `ip` on this host with these arguments.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String, NetnsError> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        ip(&all)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.owned {
            let _ = ip(&["netns", "del", &self.name]);
        }
    }
}

/// An unshaped cable between two hosts: a veth pair.
pub struct Cable {
    /// The address at the first host.
    pub a: Ipv4Addr,
    /// The address at the second host.
    pub b: Ipv4Addr,
    device: String,
}

impl Cable {
    /// The management network: `10.98.<number>.1` and `.2` on devices `mgmt<number>`.
    pub fn management(a: &Host, b: &Host, number: u8) -> Result<Self, NetnsError> {
        Self::lay(a, b, &format!("mgmt{number}"), [10, 98, number])
    }

    /// A local network without shaping: `10.97.<number>.1` and `.2` on devices `lan<number>`.
    pub fn lan(a: &Host, b: &Host, number: u8) -> Result<Self, NetnsError> {
        Self::lay(a, b, &format!("lan{number}"), [10, 97, number])
    }

    /// The same with both ends at one host, on devices `lan<number>` and `lan<number>b`, for a program that has
    /// both. The kernel there reaches neither address over it.
    pub fn folded(host: &Host, number: u8) -> Result<Self, NetnsError> {
        let (a, b) = (
            Ipv4Addr::new(10, 97, number, 1),
            Ipv4Addr::new(10, 97, number, 2),
        );
        let device = format!("lan{number}");
        host.ip(&format!("link add {device} type veth peer name {device}b"))?;
        for end in [&device, &format!("{device}b")] {
            host.ip(&format!("link set {end} up"))?;
        }
        Ok(Self { a, b, device })
    }

    fn lay(a: &Host, b: &Host, device: &str, [x, y, z]: [u8; 3]) -> Result<Self, NetnsError> {
        let cable = Self {
            a: Ipv4Addr::new(x, y, z, 1),
            b: Ipv4Addr::new(x, y, z, 2),
            device: device.to_owned(),
        };
        a.ip(&format!(
            "link add {device} type veth peer name {device} netns {}",
            b.name
        ))?;
        for (host, address) in [(a, cable.a), (b, cable.b)] {
            host.ip(&format!("addr add {address}/24 dev {device}"))?;
            host.ip(&format!("link set {device} up"))?;
        }
        Ok(cable)
    }

    /// Bytes sent by `host` and received by it, as the device counts them (with Ethernet headers).
    pub fn bytes(&self, host: &Host) -> Result<(u64, u64), NetnsError> {
        let text = host.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let text = text.map_err(|source| NetnsError::Enter {
            name: host.name.clone(),
            source,
        })?;
        // proc(5): "name: rx_bytes … (8 receive fields) tx_bytes …".
        let fields: Vec<u64> = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(&self.device)?.strip_prefix(':'))
            .map(|rest| {
                rest.split_whitespace()
                    .filter_map(|f| f.parse().ok())
                    .collect()
            })
            .unwrap_or_default();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        Ok((field(8), field(0)))
    }
}

pub(crate) fn ip(arguments: &[&str]) -> Result<String, NetnsError> {
    let mut command = Command::new("ip");
    command.args(arguments);
    Ok(run(command)?)
}

/// Start time of a process in clock ticks since boot; tells a reused process id apart.
fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

fn remove_stale() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        if parts.next() != Some(PREFIX) {
            continue;
        }
        let pid = parts.next().and_then(|p| p.parse().ok());
        let born = parts.next().and_then(|p| p.parse::<u64>().ok());
        if let (Some(pid), Some(born)) = (pid, born)
            && start_time(pid) != Some(born)
        {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}
