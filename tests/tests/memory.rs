//! What a session takes: two data planes in this process with the settings that nobody changed carry a guest that
//! is larger than their page histories.
//!
//! In: the memory that the kernel counts for this process, ordinary and hugepages, before and while the session is
//! there. Out: a panic that says how much it took. Each of the two sides may have 512 MB, and no more than it has
//! reserved.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::thread;

use dwcp_dataplane::config::Config;
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

/// Bytes that one side of a session may take.
const SIDE_BYTES_MAX: u64 = 512_000_000;

/// What the kernel counts for this process now: pages that are present, and hugepages.
fn taken_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name));
        let words = line.and_then(|line| line.split_whitespace().nth(1));
        words.map_or(0, |kib| kib.parse().unwrap())
    };
    (kib("VmRSS:") + kib("HugetlbPages:")) * 1024
}

#[test]
fn a_session_with_settings_that_nobody_changed_stays_within_its_memory() {
    let defaults = Config::default();
    let pages = defaults.store_bytes / 4096 * 9 / 8;
    // Half of each page is noise, the same in all, so that the stream is quick to make and no page is another.
    let filling = noise(3, 2048);
    let bodies: Vec<[u8; 4096]> = (0..pages)
        .map(|index| {
            let mut page = [0; 4096];
            page[..2048].copy_from_slice(&filling);
            page[2048..2056].copy_from_slice(&(index + 1).to_le_bytes());
            page
        })
        .collect();
    let numbered: Vec<(u64, &[u8; 4096])> = (0..pages).zip(&bodies).collect();
    let stream = StreamBuilder::precopy(&numbered, &noise(5, 1000));
    let options = PairOptions {
        window_limit_bytes: defaults.window_limit_bytes,
        ..PairOptions::default()
    };
    let pair = Pair::start_with(options, |a, b| {
        for config in [a, b] {
            config.store_bytes = defaults.store_bytes;
            config.hugepages = defaults.hugepages;
            config.lanes_v3 = defaults.lanes_v3;
            config.lanes_max = defaults.lanes_max;
        }
    });
    let planes = [pair.source_control(), pair.destination_control()].map(|at| Plane::attach(&at));
    let before = taken_bytes();
    let mut client = pair.connect();
    client.write_all(&stream[..64]).unwrap();
    let mut server = pair.accept();
    let reader = thread::spawn(move || {
        let mut chunk = vec![0; 1 << 20];
        let (mut bytes, mut most) = (0, 0);
        loop {
            match server.read(&mut chunk).unwrap() {
                0 => return (bytes, most),
                read => bytes += read,
            }
            most = most.max(taken_bytes());
        }
    });
    planes[1].wait("a session", |picture| picture.channels == 1);
    let reserved = || -> u64 {
        let of = |plane: &Plane| plane.counter_of(0, "memory_reserved_bytes");
        planes.iter().map(of).sum()
    };
    client.write_all(&stream[64..]).unwrap();
    let reserved = reserved();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let (bytes, most) = reader.join().unwrap();
    assert_eq!(bytes, stream.len());
    let took = most - before;
    println!("both sides of a session together took {took} bytes");
    assert!(
        took > 2 * defaults.store_bytes,
        "{took} bytes: the page histories were not filled, so this proves nothing"
    );
    assert!(
        took <= 2 * SIDE_BYTES_MAX,
        "both sides of a session together took {took} bytes"
    );
    assert!(
        took <= reserved && reserved <= 2 * SIDE_BYTES_MAX,
        "{took} bytes were taken of {reserved} that are reserved"
    );
    drop(planes);
    drop(client);
    pair.stop();
}
