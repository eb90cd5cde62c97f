//! What the two planes say to each other, and nothing else.
//!
//! In: nothing. Out: the types both planes compile against, so that a change of layout is seen by
//! [`LAYOUT_HASH`] at attach and not by a wrong number later. Every type here is plain bytes: fixed
//! size, no pointers, any bit pattern readable; what a peer wrote becomes a typed value only through
//! a `decode` that checks it.
//!
//! | module | what |
//! |---|---|
//! | [`ids`] | session ids, roles, states, modes, failure codes |
//! | [`text`] | bounded text fields |
//! | [`switches`] | the words that the control plane stores and every batch reads |
//! | [`command`] | control plane → data plane |
//! | [`event`] | data plane → control plane |
//! | [`session`] | the coherent picture of one session |
//! | [`worker`] | counters of one worker |
//! | [`door`] | counters of the door |
//! | [`stage`] | the parts of a worker's work |
//! | [`attach`] | the socket messages that hand the segments and the escrowed descriptors over |
//! | [`layout`] | offsets inside the segments, and their hash |

pub mod attach;
pub mod command;
pub mod door;
pub mod event;
pub mod ids;
pub mod layout;
pub mod session;
pub mod stage;
pub mod switches;
pub mod text;
pub mod worker;

pub use ids::{Failure, Mode, PathLoad, Role, SessionId, SessionState, Version};
pub use layout::{ABI_VERSION, LAYOUT_HASH};
pub use stage::Stage;

/// Nanoseconds of `CLOCK_MONOTONIC`: the one clock that both planes of a host share.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
