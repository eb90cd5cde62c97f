//! Peers over mutual TLS 1.3.
//!
//! In: certificate files as `dwcpctl pki` makes them, envelopes. Out: answers. Promises: nobody is heard
//! or spoken to whose certificate does not name the node that is meant; every length is checked before
//! memory is taken for it; connections, time and memory are bounded.
//!
//! | module | what |
//! |---|---|
//! | [`credentials`] | this member's certificate and whom it trusts |
//! | [`trust`] | what a peer's certificate must say |
//! | [`frame`] | messages on a connection |
//! | [`dial`] | asking |
//! | [`listen`] | answering |
//! | [`sign`] | words of a node that others pass on |

pub mod credentials;
pub mod dial;
mod frame;
pub mod listen;
pub mod sign;
mod trust;

pub use credentials::{CredentialError, Credentials, TlsFiles};
pub use dial::Dialer;
pub use listen::listen;
pub use sign::{Signature, SignatureError};

#[cfg(test)]
mod tests;
