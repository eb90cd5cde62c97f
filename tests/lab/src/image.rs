//! What a guest boots: a kernel and a first file system that holds one program.
//!
//! In: the kernel that `setup.sh` unpacked, busybox, the load program's source. Out: paths in the
//! lab's cache. Promise: built once per source; concurrent builders wait for each other.

use crate::cpio::{Archive, DIRECTORY, PROGRAM};
use crate::dir::cache_dir;
use crate::procs::{ProcError, run};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const BUSYBOX: &str = "/bin/busybox";
pub(crate) const LOAD_SOURCES: [&str; 2] = ["src/content.rs", "src/bin/dwcp-guest-load.rs"];
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox stty -F /dev/ttyS1 115200 raw -echo
exec /bin/load /dev/ttyS1
";

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file that `setup.sh` installs is missing.
    #[error("{path} is missing ({source}); run tests/lab/setup.sh")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The load program does not build.
    #[error("cannot build the guest's program: {0}; the Rust tool chain of this tree is needed")]
    Build(#[from] ProcError),
    /// The cache is not writable.
    #[error("cannot write {path}: {source}; set DWCP_LAB_CACHE to a writable directory")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A kernel and its first file system.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The first file system.
    pub initramfs: PathBuf,
    /// Changes whenever either of them does.
    pub hash: u64,
}

impl Image {
    /// Finds the image in the cache or builds it.
    pub fn ensure() -> Result<Self, ImageError> {
        let kernel = cache_dir().join("vmlinuz");
        let mut sources = INIT.as_bytes().to_vec();
        for source in LOAD_SOURCES {
            sources.extend(read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(source))?);
        }
        let meta = fs::metadata(&kernel).map_err(|source| ImageError::Missing {
            path: kernel.clone(),
            source,
        })?;
        sources.extend(meta.len().to_le_bytes());
        let hash = xxh3_64(&sources);
        let initramfs = cache_dir().join(format!("initramfs-{hash:016x}.cpio"));
        let image = Self {
            kernel,
            initramfs,
            hash,
        };
        let _lock = lock(&cache_dir().join("image.lock"))?;
        if !image.initramfs.exists() {
            image.build()?;
        }
        Ok(image)
    }

    fn build(&self) -> Result<(), ImageError> {
        let program = cache_dir().join("dwcp-guest-load");
        build_program(LOAD_SOURCES[1], &program)?;
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "proc"] {
            archive.entry(directory, DIRECTORY, &[]);
        }
        archive.entry("bin/busybox", PROGRAM, &read(Path::new(BUSYBOX))?);
        archive.entry("bin/load", PROGRAM, &read(&program)?);
        archive.entry("init", PROGRAM, INIT.as_bytes());
        let partial = self.initramfs.with_extension("partial");
        fs::write(&partial, archive.finish())
            .and_then(|()| fs::rename(&partial, &self.initramfs))
            .map_err(|source| ImageError::Cache {
                path: self.initramfs.clone(),
                source,
            })
    }
}

/// Builds one of the guest's programs, from its source in this crate, as a static file.
pub(crate) fn build_program(source: &str, program: &Path) -> Result<(), ProcError> {
    let mut command = Command::new("rustc");
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "--edition",
            "2024",
            "-C",
            "opt-level=3",
            "-C",
            "target-feature=+crt-static",
        ])
        .args([
            "--target",
            "x86_64-unknown-linux-gnu",
            "-C",
            "strip=symbols",
        ])
        .arg(source)
        .arg("-o")
        .arg(program);
    run(command)?;
    Ok(())
}

/// Holds others off until dropped.
pub(crate) fn lock(path: &Path) -> Result<File, ImageError> {
    let cache = |source| ImageError::Cache {
        path: path.to_path_buf(),
        source,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(cache)?;
    }
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(cache)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| cache(error.into()))?;
    Ok(file)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|source| ImageError::Missing {
        path: path.to_path_buf(),
        source,
    })
}
