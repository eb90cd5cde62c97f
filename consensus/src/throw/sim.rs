//! Fifty nodes in virtual time: a fifth of all messages lost, no quorum, cuts, crashes, and somebody who forges.
//!
//! In: a seed. Out: how long throws took, or what was violated. Promise: the same seed gives the same run. At every
//! step a node is in v1 if, and only if, a genuine throw has come to it that its log has not released.
//! One seed: `DWCP_SEED=17 cargo test -p dwcp-consensus --lib throw::sim::replay -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Known, Notary, Refusal, Spread, Statement, Throw, Told};
use crate::plant::{Bug, plant};
use crate::sim::chance::Chance;
use crate::tls::{Signature, SignatureError};

const NODES: usize = 50;
const CLUSTER: &str = "sim";
const LOSS_PERMILLE: u64 = 200;
/// What the product promises.
const REACHED_MS: u64 = 1_000;

/// Keyed digests in place of certificates: what the machine asks for is a yes or a no.
struct Keys;

fn seal(throw: &Throw, signer: &str) -> Signature {
    let key = blake3::hash(signer.as_bytes());
    let digest = blake3::keyed_hash(key.as_bytes(), &throw.signed_bytes());
    Signature {
        bytes: digest.to_hex().to_string(),
        ..Signature::default()
    }
}

impl Notary for Keys {
    fn vouches(&self, statement: &Statement) -> Result<(), Refusal> {
        let good = statement.signature == seal(&statement.throw, &statement.throw.node);
        good.then_some(()).ok_or(SignatureError::Forged.into())
    }
}

fn name(at: usize) -> String {
    format!("n{at:02}")
}

struct Node {
    spread: Spread,
    alive: bool,
    /// In v1, as the data plane's word would say.
    forced: bool,
    /// What the log released, as far as this node has applied it.
    applied: Known,
    /// Genuine throws that came to it in this life, and that it made.
    came: Known,
    wake_ms: u64,
}

enum Event {
    Wake(usize),
    Ask {
        from: usize,
        to: usize,
        told: Told,
    },
    Answer {
        from: usize,
        to: usize,
        told: Told,
    },
    Applied {
        node: usize,
        released: Known,
    },
    Attack,
    Expect {
        nodes: Vec<usize>,
        from: usize,
        number: u64,
        thrown_ms: u64,
    },
}

