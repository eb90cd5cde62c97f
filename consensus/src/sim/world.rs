//! Members, clients and chaos put together.
//!
//! In: a seed. Out: a [`Report`]. Promise: after the chaos everything is healed and must serve again,
//! with every write that was answered, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::type_config::TypeConfigExt;
use openraft_rt_sim::SimRuntime;
use stateright::semantics::register::{RegisterOp, RegisterRet};

use super::Sim;
use super::chance::Chance;
use super::check::Checks;
use super::disk::SimDisk;
use super::net::{Net, Port};
use crate::chain::{Chain, Identity, Tuning};
use crate::command::{Command, Decision, FlagValue};
use crate::conf::{NodeNumber, Peer};
use crate::replicator::{Replicator, SubmitError};
use crate::wire::Change;

const CHAOS: Duration = Duration::from_secs(9);
const HEAL: Duration = Duration::from_secs(30);
const WITHIN: Duration = Duration::from_secs(4);
const KEYS: [&str; 2] = ["dwcp_v3_hde", "dwcp_v3_amst"];

type Member = Chain<Sim, SimDisk>;

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) acknowledged: usize,
    pub(super) reads: usize,
    pub(super) epochs: u64,
    pub(super) trace: u64,
}

#[derive(Clone)]
struct World {
    chance: Chance,
    net: Net,
    checks: Checks,
    slots: Arc<Mutex<BTreeMap<NodeNumber, Slot>>>,
    told: Arc<Mutex<Told>>,
    founders: BTreeMap<NodeNumber, Peer>,
}

struct Slot {
    disk: SimDisk,
    member: Option<Arc<Member>>,
    /// Its clock runs at this percentage of true time.
    clock: u64,
}

#[derive(Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    reads: usize,
    threads: u64,
    values: u32,
    over: bool,
}

/// Runs a seed.
///
/// # Errors
/// What was violated.
pub(super) fn run(seed: u64) -> Result<Report, String> {
    let mut runtime = SimRuntime::with_seed(seed);
    let done = runtime.block_on(async move {
        let world = World::begin(seed);
        let ran = world.live(seed).await;
        world.checks.histories();
        world.checks.violation().map_or(ran, Err)
    });
    drop(runtime);
    done
}

fn peer(id: NodeNumber) -> Peer {
    Peer {
        name: format!("n{id}"),
        address: format!("n{id}"),
    }
}

impl World {
    fn begin(seed: u64) -> Self {
        let chance = Chance::new(seed);
        let size = if chance.permille(300) { 5 } else { 3 };
        let checks = Checks::default();
        let slots = (1..=size + 1).map(|id| {
            let slot = Slot {
                disk: SimDisk::new(chance.clone()),
                member: None,
                clock: 70 + chance.below(60),
            };
            (id, slot)
        });
        Self {
            net: Net::new(chance.clone(), checks.clone()),
            slots: Arc::new(Mutex::new(slots.collect())),
            founders: (1..=size).map(|id| (id, peer(id))).collect(),
            told: Arc::default(),
            chance,
            checks,
        }
    }

    fn ids(&self) -> Vec<NodeNumber> {
        self.slots.lock().unwrap().keys().copied().collect()
    }

    fn member(&self, id: NodeNumber) -> Option<Arc<Member>> {
        self.slots.lock().unwrap().get(&id)?.member.clone()
    }

    fn some_member(&self) -> Option<(NodeNumber, Arc<Member>)> {
        let slots = self.slots.lock().unwrap();
        let up: Vec<_> = slots
            .iter()
            .filter_map(|(id, slot)| Some((*id, slot.member.clone()?)))
            .collect();
        let at = self.chance.below(up.len() as u64) as usize;
        up.into_iter().nth(at)
    }

