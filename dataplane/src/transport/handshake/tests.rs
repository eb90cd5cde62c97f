use super::super::wire::keys::Psk;
use super::*;

const KEY: [u8; 32] = [7; 32];

fn params(scale: u64) -> SessionParams {
    SessionParams {
        page_store_bytes: scale << 30,
        window_limit_bytes: scale << 20,
        lanes_v1: 32,
        lanes_v3: 8,
        baselines: true,
    }
}

fn address(host: u8) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([10, 0, 0, host], 4791))
}

fn dpdk(host: u8) -> Way {
    Way::Dpdk {
        address: address(host),
        guard: Guard::default(),
    }
}

fn config(secret: [u8; 32]) -> InitiatorConfig {
    InitiatorConfig {
        proof: Proof::Node(Psk(secret)),
        node: NodeId::of_name("source"),
        peer: Some(NodeId::of_name("destination")),
        session: SessionId([9; 16]),
        epoch: SessionEpoch(1),
        lane: LaneIx(3),
        lane_attempt: 2,
        join: Join::New,
        purpose: Purpose::Passive {
            target: ArrayString::from("vm-7").unwrap(),
        },
        highest: Version::V3,
        params: params(4),
        way: dpdk(1),
    }
}

/// What a run ended with at either end.
#[derive(Debug)]
enum End {
    Welcome(Box<(Agreed, Agreed)>),
    Refused(RefuseReason, bool),
    Broken,
}

/// Both machines joined by a middleman that may change message `index` (0 HELLO, 1 CHALLENGE,
/// 2 PROOF, 3 last). Bytes come one at a time to the initiator.
fn run(
    config: InitiatorConfig,
    secret: [u8; 32],
    highest: Version,
    refuse: Option<RefuseReason>,
    mut middleman: impl FnMut(usize, &mut Message),
) -> End {
    let (mut initiator, mut hello) = Initiator::new(config, [1; 32]);
    let node = NodeId::of_name("destination");
    let mut acceptor = Acceptor::new(Proof::Node(Psk(secret)), node);
    middleman(0, &mut hello);
    let Ok((_, Some(AcceptorStep::Hello(_)))) = acceptor.feed(&hello) else {
        return End::Broken;
    };
    let answer = acceptor.challenge(highest, params(2), [2; 32]);
    let (mut message, more) = match answer {
        Ok(Answer::Challenge(message)) => (message, true),
        Ok(Answer::VersionMismatch(message)) => (message, false),
        Err(_) => return End::Broken,
    };
    middleman(1, &mut message);
    let mut proof = match feed_bytewise(&mut initiator, &message) {
        Ok(InitiatorStep::Send(proof)) => proof,
        Ok(InitiatorStep::Refused { reason, verified }) => return End::Refused(reason, verified),
        _ => return End::Broken,
    };
    assert!(more);
    middleman(2, &mut proof);
    let (mut last, there) = match acceptor.feed(&proof) {
        Ok((_, Some(AcceptorStep::Proven(proven)))) => match refuse {
            Some(reason) => (acceptor.refuse(reason).unwrap(), None),
            None => {
                let way = match proven.wanted {
                    Way::Dpdk { .. } => dpdk(2),
                    _ => Way::Tcp,
                };
                let (message, agreed) = acceptor.welcome(proven, BatchSeq(0), way).unwrap();
                (message, Some(agreed))
            }
        },
        Ok((_, Some(AcceptorStep::WrongKey(message)))) => (message, None),
        _ => return End::Broken,
    };
    middleman(3, &mut last);
    match (feed_bytewise(&mut initiator, &last), there) {
        (Ok(InitiatorStep::Done { agreed, .. }), Some(there)) => {
            End::Welcome(Box::new((agreed, there)))
        }
        (Ok(InitiatorStep::Refused { reason, verified }), _) => End::Refused(reason, verified),
        (Ok(_), _) => panic!("the initiator believes what the acceptor did not say"),
        (Err(_), _) => End::Broken,
    }
}

fn feed_bytewise(
    initiator: &mut Initiator,
    message: &[u8],
) -> Result<InitiatorStep, HandshakeError> {
    for byte in message {
        assert!(initiator.wanted() >= 1);
        if let (1, Some(step)) = initiator.feed(std::slice::from_ref(byte))? {
            return Ok(step);
        }
    }
    Err(HandshakeError::OutOfTurn)
}

fn untouched(_: usize, _: &mut Message) {}

