//! placeholder
pub mod stream;
