//! A cluster: a control plane on each host, and a switch that can be parted.
//!
//! In: how many, what their clocks and disks are like. Out: nodes that are asked, killed, started, cut off and filled.
//! Promise: all of it goes with the value.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dwcp_lab::dir::LabDir;
use dwcp_lab::netns::Host;
use dwcp_lab::pki::Authority;
use dwcp_lab::procs::Proc;
use dwcp_lab::stack::binary;
use dwcp_lab::watchdog::poll_until;
use serde_json::Value;

use super::disks::SmallDisk;
use super::rest::{self, PORT, Said, TOKEN};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NAMES: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];
pub const FEATURE: &str = "dwcp_v3_hde";

/// What a node is like.
#[derive(Clone, Default)]
pub struct Kind {
    /// Its state lies on a small disk of its own.
    pub small_disk: bool,
    /// More environment of its control plane.
    pub environment: Vec<(&'static str, String)>,
}

struct Node {
    // In this order they go: a disk is not taken away under a process.
    process: Option<Proc>,
    dataplane: Option<Proc>,
    disk: Option<SmallDisk>,
    kind: Kind,
    host: Arc<Host>,
    dir: LabDir,
}

/// See the module.
pub struct Cluster {
    nodes: Vec<Node>,
    switch: Host,
    _authority: Authority,
}

fn ip(host: &Host, arguments: &str) {
    let mut command = host.command("ip");
    let status = command.args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl Cluster {
    pub fn begin(size: usize) -> Self {
        Self::of(&vec![Kind::default(); size])
    }

    pub fn of(kinds: &[Kind]) -> Self {
        let size = kinds.len();
        let names = &NAMES[..size];
        let authority = Authority::new(names).unwrap();
        let switch = Host::new("switch").unwrap();
        for side in 0..size {
            ip(&switch, &format!("link add side{side} type bridge"));
            ip(&switch, &format!("link set side{side} up"));
        }
        let nodes = (1..).zip(names).zip(kinds).map(|((id, name), kind)| {
            let host = Host::new(name).unwrap();
            let netns = host.name().to_owned();
            ip(&switch, &format!("link add p{id} type veth peer name lan netns {netns}"));
            ip(&switch, &format!("link set p{id} master side0 up"));
            ip(&host, &format!("addr add 10.95.0.{id}/24 dev lan"));
            ip(&host, "link set lan up");
            let dir = LabDir::new(name).unwrap();
            let founders: String = (1..)
                .zip(names)
                .map(|(id, name)| {
                    format!("[[cluster.founders]]\nid = {id}\nname = \"{name}\"\naddress = \"10.95.0.{id}:7781\"\n")
                })
                .collect();
            let file = |name: &str| dir.file(name).display().to_string();
            let tls = authority.table(name).replace("[tls]", "[cluster.tls]");
            let config = format!(
                "listen = \"127.0.0.1:{PORT}\"\nnode = \"{name}\"\nattach = \"{}\"\nstate_dir = \"{}\"\n\
                 socket_dir = \"{}\"\nqmp_allowed_dirs = [\"{}\"]\ntoken_file = \"{}\"\n\
                 [cluster]\nname = \"lab\"\nid = {id}\nlisten = \"10.95.0.{id}:7781\"\n{founders}{tls}",
                file("dataplane.sock"), file("state"), file("sessions"), file("qmp"), file("token"),
            );
            std::fs::write(dir.file("controlplane.toml"), config).unwrap();
            std::fs::write(dir.file("token"), TOKEN).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.file("token"), private).unwrap();
            let disk = kind.small_disk.then(|| SmallDisk::at(&dir.file("state")));
            Node {
                process: None,
                dataplane: None,
                disk,
                kind: kind.clone(),
                host: Arc::new(host),
                dir,
            }
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            switch,
            _authority: authority,
        };
        (0..size).for_each(|at| cluster.start(at));
        cluster
    }

    pub fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let mut command = node.host.command(binary("dwcp-controlplane").unwrap());
        command
            .arg("--config")
            .arg(node.dir.file("controlplane.toml"))
            .envs(
                node.kind
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            );
        node.process = Some(Proc::spawn(command, &node.dir.file("controlplane.log")).unwrap());
    }

    /// A data plane of its own for a node.
    pub fn attach(&mut self, at: usize, max_version: u32) {
        let node = &mut self.nodes[at];
        let file = |name: &str| node.dir.file(name);
        let config = format!(
            "node = \"{}\"\ncontrol_socket = \"{}\"\nlisten = \"10.95.0.{}:7790\"\npsk_file = \"{}\"\nmax_version = {max_version}\n",
            NAMES[at],
            file("dataplane.sock").display(),
            at + 1,
            file("psk").display(),
        );
        std::fs::write(file("dataplane.toml"), config).unwrap();
        std::fs::write(file("psk"), TOKEN).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(file("psk"), private).unwrap();
        let mut command = node.host.command(binary("dwcp-dataplane").unwrap());
        command.arg("--config").arg(file("dataplane.toml"));
        node.dataplane = Some(Proc::spawn(command, &file("dataplane.log")).unwrap());
    }

    pub fn is_forced(&self, at: usize) -> Option<bool> {
        self.ctl(at, "flags list")?["force_v1"].as_bool()
    }

    pub fn wait_forced(&self, at: usize, forced: bool) {
        let seen = poll_until(PATIENCE, || (self.is_forced(at)? == forced).then_some(()));
        assert!(
            seen.is_some(),
            "node {at}: the kill switch is not {forced}: {}",
            self.log(at)
        );
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].process.take().unwrap().kill();
    }