    async fn start(&self, id: NodeNumber) {
        let (disk, clock) = {
            let slots = self.slots.lock().unwrap();
            let slot = &slots[&id];
            if slot.member.is_some() {
                return;
            }
            (slot.disk.clone(), slot.clock)
        };
        let life = self.net.begin_life(id);
        let founders = if self.founders.contains_key(&id) {
            self.founders.clone()
        } else {
            BTreeMap::new()
        };
        let identity = Identity {
            id,
            cluster: "sim".to_owned(),
            me: peer(id),
            founders,
        };
        let tuning = Tuning {
            heartbeat_ms: clock,
            election_ms_min: 5 * clock,
            election_ms_max: 10 * clock,
            entries_per_snapshot: 20,
        };
        let port = Arc::new(Port {
            net: self.net.clone(),
            id,
            life,
        });
        let (checks, net) = (self.checks.clone(), self.net.clone());
        let on_apply = Arc::new(move |state: &crate::State, index: u64| {
            // A life that has ended still runs for a moment; nobody hears it.
            if net.life(id) == life {
                checks.applied(id, state, index);
            }
        });
        let opened = Chain::open(identity, disk, port, tuning, on_apply).await;
        if self.net.life(id) != life {
            return;
        }
        match opened {
            Ok(chain) => {
                let chain = Arc::new(chain);
                self.net.serve(id, chain.clone());
                self.slots.lock().unwrap().get_mut(&id).unwrap().member = Some(chain);
            }
            // A full disk: it is started again later.
            Err(error) if format!("{error:?}").contains("StorageFull") => self.net.end_life(id),
            Err(error) => self
                .checks
                .violated(format!("node {id} cannot start: {error:?}")),
        }
    }

    fn crash(&self, id: NodeNumber) {
        self.net.end_life(id);
        let member = {
            let mut slots = self.slots.lock().unwrap();
            let slot = slots.get_mut(&id).unwrap();
            slot.disk = slot.disk.crash();
            slot.member.take()
        };
        if let Some(member) = member {
            drop(Sim::spawn(async move { member.stop().await }));
        }
    }

    async fn live(&self, seed: u64) -> Result<Report, String> {
        for id in self.ids() {
            self.start(id).await;
        }
        for client in 0..3 {
            drop(Sim::spawn(self.clone().client(client)));
        }
        drop(Sim::spawn(self.clone().watch()));
        let end = Sim::now() + CHAOS;
        while Sim::now() < end && self.checks.violation().is_none() {
            self.chaos().await;
            Sim::sleep(self.chance.micros(50_000, 700_000)).await;
        }
        self.told.lock().unwrap().over = true;
        self.net.heal();
        for id in self.ids() {
            self.slots.lock().unwrap()[&id].disk.fill(false);
        }
        let serves = Sim::timeout(HEAL, self.serve_again()).await;
        if let Some(what) = self.checks.violation() {
            return Err(what);
        }
        let epochs = serves.map_err(|_| format!("seed {seed}: it does not serve again"))?;
        let told = self.told.lock().unwrap();
        Ok(Report {
            acknowledged: told.acknowledged.len(),
            reads: told.reads,
            epochs,
            trace: self.checks.trace(),
        })
    }

