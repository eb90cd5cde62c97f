//! Strangers at a door that wants TLS: whose certificate is wrong gets no further than the certificate, is told
//! why and counted; ten thousand who say nothing keep nobody out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use dwcp_api::door::Refusal;
use dwcp_dataplane::config::TlsConfig;
use dwcp_dataplane::tls::pipe::Pipe;
use dwcp_dataplane::tls::{PROTOCOL, TlsError};
use dwcp_dataplane::transport::NodeId;
use dwcp_dataplane::transport::handshake::{
    Agreed, Initiator, InitiatorConfig, InitiatorStep, Proof, RefuseReason,
};
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::PairOptions;
use dwcp_tests::pki::{Authority, Kind};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, ClientConfig, RootCertStore};

use crate::beside::{Stage, resident_bytes};
use crate::peer::{Knocked, dial, fresh_id, knock, proposal};
use crate::tls::{authority, pair};

/// Shows whatever certificate it has; trusts the authority of `trusts`.
fn settings(own: Option<&TlsConfig>, protocol: &[u8]) -> Arc<ClientConfig> {
    /// Takes any peer for the right one: it is the stranger who is tried here.
    #[derive(Debug)]
    struct Anybody(Arc<rustls::crypto::CryptoProvider>);
    impl rustls::client::danger::ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            unreachable!("TLS 1.3 alone is offered")
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty());
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(table) => {
            let chain = CertificateDer::pem_file_iter(&table.cert).unwrap();
            let key = PrivateKeyDer::from_pem_file(&table.key).unwrap();
            builder
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap()
        }
    };
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anybody(provider)));
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// How it ended for a stranger.
#[derive(Debug)]
enum End {
    In(Box<Agreed>),
    Refused(RefuseReason, bool),
    Alert(AlertDescription),
    OtherProtocol,
    Closed,
}

/// What a stranger sent, each write by itself.
type Said = Vec<Vec<u8>>;

fn knock_tls(
    address: SocketAddr,
    settings: &Arc<ClientConfig>,
    hello: &InitiatorConfig,
) -> (End, Said, TcpStream) {
    let mut stream = dial(address);
    let mut pipe = Pipe::dial(settings, address).unwrap();
    let mut initiator: Option<Initiator> = None;
    let mut said = Said::new();
    loop {
        let mut out = Vec::new();
        pipe.take_bytes(&mut out);
        if !out.is_empty() {
            said.push(out.clone());
            let _ = stream.write_all(&out);
        }
        let mut bytes = vec![0; pipe.wanted()];
        let end = match stream.read(&mut bytes) {
            Ok(0) | Err(_) => End::Closed,
            Ok(got) => match pipe.feed(&bytes[..got]) {
                Ok(()) => {
                    if pipe.is_up() && initiator.is_none() {
                        let proof = Proof::Tls(pipe.secret().unwrap());
                        let config = InitiatorConfig {
                            proof,
                            ..hello.clone()
                        };
                        let (machine, message) = Initiator::new(config, [7; 32]);
                        pipe.say(&message).unwrap();
                        initiator = Some(machine);
                    }
                    let mut heard = [0; 2048];
                    let bytes = pipe.heard(&mut heard);
                    let mut rest = &heard[..bytes];
                    let mut end = None;
                    while let (false, Some(machine)) = (rest.is_empty(), &mut initiator) {
                        let (taken, step) = machine.feed(rest).unwrap();
                        rest = &rest[taken..];
                        match step {
                            Some(InitiatorStep::Done { agreed, .. }) => {
                                end = Some(End::In(Box::new(agreed)));
                            }
                            Some(InitiatorStep::Refused { reason, verified }) => {
                                end = Some(End::Refused(reason, verified));
                            }
                            _ => {}
                        }
                    }
                    match end {
                        Some(end) => end,
                        None => continue,
                    }
                }
                Err(TlsError::Refused(alert)) => End::Alert(alert),
                Err(TlsError::OtherProtocol) => End::OtherProtocol,
                Err(error) => panic!("{error}"),
            },
        };
        return (end, said, stream);
    }
}

fn hello_of(node: &str) -> InitiatorConfig {
    InitiatorConfig {
        node: NodeId::of_name(node),
        ..proposal(fresh_id())
    }
}

