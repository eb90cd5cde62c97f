//! The archive that a kernel unpacks as its first file system.
//!
//! In: names, modes, contents. Out: the bytes of the archive, in the kernel's "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst): per entry a header of hexadecimal
//! fields, the name, the data, each padded to four bytes.

/// A directory.
pub(crate) const DIRECTORY: u32 = 0o040_755;
/// A file that may be executed.
pub(crate) const PROGRAM: u32 = 0o100_755;

/// An archive that grows by entries.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    /// Adds a file or a directory; directories come before what lies in them.
    pub(crate) fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let (inode, length, name_length) = (self.entries, data.len(), name.len() + 1);
        // magic, inode, mode, uid, gid, links, mtime, size, 4 device numbers, name size, check
        let header = format!(
            "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{length:08X}\
             {0:08X}{0:08X}{0:08X}{0:08X}{name_length:08X}{0:08X}{name}\0",
            0, 1
        );
        self.bytes.extend(header.as_bytes());
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
