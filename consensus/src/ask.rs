//! Asking the leader, wherever it is: requests, reads, seals, changes.
//!
//! In: what this member is asked. Out: what a quorum made of it. Promises: an attempt that got no answer is
//! made again until the time is up, with the same number; a read in an epoch that is sealed is made
//! again in the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;

use crate::chain::{Inner, PAUSE};
use crate::command::{Command, EngineKind, EpochDesc, Outcome, Reply, Request};
use crate::conf::{Conf, Epoch, NodeNumber, Peer};
use crate::disk::Disk;
use crate::network::ATTEMPT;
use crate::plant::{Bug, planted};
use crate::raft::NotDone;
use crate::replicator::SubmitError;
use crate::state::State;
use crate::wire::{Answer, Change, Message};

impl<C: Conf, D: Disk> Inner<C, D> {
    /// Tries until a request has an outcome in an epoch that is not sealed.
    ///
    /// # Errors
    /// [`SubmitError::NoQuorum`] when the time is up: then it may have run or may still run.
    pub(crate) async fn order(
        &self,
        request: Request,
        within: Duration,
    ) -> Result<Outcome, SubmitError> {
        let mut why = "no leader is known".to_owned();
        let tried = async {
            loop {
                match self.attempt(request.clone()).await {
                    Ok(Outcome::Sealed) => "the epoch was sealed".clone_into(&mut why),
                    Ok(outcome) => return outcome,
                    Err(error) => why = error,
                }
                C::sleep(PAUSE).await;
            }
        };
        let ended = C::timeout(within, tried).await;
        ended.map_err(|_| SubmitError::NoQuorum { why })
    }

    async fn attempt(&self, request: Request) -> Result<Outcome, String> {
        let engine = self.engine().ok_or("this member's log is at rest")?;
        let leader = engine.leader();
        let asked = async {
            match leader {
                Some((id, _)) if id == self.caller.id => match engine.propose(request).await {
                    Ok(outcome) => Ok(outcome),
                    Err(NotDone::Elsewhere) => Err("the leader changed".to_owned()),
                    Err(NotDone::Unknown(why)) => Err(why),
                },
                Some((id, peer)) => {
                    let message = Message::Propose(request);
                    let asked = self.caller.ask(id, &peer, engine.epoch(), message);
                    match asked.await.map_err(|error| error.to_string())? {
                        Answer::Proposed(outcome) => Ok(outcome),
                        _ => Err("an answer to another question".to_owned()),
                    }
                }
                None => Err("no leader is known".to_owned()),
            }
        };
        let ended = C::timeout(ATTEMPT, asked).await;
        ended.unwrap_or_else(|_| Err("no quorum answered in time".to_owned()))
    }

    /// A state that holds everything answered before this was called.
    ///
    /// # Errors
    /// [`SubmitError::NoQuorum`] when the time is up.
    pub(crate) async fn read(&self, within: Duration) -> Result<State, SubmitError> {
        let mut why = "no leader is known".to_owned();
        let tried = async {
            loop {
                match self.read_once().await {
                    Ok(state) => return state,
                    Err(error) => why = error,
                }
                C::sleep(PAUSE).await;
            }
        };
        let ended = C::timeout(within, tried).await;
        ended.map_err(|_| SubmitError::NoQuorum { why })
    }

    async fn read_once(&self) -> Result<State, String> {
        let engine = self.engine().ok_or("this member's log is at rest")?;
        if planted(Bug::StaleRead) {
            return Ok(engine.machine().state().0);
        }
        let asked = async {
            match engine.leader() {
                Some((id, _)) if id == self.caller.id => match engine.barrier().await {
                    Ok(index) => Ok(index),
                    Err(NotDone::Elsewhere) => Err("the leader changed".to_owned()),
                    Err(NotDone::Unknown(why)) => Err(why),
                },
                Some((id, peer)) => {
                    let asked = self.caller.ask(id, &peer, engine.epoch(), Message::Barrier);
                    match asked.await.map_err(|error| error.to_string())? {
                        Answer::Barrier(index) => Ok(index),
                        _ => Err("an answer to another question".to_owned()),
                    }
                }
                None => Err("no leader is known".to_owned()),
            }
        };
        let index = C::timeout(ATTEMPT, asked)
            .await
            .unwrap_or_else(|_| Err("no quorum answered in time".to_owned()))?;
        if !engine.applied(index, ATTEMPT).await {
            return Err("this member is behind".to_owned());
        }
        let (state, _) = engine.machine().state();
        if state.sealed.is_some() {
            return Err("the epoch was sealed".to_owned());
        }
        Ok(state)
    }

