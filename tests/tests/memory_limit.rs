//! The memory of all sessions of a data plane: it never passes its limit, comes back, and a session that has to do
//! with less of it carries the same bytes.
//!
//! In: data planes in this process with small limits, announced and unannounced sessions. Out: a panic that says what
//! was reserved when.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use dwcp_api::command::{Command, SessionLimits};
use dwcp_api::text::Text;
use dwcp_api::{Failure, SessionId, Version};
use dwcp_dataplane::config::Config;
use dwcp_dataplane::session::memory::{STORE_BYTES_LEAST, SessionSize, WINDOW_BYTES_LEAST};
use dwcp_dataplane::transport::CHANNEL_GUARANTEE_BYTES;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;
use dwcp_tests::streams::{ends_well, pages};

const PATIENCE: Duration = Duration::from_secs(60);

fn size(
    is_source: bool,
    encoders: usize,
    store_bytes: u64,
    window_limit_bytes: u64,
) -> SessionSize {
    SessionSize {
        is_source,
        encoders,
        store_bytes,
        window_limit_bytes,
    }
}

fn reserved(plane: &Plane) -> u64 {
    let reserved = plane.counter_of(0, "memory_reserved_bytes");
    let limit = plane.counter_of(0, "memory_limit_bytes");
    assert!(
        reserved <= limit,
        "{reserved} of {limit} bytes are reserved"
    );
    reserved
}

/// Waits until so much is reserved: the figure is shown a turn after the fact.
fn wait_reserved(plane: &Plane, what: &str, wanted: u64) {
    let found = poll_until(PATIENCE, || (reserved(plane) == wanted).then_some(()));
    assert!(
        found.is_some(),
        "{what}: {} bytes are reserved, not {wanted}; {:#?}",
        reserved(plane),
        plane.sessions()
    );
}

/// Both with the limits that nobody changed, but for the memory of all sessions.
fn pair(source_bytes: u64, destination_bytes: u64) -> Pair {
    let defaults = Config::default();
    let options = PairOptions {
        window_limit_bytes: defaults.window_limit_bytes,
        ..PairOptions::default()
    };
    Pair::start_with(options, |a, b| {
        for (config, bytes) in [(a, source_bytes), (b, destination_bytes)] {
            config.store_bytes = defaults.store_bytes;
            config.memory_limit_bytes = bytes;
            config.encoders = Some(1);
        }
    })
}

fn open_source(plane: &mut Plane, folder: &Path, id: u8) -> (Failure, String) {
    let listen = folder.join(format!("{id}.sock"));
    plane.command(&Command::OpenSource {
        session: SessionId([id; 16]),
        listen: Text::new(listen.to_str().unwrap()).unwrap(),
        // Nobody is there: it waits for its peer.
        peer: Text::new("127.0.0.1:9").unwrap(),
        peer_node: Text::EMPTY,
        max_version: Version::V3,
        limits: SessionLimits::default(),
    })
}

#[test]
fn sessions_are_opened_until_the_memory_is_reserved_and_again_when_one_has_ended() {
    let defaults = Config::default();
    let limit = 1_400_000_000;
    let pair = pair(limit, limit);
    let folder = tempfile::tempdir().unwrap();
    let mut plane = Plane::attach(&pair.source_control());
    let whole = size(true, 1, defaults.store_bytes, defaults.window_limit_bytes);
    let least_bytes = whole.least().bytes();
    let mut expected = 0;
    let mut open = 0;
    let refusal = loop {
        let left = limit - expected;
        let (failure, detail) = open_source(&mut plane, folder.path(), open + 1);
        if left < least_bytes {
            assert_eq!(failure, Failure::Limit, "{detail}");
            break detail;
        }
        assert_eq!(failure, Failure::None, "{detail}");
        let room = (left / 2).max(least_bytes);
        expected += whole.fitted(room).unwrap().bytes();
        open += 1;
        wait_reserved(&plane, "one more", expected);
    };
    assert!(open >= 3, "{open} sessions");
    for cure in ["wait for a migration to end", "raise memory_limit_bytes"] {
        assert!(refusal.contains(cure), "{refusal}");
    }
    // The same order again takes nothing.
    assert_eq!(open_source(&mut plane, folder.path(), 1).0, Failure::None);
    wait_reserved(&plane, "no more", expected);
    // The first, which was given all that it could use.
    plane.command(&Command::Cancel {
        session: SessionId([1; 16]),
    });
    wait_reserved(&plane, "one less", expected - whole.bytes());
    let (failure, detail) = open_source(&mut plane, folder.path(), open + 1);
    assert_eq!(failure, Failure::None, "{detail}");
    for id in 2..=open + 1 {
        plane.command(&Command::Cancel {
            session: SessionId([id; 16]),
        });
    }
    wait_reserved(&plane, "all have ended", 0);
    drop(plane);
    pair.stop();
}

