//! What must hold at every step.
//!
//! In: what members send and apply, what clients are told. Out: the first violation. Promise: a
//! violation is never taken back.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use crate::conf::{Epoch, NodeNumber};
use crate::log::Log;
use crate::state::State;
use crate::wire::{Envelope, Message};

type Tester = LinearizabilityTester<u64, Register<u32>>;

fn is_sign_of_life(message: &Message) -> bool {
    matches!(message, Message::Append { entries, .. } if entries.is_empty())
}

#[derive(Clone, Default)]
pub(super) struct Checks {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    violation: Option<String>,
    leaders: BTreeMap<(Epoch, u64), NodeNumber>,
    applied: BTreeMap<(Epoch, u64), u64>,
    /// The state at the seal of each epoch.
    sealed: BTreeMap<Epoch, u64>,
    trace: DefaultHasher,
    testers: BTreeMap<&'static str, Tester>,
    asked: usize,
}

impl Checks {
    pub(super) fn violation(&self) -> Option<String> {
        self.inner.lock().unwrap().violation.clone()
    }

    pub(super) fn violated(&self, what: String) {
        let mut inner = self.inner.lock().unwrap();
        inner.violation.get_or_insert(what);
    }

    /// Everything that happened, as one number.
    pub(super) fn trace(&self) -> u64 {
        self.inner.lock().unwrap().trace.finish()
    }

    /// Tells what happens, with `DWCP_TRACE`.
    pub(super) fn event(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("DWCP_TRACE").is_some() {
            println!("{}", what());
        }
    }

    /// One leader a term.
    pub(super) fn sent(&self, envelope: &Envelope) {
        let mut inner = self.inner.lock().unwrap();
        (envelope.from, envelope.to, envelope.epoch).hash(&mut inner.trace);
        std::mem::discriminant(&envelope.message).hash(&mut inner.trace);
        if std::env::var_os("DWCP_TRACE").is_some() && !is_sign_of_life(&envelope.message) {
            println!("{envelope:?}");
        }
        if let Message::Append { vote, .. } = &envelope.message {
            let leader = vote.leader_id();
            let key = (envelope.epoch, leader.term);
            let known = *inner.leaders.entry(key).or_insert(leader.voted_for);
            if known != leader.voted_for || envelope.from != leader.voted_for {
                let what = format!("{known} and {} both lead in {key:?}", leader.voted_for);
                inner.violation.get_or_insert(what);
            }
        }
    }

    /// The same state at the same place, on every member and in every life.
    pub(super) fn applied(&self, id: NodeNumber, state: &State, index: u64) {
        let print = state.fingerprint();
        let mut inner = self.inner.lock().unwrap();
        (id, index, print).hash(&mut inner.trace);
        drop(inner);
        self.event(|| format!("node {id} applied {}:{index} {state:?}", state.epoch));
        let mut inner = self.inner.lock().unwrap();
        if state.sealed.is_some() {
            let at_seal = *inner.sealed.entry(state.epoch).or_insert(print);
            if at_seal != print {
                let what = format!("node {id} ran {index} after the seal of {}", state.epoch);
                inner.violation.get_or_insert(what);
            }
        }
        let known = *inner.applied.entry((state.epoch, index)).or_insert(print);
        if known != print {
            let what = format!(
                "node {id} applied something else at {}:{index}",
                state.epoch
            );
            inner.violation.get_or_insert(what);
        }
    }

    /// Logs that agree at one place agree everywhere before it.
    pub(super) fn logs(&self, logs: &[(NodeNumber, Log)]) {
        let logs: Vec<_> = logs.iter().map(|(id, log)| (id, log.entries())).collect();
        for (at, (id, one)) in logs.iter().enumerate() {
            for (other, two) in &logs[at + 1..] {
                let agree = one
                    .iter()
                    .rev()
                    .find(|(index, (log_id, _))| two.get(index).is_some_and(|it| it.0 == *log_id));
                let Some((last, _)) = agree else { continue };
                for (index, entry) in one.range(..=*last) {
                    if two.get(index).is_some_and(|theirs| theirs != entry) {
                        self.violated(format!("the logs of {id} and {other} differ at {index}"));
                    }
                }
            }
        }
    }

    pub(super) fn invoke(&self, key: &'static str, thread: u64, op: RegisterOp<u32>) {
        let mut inner = self.inner.lock().unwrap();
        inner.asked += 1;
        let tester = inner
            .testers
            .entry(key)
            .or_insert_with(|| Tester::new(Register(0)));
        tester.on_invoke(thread, op).unwrap();
    }

    pub(super) fn returned(&self, key: &'static str, thread: u64, ret: RegisterRet<u32>) {
        let mut inner = self.inner.lock().unwrap();
        let tester = inner.testers.get_mut(key).unwrap();
        tester.on_return(thread, ret).unwrap();
    }

    /// The histories are linearizable.
    pub(super) fn histories(&self) {
        let testers = std::mem::take(&mut self.inner.lock().unwrap().testers);
        for (key, tester) in testers {
            if self.violation().is_none() && !tester.is_consistent() {
                self.violated(format!(
                    "the history of {key} is not linearizable: {tester:?}"
                ));
            }
        }
    }
}