    /// What `dwcpctl` answers, if it succeeds.
    pub fn ctl(&self, at: usize, arguments: &str) -> Option<Value> {
        let node = &self.nodes[at];
        let mut command = node.host.command(binary("dwcpctl").unwrap());
        command.arg("--json").args(arguments.split(' '));
        let output = command.env("DWCP_TOKEN", TOKEN).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        output
            .status
            .success()
            .then(|| serde_json::from_str(&said).unwrap_or(Value::Null))
    }

    /// Place of the leader that a node believes in, other than `not`.
    pub fn leader(&self, asked: usize, not: Option<usize>) -> usize {
        poll_until(PATIENCE, || {
            let status = self.ctl(asked, "cluster status")?;
            let leader = status["leader"].as_u64()? as usize - 1;
            (Some(leader) != not).then_some(leader)
        })
        .unwrap_or_else(|| panic!("no leader; node {asked}: {}", self.log(asked)))
    }

    pub fn set(&self, at: usize, percentage: u64) {
        let command = format!("flags set {FEATURE} --percentage {percentage}");
        let done = poll_until(PATIENCE, || self.ctl(at, &command));
        assert!(
            done.is_some(),
            "{percentage} % was not agreed: {}",
            self.log(at)
        );
    }

    pub fn wait_percentage(&self, at: usize, percentage: u64) {
        let seen = poll_until(PATIENCE, || {
            let flags = self.ctl(at, "flags list")?;
            let flag = flags["flags"]
                .as_array()?
                .iter()
                .find(|flag| flag["feature"] == FEATURE)?;
            (flag["percentage"] == percentage).then_some(())
        });
        assert!(
            seen.is_some(),
            "node {at} has not {percentage} %: {}",
            self.log(at)
        );
    }

    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.nodes[at].dir.file("controlplane.log")).unwrap_or_default()
    }

    pub fn plug(&self, at: usize, state: &str) {
        ip(&self.switch, &format!("link set p{} {state}", at + 1));
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.nodes.iter().map(|node| node.host.clone()).collect()
    }

    pub fn disk(&self, at: usize) -> &SmallDisk {
        self.nodes[at].disk.as_ref().unwrap()
    }

    pub fn process(&mut self, at: usize) -> &mut Proc {
        self.nodes[at].process.as_mut().unwrap()
    }

    /// On a node's host.
    pub fn ask<T: Send>(&self, at: usize, work: impl FnOnce() -> T + Send) -> T {
        self.nodes[at].host.enter(work).unwrap()
    }

    /// The cluster as a node sees it, if it answers.
    pub fn status(&self, at: usize) -> Option<Value> {
        let path = "/v1/cluster";
        match self.ask(at, || rest::get(path, Duration::from_millis(500))) {
            Said::Answer(200, status, _) => Some(status),
            _ => None,
        }
    }

    /// Parts the switch: nodes reach those of their own side alone.
    pub fn part(&self, sides: &[&[usize]]) {
        let mut command = self.switch.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        let mut ip = command.spawn().unwrap();
        let mut lines = ip.stdin.take().unwrap();
        for (side, nodes) in sides.iter().enumerate() {
            for at in *nodes {
                writeln!(lines, "link set p{} master side{side}", at + 1).unwrap();
            }
        }
        drop(lines);
        assert!(ip.wait().unwrap().success(), "ip -batch");
    }

    pub fn heal(&self) {
        let all: Vec<usize> = (0..self.size()).collect();
        self.part(&[&all]);
    }
}
