//! The promises of the flags, against words in ordinary memory.

use super::*;
use dwcp_api::switches::Switches;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The kill switch in the words, and on disk if it is there.
type Look = (bool, Option<bool>);

/// Words that may or may not be attached, and a look at the disk each time they are touched.
#[derive(Clone)]
struct Board {
    words: Arc<Switches>,
    attached: Arc<AtomicBool>,
    store: Store,
    /// What the disk said of the kill switch at each access.
    seen: Arc<Mutex<Vec<Look>>>,
    hurries: Arc<AtomicU32>,
}

impl SwitchBoard for Board {
    fn with(&self, act: &mut dyn FnMut(&Switches)) -> Result<(), NotAttached> {
        if !self.attached.load(Ordering::SeqCst) {
            return Err(NotAttached);
        }
        act(&self.words);
        let disk = self.store.get_json::<Force>(TABLE, FORCE_ROW).unwrap();
        let disk = disk.map(|force| force.on);
        self.seen
            .lock()
            .unwrap()
            .push((self.words.is_forced_v1(), disk));
        Ok(())
    }

    fn hurry(&self) {
        self.hurries.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    flags: Flags,
    board: Board,
    _folder: Option<tempfile::TempDir>,
}

fn open_at(path: &Path, words: Arc<Switches>) -> Bench {
    let store = Store::open(path).unwrap();
    let board = Board {
        words,
        attached: Arc::new(AtomicBool::new(true)),
        store: store.clone(),
        seen: Arc::default(),
        hurries: Arc::default(),
    };
    let node = NodeId::new("node-000000").unwrap();
    let flags = Flags::open(store, node, Box::new(board.clone())).unwrap();
    Bench {
        flags,
        board,
        _folder: None,
    }
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = open_at(&folder.path().join("s.redb"), Arc::default());
    bench._folder = Some(folder);
    bench
}

fn percent(percent: f64) -> Percentage {
    Percentage::new(percent).unwrap()
}

#[test]
fn a_new_node_uses_v3_where_v3_exists() {
    let bench = bench();
    bench.flags.apply_all().unwrap();
    let view = bench.flags.view();
    for flag in &view.flags {
        let expected = matches!(flag.feature, "dwcp_v3_amst" | "dwcp_v3_hde");
        assert_eq!(flag.available, expected);
        assert_eq!(flag.version_here, if expected { "v3" } else { "v1" });
    }
    assert_eq!(bench.board.words.component(Component::Hde), Version::V3);
    assert_eq!(bench.board.words.component(Component::Pba), Version::V1);
}

#[test]
fn a_share_below_the_bucket_takes_the_node_out_and_back() {
    // The bucket of node-000000 under dwcp_v3_hde is 37037.
    let bench = bench();
    bench.flags.apply_all().unwrap();
    for (share, version) in [
        (37.037, Version::V1),
        (37.038, Version::V3),
        (0.0, Version::V1),
    ] {
        let view = bench
            .flags
            .set("dwcp_v3_hde", None, Some(percent(share)), "t")
            .unwrap();
        assert_eq!(
            bench.board.words.component(Component::Hde),
            version,
            "{share}"
        );
        assert_eq!(view.version_here, version.as_str());
    }
    let out = bench
        .flags
        .set("dwcp_v3_hde", Some(false), Some(Percentage::ALL), "t")
        .unwrap();
    assert_eq!(out.version_here, "v1");
}

#[test]
fn the_word_comes_before_the_disk_when_thrown_and_after_it_when_released() {
    let bench = bench();
    bench.flags.apply_all().unwrap();
    bench.board.seen.lock().unwrap().clear();

    assert!(bench.flags.throw_v1());
    assert_eq!(
        *bench.board.seen.lock().unwrap(),
        [(true, None)],
        "word on, disk untouched"
    );
    assert_eq!(bench.board.hurries.load(Ordering::SeqCst), 1);
    bench.flags.record_throw("t").unwrap();
    bench.board.seen.lock().unwrap().clear();

    let released = bench.flags.release_v1("t", bench.flags.throws()).unwrap();
    assert_eq!(
        released,
        Released {
            overtaken: false,
            applied: true
        }
    );
    assert_eq!(
        *bench.board.seen.lock().unwrap(),
        [(false, Some(false))],
        "disk off, then word"
    );
}

#[test]
fn the_kill_switch_does_not_wait_for_the_disk() {
    let bench = bench();
    bench.flags.apply_all().unwrap();
    // Somebody is writing, for as long as it takes.
    let disk = bench.flags.disk();
    assert!(bench.flags.throw_v1());
    assert!(bench.board.words.is_forced_v1());
    drop(disk);
}

#[test]
fn a_throw_during_a_release_wins() {
    let bench = bench();
    bench.flags.apply_all().unwrap();
    bench.flags.throw_v1();
    bench.flags.record_throw("t").unwrap();
    for _ in 0..200 {
        let flags = bench.flags.clone();
        let release = std::thread::spawn(move || flags.release_v1("off", flags.throws()).unwrap());
        bench.flags.throw_v1();
        bench.flags.record_throw("on").unwrap();
        let released = release.join().unwrap();
        let view = bench.flags.view();
        assert_eq!(view.force_v1, bench.board.words.is_forced_v1());
        let disk = bench
            .board
            .store
            .get_json::<Force>(TABLE, FORCE_ROW)
            .unwrap()
            .unwrap();
        assert_eq!(disk.on, view.force_v1);
        if released.overtaken {
            assert!(view.force_v1);
        }
        bench.flags.throw_v1();
        bench.flags.record_throw("t").unwrap();
    }
}

#[test]
fn a_throw_between_the_disk_and_the_word_of_a_release_stays() {
    let bench = bench();
    bench.flags.apply_all().unwrap();
    bench.flags.throw_v1();
    bench.flags.record_throw("t").unwrap();
    let recorded = bench
        .flags
        .record_release("t", bench.flags.throws())
        .unwrap();
    bench.flags.throw_v1();
    let released = bench.flags.apply_release(recorded);
    assert!(released.overtaken);
    assert!(bench.board.words.is_forced_v1() && bench.flags.view().force_v1);
    bench.flags.record_throw("t").unwrap();
    let disk = bench.board.store.get_json::<Force>(TABLE, FORCE_ROW);
    assert!(disk.unwrap().unwrap().on);
}

#[test]
fn in_force_is_what_the_words_say() {
    let bench = bench();
    assert!(!bench.flags.view().in_force, "fresh words are v1");
    bench.flags.apply_all().unwrap();
    assert!(bench.flags.view().in_force);
    // Somebody else's hand.
    bench.board.words.force_v1(true, 1);
    assert!(!bench.flags.view().in_force);
    bench.board.words.force_v1(false, 1);
    bench.board.words.set_component(Component::Hde, Version::V1);
    assert!(!bench.flags.view().in_force);
    bench.board.attached.store(false, Ordering::SeqCst);
    assert!(!bench.flags.view().in_force);
}

#[test]
fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    {
        let bench = open_at(&path, Arc::default());
        bench
            .flags
            .set("dwcp_v3_hde", None, Some(percent(12.5)), "alice")
            .unwrap();
        let other = NodeId::new("node-7").unwrap();
        bench
            .flags
            .exclude("dwcp_v3_amst", &[other], true, "bob")
            .unwrap();
        bench.flags.throw_v1();
        bench.flags.record_throw("carol").unwrap();
    }
    let bench = open_at(&path, Arc::default());
    bench.flags.apply_all().unwrap();
    assert!(bench.board.words.is_forced_v1());
    let hde = bench.flags.get("dwcp_v3_hde").unwrap().flag;
    assert_eq!((hde.enabled, hde.percentage), (true, percent(12.5)));
    assert_eq!(
        bench
            .flags
            .get("dwcp_v3_amst")
            .unwrap()
            .flag
            .excluded_nodes
            .len(),
        1
    );
    let by: Vec<String> = bench
        .flags
        .history()
        .unwrap()
        .into_iter()
        .map(|entry| entry.by)
        .collect();
    assert_eq!(by, ["carol", "bob", "alice"]);
}

