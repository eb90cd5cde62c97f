//! The folder of a store.
//!
//! In: a folder and limits. Out: what a tenant has, loaded or listed. Promises: whoever writes holds the lock,
//! which ends with its process; a segment that no manifest names is removed, and so is what a killed writer
//! left; a manifest that does not agree with its checksum is as good as not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::baseline::{BYTES_A_BLOCK, Baseline};
use crate::block::BLOCK_BYTES;
use crate::error::StoreError;
use crate::files;
use crate::hash::PageHash;
use crate::manifest::{self, Entry, Kind, Place, Summary};
use crate::names::{ManifestId, Tenant};

/// How long a writer waits for another.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_STEP: Duration = Duration::from_millis(50);

/// What a store may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on disk, over all tenants.
    pub bytes_max: u64,
    /// Migrations of each tenant that are kept, the latest.
    pub migrations_max: usize,
}

/// See the module. Several processes may have the same folder open.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) hash: Arc<PageHash>,
}

/// A manifest that is being written: its blocks are in use although no file names them yet.
#[derive(Clone, Copy)]
pub(crate) struct Pending<'a> {
    pub(crate) entries: &'a [Entry],
    pub(crate) temporary: Option<&'a Path>,
}

impl Pending<'_> {
    pub(crate) const NONE: Self = Self {
        entries: &[],
        temporary: None,
    };
}

/// Held by the one who writes.
#[derive(Debug)]
pub(crate) struct Writing {
    _lock: File,
}

