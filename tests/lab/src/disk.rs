//! A guest's disk, its kernel, and the layers in which it writes.
//!
//! In: an image that somebody built. Out: layers on top of it, and a guest's flags. Promise: what lies
//! below a layer is never written, so every guest that is restored finds the disk as it was when the guest
//! was saved. Source and destination of a migration open the same layer, as hosts with shared storage do:
//! QEMU hands the image over at the switchover.

use crate::dir::LabDir;
use crate::procs::{ProcError, run};
use crate::qemu::kernel_words;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// How an image file is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// A layer over another image.
    Qcow2,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a guest with a disk boots from.
#[derive(Clone)]
pub struct DiskRoot {
    /// Its kernel.
    pub kernel: PathBuf,
    /// The first file system, which finds the disk.
    pub initramfs: PathBuf,
    /// More words for the kernel's command line.
    pub words: String,
    /// The layer that the guest writes, qcow2.
    pub disk: PathBuf,
    /// The folder of a layer that goes with the last guest on it.
    pub scratch: Option<Arc<LabDir>>,
}

impl DiskRoot {
    pub(crate) fn flags(&self, load_mb: u32, seed: u64) -> [String; 10] {
        [
            "-kernel".into(),
            self.kernel.display().to_string(),
            "-initrd".into(),
            self.initramfs.display().to_string(),
            "-append".into(),
            format!("{} {}", kernel_words(load_mb, seed), self.words),
            "-drive".into(),
            format!("if=none,id=disk,format=qcow2,file={}", self.disk.display()),
            "-device".into(),
            "virtio-blk-pci,drive=disk".into(),
        ]
    }
}

/// Makes an empty layer over `below`, which must stay where it is and as it is.
pub fn layer(below: &Path, format: Format, layer: &Path) -> Result<(), ProcError> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2", "-F", format.word(), "-b"])
        .args([below, layer]);
    run(command)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn qemu_io(image: &Path, command: &str) -> String {
        let mut tool = Command::new("qemu-io");
        tool.args(["-f", "qcow2", "-c", command]).arg(image);
        run(tool).unwrap()
    }

    #[test]
    fn what_is_written_into_a_layer_stays_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let base = vec![0x11; 1 << 20];
        fs::write(file("base"), &base).unwrap();
        layer(&file("base"), Format::Raw, &file("saved")).unwrap();
        qemu_io(&file("saved"), "write -P 0x22 0 64k");
        let saved = fs::read(file("saved")).unwrap();
        for name in ["run-1", "run-2"] {
            layer(&file("saved"), Format::Qcow2, &file(name)).unwrap();
            // Each finds the disk as it was saved, whatever another made of it.
            let seen = qemu_io(&file(name), "read -P 0x22 0 64k")
                + &qemu_io(&file(name), "read -P 0x11 64k 64k");
            assert!(!seen.contains("failed"), "{seen}");
            qemu_io(&file(name), "write -P 0x33 0 128k");
        }
        assert_eq!(fs::read(file("base")).unwrap(), base);
        assert_eq!(fs::read(file("saved")).unwrap(), saved);
    }

    #[test]
    fn a_layer_over_nothing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = dir.path().join("nothing");
        assert!(layer(&nothing, Format::Raw, &dir.path().join("layer")).is_err());
    }
}
