//! What tests that cross a process share: two data planes in one process ([`pair`]) and a control plane
//! that looks into them ([`plane`]); two nodes on a link, a guest on one of them ([`scene`]); streams to carry,
//! made ([`streams`]) and recorded ([`recorded`]); certificates ([`pki`]); programs that are built when a test needs them ([`binary`]).
//!
//! In: how the scene is to be set. Out: a [`Scene`] to act on. Promises: everything of it ends with
//! the value, and whatever went wrong says so with the logs of both planes.

pub mod binary;
pub mod pair;
pub mod pki;
pub mod plane;
pub mod recorded;
pub mod scene;
pub mod streams;

pub use scene::{Scene, SceneConfig};