impl Store {
    /// Opens the folder, or makes it, and collects what is left over unless somebody is writing.
    ///
    /// # Errors
    /// [`StoreError`]; the cure is in its words.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, StoreError> {
        files::make_folder(&dir.join("tenants"))?;
        let lock = lock_file(dir)?;
        let key = read_or_make_secret(dir, &lock)?;
        let hash = Arc::new(PageHash::new(&key, b"dwcp baseline block hash"));
        let store = Self {
            dir: dir.to_owned(),
            limits,
            hash,
        };
        if lock.try_lock().is_ok() {
            let writing = Writing { _lock: lock };
            for tenant in store.tenants()? {
                store.collect(&tenant, Pending::NONE, &writing)?;
            }
        }
        Ok(store)
    }

    /// Waits for its turn to write.
    pub(crate) fn writing(&self) -> Result<Writing, StoreError> {
        let lock = lock_file(&self.dir)?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Writing { _lock: lock }),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOCK_STEP);
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(StoreError::Busy {
                        path: self.dir.clone(),
                    });
                }
                Err(fs::TryLockError::Error(error)) => {
                    return Err(StoreError::io(&self.dir)(error));
                }
            }
        }
    }

    pub(crate) fn folder(&self, tenant: &Tenant) -> PathBuf {
        self.dir.join("tenants").join(tenant.as_str())
    }

    pub(crate) fn manifest_path(&self, tenant: &Tenant, id: ManifestId) -> PathBuf {
        self.folder(tenant).join(format!("{id}.manifest"))
    }

    pub(crate) fn segment_path(&self, tenant: &Tenant, number: u32) -> PathBuf {
        self.folder(tenant).join(format!("{number:08x}.blocks"))
    }

    /// Who has something here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let names = names_in(&self.dir.join("tenants"))?;
        Ok(names.iter().filter_map(|name| Tenant::new(name)).collect())
    }

    /// The ids of the manifests that a tenant has, those used last first: all that one who brings two stores
    /// to the same contents must know of each.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn held(&self, tenant: &Tenant) -> Result<Vec<ManifestId>, StoreError> {
        Ok(self
            .list(tenant)?
            .iter()
            .map(|summary| summary.id)
            .collect())
    }

    /// What a tenant has, what was used last first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn list(&self, tenant: &Tenant) -> Result<Vec<Summary>, StoreError> {
        let mut list = Vec::new();
        for name in names_in(&self.folder(tenant))? {
            let Some(id) = name.strip_suffix(".manifest").and_then(ManifestId::parse) else {
                continue;
            };
            match manifest::read_summary(&self.manifest_path(tenant, id), id) {
                Ok(summary) => list.push(summary),
                // Removed meanwhile, or damaged: whoever writes next removes it.
                Err(error) => tracing::debug!(%error, "a manifest is passed over"),
            }
        }
        list.sort_by_key(|summary| {
            std::cmp::Reverse((summary.used_s, summary.created_s, summary.id))
        });
        Ok(list)
    }

    /// Manifest entries, checked.
    pub(crate) fn entries(
        &self,
        tenant: &Tenant,
        id: ManifestId,
    ) -> Result<(Summary, Vec<Entry>), StoreError> {
        let path = self.manifest_path(tenant, id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Unknown(id));
            }
            Err(error) => return Err(StoreError::io(&path)(error)),
        };
        manifest::decode(&bytes)
            .filter(|(summary, _)| summary.id == id)
            .ok_or(StoreError::BadManifest(id))
    }

    /// Loads manifests of a tenant, those used last first, as long as they fit into `memory_bytes_max`, and
    /// `count_max` at most. What cannot be loaded is passed over.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn load(
        &self,
        tenant: &Tenant,
        count_max: usize,
        memory_bytes_max: usize,
        mut loaded: impl FnMut(ManifestId) -> Option<Arc<Baseline>>,
    ) -> Result<Vec<Arc<Baseline>>, StoreError> {
        let mut left_bytes = memory_bytes_max;
        let mut list = Vec::new();
        for summary in self.list(tenant)? {
            if list.len() == count_max {
                break;
            }
            let bytes = usize::try_from(summary.blocks)
                .unwrap_or(usize::MAX)
                .saturating_mul(BYTES_A_BLOCK);
            let Some(rest) = left_bytes.checked_sub(bytes) else {
                continue;
            };
            let one = match loaded(summary.id) {
                Some(one) => Ok(one),
                None => self.load_one(tenant, summary.id).map(Arc::new),
            };
            match one {
                Ok(one) => {
                    left_bytes = rest;
                    list.push(one);
                }
                Err(error) => tracing::warn!(%tenant, %error, "a baseline is passed over"),
            }
        }
        Ok(list)
    }

    /// Loads one manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_one(&self, tenant: &Tenant, id: ManifestId) -> Result<Baseline, StoreError> {
        let (summary, entries) = self.entries(tenant, id)?;
        let mut numbers: Vec<u32> = entries.iter().map(|entry| entry.place.segment).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut segments = Vec::with_capacity(numbers.len());
        for number in numbers {
            let path = self.segment_path(tenant, number);
            segments.push((number, File::open(&path).map_err(StoreError::io(&path))?));
        }
        let named = (id, summary.kind);
        Baseline::new(
            tenant.clone(),
            named,
            &entries,
            segments,
            Arc::clone(&self.hash),
        )
        .ok_or(StoreError::BadManifest(id))
    }

    /// Notes that a manifest was of use: what was not goes first when room is short.
    pub fn note_used(&self, tenant: &Tenant, id: ManifestId) {
        let path = self.manifest_path(tenant, id);
        let touched = OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%error, "the use of a baseline is not noted");
        }
    }

    /// Removes a manifest and the blocks that no other has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, tenant: &Tenant, id: ManifestId) -> Result<(), StoreError> {
        let writing = self.writing()?;
        if !self.manifest_path(tenant, id).exists() {
            return Err(StoreError::Unknown(id));
        }
        self.give_up(tenant, id, Pending::NONE, &writing)
    }

    pub(crate) fn give_up(
        &self,
        tenant: &Tenant,
        id: ManifestId,
        pending: Pending<'_>,
        writing: &Writing,
    ) -> Result<(), StoreError> {
        files::remove(&self.manifest_path(tenant, id))?;
        files::sync_folder(&self.folder(tenant))?;
        self.collect(tenant, pending, writing)
    }

    /// Removes what no manifest names: temporary files, segments, blocks within segments. Manifests that are
    /// damaged go too.
    pub(crate) fn collect(
        &self,
        tenant: &Tenant,
        pending: Pending<'_>,
        _writing: &Writing,
    ) -> Result<(), StoreError> {
        let folder = self.folder(tenant);
        let mut live: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut note = |place: Place| {
            live.entry(place.segment).or_default().insert(place.index);
        };
        pending.entries.iter().for_each(|entry| note(entry.place));
        let names = names_in(&folder)?;
        for name in &names {
            let Some(id) = name.strip_suffix(".manifest").and_then(ManifestId::parse) else {
                continue;
            };
            match self.entries(tenant, id) {
                Ok((_, entries)) => entries.iter().for_each(|entry| note(entry.place)),
                Err(StoreError::BadManifest(id)) => {
                    tracing::warn!(%tenant, %id, "a damaged baseline is removed: add its image again");
                    files::remove(&self.manifest_path(tenant, id))?;
                }
                Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        for name in &names {
            let path = folder.join(name);
            let number = name
                .strip_suffix(".blocks")
                .and_then(|number| u32::from_str_radix(number, 16).ok());
            match number {
                Some(number) => match live.get(&number) {
                    Some(places) => punch_others(&path, places)?,
                    None => files::remove(&path)?,
                },
                None if name.ends_with(".new") && pending.temporary != Some(&path) => {
                    files::remove(&path)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Bytes on disk, over all tenants.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for tenant in self.tenants()? {
            bytes += self.tenant_disk_bytes(&tenant)?;
        }
        Ok(bytes)
    }

    /// Bytes on disk of one tenant.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn tenant_disk_bytes(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        let folder = self.folder(tenant);
        let mut bytes = 0;
        for name in names_in(&folder)? {
            if let Ok(meta) = fs::metadata(folder.join(name)) {
                bytes += meta.blocks() * 512;
            }
        }
        Ok(bytes)
    }

    /// What to give up next to make room for `tenant`: its own manifest that was unused for longest, else
    /// anybody's.
    pub(crate) fn least_used(
        &self,
        tenant: &Tenant,
    ) -> Result<Option<(Tenant, ManifestId)>, StoreError> {
        if let Some(last) = self.list(tenant)?.last() {
            return Ok(Some((tenant.clone(), last.id)));
        }
        let mut oldest: Option<(u64, Tenant, ManifestId)> = None;
        for other in self.tenants()? {
            if other == *tenant {
                continue;
            }
            if let Some(last) = self.list(&other)?.last()
                && oldest
                    .as_ref()
                    .is_none_or(|(used_s, ..)| last.used_s < *used_s)
            {
                oldest = Some((last.used_s, other, last.id));
            }
        }
        Ok(oldest.map(|(_, tenant, id)| (tenant, id)))
    }

    /// Removes migrations beyond those that are kept, the oldest first.
    pub(crate) fn trim_migrations(
        &self,
        tenant: &Tenant,
        writing: &Writing,
    ) -> Result<(), StoreError> {
        let mut migrations = self.list(tenant)?;
        migrations.retain(|summary| summary.kind == Kind::Migration);
        for summary in migrations.iter().skip(self.limits.migrations_max) {
            self.give_up(tenant, summary.id, Pending::NONE, writing)?;
        }
        Ok(())
    }
}

/// Gives back the space of the blocks of a segment that are not among `places`.
fn punch_others(path: &Path, places: &BTreeSet<u32>) -> Result<(), StoreError> {
    let io = || StoreError::io(path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io())?;
    let meta = file.metadata().map_err(io())?;
    let taken = meta.blocks() * 512;
    if taken <= places.len() as u64 * BLOCK_BYTES as u64 {
        // Nothing but those is on the disk.
        return Ok(());
    }
    let block = BLOCK_BYTES as u64;
    let end = meta.len() / block;
    let mut from = 0u64;
    for to in places.iter().map(|&index| u64::from(index)).chain([end]) {
        if to > from {
            files::punch(&file, from * block, (to - from) * block)?;
        }
        from = to + 1;
    }
    Ok(())
}

pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io(folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn lock_file(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io(path))
}

/// The secret of a store is made once, by whoever comes first.
fn read_or_make_secret(dir: &Path, lock: &File) -> Result<[u8; 32], StoreError> {
    let path = dir.join("secret");
    let io = || StoreError::io(&path);
    let read = || match fs::read(&path) {
        // Of another length: a disk lost it. Hashes in manifests made before fit only by chance then, which
        // costs what these would have saved.
        Ok(bytes) => Ok(<[u8; 32]>::try_from(bytes.as_slice()).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io()(error)),
    };
    if let Some(key) = read()? {
        return Ok(key);
    }
    lock.lock().map_err(io())?;
    let made = (|| {
        if let Some(key) = read()? {
            return Ok(key);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| io()(std::io::Error::other(error)))?;
        let temporary = dir.join("secret.new");
        files::remove(&temporary)?;
        files::write_whole(&path, &temporary, &key)?;
        files::sync_folder(dir)?;
        Ok(key)
    })();
    lock.unlock().map_err(io())?;
    made
}
