//! What a connection carries, told by its first four bytes.
//!
//! In: the first bytes that QEMU wrote; out: the kind of parser to use.
//! Promises: anything not recognised is opaque, which is always correct. The post-copy pre-empt
//! channel has no magic and is therefore opaque.

pub(super) const FILE_MAGIC: u32 = 0x5145_564d;
pub(super) const MULTIFD_MAGIC: u32 = 0x1122_3344;

/// The kind of bytes on one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Source to destination, the channel with sections and commands (`QEVM`).
    Main,
    /// Source to destination, a multifd channel (`0x11223344`).
    Multifd,
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
            _ => Self::Opaque,
        }
    }
}
