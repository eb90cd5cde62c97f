//! Who knows which throw, and whom to tell next.
//!
//! In: throws, what peers say, releases, the time. Out: throws that are news, and questions to ask. Promises: no clock,
//! no chance and no socket of its own, so that the same inputs give the same outputs; a peer that is known to lack a
//! throw is asked again at least every [`PAUSE_MS_MAX`] until it says that it knows; what a peer lacks is what it said
//! last, so one that forgot is told again; memory is bounded by the number of members.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::statement::{Notary, Refusal, Statement};
use crate::plant::{Bug, planted};

/// Silence after which a peer is asked again, at first.
pub const PAUSE_MS_MIN: u64 = 150;
/// The same, after several times.
pub const PAUSE_MS_MAX: u64 = 600;
/// How often some peer is asked when all seem to know everything.
pub const SYNC_MS: u64 = 500;
/// Peers that are asked at once.
pub const FAN_OUT: usize = 8;
/// Time between two such rounds.
pub const ROUND_MS: u64 = 10;
/// Throws in one message, and nodes whose throws are kept.
pub const STATEMENTS_MAX: usize = 1_024;

/// The newest throw of each node that somebody knows; released ones count as known.
pub type Known = BTreeMap<String, u64>;

/// What is said to a peer, in a question and in its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Throws that the other one lacks.
    pub statements: Vec<Statement>,
    /// What the speaker knows.
    pub known: Known,
}

/// A question for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its name.
    pub to: String,
    /// What to say.
    pub told: Told,
}

/// What came of a peer's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Throws that were not known: they are in force from now on.
    pub news: Vec<Statement>,
    /// Those that count for nothing, by the node they name.
    pub refused: Vec<(String, Refusal)>,
}

#[derive(Debug, Default)]
struct View {
    known: Known,
    next_ms: u64,
    tries: u32,
}

/// One node's part in it.
#[derive(Debug)]
pub struct Spread {
    cluster: String,
    me: String,
    peers: BTreeMap<String, View>,
    held: BTreeMap<String, Statement>,
    released: Known,
    sync_ms: u64,
    round_ms: u64,
    /// Who is asked first: moves on, so that no peer is always last.
    turn: String,
}

