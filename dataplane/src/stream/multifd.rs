//! A multifd channel: pages in packets.
//!
//! In: the bytes from source to destination on a channel that starts with 0x11223344; out: packet
//! headers as raw bytes and uncompressed pages as bodies.
//! Promises: counts and sizes are checked against each other before a page is named; anything odd
//! makes the rest of this channel raw.
//!
//! The packet header has a fixed size that follows from the page size, also for SYNC packets that
//! announce no pages. It lists the offsets of normal pages, then those of zero pages; the normal
//! pages follow in that order, all of one block.

use super::{
    BlockId, LostSync, PageAddr,
    channel::MULTIFD_MAGIC,
    reader::{Env, MAX_HEAD_BYTES, Reader, Step},
    token::{PAGE_BITS, PAGE_BYTES},
};

const VERSION: u32 = 1;
const PAGES_PER_PACKET: usize = 128;
const INIT_RESERVED_BYTES: usize = 39;
const NAME_BYTES: usize = 256;
const FLAG_SYNC: u32 = 0x01;
const METHOD_MASK: u32 = 0x3e;
const FLAG_DEVICE_STATE: u32 = 0x40;

/// Parser for one multifd channel.
pub(super) struct Multifd {
    init_seen: bool,
    /// Pages of the current packet: `indices[next..count]` still follow.
    indices: [u64; PAGES_PER_PACKET],
    next: usize,
    count: usize,
    block: Option<BlockId>,
}

impl Multifd {
    pub fn new() -> Self {
        Self {
            init_seen: false,
            indices: [0; PAGES_PER_PACKET],
            next: 0,
            count: 0,
            block: None,
        }
    }

    /// Decides what comes next, or asks for more bytes.
    pub fn step(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        if !self.init_seen {
            return self.init(head, env);
        }
        if let Some(&index) = self.indices[..self.count].get(self.next)
            && let Some(block) = self.block
        {
            self.next += 1;
            return Some(Step::Body {
                head: 0,
                addr: PageAddr { block, index },
            });
        }
        self.packet(head, env)
    }

    fn init(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        let mut r = Reader::new(head);
        let (magic, version) = (r.be32()?, r.be32()?);
        let uuid = r.array::<16>()?;
        let channel = r.u8()?;
        r.take(INIT_RESERVED_BYTES)?;
        if (magic, version) != (MULTIFD_MAGIC, VERSION) {
            return Some(Step::Lost(LostSync::Prologue));
        }
        env.facts.vm_uuid = Some(uuid);
        env.facts.multifd_channel = Some(channel);
        self.init_seen = true;
        Some(Step::Raw {
            head: r.pos(),
            skip: 0,
        })
    }

    fn packet(&mut self, head: &[u8], env: &mut Env<'_>) -> Option<Step> {
        const ODD: Option<Step> = Some(Step::Lost(LostSync::MultifdPacket));
        let mut r = Reader::new(head);
        let (magic, version, flags) = (r.be32()?, r.be32()?, r.be32()?);
        if (magic, version) != (MULTIFD_MAGIC, VERSION)
            || flags & !(FLAG_SYNC | METHOD_MASK | FLAG_DEVICE_STATE) != 0
        {
            return ODD;
        }
        if flags & FLAG_DEVICE_STATE != 0 {
            r.take(NAME_BYTES)?; // device
            r.be32()?; // instance
            let skip = u64::from(r.be32()?);
            env.facts.multifd_flushes += u64::from(flags & FLAG_SYNC);
            return Some(Step::Raw {
                head: r.pos(),
                skip,
            });
        }
        let pages_allocated = r.be32()? as usize;
        let normal_pages = r.be32()? as usize;
        let payload_bytes = u64::from(r.be32()?);
        r.be64()?; // packet number
        let zero_pages = r.be32()? as usize;
        r.take(4 + 24)?; // reserved
        let name = r.take(NAME_BYTES)?;
        let mut offsets = Reader::new(r.take(PAGES_PER_PACKET * 8)?);
        debug_assert!(
            r.pos() == MAX_HEAD_BYTES,
            "a page packet header has a fixed size"
        );

        if pages_allocated > PAGES_PER_PACKET
            || normal_pages.saturating_add(zero_pages) > pages_allocated
        {
            return ODD;
        }
        let compressed = flags & METHOD_MASK != 0;
        if !compressed && payload_bytes != (normal_pages * PAGE_BYTES) as u64 {
            return ODD;
        }
        let mut block = None;
        if normal_pages + zero_pages > 0 {
            match name.iter().position(|&byte| byte == 0) {
                Some(name_bytes) if name_bytes > 0 => {
                    block = env.blocks.intern(&name[..name_bytes]);
                }
                _ => return ODD,
            }
        }
        // The old list was used up before this packet was looked at, so it may be overwritten even
        // if the packet turns out to be odd.
        (self.next, self.count) = (0, 0);
        for slot in &mut self.indices[..normal_pages] {
            let offset = offsets.be64()?;
            if offset % PAGE_BYTES as u64 != 0 {
                return ODD;
            }
            *slot = offset >> PAGE_BITS;
        }
        self.block = block;
        env.facts.multifd_flushes += u64::from(flags & FLAG_SYNC);
        env.facts.pages += normal_pages as u64;
        env.facts.zero_pages += zero_pages as u64;
        if compressed || block.is_none() {
            return Some(Step::Raw {
                head: r.pos(),
                skip: payload_bytes,
            });
        }
        self.count = normal_pages;
        Some(Step::Raw {
            head: r.pos(),
            skip: 0,
        })
    }
}
