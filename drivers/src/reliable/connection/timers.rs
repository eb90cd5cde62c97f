//! What happens to a lane when nothing comes.
//!
//! Comes in: the time. Goes out: when to look again, and what is then to be sent. Promises: a lane that
//! waits for something always has a time to look again; a peer that is silent for too long ends it.

use super::{Connection, Fin};
use crate::lane::LaneClosed;
use crate::reliable::arrivals::ACK_DELAY_MAX_NS;

/// Longest pause between two probes.
const PROBE_NS_MAX: u64 = 500_000_000;
/// Probes that one timeout sends.
const PROBES: u8 = 2;
/// Questions that an idle lane asks before a silent peer is gone.
const ASKS: u64 = 4;

impl Connection {
    /// When [`Connection::tick`] is to be called.
    pub(in crate::reliable) fn due_ns(&self) -> u64 {
        let mut due_ns = self.heard_ns + self.silence_max_ns;
        let mut sooner = |at_ns: Option<u64>| due_ns = due_ns.min(at_ns.unwrap_or(u64::MAX));
        sooner(self.setup.due_ns());
        if self.keys.is_some() {
            if self.arrivals.has_news() {
                sooner(self.arrivals.due_ns());
            }
            sooner(self.log.loss_due_ns(&self.rtt));
            sooner(self.probe_due_ns());
            sooner(Some(self.ask_due_ns()));
            if self.wants_to_send_data() {
                sooner(self.pacer.due_ns());
            }
        }
        due_ns
    }

    /// Does what the time asks for. What is then to be sent comes out of [`Connection::plan`].
    pub(in crate::reliable) fn tick(&mut self, now_ns: u64) {
        if self.over.is_some() {
            return;
        }
        if now_ns >= self.heard_ns + self.silence_max_ns {
            return self.abort(LaneClosed::Failed {
                errno: libc::ETIMEDOUT,
            });
        }
        if self.keys.is_none() {
            return;
        }
        let lost = self.log.loss_due_ns(&self.rtt);
        if lost.is_some_and(|due_ns| due_ns <= now_ns) {
            self.find_lost(now_ns, false);
        }
        if self.probe_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.probe(now_ns);
        }
        if self.ask_due_ns() <= now_ns {
            self.ping = true;
        }
    }

    /// When an acknowledgement is overdue, or news of a window that is closed.
    fn probe_due_ns(&self) -> Option<u64> {
        if self.log.loss_due_ns(&self.rtt).is_some() {
            return None; // that comes first, and says more
        }
        let waits = self.log.in_flight() > 0 || self.held_by_peer;
        let pto_ns = self.rtt.pto_ns(ACK_DELAY_MAX_NS);
        let wait_ns = pto_ns.saturating_mul(1 << self.timeouts.min(16));
        waits.then(|| self.asked_ns + wait_ns.min(PROBE_NS_MAX.max(pto_ns)))
    }

    /// When an idle lane asks whether the peer is there.
    fn ask_due_ns(&self) -> u64 {
        self.heard_ns.max(self.asked_ns) + self.silence_max_ns / ASKS
    }

    /// Lets the oldest data go again, without holding it for lost, or else a question.
    fn probe(&mut self, now_ns: u64) {
        self.timeouts += 1;
        self.asked_ns = now_ns;
        self.probes = PROBES;
        if let Some(oldest) = self.log.oldest() {
            self.outgoing
                .lose(oldest.offset..oldest.offset + u64::from(oldest.len));
            if oldest.fin && self.fin == Fin::Sent {
                self.fin = Fin::Due;
            }
        }
    }

    /// Whether there is data that was not sent, or must be sent again.
    pub(super) fn wants_to_send_data(&self) -> bool {
        self.outgoing.unsent_bytes() > 0 || self.outgoing.has_lost()
    }
}
