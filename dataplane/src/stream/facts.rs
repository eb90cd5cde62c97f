//! What the tokeniser noticed on its way.
//!
//! In: the parsers' findings; out: plain numbers and marks for the session, the switch and the
//! counters.
//! Promises: a fact is set only after every byte that establishes it was consumed; once set, a mark
//! stays set. Page contents are guest bytes and never influence a mark.

use super::ChannelKind;

/// Findings about one direction of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Bytes consumed so far.
    pub bytes: u64,
    /// Bytes of these that went out as raw tokens.
    pub raw_bytes: u64,
    /// Page records seen (main), or normal pages announced (multifd).
    pub pages: u64,
    /// Zero-page records seen (main), or zero pages announced (multifd).
    pub zero_pages: u64,
    /// XBZRLE deltas seen; they travel as raw bytes.
    pub xbzrle_pages: u64,
    /// RAM PART sections passed completely. One pre-copy pass over memory is one or more of them.
    pub rounds: u64,
    /// Barriers: MULTIFD_FLUSH records (main) or SYNC packets (multifd).
    pub multifd_flushes: u64,
    /// Between the start of the RAM START section and the end of the RAM END section.
    pub in_ram: bool,
    /// RAM END has begun: the guest is stopped at the source, and what of its memory is left follows.
    pub ram_end_begun: bool,
    /// RAM END was passed completely: memory is all sent, only device state follows. From now on
    /// the destination may take over without a further word from the source.
    pub ram_end_seen: bool,
    /// Stream offset just after RAM END.
    pub ram_end_bytes: Option<u64>,
    /// The SWITCHOVER_START command was seen: the guest is stopped at the source.
    pub switchover_start_seen: bool,
    /// POSTCOPY_ADVISE was seen: the migration may turn into post-copy.
    pub postcopy_advised: bool,
    /// Post-copy has begun (LISTEN or the package that holds it): the destination may run the guest
    /// while memory is still coming.
    pub postcopy_listen_seen: bool,
    /// RUN was passed: whoever gets it runs the guest. From now on the guest waits for single pages,
    /// so latency counts more than ratio.
    pub postcopy_run_seen: bool,
    /// Something behind RUN was passed whole, which the source writes only once it has done its part
    /// of the switch: whatever becomes of its connection, it pauses and never runs the guest again.
    pub postcopy_settled: bool,
    /// The EOF section was seen. In pre-copy it lies behind opaque device state and is never seen.
    pub eof_section_seen: bool,
    /// UUID of the virtual machine (multifd only; all zero when it has none).
    pub vm_uuid: Option<[u8; 16]>,
    /// Number of this multifd channel.
    pub multifd_channel: Option<u8>,
    /// Set when the parser no longer understands the stream; all further bytes are raw.
    pub lost_sync: Option<LostSync>,
    /// Findings on the return path.
    pub return_path: ReturnFacts,
}

impl StreamFacts {
    /// What the kind of a channel says before its first byte.
    #[must_use]
    pub fn at_start(kind: ChannelKind) -> Self {
        let resumed = kind == ChannelKind::Resumed;
        Self {
            postcopy_advised: resumed,
            postcopy_listen_seen: resumed,
            postcopy_run_seen: resumed,
            postcopy_settled: resumed,
            ..Self::default()
        }
    }

    /// True when the bytes passed so far may let the destination run the guest, or when that can
    /// no longer be told. False is a promise, true is not.
    #[must_use]
    pub fn destination_may_run(&self) -> bool {
        self.ram_end_seen || self.postcopy_listen_seen || self.lost_sync.is_some()
    }
}

/// Findings on the destination's messages to the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReturnFacts {
    /// SHUT was seen, with this status: 0 means that the destination has the guest.
    pub shut: Option<u32>,
    /// PONG messages seen.
    pub pongs: u64,
    /// Post-copy page requests seen.
    pub page_requests: u64,
    /// SWITCHOVER_ACK was seen.
    pub switchover_ack_seen: bool,
}

/// Why a stream is carried as raw bytes from some point on. Correct, but with a worse ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LostSync {
    /// The stream does not start as a channel of this kind does.
    #[error("bad magic or version at the start; connect QEMU's migration channel directly")]
    Prologue,
    /// The configuration section holds something unknown.
    #[error("unknown configuration entry; check that this QEMU version is supported")]
    Configuration,
    /// The guest's page size is not 4 KiB.
    #[error("target page size is not 4 KiB; such guests are carried uncompared")]
    PageSize,
    /// A capability that changes the layout (mapped-ram).
    #[error("capability mapped-ram is for files; switch it off for a live migration")]
    MappedRam,
    /// A section that cannot be walked came before RAM END.
    #[error("unknown section before the end of RAM; detach that device or accept raw transport")]
    UnknownSection,
    /// More iterable sections than are tracked.
    #[error("too many iterable devices; detach some or accept raw transport")]
    TooManySections,
    /// A section did not end with its footer.
    #[error("section footer missing; use a machine type that sends footers")]
    Footer,
    /// A RAM record with unknown flags or an address outside its block.
    #[error("unknown RAM record; switch off RDMA and legacy compression")]
    RamRecord,
    /// The list of RAM blocks cannot be read without guessing.
    #[error("ambiguous RAM block list; do not combine x-ignore-shared with huge-page post-copy")]
    BlockList,
    /// A walkable device section did not look as it should.
    #[error("unexpected device section contents; check that this QEMU version is supported")]
    DeviceSection,
    /// A multifd packet with unknown flags, counts or sizes.
    #[error("odd multifd packet; check that this QEMU version is supported")]
    MultifdPacket,
    /// An unknown message on the return path.
    #[error("unknown return path message; check that this QEMU version is supported")]
    ReturnMessage,
}
