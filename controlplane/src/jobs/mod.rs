//! Migrations. In: requests of operators and of peers. Out: migrations that end, each with exactly one
//! runnable copy of the guest, and their views while they run.
//!
//! A migration is driven by one task at its source and watched by one at its destination. Every change
//! of state is written down, so a restarted control plane goes on where the last one stopped; the data
//! planes do not notice. Whatever ends leaves nothing behind: no socket, no session, no descriptor.
//!
//! | module | what |
//! |---|---|
//! | [`request`], [`view`], [`error`] | what callers say and see |
//! | [`verdict`] | where the guest runs: the decision, as a pure function |
//! | [`settings`], [`progress`], [`record`] | capabilities and parameters; figures; what is written down |
//! | [`peer`], [`sockets`] | the other control plane; paths of the sockets |
//! | `source`, `prepare`, `watch`, `settle`, `recover` | the source's task: its life, beginning, middle, open ends, post-copy |
//! | `incoming`, `closing`, `part` | the destination's task; how it fails closed; a guest with part of its memory |
//! | [`postcopy`] | when a migration turns into post-copy |

mod api;
mod closing;
pub mod error;
mod incoming;
mod part;
pub mod peer;
pub mod postcopy;
mod prepare;
pub mod progress;
pub mod record;
mod recover;
pub mod request;
pub mod settings;
mod settle;
pub mod sockets;
mod source;
mod table;
pub mod verdict;
pub mod view;
mod watch;

pub use api::{Jobs, JobsConfig};
pub use error::JobError;
pub use postcopy::Postcopy;
pub use request::{IncomingRequest, MigrationRequest, PeerToken, RecoverRequest};
pub use view::{IncomingView, MigrationView, Verdict};