#[test]
fn both_ends_agree_on_all_of_it() {
    let End::Welcome(both) = run(config(KEY), KEY, Version::V3, None, untouched) else {
        panic!("not welcome");
    };
    let (here, there) = *both;
    assert_eq!(here.version, Version::V3);
    assert_eq!(here.params, params(2), "the lesser of both");
    assert_eq!(
        (here.session, here.epoch),
        (SessionId([9; 16]), SessionEpoch(1))
    );
    assert_eq!((there.lane, there.lane_attempt), (LaneIx(3), 2));
    assert_eq!((here.params, here.version), (there.params, there.version));
    assert_eq!((&here.purpose, here.join), (&there.purpose, there.join));
    assert_eq!(
        (here.initiator, here.acceptor),
        (there.initiator, there.acceptor)
    );
    assert_eq!(here.way.initiator, dpdk(1));
    assert_eq!(here.way.acceptor, dpdk(2));
    assert_eq!(
        (there.way.initiator, there.way.acceptor, there.way.secret.0),
        (here.way.initiator, here.way.acceptor, here.way.secret.0)
    );
    let chain = |agreed: &Agreed| *agreed.key.frame_keys(Side::Initiator.sends()).chain_key();
    assert_eq!(chain(&here), chain(&there));
    assert_ne!(
        chain(&here),
        *here.key.frame_keys(Side::Initiator.receives()).chain_key()
    );
    assert_eq!(Side::Initiator.sends(), Side::Acceptor.receives());
}

#[test]
fn baselines_are_agreed_on_where_both_keep_them_and_speak_v3() {
    let all = [
        (Version::V3, Version::V3),
        (Version::V1, Version::V3),
        (Version::V3, Version::V1),
    ];
    for (ours, theirs) in all {
        for keeps in [true, false] {
            let mut config = config(KEY);
            config.highest = ours;
            config.params.baselines = keeps;
            let End::Welcome(both) = run(config, KEY, theirs, None, untouched) else {
                panic!("not welcome");
            };
            let expected = keeps && ours == Version::V3 && theirs == Version::V3;
            assert_eq!(both.0.params.baselines, expected);
            assert_eq!(both.0.params, both.1.params);
        }
    }
    // An acceptor that answers what was not offered.
    let mut config = config(KEY);
    config.params.baselines = false;
    let forged = run(config, KEY, Version::V3, None, |at, message| {
        if at == 1 {
            message[3] |= 0x80;
        }
    });
    assert!(matches!(forged, End::Broken));
}

#[test]
fn the_highest_common_version_is_chosen() {
    for (here, there, expected) in [
        (Version::V1, Version::V3, Version::V1),
        (Version::V3, Version::V1, Version::V1),
        (Version::V1, Version::V1, Version::V1),
    ] {
        let config = InitiatorConfig {
            highest: here,
            ..config(KEY)
        };
        let End::Welcome(both) = run(config, KEY, there, None, untouched) else {
            panic!("not welcome");
        };
        assert_eq!(both.0.version, expected);
    }
}

#[test]
fn without_the_key_there_is_no_welcome() {
    let end = run(config(KEY), [8; 32], Version::V3, None, untouched);
    assert!(
        matches!(end, End::Refused(RefuseReason::WrongKey, false)),
        "{end:?}"
    );
}

#[test]
fn refusals_are_typed_and_vouched_for() {
    for reason in [
        RefuseReason::UnknownSession,
        RefuseReason::TooManySessions,
        RefuseReason::Busy,
        RefuseReason::PassiveTargetUnknown,
        RefuseReason::SessionGone,
        RefuseReason::TlsRequired,
        RefuseReason::NotYourSession,
        RefuseReason::WrongNode,
    ] {
        let end = run(config(KEY), KEY, Version::V3, Some(reason), untouched);
        assert!(
            matches!(end, End::Refused(r, true) if r == reason),
            "{end:?}"
        );
    }
    // The offer is the bitmap behind length, kind, magic and revision; 0 offers nothing.
    let end = run(config(KEY), KEY, Version::V3, None, |index, message| {
        if index == 0 {
            message[8] = 0;
        }
    });
    assert!(
        matches!(end, End::Refused(RefuseReason::VersionMismatch, false)),
        "{end:?}"
    );
}

/// Bit 1 was v3 with payloads of another make: what offers that and v1 gets v1.
#[test]
fn the_v3_of_old_is_not_taken_for_ours() {
    for (offers, agreed) in [(1 | 2, Version::V1), (1 | 4, Version::V3)] {
        let mut raw: super::message::RawHello = zerocopy::FromZeros::new_zeroed();
        raw.offers = offers;
        assert_eq!(raw.choose_version(Version::V3), Some(agreed));
    }
}

