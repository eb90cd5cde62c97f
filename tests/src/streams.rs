//! Streams like a hypervisor's, and carrying one between the two nodes of a [`Pair`].
//!
//! In: a seed, a pair. Out: bytes; what they ran over. Promise: what arrives is compared with what was sent,
//! byte for byte.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has nothing better to do than to stop"
)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::thread;

use dwcp_api::session::DRIVER_NAMES;
use dwcp_dataplane::stream::testing::StreamBuilder;

use crate::pair::{Pair, noise};
use crate::plane::Plane;

/// A main channel with so many pages, and device state behind them.
#[must_use]
pub fn pages(seed: u64, count: u64) -> Vec<u8> {
    let bytes = noise(seed, 64 * 4096);
    let contents: Vec<[u8; 4096]> = bytes
        .chunks_exact(4096)
        .map(|chunk| chunk.try_into().unwrap())
        .collect();
    let sent: Vec<(u64, &[u8; 4096])> = (0..count)
        .map(|n| (n, &contents[(n * 13 % 64) as usize]))
        .collect();
    StreamBuilder::precopy(&sent, &noise(seed + 9, 50_000))
}

/// Carries `stream` one way and a word back; gives the name of what it ran over and how often it fell back.
#[must_use]
pub fn carry(pair: &Pair, stream: &[u8]) -> (&'static str, u64) {
    carry_through(pair, stream, || ())
}

/// The same; `trouble` comes while the stream is under way: a part arrived, the rest is not sent yet.
#[must_use]
pub fn carry_through(
    pair: &Pair,
    stream: &[u8],
    trouble: impl FnOnce() + Send,
) -> (&'static str, u64) {
    let plane = Plane::attach(&pair.source_control());
    plane.allow_v3(true);
    let before: Vec<_> = plane.sessions().iter().map(|picture| picture.id).collect();
    let mut client = pair.connect();
    client.write_all(&stream[..64]).unwrap();
    let mut server = pair.accept();
    let mut writer = client.try_clone().unwrap();
    let (early, late) = stream[64..].split_at(stream.len() / 2);
    let mut got = vec![0; 64 + early.len() / 2];
    thread::scope(|scope| {
        let (part_arrived, arrival) = channel();
        scope.spawn(move || {
            writer.write_all(early).unwrap();
            arrival.recv().unwrap();
            trouble();
            writer.write_all(late).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        server.read_exact(&mut got).unwrap();
        part_arrived.send(()).unwrap();
        server.read_to_end(&mut got).unwrap();
    });
    ends_well(stream, &got, client, server);
    let picture = plane.wait("a session", |picture| {
        picture.channels == 1 && !before.contains(&picture.id)
    });
    (
        DRIVER_NAMES[picture.driver as usize],
        picture.driver_fallbacks,
    )
}

/// What came is what was sent, and a word comes back.
pub fn ends_well(stream: &[u8], got: &[u8], mut client: impl Read, mut server: impl Write) {
    assert!(
        got == stream,
        "{} bytes in, {} out",
        stream.len(),
        got.len()
    );
    server.write_all(b"word").unwrap();
    drop(server);
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"word");
}
