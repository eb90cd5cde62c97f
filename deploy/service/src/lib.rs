//! What both programs need to be good services of a host.
//!
//! | module | what |
//! |---|---|
//! | [`layers`] | settings from a file, the environment and flags, and where each came from |
//! | [`show`] | the settings in force, as text or JSON |
//! | [`notify`] | tells the service manager: ready, alive, stopping |
//! | [`slice`] | short turns on a shared core |

pub mod layers;
pub mod notify;
pub mod show;
pub mod slice;