#[test]
fn a_downgrade_on_the_way_is_noticed() {
    let end = run(config(KEY), KEY, Version::V3, None, |index, message| {
        if index == 0 {
            assert_eq!(message[8], 13);
            message[8] = 1;
        }
    });
    assert!(!matches!(end, End::Welcome(_)), "{end:?}");
}

#[test]
fn any_bit_changed_on_the_way_prevents_the_welcome() {
    for index in 0..4 {
        let mut bits = 8;
        let mut bit = 0;
        while bit < bits {
            let end = run(config(KEY), KEY, Version::V3, None, |at, message| {
                if at == index {
                    bits = message.len() * 8;
                    message[bit / 8] ^= 1 << (bit % 8);
                }
            });
            assert!(!matches!(end, End::Welcome(_)), "message {index} bit {bit}");
            assert!(
                !matches!(end, End::Refused(_, true)),
                "message {index} bit {bit}"
            );
            bit += 1;
        }
    }
}

#[test]
fn a_recorded_handshake_does_not_open_the_door_again() {
    let mut recorded = Vec::new();
    run(config(KEY), KEY, Version::V3, None, |_, message| {
        recorded.push(message.clone())
    });
    let node = NodeId::of_name("destination");
    let mut acceptor = Acceptor::new(Proof::Node(Psk(KEY)), node);
    assert!(matches!(
        acceptor.feed(&recorded[0]),
        Ok((_, Some(AcceptorStep::Hello(_))))
    ));
    acceptor.challenge(Version::V3, params(2), [3; 32]).unwrap();
    assert!(matches!(
        acceptor.feed(&recorded[2]),
        Ok((_, Some(AcceptorStep::WrongKey(_))))
    ));
    // Nor does it convince an initiator with a fresh nonce.
    let (mut initiator, _) = Initiator::new(config(KEY), [4; 32]);
    assert!(matches!(
        initiator.feed(&recorded[1]),
        Ok((_, Some(InitiatorStep::Send(_))))
    ));
    assert!(matches!(
        initiator.feed(&recorded[3]),
        Err(HandshakeError::WrongKey)
    ));
}

#[test]
fn another_node_with_the_key_is_not_the_peer() {
    let peer = Some(NodeId::of_name("elsewhere"));
    let config = InitiatorConfig {
        peer,
        ..config(KEY)
    };
    assert!(matches!(
        run(config, KEY, Version::V3, None, untouched),
        End::Broken
    ));
}

#[test]
fn lengths_and_turns_are_checked() {
    let node = NodeId::of_name("destination");
    let fresh = || Acceptor::new(Proof::Node(Psk(KEY)), node);
    for length in [0u16, 1023, u16::MAX] {
        let error = fresh().feed(&length.to_le_bytes()).unwrap_err();
        assert_eq!(
            error,
            HandshakeError::BadLength {
                body_bytes: usize::from(length)
            }
        );
    }
    let mut acceptor = fresh();
    assert!(acceptor.refuse(RefuseReason::Busy).is_err());
    let (_, hello) = Initiator::new(config(KEY), [1; 32]);
    let mut acceptor = fresh();
    // What follows the message stays with the caller.
    let mut bytes = hello.to_vec();
    bytes.extend([1, 2, 3]);
    assert_eq!(acceptor.feed(&bytes).unwrap().0, hello.len());
    assert!(matches!(
        acceptor.feed(&[0]),
        Err(HandshakeError::OutOfTurn)
    ));
    let zero_lanes = SessionParams {
        lanes_v1: 0,
        ..params(1)
    };
    assert!(
        acceptor
            .challenge(Version::V3, zero_lanes, [2; 32])
            .is_err()
    );
}

/// An initiator that wants a DPDK lane and an acceptor that is about to welcome it.
fn up_to_the_welcome() -> (Initiator, Acceptor, Proven) {
    let (mut initiator, hello) = Initiator::new(config(KEY), [1; 32]);
    let mut acceptor = Acceptor::new(Proof::Node(Psk(KEY)), NodeId::of_name("destination"));
    acceptor.feed(&hello).unwrap();
    let Ok(Answer::Challenge(challenge)) = acceptor.challenge(Version::V3, params(2), [2; 32])
    else {
        panic!("no challenge");
    };
    let Ok((_, Some(InitiatorStep::Send(proof)))) = initiator.feed(&challenge) else {
        panic!("no proof");
    };
    let Ok((_, Some(AcceptorStep::Proven(proven)))) = acceptor.feed(&proof) else {
        panic!("not proven");
    };
    (initiator, acceptor, proven)
}

