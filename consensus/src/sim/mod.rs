//! The cluster in virtual time: seeded network, disks, crashes and clocks; the engine is the real one.
//!
//! In: a seed. Out: a report, or what was violated. Promise: the same seed gives the same run, event
//! for event. A seed is replayed with
//! `DWCP_SEED=17 cargo test -p dwcp-consensus --lib sim::tests::replay -- --nocapture`; `DWCP_TRACE=1` tells all.
//!
//! | module | what |
//! |---|---|
//! | [`chance`] | the one source of chance |
//! | [`disk`] | disks that forget what was not synced, tear, and fill up |
//! | [`net`] | a network that loses, delays, doubles, reorders and cuts |
//! | [`check`] | what must hold at every step |
//! | [`world`] | members, clients and chaos put together |

pub(crate) mod chance;
mod check;
mod disk;
mod net;
mod tests;
mod world;

crate::conf::on_runtime!(
    /// The log in virtual time.
    Sim,
    openraft_rt_sim::SimRuntime
);
