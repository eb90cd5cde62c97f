//! What a virtual machine boots: Debian's kernel, the modules that a shape names, and an init that
//! makes this machine's files its root.
//!
//! In: names of modules. Out: the paths of a kernel and of a first file system, kept in the lab's
//! cache. Promise: modules come after all that they say they need; one that the kernel package lacks
//! is named.

use crate::cpio::{Archive, DIRECTORY, PROGRAM};
use crate::dir::cache_dir;
use crate::image::{BUSYBOX, ImageError, lock, read};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// What the machine needs to see the shared root, whatever its shape.
const ROOT_MODULES: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];
const OVERLAY_MODULE: &str = "overlay";

/// Mounts the shared root under a layer of memory, runs the two scripts in it, says how the second
/// ended, and switches the machine off.
const INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb stty -F /dev/ttyS1 115200 raw -echo
finish() {
    printf '\036%d\n' "$1" >/dev/ttyS1
    $bb stty -F /dev/ttyS1 raw -echo
    $bb reboot -f
}
fail() { echo "vm: $1" >/dev/ttyS1; finish 125; }
while read -r module; do
    $bb insmod "/lib/$module.ko" || fail "cannot load $module"
done </lib/order
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 shared /shared \
    || fail "cannot mount the shared root"
$bb mount -t tmpfs -o size=80% layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/shared,upperdir=/layer/upper,workdir=/layer/work overlay /root \
    || fail "cannot lay memory over the shared root"
for tree in dev proc sys; do
    $bb mkdir -p "/root/$tree"
    $bb mount --move "/$tree" "/root/$tree"
done
$bb mkdir -p /root/dev/pts /root/dev/shm /root/run
$bb mount -t devpts devpts /root/dev/pts
$bb mount -t tmpfs shm /root/dev/shm
$bb mount -t tmpfs run /root/run
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
scripts=$($bb sed 's/.*dwcp.scripts=\([^ ]*\).*/\1/' /root/proc/cmdline)
(
    exec </root/dev/null >/root/dev/ttyS1 2>&1
    $bb ip link set lo up
    $bb chroot /root /bin/bash "$scripts/set-up" || exit 125
    exec $bb chroot /root /bin/bash "$scripts/job"
)
status=$?
$bb mount --move /root/dev /dev
finish $status
"#;

/// A kernel and a first file system for one list of modules.
pub(super) struct Boot {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

impl Boot {
    /// Finds both in the cache or makes them. `modules` are loaded in this order.
    pub(super) fn ensure(modules: &[&str]) -> Result<Self, ImageError> {
        let package = cache_dir().join("vm-kernel");
        let kernel = package.join("vmlinuz");
        let mut tree = Tree::of(&package.join("modules"))?;
        let wanted = ROOT_MODULES.iter().chain([&OVERLAY_MODULE]).chain(modules);
        for module in wanted {
            tree.need(module)?;
        }
        let mut key = INIT.as_bytes().to_vec();
        for (name, bytes) in &tree.loaded {
            key.extend(name.as_bytes());
            key.extend(xxh3_64(bytes).to_le_bytes());
        }
        let hash = xxh3_64(&key);
        let initramfs = cache_dir().join(format!("vm-initramfs-{hash:016x}.cpio"));
        let _lock = lock(&cache_dir().join("vm-initramfs.lock"))?;
        if !initramfs.exists() {
            let partial = initramfs.with_extension("partial");
            fs::write(&partial, tree.archive()?)
                .and_then(|()| fs::rename(&partial, &initramfs))
                .map_err(|source| ImageError::Cache {
                    path: initramfs.clone(),
                    source,
                })?;
        }
        Ok(Self { kernel, initramfs })
    }
}

/// The modules of a kernel package, and those picked so far.
struct Tree {
    root: PathBuf,
    files: HashMap<String, PathBuf>,
    loaded: Vec<(String, Vec<u8>)>,
}

impl Tree {
    fn of(root: &Path) -> Result<Self, ImageError> {
        let mut files = HashMap::new();
        let mut left = vec![root.to_path_buf()];
        while let Some(folder) = left.pop() {
            let missing = |source| ImageError::Missing {
                path: folder.clone(),
                source,
            };
            for entry in fs::read_dir(&folder).map_err(missing)? {
                let path = entry.map_err(missing)?.path();
                if path.is_dir() {
                    left.push(path);
                } else if path.extension().is_some_and(|end| end == "ko")
                    && let Some(stem) = path.file_stem()
                {
                    files.insert(plain(&stem.to_string_lossy()), path);
                }
            }
        }
        Ok(Self {
            root: root.to_path_buf(),
            files,
            loaded: Vec::new(),
        })
    }

    /// Picks a module behind all that it needs.
    fn need(&mut self, module: &str) -> Result<(), ImageError> {
        let name = plain(module);
        if self.loaded.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        let path = self.files.get(&name).ok_or_else(|| ImageError::Missing {
            path: self.root.join(format!("{module}.ko")),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let bytes = read(path)?;
        for other in needs_of(&bytes) {
            self.need(&other)?;
        }
        self.loaded.push((name, bytes));
        Ok(())
    }

    fn archive(&self) -> Result<Vec<u8>, ImageError> {
        let mut archive = Archive::default();
        for folder in [
            "bin", "dev", "lib", "layer", "proc", "root", "shared", "sys",
        ] {
            archive.entry(folder, DIRECTORY, &[]);
        }
        archive.entry("bin/busybox", PROGRAM, &read(Path::new(BUSYBOX))?);
        let mut order = String::new();
        for (name, bytes) in &self.loaded {
            archive.entry(&format!("lib/{name}.ko"), PROGRAM, bytes);
            order.push_str(name);
            order.push('\n');
        }
        archive.entry("lib/order", PROGRAM, order.as_bytes());
        archive.entry("init", PROGRAM, INIT.as_bytes());
        Ok(archive.finish())
    }
}

/// A module's name as the kernel writes it: file names may have dashes instead.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that a module says it needs: a string in its `.modinfo` section, which the kernel's
/// build writes as `depends=a,b` between two zeros.
fn needs_of(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(plain)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        let mut bytes = b"\x7fELF license=GPL\0depends=".to_vec();
        bytes.extend(depends.as_bytes());
        bytes.extend(b"\0intree=Y\0");
        bytes
    }

    #[test]
    fn modules_come_behind_what_they_need_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        for (name, depends) in [
            ("a-top", "b_mid,d-low"),
            ("deep/b-mid", "d-low"),
            ("d_low", ""),
        ] {
            fs::write(dir.path().join(format!("{name}.ko")), module(depends)).unwrap();
        }
        let mut tree = Tree::of(dir.path()).unwrap();
        tree.need("a_top").unwrap();
        tree.need("b-mid").unwrap();
        let names: Vec<_> = tree.loaded.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["d_low", "b_mid", "a_top"]);
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.ko"), module("none-such")).unwrap();
        let refused = Tree::of(dir.path()).unwrap().need("a").unwrap_err();
        assert!(refused.to_string().contains("none_such.ko"), "{refused}");
        assert!(Tree::of(&dir.path().join("nowhere")).is_err());
    }
}
