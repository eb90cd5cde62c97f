//! A log without a network and a fleet that tells what a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dwcp_consensus::command::{Outcome, Reply, Request};
use dwcp_consensus::wire::{Boxed, Change};
use dwcp_consensus::{Command, NodeNumber, Peer, Replicator, State, Status, SubmitError};
use tokio::sync::Notify;

use crate::cluster::ChangeError;
use crate::rollout::decide::Report;
use crate::rollout::sample::{Figures, Sample, Side, Work};
use crate::rollout::{Fleet, Plan, RolloutView, Rollouts};

pub const FEATURE: &str = "dwcp_v3_hde";

/// What was agreed on: the product's own state, with requests put into it one by one.
pub struct Ledger {
    state: Mutex<(State, u64)>,
}

/// One node's way to the ledger.
pub struct Seat {
    pub ledger: Arc<Ledger>,
    pub leads: AtomicBool,
    /// The answer to its next write is lost, though the write is not.
    pub deaf: AtomicBool,
    /// Its next write never leaves it.
    pub dead: AtomicBool,
}

impl Ledger {
    pub fn new() -> Arc<Self> {
        let mut state = State::new(1);
        let open = Request {
            session: 0,
            number: 0,
            command: Command::OpenSession,
        };
        state.apply(0, "", &open);
        Arc::new(Self {
            state: Mutex::new((state, 0)),
        })
    }

    pub fn seat(self: &Arc<Self>, leads: bool) -> Arc<Seat> {
        Arc::new(Seat {
            ledger: self.clone(),
            leads: AtomicBool::new(leads),
            deaf: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        })
    }

    pub fn state(&self) -> State {
        self.state.lock().unwrap().0.clone()
    }

