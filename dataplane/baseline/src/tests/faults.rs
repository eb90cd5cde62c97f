//! A store that things happen to.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::{LIMITS, add, block, is_intact, tenant};
use crate::error::StoreError;
use crate::files::STEPS_LEFT;
use crate::store::{Limits, Store};
use crate::{BLOCK_BYTES, BlockError};

/// Runs `work` and ends it before its step `steps`, as a kill would. Says whether it was ended.
fn killed_after(steps: u32, work: impl FnOnce() -> Result<(), StoreError>) -> bool {
    STEPS_LEFT.with(|left| left.set(Some(steps)));
    let outcome = work();
    STEPS_LEFT.with(|left| left.set(None));
    matches!(outcome, Err(StoreError::Killed))
}

fn files(dir: &std::path::Path, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir.join("tenants/a"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(ending))
        .collect();
    found.sort();
    found
}

#[test]
fn a_kill_before_any_step_leaves_a_store_that_lies_about_nothing() {
    let mut ended = 0;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let tight = Limits {
            bytes_max: 700 * BLOCK_BYTES as u64,
            ..LIMITS
        };
        let store = Store::open(dir.path(), tight).unwrap();
        let first = add(&store, "a", 1..300).unwrap();
        let second = add(&store, "a", 200..400).unwrap();
        // Makes room by giving up the first or the second, and writes in several pieces.
        let was_killed = killed_after(steps, || add(&store, "a", 350..950).map(drop));
        ended += u32::from(was_killed);
        let store = Store::open(dir.path(), tight).unwrap();
        for summary in store.list(&tenant("a")).unwrap() {
            assert!(
                is_intact(&store, "a", &summary),
                "{summary:?} after {steps} steps"
            );
        }
        assert!(files(dir.path(), ".new").is_empty(), "{steps}");
        assert!(store.disk_bytes().unwrap() <= tight.bytes_max);
        // It goes on as if nothing had been.
        for numbers in [1..300, 350..950] {
            let again = add(&store, "a", numbers).unwrap();
            assert!(is_intact(&store, "a", &again));
        }
        let _ = (first, second);
        if !was_killed {
            break;
        }
    }
    assert!(ended > 12, "{ended} steps");
}

#[test]
fn a_kill_while_the_store_is_made_or_a_manifest_removed() {
    for steps in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let made = killed_after(steps, || Store::open(dir.path(), LIMITS).map(drop));
        let store = Store::open(dir.path(), LIMITS).unwrap();
        let first = add(&store, "a", 1..50).unwrap();
        let second = add(&store, "a", 25..90).unwrap();
        killed_after(steps, || store.remove(&tenant("a"), first.id));
        let store = Store::open(dir.path(), LIMITS).unwrap();
        assert!(is_intact(&store, "a", &second), "{steps}");
        let held = store.held(&tenant("a")).unwrap();
        assert!(held.len() == 1 || is_intact(&store, "a", &first));
        if !made && steps > 20 {
            break;
        }
    }
}

#[test]
fn a_flipped_byte_is_found_never_handed_out_and_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let owner = tenant("a");
    let summary = add(&store, "a", 1..100).unwrap();
    let segment = files(dir.path(), ".blocks").remove(0);
    let flip = |at: u64| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&segment)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    flip(5 * 4096 + 17);
    let baseline = store.load_one(&owner, summary.id).unwrap();
    let mut read = block(0);
    assert_eq!(baseline.read(5, &mut read), Err(BlockError::Damaged));
    assert_eq!(baseline.read(6, &mut read), Ok(()));
    assert_eq!(
        store
            .verify(&owner, summary.id, &mut |_| true)
            .unwrap()
            .damaged,
        1
    );
    // By the block itself, and by nothing else.
    assert!(!store.repair(&owner, summary.id, 5, &block(7)).unwrap());
    assert!(!store.repair(&owner, summary.id, 99, &block(7)).unwrap());
    assert!(store.repair(&owner, summary.id, 5, &block(6)).unwrap());
    assert_eq!(baseline.read(5, &mut read), Ok(()));
    // By its image.
    flip(50 * 4096);
    assert_eq!(add(&store, "a", 1..100).unwrap().id, summary.id);
    assert!(is_intact(&store, "a", &summary));
}

