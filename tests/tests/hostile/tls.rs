//! Sessions over TLS: what a man in the middle can read and change, and what becomes of them while
//! certificates come and go.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use dwcp_api::command::Command;
use dwcp_api::door::Refusal;
use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::config::Cidr;
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::mitm::{Damage, Fault, Mitm, Way};
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::pki::{Authority, Kind};
use dwcp_tests::plane::Plane;

use crate::beside::{Beside, Stage};

const PATIENCE: Duration = Duration::from_secs(60);

/// An authority with certificates for the nodes of a pair.
pub fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::new(&dir.path().join("pki"));
    for node in ["a", "b"] {
        authority.issue(node, Kind::Good);
    }
    (dir, authority)
}

/// A pair that speaks TLS.
pub fn pair(authority: &Authority, options: PairOptions) -> Pair {
    Pair::start_with(options, |a, b| {
        a.tls = Some(authority.table("a"));
        b.tls = Some(authority.table("b"));
    })
}

/// Pages of noise, each once, and how often 16 bytes of one of them pass readable while they are carried.
fn carry_and_search(pair: &Pair, v3: bool) -> usize {
    let source = Plane::attach(&pair.source_control());
    source.allow_v3(v3);
    pair.mitm().listen_in();
    let pages: Vec<[u8; 4096]> = (0..400)
        .map(|seed| noise(seed + 5_000, 4096).try_into().unwrap())
        .collect();
    let numbered: Vec<(u64, &[u8; 4096])> = (0..).zip(&pages).collect();
    let stream = StreamBuilder::precopy(&numbered, &noise(4_711, 30_000));
    let mut client = pair.connect();
    let (sent, mut writer) = (stream.clone(), client.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut server = pair.accept();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert!(got == stream, "{} of {} bytes", got.len(), stream.len());
    server.write_all(b"done").unwrap();
    drop(server);
    sending.join().unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"done");
    let passed = [Way::Forward, Way::Backward].map(|way| pair.mitm().heard(way));
    let all: usize = passed
        .iter()
        .flat_map(|all| all.values())
        .map(Vec::len)
        .sum();
    assert!(all > 400 * 4096, "{all} bytes passed");
    // Eight bytes of the middle of a page are chance enough to be nobody else's.
    let needles: std::collections::HashSet<[u8; 8]> = pages
        .iter()
        .map(|page| page[2_000..2_008].try_into().unwrap())
        .collect();
    passed
        .iter()
        .flat_map(|all| all.values())
        .flat_map(|bytes| bytes.windows(8))
        .filter(|window| needles.contains(*window))
        .count()
}

#[test]
fn on_the_wire_not_a_page_is_readable() {
    let (_dir, authority) = authority();
    let options = PairOptions {
        mitm: true,
        ..PairOptions::default()
    };
    for v3 in [true, false] {
        let plain = Pair::start(options);
        let readable = carry_and_search(&plain, v3);
        assert!(readable > 200, "the search finds nothing: {readable}");
        plain.stop();
        let hidden = pair(&authority, options);
        assert_eq!(carry_and_search(&hidden, v3), 0);
        hidden.stop();
    }
}

#[test]
fn a_rollback_amid_encrypted_batches_changes_no_byte() {
    let (_dir, authority) = authority();
    let stage = Stage::around(pair(&authority, PairOptions::default()));
    for on in [false, true, false] {
        stage.source.allow_v3(on);
        stage.beside.check_moves();
    }
    stage.finish();
}

/// The first bytes of a HELLO with a target's name of two letters: its length.
const HELLO: [u8; 2] = [166, 0];
/// Those of a TLS connection.
const TLS: [u8; 2] = [22, 3];

#[test]
fn in_a_trusted_network_the_shared_key_is_enough_and_tls_works_beside() {
    let (_dir, authority) = authority();
    let plain = |node: &str| {
        let mut table = authority.table(node);
        table.required = false;
        table.trusted_networks = vec![Cidr {
            ip: [127, 0, 0, 0].into(),
            prefix_bits: 8,
        }];
        table
    };
    let options = PairOptions {
        mitm: true,
        ..PairOptions::default()
    };
    for (source_is_plain, first) in [(true, HELLO), (false, TLS)] {
        let pair = Pair::start_with(options, |a, b| {
            a.tls = Some(if source_is_plain {
                plain("a")
            } else {
                authority.table("a")
            });
            b.tls = Some(plain("b"));
        });
        pair.mitm().listen_in();
        let plane = Plane::attach(&pair.source_control());
        let beside = Beside::start(&pair);
        let id = plane.wait("the session", |_| true).id;
        let destination = Plane::attach(&pair.destination_control());
        let first_bytes = |connection: u64| {
            let heard = poll_until(PATIENCE, || {
                let heard = pair.mitm().heard(Way::Forward);
                heard.get(&connection).filter(|one| one.len() > 1).cloned()
            });
            heard.expect("nothing was said")[..2].to_vec()
        };
        assert_eq!(first_bytes(0), first, "the first lane");
        // A later lane is proven by its session, without TLS.
        let next = pair.mitm().connections();
        pair.mitm().cut();
        beside.check_moves();
        assert_eq!(first_bytes(next), HELLO, "a later lane");
        beside.finish(&plane, &destination, id);
        pair.stop();
    }
}

