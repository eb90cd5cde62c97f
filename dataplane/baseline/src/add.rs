//! Adding: blocks become a manifest, and those that the tenant does not have yet a segment.
//!
//! In: blocks, in an order that another host repeats. Out: a manifest that is on the disk whole. Promises:
//! every block that a manifest names was on the disk before it; a block that is there already is compared, and
//! put right if it is damaged; when room is short, whole manifests go, those unused for longest first; what
//! does not fit, or fails, leaves nothing behind.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::block::{BLOCK_BYTES, Block, Digest, digest, is_zero};
use crate::error::StoreError;
use crate::files;
use crate::manifest::{self, BLOCKS_MAX, ENTRY_BYTES, Entry, Kind, Place, Summary};
use crate::names::Tenant;
use crate::store::{Pending, Store, Writing, names_in};

/// New blocks are written in pieces of this.
const WRITE_BYTES: usize = 1 << 20;
/// Blocks between two reports of how far it is.
const REPORT_BLOCKS: u32 = 256;

/// Where blocks come from.
pub trait Blocks {
    /// The next block; `false` at the end.
    ///
    /// # Errors
    /// [`StoreError::Image`] or the like.
    fn next(&mut self, into: &mut Block) -> Result<bool, StoreError>;

    /// Bytes that are behind it, holes among them.
    fn position(&self) -> u64;
}

/// One manifest in the making.
struct Adding<'a> {
    store: &'a Store,
    tenant: &'a Tenant,
    writing: &'a Writing,
    entries: Vec<Entry>,
    /// Where each block of the tenant lies.
    places: HashMap<Digest, Place>,
    segments: HashMap<u32, File>,
    number: u32,
    temporary: PathBuf,
    new: Option<File>,
    /// Blocks in the new segment, those in `buffer` among them.
    new_blocks: u32,
    buffer: Vec<u8>,
    /// Bytes on disk without what is being written.
    others_bytes: u64,
}

impl Store {
    /// Adds a manifest of these blocks; zero blocks and repeats are left out. `report` is told how far it is
    /// and says whether to go on.
    ///
    /// # Errors
    /// [`StoreError`]; then there is no such manifest.
    pub fn add(
        &self,
        tenant: &Tenant,
        (kind, name): (Kind, &str),
        blocks: &mut dyn Blocks,
        report: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Summary, StoreError> {
        let writing = self.writing()?;
        files::make_folder(&self.folder(tenant))?;
        self.collect(tenant, Pending::NONE, &writing)?;
        let mut adding = Adding::new(self, tenant, &writing)?;
        let added = adding
            .take_all(blocks, report)
            .and_then(|()| adding.finish((kind, name), blocks.position()));
        match added {
            Ok(summary) => {
                if kind == Kind::Migration {
                    self.trim_migrations(tenant, &writing)?;
                }
                Ok(summary)
            }
            Err(error) => {
                files::discard(&adding.temporary);
                files::discard(&self.segment_path(tenant, adding.number));
                Err(error)
            }
        }
    }
}

impl<'a> Adding<'a> {
    fn new(store: &'a Store, tenant: &'a Tenant, writing: &'a Writing) -> Result<Self, StoreError> {
        let folder = store.folder(tenant);
        let mut adding = Self {
            store,
            tenant,
            writing,
            entries: Vec::new(),
            places: HashMap::new(),
            segments: HashMap::new(),
            number: 0,
            temporary: folder.join("blocks.new"),
            new: None,
            new_blocks: 0,
            buffer: Vec::with_capacity(WRITE_BYTES),
            others_bytes: 0,
        };
        adding.look_around()?;
        // Of a segment that was lost the number is still in use: what lay there is looked for there.
        let named = adding.places.values().map(|place| place.segment);
        let there = names_in(&folder)?;
        let there = there
            .iter()
            .filter_map(|name| u32::from_str_radix(name.strip_suffix(".blocks")?, 16).ok());
        adding.number = named
            .chain(there)
            .max()
            .map_or(0, |last| last.wrapping_add(1));
        Ok(adding)
    }

    /// Learns what the tenant has and how much room all take.
    fn look_around(&mut self) -> Result<(), StoreError> {
        self.places.clear();
        for summary in self.store.list(self.tenant)? {
            match self.store.entries(self.tenant, summary.id) {
                Ok((_, entries)) => self
                    .places
                    .extend(entries.iter().map(|entry| (entry.digest, entry.place))),
                Err(error) => tracing::warn!(%error, "a baseline is passed over"),
            }
        }
        let own = self.entries.iter().map(|entry| (entry.digest, entry.place));
        self.places.extend(own);
        let written = u64::from(self.new_blocks) * BLOCK_BYTES as u64 - self.buffer.len() as u64;
        self.others_bytes = self.store.disk_bytes()?.saturating_sub(written);
        Ok(())
    }

