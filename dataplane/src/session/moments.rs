//! When a rollback was thrown, and when the batches around it left.
//!
//! In: the switch words, each batch that a lane has taken. Out: the moments in the session's picture. Promise: the first
//! batch in v1 is the first that a lane took after the throw, whether it was cut before it or after.

use dwcp_api::monotonic_ns;
use dwcp_api::switches::SwitchView;
use dwcp_drivers::lane::LaneGroup;

use super::link::thrown_ns;
use super::{Hands, Session};
use crate::transport::Version;

impl Session {
    /// From a throw of the kill switch on its first v1 batch is looked for, and does not wait for what is on the way:
    /// it may be one that was queued in v3 and is encoded once more.
    pub(super) fn note_switch(&mut self, view: SwitchView) {
        let thrown_ns = thrown_ns(view);
        if thrown_ns == self.picture.switch_thrown_ns {
            return;
        }
        self.picture.switch_thrown_ns = thrown_ns;
        self.picture.switches_seen += 1;
        self.picture.first_v1_batch_ns = 0;
        if let Some(link) = self.link.as_mut()
            && view.forced_v1
        {
            link.outbound.hurry();
        }
    }

    pub(super) fn note_sent<G: LaneGroup>(&mut self, version: Version, hands: &Hands<'_, G>) {
        let now_ns = monotonic_ns();
        let picture = &mut self.picture;
        picture.batch_version = version as u64;
        match version {
            Version::V1 => {
                picture.batches_v1 += 1;
                hands.counters.batches_v1_total.add(1);
                if picture.switch_thrown_ns > 0 && picture.first_v1_batch_ns == 0 {
                    picture.first_v1_batch_ns = now_ns;
                    self.published_ns = 0;
                }
            }
            Version::V3 => {
                picture.batches_v3 += 1;
                hands.counters.batches_v3_total.add(1);
                picture.last_v3_batch_ns = now_ns;
            }
        }
    }
}