#[test]
fn a_throw_that_was_never_recorded_is_adopted_and_a_recorded_release_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    let words: Arc<Switches> = Arc::default();
    {
        let bench = open_at(&path, words.clone());
        bench.flags.throw_v1();
        // The process dies before the throw reached the disk.
    }
    {
        let bench = open_at(&path, words.clone());
        bench.flags.apply_all().unwrap();
        assert!(words.is_forced_v1() && bench.flags.view().force_v1);
        assert_eq!(
            bench.flags.history().unwrap()[0].change,
            Change::ForceV1Adopted
        );
        // Released on disk; the process dies before the word was stored.
        bench.board.attached.store(false, Ordering::SeqCst);
        bench.flags.release_v1("t", bench.flags.throws()).unwrap();
        assert!(words.is_forced_v1());
    }
    let bench = open_at(&path, words.clone());
    bench.flags.apply_all().unwrap();
    assert!(!words.is_forced_v1() && !bench.flags.view().force_v1);
}

#[test]
fn without_a_data_plane_settings_are_kept_for_the_next() {
    let bench = bench();
    bench.board.attached.store(false, Ordering::SeqCst);
    assert!(!bench.flags.throw_v1());
    bench
        .flags
        .set("dwcp_v3_amst", Some(false), None, "t")
        .unwrap();
    assert_eq!(bench.flags.apply_all(), Err(NotAttached));
    bench.board.attached.store(true, Ordering::SeqCst);
    bench.flags.apply_all().unwrap();
    assert!(bench.board.words.is_forced_v1());
    bench.flags.release_v1("t", bench.flags.throws()).unwrap();
    assert_eq!(bench.board.words.component(Component::Amst), Version::V1);
    assert_eq!(bench.board.words.component(Component::Hde), Version::V3);
}

