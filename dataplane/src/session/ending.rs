//! How a session ends.
//!
//! In: what the streams have shown, faults, verdicts. Out: a final state, connections closed, the peer
//! told. Promises: the hypervisor's connections are closed in every case but one, and that one is the
//! rule that keeps the guest single: a source that lost its peer after the end of RAM was on its way
//! cannot know whether the destination runs, so its hypervisor waits until a verdict comes.

use dwcp_api::command::Verdict;
use dwcp_api::{Failure, SessionState};
use dwcp_drivers::lane::LaneGroup;

use super::{Fault, Hands, Holding, Session, forward};
use crate::engine::messages::{ToControl, ToDoor};
use crate::transport::ChannelId;
use crate::transport::wire::batch::{AbortReason, MAX_ABORT_TEXT_BYTES, Marker};
use crate::transport::wire::control::ByeReason;

/// After the end the lanes stay this long, so that the last acknowledgements arrive.
const LINGER_NS: u64 = 2_000_000_000;

impl Session {
    /// Looks whether the state has changed: begun, in switchover, complete, too late.
    pub(super) fn check_end<G: LaneGroup>(
        &mut self,
        hands: &mut Hands<'_, G>,
    ) -> Result<bool, Fault> {
        match self.state {
            SessionState::Waiting => {
                if !self.channels.is_empty() {
                    self.set_state(SessionState::Active, Failure::None, "", hands);
                    return Ok(true);
                }
                if hands.now_ns > self.setup_deadline_ns {
                    return Err(self.late_fault());
                }
            }
            SessionState::Active if self.destination_may_run => {
                self.set_state(SessionState::Switchover, Failure::None, "", hands);
                return Ok(true);
            }
            _ => {}
        }
        if self.is_complete() {
            self.complete(hands);
            return Ok(true);
        }
        Ok(false)
    }

    fn late_fault(&self) -> Fault {
        if self.link.is_none() {
            Fault::new(
                Failure::PeerLost,
                "no lane to the peer could be opened; check its address, its firewall and that its \
                 data plane runs",
            )
        } else {
            Fault::new(
                Failure::NoHypervisor,
                "the hypervisor did not connect in time; start its migration to this socket",
            )
        }
    }

    /// Both directions of every connection are over and the peer has it all.
    fn is_complete(&self) -> bool {
        let Some(link) = &self.link else { return false };
        !self.channels.is_empty()
            && self.pending_connects.is_empty()
            && self.channels.iter().all(super::Channel::is_closed)
            && link.outbound.in_flight() == 0
            && link.outbound.held_bytes() == 0
    }