/// Waits until it was counted once more than `before`.
fn counted(stage: &Stage, refusal: Refusal, before: u64) {
    let patience = std::time::Duration::from_secs(10);
    let found = poll_until(patience, || {
        (stage.destination.refused(refusal) > before).then_some(())
    });
    assert!(found.is_some(), "{refusal} was not counted");
}

#[test]
fn every_wrong_certificate_is_refused_told_and_counted() {
    let (dir, mut authority) = authority();
    let mut elsewhere = Authority::new(&dir.path().join("elsewhere"));
    elsewhere.issue("x", Kind::Good);
    let kinds = [
        ("expired", Kind::Expired),
        ("web", Kind::WebServer),
        ("both", Kind::ForBoth),
        ("good", Kind::Good),
    ];
    for (node, kind) in kinds {
        authority.issue(node, kind);
    }
    let revoked = authority.issue("revoked", Kind::Good);
    authority.revoke(&[revoked]);
    let stage = Stage::around(pair(&authority, PairOptions::default()));
    let address = stage.pair.destination_address();
    let tables = |node: &str| authority.table(node);
    for (own, refusal, alert) in [
        (
            Some(elsewhere.table("x")),
            Refusal::UnknownAuthority,
            AlertDescription::UnknownCA,
        ),
        (
            Some(tables("expired")),
            Refusal::Expired,
            AlertDescription::CertificateExpired,
        ),
        (
            Some(tables("revoked")),
            Refusal::Revoked,
            AlertDescription::CertificateRevoked,
        ),
        (
            Some(tables("web")),
            Refusal::NotForMigration,
            AlertDescription::CertificateUnknown,
        ),
        (
            Some(tables("both")),
            Refusal::NotForMigration,
            AlertDescription::CertificateUnknown,
        ),
        (
            None,
            Refusal::NoCertificate,
            AlertDescription::CertificateRequired,
        ),
    ] {
        let before = stage.destination.refused(refusal);
        let settings = settings(own.as_ref(), PROTOCOL);
        let (end, ..) = knock_tls(address, &settings, &hello_of("x"));
        assert!(
            matches!(end, End::Alert(told) if told == alert),
            "{refusal}: {end:?}"
        );
        counted(&stage, refusal, before);
    }
    // A good certificate, used to say that one is another node.
    let good = settings(Some(&tables("good")), PROTOCOL);
    let (end, ..) = knock_tls(address, &good, &hello_of("b"));
    assert!(
        matches!(end, End::Refused(RefuseReason::WrongNode, true)),
        "{end:?}"
    );
    counted(&stage, Refusal::WrongNode, 0);
    // And for the session of another node.
    let theirs = InitiatorConfig {
        session: stage.id,
        ..hello_of("good")
    };
    let (end, ..) = knock_tls(address, &good, &theirs);
    assert!(
        matches!(end, End::Refused(RefuseReason::NotYourSession, true)),
        "{end:?}"
    );
    counted(&stage, Refusal::NotItsSession, 0);
    // For another service's protocol.
    let other = settings(Some(&tables("good")), b"h2");
    let (end, ..) = knock_tls(address, &other, &hello_of("good"));
    assert!(matches!(end, End::OtherProtocol), "{end:?}");
    let opened = stage.destination.counter_of(0, "sessions_opened_total");
    assert_eq!(opened, 1, "a stranger opened a session");
    assert!(
        stage
            .pair
            .accept_within(std::time::Duration::ZERO)
            .is_none()
    );
    // And after all that a good one is let in.
    let (end, ..) = knock_tls(address, &good, &hello_of("good"));
    assert!(matches!(end, End::In(_)), "{end:?}");
    drop(stage.pair.accept_within(std::time::Duration::ZERO));
    stage.finish();
}

#[test]
fn without_tls_nobody_gets_in_not_even_with_the_shared_key() {
    let (_dir, authority) = authority();
    let stage = Stage::around(pair(&authority, PairOptions::default()));
    let address = stage.pair.destination_address();
    let knocked = knock(address, &proposal(fresh_id()));
    assert!(
        matches!(knocked, Knocked::Refused(RefuseReason::TlsRequired, false)),
        "{knocked:?}"
    );
    counted(&stage, Refusal::TlsRequired, 0);
    stage.finish();
}