    /// Healed: one write and one read through every member, with everything that was answered.
    async fn serve_again(&self) -> u64 {
        loop {
            for id in self.ids() {
                self.start(id).await;
            }
            // What is answered from here on may be newer than what is read below.
            let acknowledged = self.told.lock().unwrap().acknowledged.clone();
            if let Some((_, member)) = self.some_member()
                && member.submit(record("last"), WITHIN).await.is_ok()
                && let Ok(state) = member.read(WITHIN).await
            {
                let texts: Vec<_> = state.decisions.iter().map(|it| it.text.clone()).collect();
                for write in &acknowledged {
                    if !texts.contains(write) {
                        let what = format!("{write} was acknowledged and is lost");
                        self.checks.violated(what);
                    }
                }
                let once: BTreeSet<_> = texts.iter().filter(|text| *text != "last").collect();
                let all = texts.iter().filter(|text| *text != "last").count();
                if once.len() != all {
                    self.checks.violated("a request ran twice".to_owned());
                }
                return state.epoch;
            }
            if self.checks.violation().is_some() {
                return 0;
            }
            Sim::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn watch(self) {
        loop {
            Sim::sleep(Duration::from_millis(200)).await;
            let mut logs = BTreeMap::new();
            for id in self.ids() {
                let Some(member) = self.member(id) else {
                    continue;
                };
                let Some(engine) = member.inner.engine() else {
                    continue;
                };
                if let Some(why) = engine.failed().filter(|why| why.contains("panic")) {
                    self.checks.violated(format!("node {id}: {why}"));
                }
                if let Some(why) = engine.machine().look(|state| state.diverged.clone()) {
                    self.checks.violated(format!("node {id}: {why}"));
                }
                let logs: &mut Vec<_> = logs.entry(engine.epoch()).or_default();
                logs.push((id, engine.log().clone()));
            }
            for logs in logs.values() {
                self.checks.logs(logs);
            }
        }
    }

    async fn chaos(&self) {
        let ids = self.ids();
        let id = ids[self.chance.below(ids.len() as u64) as usize];
        let other = ids[self.chance.below(ids.len() as u64) as usize];
        let what = self.chance.below(13);
        self.checks
            .event(|| format!("chaos {what} at {id} and {other}"));
        match what {
            0..=2 => {
                self.crash(id);
                let world = self.clone();
                drop(Sim::spawn(async move {
                    Sim::sleep(world.chance.micros(1_000, 1_500_000)).await;
                    world.start(id).await;
                }));
            }
            3 => {
                for id in &ids {
                    self.crash(*id);
                }
                Sim::sleep(self.chance.micros(1_000, 300_000)).await;
                for id in ids {
                    self.start(id).await;
                }
            }
            4 => {
                self.burst(8, 12_000);
                Sim::sleep(self.chance.micros(0, 12_000)).await;
                for peer in ids {
                    self.net.cut(id, peer);
                    self.net.cut(peer, id);
                }
            }
            5 => self.net.cut(id, other),
            6 => {
                let half = ids.len() / 2;
                for one in &ids[..half] {
                    for two in &ids[half..] {
                        self.net.cut(*one, *two);
                        self.net.cut(*two, *one);
                    }
                }
            }
            7 | 8 => self.net.heal(),
            9 => self.net.lose(self.chance.below(300)),
            10 => {
                let disk = self.slots.lock().unwrap()[&id].disk.clone();
                disk.fill(true);
                let (world, chance) = (self.clone(), self.chance.clone());
                drop(Sim::spawn(async move {
                    Sim::sleep(chance.micros(100_000, 1_500_000)).await;
                    world.slots.lock().unwrap()[&id].disk.fill(false);
                    world.start(id).await;
                }));
            }
            11 => self.seal(),
            _ => self.change(id),
        }
    }

    /// Seals the epoch: the next one has the same members or others.
    fn seal(&self) {
        let Some((_, member)) = self.some_member() else {
            return;
        };
        let spare = self.ids().len() as u64;
        let mut members = self.founders.clone();
        if self.chance.permille(400) {
            members.remove(&(1 + self.chance.below(spare - 1)));
            members.insert(spare, peer(spare));
        }
        drop(Sim::spawn(async move {
            let _ = member.seal(members, WITHIN).await;
        }));
        self.burst(24, 70_000);
    }

    /// Many writes at once, through all members.
    fn burst(&self, writes: u64, micros: u64) {
        for at in 0..writes {
            let world = self.clone();
            drop(Sim::spawn(async move {
                Sim::sleep(world.chance.micros(0, micros)).await;
                if let Some((id, member)) = world.some_member() {
                    world.write(id, &member, at).await;
                }
            }));
        }
    }

    async fn write(&self, id: NodeNumber, member: &Member, client: u64) {
        let life = self.net.life(id);
        let text = {
            let mut told = self.told.lock().unwrap();
            told.values += 1;
            format!("write {} of {client}", told.values)
        };
        let done = member.submit(record(&text), WITHIN).await;
        if done.is_ok() && self.net.life(id) == life {
            self.told.lock().unwrap().acknowledged.insert(text);
        }
    }

    fn change(&self, id: NodeNumber) {
        let Some((_, member)) = self.some_member() else {
            return;
        };
        let spare = self.ids().len() as u64;
        let change = match self.chance.below(4) {
            0 => Change::Add(spare, peer(spare)),
            1 if id == spare => Change::Remove(id),
            _ => Change::Transfer(id),
        };
        drop(Sim::spawn(async move {
            let _ = member.change(change, WITHIN).await;
        }));
    }

    async fn client(self, client: u64) {
        let mut thread = self.thread();
        loop {
            Sim::sleep(self.chance.micros(10_000, 220_000)).await;
            if self.told.lock().unwrap().over {
                return;
            }
            let Some((id, member)) = self.some_member() else {
                continue;
            };
            let life = self.net.life(id);
            let heard = || self.net.life(id) == life;
            let key = KEYS[self.chance.below(2) as usize];
            match self.chance.below(8) {
                0..=4 => self.write(id, &member, client).await,
                5 => self.set(key, &member, &mut thread, heard).await,
                _ => self.get(key, &member, &mut thread, heard).await,
            }
        }
    }

    fn thread(&self) -> u64 {
        let mut told = self.told.lock().unwrap();
        told.threads += 1;
        told.threads
    }

    async fn set(
        &self,
        key: &'static str,
        member: &Member,
        thread: &mut u64,
        heard: impl Fn() -> bool,
    ) {
        let value = {
            let mut told = self.told.lock().unwrap();
            told.values += 1;
            told.values
        };
        self.checks.invoke(key, *thread, RegisterOp::Write(value));
        let command = Command::SetFlag {
            feature: key.to_owned(),
            value: FlagValue {
                enabled: true,
                share: value,
            },
            at_unix_ms: self.chance.next(),
            by: "client".to_owned(),
        };
        match member.submit(command, WITHIN).await {
            Ok(_) if heard() => self.checks.returned(key, *thread, RegisterRet::WriteOk),
            Err(SubmitError::Refused(why)) => {
                self.checks.violated(format!("a flag was refused: {why}"));
            }
            // It may take effect later: it stays open in the history, and the client goes on as another.
            _ => *thread = self.thread(),
        }
    }

    async fn get(
        &self,
        key: &'static str,
        member: &Member,
        thread: &mut u64,
        heard: impl Fn() -> bool,
    ) {
        let before = self.told.lock().unwrap().acknowledged.clone();
        self.checks.invoke(key, *thread, RegisterOp::Read);
        let read = member.read(WITHIN).await;
        let (true, Ok(state)) = (heard(), read) else {
            *thread = self.thread();
            return;
        };
        self.told.lock().unwrap().reads += 1;
        let texts: BTreeSet<_> = state.decisions.iter().map(|it| it.text.as_str()).collect();
        if let Some(missed) = before.iter().find(|write| !texts.contains(write.as_str())) {
            self.checks.violated(format!("a read missed {missed}"));
        }
        if texts.len() as u64 != state.decisions_total {
            self.checks.violated("a request ran twice".to_owned());
        }
        let value = state.flags.get(key).and_then(|flag| flag.value);
        let value = RegisterRet::ReadOk(value.map_or(0, |value| value.share));
        self.checks.returned(key, *thread, value);
    }
}

fn record(text: &str) -> Command {
    Command::Record {
        decision: Decision {
            at_unix_ms: 0,
            by: "client".to_owned(),
            text: text.to_owned(),
            about: String::new(),
        },
    }
}
