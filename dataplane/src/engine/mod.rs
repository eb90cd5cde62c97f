//! The threads of a data plane and what they share.
//!
//! In: a configuration. Out: sessions carried. Workers do all the work, one per core; the door lets
//! lanes in; the control thread speaks with the control plane. They meet only in mailboxes.
//!
//! | module | what |
//! |---|---|
//! | [`start`] | makes the threads and ends them |
//! | [`worker`] | one core's loop |
//! | `orders` | what a worker is asked to do |
//! | [`path_choice`] | what decides over a TCP lane's rate |
//! | [`drivers`] | what lanes run over |
//! | [`door`] | dials, accepts and proves lanes |
//! | [`control`] | the border to the control plane |
//! | [`board`] | the shared segments |
//! | [`messages`] | what the threads tell each other |
//! | [`mailbox`] | how |
//! | [`encoders`] | threads that compress batches beside the workers |
//! | [`keeper`] | threads that read and write baselines |
//! | [`budget`] | what all sessions may take together |
//! | [`room`] | what one may take of that |
//! | [`routes`] | whose event it is |
//! | [`poller`] | readiness of descriptors |
//! | [`idle`] | spinning, yielding, parking |
//! | [`seats`] | what sessions that share a link tell each other |
//! | [`stages`] | where a worker's time goes |
//! | [`sockets`] | making sockets |

pub mod board;
pub mod budget;
pub mod control;
pub mod door;
pub mod drivers;
pub mod encoders;
pub mod idle;
pub mod keeper;
pub mod mailbox;
pub mod messages;
mod orders;
pub mod path_choice;
pub mod poller;
pub mod room;
pub mod routes;
pub mod seats;
pub mod sockets;
pub mod stages;
pub mod start;
pub mod worker;
