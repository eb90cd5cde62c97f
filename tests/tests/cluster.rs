//! Three control planes in network namespaces: leader killed, minority cut, all killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dwcp_lab::dir::LabDir;
use dwcp_lab::netns::Host;
use dwcp_lab::pki::Authority;
use dwcp_lab::procs::Proc;
use dwcp_lab::stack::binary;
use dwcp_lab::watchdog::{Watchdog, poll_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 3] = ["h1", "h2", "h3"];
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const FEATURE: &str = "dwcp_v3_hde";

struct Node {
    host: Host,
    dir: LabDir,
    process: Option<Proc>,
}

struct Cluster {
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
    fn begin() -> Self {
        let authority = Authority::new(&NAMES).unwrap();
        let switch = Host::new("switch").unwrap();
        ip(&switch, "link add bridge type bridge");
        ip(&switch, "link set bridge up");
        let nodes = (1..).zip(NAMES).map(|(id, name)| {
            let host = Host::new(name).unwrap();
            let netns = host.name().to_owned();
            ip(&switch, &format!("link add p{id} type veth peer name lan netns {netns}"));
            ip(&switch, &format!("link set p{id} master bridge up"));
            ip(&host, &format!("addr add 10.95.0.{id}/24 dev lan"));
            ip(&host, "link set lan up");
            let dir = LabDir::new(name).unwrap();
            let founders: String = (1..)
                .zip(NAMES)
                .map(|(id, name)| {
                    format!("[[cluster.founders]]\nid = {id}\nname = \"{name}\"\naddress = \"10.95.0.{id}:7781\"\n")
                })
                .collect();
            let file = |name: &str| dir.file(name).display().to_string();
            let tls = authority.table(name).replace("[tls]", "[cluster.tls]");
            let config = format!(
                "listen = \"127.0.0.1:7780\"\nnode = \"{name}\"\nattach = \"{}\"\nstate_dir = \"{}\"\n\
                 socket_dir = \"{}\"\nqmp_allowed_dirs = [\"{}\"]\ntoken_file = \"{}\"\n\
                 [cluster]\nname = \"lab\"\nid = {id}\nlisten = \"10.95.0.{id}:7781\"\n{founders}{tls}",
                file("dataplane.sock"), file("state"), file("sessions"), file("qmp"), file("token"),
            );
            std::fs::write(dir.file("controlplane.toml"), config).unwrap();
            std::fs::write(dir.file("token"), TOKEN).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.file("token"), private).unwrap();
            Node { host, dir, process: None }
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            switch,
            _authority: authority,
        };
        (0..3).for_each(|at| cluster.start(at));
        cluster
    }

    fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let mut command = node.host.command(binary("dwcp-controlplane").unwrap());
        command
            .arg("--config")
            .arg(node.dir.file("controlplane.toml"));
        node.process = Some(Proc::spawn(command, &node.dir.file("controlplane.log")).unwrap());
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at].process.take().unwrap().kill();
    }

    /// What `dwcpctl` answers, if it succeeds.
    fn ctl(&self, at: usize, arguments: &str) -> Option<Value> {
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
    fn leader(&self, asked: usize, not: Option<usize>) -> usize {
        poll_until(PATIENCE, || {
            let status = self.ctl(asked, "cluster status")?;
            let leader = status["leader"].as_u64()? as usize - 1;
            (Some(leader) != not).then_some(leader)
        })
        .unwrap_or_else(|| panic!("no leader; node {asked}: {}", self.log(asked)))
    }

    fn set(&self, at: usize, percentage: u64) {
        let command = format!("flags set {FEATURE} --percentage {percentage}");
        let done = poll_until(PATIENCE, || self.ctl(at, &command));
        assert!(
            done.is_some(),
            "{percentage} % was not agreed: {}",
            self.log(at)
        );
    }

    fn wait_percentage(&self, at: usize, percentage: u64) {
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

    fn log(&self, at: usize) -> String {
        std::fs::read_to_string(self.nodes[at].dir.file("controlplane.log")).unwrap_or_default()
    }

    fn plug(&self, at: usize, state: &str) {
        ip(&self.switch, &format!("link set p{} {state}", at + 1));
    }
}

#[test]
fn three_nodes_keep_what_they_agreed_on() {
    let _watchdog = Watchdog::new("cluster", Duration::from_secs(300));
    let mut cluster = Cluster::begin();
    cluster.set(1, 10);
    (0..3).for_each(|at| cluster.wait_percentage(at, 10));

    let leader = cluster.leader(0, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let killed = Instant::now();
    cluster.kill(leader);
    cluster.leader(other, Some(leader));
    println!("new leader after {:?}", killed.elapsed());
    cluster.set(third, 20);
    println!("write agreed after {:?}", killed.elapsed());
    cluster.start(leader);
    (0..3).for_each(|at| cluster.wait_percentage(at, 20));

    let leader = cluster.leader(other, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.plug(leader, "down");
    cluster.set(other, 30);
    cluster.wait_percentage(third, 30);
    let command = format!("flags set {FEATURE} --percentage 90");
    assert!(cluster.ctl(leader, &command).is_none(), "agreed alone");
    cluster.ctl(leader, "rollback");
    let alone = cluster.ctl(leader, "flags list").unwrap();
    assert_eq!(alone["force_v1"], true, "the kill switch waits for nobody");
    cluster.plug(leader, "up");
    cluster.wait_percentage(leader, 30);
    for at in 0..3 {
        let forced = poll_until(PATIENCE, || {
            let flags = cluster.ctl(at, "flags list")?;
            (flags["force_v1"] == true).then_some(())
        });
        assert!(
            forced.is_some(),
            "node {at} does not know of the throw: {}",
            cluster.log(at)
        );
    }

    (0..3).for_each(|at| cluster.kill(at));
    let killed = Instant::now();
    (0..3).for_each(|at| cluster.start(at));
    cluster.set(0, 40);
    println!("all killed; write agreed after {:?}", killed.elapsed());
    for at in 0..3 {
        cluster.wait_percentage(at, 40);
        let flags = cluster.ctl(at, "flags list").unwrap();
        assert_eq!(flags["force_v1"], true);
    }
}
