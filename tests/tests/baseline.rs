//! Two data planes that keep baselines: a guest whose pages both have on disk crosses in little, damaged or
//! foreign blocks change nothing but the cost, and a guest that comes back is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use dwcp_api::command::Command;
use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, SessionState};
use dwcp_baseline::image::Image;
use dwcp_baseline::{Kind, Limits, ManifestId, Store, Tenant};
use dwcp_dataplane::config::{BaselineConfig, Config};
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

const PAGES: usize = 1500;
const LIMITS: Limits = Limits {
    bytes_max: 64 << 20,
    migrations_max: 2,
};

/// A guest's disk, and its memory: two thirds of its pages are blocks of the disk, out of order.
struct Machine {
    disk: Vec<u8>,
    memory: Vec<[u8; 4096]>,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let disk = noise(seed, PAGES * 4096);
        let own = noise(seed + 1, PAGES * 4096);
        let (disk_blocks, own_pages) = (disk.as_chunks().0, own.as_chunks().0);
        let memory = (0..PAGES).map(|page| match page % 3 {
            0 => own_pages[page],
            _ => disk_blocks[(page / 40 * 40 + page * 7 % 40).min(PAGES - 1)],
        });
        let memory = memory.collect();
        Self { disk, memory }
    }

    fn stream(&self) -> Vec<u8> {
        let pages: Vec<(u64, &[u8; 4096])> = (0..).zip(&self.memory).collect();
        StreamBuilder::precopy(&pages, &noise(77, 20_000))
    }
}

/// Adds the disk to the store in `dir`, as an image of its own.
fn add_disk(dir: &Path, machine: &Machine, tenant: &str) -> ManifestId {
    let image = dir.with_extension("img");
    std::fs::write(&image, &machine.disk).unwrap();
    let store = Store::open(dir, LIMITS).unwrap();
    let mut blocks = Image::open(&image, None, &store).unwrap();
    let tenant = Tenant::new(tenant).unwrap();
    let added = store.add(&tenant, (Kind::Image, "disk"), &mut blocks, &mut |_| true);
    added.unwrap().id
}

fn flip_everywhere(dir: &Path, every: u64) {
    for entry in std::fs::read_dir(dir.join("tenants/default")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "blocks") {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            for at in (0..file.metadata().unwrap().len()).step_by(every as usize * 4096) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at + 9).unwrap();
                file.write_all_at(&[byte[0] ^ 0x20], at + 9).unwrap();
            }
        }
    }
}

/// The folders of both stores.
struct Dirs {
    _dir: tempfile::TempDir,
    of: [PathBuf; 2],
}

impl Dirs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let of = ["a", "b"].map(|name| dir.path().join(name));
        Self { _dir: dir, of }
    }

    fn swapped(&self) -> [&Path; 2] {
        [&self.of[1], &self.of[0]]
    }

    fn both(&self) -> [&Path; 2] {
        [&self.of[0], &self.of[1]]
    }
}

