//! Two data planes in one process carry streams between real UNIX sockets, unannounced: what goes in
//! comes out, both ways, on every version and however many connections there are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use dwcp_api::SessionState;
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

/// A main channel with pages of every kind: new, repeated, changed a little, zero.
fn main_stream(seed: u64, pages: u64) -> Vec<u8> {
    let bytes = noise(seed, 64 * 4096);
    let contents: Vec<[u8; 4096]> = bytes
        .chunks_exact(4096)
        .enumerate()
        .map(|(index, chunk)| {
            let mut page: [u8; 4096] = chunk.try_into().unwrap();
            if index % 3 == 0 {
                page[100..].fill(index as u8);
            }
            if index % 7 == 0 {
                page.fill(0);
            }
            page
        })
        .collect();
    let mut changed = contents.clone();
    for (index, page) in changed.iter_mut().enumerate() {
        page[index * 8] ^= 0x55;
    }
    let sent: Vec<(u64, &[u8; 4096])> = (0..pages)
        .map(|n| {
            let round = if n < pages / 2 { &contents } else { &changed };
            (n % (pages / 2).max(1), &round[(n * 13 % 64) as usize])
        })
        .collect();
    StreamBuilder::precopy(&sent, &noise(seed + 9, 50_000))
}

fn carry(options: PairOptions, streams: &[Vec<u8>], answer: &[u8]) {
    let pair = Pair::start(options);
    let mut clients = Vec::new();
    for stream in streams {
        let mut client = pair.connect();
        // The hypervisor's first bytes say what the connection is, so order is kept by sending them.
        client.write_all(&stream[..64.min(stream.len())]).unwrap();
        let server = pair.accept();
        clients.push((client, server));
    }
    let mut handles = Vec::new();
    for ((mut client, mut server), stream) in clients.into_iter().zip(streams.to_vec()) {
        let answer = answer.to_vec();
        let mut writer = client.try_clone().unwrap();
        let sent = stream.clone();
        handles.push(thread::spawn(move || {
            writer.write_all(&sent[64.min(sent.len())..]).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            back
        }));
        handles.push(thread::spawn(move || {
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            assert!(
                got == stream,
                "{} bytes in, {} bytes out",
                stream.len(),
                got.len()
            );
            server.write_all(&answer).unwrap();
            answer
        }));
    }
    for handle in handles {
        assert_eq!(handle.join().unwrap(), answer);
    }
    pair.stop();
}

#[test]
fn a_main_channel_arrives_as_it_was_sent() {
    carry(
        PairOptions::default(),
        &[main_stream(1, 5_000)],
        b"return path",
    );
}

#[test]
fn a_v1_only_node_works_with_a_v3_node_both_ways() {
    for (source, destination) in [(1, 3), (3, 1), (1, 1)] {
        let options = PairOptions {
            source_version: source,
            destination_version: destination,
            ..PairOptions::default()
        };
        carry(options, &[main_stream(2, 2_000)], b"x");
    }
}

#[test]
fn bytes_that_nobody_understands_arrive_too() {
    carry(PairOptions::default(), &[noise(3, 20_000_000)], b"");
}

#[test]
fn several_connections_of_one_session_are_kept_apart() {
    let mut streams = vec![main_stream(4, 100)];
    for channel in 0..4u8 {
        let mut bytes = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
        bytes.extend(noise(u64::from(channel) + 5, 3_000_000));
        streams.push(bytes);
    }
    carry(PairOptions::default(), &streams, b"");
}

#[test]
fn while_the_hypervisors_are_silent_the_workers_sleep() {
    // A doorbell that rang at the wrong moment once kept a worker awake for the rest of its session: not
    // in every session, hence several.
    for _ in 0..6 {
        let pair = Pair::start(PairOptions::default());
        let planes =
            [pair.source_control(), pair.destination_control()].map(|path| Plane::attach(&path));
        let mut client = pair.connect();
        client.write_all(&main_stream(5, 20)).unwrap();
        let mut server = pair.accept();
        server
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut first = [0; 4096];
        server.read_exact(&mut first).unwrap();
        thread::sleep(Duration::from_millis(200));
        let turns = || {
            planes
                .each_ref()
                .map(|plane| plane.counter_of(0, "turns_busy"))
        };
        let before = turns();
        thread::sleep(Duration::from_millis(300));
        let after = turns();
        for (before, after) in before.into_iter().zip(after) {
            // Timers and keep-alives only.
            assert!(
                after - before < 300,
                "{} busy turns in 300 ms of silence",
                after - before
            );
        }
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        drop((client, server, planes));
        pair.stop();
    }
}

#[test]
fn a_data_plane_that_is_stopped_in_a_switchover_finishes_it_and_takes_nothing_new() {
    let stream = main_stream(6, 20);
    let pair = Pair::start(PairOptions::default());
    let plane = Plane::attach(&pair.source_control());
    let late = pair.passive_socket();
    let mut client = pair.connect();
    client.write_all(&stream).unwrap();
    let mut server = pair.accept();
    plane.wait("its switchover", |picture| {
        picture.state() == Some(SessionState::Switchover)
    });
    let stopping = thread::spawn(move || pair.stop());
    thread::sleep(Duration::from_millis(200));
    assert!(!stopping.is_finished(), "the switchover was given up");
    // All that there was to connect to may be gone by now; what is not, closes.
    if let Ok(mut stranger) = UnixStream::connect(late) {
        // It may be closed before it has said a word.
        let _ = stranger.write_all(&stream[..64]);
        stranger
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let _ = stranger.read_to_end(&mut Vec::new());
        assert_eq!(plane.sessions().len(), 1);
    }
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == stream, "{} of {} bytes", got.len(), stream.len());
    server.write_all(b"taken").unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"taken");
    stopping.join().unwrap();
}

#[test]
fn a_throw_of_the_kill_switch_wakes_a_worker_that_waits() {
    let pair = Pair::start(PairOptions::default());
    let plane = Plane::attach(&pair.source_control());
    let woken = || plane.counter_of(0, "wakeups");
    // Longer than the control thread sleeps without being rung.
    let rest = || thread::sleep(Duration::from_millis(500));
    plane.allow_v3(true);
    rest();
    let before = woken();
    plane.bell.ring();
    rest();
    assert_eq!(woken(), before, "the bell alone is for the control thread");
    plane.allow_v3(false);
    plane.bell.ring();
    let at_once = poll_until(Duration::from_secs(5), || (woken() > before).then_some(()));
    assert!(at_once.is_some(), "the worker sleeps on");
    pair.stop();
}
