//! A cluster and clients that ask it all the while.
//!
//! In: a cluster, things that happen to it. Out: how long it took. Promises: after each thing that happened the whole
//! history is one that can be, and what was acknowledged is there; a new leader is there within [`LEADER`], and
//! everything again within [`RECOVERY`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_lab::watchdog::poll_until;

use super::clients::{Client, Clients, Notes, REGISTER, SET, share};
use super::kit::{Cluster, PATIENCE};
use super::rest::{self, Said};

/// From the moment the old one is gone.
pub const LEADER: Duration = Duration::from_secs(2);
/// From the moment all are gone.
pub const RECOVERY: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(1);

/// See the module.
pub struct Trial {
    pub cluster: Cluster,
    pub notes: Arc<Notes>,
    clients: Option<Clients>,
}

impl Trial {
    pub fn begin(cluster: Cluster) -> Self {
        let first = poll_until(PATIENCE, || {
            let path = format!("/v1/feature-flags/{REGISTER}?agreed=true");
            match cluster.ask(0, || rest::get(&path, ANSWER)) {
                Said::Answer(200, flag, _) => share(&flag),
                _ => None,
            }
        });
        Self {
            notes: Notes::new(first.unwrap_or_else(|| panic!("{}", cluster.log(0)))),
            cluster,
            clients: None,
        }
    }

    /// Has something happen while clients ask; it is over when the cluster is whole again.
    pub fn phase(&mut self, what: &str, happens: impl FnOnce(&mut Self)) {
        self.clients = Some(Clients::begin(self.cluster.hosts(), &self.notes));
        self.serves(&self.all());
        happens(self);
        self.serves(&self.all());
        self.clients.take().unwrap().end();
        self.settle(what);
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.cluster.size()).collect()
    }

    /// Everybody but these.
    pub fn others(&self, not: &[usize]) -> Vec<usize> {
        let mut all = self.all();
        all.retain(|at| !not.contains(at));
        all
    }

    /// Nobody asks any more: what is agreed on is what was acknowledged.
    fn settle(&self, what: &str) {
        let client = Client {
            notes: self.notes.clone(),
            id: self.cluster.size(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let read = poll_until(PATIENCE, || self.cluster.ask(0, || client.read()));
        assert!(read.is_some(), "{what}: {}", self.cluster.log(0));
        let history = &self.notes.history;
        println!(
            "{what}: {} answered, {} of them writes; {} without an end; {} answered when sent again",
            history.ended(&self.all()),
            history.written(),
            history.unknown(),
            self.notes.replayed.load(Ordering::SeqCst)
        );
        history
            .check()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        history.turn();
        let path = format!("/v1/feature-flags/{SET}?agreed=true");
        let there = poll_until(PATIENCE, || {
            match self.cluster.ask(0, || rest::get(&path, ANSWER)) {
                Said::Answer(200, flag, _) => flag["excluded_nodes"].as_array().cloned(),
                _ => None,
            }
        });
        let there = there.unwrap_or_else(|| panic!("{what}: {}", self.cluster.log(0)));
        for name in self.notes.added.lock().unwrap().iter() {
            assert!(
                there.iter().any(|it| it == name),
                "{what}: {name} was acknowledged and is lost"
            );
        }
    }

    /// Returns when each of these nodes has answered its client some more.
    pub fn serves(&self, nodes: &[usize]) {
        for node in nodes {
            let before = self.notes.history.ended(&[*node]);
            let more = poll_until(PATIENCE, || {
                (self.notes.history.ended(&[*node]) >= before + 4).then_some(())
            });
            let log = || self.cluster.log(*node);
            assert!(more.is_some(), "node {node} does not serve: {}", log());
        }
    }

    /// Who leads, as all see it.
    pub fn leader(&self) -> usize {
        let one = poll_until(PATIENCE, || {
            let seen: Option<Vec<usize>> = self
                .all()
                .iter()
                .map(|at| Some(self.cluster.status(*at)?["leader"].as_u64()? as usize - 1))
                .collect();
            let seen = seen?;
            seen.iter().all(|it| *it == seen[0]).then(|| seen[0])
        });
        one.unwrap_or_else(|| panic!("no leader: {}", self.cluster.log(0)))
    }

    /// One of these nodes leads, [`LEADER`] after `since` at the latest; then they serve.
    pub fn new_leader(&self, what: &str, nodes: &[usize], since: Instant) -> usize {
        let leads = |at: &usize| {
            let status = self.cluster.status(*at)?;
            (status["role"] == "leader").then_some(*at)
        };
        let leader = poll_until(PATIENCE, || nodes.iter().find_map(leads));
        let took = since.elapsed();
        let logs = || {
            nodes
                .iter()
                .map(|at| self.cluster.log(*at))
                .collect::<String>()
        };
        let leader = leader.unwrap_or_else(|| panic!("{what}: no leader: {}", logs()));
        let written = self.notes.history.written();
        let again = poll_until(PATIENCE, || {
            (self.notes.history.written() > written).then_some(())
        });
        assert!(again.is_some(), "{what}: nothing is agreed on: {}", logs());
        println!(
            "figure {} nodes, {what}: new leader after {} ms, a write after {} ms",
            self.cluster.size(),
            took.as_millis(),
            since.elapsed().as_millis()
        );
        assert!(
            took < LEADER,
            "{what}: new leader after {took:?}: {}",
            logs()
        );
        self.serves(nodes);
        leader
    }

    /// These nodes answer nobody, from now until a while from now.
    pub fn serves_nobody(&self, what: &str, nodes: &[usize]) {
        // What was answered before the line was cut may be written down a moment later.
        std::thread::sleep(Duration::from_millis(500));
        let before = self.notes.history.ended(nodes);
        std::thread::sleep(Duration::from_secs(2));
        let after = self.notes.history.ended(nodes);
        assert_eq!(after, before, "{what}: agreed without a majority");
    }

    /// All are killed and started again.
    pub fn all_killed(&mut self) {
        let all = self.all();
        all.iter().for_each(|at| self.cluster.kill(*at));
        let killed = Instant::now();
        all.iter().for_each(|at| self.cluster.start(*at));
        self.recovers("all killed", killed);
    }

    /// Something is agreed on [`RECOVERY`] after `since` at the latest.
    pub fn recovers(&self, what: &str, since: Instant) {
        let written = self.notes.history.written();
        let again = poll_until(PATIENCE, || {
            (self.notes.history.written() > written).then_some(())
        });
        let took = since.elapsed();
        assert!(again.is_some(), "{what}: {}", self.cluster.log(0));
        println!(
            "figure {} nodes, {what}: a write after {} ms",
            self.cluster.size(),
            took.as_millis()
        );
        assert!(took < RECOVERY, "{what}: a write after {took:?}");
    }
}
