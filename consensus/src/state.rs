//! The replicated state: flags, the kill switch, decisions, and who asked what already.
//!
//! In: requests in the order of the log. Out: the same state on every member. Promises: no clock, no
//! chance, no order of a hash table enters; memory is bounded; a request runs once however often the
//! log holds it; after the seal nothing changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::command::{
    Command, Decision, EpochDesc, FLAGS_MAX, FlagValue, NODES_MAX, Outcome, Reply, Request,
    SHARE_ALL, SessionId,
};
use crate::conf::Epoch;
use crate::document::Document;
use crate::force::Force;
use crate::plant::{Bug, planted};

/// Sessions that are kept; the one that was silent the longest gives its place to a new one.
pub const SESSIONS_MAX: usize = 1_024;
/// Decisions that are kept; the oldest gives its place to the newest.
pub const DECISIONS_MAX: usize = 1_000;

/// One flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Switch and share; absent while only exclusions were set.
    pub value: Option<FlagValue>,
    /// Nodes that are kept out.
    pub excluded: BTreeSet<String>,
    /// When it was last changed, Unix milliseconds by the proposer's clock.
    pub changed_unix_ms: u64,
    /// Who changed it last.
    pub by: String,
    /// Counts the changes of this flag.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    last_number: u64,
    last_reply: Reply,
    /// Counts what the whole state has run, so that silence can be compared.
    used_at: u64,
}

/// The state itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Epoch it belongs to.
    pub epoch: Epoch,
    /// Flags by key.
    pub flags: BTreeMap<String, Flag>,
    /// The kill switch.
    pub force: Force,
    /// What was decided, the oldest first.
    pub decisions: VecDeque<Decision>,
    /// Decisions ever kept.
    pub decisions_total: u64,
    /// Documents by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<String, Document>,
    /// The members have compared the state that the epoch began with.
    pub opened: bool,
    /// The epoch that follows, once this one is sealed.
    pub sealed: Option<EpochDesc>,
    /// The state of a member differed from the others' at the beginning of the epoch: it must stop.
    pub diverged: Option<String>,
    sessions: BTreeMap<SessionId, Session>,
    next_session: SessionId,
    ran: u64,
}

