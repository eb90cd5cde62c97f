//! The lab's directories: one that goes with the test, one that stays as a cache.

use std::io;
use std::path::{Path, PathBuf};

/// A temporary directory for sockets and logs; it stays when the test fails and says where it is.
pub struct LabDir {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl LabDir {
    /// A new directory with a short path, because a UNIX socket's path holds 107 bytes only.
    pub fn new(name: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("dwcp-{name}-"))
            .tempdir_in("/tmp")?;
        Ok(Self {
            path: dir.path().to_path_buf(),
            dir: Some(dir),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("--- logs are kept in {}", dir.keep().display());
        }
    }
}

/// Where kernels, other QEMU versions and saved guests are kept: `DWCP_LAB_CACHE`, else
/// `/var/cache/dwcp/lab`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("DWCP_LAB_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/dwcp/lab"), PathBuf::from)
}
