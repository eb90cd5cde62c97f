//! Disk images as blocks.
//!
//! In: a raw image, a block device, or a qcow2 image, which `qemu-img` makes raw in a temporary file. Out: its
//! blocks, holes left out. Promises: an image that names other files, as a qcow2 image with a backing file
//! does, is refused, for it could name any file of this host; the last block is filled up with zeros.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::add::Blocks;
use crate::block::{BLOCK_BYTES, Block};
use crate::error::StoreError;
use crate::store::Store;

const READ_BYTES: usize = 1 << 20;
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// How an image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's own, version 2 or 3.
    Qcow2,
}

/// An image that is being read.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Of the first byte of `buffer`, a multiple of the block size.
    buffer_at: u64,
    buffer: Vec<u8>,
    /// In `buffer`.
    at: usize,
    /// Removed at the end.
    temporary: Option<PathBuf>,
}

impl Image {
    /// Opens an image; without a format, one that begins as qcow2 images do is taken for one. `store` has room
    /// for the temporary file that a qcow2 image needs.
    ///
    /// # Errors
    /// [`StoreError::Image`], [`StoreError::BadImage`], [`StoreError::NoTool`].
    pub fn open(path: &Path, format: Option<Format>, store: &Store) -> Result<Self, StoreError> {
        let image = Self::open_raw(path)?;
        let format = format.unwrap_or_else(|| {
            let mut magic = [0; 4];
            match image.file.read_exact_at(&mut magic, 0) {
                Ok(()) if magic == *QCOW2_MAGIC => Format::Qcow2,
                _ => Format::Raw,
            }
        });
        match format {
            Format::Raw => Ok(image),
            Format::Qcow2 => image.unfolded(store),
        }
    }

    fn open_raw(path: &Path) -> Result<Self, StoreError> {
        let image = || {
            let path = path.to_owned();
            move |source| StoreError::Image { path, source }
        };
        if !path.is_absolute() {
            return Err(StoreError::BadImage {
                path: path.to_owned(),
                why: "it is no absolute path: begin it with /".to_owned(),
            });
        }
        // Opening a pipe would wait for its other end.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(image())?;
        let kind = file.metadata().map_err(image())?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(StoreError::BadImage {
                path: path.to_owned(),
                why: "it is neither a file nor a block device: name the image itself".to_owned(),
            });
        }
        let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|error| image()(error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            buffer_at: 0,
            buffer: Vec::with_capacity(READ_BYTES),
            at: 0,
            temporary: None,
        })
    }

    /// Its size, holes counted.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A qcow2 image made raw.
    fn unfolded(self, store: &Store) -> Result<Self, StoreError> {
        let path = self.path.clone();
        let bad = |why: String| StoreError::BadImage {
            path: path.clone(),
            why,
        };
        let info = run(&path, &["info", "-f", "qcow2", "--output=json"], None)?;
        let info: serde_json::Value = serde_json::from_slice(&info)
            .map_err(|error| bad(format!("qemu-img info answers what is not JSON: {error}")))?;
        let data_file = &info["format-specific"]["data"]["data-file"];
        if !info["backing-filename"].is_null() || !data_file.is_null() {
            return Err(bad(
                "it names another file that it builds on: add that file, or flatten this one with \
                 qemu-img convert"
                    .to_owned(),
            ));
        }
        let temporary = store.dir.join(format!("image.{}.raw", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let made = run(
            &path,
            &["convert", "-f", "qcow2", "-O", "raw"],
            Some(&temporary),
        )
        .and_then(|_| Self::open_raw(&temporary));
        match made {
            Ok(mut image) => {
                image.path = path;
                image.temporary = Some(temporary);
                Ok(image)
            }
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    /// Fills the buffer from the next stretch that is no hole. Says whether there is one.
    fn fill(&mut self) -> Result<bool, StoreError> {
        let block = BLOCK_BYTES as u64;
        let next = self.buffer_at + self.buffer.len() as u64;
        let next = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(next)) {
            Ok(data) => data / block * block,
            Err(rustix::io::Errno::NXIO) => self.bytes,
            // A file system or device that knows no holes.
            Err(_) => next,
        };
        self.at = 0;
        self.buffer.clear();
        self.buffer_at = next.min(self.bytes);
        let image = |source| StoreError::Image {
            path: self.path.clone(),
            source,
        };
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(self.buffer_at))
            .map_err(|error| image(error.into()))?;
        let mut part = (&self.file).take(READ_BYTES as u64);
        match part.read_to_end(&mut self.buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(image(error)),
        }
        let whole = self.buffer.len().next_multiple_of(BLOCK_BYTES);
        self.buffer.resize(whole, 0);
        Ok(!self.buffer.is_empty())
    }
}

impl Blocks for Image {
    fn next(&mut self, into: &mut Block) -> Result<bool, StoreError> {
        if self.at == self.buffer.len() && !self.fill()? {
            return Ok(false);
        }
        into.copy_from_slice(&self.buffer[self.at..self.at + BLOCK_BYTES]);
        self.at += BLOCK_BYTES;
        Ok(true)
    }

    fn position(&self) -> u64 {
        (self.buffer_at + self.at as u64).min(self.bytes)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Runs `qemu-img` on an image.
fn run(path: &Path, words: &[&str], to: Option<&Path>) -> Result<Vec<u8>, StoreError> {
    const PROGRAM: &str = "qemu-img";
    let output = Command::new(PROGRAM)
        .args(words)
        .arg(path)
        .args(to)
        .output()
        .map_err(|source| match source.kind() {
            ErrorKind::NotFound => StoreError::NoTool {
                path: path.to_owned(),
                program: PROGRAM,
            },
            _ => StoreError::Image {
                path: path.to_owned(),
                source,
            },
        })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(StoreError::BadImage {
        path: path.to_owned(),
        why: format!("{PROGRAM} cannot read it: {}", said.trim()),
    })
}