impl State {
    /// The state of a cluster that has done nothing.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            flags: BTreeMap::new(),
            force: Force::default(),
            decisions: VecDeque::new(),
            decisions_total: 0,
            documents: BTreeMap::new(),
            opened: false,
            sealed: None,
            diverged: None,
            sessions: BTreeMap::new(),
            next_session: 1,
            ran: 0,
        }
    }

    /// The state that the next epoch begins with.
    #[must_use]
    pub fn handed_over(&self, epoch: Epoch) -> Self {
        let mut next = Self {
            epoch,
            opened: false,
            sealed: None,
            ..self.clone()
        };
        if planted(Bug::GenesisEmpty) {
            next = Self::new(epoch);
        }
        if planted(Bug::SessionsNotHandedOver) {
            next.sessions.clear();
        }
        next
    }

    /// As bytes; the same state gives the same bytes.
    ///
    /// # Errors
    /// What the encoder says; no state of this type gives one.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// From bytes.
    ///
    /// # Errors
    /// What the decoder says.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// BLAKE3 of a state's bytes, hexadecimal.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> String {
        blake3::hash(bytes).to_hex().to_string()
    }

    /// Sessions open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Runs one position of the log. `genesis` is the hash of the state the epoch began with here.
    pub fn apply(&mut self, index: u64, genesis: &str, request: &Request) -> Outcome {
        if self.sealed.is_some() && !planted(Bug::SealIgnored) {
            return Outcome::Sealed;
        }
        match &request.command {
            Command::Seal { next } => {
                if next.epoch != self.epoch + 1 || next.members.is_empty() {
                    return Outcome::Ran(Reply::Refused(format!(
                        "epoch {} cannot follow epoch {}",
                        next.epoch, self.epoch
                    )));
                }
                self.sealed = Some(next.clone());
                return Outcome::Ran(Reply::Done { index });
            }
            Command::Open { state_hash } => {
                if state_hash != genesis {
                    self.diverged = Some(format!("epoch {} began elsewhere", self.epoch));
                }
                self.opened = true;
                return Outcome::Ran(Reply::Done { index });
            }
            Command::OpenSession => return Outcome::Ran(self.open_session()),
            _ => {}
        }
        self.ran += 1;
        let ran = self.ran;
        let Some(session) = self.sessions.get_mut(&request.session) else {
            return Outcome::NoSession;
        };
        if request.number == session.last_number && !planted(Bug::RetryRunsAgain) {
            return Outcome::Ran(session.last_reply.clone());
        }
        if request.number < session.last_number {
            return Outcome::Old;
        }
        let reply = if request.command == Command::CloseSession {
            self.sessions.remove(&request.session);
            return Outcome::Ran(Reply::Done { index });
        } else {
            self.run(index, &request.command)
        };
        if let Some(session) = self.sessions.get_mut(&request.session) {
            session.last_number = request.number;
            session.last_reply = reply.clone();
            session.used_at = ran;
        }
        Outcome::Ran(reply)
    }

    fn open_session(&mut self) -> Reply {
        self.ran += 1;
        if self.sessions.len() >= SESSIONS_MAX {
            let silent = self
                .sessions
                .iter()
                .min_by_key(|(id, session)| (session.used_at, **id))
                .map(|(id, _)| *id);
            if let Some(id) = silent {
                self.sessions.remove(&id);
            }
        }
        let id = self.next_session;
        self.next_session += 1;
        let session = Session {
            last_number: 0,
            last_reply: Reply::Session(id),
            used_at: self.ran,
        };
        self.sessions.insert(id, session);
        Reply::Session(id)
    }

    fn run(&mut self, index: u64, command: &Command) -> Reply {
        match command {
            Command::SetFlag {
                feature,
                value,
                at_unix_ms,
                by,
            } => {
                if let Some(key) = self.steered_by(feature) {
                    return Reply::Refused(format!(
                        "{feature} is steered by {key}: end that first"
                    ));
                }
                if value.share > SHARE_ALL {
                    return Reply::Refused(format!("a share of {} is more than all", value.share));
                }
                self.change(feature, *at_unix_ms, by, |flag| {
                    flag.value = Some(*value);
                    Ok(())
                })
            }
            Command::Exclude {
                feature,
                nodes,
                excluded,
                at_unix_ms,
                by,
            } => self.change(feature, *at_unix_ms, by, |flag| {
                let mut list = flag.excluded.clone();
                for node in nodes {
                    if *excluded {
                        list.insert(node.clone());
                    } else {
                        list.remove(node);
                    }
                }
                if list.len() > NODES_MAX {
                    return Err(format!(
                        "a flag excludes {NODES_MAX} nodes at most, this would be {}",
                        list.len()
                    ));
                }
                flag.excluded = list;
                Ok(())
            }),
            Command::Force {
                on,
                seen,
                at_unix_ms,
                by,
                throw,
            } => {
                let refused = self.force.change(*on, *seen, throw.as_ref());
                if let Some(reply) = refused {
                    return reply.with_index(index);
                }
                self.force.changed_unix_ms = *at_unix_ms;
                self.force.by.clone_from(by);
                Reply::Done { index }
            }
            Command::Write {
                key,
                expected,
                document,
                steer,
                decision,
                at_unix_ms,
                by,
            } => {
                let next = Document {
                    version: *expected,
                    text: document.clone(),
                    steers: None,
                    changed_unix_ms: *at_unix_ms,
                    by: by.clone(),
                };
                let written = self.write(key, next, steer.as_ref());
                if let (Reply::Done { .. }, Some(decision)) = (&written, decision) {
                    self.record(decision);
                }
                written
            }
            Command::Record { decision } => {
                self.record(decision);
                Reply::Done { index }
            }
            Command::OpenSession
            | Command::CloseSession
            | Command::Seal { .. }
            | Command::Open { .. } => Reply::Refused("not a client's command".to_owned()),
        }
        .with_index(index)
    }

    fn record(&mut self, decision: &Decision) {
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.pop_front();
        }
        self.decisions.push_back(decision.clone());
        self.decisions_total += 1;
    }

    pub(crate) fn change(
        &mut self,
        feature: &str,
        at_unix_ms: u64,
        by: &str,
        act: impl FnOnce(&mut Flag) -> Result<(), String>,
    ) -> Reply {
        if !self.flags.contains_key(feature) && self.flags.len() >= FLAGS_MAX {
            return Reply::Refused(format!("at most {FLAGS_MAX} flags are kept"));
        }
        let mut flag = self.flags.get(feature).cloned().unwrap_or_default();
        if let Err(why) = act(&mut flag) {
            return Reply::Refused(why);
        }
        flag.changed_unix_ms = at_unix_ms;
        by.clone_into(&mut flag.by);
        flag.generation += 1;
        self.flags.insert(feature.to_owned(), flag);
        Reply::Done { index: 0 }
    }

    /// A number that differs when states do.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut print = DefaultHasher::new();
        (
            self.epoch,
            self.ran,
            self.decisions_total,
            self.next_session,
        )
            .hash(&mut print);
        (self.sealed.is_some(), self.force.generation).hash(&mut print);
        for (key, document) in &self.documents {
            (key, document.version).hash(&mut print);
        }
        let last = self.decisions.back();
        last.map(|decision| &decision.text).hash(&mut print);
        for (key, flag) in &self.flags {
            let value = flag.value.map(|value| value.share);
            (key, flag.generation, value, flag.excluded.len()).hash(&mut print);
        }
        for (id, session) in &self.sessions {
            (id, session.last_number, session.used_at).hash(&mut print);
        }
        print.finish()
    }

    pub(crate) fn drop_sessions(&mut self) {
        self.sessions.clear();
    }
}

