//! A store that nothing happens to.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{LIMITS, add, block, is_intact, numbered, tenant};
use crate::block::digest;
use crate::error::StoreError;
use crate::image::Image;
use crate::manifest::Kind;
use crate::names::ManifestId;
use crate::store::{Limits, Store};
use crate::{BLOCK_BYTES, BlockError};

#[test]
fn the_same_contents_have_the_same_id_on_every_host() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (
        Store::open(a.path(), LIMITS).unwrap(),
        Store::open(b.path(), LIMITS).unwrap(),
    );
    add(&b, "default", 50..60).unwrap();
    let at_a = add(&a, "default", [1, 0, 2, 2, 3, 0, 1]).unwrap();
    let at_b = add(&b, "default", [1, 2, 3]).unwrap();
    assert_eq!((at_a.id, at_a.blocks), (at_b.id, 3));
    assert_ne!(add(&b, "default", [2, 1, 3]).unwrap().id, at_a.id);
}

#[test]
fn blocks_are_found_and_read_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let id = add(&store, "default", 1..=300).unwrap().id;
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let baseline = store.load_one(&tenant("default"), id).unwrap();
    let find = |number| {
        let page = block(number);
        baseline.find(baseline.hash(&page), || digest(&page))
    };
    let mut read = block(0);
    for number in 1..=300 {
        assert_eq!(find(number), Some(number as u32 - 1));
        baseline.read(number as u32 - 1, &mut read).unwrap();
        assert_eq!(read, block(number));
    }
    assert_eq!(find(301), None);
    assert_eq!(find(0), None);
    assert_eq!(baseline.read(300, &mut read), Err(BlockError::Outside));
    // A hash that fits proves nothing.
    let page = block(1);
    assert_eq!(
        baseline.find(baseline.hash(&page), || digest(&block(9))),
        None
    );
    // What was loaded outlives its removal.
    store.remove(&tenant("default"), id).unwrap();
    baseline.read(7, &mut read).unwrap();
    assert_eq!(read, block(8));
    assert!(matches!(
        store.load_one(&tenant("default"), id),
        Err(StoreError::Unknown(_))
    ));
}

#[test]
fn a_tenant_sees_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let id = add(&store, "a", 1..50).unwrap().id;
    let b = tenant("b");
    assert!(store.list(&b).unwrap().is_empty() && store.held(&b).unwrap().is_empty());
    assert!(matches!(
        store.load_one(&b, id),
        Err(StoreError::Unknown(_))
    ));
    assert!(matches!(
        store.verify(&b, id, &mut |_| true),
        Err(StoreError::Unknown(_))
    ));
    assert!(matches!(store.remove(&b, id), Err(StoreError::Unknown(_))));
    assert!(store.load(&b, 12, 1 << 30, |_| None).unwrap().is_empty());
    // Its own copy takes the same room as if the other had none: sharing would show.
    let before = store.tenant_disk_bytes(&tenant("a")).unwrap();
    add(&store, "b", 1..50).unwrap();
    assert_eq!(store.tenant_disk_bytes(&b).unwrap(), before);
    store.remove(&b, id).unwrap();
    assert_eq!(store.held(&tenant("a")).unwrap(), [id]);
}

#[test]
fn what_was_unused_for_longest_makes_room_its_own_first() {
    let dir = tempfile::tempdir().unwrap();
    let room = |manifests: u64| Limits {
        bytes_max: manifests * (64 * BLOCK_BYTES as u64 + 8192) + (32 << 10),
        migrations_max: 2,
    };
    let store = Store::open(dir.path(), room(3)).unwrap();
    let own = tenant("a");
    let other = add(&store, "b", 900..964).unwrap().id;
    let first = add(&store, "a", 1..65).unwrap().id;
    let second = add(&store, "a", 101..165).unwrap().id;
    let age = |id: ManifestId, seconds| {
        let file = std::fs::File::options()
            .write(true)
            .open(store.manifest_path(&own, id))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    };
    age(first, 100);
    age(second, 200);
    store.note_used(&own, second);
    let third = add(&store, "a", 201..265).unwrap().id;
    let held: BTreeSet<_> = store.held(&own).unwrap().into_iter().collect();
    assert_eq!(held, BTreeSet::from([second, third]));
    assert_eq!(store.held(&tenant("b")).unwrap(), [other]);
    assert!(store.disk_bytes().unwrap() <= store.limits.bytes_max);
    // With nothing left of its own, another's goes; more than the bound is refused and costs no segment.
    add(&store, "c", 301..365).unwrap();
    assert!(store.held(&tenant("b")).unwrap().is_empty() || store.held(&own).unwrap().len() == 1);
    assert!(matches!(
        add(&store, "c", 1..4000),
        Err(StoreError::TooLarge { .. })
    ));
    assert!(store.disk_bytes().unwrap() <= store.limits.bytes_max);
}