/// A flipped bit in each part of the handshake, in either direction: the lane does not come up with it, and
/// the session, which dials again, agrees on what it would have agreed on without.
#[test]
fn whatever_is_changed_in_a_handshake_nobody_is_talked_down_to_v1() {
    let (_dir, authority) = authority();
    let options = PairOptions {
        mitm: true,
        ..PairOptions::default()
    };
    let faults = [
        // The versions and groups that are offered, the certificate, the HELLO.
        (Way::Forward, [45, 120, 300, 700, 1_000]),
        (Way::Backward, [45, 120, 300, 700, 1_000]),
    ];
    for (way, offsets) in faults {
        for offset in offsets {
            let pair = pair(&authority, options);
            for connection in 0..2 {
                pair.mitm().add(Fault {
                    connection,
                    way,
                    offset,
                    damage: Damage::Corrupt,
                });
            }
            let source = Plane::attach(&pair.source_control());
            source.allow_v3(true);
            let destination = Plane::attach(&pair.destination_control());
            let mut client = pair.connect();
            client.write_all(&crate::beside::head()).unwrap();
            let agreed = poll_until(PATIENCE, || {
                let picture = source.sessions().into_iter().next()?;
                let over = picture.state().is_some_and(SessionState::is_final);
                (over || picture.negotiated_version != 0).then_some(picture)
            })
            .expect("neither an agreement nor a refusal");
            let struck = poll_until(PATIENCE, || (pair.mitm().struck() > 0).then_some(()));
            assert!(struck.is_some(), "{way:?} {offset}");
            // Either it got through on another connection, or nobody was let in.
            if agreed.negotiated_version == 0 {
                assert_eq!(agreed.failure(), Failure::WrongKey, "{way:?} {offset}");
            } else {
                assert_eq!(agreed.negotiated_version, 3, "{way:?} {offset}");
            }
            drop(client);
            drop((source, destination));
            pair.stop();
        }
    }
}

#[test]
fn a_man_in_the_middle_cannot_speak_for_the_peer_without_tls() {
    let (_dir, authority) = authority();
    // Somebody answers in the peer's place who has no certificate: a data plane without TLS.
    let impostor = Pair::start(PairOptions::default());
    let real = pair(&authority, PairOptions::default());
    let target = impostor.destination_address();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mitm = Mitm::start(
        listener,
        move || std::net::TcpStream::connect(target),
        Vec::new(),
    )
    .unwrap();
    let (engine, listen, control) = real.add_source_with("a", |config| {
        config.tls = Some(authority.table("a"));
        config.control_socket.set_extension("second");
        config.passive.push(dwcp_dataplane::config::PassiveSource {
            listen: config.control_socket.with_extension("to-mitm"),
            peer: mitm.address(),
            target: dwcp_tests::pair::TARGET.to_owned(),
            node: None,
        });
    });
    drop(listen);
    let plane = Plane::attach(&control);
    let mut client =
        std::os::unix::net::UnixStream::connect(control.with_extension("to-mitm")).unwrap();
    client.write_all(&crate::beside::head()).unwrap();
    let end = plane.wait("its end", |picture| {
        picture.state().is_some_and(SessionState::is_final)
    });
    assert_eq!(end.failure(), Failure::WrongKey, "{end:#?}");
    assert!(impostor.accept_within(Duration::ZERO).is_none());
    let counted = Plane::attach(&impostor.destination_control());
    assert!(counted.refused(Refusal::TlsNotConfigured) > 0);
    drop(plane);
    engine.stop();
    real.stop();
    impostor.stop();
}

