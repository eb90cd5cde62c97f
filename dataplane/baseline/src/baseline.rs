//! A manifest in memory.
//!
//! In: the contents of a page, or the number of a block. Out: the number of the block that is equal, or the
//! block. Promises: a block is equal only if its BLAKE3 digest is, and is handed out only if its digest, or in
//! a run its fast hash, agrees, whatever became of the disk; finding takes no system call, reading one a block
//! or one a run; none allocates.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::block::{BLOCK_BYTES, Block, Digest, digest};
use crate::hash::PageHash;
use crate::manifest::{Entry, Kind};
use crate::names::{ManifestId, Tenant};

/// Memory that one block of a loaded manifest takes, at most, in bytes: digest 32, hash 8, place 8, and up to
/// four table entries of 4.
pub const BYTES_A_BLOCK: usize = 64;

/// Blocks that are read with one call at most.
const RUN_MAX: usize = 64;

/// Why a block was not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The manifest has no block of that number.
    Outside,
    /// It cannot be read, or it is not what it was.
    Damaged,
}

/// See the module. Files that it needs stay open, so it outlives its removal from the store.
pub struct Baseline {
    tenant: Tenant,
    id: ManifestId,
    kind: Kind,
    digests: Box<[Digest]>,
    hashes: Box<[u64]>,
    /// Segment (an index into `segments`) and place in it.
    places: Box<[(u32, u32)]>,
    segments: Vec<File>,
    /// Block number plus one by the low bits of its hash; zero is empty.
    table: Box<[u32]>,
    hash: Arc<PageHash>,
}

impl std::fmt::Debug for Baseline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Baseline")
            .field("tenant", &self.tenant)
            .field("id", &self.id)
            .field("blocks", &self.blocks())
            .finish_non_exhaustive()
    }
}

impl Baseline {
    pub(crate) fn new(
        tenant: Tenant,
        (id, kind): (ManifestId, Kind),
        entries: &[Entry],
        segments: Vec<(u32, File)>,
        hash: Arc<PageHash>,
    ) -> Option<Self> {
        let mut places = Vec::with_capacity(entries.len());
        for entry in entries {
            let at = segments
                .iter()
                .position(|(number, _)| *number == entry.place.segment)?;
            places.push((at as u32, entry.place.index));
        }
        let mut table = vec![0u32; (entries.len() * 2).next_power_of_two()].into_boxed_slice();
        let mask = table.len() - 1;
        for (number, entry) in entries.iter().enumerate() {
            let mut at = entry.hash as usize & mask;
            while table[at] != 0 {
                at = (at + 1) & mask;
            }
            table[at] = number as u32 + 1;
        }
        Some(Self {
            tenant,
            id,
            kind,
            digests: entries.iter().map(|entry| entry.digest).collect(),
            hashes: entries.iter().map(|entry| entry.hash).collect(),
            places: places.into_boxed_slice(),
            segments: segments.into_iter().map(|(_, file)| file).collect(),
            table,
            hash,
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> ManifestId {
        self.id
    }

    /// Where its blocks come from.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// How many blocks it has; their numbers are below.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.digests.len() as u32
    }

    /// The fast hash that [`find`](Self::find) takes; the same for all manifests of a store.
    #[must_use]
    pub fn hash(&self, page: &Block) -> u64 {
        self.hash.of(page)
    }

    /// The block that is equal to a page of the fast hash `hash`. `page_digest` is asked for the page's digest
    /// only where the fast hash fits.
    #[must_use]
    pub fn find(&self, hash: u64, mut page_digest: impl FnMut() -> Digest) -> Option<u32> {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        // At most half full, so that an empty place comes soon.
        loop {
            let number = self.table[at].checked_sub(1)?;
            if self.hashes[number as usize] == hash
                && self.digests[number as usize] == page_digest()
            {
                return Some(number);
            }
            at = (at + 1) & mask;
        }
    }

    /// What block `number` is known by.
    #[must_use]
    pub fn digest(&self, number: u32) -> Option<&Digest> {
        self.digests.get(number as usize)
    }

    /// Reads a block and checks it.
    ///
    /// # Errors
    /// [`BlockError`]; `into` holds nothing of use then.
    pub fn read(&self, number: u32, into: &mut Block) -> Result<(), BlockError> {
        let &(segment, index) = self
            .places
            .get(number as usize)
            .ok_or(BlockError::Outside)?;
        let at = u64::from(index) * BLOCK_BYTES as u64;
        self.segments[segment as usize]
            .read_exact_at(into, at)
            .map_err(|_| BlockError::Damaged)?;
        if digest(into) == self.digests[number as usize] {
            Ok(())
        } else {
            Err(BlockError::Damaged)
        }
    }

    /// Reads successive blocks from `first` on, each into the next of `pages`, and checks each by its fast hash:
    /// nothing but chance, one in 2^64, lets damage pass. (Whoever releases blocks to a guest holds all of a batch
    /// against a digest that the sender made of its own bytes.) `damaged` is told the place in the run of each
    /// block that cannot be read, is not what it was, or does not exist; its page holds nothing of use then.
    pub fn read_run(
        &self,
        first: u32,
        pages: &mut dyn Iterator<Item = &mut Block>,
        damaged: &mut dyn FnMut(u32),
    ) {
        let mut pages = pages.enumerate().peekable();
        while let Some(&(nth, _)) = pages.peek() {
            let from = first as usize + nth;
            let mut run: [_; RUN_MAX] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            let mut count = 0;
            while count < RUN_MAX && self.follows(from, count) {
                let Some((_, page)) = pages.next() else { break };
                run[count] = IoSliceMut::new(page);
                count += 1;
            }
            if count == 0 {
                damaged(nth as u32);
                pages.next();
            }
            self.read_together(from, &mut run[..count], &mut |at| damaged(nth as u32 + at));
        }
    }

    /// Is there a block `from + count`, and does it lie `count` behind block `from`?
    fn follows(&self, from: usize, count: usize) -> bool {
        match (self.places.get(from), self.places.get(from + count)) {
            (Some(begin), Some(place)) => {
                begin.0 == place.0 && u64::from(begin.1) + count as u64 == u64::from(place.1)
            }
            _ => false,
        }
    }

    /// Blocks that lie one behind the other, with one call if all can be read.
    fn read_together(
        &self,
        from: usize,
        mut run: &mut [IoSliceMut<'_>],
        damaged: &mut dyn FnMut(u32),
    ) {
        let mut nth = 0;
        while !run.is_empty() {
            let (segment, index) = self.places[from + nth];
            let at = u64::from(index) * BLOCK_BYTES as u64;
            let bytes = rustix::io::preadv(&self.segments[segment as usize], run, at).unwrap_or(0);
            let whole = (bytes / BLOCK_BYTES).min(run.len());
            for page in &run[..whole] {
                let page = page.first_chunk::<BLOCK_BYTES>();
                if page.map(|page| self.hash.of(page)) != Some(self.hashes[from + nth]) {
                    damaged(nth as u32);
                }
                nth += 1;
            }
            run = &mut run[whole..];
            // The next one is what stopped it.
            if !run.is_empty() {
                damaged(nth as u32);
                nth += 1;
                run = &mut run[1..];
            }
        }
    }

    /// Asks the system to have all blocks in memory soon.
    pub fn read_ahead(&self) {
        for segment in &self.segments {
            let advice = rustix::fs::Advice::WillNeed;
            // Only a hint: what it cannot do, reading will.
            let _ = rustix::fs::fadvise(segment, 0, None, advice);
        }
    }
}