#[test]
fn an_acceptor_without_the_driver_answers_with_tcp() {
    let (mut initiator, mut acceptor, proven) = up_to_the_welcome();
    assert_eq!(proven.wanted, dpdk(1));
    let (welcome, there) = acceptor.welcome(proven, BatchSeq(0), Way::Tcp).unwrap();
    let Ok((_, Some(InitiatorStep::Done { agreed, .. }))) = initiator.feed(&welcome) else {
        panic!("not welcome");
    };
    for way in [agreed.way, there.way] {
        assert_eq!((way.initiator, way.acceptor), (Way::Tcp, Way::Tcp));
    }
}

#[test]
fn a_driver_that_nobody_asked_for_is_neither_answered_nor_believed() {
    let (_, mut acceptor, proven) = up_to_the_welcome();
    let other = Way::Rdma(address(2));
    assert!(acceptor.welcome(proven, BatchSeq(0), other).is_err());

    let (mut initiator, mut acceptor, mut proven) = up_to_the_welcome();
    proven.wanted = other;
    let (welcome, _) = acceptor.welcome(proven, BatchSeq(0), other).unwrap();
    assert!(matches!(
        initiator.feed(&welcome),
        Err(HandshakeError::BeyondProposal { field: "driver" })
    ));
}

/// Two machines over one TLS connection whose exporter gave `exporter`, their halves 5 and 6.
fn over_tls(exporter: [[u8; 32]; 2]) -> Option<(Agreed, Agreed)> {
    let [here, there] = exporter.map(|secret| Proof::Tls(Psk(secret)));
    let config = InitiatorConfig {
        proof: here,
        ..config(KEY)
    };
    let (mut initiator, hello) = Initiator::new(config, [5; 32]);
    let mut acceptor = Acceptor::new(there, NodeId::of_name("destination"));
    let Ok((_, Some(AcceptorStep::Hello(said)))) = acceptor.feed(&hello) else {
        panic!("no hello");
    };
    assert_eq!((said.nonce, said.by_session), ([5; 32], false));
    let (answer, proven) = acceptor
        .answer_at_once(Version::V3, params(2), [6; 32])
        .unwrap();
    let Answer::Challenge(challenge) = answer else {
        panic!("no challenge");
    };
    let (welcome, there) = acceptor
        .welcome(proven.unwrap(), BatchSeq(0), Way::Tcp)
        .unwrap();
    assert!(matches!(initiator.feed(&challenge), Ok((_, None))));
    match initiator.feed(&welcome) {
        Ok((_, Some(InitiatorStep::Done { agreed, .. }))) => Some((agreed, there)),
        Err(HandshakeError::WrongKey) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn over_tls_a_hello_and_its_answer_are_enough_and_the_key_encrypts() {
    let (here, there) = over_tls([[9; 32]; 2]).unwrap();
    assert!(here.key.is(&there.key));
    assert!(here.key.frame_keys(Side::Initiator.sends()).encrypts());
    let (_, on_another_lane) = over_tls([[8; 32]; 2]).unwrap();
    assert!(here.key.is(&on_another_lane.key), "one key for all lanes");
    assert!(over_tls([[9; 32], [8; 32]]).is_none());
}

#[test]
fn a_later_lane_is_proven_by_the_session_alone() {
    let (first, _) = over_tls([[9; 32]; 2]).unwrap();
    let lane = |key: &SessionKey| {
        let config = InitiatorConfig {
            proof: Proof::Session(first.key.clone()),
            ..config(KEY)
        };
        let (mut initiator, hello) = Initiator::new(config, [1; 32]);
        let mut acceptor = Acceptor::new(Proof::Node(Psk(KEY)), NodeId::of_name("destination"));
        let Ok((_, Some(AcceptorStep::Hello(said)))) = acceptor.feed(&hello) else {
            panic!("no hello");
        };
        assert!(said.by_session);
        acceptor.prove_by(Proof::Session(key.clone()));
        let Ok(Answer::Challenge(challenge)) = acceptor.challenge(Version::V3, params(2), [2; 32])
        else {
            panic!("no challenge");
        };
        let Ok((_, Some(InitiatorStep::Send(proof)))) = initiator.feed(&challenge) else {
            panic!("no proof");
        };
        match acceptor.feed(&proof) {
            Ok((_, Some(AcceptorStep::Proven(proven)))) => Some(proven.key().clone()),
            _ => None,
        }
    };
    assert!(lane(&first.key).unwrap().is(&first.key));
    let bound = (
        SessionId([9; 16]),
        first.initiator,
        first.acceptor,
        SessionEpoch(1),
    );
    let foreign = Proof::Tls(Psk(KEY)).session_key(bound, [&[5; 32], &[7; 32]]);
    assert!(lane(&foreign).is_none());
}

/// A HELLO that proves itself, said to an acceptor with `secret` after `middleman` had it.
fn heard(secret: [u8; 32], middleman: impl FnOnce(&mut Message)) -> Option<(Initiator, Acceptor)> {
    let (initiator, mut hello) = Initiator::new(config(KEY), [1; 32]);
    middleman(&mut hello);
    let mut acceptor = Acceptor::new(Proof::Node(Psk(secret)), NodeId::of_name("destination"));
    matches!(acceptor.feed(&hello), Ok((_, Some(AcceptorStep::Hello(_)))))
        .then_some((initiator, acceptor))
}

#[test]
fn a_hello_that_proves_itself_is_answered_at_once() {
    let (mut initiator, mut acceptor) = heard(KEY, |_| ()).unwrap();
    assert!(acceptor.is_vouched_for());
    let (answer, proven) = acceptor
        .answer_at_once(Version::V3, params(2), [2; 32])
        .unwrap();
    let Answer::Challenge(answer) = answer else {
        panic!("no answer");
    };
    let (welcome, there) = acceptor
        .welcome(proven.unwrap(), BatchSeq(0), Way::Tcp)
        .unwrap();
    assert!(matches!(initiator.feed(&answer), Ok((_, None))), "no PROOF");
    let Ok((_, Some(InitiatorStep::Done { agreed, .. }))) = initiator.feed(&welcome) else {
        panic!("not welcome");
    };
    assert!(agreed.key.is(&there.key));
    // What was said to one initiator is of no use to another.
    let (mut other, _) = Initiator::new(config(KEY), [4; 32]);
    other.feed(&answer).unwrap();
    assert!(matches!(
        other.feed(&welcome),
        Err(HandshakeError::WrongKey)
    ));
}

#[test]
fn a_hello_that_was_changed_or_is_by_another_key_proves_nothing() {
    let (_, mut acceptor) = heard([8; 32], |_| ()).unwrap();
    assert!(!acceptor.is_vouched_for());
    let early = acceptor.answer_at_once(Version::V3, params(2), [2; 32]);
    assert!(matches!(early, Err(HandshakeError::OutOfTurn)));
    let bytes = Initiator::new(config(KEY), [1; 32]).1.len();
    for bit in 16..bytes * 8 {
        let changed = heard(KEY, |hello| hello[bit / 8] ^= 1 << (bit % 8));
        assert!(
            changed.is_none_or(|(_, acceptor)| !acceptor.is_vouched_for()),
            "bit {bit}"
        );
    }
}

#[test]
fn an_answer_that_a_man_in_the_middle_made_another_ends_in_no_lane() {
    for at_once in [true, false] {
        let (mut initiator, mut acceptor) = heard(KEY, |_| ()).unwrap();
        let mut answer = if at_once {
            let at_once = acceptor.answer_at_once(Version::V3, params(2), [2; 32]);
            at_once.map(|(answer, _)| answer)
        } else {
            acceptor.challenge(Version::V3, params(2), [2; 32])
        };
        let Ok(Answer::Challenge(answer)) = &mut answer else {
            panic!("no answer");
        };
        answer[2] = if at_once { 2 } else { 6 };
        let said = initiator.feed(answer).unwrap().1;
        // It proves itself where nobody waits for that, or waits for a welcome that is for another transcript.
        assert_eq!(matches!(said, Some(InitiatorStep::Send(_))), at_once);
    }
}

#[test]
fn padding_comes_before_a_hello_alone_and_only_so_much_of_it() {
    let node = NodeId::of_name("destination");
    let proof = || Proof::Node(Psk(KEY));
    let (_, hello) = Initiator::new(config(KEY), [1; 32]);
    let piece = pad(160);
    assert_eq!(piece.len(), 160);
    let mut parked = Acceptor::parked(proof(), node, 320);
    for _ in 0..2 {
        assert!(matches!(parked.feed(&piece), Ok((160, None))));
    }
    let step = parked.feed(&hello).unwrap().1;
    assert!(matches!(step, Some(AcceptorStep::Hello(_))), "{step:?}");
    let mut parked = Acceptor::parked(proof(), node, 319);
    assert!(parked.feed(&piece).is_ok());
    assert_eq!(
        parked.feed(&piece).unwrap_err(),
        HandshakeError::TooMuchPadding
    );
    let mut fresh = Acceptor::new(proof(), node);
    for _ in 0..OPENING_PADDING_BYTES / 160 {
        assert!(matches!(fresh.feed(&piece), Ok((160, None))));
    }
    let too_much = fresh.feed(&piece).unwrap_err();
    assert_eq!(too_much, HandshakeError::TooMuchPadding);
}