#[test]
fn a_running_session_outlives_its_certificates_and_a_new_one_needs_good_ones() {
    let (_dir, mut authority) = authority();
    let options = PairOptions {
        mitm: true,
        ..PairOptions::default()
    };
    let mut stage = Stage::around(pair(&authority, options));
    let reloads = |stage: &Stage| stage.destination.door().reloads_total.get();
    let wait_reload = |stage: &Stage, before: u64| {
        poll_until(PATIENCE, || (reloads(stage) > before).then_some(()))
            .expect("the files were not read anew");
    };
    let lanes_again = |stage: &mut Stage| {
        stage.pair.mitm().cut();
        stage.beside.check_moves();
        let id = stage.id;
        stage.source.wait("all its lanes again", |picture| {
            picture.id == id && picture.lanes_up == picture.lanes_wanted
        });
    };
    lanes_again(&mut stage);

    // Rotated: the session goes on, its lanes come back, a new session is let in.
    let before = reloads(&stage);
    let old = authority.issue("a", Kind::Good);
    authority.issue("b", Kind::Good);
    wait_reload(&stage, before);
    lanes_again(&mut stage);
    let (engine, listen, control) = stage.pair.add_source_with("c", |config| {
        authority.issue("c", Kind::Good);
        config.tls = Some(authority.table("c"));
    });
    let mut newcomer = Plane::attach(&control);
    let mut client = std::os::unix::net::UnixStream::connect(&listen).unwrap();
    client.write_all(&crate::beside::head()).unwrap();
    drop(stage.pair.accept());
    let session = newcomer.sessions()[0].id;
    newcomer.command(&Command::Cancel { session });
    let _ = newcomer.wait_over(session);

    // Revoked: what runs goes on, what is new is refused.
    let before = reloads(&stage);
    authority.revoke(&[old, old + 2]);
    wait_reload(&stage, before);
    lanes_again(&mut stage);
    let mut client = std::os::unix::net::UnixStream::connect(&listen).unwrap();
    client.write_all(&crate::beside::head()).unwrap();
    let end = newcomer.wait("its end", |picture| {
        picture.id != session && picture.state().is_some_and(SessionState::is_final)
    });
    assert_eq!(end.failure(), Failure::WrongKey, "{end:#?}");
    assert!(stage.destination.refused(Refusal::Revoked) > 0);

    // Files that do not fit together change nothing.
    let failures = stage.destination.door().reload_failures_total.get();
    std::fs::write(&authority.table("b").cert, "no certificate").unwrap();
    poll_until(PATIENCE, || {
        let now = stage.destination.door().reload_failures_total.get();
        (now > failures).then_some(())
    })
    .expect("the file was not looked at");
    lanes_again(&mut stage);
    drop(newcomer);
    engine.stop();
    stage.finish();
}

#[test]
fn a_fault_of_the_own_certificate_does_not_keep_those_in_that_were_revoked() {
    let (_dir, mut authority) = authority();
    let stranger = authority.issue("c", Kind::Good);
    let pair = pair(&authority, PairOptions::default());
    let destination = Plane::attach(&pair.destination_control());
    let (engine, listen, control) = pair.add_source_with("c", |config| {
        // One that would not turn itself away.
        let mut table = authority.table("c");
        table.crl = None;
        config.tls = Some(table);
    });
    let newcomer = Plane::attach(&control);
    let old = |plane: &Plane| {
        let door = plane.door();
        (door.reloads_total.get(), door.reload_failures_total.get())
    };
    let before = old(&destination);
    // The second of those issued: the destination's own.
    authority.revoke(&[2, stranger]);
    poll_until(PATIENCE, || {
        let now = old(&destination);
        (now.0 > before.0 && now.1 > before.1).then_some(())
    })
    .expect("the list was not taken, or the own certificate's fault was not told");
    let mut client = std::os::unix::net::UnixStream::connect(&listen).unwrap();
    client.write_all(&crate::beside::head()).unwrap();
    let end = newcomer.wait("its end", |picture| {
        picture.state().is_some_and(SessionState::is_final)
    });
    assert_eq!(end.failure(), Failure::WrongKey, "{end:#?}");
    assert!(destination.refused(Refusal::Revoked) > 0);
    drop((newcomer, destination));
    engine.stop();
    pair.stop();
}

#[test]
fn another_node_than_the_one_that_is_named_is_not_taken_for_it() {
    let (_dir, mut authority) = authority();
    authority.issue("c", Kind::Good);
    for tls in [true, false] {
        for (named, failure) in [("b", Failure::None), ("elsewhere", Failure::WrongNode)] {
            let pair = Pair::start_with(PairOptions::default(), |a, b| {
                if tls {
                    a.tls = Some(authority.table("a"));
                    b.tls = Some(authority.table("b"));
                }
            });
            let (engine, listen, control) = pair.add_source_to("c", Some(named), |config| {
                config.tls = tls.then(|| authority.table("c"))
            });
            let source = Plane::attach(&control);
            let mut client = std::os::unix::net::UnixStream::connect(&listen).unwrap();
            client.write_all(&crate::beside::head()).unwrap();
            let picture = source.wait("an agreement or an end", |picture| {
                let over = picture.state().is_some_and(SessionState::is_final);
                over || picture.negotiated_version != 0
            });
            assert_eq!(picture.failure(), failure, "{tls} {named} {picture:#?}");
            let arrived = pair.accept_within(Duration::ZERO).is_some();
            assert!(failure == Failure::None || !arrived, "{tls} {named}");
            drop((client, source));
            engine.stop();
            pair.stop();
        }
    }
}
