//! Synthetic migration streams for tests, fuzz seeds and benchmarks.
//!
//! In: pages and events; out: the bytes that QEMU would write on one channel.
//! Promises: nothing is checked, so broken streams can be built as well as good ones; the encoder
//! shares no code with the parser, so that one mistake cannot hide in both.

/// Section id of RAM in built streams.
pub const RAM_SECTION: u32 = 1;

/// Builds the main channel of a migration.
#[derive(Clone, Debug, Default)]
pub struct StreamBuilder {
    bytes: Vec<u8>,
}

impl StreamBuilder {
    /// A stream with nothing in it, not even the magic.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Prologue of a q35 guest: magic, version and configuration section.
    #[must_use]
    pub fn new() -> Self {
        let mut builder = Self::empty();
        let machine = b"pc-q35-10.0";
        builder
            .raw(b"QEVM")
            .be32(3)
            .raw(&[7])
            .be32(machine.len() as u32)
            .raw(machine);
        builder
    }

    /// A usual pre-copy migration: one block `pc.ram`, one RAM PART with the given pages (a page
    /// of zeroes becomes a zero record), RAM END and a device tail.
    #[must_use]
    pub fn precopy(pages: &[(u64, &[u8; 4096])], tail: &[u8]) -> Vec<u8> {
        let end = pages.iter().map(|(index, _)| index + 1).max().unwrap_or(1);
        let mut builder = Self::new();
        builder.command(1, &[]).command(2, &1u32.to_be_bytes());
        builder.ram_start(&[("pc.ram", end * 4096)]);
        builder.part(RAM_SECTION);
        let mut name = Some("pc.ram");
        for (index, page) in pages {
            if page.iter().all(|byte| *byte == 0) {
                builder.zero(name.take(), *index);
            } else {
                builder.page(name.take(), *index, page);
            }
        }
        builder
            .ram_eos()
            .command(11, &[])
            .ram_end()
            .device_tail(tail);
        builder.finish()
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A big-endian 32-bit number.
    pub fn be32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// A big-endian 64-bit number.
    pub fn be64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// A string behind its one-byte length (cut at 255 bytes).
    pub fn counted(&mut self, text: &str) -> &mut Self {
        let text = &text.as_bytes()[..text.len().min(255)];
        self.raw(&[text.len() as u8]).raw(text)
    }

    /// A subsection of the configuration section.
    pub fn configuration(&mut self, name: &str, payload: &[u8]) -> &mut Self {
        self.raw(&[5]).counted(name).be32(1).raw(payload)
    }

    /// A command section.
    pub fn command(&mut self, command: u16, payload: &[u8]) -> &mut Self {
        let len = payload.len() as u16;
        self.raw(&[8])
            .raw(&command.to_be_bytes())
            .raw(&len.to_be_bytes())
            .raw(payload)
    }

    /// POSTCOPY_ADVISE with an OR of page sizes.
    pub fn postcopy_advise(&mut self, page_sizes: u64) -> &mut Self {
        let mut payload = page_sizes.to_be_bytes().to_vec();
        payload.extend_from_slice(&4096u64.to_be_bytes());
        self.command(3, &payload)
    }

    /// PACKAGED: the command and the blob behind it.
    pub fn packaged(&mut self, blob: &[u8]) -> &mut Self {
        self.command(7, &(blob.len() as u32).to_be_bytes())
            .raw(blob)
    }

    /// Header of a START section.
    pub fn start(&mut self, id: u32, name: &str, version: u32) -> &mut Self {
        self.raw(&[1]).be32(id).counted(name).be32(0).be32(version)
    }

    /// Header of a FULL section.
    pub fn full(&mut self, id: u32, name: &str, version: u32) -> &mut Self {
        self.raw(&[4]).be32(id).counted(name).be32(0).be32(version)
    }

    /// Header of a PART section.
    pub fn part(&mut self, id: u32) -> &mut Self {
        self.raw(&[2]).be32(id)
    }

    /// Header of an END section.
    pub fn end(&mut self, id: u32) -> &mut Self {
        self.raw(&[3]).be32(id)
    }

    /// Footer of a section.
    pub fn footer(&mut self, id: u32) -> &mut Self {
        self.raw(&[0x7e]).be32(id)
    }

    /// RAM START with its block list, to the footer.
    pub fn ram_start(&mut self, blocks: &[(&str, u64)]) -> &mut Self {
        self.start(RAM_SECTION, "ram", 4);
        self.be64(blocks.iter().map(|(_, bytes)| bytes).sum::<u64>() | 0x04);
        for (name, bytes) in blocks {
            self.counted(name).be64(*bytes);
        }
        self.ram_eos()
    }

    /// End of a RAM payload and the footer.
    pub fn ram_eos(&mut self) -> &mut Self {
        self.be64(0x10).footer(RAM_SECTION)
    }

    /// RAM END without pages, to the footer.
    pub fn ram_end(&mut self) -> &mut Self {
        self.end(RAM_SECTION).ram_eos()
    }

    fn record(&mut self, flag: u64, name: Option<&str>, index: u64) -> &mut Self {
        match name {
            Some(name) => self.be64(index << 12 | flag).counted(name),
            None => self.be64(index << 12 | flag | 0x20),
        }
    }

    /// A page record; without a name it is a canonical CONTINUE record.
    pub fn page(&mut self, name: Option<&str>, index: u64, page: &[u8; 4096]) -> &mut Self {
        self.record(0x08, name, index).raw(page)
    }

    /// A zero-page record; without a name it is a canonical CONTINUE record.
    pub fn zero(&mut self, name: Option<&str>, index: u64) -> &mut Self {
        self.record(0x02, name, index).raw(&[0])
    }

    /// An XBZRLE record.
    pub fn xbzrle(&mut self, name: Option<&str>, index: u64, delta: &[u8]) -> &mut Self {
        let len = delta.len() as u16;
        self.record(0x40, name, index)
            .raw(&[1])
            .raw(&len.to_be_bytes())
            .raw(delta)
    }

    /// A MULTIFD_FLUSH record.
    pub fn multifd_flush(&mut self) -> &mut Self {
        self.be64(0x200)
    }

    /// A device section that nobody can walk, EOF and a description.
    pub fn device_tail(&mut self, state: &[u8]) -> &mut Self {
        self.full(0, "timer", 2)
            .raw(state)
            .footer(0)
            .raw(&[0, 6])
            .be32(2)
            .raw(b"{}")
    }

    /// Bytes built so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The stream.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Builds one multifd channel.
#[derive(Clone, Debug, Default)]
pub struct MultifdBuilder {
    bytes: Vec<u8>,
    packets: u64,
}

impl MultifdBuilder {
    /// A channel with its first packet.
    #[must_use]
    pub fn new(channel: u8, uuid: [u8; 16]) -> Self {
        let mut bytes = 0x1122_3344u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&1u32.to_be_bytes());
        bytes.extend_from_slice(&uuid);
        bytes.push(channel);
        bytes.resize(64, 0);
        Self { bytes, packets: 0 }
    }

    /// A packet with pages of one block: normal pages with contents, zero pages by number. The
    /// wire format has room for 128 in all.
    pub fn packet(&mut self, block: &str, pages: &[(u64, &[u8; 4096])], zero: &[u64]) -> &mut Self {
        let payload: Vec<u8> = pages
            .iter()
            .flat_map(|(_, page)| page.iter().copied())
            .collect();
        let indices: Vec<u64> = pages.iter().map(|(index, _)| *index).collect();
        self.header(0, 128, block, &indices, zero, payload.len() as u32);
        self.bytes.extend_from_slice(&payload);
        self
    }

    /// A packet whose pages were compressed by the source; `method` is QEMU's number (1 zlib,
    /// 2 zstd, 4 QPL, 8 UADK, 16 QATzip).
    pub fn compressed(
        &mut self,
        method: u32,
        block: &str,
        indices: &[u64],
        payload: &[u8],
    ) -> &mut Self {
        self.header(method << 1, 128, block, indices, &[], payload.len() as u32);
        self.bytes.extend_from_slice(payload);
        self
    }

    /// A SYNC packet.
    pub fn sync(&mut self) -> &mut Self {
        self.header(1, 0, "", &[], &[], 0)
    }

    /// A packet with device state.
    pub fn device_state(&mut self, name: &str, state: &[u8]) -> &mut Self {
        for word in [0x1122_3344u32, 1, 0x40] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        self.padded(name, 256);
        for word in [0, state.len() as u32] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        self.bytes.extend_from_slice(state);
        self
    }

    /// A packet header with any values, 1344 bytes long.
    pub fn header(
        &mut self,
        flags: u32,
        pages_allocated: u32,
        block: &str,
        normal: &[u64],
        zero: &[u64],
        payload_bytes: u32,
    ) -> &mut Self {
        let start = self.bytes.len();
        let normal_pages = normal.len() as u32;
        for word in [
            0x1122_3344,
            1,
            flags,
            pages_allocated,
            normal_pages,
            payload_bytes,
        ] {
            self.bytes.extend_from_slice(&word.to_be_bytes());
        }
        self.bytes.extend_from_slice(&self.packets.to_be_bytes());
        self.packets += 1;
        self.bytes
            .extend_from_slice(&(zero.len() as u32).to_be_bytes());
        self.padded("", 28);
        self.padded(block, 256);
        for index in normal.iter().chain(zero) {
            self.bytes.extend_from_slice(&(index << 12).to_be_bytes());
        }
        self.bytes.resize(start + 1344, 0);
        self
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn padded(&mut self, text: &str, bytes: usize) {
        let end = self.bytes.len() + bytes;
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.resize(end, 0);
    }

    /// The channel's bytes.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