    /// Ends the epoch and begins the next one.
    ///
    /// # Errors
    /// [`SubmitError`]; after [`SubmitError::NoQuorum`] it may still happen.
    pub(crate) async fn seal(
        &self,
        members: BTreeMap<NodeNumber, Peer>,
        within: Duration,
    ) -> Result<Epoch, SubmitError> {
        let ready = self.reachable(&members).await;
        if ready * 2 <= members.len() {
            return Err(SubmitError::NotReady {
                ready,
                of: members.len(),
            });
        }
        let next = EpochDesc {
            epoch: self.epoch() + 1,
            engine: EngineKind::Raft,
            members,
        };
        let request = Request {
            session: 0,
            number: 0,
            command: Command::Seal { next: next.clone() },
        };
        request.command.check()?;
        let asked = C::timeout(within, self.attempt(request)).await;
        let answered = match asked {
            Ok(Ok(Outcome::Ran(Reply::Refused(why)))) => return Err(SubmitError::Refused(why)),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("no quorum answered in time".to_owned()),
        };
        let there = async {
            while self.epoch() < next.epoch {
                C::sleep(PAUSE).await;
            }
        };
        let began = C::timeout(within, there).await.is_ok();
        let won = self.began_as(&next);
        match (began, won) {
            (true, Some(true)) => Ok(next.epoch),
            (true, _) => Err(SubmitError::Refused(
                "another seal came first; look at the members and ask again".to_owned(),
            )),
            _ => Err(SubmitError::NoQuorum {
                why: answered
                    .err()
                    .unwrap_or_else(|| "the next epoch has not begun here".to_owned()),
            }),
        }
    }

    async fn reachable(&self, members: &BTreeMap<NodeNumber, Peer>) -> usize {
        let asked = members.iter().map(|(id, peer)| async move {
            let there = self.caller.reach::<C>(*id, peer, self.epoch());
            *id == self.caller.id || there.await.is_ok()
        });
        let answered = futures_util::future::join_all(asked).await;
        answered.into_iter().filter(|there| *there).count()
    }

    /// Changes the members or the leader, here or where the leader is.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub(crate) async fn change(&self, change: Change, within: Duration) -> Result<(), SubmitError> {
        let engine = self.engine().ok_or_else(|| SubmitError::NoQuorum {
            why: "this member's log is at rest".to_owned(),
        })?;
        let asked = async {
            match engine.leader() {
                Some((id, _)) if id == self.caller.id => match engine.change(change).await {
                    Ok(()) => Ok(()),
                    Err(NotDone::Unknown(why)) => Err(SubmitError::Refused(why)),
                    Err(NotDone::Elsewhere) => Err(SubmitError::NoQuorum {
                        why: "the leader changed".to_owned(),
                    }),
                },
                Some((id, peer)) => {
                    let message = Message::Change(change);
                    let asked = self.caller.ask(id, &peer, engine.epoch(), message);
                    match asked.await {
                        Ok(Answer::Changed(done)) => done.map_err(SubmitError::Refused),
                        Ok(_) => Err(SubmitError::Refused("no answer to it".to_owned())),
                        Err(error) => Err(SubmitError::NoQuorum {
                            why: error.to_string(),
                        }),
                    }
                }
                None => Err(SubmitError::NoQuorum {
                    why: "no leader is known".to_owned(),
                }),
            }
        };
        let ended = C::timeout(within, asked).await;
        ended.unwrap_or_else(|_| {
            Err(SubmitError::NoQuorum {
                why: "no quorum answered in time".to_owned(),
            })
        })
    }
}
