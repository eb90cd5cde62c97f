//! What a connection carries, told by its first four bytes.
//!
//! In: the first bytes that QEMU wrote; out: the kind of parser to use.
//! Promises: anything not recognised is opaque, which is always correct. The post-copy pre-empt
//! channel has no magic: it is told by the record it starts with, or by whoever knows that a silent
//! connection can be nothing else.

use super::sections::COMMAND;

pub(super) const FILE_MAGIC: u32 = 0x5145_564d;
pub(super) const MULTIFD_MAGIC: u32 = 0x1122_3344;
/// The upper half of a RAM record's offset: blocks are smaller than 2^47 bytes, and no magic is so small.
const RECORD_UPPER_MAX: u32 = 0x7fff;

/// The kind of bytes on one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Source to destination, the channel with sections and commands (`QEVM`).
    Main,
    /// Source to destination, a multifd channel (`0x11223344`).
    Multifd,
    /// Source to destination, the main channel of a post-copy migration that is being recovered: it
    /// goes on with a command, without a prologue.
    Resumed,
    /// Source to destination, the pre-empt channel of post-copy: pages that the guest waits for.
    Urgent,
    /// Destination to source on the main connection.
    ReturnPath,
    /// Anything else: carried as raw bytes.
    Opaque,
}

impl ChannelKind {
    /// Tells the kind of a source-to-destination connection from its first four bytes.
    #[must_use]
    pub fn sniff(first: &[u8; 4]) -> Self {
        match u32::from_be_bytes(*first) {
            FILE_MAGIC => Self::Main,
            MULTIFD_MAGIC => Self::Multifd,
            // A command is a type byte and a be16 below 256.
            _ if first[..2] == [COMMAND, 0] => Self::Resumed,
            0..=RECORD_UPPER_MAX => Self::Urgent,
            _ => Self::Opaque,
        }
    }

    /// A channel with sections and commands, from its start or from the middle.
    #[must_use]
    pub const fn is_main(self) -> bool {
        matches!(self, Self::Main | Self::Resumed)
    }
}