#[test]
fn a_manifest_that_was_changed_or_cut_is_as_good_as_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let kept = add(&store, "a", 500..600).unwrap();
    let summary = add(&store, "a", 1..100).unwrap();
    let path = store.manifest_path(&tenant("a"), summary.id);
    let whole = fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[100] ^= 4;
    for bytes in [&whole[..whole.len() / 2], &whole[..0], &changed] {
        fs::write(&path, bytes).unwrap();
        let loaded = store.load(&tenant("a"), 12, 1 << 30, |_| None).unwrap();
        assert_eq!(
            loaded.iter().map(|one| one.id()).collect::<Vec<_>>(),
            [kept.id]
        );
        assert!(matches!(
            store.load_one(&tenant("a"), summary.id),
            Err(StoreError::BadManifest(_))
        ));
    }
    // Opened again, it is gone with its blocks, and its image makes it anew.
    let store = Store::open(dir.path(), LIMITS).unwrap();
    assert_eq!(store.held(&tenant("a")).unwrap(), [kept.id]);
    assert_eq!(files(dir.path(), ".blocks").len(), 1);
    assert_eq!(add(&store, "a", 1..100).unwrap().id, summary.id);
    assert!(is_intact(&store, "a", &summary));
}

#[test]
fn a_segment_that_was_cut_or_lost_costs_its_blocks_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let owner = tenant("a");
    let summary = add(&store, "a", 1..100).unwrap();
    let segment = files(dir.path(), ".blocks").remove(0);
    let file = fs::File::options().write(true).open(&segment).unwrap();
    file.set_len(40 * 4096 + 1).unwrap();
    assert_eq!(
        store
            .verify(&owner, summary.id, &mut |_| true)
            .unwrap()
            .damaged,
        59
    );
    fs::remove_file(&segment).unwrap();
    assert_eq!(
        store
            .verify(&owner, summary.id, &mut |_| true)
            .unwrap()
            .damaged,
        99
    );
    assert!(
        store
            .load(&owner, 12, 1 << 30, |_| None)
            .unwrap()
            .is_empty()
    );
    // What shared the lost segment must not be looked for in another that took its number.
    let other = add(&store, "a", 90..200).unwrap();
    assert!(is_intact(&store, "a", &other));
    assert_eq!(add(&store, "a", 1..100).unwrap().id, summary.id);
    assert!(is_intact(&store, "a", &summary) && is_intact(&store, "a", &other));
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_behind() {
    // A size limit of files stands for the disk: both end a write in the middle. In a process of its own,
    // for the limit is the process's.
    const CHILD: &str = "DWCP_TEST_FULL_DISK";
    let Ok(dir) = std::env::var(CHILD) else {
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::faults::a_full_disk_is_said_and_leaves_nothing_behind",
            ])
            .env(CHILD, dir.path())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    };
    let dir = std::path::Path::new(&dir);
    let store = Store::open(dir, LIMITS).unwrap();
    let kept = add(&store, "a", 1..100).unwrap();
    // SAFETY: nothing else in this process minds the signal; without it the write answers with an error.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = libc::rlimit {
        rlim_cur: 2 << 20,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is a whole `rlimit`, read and not kept.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(set, 0);
    let full = add(&store, "a", 1000..2000);
    assert!(matches!(full, Err(StoreError::DiskFull { .. })), "{full:?}");
    assert!(files(dir, ".new").is_empty());
    assert_eq!(files(dir, ".blocks").len(), 1);
    assert!(is_intact(&store, "a", &kept));
    assert_eq!(add(&store, "a", 1000..1200).unwrap().blocks, 200);
}

#[test]
fn a_writer_that_is_stopped_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let named = (crate::Kind::Image, "x");
    let mut blocks = super::numbered(1..5000);
    let stopped = store.add(&tenant("a"), named, &mut blocks, &mut |bytes| {
        bytes < 4 << 20
    });
    assert!(matches!(stopped, Err(StoreError::Stopped)));
    assert_eq!(store.disk_bytes().unwrap(), 0);
}