#[test]
fn a_recorded_handshake_over_tls_is_worth_nothing() {
    let (_dir, mut authority) = authority();
    authority.issue("good", Kind::Good);
    let mut stage = Stage::around(pair(&authority, PairOptions::default()));
    let address = stage.pair.destination_address();
    let good = settings(Some(&authority.table("good")), PROTOCOL);
    let hello = hello_of("good");
    let (end, said, lane) = knock_tls(address, &good, &hello);
    let End::In(agreed) = end else {
        panic!("{end:?}")
    };
    stage.destination.wait("the lane", |picture| {
        picture.id.0 == agreed.session.0 && picture.lanes_up == 1
    });
    for _ in 0..5 {
        let before = stage.destination.refused(Refusal::Protocol);
        let mut stream = dial(address);
        stream.write_all(&said[0]).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], 22, "no TLS answer");
        for more in &said[1..] {
            let _ = stream.write_all(more);
        }
        counted(&stage, Refusal::Protocol, before);
    }
    // A later lane is proven by the session's key: another session's, or none, is no proof.
    for session in [agreed.session, stage.id, fresh_id()] {
        let before = stage.destination.refused(Refusal::WrongKey);
        let stranger = dwcp_dataplane::transport::wire::keys::KeyHalf([1; 32]);
        let proof = Proof::Session(
            dwcp_dataplane::transport::wire::keys::SessionKey::of_halves(
                [&stranger, &stranger],
                session,
                hello.node,
                agreed.acceptor,
                hello.epoch,
            ),
        );
        let config = InitiatorConfig {
            proof,
            session,
            ..hello.clone()
        };
        let knocked = knock(address, &config);
        assert!(
            matches!(knocked, Knocked::Refused(RefuseReason::WrongKey, false)),
            "{knocked:?}"
        );
        counted(&stage, Refusal::WrongKey, before);
    }
    // With the right one it is a lane.
    let config = InitiatorConfig {
        proof: Proof::Session(agreed.key.clone()),
        lane: dwcp_dataplane::transport::LaneIx(1),
        ..hello
    };
    let knocked = knock(address, &config);
    assert!(matches!(knocked, Knocked::In(_)), "{knocked:?}");
    let session = dwcp_api::SessionId(agreed.session.0);
    stage
        .destination
        .command(&dwcp_api::command::Command::Cancel { session });
    drop(lane);
    stage.finish();
}

#[test]
fn ten_thousand_idle_connections_keep_neither_a_running_session_nor_a_new_one_from_working() {
    let (_dir, mut authority) = authority();
    authority.issue("good", Kind::Good);
    let mut stage = Stage::around(pair(&authority, PairOptions::default()));
    let address = stage.pair.destination_address();
    let good = settings(Some(&authority.table("good")), PROTOCOL);
    let before = resident_bytes();
    let hello = {
        let mut pipe = Pipe::dial(&good, address).unwrap();
        let mut bytes = Vec::new();
        pipe.take_bytes(&mut bytes);
        bytes
    };
    let mut idle = Vec::with_capacity(10_000);
    for nth in 0..10_000_u32 {
        let mut stream = TcpStream::connect(address).unwrap();
        // Some begin TLS and fall silent, some send half a record, some a few bytes of nothing.
        let bytes: &[u8] = match nth % 4 {
            0 => &[],
            1 => &hello,
            2 => &hello[..hello.len() / 2],
            _ => &[166, 0, 1],
        };
        let _ = stream.write_all(bytes);
        idle.push(stream);
        if nth % 2_500 == 1_250 {
            stage.beside.check_moves();
            assert!(stage.destination.door().under_way.get() <= 256);
            let (end, ..) = knock_tls(address, &good, &hello_of("good"));
            let End::In(agreed) = end else {
                panic!("a good peer is kept out: {end:?}")
            };
            let session = dwcp_api::SessionId(agreed.session.0);
            stage
                .destination
                .command(&dwcp_api::command::Command::Cancel { session });
        }
    }
    stage.beside.check_moves();
    let grown = resident_bytes().saturating_sub(before);
    println!("{} MiB more in use", grown >> 20);
    assert!(grown < 128 << 20, "{grown} bytes more in use");
    assert!(stage.destination.refused(Refusal::Crowded) > 9_000);
    drop(idle);
    stage.finish();
}
