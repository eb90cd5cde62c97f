//! On the hypervisor's side: clients that say nothing, too little or leave, and a receiving hypervisor
//! that is not there.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

use crate::beside::{Stage, head, resident_bytes};

const PATIENCE: Duration = Duration::from_secs(60);

/// Reads until the other side ends the connection.
fn read_all(client: &mut UnixStream) -> Vec<u8> {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    bytes
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn clients_that_say_nothing_or_leave_do_not_disturb_the_session_they_come_to() {
    let stage = Stage::start(PairOptions::default());
    let before = (resident_bytes(), descriptors());
    // They join the session of their socket, for a hypervisor opens several connections.
    let silent: Vec<UnixStream> = (0..20).map(|_| stage.pair.connect()).collect();
    for round in 0..300u32 {
        let mut client = stage.pair.connect();
        if round % 2 == 0 {
            let _ = client.write_all(&b"QEV"[..(round % 3 + 1) as usize]);
        }
        drop(client);
        if round % 50 == 0 {
            stage.beside.check_moves();
        }
    }
    stage.beside.check_moves();
    let picture = stage.source.session(stage.id).unwrap();
    assert_eq!(
        (picture.state(), picture.channels),
        (Some(SessionState::Active), 1),
        "{picture:#?}"
    );
    assert!(
        stage.pair.accept_within(Duration::ZERO).is_none(),
        "a silent client was carried"
    );
    drop(silent);
    // One that has something to say is still taken in.
    let mut late = stage.pair.connect();
    late.write_all(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1])
        .unwrap();
    let mut hypervisor = stage.pair.accept();
    let mut got = [0; 8];
    hypervisor.read_exact(&mut got).unwrap();
    assert_eq!(got, [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1]);
    drop((late, hypervisor));
    let left = poll_until(PATIENCE, || {
        let left = descriptors().saturating_sub(before.1);
        (left < 20).then_some(left)
    });
    assert!(
        left.is_some(),
        "descriptors of clients that left stay open: {}",
        descriptors()
    );
    assert!(resident_bytes().saturating_sub(before.0) < 64 << 20);
    stage.finish();
}

#[test]
fn a_client_that_never_speaks_is_given_up_with_that_reason() {
    let options = PairOptions {
        setup_limit_ms: 1_500,
        ..PairOptions::default()
    };
    let visits: [fn(&mut UnixStream); 3] = [
        |_| {},
        |client| client.write_all(b"Q").unwrap(),
        |client| client.shutdown(std::net::Shutdown::Write).unwrap(),
    ];
    for visit in visits {
        let pair = Pair::start(options);
        let source = Plane::attach(&pair.source_control());
        let destination = Plane::attach(&pair.destination_control());
        let mut client = pair.connect();
        visit(&mut client);
        let id = source.wait("the session", |_| true).id;
        let end = source.wait_over(id);
        assert_eq!(end.state(), Some(SessionState::Failed), "{end:#?}");
        assert!(read_all(&mut client).is_empty());
        let other = destination.wait_over(id);
        // Who looks at the clock first tells the other.
        for picture in [&end, &other] {
            let reasons = [Failure::PeerAborted, Failure::NoHypervisor];
            assert!(reasons.contains(&picture.failure()), "{picture:#?}");
            assert!(
                picture
                    .detail
                    .as_str()
                    .contains("hypervisor did not connect"),
                "{picture:#?}"
            );
        }
        assert!(
            pair.accept_within(Duration::ZERO).is_none(),
            "nobody had anything to say"
        );
        pair.stop();
    }
}

/// The source's end and the destination's of a session whose receiving hypervisor is not there.
fn refused(pair: &Pair) {
    let source = Plane::attach(&pair.source_control());
    let destination = Plane::attach(&pair.destination_control());
    let mut client = pair.connect();
    client.write_all(&head()).unwrap();
    let id = source.wait("the session", |_| true).id;
    let there = destination.wait_over(id);
    assert_eq!(
        (there.state(), there.failure()),
        (Some(SessionState::Failed), Failure::Hypervisor)
    );
    assert!(
        there.detail.as_str().contains("hypervisor-b.sock"),
        "{there:#?}"
    );
    let here = source.wait_over(id);
    assert_eq!(
        (here.state(), here.failure()),
        (Some(SessionState::Failed), Failure::PeerAborted)
    );
    assert!(
        here.detail.as_str().contains("hypervisor-b.sock"),
        "which one? {here:#?}"
    );
    // The sending hypervisor is told by the end of its connection: the guest goes on there.
    assert!(read_all(&mut client).is_empty());
}

