//! At the door for peers: who has no key, or does not even talk, reaches no session and keeps nobody out.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use arrayvec::ArrayString;
use dwcp_api::command::Command;
use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::transport::handshake::{InitiatorConfig, Proof, Purpose, RefuseReason};
use dwcp_dataplane::transport::{LaneIx, NodeId};
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

use crate::beside::{Beside, Stage, head, resident_bytes};
use crate::peer::{Knocked, Peer, dial, ends, fresh_id, knock, proposal, psk};

/// A session can be opened now: the door is not blocked by whoever stands in it.
fn check_open(stage: &mut Stage) {
    let mut peer = Peer::join(stage.pair.destination_address(), &proposal(fresh_id()));
    peer.open(0);
    let hypervisor = stage.pair.accept();
    let session = peer.session();
    stage.destination.command(&Command::Cancel { session });
    stage.destination.command(&Command::Forget { session });
    drop(hypervisor);
}

#[test]
fn garbage_and_half_sentences_are_closed_and_harm_nobody() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let genuine = Peer::join(address, &proposal(fresh_id())).said;
    let before = resident_bytes();
    let mut sentences: Vec<Vec<u8>> = (0..40).map(|seed| noise(seed + 1, 2_000)).collect();
    // Lengths of nothing, too much, and more than comes.
    sentences.extend([
        vec![0, 0],
        vec![0xff; 4_000],
        vec![0xfe, 0x03, 1, b'D', b'W', b'C', b'P'],
    ]);
    for cut in 0..genuine[0].len() {
        sentences.push(genuine[0][..cut].to_vec());
    }
    for bit in (0..genuine[0].len() * 8).step_by(13) {
        let mut changed = genuine[0].clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        sentences.push([changed, genuine[1].clone()].concat());
    }
    for sentence in &sentences {
        let mut stream = dial(address);
        let _ = stream.write_all(sentence);
        let _ = stream.shutdown(Shutdown::Write);
        assert!(ends(&mut stream), "kept: {sentence:02x?}");
    }
    // Closed without a word, and cut off in the middle.
    for sentence in &sentences {
        let mut stream = dial(address);
        let _ = stream.write_all(&sentence[..sentence.len() / 2]);
        drop(stream);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more in use");
    check_open(&mut stage);
    let others = stage
        .destination
        .sessions()
        .into_iter()
        .filter(|other| other.id != stage.id);
    // The genuine peer of the beginning is there; of the strangers none opened a session.
    assert!(others.count() <= 1);
    stage.finish();
}

#[test]
fn closing_at_each_step_leaves_nothing_behind() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    for round in 0..30 {
        // After the connection; after HELLO; after CHALLENGE; after PROOF; as a lane.
        drop(dial(address));
        let config = proposal(fresh_id());
        let peer = Peer::join(address, &config);
        let [hello, proof] = [&peer.said[0], &peer.said[1]];
        let mut stream = dial(address);
        stream.write_all(hello).unwrap();
        if round % 2 == 0 {
            let _ = stream.read(&mut [0; 64]);
        }
        if round % 3 == 0 {
            let _ = stream.write_all(proof);
        }
        drop(stream);
        let session = peer.session();
        drop(peer);
        // A lane that came and went opened a session, which nobody serves; it is forgotten here so
        // that the next one has room.
        stage
            .destination
            .wait("the session", |picture| picture.id == session);
        stage.destination.command(&Command::Cancel { session });
        assert_eq!(
            stage.destination.wait_over(session).failure(),
            Failure::Cancelled
        );
        stage.destination.command(&Command::Forget { session });
    }
    check_open(&mut stage);
    assert_eq!(stage.destination.sessions().len(), 1);
    stage.finish();
}

