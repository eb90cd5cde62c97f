//! The UNIX sockets between hypervisor and data plane. In: a session. Out: two paths below a directory
//! that only its owner may enter. It promises that a path fits what both planes can carry, and that
//! nothing of an ended session is left.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dwcp_api::SessionId;
use dwcp_api::command::PATH_BYTES;
use dwcp_api::text::Text;

/// Longest directory: a path is it, a slash, 32 digits and `.out.sock`. The system's own limit for a
/// socket path is 107 bytes, ours is [`PATH_BYTES`].
pub const DIR_BYTES_MAX: usize = PATH_BYTES - 1 - 32 - ".out.sock".len();

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Too long, or no UTF-8.
    #[error("socket directory {0}: a path of at most {DIR_BYTES_MAX} bytes is needed")]
    Path(PathBuf),
    /// The system refused it.
    #[error("socket directory {path}: {problem}")]
    Dir {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The directory.
#[derive(Clone, Debug)]
pub struct SocketDir(PathBuf);

/// Both paths of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPaths {
    /// Where the sending hypervisor connects to its data plane.
    pub out: PathBuf,
    /// Where the receiving hypervisor listens for its data plane.
    pub into: PathBuf,
}

impl SocketDir {
    /// Makes the directory, or takes one that is ours, with mode 0700.
    ///
    /// # Errors
    /// [`SocketError`] if it is too long, no directory, or somebody else's.
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let bad = |problem: String| SocketError::Dir {
            path: path.to_owned(),
            problem,
        };
        if path.to_str().is_none_or(|text| text.len() > DIR_BYTES_MAX) || !path.is_absolute() {
            return Err(SocketError::Path(path.to_owned()));
        }
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(path)
            .map_err(|error| bad(error.to_string()))?;
        let found = fs::symlink_metadata(path).map_err(|error| bad(error.to_string()))?;
        if !found.is_dir() {
            return Err(bad("it is no directory".to_owned()));
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(bad(format!("it belongs to user {}", found.uid())));
        }
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self(path.to_owned()))
    }

    /// The paths of a session.
    #[must_use]
    pub fn paths(&self, session: SessionId) -> SocketPaths {
        SocketPaths {
            out: self.0.join(format!("{session}.out.sock")),
            into: self.0.join(format!("{session}.in.sock")),
        }
    }

    /// Removes what an ended session left.
    pub fn clear(&self, session: SessionId) {
        let paths = self.paths(session);
        for path in [paths.out, paths.into] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "socket not removed");
                }
                _ => {}
            }
        }
    }
}

/// A path as the command ring carries it.
///
/// # Errors
/// [`SocketError::Path`] if it does not fit.
pub fn path_text(path: &Path) -> Result<Text<PATH_BYTES>, SocketError> {
    let refused = || SocketError::Path(path.to_owned());
    Text::new(path.to_str().ok_or_else(refused)?).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_paths_fit() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("s");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let dir = SocketDir::open(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let session = SessionId([0xab; 16]);
        let paths = dir.paths(session);
        assert!(paths.out.ends_with(format!("{}.out.sock", "ab".repeat(16))));
        fs::write(&paths.out, "").unwrap();
        dir.clear(session);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        dir.clear(session);
    }

    #[test]
    fn the_longest_directory_still_fits_and_a_longer_one_is_refused() {
        let longest = format!("/{}", "d".repeat(DIR_BYTES_MAX - 1));
        let dir = SocketDir(PathBuf::from(&longest));
        path_text(&dir.paths(SessionId([1; 16])).out).unwrap();
        assert!(matches!(
            SocketDir::open(Path::new(&format!("{longest}d"))),
            Err(SocketError::Path(_))
        ));
        assert!(matches!(
            SocketDir::open(Path::new("rel")),
            Err(SocketError::Path(_))
        ));
    }
}
