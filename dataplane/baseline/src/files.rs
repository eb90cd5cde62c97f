//! What the store does to the disk, one step at a time.
//!
//! In: paths and bytes. Out: files that are on the disk before anything refers to them. Promise: every step
//! that changes the disk goes through here, so that a test can end the process, as it were, before any of them.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::StoreError;

/// A folder and those above it, for us alone.
pub fn make_folder(path: &Path) -> Result<(), StoreError> {
    step()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io(path))
}

/// A new file that only we may read.
pub fn create(path: &Path) -> Result<File, StoreError> {
    step()?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io(path))
}

/// Writes at the end.
pub fn append(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    step()?;
    file.write_all(bytes).map_err(StoreError::io(path))
}

/// Writes in the middle.
pub fn overwrite(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
    step()?;
    file.write_all_at(bytes, at).map_err(StoreError::io(path))
}

/// Waits until the disk has it.
pub fn sync(file: &File, path: &Path) -> Result<(), StoreError> {
    step()?;
    file.sync_all().map_err(StoreError::io(path))
}

/// The same for what a folder lists.
pub fn sync_folder(path: &Path) -> Result<(), StoreError> {
    step()?;
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io(path))
}

/// Gives a file another name, over what had it.
pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    step()?;
    fs::rename(from, to).map_err(StoreError::io(to))
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    step()?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(path)(error))
        }
        _ => Ok(()),
    }
}

/// Gives the space of a stretch back; where the file system cannot, it stays taken until the file goes.
pub fn punch(file: &File, at: u64, bytes: u64) -> Result<(), StoreError> {
    step()?;
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    if let Err(error) = rustix::fs::fallocate(file, flags, at, bytes) {
        tracing::debug!(%error, "no hole can be made");
    }
    Ok(())
}

/// Writes a whole file so that it is there with all its bytes or not at all.
pub fn write_whole(path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let written = (|| {
        let mut file = create(temporary)?;
        append(&mut file, temporary, bytes)?;
        sync(&file, temporary)?;
        rename(temporary, path)
    })();
    if written.is_err() {
        discard(temporary);
    }
    written
}

/// Removes what is of no use after an error; if that fails too, the next who opens the store does it.
pub fn discard(path: &Path) {
    let _ = remove(path);
}

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "a test may end everything here")]
const fn step() -> Result<(), StoreError> {
    Ok(())
}

#[cfg(test)]
thread_local! {
    /// Steps left until nothing more happens.
    pub static STEPS_LEFT: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
fn step() -> Result<(), StoreError> {
    STEPS_LEFT.with(|left| match left.get() {
        None => Ok(()),
        // As after a kill: nothing that would clean up happens any more either.
        Some(0) => Err(StoreError::Killed),
        Some(steps) => {
            left.set(Some(steps - 1));
            Ok(())
        }
    })
}
