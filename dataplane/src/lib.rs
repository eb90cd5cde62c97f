//! The data plane: from a hypervisor's socket to another's, byte for byte.
//!
//! | module | what | in → out |
//! |---|---|---|
//! | [`intake`] | reads the hypervisor | socket → raw bytes |
//! | [`stream`] | understands what it reads, as far as it can | raw bytes → tokens |
//! | [`codec`] | makes it short, vouches for it | tokens ↔ payloads |
//! | [`transport`] | puts it in sequence over many lanes | payloads ↔ frames |
//! | [`release`] | writes the hypervisor | raw bytes → socket |
//! | [`session`] | one migration: all of the above together | |
//! | [`engine`] | threads, lanes, the border to the control plane | |
//! | [`tls`] | who the peer is | |
//! | [`config`] | what the operator says | |

pub mod codec;
pub mod config;
pub mod engine;
pub mod intake;
pub mod release;
pub mod session;
pub mod stream;
pub mod tls;
pub mod transport;