#[test]
fn the_history_is_bounded_and_keeps_the_newest() {
    let bench = bench();
    for number in 0..history::ENTRIES_MAX + 3 {
        let entry = Entry {
            number,
            at_unix_ms: 0,
            by: String::new(),
            change: Change::ForceV1 { force_v1: true },
        };
        bench
            .board
            .store
            .put_json(history::TABLE, &entry.row(), &entry)
            .unwrap();
    }
    let kept = bench.flags.history().unwrap();
    assert_eq!(kept.len() as u64, history::ENTRIES_MAX);
    assert_eq!(kept[0].number, history::ENTRIES_MAX + 2);
    assert_eq!(kept[kept.len() - 1].number, 3);
}

#[test]
fn bad_changes_are_refused_with_a_reason() {
    let bench = bench();
    assert!(matches!(
        bench.flags.get("dwcp_v3_x"),
        Err(FlagError::Unknown(_))
    ));
    let many: Vec<NodeId> = (0..=rule::EXCLUDED_MAX)
        .map(|id| NodeId::new(&format!("n{id}")).unwrap())
        .collect();
    let refused = bench.flags.exclude("dwcp_v3_hde", &many, true, "t");
    assert!(matches!(refused, Err(FlagError::TooMany { .. })));
    assert!(
        bench
            .flags
            .get("dwcp_v3_hde")
            .unwrap()
            .flag
            .excluded_nodes
            .is_empty()
    );
}

#[test]
fn what_the_cluster_agreed_on_is_adopted_once_and_in_order() {
    let Bench {
        flags,
        board,
        _folder,
    } = bench();
    let out = |names: &[&str]| -> BTreeSet<NodeId> {
        names
            .iter()
            .map(|name| NodeId::new(name).unwrap())
            .collect()
    };
    let adopt = |percentage, excluded: &[&str], generation| {
        flags
            .adopt(
                "dwcp_v3_hde",
                Some((true, percent(percentage))),
                &out(excluded),
                generation,
                "other",
            )
            .unwrap();
    };
    adopt(0.0, &["a", "b"], 3);
    let flag = flags.get("dwcp_v3_hde").unwrap().flag;
    assert_eq!(
        (flag.percentage, flag.excluded_nodes.len()),
        (percent(0.0), 2)
    );
    assert_eq!(board.words.component(Component::Hde), Version::V1);
    adopt(100.0, &["b"], 2);
    assert_eq!(
        flags.get("dwcp_v3_hde").unwrap().flag,
        flag,
        "older than what is in force"
    );
    adopt(100.0, &["b"], 4);
    let flag = flags.get("dwcp_v3_hde").unwrap().flag;
    assert_eq!(
        (flag.percentage, flag.excluded_nodes.len()),
        (percent(100.0), 1)
    );
    assert_eq!(board.words.component(Component::Hde), Version::V3);
    let entries = flags.history().unwrap().len();
    adopt(100.0, &["b"], 5);
    assert_eq!(
        flags.history().unwrap().len(),
        entries,
        "nothing was changed"
    );
}
