//! The data plane of this host, as the control plane sees it. In: the path of its attach socket. Out:
//! [`Host`], a handle to its counters, its switch words, its sessions, its commands and events.
//!
//! It promises to attach again for ever, to say whether a data plane that is gone has died or only
//! closed the connection, and to keep every hypervisor connection that was put into its [`escrow`]
//! until somebody decides about it. Nothing read from shared memory is used before it was checked.

mod attach;
mod bell;
mod error;
mod escrow;
mod handle;
mod link;
mod run;

pub use error::HostError;
pub use handle::{Host, HostStatus};
pub use link::DoorFigures;
