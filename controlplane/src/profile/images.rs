//! The program files that a process has in memory.
//!
//! In: a process. Out: each executable mapping with its file, and how far it was moved from the addresses
//! that the file speaks of. Promise: files are read as the process sees them, in its own file system, and
//! its program even after it was replaced on disk.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::error::ProfileError;

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A file, by a path that we can open.
    File(PathBuf),
    /// The code that the kernel gives every process: `clock_gettime` and the like.
    Kernel,
}

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// For people.
    pub(super) name: String,
    pub(super) source: Source,
    /// Where it lies.
    pub(super) range: Range<u64>,
    /// Where in its file it begins.
    pub(super) file_offset: u64,
}

/// The executable mappings of a process, by address.
pub(super) fn images(pid: u32) -> Result<Vec<Image>, ProfileError> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => ProfileError::Gone { pid, cause },
        _ => ProfileError::of(pid, "reading its memory map", cause),
    };
    let program = fs::read_link(format!("/proc/{pid}/exe")).map_err(failed)?;
    let program = program.to_string_lossy();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(failed)?;
    let found: Vec<Image> = maps
        .lines()
        .filter_map(|line| parse(line, pid, &program))
        .collect();
    if found.is_empty() {
        return Err(ProfileError::Program {
            pid,
            reason: "it has no executable mapping that can be seen".to_owned(),
        });
    }
    Ok(found)
}

/// One line of `/proc/PID/maps`; none for what holds no code of a file.
fn parse(line: &str, pid: u32, program: &str) -> Option<Image> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start();
        let (word, after) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = after;
        word
    };
    let (range, rights, offset) = (word(), word(), word());
    let (_device, _inode) = (word(), word());
    let path = rest.trim_start();
    if rights.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let source = match path {
        "[vdso]" => Source::Kernel,
        _ if path == program => Source::File(format!("/proc/{pid}/exe").into()),
        _ if path.starts_with('/') => Source::File(format!("/proc/{pid}/root{path}").into()),
        _ => return None,
    };
    Some(Image {
        name: path.rsplit('/').next().unwrap_or(path).to_owned(),
        source,
        range: number(start)?..number(end)?,
        file_offset: number(offset)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_code_are_taken_and_others_left() {
        let read = |line| parse(line, 7, "/usr/bin/d w c p (deleted)");
        let image =
            read("55d0c0a00000-55d0c0c00000 r-xp 00023000 fd:00 131 /usr/bin/d w c p (deleted)")
                .unwrap();
        assert_eq!(image.source, Source::File("/proc/7/exe".into()));
        assert_eq!(image.range, 0x55d0_c0a0_0000..0x55d0_c0c0_0000);
        assert_eq!(image.file_offset, 0x23000);
        let image = read("7f00-7f10 r-xp 00000000 00:00 0      [vdso]").unwrap();
        assert_eq!(
            (image.source, image.name.as_str()),
            (Source::Kernel, "[vdso]")
        );
        let image = read("7f00-7f10 r-xp 00001000 fd:00 9 /lib/libc.so.6").unwrap();
        assert_eq!(
            image.source,
            Source::File("/proc/7/root/lib/libc.so.6".into())
        );
        assert_eq!(image.name, "libc.so.6");
        for other in [
            "7f00-7f10 r--p 00001000 fd:00 9 /lib/libc.so.6",
            "7f00-7f10 rw-p 00000000 00:00 0 [heap]",
            "7f00-7f10 r-xp 00000000 00:00 0",
            "nonsense",
            "",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
