//! The kill switch without a quorum: signed throws that go from node to node.
//!
//! In: throws of this node, messages of peers, releases that the log agreed on. Out: which throws are in force, what
//! to say to whom and when. Promises: a throw reaches every node that can be reached, by whatever way; only its
//! node's signature makes it count, only in its cluster, and never again after the log released it; nothing here
//! takes a throw back but the log.
//!
//! | module | what |
//! |---|---|
//! | [`statement`] | a throw and its signature |
//! | [`spread`] | who knows what, whom to tell next; no clock and no socket of its own |
//! | `sim` | fifty nodes in virtual time, and bugs that must be found |

#[cfg(test)]
mod sim;
pub mod spread;
pub mod statement;

pub use spread::{Ask, Heard, Known, Spread, Told};
pub use statement::{Notary, Refusal, Statement, Throw};