#[test]
fn a_receiving_hypervisor_that_is_not_there_ends_the_source_too() {
    let pair = Pair::start(PairOptions::default());
    std::fs::remove_file(pair.hypervisor()).unwrap();
    refused(&pair);
    pair.stop();
    // A socket that nobody listens on any more.
    let pair = Pair::start(PairOptions::default());
    std::fs::remove_file(pair.hypervisor()).unwrap();
    drop(UnixListener::bind(pair.hypervisor()).unwrap());
    refused(&pair);
    pair.stop();
}

#[test]
fn a_receiving_hypervisor_that_leaves_in_the_middle_ends_the_source_too() {
    let pair = Pair::start(PairOptions::default());
    let source = Plane::attach(&pair.source_control());
    let mut client = pair.connect();
    client.write_all(&head()).unwrap();
    let hypervisor = pair.accept();
    let id = source.wait("the session", |_| true).id;
    drop(hypervisor);
    // What it does not take any more is nobody's; the sender is not left to wait for it.
    let page: [u8; 4096] = noise(5, 4096).try_into().unwrap();
    let pages = StreamBuilder::empty().page(None, 1, &page).finish();
    let ended = poll_until(PATIENCE, || {
        let written = client.write_all(&pages);
        let over = source.session(id).and_then(|picture| picture.state());
        (written.is_err() || over.is_some_and(SessionState::is_final)).then_some(())
    });
    assert!(
        ended.is_some(),
        "the sender writes into the void: {:#?}",
        source.session(id)
    );
    let end = source.wait_over(id);
    assert_eq!(end.state(), Some(SessionState::Failed), "{end:#?}");
    assert_ne!(end.failure(), Failure::None, "{end:#?}");
    assert_eq!(end.failure(), Failure::PeerAborted, "{end:#?}");
    assert!(
        end.detail.as_str().contains("closed its connection"),
        "{end:#?}"
    );
    assert!(read_all(&mut client).is_empty());
    pair.stop();
}

#[test]
fn a_receiving_hypervisor_that_takes_nothing_holds_the_sender_back() {
    // In one go, and in pieces that need a large buffer each and fill it by a fifteenth.
    for (piece_bytes, pause_ms) in [(64 << 10, 0), (70_000, 4)] {
        hold_back(piece_bytes, pause_ms);
    }
}

fn hold_back(piece_bytes: usize, pause_ms: u64) {
    let stage = Stage::start(PairOptions {
        destination_workers: 1,
        ..PairOptions::default()
    });
    // The session beside is on the same worker and goes on; this one joins it as a second channel.
    let mut client = stage.pair.connect();
    client
        .write_all(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1])
        .unwrap();
    let hypervisor = stage.pair.accept();
    client.set_nonblocking(true).unwrap();
    let before = resident_bytes();
    let chunk = noise(9, piece_bytes);
    let mut taken = 0;
    let stuck = poll_until(PATIENCE, || {
        let before = taken;
        while let Ok(bytes) = client.write(&chunk) {
            taken += bytes;
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
        std::thread::sleep(Duration::from_millis(300));
        (taken == before).then_some(())
    });
    assert!(stuck.is_some(), "it takes bytes without end");
    let picture = stage.source.session(stage.id).unwrap();
    assert!(
        picture.held_bytes <= picture.held_bytes_limit,
        "{picture:#?}"
    );
    assert!(
        taken < 40 << 20,
        "{taken} bytes taken for a hypervisor that reads nothing"
    );
    assert!(resident_bytes().saturating_sub(before) < 64 << 20);
    println!("{taken} bytes were taken, {} are held", picture.held_bytes);
    stage.beside.check_moves();
    let mut hypervisor = hypervisor;
    let reader = std::thread::spawn(move || read_all(&mut hypervisor).len());
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), taken + 8);
    drop(client);
    stage.finish();
}