/// The two ends of a stream that is under way.
fn begin(socket: &Path, pair: &Pair, stream: &[u8]) -> (UnixStream, UnixStream) {
    let mut client = UnixStream::connect(socket).unwrap();
    client.write_all(&stream[..64]).unwrap();
    (client, pair.accept())
}

fn finish((mut client, mut server): (UnixStream, UnixStream), stream: &[u8]) {
    let mut got = stream[..64].to_vec();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&stream[64..]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut first = vec![0; 64];
        server.read_exact(&mut first).unwrap();
        assert_eq!(first, got);
        server.read_to_end(&mut got).unwrap();
    });
    ends_well(stream, &got, client, server);
}

#[test]
fn a_session_that_is_opened_small_carries_the_same_bytes_and_the_other_end_takes_no_more() {
    // Half of it is less than the least, which fits once.
    for (source_bytes, destination_bytes) in
        [(2_000_000_000, 300_000_000), (300_000_000, 2_000_000_000)]
    {
        let pair = pair(source_bytes, destination_bytes);
        let [source, destination] =
            [pair.source_control(), pair.destination_control()].map(|at| Plane::attach(&at));
        source.allow_v3(true);
        // More pages than the small history has, sent twice, the second time in another order.
        let mut stream = pages(3, 10_000);
        stream.extend_from_slice(&noise(4, 3_000_000));
        let ends = begin(&pair.passive_socket(), &pair, &stream);
        let limit = WINDOW_BYTES_LEAST + CHANNEL_GUARANTEE_BYTES;
        source.wait("the small window", |picture| {
            picture.channels == 1 && picture.held_bytes_limit == limit
        });
        let small = |is_source| size(is_source, 1, STORE_BYTES_LEAST, WINDOW_BYTES_LEAST).bytes();
        wait_reserved(&source, "what both agreed on", small(true));
        wait_reserved(&destination, "what both agreed on", small(false));
        finish(ends, &stream);
        wait_reserved(&source, "the end", 0);
        wait_reserved(&destination, "the end", 0);
        drop((source, destination));
        pair.stop();
    }
}

#[test]
fn a_peer_that_finds_no_memory_here_is_told_and_let_in_when_another_has_left() {
    let least = size(false, 0, STORE_BYTES_LEAST, WINDOW_BYTES_LEAST).bytes();
    let pair = pair(2_000_000_000, 2 * least + least / 2);
    let here = Plane::attach(&pair.destination_control());
    let stream = pages(5, 3_000);
    let others: Vec<_> = ["c", "d", "e"]
        .map(|node| pair.add_source_with(node, |_| ()))
        .into();
    let first = begin(&others[0].1, &pair, &stream);
    wait_reserved(&here, "one, that agreed on the least", least);
    let second = begin(&others[1].1, &pair, &stream);
    wait_reserved(&here, "two", 2 * least);

    let (_, socket, control) = &others[2];
    let there = Plane::attach(control);
    let mut refused = UnixStream::connect(socket).unwrap();
    refused.write_all(&stream[..64]).unwrap();
    let picture = there.wait("a refusal", |picture| {
        picture.state().is_some_and(|state| state.is_final())
    });
    assert_eq!(picture.failure(), Failure::Refused);
    let detail = picture.detail.as_str();
    assert!(
        detail.contains("wait for one to end or raise the limit"),
        "{detail}"
    );
    // Its hypervisor goes on.
    assert_eq!(refused.read(&mut [0; 8]).unwrap_or(0), 0);
    wait_reserved(&there, "the refused one", 0);
    wait_reserved(&here, "two", 2 * least);

    finish(first, &stream);
    wait_reserved(&here, "one", least);
    let third = begin(socket, &pair, &stream);
    wait_reserved(&here, "two again", 2 * least);
    finish(third, &stream);
    finish(second, &stream);
    wait_reserved(&here, "none", 0);
    drop((here, there));
    for (engine, ..) in others {
        engine.stop();
    }
    pair.stop();
}
