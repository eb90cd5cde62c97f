//! Which sessions a proven peer may bring lanes to.
//!
//! In: what a peer asks for. Out: a session that is expected, or the reason why not. Promises: a session that nobody
//! announced is opened only for a target that the operator named, and only if there is memory for it; no lane comes up
//! with larger limits than its session has memory for.

use dwcp_api::SessionId;

use super::Door;
use crate::engine::messages::{DestinationOrder, ToWorker};
use crate::engine::room::Room;
use crate::transport::handshake::{Proven, Purpose, RefuseReason};

impl Door {
    /// May a peer that has proven itself open a lane of this session?
    pub(super) fn admission(
        &mut self,
        session: SessionId,
        purpose: &Purpose,
    ) -> Result<(), RefuseReason> {
        if self.sessions.get(session).is_some() {
            return Ok(());
        }
        if self.sessions.is_gone(session) {
            return Err(RefuseReason::SessionGone);
        }
        let Purpose::Passive { target } = purpose else {
            return Err(RefuseReason::UnknownSession);
        };
        let target = self
            .targets
            .iter()
            .find(|known| known.target == target.as_str())
            .ok_or(RefuseReason::PassiveTargetUnknown)?;
        let connect = target.connect.clone();
        let room = Room::reserve(&self.budget, self.offer, false, 0).map_err(|fault| {
            tracing::warn!(%session, %fault, "a session that was not announced is refused");
            RefuseReason::TooManySessions
        })?;
        let offer = room.offer;
        self.next_worker = (self.next_worker + 1) % self.workers.len();
        let worker = self.next_worker;
        let order = DestinationOrder {
            session,
            connect,
            limits: dwcp_api::command::SessionLimits::default(),
            room: Some(room),
            tenant: dwcp_baseline::Tenant::default(),
        };
        self.workers[worker]
            .send(ToWorker::OpenDestination(Box::new(order), None))
            .map_err(|_| RefuseReason::Busy)?;
        self.expect(session, worker, offer);
        Ok(())
    }

    /// The same for a peer that was answered before it had proven itself: before its session was given less than this
    /// node offers to all. If it was, a dial anew is answered better.
    pub(super) fn admission_as_answered(&mut self, proven: &Proven) -> Result<(), RefuseReason> {
        let session = SessionId(proven.session.0);
        self.admission(session, &proven.purpose)?;
        let (said, known) = (proven.params(), self.sessions.get(session));
        let fits = known.is_some_and(|known| {
            said.page_store_bytes <= known.offer.store_bytes
                && said.window_limit_bytes <= known.offer.window_limit_bytes
        });
        fits.then_some(()).ok_or(RefuseReason::Busy)
    }
}