/// Carries the machine once, and gives the source's last picture and how often a batch came again.
fn carry(dirs: [&Path; 2], machine: &Machine) -> (SessionSnapshot, u64) {
    let keeps = |config: &mut Config, dir: &Path| {
        config.baseline = Some(BaselineConfig {
            dir: dir.to_owned(),
            max_bytes: LIMITS.bytes_max,
            keep_migrations: LIMITS.migrations_max,
        });
    };
    let pair = Pair::start_with(PairOptions::default(), |a, b| {
        keeps(a, dirs[0]);
        keeps(b, dirs[1]);
    });
    let [mut source, destination] =
        [pair.source_control(), pair.destination_control()].map(|path| Plane::attach(&path));
    source.allow_v3(true);
    let stream = machine.stream();
    let mut client = pair.connect();
    client.write_all(&stream[..64]).unwrap();
    let mut server = pair.accept();
    // A line as thin as those for which it pays.
    let limit = Command::Limit {
        session: source.sessions()[0].id,
        rate_limit_bytes_per_s: 8_000_000,
    };
    assert_eq!(source.command(&limit).0, Failure::None);
    // Both have spoken by then, unless there is nothing to say.
    let of = |plane: &Plane| {
        plane
            .sessions()
            .first()
            .is_some_and(|picture| picture.baselines > 0)
    };
    let _ = poll_until(Duration::from_secs(2), || {
        (of(&source) && of(&destination)).then_some(())
    });
    let sent = stream.clone();
    let writer = thread::spawn(move || {
        client.write_all(&sent[64..]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(
        got == stream,
        "{} bytes in, {} out",
        stream.len(),
        got.len()
    );
    drop(server);
    writer.join().unwrap();
    let over = |picture: &SessionSnapshot| picture.state() == Some(SessionState::Completed);
    let picture = source.wait("its end", over);
    destination.wait("its end", over);
    let misses = source.counter_of(0, "baseline_misses_total");
    drop((source, destination));
    pair.stop();
    (picture, misses)
}

fn migrations(dir: &Path) -> Vec<ManifestId> {
    let store = Store::open(dir, LIMITS).unwrap();
    let list = store.list(&Tenant::default()).unwrap();
    let kept = list
        .iter()
        .filter(|summary| summary.kind == Kind::Migration);
    kept.map(|summary| summary.id).collect()
}

/// Known pages of those that were looked at. Until the line is known to be thin, pages pass as they are.
fn known(picture: &SessionSnapshot) -> f64 {
    picture.pages_known as f64 / picture.pages.max(1) as f64
}

#[test]
fn pages_that_both_have_on_disk_do_not_travel_and_a_guest_that_comes_back_is_known() {
    let dirs = Dirs::new();
    let machine = Machine::new(1);
    for dir in dirs.both() {
        add_disk(dir, &machine, "default");
    }
    let (first, misses) = carry(dirs.both(), &machine);
    assert_eq!((first.baselines, misses), (1, 0), "{first:?}");
    assert!(
        first.wire_bytes_sent < first.hypervisor_bytes_in * 4 / 5,
        "{first:?}"
    );
    assert!(known(&first) > 0.6 && known(&first) < 0.7, "{first:?}");
    // Both ends have kept the same pages, under the same name.
    let [here, there] = dirs.both().map(migrations);
    assert!(here == there && here.len() == 1, "{here:?} {there:?}");
    let (back, misses) = carry(dirs.swapped(), &machine);
    assert_eq!((back.baselines, misses), (2, 0), "{back:?}");
    assert!(known(&back) > 0.72, "{back:?}");
    // Another guest of the same image brings its own pages alone.
    let other = Machine {
        memory: machine.memory.iter().rev().copied().collect(),
        ..Machine::new(1)
    };
    let (other, _) = carry(dirs.both(), &other);
    assert!(known(&other) > 0.72, "{other:?}");
}

#[test]
fn damaged_blocks_are_fetched_and_put_right() {
    let dirs = Dirs::new();
    let machine = Machine::new(2);
    let ids = dirs.both().map(|dir| add_disk(dir, &machine, "default"));
    assert_eq!(ids[0], ids[1]);
    flip_everywhere(&dirs.of[1], 5);
    let damaged = || {
        let store = Store::open(&dirs.of[1], LIMITS).unwrap();
        store
            .verify(&Tenant::default(), ids[1], &mut |_| true)
            .unwrap()
            .damaged
    };
    let before = damaged();
    let (picture, misses) = carry(dirs.both(), &machine);
    assert!(
        picture.pages_known > 0 && misses > 0,
        "{misses} {picture:?}"
    );
    assert!(damaged() < before, "{} of {before}", damaged());
}

#[test]
fn another_tenants_baseline_is_as_good_as_none() {
    let dirs = Dirs::new();
    let machine = Machine::new(3);
    add_disk(&dirs.of[0], &machine, "default");
    add_disk(&dirs.of[1], &machine, "other");
    let (picture, _) = carry(dirs.both(), &machine);
    assert_eq!((picture.baselines, picture.pages_known), (0, 0));
}
