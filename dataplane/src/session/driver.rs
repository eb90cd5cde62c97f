//! What a session's lanes run over when the driver that was configured does not carry.
//!
//! In: lanes that failed, silence. Out: TCP from then on, and a word about it. Promises: the session is
//! never moved back, so it does not swing between two drivers; a cut of the whole network is not taken for
//! the driver's fault.

use super::Session;
use crate::transport::handshake::Way;

/// Two silences that are no further apart are one.
const REDIALLED_LATELY_NS: u64 = 5_000_000_000;

impl Session {
    /// A driver does not carry: the lanes of this session run over TCP from now on, where that is allowed.
    pub(super) fn fall_back(&mut self, way: Way, why: &str) {
        if !self.bundle.fallback || self.bundle.way == Way::Tcp || self.is_over() {
            return;
        }
        let (session, driver) = (self.id, way.driver());
        tracing::warn!(%session, driver, why, "the driver does not carry: the session goes on over TCP");
        self.bundle.way = Way::Tcp;
        self.picture.driver_fallbacks += 1;
    }

    /// Nothing is heard. If lanes were opened since that was so before, the handshake's connections carry
    /// and the driver does not.
    pub(super) fn doubt_driver(&mut self, now_ns: u64) {
        let again = now_ns.saturating_sub(self.bundle.redialled_ns) < REDIALLED_LATELY_NS;
        self.bundle.redialled_ns = now_ns;
        let opened = self.bundle.driver_in_use();
        if let Some(way) = opened.filter(|_| again) {
            self.fall_back(way, "nothing is heard on lanes that were opened anew");
        }
    }
}
