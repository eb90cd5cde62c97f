//! placeholder
pub mod codec;
pub mod stream;
pub mod transport;
