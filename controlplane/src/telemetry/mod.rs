//! What can be seen of this node.
//!
//! In: the data plane's counters and session table, the flags, the ends of migrations. Out: Prometheus
//! text, JSON counters, a judgement of health. Promise: looking costs the data plane nothing, since it
//! only reads memory; a figure that nobody measured is absent, not zero.
//!
//! | module | what |
//! |---|---|
//! | [`picture`] | everything there is to see, at one moment |
//! | [`metrics`] | a picture as metric families |
//! | [`exposition`] | metric families as text, in both of Prometheus's formats |
//! | [`tally`] | what only the control plane counts: failures by reason, downtimes |
//! | [`stages`] | a worker's counters by stage of its work |
//! | [`health`] | is this node fit to move guests |
//! | [`trace`] | migrations as traces, across both hosts |

pub mod exposition;
pub mod health;
pub mod metrics;
pub mod picture;
pub mod stages;
pub mod tally;
pub mod trace;
