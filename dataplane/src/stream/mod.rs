//! `stream`: the hypervisor's bytes, cut into tokens.
//!
//! In: the bytes of one QEMU migration connection, in one direction, in any pieces.
//! Out: [`Token`]s whose concatenation is exactly those bytes, and [`StreamFacts`]: what the
//! layers above want to know about where the migration stands.
//! Promises: lossless whatever comes in (an unknown or broken stream becomes [`Token::Raw`]);
//! a [`Token::Page`] or [`Token::Zero`] stands for its canonical bytes and nothing else; memory is
//! fixed per connection, and nothing is allocated after the block names are known.
//!
//! The format was established from the QEMU 10.0 wire format, file version 3, RAM section
//! version 4, and is checked against recorded and live streams in the tests.

mod blocks;
mod channel;
mod facts;
mod iterable;
mod multifd;
mod ram;
mod reader;
mod return_path;
mod sections;
#[doc(hidden)]
pub mod testing;
mod token;
mod token_buf;
mod tokeniser;

#[cfg(test)]
mod tests;

pub use blocks::{BlockId, BlockTable, MAX_BLOCKS};
pub use channel::ChannelKind;
pub use facts::{LostSync, ReturnFacts, StreamFacts};
pub use token::{
    PAGE_BYTES, PAGE_RECORD_BYTES, PAGE_RECORD_FLAGS, PageAddr, Token, ZERO_RECORD_BYTES,
    ZERO_RECORD_FLAGS,
};
pub use token_buf::TokenBuf;
pub use tokeniser::{MAX_CARRY_BYTES, Tokeniser};
