//! Small files of sysfs and procfs.
//!
//! In: a path. Out: its text, number, list or link. Promise: at most [`FILE_BYTES_MAX`] are read;
//! what does not exist is `None`, what cannot be read is an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::kernel::KernelError;

/// Longest file read. A page, as sysfs writes it, is shorter; `/proc/cmdline` may be a page as well.
pub const FILE_BYTES_MAX: u64 = 64 << 10;

/// The text of a file without white space around it; `None` if there is no such file, or if it belongs
/// to a device that has no answer at present.
///
/// # Errors
/// [`KernelError::Read`].
pub fn text(path: &Path) -> Result<Option<String>, KernelError> {
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(KernelError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// No such file, or one of a device or process that is gone or has no answer: the speed of a link that is down
/// is `EINVAL`.
fn is_absent(error: &io::Error) -> bool {
    let absent = [
        rustix::io::Errno::NOENT,
        rustix::io::Errno::NODEV,
        rustix::io::Errno::SRCH,
        rustix::io::Errno::NOTDIR,
        rustix::io::Errno::INVAL,
        rustix::io::Errno::OPNOTSUPP,
    ];
    absent
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A number, decimal or with `0x`; `None` as in [`text`].
///
/// # Errors
/// [`KernelError::Read`], [`KernelError::Content`].
pub fn number(path: &Path) -> Result<Option<i64>, KernelError> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    let number = match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map(Some).map_err(|_| KernelError::Content {
        path: path.to_owned(),
        found: text.chars().take(60).collect(),
        wanted: "a number",
    })
}

/// A number that is not negative; sysfs writes -1 for "not known", which is `None` here.
///
/// # Errors
/// As [`number`].
pub fn count(path: &Path) -> Result<Option<u32>, KernelError> {
    Ok(number(path)?.and_then(|number| u32::try_from(number).ok()))
}

/// Names in a folder, sorted; none if there is no such folder.
///
/// # Errors
/// [`KernelError::Read`].
pub fn names(folder: &Path) -> Result<Vec<String>, KernelError> {
    let read = |source| KernelError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(read)?.file_name();
        if let Some(name) = name.to_str() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The last part of what a symbolic link points to; `None` if there is no such link.
///
/// # Errors
/// [`KernelError::Read`].
pub fn link(path: &Path) -> Result<Option<String>, KernelError> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(target
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(KernelError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_sysfs_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for (text, number, count) in [
            ("12\n", 12, Some(12)),
            ("-1\n", -1, None),
            ("0x8086\n", 0x8086, Some(0x8086)),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(super::number(&path).unwrap(), Some(number));
            assert_eq!(super::count(&path).unwrap(), count);
        }
        std::fs::write(&path, "many\n").unwrap();
        let error = super::number(&path).unwrap_err().to_string();
        assert!(
            error.contains("many") && error.contains("a number"),
            "{error}"
        );
        assert_eq!(super::number(&folder.path().join("none")).unwrap(), None);
        assert_eq!(names(folder.path()).unwrap(), ["x"]);
        assert_eq!(link(&path).unwrap(), None, "a file is no link");
    }

    #[test]
    fn a_file_without_end_is_cut() {
        assert_eq!(
            text(Path::new("/dev/zero")).unwrap().unwrap().len() as u64,
            FILE_BYTES_MAX
        );
    }
}
