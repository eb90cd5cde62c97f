//! Which monitors may be opened. In: a path from a request. Out: a canonical path to a socket below an
//! allowed directory: links and `..` are gone, so what was checked is what is opened.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::error::QmpError;

/// A monitor's socket that may be opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MonitorPath(PathBuf);

impl MonitorPath {
    /// Checks a path. With no allowed directory nothing may be opened.
    ///
    /// # Errors
    /// [`QmpError::Missing`] if it is no socket, [`QmpError::Forbidden`] if it lies elsewhere. A path
    /// elsewhere is refused the same way whether or not it exists.
    pub fn check(path: &Path, allowed_dirs: &[PathBuf]) -> Result<Self, QmpError> {
        let forbidden = || QmpError::Forbidden(path.to_owned());
        let missing = |problem: String| QmpError::Missing {
            path: path.to_owned(),
            problem,
        };
        if !path.is_absolute() {
            return Err(forbidden());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(forbidden());
        };
        let parent = parent.canonicalize().map_err(|_| forbidden())?;
        let allowed = |candidate: &Path| {
            allowed_dirs
                .iter()
                .filter_map(|dir| dir.canonicalize().ok())
                .any(|dir| candidate.starts_with(&dir))
        };
        if !allowed(&parent) {
            return Err(forbidden());
        }
        let whole = parent
            .join(name)
            .canonicalize()
            .map_err(|error| missing(error.to_string()))?;
        if !allowed(&whole) {
            return Err(forbidden());
        }
        let kind = whole
            .metadata()
            .map_err(|error| missing(error.to_string()))?
            .file_type();
        if !kind.is_socket() {
            return Err(missing("it is no socket".to_owned()));
        }
        Ok(Self(whole))
    }

    /// The canonical path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_sockets_below_an_allowed_directory() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        let outside = dir.path().join("out");
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let _good = UnixListener::bind(inside.join("a.qmp")).unwrap();
        let _bad = UnixListener::bind(outside.join("b.qmp")).unwrap();
        symlink(outside.join("b.qmp"), inside.join("link")).unwrap();
        symlink(inside.join("a.qmp"), inside.join("fine")).unwrap();
        std::fs::write(inside.join("file"), "x").unwrap();
        let dirs = [inside.clone()];
        let check = |path: PathBuf| MonitorPath::check(&path, &dirs);

        let good = check(inside.join("a.qmp")).unwrap();
        assert_eq!(
            check(inside.join("fine")).unwrap(),
            good,
            "a link names the same monitor"
        );
        assert!(matches!(
            check(outside.join("b.qmp")),
            Err(QmpError::Forbidden(_))
        ));
        assert!(matches!(
            check(outside.join("none")),
            Err(QmpError::Forbidden(_))
        ));
        assert!(matches!(
            check(inside.join("link")),
            Err(QmpError::Forbidden(_))
        ));
        assert!(matches!(
            check(inside.join("../out/b.qmp")),
            Err(QmpError::Forbidden(_))
        ));
        assert!(matches!(
            check(PathBuf::from("a.qmp")),
            Err(QmpError::Forbidden(_))
        ));
        assert!(matches!(
            check(inside.join("file")),
            Err(QmpError::Missing { .. })
        ));
        assert!(matches!(
            check(inside.join("none")),
            Err(QmpError::Missing { .. })
        ));
        assert!(matches!(
            MonitorPath::check(&inside.join("a.qmp"), &[]),
            Err(QmpError::Forbidden(_))
        ));
    }
}