#[test]
fn shared_blocks_stay_when_one_of_their_manifests_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let first = add(&store, "a", 1..400).unwrap();
    let alone = store.disk_bytes().unwrap();
    let second = add(&store, "a", 300..500).unwrap();
    assert!(store.disk_bytes().unwrap() < alone + 130 * BLOCK_BYTES as u64);
    store.remove(&tenant("a"), first.id).unwrap();
    assert!(is_intact(&store, "a", &second));
    assert!(
        store.disk_bytes().unwrap() < 260 * BLOCK_BYTES as u64,
        "holes give space back"
    );
    store.remove(&tenant("a"), second.id).unwrap();
    assert_eq!(store.disk_bytes().unwrap(), 0);
}

#[test]
fn migrations_are_kept_in_number_images_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    let image = add(&store, "a", 1..20).unwrap().id;
    let mut ids = Vec::new();
    for from in [100u64, 200, 300] {
        let named = (Kind::Migration, "guest");
        let mut pages = numbered(from..from + 20);
        ids.push(
            store
                .add(&tenant("a"), named, &mut pages, &mut |_| true)
                .unwrap()
                .id,
        );
        let path = store.manifest_path(&tenant("a"), ids[ids.len() - 1]);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 - from))
            .unwrap();
    }
    let held: BTreeSet<_> = store.held(&tenant("a")).unwrap().into_iter().collect();
    assert_eq!(held, BTreeSet::from([image, ids[1], ids[2]]));
}

#[test]
fn memory_and_number_bound_what_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), LIMITS).unwrap();
    for from in [1u64, 1001, 2001] {
        add(&store, "a", from..from + 100).unwrap();
    }
    let count = |most, bytes| {
        store
            .load(&tenant("a"), most, bytes, |_| None)
            .unwrap()
            .len()
    };
    assert_eq!(
        (
            count(12, 1 << 20),
            count(2, 1 << 20),
            count(12, 13_000),
            count(12, 10)
        ),
        (3, 2, 2, 0)
    );
}

#[test]
fn an_image_is_read_without_its_holes_and_to_its_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), LIMITS).unwrap();
    let path = dir.path().join("image");
    let file = std::fs::File::create(&path).unwrap();
    let write =
        |at: u64, bytes: &[u8]| std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    write(5 * 4096, &block(7));
    write(3 << 20, &block(8));
    write((40 << 20) + 4096, &[9; 100]);
    let mut image = Image::open(&path, None, &store).unwrap();
    let bytes = image.bytes();
    let named = (Kind::Image, "disk");
    let summary = store
        .add(&tenant("a"), named, &mut image, &mut |_| true)
        .unwrap();
    assert_eq!((summary.blocks, summary.logical_bytes), (3, bytes));
    let mut tail = block(0);
    tail[..100].fill(9);
    let baseline = store.load_one(&tenant("a"), summary.id).unwrap();
    for (number, expected) in [block(7), block(8), tail].iter().enumerate() {
        let mut read = block(0);
        baseline.read(number as u32, &mut read).unwrap();
        assert_eq!(read, *expected);
    }
    // What became of the image since is nothing to the store.
    write(5 * 4096, &block(99));
    assert!(is_intact(&store, "a", &summary));
    for refused in ["image", "/dev/null", "/", "/no/such/image"] {
        assert!(
            Image::open(std::path::Path::new(refused), None, &store).is_err(),
            "{refused}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The oracle: what was added and not removed is there, whole, and nothing else.
    #[test]
    fn any_life_leaves_what_it_should(
        steps in proptest::collection::vec((0usize..2, proptest::option::of((1u64..60, 1u64..40)), 0usize..4), 1..14),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), LIMITS).unwrap();
        let mut oracle = [Vec::new(), Vec::new()];
        for (owner, added, removed) in steps {
            let name = ["a", "b"][owner];
            match added {
                Some((from, count)) => {
                    let summary = add(&store, name, from..from + count).unwrap();
                    oracle[owner].retain(|(known, _)| *known != summary);
                    let known = oracle[owner].iter().any(|(known, _): &(crate::Summary, u64)| known.id == summary.id);
                    if !known {
                        oracle[owner].push((summary, from));
                    }
                }
                None if removed < oracle[owner].len() => {
                    let (summary, _) = oracle[owner].remove(removed);
                    store.remove(&tenant(name), summary.id).unwrap();
                }
                None => {}
            }
            for (owner, name) in ["a", "b"].into_iter().enumerate() {
                let held: BTreeSet<_> = store.held(&tenant(name)).unwrap().into_iter().collect();
                let expected: BTreeSet<_> = oracle[owner].iter().map(|(summary, _)| summary.id).collect();
                prop_assert_eq!(held, expected);
                for (summary, from) in &oracle[owner] {
                    prop_assert!(is_intact(&store, name, summary));
                    let baseline = store.load_one(&tenant(name), summary.id).unwrap();
                    prop_assert_eq!(baseline.digest(0), Some(&digest(&block(*from))));
                }
            }
        }
    }
}
