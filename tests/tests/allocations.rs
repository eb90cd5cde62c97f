//! In the steady state a worker takes no memory: two data planes in this process carry a stream, and every
//! allocation that one of their workers makes is counted.
//!
//! In: pages of every kind, in v1 and in v3. Out: a panic that says how many allocations were made over how
//! many batches. The counting begins when the session is warm: until then buffers are taken once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::pki::{Authority, Kind};
use dwcp_tests::plane::Plane;

/// Counts what workers allocate while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Size of the last one, bytes: where to begin to look.
static LAST_BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Is this a data plane's worker? By the name of the thread, asked of the system, for asking the standard
/// library could allocate.
fn is_worker() -> bool {
    IS_WORKER.with(|known| {
        if !known.get() {
            let mut name = [0u8; 16];
            // SAFETY: needed because the allocator may not allocate; PR_GET_NAME writes at most 16 bytes.
            unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
            known.set(name.starts_with(b"worker-"));
        }
        known.get()
    })
}

fn note(layout: Layout) {
    if COUNTS.load(Ordering::Relaxed) && is_worker() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LAST_BYTES.store(layout.size() as u64, Ordering::Relaxed);
    }
}

// SAFETY: needed to count; every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(layout);
        // SAFETY: as promised by our caller.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pages of the warm-up and of each half that is counted.
const PAGES: usize = 12_000;

/// A stream whose pages are new, repeated, changed a little or zero. The content comes round again, so that
/// the second half is like the first.
fn stream() -> Vec<u8> {
    let bytes = noise(77, 256 * 4096);
    let mut contents: Vec<[u8; 4096]> = bytes
        .chunks_exact(4096)
        .map(|chunk| chunk.try_into().unwrap())
        .collect();
    for (index, page) in contents.iter_mut().enumerate() {
        match index % 8 {
            0 => page.fill(0),
            1 | 2 => page[600..].fill(index as u8),
            _ => {}
        }
    }
    let pages: Vec<(u64, &[u8; 4096])> = (0..2 * PAGES)
        .map(|n| ((n % 9_000) as u64, &contents[n * 7 % contents.len()]))
        .collect();
    StreamBuilder::precopy(&pages, &noise(5, 1000))
}

fn batches(plane: &Plane) -> u64 {
    plane.counter_of(0, "batches_v1_total") + plane.counter_of(0, "batches_v3_total")
}

fn carry_and_count(version: u32, over_tls: bool) {
    let options = PairOptions {
        source_version: version,
        destination_version: version,
        ..PairOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::new(&dir.path().join("pki"));
    for node in ["a", "b"] {
        authority.issue(node, Kind::Good);
    }
    let pair = Pair::start_with(options, |a, b| {
        a.tls = over_tls.then(|| authority.table("a"));
        b.tls = over_tls.then(|| authority.table("b"));
    });
    let plane = Plane::attach(&pair.source_control());
    plane.allow_v3(version == 3);
    let stream = stream();
    let half = stream.len() / 2;
    let mut client = pair.connect();
    client.write_all(&stream[..64]).unwrap();
    let mut server = pair.accept();
    let reader = thread::spawn(move || {
        let mut chunk = vec![0; 1 << 20];
        let mut hash = blake3::Hasher::new();
        loop {
            match server.read(&mut chunk).unwrap() {
                0 => return *hash.finalize().as_bytes(),
                bytes => {
                    hash.update(&chunk[..bytes]);
                }
            }
        }
    });
    client.write_all(&stream[64..half]).unwrap();
    let before = batches(&plane);
    COUNTS.store(true, Ordering::SeqCst);
    // All but the end: there is nothing steady about that.
    client
        .write_all(&stream[half..stream.len() - 2000])
        .unwrap();
    COUNTS.store(false, Ordering::SeqCst);
    let carried = batches(&plane) - before;
    let allocations = ALLOCATIONS.load(Ordering::SeqCst);
    client.write_all(&stream[stream.len() - 2000..]).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(reader.join().unwrap() == *blake3::hash(&stream).as_bytes());
    drop(plane);
    drop(client);
    pair.stop();
    assert!(carried > 50, "only {carried} batches were carried");
    assert_eq!(
        allocations,
        0,
        "the workers allocated {allocations} times over {carried} batches, {} bytes the last time",
        LAST_BYTES.load(Ordering::SeqCst)
    );
}

// One test a process: the counter is the process's.
#[test]
fn a_worker_takes_no_memory_for_a_batch_of_v1() {
    carry_and_count(1, false);
}

#[test]
fn a_worker_takes_no_memory_for_a_batch_of_v3() {
    carry_and_count(3, false);
}

#[test]
fn a_worker_takes_no_memory_for_an_encrypted_batch() {
    carry_and_count(3, true);
}
