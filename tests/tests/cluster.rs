//! Control planes in network namespaces: leader killed, minority cut, all killed; the kill switch without a quorum; a
//! rollout under a leader that is killed, with a node that has v1 alone.
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
const NAMES: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const FEATURE: &str = "dwcp_v3_hde";

struct Node {
    host: Host,
    dir: LabDir,
    process: Option<Proc>,
    dataplane: Option<Proc>,
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
    fn begin(size: usize) -> Self {
        let names = &NAMES[..size];
        let authority = Authority::new(names).unwrap();
        let switch = Host::new("switch").unwrap();
        ip(&switch, "link add bridge type bridge");
        ip(&switch, "link set bridge up");
        let nodes = (1..).zip(names).map(|(id, name)| {
            let host = Host::new(name).unwrap();
            let netns = host.name().to_owned();
            ip(&switch, &format!("link add p{id} type veth peer name lan netns {netns}"));
            ip(&switch, &format!("link set p{id} master bridge up"));
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
                "listen = \"127.0.0.1:7780\"\nnode = \"{name}\"\nattach = \"{}\"\nstate_dir = \"{}\"\n\
                 socket_dir = \"{}\"\nqmp_allowed_dirs = [\"{}\"]\ntoken_file = \"{}\"\n\
                 [cluster]\nname = \"lab\"\nid = {id}\nlisten = \"10.95.0.{id}:7781\"\n{founders}{tls}",
                file("dataplane.sock"), file("state"), file("sessions"), file("qmp"), file("token"),
            );
            std::fs::write(dir.file("controlplane.toml"), config).unwrap();
            std::fs::write(dir.file("token"), TOKEN).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.file("token"), private).unwrap();
            Node {
                host,
                dir,
                process: None,
                dataplane: None,
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

    fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let mut command = node.host.command(binary("dwcp-controlplane").unwrap());
        command
            .arg("--config")
            .arg(node.dir.file("controlplane.toml"));
        node.process = Some(Proc::spawn(command, &node.dir.file("controlplane.log")).unwrap());
    }

    /// A data plane of its own for a node.
    fn attach(&mut self, at: usize, max_version: u32) {
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

    fn is_forced(&self, at: usize) -> Option<bool> {
        self.ctl(at, "flags list")?["force_v1"].as_bool()
    }

    fn wait_forced(&self, at: usize, forced: bool) {
        let seen = poll_until(PATIENCE, || (self.is_forced(at)? == forced).then_some(()));
        assert!(
            seen.is_some(),
            "node {at}: the kill switch is not {forced}: {}",
            self.log(at)
        );
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
    let mut cluster = Cluster::begin(3);
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

#[test]
fn the_kill_switch_needs_no_quorum_and_its_release_does() {
    let _watchdog = Watchdog::new("kill switch", Duration::from_secs(300));
    let mut cluster = Cluster::begin(5);
    cluster.set(0, 10);
    (0..5).for_each(|at| cluster.wait_percentage(at, 10));
    // Two of five: nothing can be agreed on.
    (2..5).for_each(|at| cluster.kill(at));
    let command = format!("flags set {FEATURE} --percentage 90");
    assert!(
        cluster.ctl(0, &command).is_none(),
        "agreed without a quorum"
    );

    let thrown = Instant::now();
    cluster.ctl(0, "rollback").unwrap();
    let acted = thrown.elapsed();
    cluster.wait_forced(1, true);
    println!(
        "no quorum: answered after {acted:?}, on the other node seen after {:?}",
        thrown.elapsed()
    );
    assert!(
        cluster.ctl(1, "rollback --off").is_none(),
        "released without a quorum"
    );
    assert_eq!(
        (cluster.is_forced(0), cluster.is_forced(1)),
        (Some(true), Some(true))
    );

    // The one that heard of it tells those that come, while the one that threw is gone.
    cluster.kill(0);
    (2..5).for_each(|at| cluster.start(at));
    (1..5).for_each(|at| cluster.wait_forced(at, true));
    let recorded = poll_until(PATIENCE, || {
        let status = cluster.ctl(3, "cluster status")?;
        (status["throws"][0]["node"] == "h1").then_some(())
    });
    assert!(recorded.is_some(), "{}", cluster.log(3));

    // Released while two are away that still keep the throw on their disks.
    cluster.kill(4);
    let released = poll_until(PATIENCE, || cluster.ctl(3, "rollback --off"));
    assert!(released.is_some(), "{}", cluster.log(3));
    (1..4).for_each(|at| cluster.wait_forced(at, false));
    cluster.start(0);
    cluster.start(4);
    (0..5).for_each(|at| cluster.wait_forced(at, false));
    // Longer than it takes for each to be asked by each.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        for at in 0..5 {
            assert_ne!(
                cluster.is_forced(at),
                Some(true),
                "an old throw acted again on {at}"
            );
        }
    }
    // And a new one acts.
    cluster.ctl(4, "rollback").unwrap();
    (0..5).for_each(|at| cluster.wait_forced(at, true));
}

#[test]
fn a_rollout_outlives_its_leader_and_shows_who_has_v1_alone() {
    let _watchdog = Watchdog::new("rollout", Duration::from_secs(300));
    let mut cluster = Cluster::begin(3);
    cluster.attach(0, 3);
    cluster.attach(1, 3);
    cluster.attach(2, 1);
    let leader = cluster.leader(0, None);
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let begin = format!("rollout create {FEATURE} --phases 100 --min-time 1");
    let made = poll_until(PATIENCE, || cluster.ctl(other, &begin)).unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    (0..3).for_each(|at| cluster.wait_percentage(at, 100));
    let show = format!("rollout show {id}");
    let parts = poll_until(PATIENCE, || {
        let shown = cluster.ctl(third, &show)?;
        let part = |at: usize| {
            let nodes = shown["nodes"].as_array()?;
            let node = nodes.iter().find(|node| node["node"] == NAMES[at])?;
            Some((
                node["part"].as_str()?.to_owned(),
                node["version"].as_str()?.to_owned(),
            ))
        };
        let parts = [part(0)?, part(1)?, part(2)?];
        (parts[2].0 == "v1_only" && parts[1].1 == "v3" && parts[0].1 == "v3").then_some(parts)
    });
    let parts = parts.unwrap_or_else(|| panic!("{:?}", cluster.ctl(third, &show)));
    assert_eq!(parts[2].1, "v1");
    assert_eq!(parts[0].0, "in_share");

    // No work, no data: it holds, and says so.
    let why = |cluster: &Cluster, at: usize| {
        let shown = cluster.ctl(at, &show)?;
        Some((
            shown["why"].as_str()?.to_owned(),
            shown["decisions"].clone(),
        ))
    };
    let held = poll_until(PATIENCE, || {
        why(&cluster, third).filter(|it| it.0.contains("too little"))
    });
    assert!(held.is_some(), "{:?}", why(&cluster, third));

    cluster.kill(leader);
    let silent = poll_until(PATIENCE, || {
        why(&cluster, other).filter(|it| it.0.contains("silent"))
    });
    let (_, decisions) = silent.unwrap_or_else(|| panic!("{:?}", why(&cluster, other)));
    let by = decisions[0]["by"].as_str().unwrap();
    assert!(by == NAMES[other] || by == NAMES[third], "decided by {by}");
    cluster.start(leader);
    let paused = poll_until(PATIENCE, || {
        cluster.ctl(third, &format!("rollout pause {id}"))
    });
    assert_eq!(paused.unwrap()["stage"], "paused");
    let aborted = poll_until(PATIENCE, || {
        cluster.ctl(other, &format!("rollout abort {id}"))
    });
    assert_eq!(aborted.unwrap()["stage"], "aborted");
    (0..3).for_each(|at| cluster.wait_percentage(at, 0));
    let list = cluster.ctl(leader, "rollout list").unwrap();
    assert_eq!(list["rollouts"][0]["stage"], "aborted");
}
