//! The control plane of one host: it answers the operator and its peers, runs migrations by QMP and
//! by commands to the data plane, and sets the words that every batch reads. No byte of a migration
//! passes through it, and none stops when it does.
//!
//! | module | what |
//! |---|---|
//! | [`store`] | what must outlive the process |

pub mod store;
