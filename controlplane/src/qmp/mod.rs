//! QMP, the hypervisor's monitor. In: the path of its UNIX socket. Out: a dozen commands, each with a
//! deadline, and the events that the hypervisor sends.
//!
//! A monitor can do anything that the hypervisor's user can, so three things are promised: only
//! sockets below an allowed directory are opened ([`path`]), only commands of a closed set can be
//! written ([`command`]), and a line from the hypervisor is bounded before it is kept ([`line`]).
//! What is read is read tolerantly ([`status`]): an unknown field or a new word is no error.

pub mod client;
pub mod command;
mod error;
pub mod line;
pub mod path;
pub mod status;

pub use client::{Qmp, QmpEvent};
pub use command::QmpCommand;
pub use error::QmpError;
pub use path::MonitorPath;
pub use status::{MigrationInfo, MigrationPhase, RunState, phase_of};
