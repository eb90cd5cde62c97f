//! Connections that are parked: they open nothing by themselves, are bounded, and carry a lane as a fresh one does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dwcp_api::command::Command;
use dwcp_api::door::Refusal;
use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::transport::handshake::{
    InitiatorConfig, OPENING_PADDING_BYTES, Proof, Purpose, RefuseReason, pad,
};
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions};
use dwcp_tests::plane::Plane;
use dwcp_tests::streams::{carry, pages};

use crate::beside::Stage;
use crate::peer::{Knocked, Peer, ends, fresh_id, knock, knock_on, proposal, psk};
use crate::tls;

const PATIENCE: Duration = Duration::from_secs(60);
/// Padding that a parked connection may have, at most.
const PADDING_MAX_BYTES: usize = 96 << 10;
/// Connections that one address may have parked.
const PLACES: usize = 64;

fn parking() -> InitiatorConfig {
    InitiatorConfig {
        purpose: Purpose::Pool,
        ..proposal(fresh_id())
    }
}

/// A connection that the data plane has parked.
fn parked(address: SocketAddr) -> TcpStream {
    Peer::join(address, &parking()).lanes.remove(0)
}

fn wait_parked(plane: &Plane, wanted: u64) {
    let found = poll_until(PATIENCE, || {
        (plane.door().pool_parked.get() == wanted).then_some(())
    });
    let there = plane.door().pool_parked.get();
    assert!(found.is_some(), "{there} are parked, not {wanted}");
}

#[test]
fn a_parked_connection_becomes_a_lane_by_its_hello_and_by_nothing_that_was_recorded() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let config = proposal(fresh_id());
    let mut stream = parked(address);
    wait_parked(&stage.destination, 1);
    for _ in 0..10 {
        stream.write_all(&pad(160)).unwrap();
    }
    let Knocked::In(mut genuine) = knock_on(stream, address, &config) else {
        panic!("not let in")
    };
    wait_parked(&stage.destination, 0);
    genuine.open(0);
    drop(stage.pair.accept());
    // What was said there, said again on another that is parked.
    let mut stream = parked(address);
    let mut answer = |said: &[u8]| {
        stream.write_all(said).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_le_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    answer(&genuine.said[0]);
    let refusal = answer(&genuine.said[1]);
    assert_eq!(refusal[..2], [5, RefuseReason::WrongKey as u8]);
    assert!(ends(&mut stream));
    // With another key, and for a session that nobody announced.
    let mut other = proposal(fresh_id());
    other.proof = Proof::Node(psk("a key that nobody else has"));
    let unknown = InitiatorConfig {
        purpose: Purpose::Expected,
        ..proposal(fresh_id())
    };
    for (config, reason) in [
        (other, RefuseReason::WrongKey),
        (unknown, RefuseReason::UnknownSession),
    ] {
        let knocked = knock_on(parked(address), address, &config);
        let is_it = matches!(&knocked, Knocked::Refused(found, _) if *found == reason);
        assert!(is_it, "{knocked:?}");
    }
    let session = genuine.session();
    stage.destination.command(&Command::Cancel { session });
    stage.finish();
}

#[test]
fn padding_is_bounded_on_a_fresh_connection_and_on_a_parked_one() {
    let stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let refused = || stage.destination.refused(Refusal::Protocol);
    let mut stream = parked(address);
    let before = refused();
    let piece = pad(1024);
    for _ in 0..PADDING_MAX_BYTES / 1024 {
        stream.write_all(&piece).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    wait_parked(&stage.destination, 1);
    assert_eq!(refused(), before);
    // One more than allowed, then as many as it takes.
    while stream.write_all(&piece).is_ok() {}
    wait_parked(&stage.destination, 0);
    assert_eq!(refused(), before + 1);
    let mut stranger = crate::peer::dial(address);
    let piece = pad(160);
    for _ in 0..OPENING_PADDING_BYTES / piece.len() {
        stranger.write_all(&piece).unwrap();
    }
    // So much is heard out, and more is not.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(refused(), before + 1);
    stranger.write_all(&piece).unwrap();
    assert!(ends(&mut stranger));
    assert_eq!(refused(), before + 2);
    stage.finish();
}

#[test]
fn places_are_for_those_who_prove_themselves_and_there_are_only_so_many() {
    let stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let mut stranger = parking();
    stranger.proof = Proof::Node(psk("a key that nobody else has"));
    let knocked = knock(address, &stranger);
    assert!(
        matches!(knocked, Knocked::Refused(RefuseReason::WrongKey, _)),
        "{knocked:?}"
    );
    let mut inside: Vec<TcpStream> = (0..PLACES).map(|_| parked(address)).collect();
    wait_parked(&stage.destination, PLACES as u64);
    let is_full = |knocked: Knocked| {
        assert!(
            matches!(knocked, Knocked::Refused(RefuseReason::PoolFull, true)),
            "{knocked:?}"
        );
    };
    is_full(knock(address, &parking()));
    // Lanes still come in, and what leaves makes room.
    let peer = Peer::join(address, &proposal(fresh_id()));
    drop(peer);
    inside.truncate(PLACES - 1);
    wait_parked(&stage.destination, PLACES as u64 - 1);
    // Nobody parks a connection twice: its padding would begin anew.
    is_full(knock_on(inside.remove(0), address, &parking()));
    wait_parked(&stage.destination, PLACES as u64 - 2);
    inside.push(parked(address));
    wait_parked(&stage.destination, PLACES as u64 - 1);
    drop(inside);
    stage.finish();
}

#[test]
fn certificates_that_change_let_go_of_what_was_parked_and_a_revoked_peer_does_not_come_back() {
    let (_dir, authority) = tls::authority();
    let pair = tls::pair(&authority, PairOptions::default());
    let stream = pages(3, 400);
    for round in 0..2 {
        // It attaches by itself, and a data plane lets one in at a time.
        let _ = carry(&pair, &stream);
        let source = Plane::attach(&pair.source_control());
        let hits = source.door().pool_hits_total.get();
        assert_eq!(hits > 0, round > 0, "{hits} hits");
        wait_parked(&Plane::attach(&pair.destination_control()), 16);
    }
    let source = Plane::attach(&pair.source_control());
    let destination = Plane::attach(&pair.destination_control());
    // The first of those issued: the source's.
    authority.revoke(&[1]);
    wait_parked(&destination, 0);
    let mut client = pair.connect();
    client.write_all(&crate::beside::head()).unwrap();
    let end = source.wait("its end", |picture| {
        picture.failure() != Failure::None && picture.state().is_some_and(SessionState::is_final)
    });
    assert_eq!(end.failure(), Failure::WrongKey, "{end:#?}");
    assert_eq!(destination.door().pool_parked.get(), 0);
    pair.stop();
}

#[test]
fn v1_takes_no_connection_from_the_pool_and_a_peer_that_keeps_none_is_dialled() {
    for (version, on) in [(1, true), (3, false)] {
        let options = PairOptions {
            source_version: version,
            ..PairOptions::default()
        };
        let pair = Pair::start_with(options, |_, b| b.pool.enabled = on);
        for _ in 0..2 {
            let _ = carry(&pair, &pages(4, 400));
        }
        let source = Plane::attach(&pair.source_control());
        assert_eq!(source.door().pool_hits_total.get(), 0);
        assert_eq!(source.door().pool_ready.get(), 0);
        pair.stop();
    }
}
