//! The words that the control plane stores and that every batch reads: the version of each component,
//! and the one that sends everything back to v1.
//!
//! One writer (the control plane that is attached), many readers. A store is the whole rollback:
//! [`Switches::force_v1`] publishes with Release, a worker's [`Switches::read`] acquires before each
//! batch, so no batch encoded after the read can be v3.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dwcp_hugepages::impl_shared_pod;
use zerocopy::FromBytes;

use crate::ids::{Version, closed_set};

closed_set! {
    /// A component that exists in both versions, with a flag of its own.
    Component {
        /// Transport.
        Amst = 0, "amst";
        /// Encoding.
        Hde = 1, "hde";
        /// Prediction.
        Pba = 2, "pba";
        /// State sync.
        Ass = 3, "ass";
        /// Consensus.
        Acp = 4, "acp";
        /// Placement.
        Itp = 5, "itp";
    }
}

/// The words themselves, in a segment that the control plane may write.
#[derive(Debug, FromBytes)]
#[repr(C)]
pub struct Switches {
    /// 0: the flags below decide; anything else: v1 everywhere.
    force_v1: AtomicU32,
    _reserved: AtomicU32,
    /// When `force_v1` was last changed, `CLOCK_MONOTONIC` nanoseconds; 0: never.
    force_v1_changed_ns: AtomicU64,
    /// 3 where this node is in the rollout of the component; anything else means v1.
    components: [AtomicU32; 6],
    /// Wire bytes a second that all sessions together may send; 0: no limit.
    link_limit_bytes_per_s: AtomicU64,
}

impl_shared_pod!(Switches {
    force_v1,
    _reserved,
    force_v1_changed_ns,
    components,
    link_limit_bytes_per_s
});

/// What one batch saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchView {
    /// The kill switch is on.
    pub forced_v1: bool,
    /// When the kill switch last changed, `CLOCK_MONOTONIC` nanoseconds; 0: never.
    pub changed_ns: u64,
    /// Version of the transport's policy: number of lanes.
    pub amst: Version,
    /// Version of the encoder.
    pub hde: Version,
}

impl Switches {
    /// Sends everything back to v1, or lets the flags decide again. One store does it.
    pub fn force_v1(&self, on: bool, now_ns: u64) {
        // Read by `read` after its Acquire load of `force_v1`.
        self.force_v1_changed_ns.store(now_ns, Ordering::Relaxed);
        // Release: pairs with the Acquire in `read`.
        self.force_v1.store(u32::from(on), Ordering::Release);
    }

    /// Is the kill switch on?
    pub fn is_forced_v1(&self) -> bool {
        self.force_v1.load(Ordering::Acquire) != 0
    }

    /// Sets the version of one component on this node.
    pub fn set_component(&self, component: Component, version: Version) {
        // Release: pairs with the Acquire in `component`.
        self.components[component.code() as usize].store(version.code(), Ordering::Release);
    }

    /// The version a component may use here, the kill switch applied.
    pub fn component(&self, component: Component) -> Version {
        if self.is_forced_v1() {
            return Version::V1;
        }
        // A word that is neither 1 nor 3 came from a broken writer: v1 is the safe reading.
        // Acquire: pairs with the Release in `set_component`.
        let word = self.components[component.code() as usize].load(Ordering::Acquire);
        Version::from_code(word).unwrap_or(Version::V1)
    }

    /// Limits what all sessions of this data plane together send, bytes a second on the wire; 0 lifts that.
    pub fn set_link_limit(&self, bytes_per_s: u64) {
        // Relaxed: the word stands alone.
        self.link_limit_bytes_per_s
            .store(bytes_per_s, Ordering::Relaxed);
    }

    /// What all sessions together may send, bytes a second on the wire; 0: no limit.
    pub fn link_limit_bytes_per_s(&self) -> u64 {
        self.link_limit_bytes_per_s.load(Ordering::Relaxed)
    }

    /// Everything a batch needs, read once.
    pub fn read(&self) -> SwitchView {
        // Acquire: pairs with the Release in `force_v1`.
        let forced_v1 = self.force_v1.load(Ordering::Acquire) != 0;
        SwitchView {
            forced_v1,
            changed_ns: self.force_v1_changed_ns.load(Ordering::Relaxed),
            amst: self.component(Component::Amst),
            hde: if forced_v1 {
                Version::V1
            } else {
                self.component(Component::Hde)
            },
        }
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            force_v1: AtomicU32::new(0),
            _reserved: AtomicU32::new(0),
            force_v1_changed_ns: AtomicU64::new(0),
            components: core::array::from_fn(|_| AtomicU32::new(Version::V1.code())),
            link_limit_bytes_per_s: AtomicU64::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_switch_wins_over_every_flag() {
        let words = Switches::default();
        words.set_component(Component::Hde, Version::V3);
        assert_eq!(words.read().hde, Version::V3);
        words.force_v1(true, 9);
        let view = words.read();
        assert_eq!(
            (view.hde, view.amst, view.changed_ns),
            (Version::V1, Version::V1, 9)
        );
        words.force_v1(false, 10);
        assert_eq!(words.read().hde, Version::V3);
    }

    #[test]
    fn a_broken_word_reads_as_v1() {
        let words = Switches::default();
        words.components[1].store(77, Ordering::Relaxed);
        assert_eq!(words.component(Component::Hde), Version::V1);
    }
}
