//! Verifying what is on the disk, and putting a damaged block right.
//!
//! In: a manifest's id; a block from elsewhere. Out: how many blocks are not what they were. Promise: a block
//! is written only where a manifest says that this very block lies.

use std::fs::File;

use crate::block::{BLOCK_BYTES, Block, digest};
use crate::error::StoreError;
use crate::files;
use crate::names::{ManifestId, Tenant};
use crate::store::Store;

/// What became of a manifest's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The manifest.
    pub id: ManifestId,
    /// Its blocks.
    pub blocks: u64,
    /// Of these, those that are not what they were. They are fetched from the peer when they are wanted.
    pub damaged: u64,
}

impl Store {
    /// Reads every block of a manifest. `report` is told how many bytes were read and says whether to go on.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::BadManifest`] for a manifest that does not agree with its checksum.
    pub fn verify(
        &self,
        tenant: &Tenant,
        id: ManifestId,
        report: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Report, StoreError> {
        let baseline = match self.load_one(tenant, id) {
            // A segment is gone: so are all blocks in it.
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let (_, entries) = self.entries(tenant, id)?;
                let blocks = entries.len() as u64;
                return Ok(Report {
                    id,
                    blocks,
                    damaged: blocks,
                });
            }
            loaded => loaded?,
        };
        let mut block = [0; BLOCK_BYTES];
        let mut damaged = 0;
        for number in 0..baseline.blocks() {
            damaged += u64::from(baseline.read(number, &mut block).is_err());
            if number.is_multiple_of(256) && !report(u64::from(number) * BLOCK_BYTES as u64) {
                return Err(StoreError::Stopped);
            }
        }
        Ok(Report {
            id,
            blocks: u64::from(baseline.blocks()),
            damaged,
        })
    }

    /// Puts a block of a manifest right. Says whether `block` is that block.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn repair(
        &self,
        tenant: &Tenant,
        id: ManifestId,
        number: u32,
        block: &Block,
    ) -> Result<bool, StoreError> {
        let _writing = self.writing()?;
        let (_, entries) = self.entries(tenant, id)?;
        let Some(entry) = entries.get(number as usize) else {
            return Ok(false);
        };
        if digest(block) != entry.digest {
            return Ok(false);
        }
        let path = self.segment_path(tenant, entry.place.segment);
        let io = || StoreError::io(&path);
        let file = File::options().write(true).open(&path).map_err(io())?;
        let at = u64::from(entry.place.index) * BLOCK_BYTES as u64;
        files::overwrite(&file, &path, at, block)?;
        files::sync(&file, &path)?;
        Ok(true)
    }
}
