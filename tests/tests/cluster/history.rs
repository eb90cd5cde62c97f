//! What clients saw of one register, and whether it can be.
//!
//! In: the beginning and the end of each operation, in the order in which they happened. Out: is there an order, each
//! operation at one moment between its beginning and its end, in which every read gives the last value written?
//! Promises: a write without an end may have happened at any time after it began, or not at all; each value is
//! written by one write.
//!
//! The search grows with what is open at the same time. A write without an end whose value nobody saw adds nothing
//! that could be wrong, and is left out: take it away from an order, and no read gives anything else.
//!
//! It tries threads in the order of their numbers, and a wrong guess costs all that can be put in another order before
//! it is found. So what took long, a write that a leader which was cut off kept waiting, has a thread of its own behind
//! all clients': it is put where nothing else explains a read. What was before and after it stays so.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

/// The register's values are thousandths of a percent.
pub type Share = u32;
type Tester = LinearizabilityTester<usize, Register<Share>>;
type Op = RegisterOp<Share>;
type Ret = RegisterRet<Share>;

/// More beginnings and ends than these while it was open, and an operation took long.
const LONG: usize = 40;
/// Threads of operations that took long.
const ASIDE: usize = 1_000;

/// The search goes one level deeper for each operation.
const STACK_BYTES: usize = 64 << 20;

#[derive(Clone, Debug)]
struct Operation {
    client: usize,
    op: Op,
    began: usize,
    ended: Option<(usize, Ret)>,
}

#[derive(Default)]
struct Inner {
    first: Share,
    moment: usize,
    operations: Vec<Option<Operation>>,
}

/// See the module.
#[derive(Default)]
pub struct History {
    inner: Mutex<Inner>,
}

/// An operation that has begun.
#[derive(Clone, Copy)]
pub struct Open(usize);

impl Inner {
    fn now(&mut self) -> usize {
        self.moment += 1;
        self.moment
    }

    /// Values that somebody saw.
    fn seen(&self) -> BTreeSet<Share> {
        let ended = self
            .operations
            .iter()
            .flatten()
            .filter_map(|it| it.ended.clone());
        ended
            .filter_map(|(_, ret)| match ret {
                RegisterRet::ReadOk(value) => Some(value),
                RegisterRet::WriteOk => None,
            })
            .collect()
    }