    fn take_all(
        &mut self,
        blocks: &mut dyn Blocks,
        report: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), StoreError> {
        let mut block = [0; BLOCK_BYTES];
        let mut known = std::collections::HashSet::new();
        let mut count = 0u32;
        while blocks.next(&mut block)? {
            count = count.wrapping_add(1);
            if count.is_multiple_of(REPORT_BLOCKS) && !report(blocks.position()) {
                return Err(StoreError::Stopped);
            }
            if is_zero(&block) {
                continue;
            }
            let digest = digest(&block);
            if known.insert(digest) {
                self.take(digest, &block)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, digest: Digest, block: &Block) -> Result<(), StoreError> {
        if self.entries.len() == BLOCKS_MAX {
            return Err(StoreError::TooLarge {
                needed_bytes: (BLOCKS_MAX * BLOCK_BYTES) as u64,
                max_bytes: self.store.limits.bytes_max,
            });
        }
        let place = match self.places.get(&digest).copied() {
            Some(place) if self.is_or_becomes(place, block)? => place,
            _ => {
                let place = Place {
                    segment: self.number,
                    index: self.new_blocks,
                };
                self.places.insert(digest, place);
                self.new_blocks += 1;
                self.buffer.extend_from_slice(block);
                place
            }
        };
        self.entries.push(Entry {
            digest,
            hash: self.store.hash.of(block),
            place,
        });
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(())
    }

    /// The place holds the block, or does from now on.
    fn is_or_becomes(&mut self, place: Place, block: &Block) -> Result<bool, StoreError> {
        let path = self.store.segment_path(self.tenant, place.segment);
        let file = match self.segments.entry(place.segment) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                match File::options().read(true).write(true).open(&path) {
                    Ok(file) => free.insert(file),
                    Err(_) => return Ok(false),
                }
            }
        };
        let at = u64::from(place.index) * BLOCK_BYTES as u64;
        let mut there = [0; BLOCK_BYTES];
        if file.read_exact_at(&mut there, at).is_err() || there != *block {
            tracing::warn!(path = %path.display(), at, "a damaged block is put right");
            files::overwrite(file, &path, at, block)?;
            files::sync(file, &path)?;
        }
        Ok(true)
    }

    /// Makes room for what is to be written, the manifest with it.
    fn make_room(&mut self) -> Result<(), StoreError> {
        let max_bytes = self.store.limits.bytes_max;
        loop {
            let new_bytes = u64::from(self.new_blocks) * BLOCK_BYTES as u64
                + (self.entries.len() * ENTRY_BYTES) as u64
                + BLOCK_BYTES as u64;
            if self.others_bytes + new_bytes <= max_bytes {
                return Ok(());
            }
            let Some((tenant, id)) = self.store.least_used(self.tenant)? else {
                return Err(StoreError::TooLarge {
                    needed_bytes: new_bytes,
                    max_bytes,
                });
            };
            tracing::info!(%tenant, %id, "a baseline makes room for another");
            let pending = Pending {
                entries: if tenant == *self.tenant {
                    &self.entries
                } else {
                    &[]
                },
                temporary: Some(&self.temporary),
            };
            self.store.give_up(&tenant, id, pending, self.writing)?;
            self.segments.clear();
            self.look_around()?;
        }
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        self.make_room()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let file = match &mut self.new {
            Some(file) => file,
            none => none.insert(files::create(&self.temporary)?),
        };
        files::append(file, &self.temporary, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(
        &mut self,
        (kind, name): (Kind, &str),
        logical_bytes: u64,
    ) -> Result<Summary, StoreError> {
        if self.entries.is_empty() {
            return Err(StoreError::Empty);
        }
        self.write_out()?;
        let id = manifest::id_of(self.entries.iter().map(|entry| &entry.digest));
        let now_s = SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let summary = Summary {
            id,
            kind,
            name: name.to_owned(),
            created_s: now_s,
            used_s: now_s,
            logical_bytes,
            blocks: self.entries.len() as u64,
        };
        let folder = self.store.folder(self.tenant);
        if let Some(file) = &self.new {
            files::sync(file, &self.temporary)?;
            let segment = self.store.segment_path(self.tenant, self.number);
            files::rename(&self.temporary, &segment)?;
            // The segment must not be younger on the disk than the manifest that names it.
            files::sync_folder(&folder)?;
        }
        let path = self.store.manifest_path(self.tenant, id);
        if self.new.is_none() && path.exists() {
            self.store.note_used(self.tenant, id);
            return Ok(summary);
        }
        let bytes = manifest::encode(&summary, &self.entries);
        files::write_whole(&path, &with_new(&path), &bytes)?;
        files::sync_folder(&folder)?;
        Ok(summary)
    }
}

fn with_new(path: &Path) -> PathBuf {
    path.with_extension("manifest.new")
}
