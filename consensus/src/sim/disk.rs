//! A disk that forgets at a crash what was not synced, tears the last write, and may be full.
//!
//! In: what a member writes. Out: the same, or after a crash what had been synced and perhaps a piece
//! more. Promise: a member that crashed cannot touch the disk any more.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::type_config::TypeConfigExt;
use redb::StorageBackend;

use super::Sim;
use super::chance::Chance;
use crate::disk::{Disk, DiskFile, Work};
use crate::writer::{LAZY, Writer};

#[derive(Clone)]
pub(super) struct SimDisk {
    platter: Arc<Mutex<Platter>>,
    life: u64,
}

struct Platter {
    files: BTreeMap<String, Bytes>,
    pages: BTreeMap<String, Paged>,
    life: u64,
    full: bool,
    chance: Chance,
}

#[derive(Default)]
struct Bytes {
    now: Vec<u8>,
    synced: usize,
}

#[derive(Default)]
struct Paged {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync: where and what; a length alone is a change of size.
    open: Vec<(u64, Vec<u8>)>,
}

impl SimDisk {
    pub(super) fn new(chance: Chance) -> Self {
        let platter = Platter {
            files: BTreeMap::new(),
            pages: BTreeMap::new(),
            life: 0,
            full: false,
            chance,
        };
        Self {
            platter: Arc::new(Mutex::new(platter)),
            life: 0,
        }
    }

    /// The machine stops here and now; gives the disk as the next life finds it.
    pub(super) fn crash(&self) -> Self {
        let mut platter = self.platter.lock().unwrap();
        platter.life += 1;
        let life = platter.life;
        let chance = platter.chance.clone();
        for file in platter.files.values_mut() {
            let open = file.now.len() - file.synced;
            // All of it may have reached the disk, though nobody was told.
            let kept = if chance.permille(400) {
                open
            } else {
                chance.below(open as u64 + 1) as usize
            };
            file.now.truncate(file.synced + kept);
            if kept > 0 && chance.permille(500) {
                let torn = file.synced + chance.below(kept as u64) as usize;
                file.now[torn] ^= 0x55;
            }
            // A tail that the crash happened to leave is found again, and is on disk.
            file.synced = file.now.len();
        }
        for pages in platter.pages.values_mut() {
            let mut found = pages.synced.clone();
            for (at, bytes) in pages.open.drain(..) {
                let end = at as usize + bytes.len();
                if end <= found.len() && chance.permille(500) {
                    found[at as usize..end].copy_from_slice(&bytes);
                }
            }
            pages.now.clone_from(&found);
            pages.synced = found;
        }
        Self {
            platter: self.platter.clone(),
            life,
        }
    }

    pub(super) fn fill(&self, full: bool) {
        self.platter.lock().unwrap().full = full;
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.platter.lock().unwrap();
        if platter.life == self.life {
            return Ok(platter);
        }
        Err(io::Error::other("this machine has crashed"))
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.alive()?;
        if platter.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(platter)
    }
}

pub(super) struct SimFile {
    disk: SimDisk,
    name: String,
}

impl DiskFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.writable()?;
        let file = platter.files.entry(self.name.clone()).or_default();
        file.now.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.disk.writable()?;
        let file = platter.files.entry(self.name.clone()).or_default();
        file.synced = file.now.len();
        Ok(())
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Pages = SimPages;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.alive()?.files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let platter = self.alive()?;
        let file = platter.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.now.clone())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut platter = self.writable()?;
        platter.files.insert(name.to_owned(), Bytes::default());
        Ok(SimFile {
            disk: self.clone(),
            name: name.to_owned(),
        })
    }

    fn rename(&self, mut file: SimFile, from: &str, to: &str) -> io::Result<SimFile> {
        let mut platter = self.writable()?;
        let bytes = platter.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        platter.files.insert(to.to_owned(), bytes);
        to.clone_into(&mut file.name);
        Ok(file)
    }

    fn aside(&self, work: Work) {
        let chance = self.platter.lock().unwrap().chance.clone();
        let after = chance.micros(100, if chance.permille(100) { 200_000 } else { 5_000 });
        drop(Sim::spawn(async move {
            Sim::sleep(after).await;
            work();
        }));
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.alive()?.files.remove(name);
        Ok(())
    }

    fn pages(&self, name: &str) -> io::Result<SimPages> {
        self.alive()?.pages.entry(name.to_owned()).or_default();
        Ok(SimPages {
            disk: self.clone(),
            name: name.to_owned(),
        })
    }

    fn drive(&self, mut writer: Writer<Self>) -> io::Result<()> {
        let disk = self.clone();
        drop(Sim::spawn(async move {
            while writer.wait_async().await {
                let _ = Sim::timeout(LAZY, writer.pressed()).await;
                let chance = disk.platter.lock().unwrap().chance.clone();
                let slow = if chance.permille(20) { 40_000 } else { 1_500 };
                writer.write();
                Sim::sleep(chance.micros(100, slow)).await;
                if disk.alive().is_err() || !writer.settle() {
                    return;
                }
            }
        }));
        Ok(())
    }
}

pub(super) struct SimPages {
    disk: SimDisk,
    name: String,
}

impl std::fmt::Debug for SimPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl SimPages {
    fn with<T>(
        &self,
        platter: io::Result<MutexGuard<'_, Platter>>,
        act: impl FnOnce(&mut Paged) -> T,
    ) -> io::Result<T> {
        let mut platter = platter?;
        Ok(act(platter.pages.entry(self.name.clone()).or_default()))
    }
}

impl StorageBackend for SimPages {
    fn len(&self) -> io::Result<u64> {
        self.with(self.disk.alive(), |pages| pages.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(self.disk.alive(), |pages| {
            let at = offset as usize;
            let found = pages.now.get(at..at + out.len());
            found
                .map(|found| out.copy_from_slice(found))
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        })?
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // A change of size is kept at once, as journalling file systems do before they sync data.
        self.with(self.disk.writable(), |pages| {
            pages.now.resize(len as usize, 0);
            pages.synced.resize(len as usize, 0);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(self.disk.writable(), |pages| {
            for (at, bytes) in pages.open.drain(..) {
                let end = at as usize + bytes.len();
                if end <= pages.synced.len() {
                    pages.synced[at as usize..end].copy_from_slice(&bytes);
                }
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(self.disk.writable(), |pages| {
            let at = offset as usize;
            pages.now[at..at + data.len()].copy_from_slice(data);
            pages.open.push((offset, data.to_vec()));
        })
    }
}
