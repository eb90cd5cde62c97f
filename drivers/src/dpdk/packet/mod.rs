//! Packets between two hosts of one Ethernet segment, or with a gateway between them.
//!
//! Comes in: bytes from a wire that anybody may write to. Goes out: UDP payloads with their sender,
//! questions and answers about neighbours, or the reason why a packet was dropped. Promises: no
//! length or offset is used before it is checked, and nothing is allocated.
//!
//! - [`wire`]: the headers as types
//! - [`checksum`]: the Internet checksum
//! - [`parse`]: from bytes to what they mean
//! - [`build`]: from an address to the headers in front of a payload
//! - [`neighbours`]: who has which Ethernet address

pub mod build;
pub mod checksum;
pub mod neighbours;
pub mod parse;
#[cfg(test)]
mod tests;
pub mod wire;

use std::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group and no single device.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
