//! A session that goes on while a test does its worst next to it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_api::SessionId;
use dwcp_dataplane::stream::testing::{RAM_SECTION, StreamBuilder};
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, noise};
use dwcp_tests::plane::Plane;

const PATIENCE: Duration = Duration::from_secs(60);
const PAGES: u64 = 16;

/// See the module.
pub struct Beside {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<blake3::Hash>,
    receiver: JoinHandle<blake3::Hash>,
}

/// The beginning of a migration, to its first page.
pub fn head() -> Vec<u8> {
    let mut head = StreamBuilder::new();
    head.command(1, &[]).command(2, &1u32.to_be_bytes());
    head.ram_start(&[("pc.ram", PAGES * 4096)])
        .part(RAM_SECTION);
    let page: [u8; 4096] = noise(1, 4096).try_into().unwrap();
    head.page(Some("pc.ram"), 0, &page);
    head.finish()
}

/// Some pages; `round` makes them differ a little.
fn pages(round: u64) -> Vec<u8> {
    let mut pages = StreamBuilder::empty();
    for index in 0..PAGES {
        let mut page: [u8; 4096] = noise(index + 1, 4096).try_into().unwrap();
        page[..8].copy_from_slice(&round.to_le_bytes());
        pages.page(None, index, &page);
    }
    pages.finish()
}

fn tail() -> Vec<u8> {
    let mut tail = StreamBuilder::empty();
    tail.ram_eos()
        .command(11, &[])
        .ram_end()
        .device_tail(&noise(77, 20_000));
    tail.finish()
}

impl Beside {
    /// Begins, and waits until bytes arrive.
    pub fn start(pair: &Pair) -> Self {
        let mut client = pair.connect();
        client.write_all(&head()).unwrap();
        let server = pair.accept();
        let (stop, received) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        let sender = std::thread::spawn(move || send(client, &stopped));
        let receiver = std::thread::spawn(move || receive(server, &count));
        let beside = Self {
            stop,
            received,
            sender,
            receiver,
        };
        beside.check_moves();
        beside
    }

    /// More bytes arrive.
    pub fn check_moves(&self) {
        let before = self.received.load(Ordering::Relaxed);
        let moved = poll_until(PATIENCE, || {
            (self.received.load(Ordering::Relaxed) > before + 300_000).then_some(())
        });
        assert!(
            moved.is_some(),
            "the session beside stands still at {before} bytes"
        );
    }

    /// Lets it end: both ends have completed it and every byte arrived as it was sent.
    pub fn finish(self, source: &Plane, destination: &Plane, id: SessionId) {
        self.check_moves();
        self.stop.store(true, Ordering::Relaxed);
        let (sent, got) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        assert_eq!(sent, got, "the session beside was harmed");
        for plane in [source, destination] {
            let end = plane.wait_over(id);
            assert_eq!(
                end.state(),
                Some(dwcp_api::SessionState::Completed),
                "{end:#?}"
            );
        }
    }
}

fn send(mut client: UnixStream, stop: &AtomicBool) -> blake3::Hash {
    let mut sent = blake3::Hasher::new();
    sent.update(&head());
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let pages = pages(round);
        client
            .write_all(&pages)
            .expect("the session beside was closed");
        sent.update(&pages);
        std::thread::sleep(Duration::from_millis(4));
    }
    let tail = tail();
    client.write_all(&tail).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"done");
    sent.update(&tail);
    sent.finalize()
}

fn receive(mut server: UnixStream, count: &AtomicU64) -> blake3::Hash {
    let mut got = blake3::Hasher::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        let bytes = server
            .read(&mut chunk)
            .expect("the session beside was reset");
        if bytes == 0 {
            server.write_all(b"done").unwrap();
            return got.finalize();
        }
        got.update(&chunk[..bytes]);
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A pair with a session at work, and a control plane at each node.
pub struct Stage {
    /// The nodes.
    pub pair: Pair,
    /// At the sending node.
    pub source: Plane,
    /// At the receiving node.
    pub destination: Plane,
    /// The session at work.
    pub beside: Beside,
    /// Its id.
    pub id: SessionId,
}

impl Stage {
    /// Sets the stage.
    pub fn start(options: dwcp_tests::pair::PairOptions) -> Self {
        Self::around(Pair::start(options))
    }

    /// Sets it around these nodes.
    pub fn around(pair: Pair) -> Self {
        let source = Plane::attach(&pair.source_control());
        let destination = Plane::attach(&pair.destination_control());
        source.allow_v3(true);
        let beside = Beside::start(&pair);
        let id = source.wait("the session beside", |_| true).id;
        Self {
            pair,
            source,
            destination,
            beside,
            id,
        }
    }

    /// The session beside ends well and so do both nodes.
    pub fn finish(self) {
        let Self {
            pair,
            source,
            destination,
            beside,
            id,
        } = self;
        beside.finish(&source, &destination, id);
        assert!(!pair.is_broken(), "a worker ended");
        pair.stop();
    }
}

/// Memory of this process that is in use, bytes.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}