struct World {
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    nodes: Vec<Node>,
    cut: BTreeSet<(usize, usize)>,
    chance: Chance,
    genuine: BTreeSet<(String, u64)>,
    heard_on_wire: Vec<Statement>,
    members: BTreeSet<String>,
    slowest_ms: u64,
    asks: u64,
    /// When a node last said a throw to another, whether it came there or not.
    said_ms: BTreeMap<(usize, usize), u64>,
    attacks: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let members: BTreeSet<String> = (0..NODES).map(name).collect();
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            chance: Chance::new(seed),
            genuine: BTreeSet::new(),
            heard_on_wire: Vec::new(),
            members,
            slowest_ms: 0,
            asks: 0,
            said_ms: BTreeMap::new(),
            attacks: false,
        };
        for at in 0..NODES {
            let node = world.born(at);
            world.nodes.push(node);
            let soon = world.chance.below(500);
            world.at(soon, Event::Wake(at));
        }
        world
    }

    fn born(&self, at: usize) -> Node {
        let mut spread = Spread::new(CLUSTER, &name(at));
        spread.members(&self.members);
        Node {
            spread,
            alive: true,
            forced: false,
            applied: Known::new(),
            came: Known::new(),
            wake_ms: 0,
        }
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.queue.insert((ms, self.order), event);
    }

    fn travel_ms(&self) -> u64 {
        let far = if self.chance.permille(30) { 80 } else { 25 };
        1 + self.chance.below(far)
    }

    fn send(&mut self, from: usize, to: usize, event: Event) {
        let lost = self.chance.permille(LOSS_PERMILLE) || self.cut.contains(&(from, to));
        if !lost {
            let at = self.now + self.travel_ms();
            self.at(at, event);
        }
    }

    /// What a node does after anything happened to it.
    fn turn(&mut self, at: usize) -> Result<(), String> {
        let now = self.now;
        if !self.nodes[at].alive {
            return Ok(());
        }
        for ask in self.nodes[at].spread.asks(now) {
            self.asks += 1;
            let to = ask.to[1..].parse().map_err(|_| "asks a stranger")?;
            if !ask.told.statements.is_empty() {
                self.said_ms.insert((at, to), now);
            }
            self.send(
                at,
                to,
                Event::Ask {
                    from: at,
                    to,
                    told: ask.told,
                },
            );
        }
        let node = &mut self.nodes[at];
        let wake = node.spread.next_ms().max(now + 1);
        let moved = node.wake_ms != wake;
        node.wake_ms = wake;
        if moved {
            self.at(wake, Event::Wake(at));
        }
        self.check(at)
    }

    fn check(&self, at: usize) -> Result<(), String> {
        let node = &self.nodes[at];
        let above = |node: &Node, name: &String, number: u64| {
            number > node.applied.get(name).copied().unwrap_or(0)
        };
        let should = node
            .came
            .iter()
            .any(|(of, number)| above(node, of, *number));
        if node.forced != should {
            let (now, is) = (self.now, node.forced);
            return Err(format!(
                "{now} ms: n{at:02} in v1: {is}, should be: {should}"
            ));
        }
        for statement in node.spread.in_force() {
            let throw = &statement.throw;
            if !self.genuine.contains(&(throw.node.clone(), throw.number)) {
                return Err(format!("{} ms: n{at:02} obeys {throw:?}", self.now));
            }
        }
        if node.spread.known().len() > NODES {
            return Err("it remembers more nodes than there are".to_owned());
        }
        Ok(())
    }

    /// Words come to a node.
    fn hear(&mut self, at: usize, from: usize, told: Told) {
        for statement in &told.statements {
            let throw = &statement.throw;
            let mark = (throw.node.clone(), throw.number);
            let genuine = throw.cluster == CLUSTER
                && self.genuine.contains(&mark)
                && Keys.vouches(statement).is_ok();
            if genuine {
                let came = self.nodes[at].came.entry(throw.node.clone()).or_default();
                *came = (*came).max(throw.number);
            }
            if self.heard_on_wire.len() < 64 && !self.heard_on_wire.contains(statement) {
                self.heard_on_wire.push(statement.clone());
            }
        }
        let now = self.now;
        let node = &mut self.nodes[at];
        let heard = node.spread.hear(now, &name(from), told, &Keys);
        node.forced |= !heard.news.is_empty();
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Wake(at) => {
                if self.nodes[at].wake_ms <= self.now {
                    self.nodes[at].wake_ms = 0;
                    self.turn(at)?;
                }
            }
            Event::Ask { from, to, told } if self.nodes[to].alive => {
                self.hear(to, from, told);
                let now = self.now;
                let told = self.nodes[to].spread.answer(now, &name(from));
                self.send(
                    to,
                    from,
                    Event::Answer {
                        from: to,
                        to: from,
                        told,
                    },
                );
                self.turn(to)?;
            }
            Event::Answer { from, to, told } if self.nodes[to].alive => {
                self.hear(to, from, told);
                self.turn(to)?;
            }
            Event::Ask { .. } | Event::Answer { .. } => {}
            Event::Applied { node: at, released } => {
                let node = &mut self.nodes[at];
                node.spread.released(&released);
                node.applied = released;
                node.forced = node.spread.is_thrown();
                self.turn(at)?;
            }
            Event::Attack => {
                self.attack();
                if self.attacks {
                    let next = self.now + 10 + self.chance.below(40);
                    self.at(next, Event::Attack);
                }
            }
            Event::Expect {
                nodes,
                from,
                number,
                thrown_ms,
            } => {
                for at in nodes {
                    let known = self.nodes[at].spread.known();
                    let known = known.get(&name(from)).copied().unwrap_or(0);
                    if self.nodes[at].alive && known < number {
                        let after = self.now - thrown_ms;
                        return Err(format!(
                            "n{at:02} has not heard of n{from:02} after {after} ms"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn run_until(&mut self, ms: u64) -> Result<(), String> {
        while let Some(((at, order), event)) = self.queue.pop_first() {
            if at > ms {
                self.queue.insert((at, order), event);
                break;
            }
            self.now = self.now.max(at);
            self.step(event)?;
        }
        self.now = ms;
        Ok(())
    }

    fn throw(&mut self, at: usize) -> Result<u64, String> {
        let number = self.nodes[at].spread.next_number(self.now);
        let throw = Throw {
            cluster: CLUSTER.to_owned(),
            node: name(at),
            number,
            at_unix_ms: self.now,
            by: "operator".to_owned(),
        };
        let signature = seal(&throw, &name(at));
        self.genuine.insert((name(at), number));
        let node = &mut self.nodes[at];
        node.came.insert(name(at), number);
        node.forced = true;
        node.spread.keep(Statement { throw, signature });
        self.turn(at)?;
        Ok(number)
    }

    /// Throws, waits for everybody in `reach`, and notes how long it took.
    fn throw_and_expect(&mut self, at: usize, reach: &[usize]) -> Result<(), String> {
        let thrown_ms = self.now;
        let number = self.throw(at)?;
        let nodes = reach.to_vec();
        let expect = Event::Expect {
            nodes,
            from: at,
            number,
            thrown_ms,
        };
        self.at(thrown_ms + REACHED_MS, expect);
        loop {
            let knows = |it: &usize| {
                let node = &self.nodes[*it];
                let known = node.spread.known().get(&name(at)).copied().unwrap_or(0);
                !node.alive || known >= number
            };
            if reach.iter().all(knows) || self.now > thrown_ms + REACHED_MS {
                break;
            }
            self.run_until(self.now + 1)?;
        }
        self.slowest_ms = self.slowest_ms.max(self.now - thrown_ms);
        Ok(())
    }

    fn attack(&mut self) {
        let at = self.chance.below(NODES as u64) as usize;
        let from = self.chance.below(NODES as u64) as usize;
        let (member, stranger) = (
            name(self.chance.below(NODES as u64) as usize),
            "x99".to_owned(),
        );
        let made = |cluster: &str, node: &String, signer: &str| {
            let throw = Throw {
                cluster: cluster.to_owned(),
                node: node.clone(),
                number: u64::from(u32::MAX),
                at_unix_ms: 0,
                by: "nobody".to_owned(),
            };
            let signature = seal(&throw, signer);
            Statement { throw, signature }
        };
        let old = self.heard_on_wire.len() as u64;
        let statement = match self.chance.below(5) {
            0 => made(CLUSTER, &member, "x99"),
            1 => made(CLUSTER, &stranger, "x99"),
            2 => made("elsewhere", &member, &member),
            3 if old > 0 => {
                let mut altered = self.heard_on_wire[self.chance.below(old) as usize].clone();
                altered.throw.number += 1_000_000;
                altered
            }
            _ if old > 0 => self.heard_on_wire[self.chance.below(old) as usize].clone(),
            _ => return,
        };
        // Genuine words are not carried over a cut: that would be a way.
        let throw = &statement.throw;
        let knows = self.nodes[at].spread.known().get(&throw.node).copied();
        let carried = !self.cut.is_empty()
            && self.genuine.contains(&(throw.node.clone(), throw.number))
            && knows.unwrap_or(0) < throw.number;
        if self.nodes[at].alive && !carried {
            let known = self.nodes[from].spread.known();
            let told = Told {
                statements: vec![statement],
                known,
            };
            let now = self.now;
            self.at(now, Event::Answer { from, to: at, told });
        }
    }

    /// The log releases what it holds; each node applies that when it gets there.
    fn release(&mut self, released: &Known) {
        for node in 0..NODES {
            let at = self.now + self.chance.below(500);
            self.at(
                at,
                Event::Applied {
                    node,
                    released: released.clone(),
                },
            );
        }
    }

    fn thrown(&self) -> Known {
        let mut thrown = Known::new();
        for (node, number) in &self.genuine {
            let newest = thrown.entry(node.clone()).or_default();
            *newest = (*newest).max(*number);
        }
        thrown
    }

    fn all_in(&self, forced: bool) -> Result<(), String> {
        let other = self
            .nodes
            .iter()
            .position(|it| it.alive && it.forced != forced);
        other.map_or(Ok(()), |at| {
            Err(format!("{} ms: n{at:02} in v1: {}", self.now, !forced))
        })
    }
}

/// What a run shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Report {
    /// The longest way of a throw to the last node that could be reached.
    slowest_ms: u64,
    /// Questions asked in all.
    asks: u64,
}

fn run(seed: u64) -> Result<Report, String> {
    let mut world = World::new(seed);
    let everybody: Vec<usize> = (0..NODES).collect();
    let pick =
        |world: &World, group: &[usize]| group[world.chance.below(group.len() as u64) as usize];
    world.run_until(1_000)?;
    // There is no quorum anywhere from here to the first release.
    let first = pick(&world, &everybody);
    world.throw_and_expect(first, &everybody)?;
    world.all_in(true)?;
    world.attacks = true;
    let now = world.now;
    world.at(now, Event::Attack);

    // Two parts, and one who reaches only a third of its own part by itself.
    let (near, far): (Vec<usize>, Vec<usize>) =
        everybody.iter().partition(|_| world.chance.permille(600));
    for a in &near {
        for b in &far {
            world.cut.extend([(*a, *b), (*b, *a)]);
        }
    }
    let lonely = pick(&world, &near);
    for b in near.iter().filter(|b| **b != lonely && **b % 3 != 0) {
        world.cut.extend([(lonely, *b), (*b, lonely)]);
    }
    world.run_until(now + 500)?;
    world.throw_and_expect(lonely, &near)?;
    world.run_until(world.now + 17_000)?;
    // Nobody gave up.
    for pair in near.iter().flat_map(|a| far.iter().map(|b| (*a, *b))) {
        let said = world.said_ms.get(&pair).copied().unwrap_or(0);
        if said + 1_000 < world.now {
            return Err(format!("n{:02} tells n{:02} no more", pair.0, pair.1));
        }
    }
    world.cut.clear();
    let (healed, number) = (world.now, world.nodes[lonely].spread.known()[&name(lonely)]);
    let expect = Event::Expect {
        nodes: everybody.clone(),
        from: lonely,
        number,
        thrown_ms: healed,
    };
    world.at(healed + REACHED_MS, expect);
    world.run_until(healed + 1_500)?;

    // A release that knows nothing of two throws that come with it, one by a node that threw before.
    let released = world.thrown();
    world.release(&released);
    world.throw_and_expect(first, &everybody)?;
    world.run_until(world.now + 1_500)?;
    world.all_in(true)?;
    let released = world.thrown();
    world.release(&released);
    world.run_until(world.now + 2_000)?;
    world.all_in(false)?;

    // Five crash: one of them forgets all; its log comes back a little later than its network.
    for at in 0..5 {
        world.nodes[at] = world.born(at);
        let later = world.now + 50 + world.chance.below(200);
        world.at(
            later,
            Event::Applied {
                node: at,
                released: released.clone(),
            },
        );
        world.turn(at)?;
    }
    world.run_until(world.now + 1_500)?;
    world.all_in(false)?;
    let last = 5 + world.chance.below(NODES as u64 - 5) as usize;
    world.throw_and_expect(last, &everybody)?;
    world.run_until(world.now + 1_000)?;
    world.nodes[7 % NODES] = world.born(7 % NODES);
    if last != 7 {
        world.nodes[7].applied = released.clone();
        world.nodes[7].spread.released(&released);
        world.turn(7)?;
        let (reborn, number) = (world.now, world.thrown()[&name(last)]);
        let expect = Event::Expect {
            nodes: vec![7],
            from: last,
            number,
            thrown_ms: reborn,
        };
        world.at(reborn + 3 * REACHED_MS, expect);
    }
    world.attacks = false;
    world.run_until(world.now + 4_000)?;
    Ok(Report {
        slowest_ms: world.slowest_ms,
        asks: world.asks,
    })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn sound(seed: u64) -> Report {
    run(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}\nreplay it with DWCP_SEED={seed}"))
}

#[test]
fn replay() {
    let seed = number("DWCP_SEED", 1);
    println!("seed {seed}: {:?}", sound(seed));
    assert_eq!(sound(seed), sound(seed), "the same seed gives the same run");
}

#[test]
fn every_reachable_node_is_reached_without_a_quorum() {
    let mut slowest: Vec<u64> = (0..number("DWCP_SEEDS", 40))
        .map(|seed| sound(seed).slowest_ms)
        .collect();
    slowest.sort_unstable();
    let (least, middle) = (slowest[0], slowest[slowest.len() / 2]);
    let most = slowest[slowest.len() - 1];
    println!(
        "{} seeds, slowest throw of each: {least} / {middle} / {most} ms (least, median, most)",
        slowest.len()
    );
    let distinct: HashSet<u64> = slowest.iter().copied().collect();
    assert!(distinct.len() > 1, "seeds make no difference");
}

#[test]
fn finds_every_planted_bug() {
    for bug in [
        Bug::ThrowUnsigned,
        Bug::ThrowReplayed,
        Bug::ThrowOfStranger,
        Bug::ThrowElsewhere,
        Bug::ThrowSentOnce,
        Bug::ThrowSentIsKnown,
        Bug::ThrowNotRelayed,
        Bug::ThrowPauseGrows,
        Bug::ThrowKnownForEver,
        Bug::ThrowSecondLost,
        Bug::ReleaseOfAll,
        Bug::ReleaseByPeer,
    ] {
        plant(Some(bug));
        let by = (0..50).find_map(|seed| run(seed).err().map(|what| (seed, what)));
        plant(None);
        let (seed, what) = by.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: seed {seed}: {what}");
    }
}