    fn complete<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        match self.stream_fault() {
            None => {
                hands.counters.sessions_completed_total.add(1);
                self.set_state(SessionState::Completed, Failure::None, "", hands);
            }
            Some(fault) => {
                hands.counters.sessions_failed_total.add(1);
                self.set_state(SessionState::Failed, fault.failure, &fault.detail, hands);
            }
        }
        self.close(ByeReason::Done, hands);
    }

    /// All bytes were carried; did they make a migration? Only the source's stream can tell.
    fn stream_fault(&self) -> Option<Fault> {
        let main = self
            .channels
            .iter()
            .find(|channel| channel.kind.is_main())?;
        let short = || {
            Fault::new(
                Failure::Hypervisor,
                "the hypervisor ended the stream before the end of RAM: it cancelled or failed; ask \
                 it with query-migrate",
            )
        };
        if self.is_source() {
            // The return path's last word was carried to this hypervisor.
            return (!main.intake.facts().destination_may_run()).then(short);
        }
        match main.intake.facts().return_path.shut {
            Some(0) | None => None,
            Some(code) => Some(Fault::new(
                Failure::Hypervisor,
                format!("the receiving hypervisor refused the guest (code {code}); see its log"),
            )),
        }
    }

    /// Something ended the session.
    pub fn fail<G: LaneGroup>(&mut self, fault: &Fault, hands: &mut Hands<'_, G>) {
        if self.is_over() || self.state == SessionState::Undecided {
            return;
        }
        if matches!(fault.failure, Failure::Corrupted | Failure::Protocol) {
            hands.counters.corrupted_total.add(1);
        }
        if self.is_source() && self.destination_may_run && !self.postcopy_settled {
            let detail = format!(
                "{}; the end of RAM had been sent, so the source waits until it is known which side \
                 runs the guest",
                fault.detail
            );
            self.tell_peer(fault, hands);
            self.part(ByeReason::Aborted, hands);
            self.set_state(SessionState::Undecided, fault.failure, &detail, hands);
            return;
        }
        self.tell_peer(fault, hands);
        let detail = if self.postcopy_settled {
            // Both hypervisors see their connections end and pause; neither side can run two guests.
            format!(
                "{}; the guest is at the destination with part of its memory and waits for pages: recover \
                 the migration",
                fault.detail
            )
        } else {
            fault.detail.clone()
        };
        self.finish_failed(fault.failure, &detail, hands);
    }

    fn finish_failed<G: LaneGroup>(
        &mut self,
        failure: Failure,
        detail: &str,
        hands: &mut Hands<'_, G>,
    ) {
        hands.counters.sessions_failed_total.add(1);
        for channel in &mut self.channels {
            channel.sever();
        }
        self.set_state(SessionState::Failed, failure, detail, hands);
        self.close(ByeReason::Aborted, hands);
    }

    /// Says why, in sequence, if there is room for it.
    fn tell_peer<G: LaneGroup>(&mut self, fault: &Fault, hands: &mut Hands<'_, G>) {
        if let Some(link) = self.link.as_mut()
            && link.outbound.can_push()
            && fault.failure != Failure::PeerAborted
        {
            let reason = match fault.failure {
                Failure::Corrupted | Failure::Protocol => AbortReason::Integrity,
                Failure::Hypervisor | Failure::NoHypervisor => AbortReason::Hypervisor,
                Failure::Cancelled => AbortReason::Cancelled,
                Failure::Limit => AbortReason::Limit,
                _ => AbortReason::Internal,
            };
            let mut end = fault.detail.len().min(MAX_ABORT_TEXT_BYTES);
            while !fault.detail.is_char_boundary(end) {
                end -= 1;
            }
            let text = &fault.detail[..end];
            let marker = Marker::Abort { reason, text };
            // An ABORT that cannot be sent is followed by a BYE that says as much.
            let _ = forward::push_marker(link, ChannelId(0), &marker);
        }
        let _ = self.pump_lanes(hands);
    }

    /// Gives everything back but the lanes, which drain.
    fn close<G: LaneGroup>(&mut self, reason: ByeReason, hands: &mut Hands<'_, G>) {
        if self.listener.take().is_some() {
            // Made by this session, so nobody else's.
            let _ = std::fs::remove_file(&self.socket_path);
        }
        for channel in &self.channels {
            hands.poller.remove(&channel.fd);
        }
        for fd in self.unsorted.drain(..) {
            hands.poller.remove(&fd);
        }
        if reason == ByeReason::Done {
            // A connection that both sides have ended: closing it is nothing new to anybody.
            for channel in &mut self.channels {
                channel.sever();
            }
        }
        self.channels.clear();
        let _ = hands.control.send(ToControl::Drop(self.id));
        let _ = hands.door.send(ToDoor::Forget(self.id));
        if self.peer_bye.is_none() {
            self.send_last_ack(hands);
        }
        self.part(reason, hands);
        self.linger_until_ns = hands.now_ns + LINGER_NS;
    }

    fn send_last_ack<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        let now = crate::transport::Nanos(hands.now_ns);
        let ack = self.link.as_mut().and_then(|link| {
            link.inbound.want_ack();
            link.inbound.ack_due(now)
        });
        if let Some(ack) = ack {
            self.send_control_frame(
                &crate::transport::wire::control::ControlFrame::Ack(ack),
                hands,
            );
        }
    }

    /// A session that is over waits for its lanes to drain, then lets its memory go.
    pub(super) fn linger<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> bool {
        if self.link.is_some()
            && (hands.now_ns >= self.linger_until_ns || self.bundle.count_up() == 0)
        {
            self.drop_lanes(hands);
            self.let_go();
            return true;
        }
        if self.link.is_none() && self.memory.as_ref().is_some_and(Holding::is_free) {
            self.memory = None;
        }
        false
    }

    /// Ends the session because somebody asked.
    ///
    /// # Errors
    /// A [`Fault`] that says why it cannot be done.
    pub fn cancel<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) -> Result<(), Fault> {
        if self.is_over() {
            return Ok(());
        }
        if self.is_source() && self.destination_may_run && !self.postcopy_settled {
            return Err(Fault::new(
                Failure::BadCommand,
                "the switchover has begun: the destination may already run the guest; wait for the \
                 outcome or resolve it",
            ));
        }
        self.fail(
            &Fault::new(Failure::Cancelled, "cancelled by request"),
            hands,
        );
        Ok(())
    }

    /// Ends the session because the data plane is asked to stop. A source whose destination may run the
    /// guest goes on to its end: that is as a rule a moment away, and giving up there would leave nobody
    /// to say which side runs.
    pub fn stop<G: LaneGroup>(&mut self, hands: &mut Hands<'_, G>) {
        if self.is_source() && self.destination_may_run {
            if !self.is_over() {
                let (session, state) = (self.id, self.state);
                tracing::warn!(%session, ?state, "the data plane stops once this session is decided");
            }
            return;
        }
        let fault = Fault::new(Failure::Cancelled, "the data plane is being stopped");
        self.fail(&fault, hands);
    }

    /// Ends the undecided moment.
    ///
    /// # Errors
    /// A [`Fault`] if nothing is undecided.
    pub fn resolve<G: LaneGroup>(
        &mut self,
        verdict: Verdict,
        hands: &mut Hands<'_, G>,
    ) -> Result<(), Fault> {
        if self.is_over() {
            return Ok(());
        }
        if self.state != SessionState::Undecided {
            return Err(Fault::new(
                Failure::BadCommand,
                "this session is not undecided",
            ));
        }
        match verdict {
            Verdict::GuestStays => {
                let failure = self.picture_failure();
                self.finish_failed(
                    failure,
                    "the destination does not run: the guest goes on here",
                    hands,
                );
            }
            Verdict::GuestMoved => {
                hands.counters.sessions_completed_total.add(1);
                for channel in &mut self.channels {
                    channel.sever();
                }
                let detail = "the destination runs: the source was ended";
                self.set_state(SessionState::Completed, Failure::None, detail, hands);
                self.close(ByeReason::Aborted, hands);
            }
        }
        Ok(())
    }

    fn picture_failure(&self) -> Failure {
        self.picture.failure()
    }
}