impl Spread {
    /// A node that knows no throw.
    #[must_use]
    pub fn new(cluster: &str, me: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            me: me.to_owned(),
            peers: BTreeMap::new(),
            held: BTreeMap::new(),
            released: Known::new(),
            sync_ms: 0,
            round_ms: 0,
            // Each node begins with another peer.
            turn: me.to_owned(),
        }
    }

    /// Who the members are, this node among them or not.
    pub fn members(&mut self, names: &BTreeSet<String>) {
        self.peers.retain(|name, _| names.contains(name));
        for name in names {
            if *name != self.me && !self.peers.contains_key(name) {
                self.peers.insert(name.clone(), View::default());
            }
        }
    }

    /// A throw that this node made, or had kept; it is in force unless it was released.
    pub fn keep(&mut self, statement: Statement) {
        let throw = &statement.throw;
        if throw.number > self.knows(&throw.node) {
            self.held.insert(throw.node.clone(), statement);
            self.hurry();
        }
    }

    /// The number for the next throw of this node: above all before, also after its disk was lost.
    #[must_use]
    pub fn next_number(&self, unix_ms: u64) -> u64 {
        unix_ms.max(self.knows(&self.me).saturating_add(1))
    }

    /// What the log released.
    pub fn released(&mut self, released: &Known) {
        for (node, number) in released {
            let known = self.released.entry(node.clone()).or_default();
            *known = (*known).max(*number);
        }
        if planted(Bug::ReleaseOfAll) && !released.is_empty() {
            self.held.clear();
        }
        let known = &self.released;
        self.held.retain(|node, statement| {
            statement.throw.number > known.get(node).copied().unwrap_or(0)
        });
    }

    /// Is a throw in force?
    #[must_use]
    pub fn is_thrown(&self) -> bool {
        !self.held.is_empty()
    }

    /// The throws that are in force.
    pub fn in_force(&self) -> impl Iterator<Item = &Statement> {
        self.held.values()
    }

    fn knows(&self, node: &str) -> u64 {
        let held = self.held.get(node).map_or(0, |it| it.throw.number);
        held.max(self.released.get(node).copied().unwrap_or(0))
    }

    /// What this node knows.
    #[must_use]
    pub fn known(&self) -> Known {
        let mut known = self.released.clone();
        for (node, statement) in &self.held {
            known.insert(node.clone(), statement.throw.number);
        }
        known
    }

    fn lacks(&self, theirs: &Known) -> Vec<Statement> {
        let lacked = self.held.values().filter(|statement| {
            let own = statement.throw.node == self.me || !planted(Bug::ThrowNotRelayed);
            own && theirs.get(&statement.throw.node).copied().unwrap_or(0) < statement.throw.number
        });
        lacked.take(STATEMENTS_MAX).cloned().collect()
    }

    fn take(&mut self, statement: Statement, notary: &dyn Notary) -> Result<bool, Refusal> {
        let throw = &statement.throw;
        throw.check()?;
        if throw.cluster != self.cluster && !planted(Bug::ThrowElsewhere) {
            return Err(Refusal::Elsewhere(throw.cluster.clone()));
        }
        let member = throw.node == self.me || self.peers.contains_key(&throw.node);
        if !member && !planted(Bug::ThrowOfStranger) {
            return Err(Refusal::Stranger(throw.node.clone()));
        }
        let mut knows = self.knows(&throw.node);
        if planted(Bug::ThrowReplayed) {
            knows = self.held.get(&throw.node).map_or(0, |it| it.throw.number);
        }
        let second = planted(Bug::ThrowSecondLost) && self.held.contains_key(&throw.node);
        if throw.number <= knows || second {
            return Ok(false);
        }
        if !planted(Bug::ThrowUnsigned) {
            notary.vouches(&statement)?;
        }
        if self.held.len() >= STATEMENTS_MAX && !self.held.contains_key(&throw.node) {
            return Err(Refusal::TooLong("number of nodes that threw"));
        }
        self.held.insert(throw.node.clone(), statement);
        Ok(true)
    }

    /// Takes a peer's words in, a question's or an answer's.
    pub fn hear(&mut self, now_ms: u64, from: &str, told: Told, notary: &dyn Notary) -> Heard {
        let mut heard = Heard::default();
        if planted(Bug::ReleaseByPeer) && told.statements.is_empty() {
            let known = &told.known;
            self.held.retain(|node, statement| {
                known.get(node).copied().unwrap_or(0) < statement.throw.number
            });
        }
        // Nobody needs more than one of a node; to look at a signature costs time.
        let mut named = BTreeSet::new();
        for statement in told.statements.into_iter().take(STATEMENTS_MAX) {
            let node = statement.throw.node.clone();
            if !named.insert(node.clone()) {
                continue;
            }
            match self.take(statement.clone(), notary) {
                Ok(true) => heard.news.push(statement),
                Ok(false) => {}
                Err(refusal) => heard.refused.push((node, refusal)),
            }
        }
        if let Some(view) = self.peers.get_mut(from) {
            if planted(Bug::ThrowKnownForEver) {
                for (node, number) in told.known {
                    let known = view.known.entry(node).or_default();
                    *known = (*known).max(number);
                }
            } else {
                view.known = told.known;
                while view.known.len() > STATEMENTS_MAX {
                    view.known.pop_last();
                }
            }
            view.tries = 0;
            view.next_ms = now_ms;
        }
        if !heard.news.is_empty() {
            self.hurry();
        }
        heard
    }

    /// The answer to a peer whose question was just taken in.
    #[must_use]
    pub fn answer(&mut self, now_ms: u64, to: &str) -> Told {
        let nothing = Known::new();
        let theirs = self.peers.get(to).map_or(&nothing, |view| &view.known);
        let statements = self.lacks(theirs);
        if let Some(view) = self.peers.get_mut(to) {
            // The answer carries them: it is asked only if nothing is heard of it.
            view.next_ms = now_ms + PAUSE_MS_MIN;
        }
        Told {
            statements,
            known: self.known(),
        }
    }

    /// News: nobody waits for the end of a pause.
    fn hurry(&mut self) {
        for view in self.peers.values_mut() {
            view.tries = 0;
            view.next_ms = 0;
        }
        self.round_ms = 0;
    }

    /// Whom to ask now.
    pub fn asks(&mut self, now_ms: u64) -> Vec<Ask> {
        let mut asks = Vec::new();
        if now_ms < self.round_ms {
            return asks;
        }
        let known = self.known();
        let after = self.peers.keys().filter(|name| **name > self.turn);
        let before = self.peers.keys().filter(|name| **name <= self.turn);
        let order: Vec<String> = after.chain(before).cloned().collect();
        for name in &order {
            let Some(view) = self.peers.get(name) else {
                continue;
            };
            let lacks = self.lacks(&view.known);
            let again = view.tries == 0 || !planted(Bug::ThrowSentOnce);
            if lacks.is_empty() || view.next_ms > now_ms || !again {
                continue;
            }
            if asks.len() == FAN_OUT {
                self.round_ms = now_ms + ROUND_MS;
                break;
            }
            if let Some(view) = self.peers.get_mut(name) {
                let limit = if planted(Bug::ThrowPauseGrows) {
                    u64::MAX
                } else {
                    PAUSE_MS_MAX
                };
                let pause = PAUSE_MS_MIN << view.tries.min(20);
                view.next_ms = now_ms + pause.min(limit);
                view.tries += 1;
                if planted(Bug::ThrowSentIsKnown) {
                    view.known.clone_from(&known);
                }
            }
            self.turn.clone_from(name);
            asks.push(Ask {
                to: name.clone(),
                told: Told {
                    statements: lacks,
                    known: known.clone(),
                },
            });
        }
        if asks.is_empty() && now_ms >= self.sync_ms {
            self.sync_ms = now_ms + SYNC_MS;
            if let Some(name) = order.into_iter().next() {
                self.turn.clone_from(&name);
                let told = Told {
                    statements: Vec::new(),
                    known,
                };
                asks.push(Ask { to: name, told });
            }
        }
        asks
    }

    /// When to call [`Self::asks`] again at the latest.
    #[must_use]
    pub fn next_ms(&self) -> u64 {
        let lacking = self.peers.values().filter(|view| {
            (view.tries == 0 || !planted(Bug::ThrowSentOnce)) && !self.lacks(&view.known).is_empty()
        });
        let soonest = lacking.map(|view| view.next_ms.max(self.round_ms)).min();
        soonest.map_or(self.sync_ms, |at| at.min(self.sync_ms))
    }
}
