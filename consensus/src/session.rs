//! Sessions: what lets a client ask again without running twice.
//!
//! In: commands. Out: each with a session and a number that its retries keep. Promise: a session has
//! one request open at a time; one whose last request has no known outcome is not used again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::chain::Inner;
use crate::command::{Command, Outcome, Reply, Request, SessionId};
use crate::conf::Conf;
use crate::disk::Disk;
use crate::plant::{Bug, planted};
use crate::replicator::SubmitError;

/// Sessions that wait for their next request.
const IDLE_MAX: usize = 128;

#[derive(Clone, Copy)]
struct Free {
    session: SessionId,
    next: u64,
}

/// Sessions of this member that are free.
#[derive(Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Free>>,
}

impl Pool {
    fn take(&self) -> Option<Free> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop()
    }

    fn give(&self, session: Free) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < IDLE_MAX {
            free.push(session);
        }
    }
}

impl<C: Conf, D: Disk> Inner<C, D> {
    /// Runs a command once.
    ///
    /// # Errors
    /// [`SubmitError`]; only after [`SubmitError::NoQuorum`] and [`SubmitError::Lost`] it is not known whether it ran.
    pub(crate) async fn submit(
        &self,
        command: Command,
        within: Duration,
    ) -> Result<Reply, SubmitError> {
        command.check()?;
        for _ in 0..2 {
            let session = match self.sessions.take() {
                Some(free) => free,
                None => self.begin_session(within).await?,
            };
            let mut request = Request {
                session: session.session,
                number: session.next,
                command: command.clone(),
            };
            if planted(Bug::RetryGetsNewNumber) {
                let short = within / 12;
                if self.order(request.clone(), short).await.is_err() {
                    request.number += 1;
                }
            }
            let next = request.number + 1;
            match self.order(request, within).await? {
                Outcome::Ran(reply) => {
                    self.sessions.give(Free { next, ..session });
                    return match reply {
                        Reply::Refused(why) => Err(SubmitError::Refused(why)),
                        done => Ok(done),
                    };
                }
                // It was idle for so long that others took its place: it never ran under this number,
                // unless it did and was forgotten while we asked again, which takes as many sessions.
                Outcome::NoSession if session.next > 1 => {}
                _ => return Err(SubmitError::Lost),
            }
        }
        Err(SubmitError::Lost)
    }

    async fn begin_session(&self, within: Duration) -> Result<Free, SubmitError> {
        let request = Request {
            session: 0,
            number: 0,
            command: Command::OpenSession,
        };
        match self.order(request, within).await? {
            Outcome::Ran(Reply::Session(session)) => Ok(Free { session, next: 1 }),
            _ => Err(SubmitError::Lost),
        }
    }
}