impl Reply {
    fn with_index(self, index: u64) -> Self {
        match self {
            Self::Done { .. } => Self::Done { index },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn request(session: SessionId, number: u64, command: Command) -> Request {
        Request {
            session,
            number,
            command,
        }
    }

    fn record(text: &str) -> Command {
        Command::Record {
            decision: Decision {
                at_unix_ms: 0,
                by: "test".to_owned(),
                text: text.to_owned(),
                about: String::new(),
            },
        }
    }

    fn force(on: bool, seen: u64) -> Command {
        Command::Force {
            on,
            seen,
            at_unix_ms: 0,
            by: "test".to_owned(),
            throw: None,
        }
    }

    fn with_sessions(count: u64) -> State {
        let mut state = State::new(1);
        for at in 0..count {
            state.apply(at, "", &request(0, 0, Command::OpenSession));
        }
        state
    }

    fn seal(epoch: Epoch) -> Command {
        let peer = crate::conf::Peer::default();
        Command::Seal {
            next: EpochDesc {
                epoch,
                engine: crate::command::EngineKind::Raft,
                members: BTreeMap::from([(1, peer)]),
            },
        }
    }

    #[test]
    fn the_first_seal_wins_and_nothing_runs_after_it() {
        let mut state = with_sessions(1);
        let refused = state.apply(5, "", &request(0, 0, seal(3)));
        assert!(matches!(refused, Outcome::Ran(Reply::Refused(_))));
        state.apply(6, "", &request(0, 0, seal(2)));
        let sealed = state.clone();
        for command in [record("late"), seal(2), Command::OpenSession] {
            let outcome = state.apply(7, "", &request(1, 1, command));
            assert_eq!(outcome, Outcome::Sealed);
        }
        assert_eq!(state, sealed);
        let mut next = state.handed_over(2);
        assert_eq!((next.epoch, next.sealed.is_some()), (2, false));
        let outcome = next.apply(1, "", &request(1, 1, record("late")));
        assert_eq!(outcome, Outcome::Ran(Reply::Done { index: 1 }));
    }

    #[test]
    fn a_throw_that_came_meanwhile_is_not_released() {
        let mut state = with_sessions(1);
        state.apply(1, "", &request(1, 1, force(true, 0)));
        let seen = state.force.generation;
        state.apply(2, "", &request(1, 2, force(true, 0)));
        let refused = state.apply(3, "", &request(1, 3, force(false, seen)));
        assert!(matches!(refused, Outcome::Ran(Reply::Refused(_))));
        assert!(state.force.on);
        let generation = state.force.generation;
        state.apply(4, "", &request(1, 4, force(false, generation)));
        assert!(!state.force.on);
    }

    #[test]
    fn memory_is_bounded() {
        let mut state = with_sessions(SESSIONS_MAX as u64 + 10);
        assert_eq!(state.sessions(), SESSIONS_MAX);
        let silent = state.apply(1, "", &request(1, 1, record("x")));
        assert_eq!(silent, Outcome::NoSession);
        let last = SESSIONS_MAX as u64 + 10;
        for number in 1..=DECISIONS_MAX as u64 + 10 {
            state.apply(number, "", &request(last, number, record("x")));
        }
        assert_eq!(state.decisions.len(), DECISIONS_MAX);
        assert_eq!(state.decisions_total, DECISIONS_MAX as u64 + 10);
    }

    #[test]
    fn a_state_that_began_otherwise_is_told() {
        let mut state = with_sessions(0);
        let open = |hash: &str| Command::Open {
            state_hash: hash.to_owned(),
        };
        state.apply(1, "mine", &request(0, 0, open("mine")));
        assert_eq!((state.opened, state.diverged.is_some()), (true, false));
        state.apply(2, "mine", &request(0, 0, open("theirs")));
        assert!(state.diverged.is_some());
    }

    proptest! {
        /// However often and in whatever places retries come, the outcome is that of asking once.
        #[test]
        fn retries_change_nothing(
            writes in proptest::collection::vec((1u64..4, 0u8..3), 1..30),
            retries in proptest::collection::vec(any::<proptest::sample::Index>(), 0..30),
        ) {
            let mut numbers = BTreeMap::<u64, u64>::new();
            let asked: Vec<Request> = writes.iter().map(|(session, kind)| {
                let number = numbers.entry(*session).or_default();
                *number += 1;
                let command = match kind {
                    0 => record(&format!("{session}/{number}")),
                    1 => force(true, 0),
                    _ => Command::SetFlag {
                        feature: "f".to_owned(),
                        value: FlagValue { enabled: true, share: 1 },
                        at_unix_ms: 0,
                        by: String::new(),
                    },
                };
                request(*session, *number, command)
            }).collect();
            let (mut once, mut again) = (with_sessions(3), with_sessions(3));
            for (at, asked_now) in asked.iter().enumerate() {
                let outcome = once.apply(at as u64, "", asked_now);
                prop_assert_eq!(&again.apply(at as u64, "", asked_now), &outcome);
                for retry in &retries {
                    let earlier = &asked[retry.index(at + 1)];
                    let told = again.apply(99, "", earlier);
                    let known = matches!(told, Outcome::Old)
                        || told == once.clone().apply(99, "", earlier);
                    prop_assert!(known, "{told:?}");
                }
            }
            prop_assert_eq!(&once.decisions, &again.decisions);
            prop_assert_eq!(&once.flags, &again.flags);
            prop_assert_eq!(&once.force, &again.force);
        }
    }
}