#[test]
fn three_hundred_silent_strangers_keep_nobody_out() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let before = resident_bytes();
    let begun = Instant::now();
    let mut strangers: Vec<TcpStream> = (0..300).map(|_| dial(address)).collect();
    // Slow ones: a byte now and then of a HELLO that never ends.
    let slow = strangers.split_off(250);
    let talker = std::thread::spawn(move || {
        let mut slow = slow;
        let mut bytes = [200, 0].into_iter().chain(std::iter::repeat(1));
        while !slow.is_empty() {
            let byte = [bytes.next().unwrap()];
            slow.retain_mut(|stream| stream.write_all(&byte).is_ok());
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    check_open(&mut stage);
    stage.beside.check_moves();
    for stranger in &mut strangers {
        assert!(ends(stranger), "a silent stranger is kept for ever");
    }
    talker.join().unwrap();
    println!("the last stranger was gone after {:?}", begun.elapsed());
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more in use");
    check_open(&mut stage);
    stage.finish();
}

#[test]
fn a_source_with_another_key_fails_with_that_reason() {
    let mut stage = Stage::start(PairOptions::default());
    let (engine, listen, control) = stage.pair.add_source("c", "a key that nobody else has");
    let stranger = Plane::attach(&control);
    let mut client = UnixStream::connect(listen).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    client.write_all(&head()).unwrap();
    let end = stranger.wait("its end", |picture| {
        picture.state().is_some_and(SessionState::is_final)
    });
    assert_eq!(
        (end.state(), end.failure()),
        (Some(SessionState::Failed), Failure::WrongKey)
    );
    assert!(end.detail.as_str().contains("key"), "{end:#?}");
    // The hypervisor is told: its connection ends, and the guest goes on where it is.
    let mut back = Vec::new();
    let _ = client.read_to_end(&mut back);
    assert!(back.is_empty());
    assert!(
        stage.destination.session(end.id).is_none(),
        "a stranger opened a session"
    );
    assert!(
        stage.pair.accept_within(Duration::ZERO).is_none(),
        "a stranger reached a hypervisor"
    );
    drop(stranger);
    engine.stop();
    check_open(&mut stage);
    stage.finish();
}

#[test]
fn a_recorded_handshake_is_worth_nothing() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let genuine = Peer::join(address, &proposal(fresh_id()));
    let [hello, proof] = [&genuine.said[0], &genuine.said[1]];
    let lanes = |stage: &Stage| {
        let picture = stage.destination.session(genuine.session());
        picture.map_or(0, |picture| picture.lanes_up)
    };
    stage.destination.wait("the lane", |picture| {
        picture.id == genuine.session() && picture.lanes_up == 1
    });
    for _ in 0..20 {
        let mut stream = dial(address);
        stream.write_all(hello).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut challenge = vec![0; usize::from(u16::from_le_bytes(length))];
        stream.read_exact(&mut challenge).unwrap();
        stream.write_all(proof).unwrap();
        stream.read_exact(&mut length).unwrap();
        let mut refusal = vec![0; usize::from(u16::from_le_bytes(length))];
        stream.read_exact(&mut refusal).unwrap();
        assert_eq!(
            refusal[..2],
            [5, RefuseReason::WrongKey as u8],
            "{refusal:02x?}"
        );
        assert!(ends(&mut stream));
    }
    assert_eq!(lanes(&stage), 1, "a replay opened a lane");
    // With another key, into a session that is known to the stranger: the one beside.
    for lane in 0..8 {
        let mut config = InitiatorConfig {
            lane: LaneIx(lane),
            ..proposal(stage.id)
        };
        config.proof = Proof::Node(psk("a key that nobody else has"));
        config.node = NodeId::of_name("a");
        let knocked = knock(address, &config);
        assert!(
            matches!(knocked, Knocked::Refused(RefuseReason::WrongKey, false)),
            "{knocked:?}"
        );
    }
    let session = genuine.session();
    stage.destination.command(&Command::Cancel { session });
    stage.finish();
}

#[test]
fn a_session_that_nobody_announced_is_refused_by_name() {
    let mut stage = Stage::start(PairOptions::default());
    let address = stage.pair.destination_address();
    let expected = InitiatorConfig {
        purpose: Purpose::Expected,
        ..proposal(fresh_id())
    };
    let knocked = knock(address, &expected);
    assert!(
        matches!(
            knocked,
            Knocked::Refused(RefuseReason::UnknownSession, true)
        ),
        "{knocked:?}"
    );
    let target = ArrayString::from("another vm").unwrap();
    let other = InitiatorConfig {
        purpose: Purpose::Passive { target },
        ..proposal(fresh_id())
    };
    let knocked = knock(address, &other);
    let named = matches!(
        knocked,
        Knocked::Refused(RefuseReason::PassiveTargetUnknown, true)
    );
    assert!(named, "{knocked:?}");
    // One that has ended.
    let gone = proposal(fresh_id());
    let peer = Peer::join(address, &gone);
    let session = peer.session();
    stage
        .destination
        .wait("the session", |picture| picture.id == session);
    stage.destination.command(&Command::Cancel { session });
    let _ = stage.destination.wait_over(session);
    let knocked = knock(address, &gone);
    assert!(
        matches!(knocked, Knocked::Refused(RefuseReason::SessionGone, true)),
        "{knocked:?}"
    );
    stage.finish();
}

#[test]
fn more_sessions_than_allowed_are_refused_and_the_next_has_room_again() {
    // There is memory for all of them.
    let pair = Pair::start_with(PairOptions::default(), |_, b| {
        b.memory_limit_bytes = 16 << 30
    });
    let mut stage = Stage::around(pair);
    let address = stage.pair.destination_address();
    let before = resident_bytes();
    let (mut inside, mut outside) = (Vec::new(), 0);
    for _ in 0..40 {
        let config = proposal(fresh_id());
        let peer = Peer::join(address, &config);
        let there = dwcp_lab::watchdog::poll_until(Duration::from_millis(300), || {
            stage.destination.session(config.session)
        });
        if there.is_some() {
            inside.push(peer);
            continue;
        }
        outside += 1;
        // It learns so as soon as it asks again.
        let knocked = knock(address, &config);
        assert!(
            matches!(knocked, Knocked::Refused(RefuseReason::SessionGone, true)),
            "{knocked:?}"
        );
    }
    assert_eq!(
        (inside.len(), outside),
        (15, 25),
        "16 sessions are allowed, one runs beside"
    );
    let grown = resident_bytes().saturating_sub(before);
    println!(
        "{} MiB for {} sessions that carry nothing",
        grown >> 20,
        inside.len()
    );
    for peer in inside {
        let session = peer.session();
        stage.destination.command(&Command::Cancel { session });
        stage.destination.command(&Command::Forget { session });
    }
    check_open(&mut stage);
    stage.finish();
}

#[test]
fn what_a_stranger_says_of_the_key_does_not_end_a_running_session() {
    // The man between the two answers every new lane as if the keys differed.
    let pair = dwcp_tests::pair::Pair::start(PairOptions {
        mitm: true,
        ..PairOptions::default()
    });
    let source = Plane::attach(&pair.source_control());
    let destination = Plane::attach(&pair.destination_control());
    source.allow_v3(true);
    let beside = Beside::start(&pair);
    let id = source
        .wait("the session", |picture| picture.lanes_up == 4)
        .id;
    let next = pair.mitm().connections();
    for lane in 0..3 {
        // A flipped bit in a PROOF makes the acceptor say so, and nobody can vouch for that.
        pair.mitm().add(dwcp_lab::mitm::Fault {
            connection: next + lane,
            way: dwcp_lab::mitm::Way::Forward,
            offset: 150,
            damage: dwcp_lab::mitm::Damage::Corrupt,
        });
    }
    pair.mitm().cut();
    beside.check_moves();
    assert!(pair.mitm().struck() > 0);
    source.wait("all its lanes again", |picture| {
        picture.id == id && picture.lanes_up == 4
    });
    beside.finish(&source, &destination, id);
    pair.stop();
}

#[test]
fn sessions_of_strangers_are_at_the_command_of_the_control_plane_whichever_worker_has_them() {
    let options = PairOptions {
        destination_workers: 2,
        ..PairOptions::default()
    };
    let mut stage = Stage::start(options);
    let address = stage.pair.destination_address();
    for _ in 0..6 {
        let mut peer = Peer::join(address, &proposal(fresh_id()));
        let session = peer.session();
        peer.open(0);
        let hypervisor = stage.pair.accept();
        let limit = Command::Limit {
            session,
            rate_limit_bytes_per_s: 1_000,
        };
        for (command, expected) in [
            (limit, Failure::None),
            (Command::Forget { session }, Failure::BadCommand),
            (Command::Cancel { session }, Failure::None),
            (Command::Forget { session }, Failure::None),
            (Command::Cancel { session }, Failure::BadCommand),
        ] {
            let (failure, detail) = stage.destination.command(&command);
            assert_eq!(failure, expected, "{command:?}: {detail}");
        }
        assert!(
            stage.destination.session(session).is_none(),
            "forgotten, and still in the table"
        );
        drop(hypervisor);
    }
    let opened = |worker| {
        stage
            .destination
            .counter_of(worker, "sessions_opened_total")
    };
    assert!(opened(0) > 0 && opened(1) > 0, "one worker had them all");
    stage.finish();
}
