//! Replicated truth: a virtual log of epochs that a quorum agrees on, and the small state it gives.
//!
//! In: commands, from any member. Out: the same state on every member. Promise: what was answered
//! stays, whatever crashes, as long as a majority of the members keeps its disks.
//!
//! | module | what |
//! |---|---|
//! | [`replicator`] | what the rest of the control plane sees |
//! | [`chain`] | the virtual log: from epoch to epoch |
//! | [`ask`] | asking the leader, wherever it is |
//! | [`raft`] | the first engine |
//! | [`command`] | what may be asked, and what is answered |
//! | [`state`] | flags, decisions, sessions |
//! | [`force`] | the kill switch, as the log knows it |
//! | [`document`] | documents, changed by whoever read the newest version |
//! | [`throw`] | the kill switch without a quorum: signed throws, from node to node |
//! | [`session`] | asking again without running twice |
//! | [`log`], [`writer`], [`journal`] | an epoch's log: in memory, group commit, bytes |
//! | [`database`] | a redb file that outlives a disk that was full |
//! | [`vault`], [`machine`] | the state: on disk, in the engine |
//! | [`wire`], [`network`] | what members say, and openraft's part of it |
//! | [`tls`] | peers over mutual TLS |
//! | [`disk`] | the folder |
//! | [`status`] | what a member says about its cluster |
//! | [`conf`] | types, and the runtime |
//! | [`plant`] | bugs that tests plant |

mod ask;
pub mod chain;
pub mod command;
pub mod conf;
pub mod database;
pub mod disk;
pub mod document;
pub mod force;
mod journal;
mod log;
mod machine;
mod network;
mod plant;
mod raft;
pub mod replicator;
mod session;
#[cfg(test)]
mod sim;
pub mod state;
pub mod status;
pub mod throw;
pub mod tls;
mod vault;
pub mod wire;
mod writer;

pub use chain::{Chain, Identity, Tuning};
pub use command::Command;
pub use conf::{NodeNumber, Peer, Tokio};
pub use disk::Folder;
pub use replicator::{Replicator, SubmitError};
pub use state::State;
pub use status::Status;