    /// What the tester is told: who, when, and a beginning or an end.
    fn tester(&self) -> Result<Tester, String> {
        let seen = self.seen();
        let counts = |it: &&Operation| {
            let value = match it.op {
                RegisterOp::Write(value) => Some(value),
                RegisterOp::Read => None,
            };
            it.ended.is_some() || value.is_some_and(|value| seen.contains(&value))
        };
        let mut told = Vec::new();
        for operation in self.operations.iter().flatten().filter(counts) {
            let thread = match &operation.ended {
                Some((ended, _)) if ended - operation.began <= LONG => operation.client,
                Some((ended, _)) => ASIDE + ended,
                None => ASIDE + self.moment + operation.began,
            };
            told.push((operation.began, thread, Err(operation.op.clone())));
            told.extend(
                operation
                    .ended
                    .clone()
                    .map(|(at, ret)| (at, thread, Ok(ret))),
            );
        }
        told.sort_by_key(|(at, ..)| *at);
        let mut tester = Tester::new(Register(self.first));
        for (_, thread, what) in told {
            match what {
                Err(op) => tester.on_invoke(thread, op)?,
                Ok(ret) => tester.on_return(thread, ret)?,
            };
        }
        Ok(tester)
    }
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// A history that begins with this value.
    pub fn new(first: Share) -> Self {
        let inner = Inner {
            first,
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// An operation begins.
    pub fn begin(&self, client: usize, op: Op) -> Open {
        let mut inner = self.lock();
        let began = inner.now();
        inner.operations.push(Some(Operation {
            client,
            op,
            began,
            ended: None,
        }));
        Open(inner.operations.len() - 1)
    }

    /// It has ended.
    pub fn end(&self, open: Open, ret: Ret) {
        let mut inner = self.lock();
        let now = inner.now();
        inner.operations[open.0].as_mut().unwrap().ended = Some((now, ret));
    }

    /// It did not happen, and never will.
    pub fn never(&self, open: Open) {
        self.lock().operations[open.0] = None;
    }

    /// How many have ended, of these clients.
    pub fn ended(&self, clients: &[usize]) -> usize {
        let inner = self.lock();
        let operations = inner.operations.iter().flatten();
        let ended = operations.filter(|it| it.ended.is_some() && clients.contains(&it.client));
        ended.count()
    }

    /// How many writes have ended.
    pub fn written(&self) -> usize {
        let inner = self.lock();
        let operations = inner.operations.iter().flatten();
        let written = operations.filter(|it| matches!(it.ended, Some((_, RegisterRet::WriteOk))));
        written.count()
    }

    /// How many have no end.
    pub fn unknown(&self) -> usize {
        let inner = self.lock();
        let operations = inner.operations.iter().flatten();
        operations.filter(|it| it.ended.is_none()).count()
    }

    /// Can it be?
    ///
    /// # Errors
    /// The history, if not.
    pub fn check(&self) -> Result<(), String> {
        let tester = self.lock().tester()?;
        let search = move || (tester.is_consistent(), tester);
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let (holds, tester) = thread.spawn(search).unwrap().join().unwrap();
        if holds {
            return Ok(());
        }
        Err(format!("no order explains {tester:?}"))
    }

    /// Begins anew with the value that the last read gave while nobody else asked anything. A write without an end
    /// whose value was not seen yet may still happen.
    pub fn turn(&self) {
        let mut inner = self.lock();
        let seen = inner.seen();
        let last = inner
            .operations
            .iter()
            .flatten()
            .filter_map(|it| it.ended.clone());
        let last = last.max_by_key(|(at, _)| *at);
        let Some((_, RegisterRet::ReadOk(value))) = last else {
            panic!("the last thing was no read");
        };
        inner.first = value;
        inner.operations.retain(|it| {
            let open = it.as_ref().filter(|it| it.ended.is_none());
            open.is_some_and(
                |it| matches!(it.op, RegisterOp::Write(value) if !seen.contains(&value)),
            )
        });
    }
}

mod tests {
    use super::*;

    const WROTE: Ret = RegisterRet::WriteOk;

    fn write(history: &History, client: usize, value: Share) {
        let open = history.begin(client, RegisterOp::Write(value));
        history.end(open, WROTE);
    }

    fn read(history: &History, client: usize, value: Share) {
        let open = history.begin(client, RegisterOp::Read);
        history.end(open, RegisterRet::ReadOk(value));
    }

    #[test]
    fn what_can_be_is_good() {
        let history = History::new(7);
        read(&history, 0, 7);
        // Two at the same time: either may be the later one.
        let (one, two) = (
            history.begin(0, RegisterOp::Write(1)),
            history.begin(1, RegisterOp::Write(2)),
        );
        history.end(two, WROTE);
        history.end(one, WROTE);
        read(&history, 2, 2);
        // Unknown, and it happened; another, and nobody saw it.
        history.begin(0, RegisterOp::Write(3));
        history.begin(1, RegisterOp::Write(4));
        read(&history, 2, 2);
        read(&history, 2, 3);
        history.check().unwrap();
        history.turn();
        assert_eq!(history.unknown(), 1);
        read(&history, 2, 3);
        read(&history, 2, 4);
        history.check().unwrap();
    }

    #[test]
    fn a_write_that_was_acknowledged_and_never_made_is_found() {
        let history = History::new(0);
        write(&history, 0, 1);
        write(&history, 1, 2);
        read(&history, 2, 1);
        history.check().unwrap_err();
    }

    #[test]
    fn an_old_value_is_found() {
        let history = History::new(0);
        write(&history, 0, 1);
        let slow = history.begin(1, RegisterOp::Write(2));
        read(&history, 2, 2);
        read(&history, 0, 1);
        history.end(slow, WROTE);
        history.check().unwrap_err();
    }

    #[test]
    fn a_write_that_happens_twice_is_found() {
        let history = History::new(0);
        history.begin(0, RegisterOp::Write(1));
        read(&history, 1, 1);
        write(&history, 2, 2);
        read(&history, 1, 1);
        history.check().unwrap_err();
    }

    #[test]
    fn a_value_of_nobody_is_found() {
        let history = History::new(0);
        read(&history, 1, 9);
        history.check().unwrap_err();
    }

    #[test]
    fn a_write_that_was_never_sent_cannot_be_seen() {
        let history = History::new(0);
        let open = history.begin(0, RegisterOp::Write(1));
        history.never(open);
        read(&history, 1, 1);
        history.check().unwrap_err();
    }

    #[test]
    fn a_write_that_took_long_amid_many_others_is_found_its_place() {
        let history = History::new(0);
        let long = history.begin(0, RegisterOp::Write(1_000));
        for round in 1..=60 {
            let open: Vec<Open> = (1..4)
                .map(|client| match client {
                    1 => history.begin(client, RegisterOp::Write(round)),
                    _ => history.begin(client, RegisterOp::Read),
                })
                .collect();
            history.end(open[0], WROTE);
            history.end(open[1], RegisterRet::ReadOk(round));
            history.end(open[2], RegisterRet::ReadOk(round - 1));
        }
        read(&history, 1, 60);
        read(&history, 2, 1_000);
        history.end(long, WROTE);
        history.check().unwrap();
    }
}