    pub fn run(&self, command: Command) -> Result<Reply, SubmitError> {
        command.check()?;
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        let number = state.1;
        let outcome = state.0.apply(
            number,
            "",
            &Request {
                session: 1,
                number,
                command,
            },
        );
        // As it is kept on disk, and sent to who was away.
        state.0 = State::from_bytes(&state.0.to_bytes().unwrap()).unwrap();
        match outcome {
            Outcome::Ran(Reply::Refused(why)) => Err(SubmitError::Refused(why)),
            Outcome::Ran(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }
}

impl Replicator for Seat {
    fn submit(&self, command: Command, _: Duration) -> Boxed<Result<Reply, SubmitError>> {
        let lost = || SubmitError::NoQuorum {
            why: "a test".to_owned(),
        };
        let dead = self.dead.swap(false, Ordering::SeqCst);
        let done = if dead {
            Err(lost())
        } else {
            self.ledger.run(command)
        };
        let deaf = self.deaf.swap(false, Ordering::SeqCst);
        let done = if deaf { Err(lost()) } else { done };
        Box::pin(async move { done })
    }

    fn read(&self, _: Duration) -> Boxed<Result<State, SubmitError>> {
        let state = self.ledger.state();
        Box::pin(async move { Ok(state) })
    }

    fn local(&self) -> State {
        self.ledger.state()
    }

    fn seal(&self, _: BTreeMap<NodeNumber, Peer>, _: Duration) -> Boxed<Result<u64, SubmitError>> {
        Box::pin(async { Err(SubmitError::Lost) })
    }

    fn change(&self, _: Change, _: Duration) -> Boxed<Result<(), SubmitError>> {
        Box::pin(async { Err(SubmitError::Lost) })
    }

    fn status(&self) -> Status {
        let leads = self.leads.load(Ordering::SeqCst);
        let role = if leads { "leader" } else { "follower" };
        Status {
            role: role.to_owned(),
            ..Status::default()
        }
    }

    fn stop(&self) -> Boxed<()> {
        Box::pin(async {})
    }
}

/// Ten nodes, one of them with v1 alone.
pub const NODES: [&str; 10] = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"];

#[derive(Default)]
pub struct World {
    pub samples: Mutex<Vec<Sample>>,
    pub silent: Mutex<BTreeSet<String>>,
    pub v1_only: Mutex<BTreeSet<String>>,
    /// Nodes that do not follow the log.
    pub stuck: Mutex<BTreeSet<String>>,
    /// Set: the next question waits for `go`, and tells `asked` that it does.
    pub hold: AtomicBool,
    pub asked: Notify,
    pub go: Notify,
}

pub struct Nodes {
    pub world: Arc<World>,
    pub ledger: Arc<Ledger>,
}

impl Fleet for Nodes {
    fn reports(&self) -> Boxed<Vec<Report>> {
        let (world, ledger) = (self.world.clone(), self.ledger.clone());
        Box::pin(async move {
            if world.hold.swap(false, Ordering::SeqCst) {
                world.asked.notify_one();
                world.go.notified().await;
            }
            let state = ledger.state();
            let silent = world.silent.lock().unwrap().clone();
            NODES
                .iter()
                .enumerate()
                .map(|(at, name)| {
                    let figures = if silent.contains(*name) {
                        Err("cut off".to_owned())
                    } else {
                        Ok(world.figures(at, name, &state))
                    };
                    Report {
                        node: (*name).to_owned(),
                        figures,
                    }
                })
                .collect()
        })
    }

    fn names(&self) -> BTreeSet<String> {
        NODES.iter().map(|name| (*name).to_owned()).collect()
    }

    fn prepare(&self, _: String, _: String) -> Boxed<Result<(), ChangeError>> {
        Box::pin(async { Ok(()) })
    }
}

impl World {
    /// What a node tells: its part of the samples, and what the flag makes of it.
    fn figures(&self, at: usize, name: &str, state: &State) -> Figures {
        let flag = state.flags.get(FEATURE).and_then(|flag| flag.value);
        let share = flag
            .filter(|value| value.enabled)
            .map_or(0, |value| value.share);
        let inside = crate::flags::bucket::bucket(FEATURE, name) < share && !state.force.on;
        let follows = !self.stuck.lock().unwrap().contains(name);
        let side = if inside && follows {
            Side::V3
        } else {
            Side::V1
        };
        let v1_only = self.v1_only.lock().unwrap().contains(name);
        let samples = self.samples.lock().unwrap();
        Figures {
            versions: BTreeMap::from([(FEATURE.to_owned(), side)]),
            highest: Some(if v1_only { 1 } else { 3 }),
            forced: state.force.on,
            samples: samples
                .iter()
                .enumerate()
                .filter(|(number, _)| number % NODES.len() == at)
                .map(|(_, sample)| sample.clone())
                .collect(),
        }
    }
}

/// A migration that went well: 1 GiB in internet mode, a quarter of it on the wire.
pub fn migration(version: Side, mode: &str, at_unix_ms: u64) -> Sample {
    Sample {
        id: String::new(),
        at_unix_ms,
        work: Work::Migration,
        version,
        mode: mode.to_owned(),
        ok: true,
        harm: false,
        bytes: 1 << 30,
        wire_bytes: 1 << 28,
        total_ms: if version == Side::V3 { 900 } else { 1_000 },
        downtime_ms: Some(30),
        memory_bytes: Some(100 << 20),
    }
}

pub fn session(version: Side, at_unix_ms: u64) -> Sample {
    Sample {
        work: Work::Session,
        ..migration(version, "internet", at_unix_ms)
    }
}

/// A rollout, who may lead it, the time.
pub struct Bench {
    pub ledger: Arc<Ledger>,
    pub world: Arc<World>,
    pub seats: [Arc<Seat>; 2],
    pub leaders: [Rollouts; 2],
    pub now: Arc<AtomicU64>,
    pub id: String,
}

/// Criteria of the specification, phases of 20, 50 and 100 %.
pub fn plan() -> Plan {
    serde_json::from_value(serde_json::json!({
        "feature": FEATURE,
        "phases": [
            { "percentage": 20, "min_time_s": 60, "min_samples": 40 },
            { "percentage": 50, "min_time_s": 60, "min_samples": 40 },
            { "percentage": 100, "min_time_s": 60, "min_samples": 40 },
        ],
        "settle_s": 20,
    }))
    .unwrap()
}

impl Bench {
    pub fn new() -> Self {
        let (ledger, world) = (Ledger::new(), Arc::<World>::default());
        let now = Arc::new(AtomicU64::new(1_000_000_000));
        let seats = [ledger.seat(true), ledger.seat(false)];
        let leaders = [0, 1].map(|at: usize| {
            let nodes = Nodes {
                world: world.clone(),
                ledger: ledger.clone(),
            };
            let clock = now.clone();
            let clock = Arc::new(move || clock.load(Ordering::SeqCst));
            Rollouts::new(
                seats[at].clone(),
                Arc::new(nodes),
                clock,
                &format!("leader{at}"),
            )
        });
        Self {
            ledger,
            world,
            seats,
            leaders,
            now,
            id: String::new(),
        }
    }

    pub async fn begun() -> Self {
        let mut bench = Self::new();
        bench.id = bench.leaders[0].create(plan(), "alice").await.unwrap().id;
        bench.baseline();
        bench
    }

    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// v1's work, which v3's is held against.
    pub fn baseline(&self) {
        for mode in ["internet", "datacenter"] {
            self.add(60, || migration(Side::V1, mode, self.now()));
        }
    }

    pub fn add(&self, count: usize, make: impl Fn() -> Sample) {
        let mut samples = self.world.samples.lock().unwrap();
        samples.extend((0..count).map(|_| make()));
    }

    /// Work of v3 that went well.
    pub fn good(&self) {
        for mode in ["internet", "datacenter"] {
            self.add(50, || migration(Side::V3, mode, self.now()));
        }
        self.add(100, || session(Side::V3, self.now()));
    }

    /// Time passes, and whoever leads looks.
    pub async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.now.fetch_add(1_000, Ordering::SeqCst);
            for leader in &self.leaders {
                leader.tick().await.unwrap();
            }
            self.whole();
        }
    }

    /// No node is half-way: the flag is what the rollout says, in every state that the log ever has.
    pub fn whole(&self) {
        for view in self.leaders[0].list() {
            let state = self.ledger.state();
            let value = state.flags[FEATURE].value.unwrap();
            assert!(value.enabled);
            assert_eq!(
                value.share,
                view.rollout.share(),
                "{:?}",
                view.rollout.stage
            );
            let held = state.steered_by(FEATURE).is_some();
            assert_eq!(held, !view.rollout.stage.is_final());
        }
    }

    pub fn view(&self) -> RolloutView {
        let all = self.leaders[0].list();
        all.into_iter().find(|it| it.id == self.id).unwrap()
    }

    /// Another one leads from now on.
    pub fn hand_over(&self, to: usize) {
        for (at, seat) in self.seats.iter().enumerate() {
            seat.leads.store(at == to, Ordering::SeqCst);
        }
    }
}
