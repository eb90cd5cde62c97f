//! Rollouts: a version comes to more and more nodes, judged by what it does, and goes back by itself.
//!
//! In: plans, the nodes' accounts, operators' orders. Out: the flag's share, changed step by step, and every decision
//! with its grounds. Promises: a step is one command of the log that names the version of the rollout it was decided
//! on, so a leader that was replaced in the middle of a step changes nothing; share, stage and decision change
//! together or not at all; missing data holds; what breaks a criterion rolls back, paused or not.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | phases and criteria as data |
//! | [`criteria`] | the table, and how samples are judged by it |
//! | [`stats`] | estimates with their uncertainty |
//! | [`sample`] | what a node tells about the work it did |
//! | [`decide`] | what becomes of a rollout, and why |
//! | [`state`] | one rollout, and its next state |
//! | [`control`] | reads, decides, writes; orders of operators |
//! | [`fleet`] | the nodes, asked over the cluster |
//! | [`recorder`] | the samples of this node |

pub mod control;
pub mod criteria;
pub mod decide;
pub mod fleet;
pub mod plan;
pub mod recorder;
pub mod sample;
pub mod state;
pub mod stats;
#[cfg(test)]
mod tests;

pub use control::{RolloutError, RolloutView, Rollouts};
pub use fleet::Fleet;
pub use plan::Plan;
pub use recorder::Recorder;
pub use state::{Order, Rollout};
