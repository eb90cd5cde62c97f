//! Arbitrary bytes to both sides of the handshake: nobody is authenticated without the key.
//!
//! The input is a list of messages, each a length byte and as many bytes; a length byte of 255
//! stands for the machine's own last output given back to it (a reflection), 254 for the genuine
//! next message of an initiator with another key.
#![no_main]

use arrayvec::ArrayString;
use dwcp_dataplane::transport::handshake::{
    Acceptor, AcceptorStep, Answer, Initiator, InitiatorConfig, InitiatorStep, Join, Message,
    Proof, Purpose, SessionParams, Way,
};
use dwcp_dataplane::transport::wire::keys::Psk;
use dwcp_dataplane::transport::{LaneIx, NodeId, SessionEpoch, SessionId, Version};
use libfuzzer_sys::fuzz_target;

fn params() -> SessionParams {
    SessionParams {
        page_store_bytes: 1 << 30,
        window_limit_bytes: 64 << 20,
        lanes_v1: 32,
        lanes_v3: 8,
        baselines: true,
    }
}

fn config(psk: Psk) -> InitiatorConfig {
    InitiatorConfig {
        proof: Proof::Node(psk),
        node: NodeId::of_name("a"),
        peer: None,
        session: SessionId([1; 16]),
        epoch: SessionEpoch(0),
        lane: LaneIx(0),
        lane_attempt: 0,
        join: Join::New,
        purpose: Purpose::Passive {
            target: ArrayString::from("vm").expect("short"),
        },
        highest: Version::V3,
        params: params(),
        way: Way::Tcp,
    }
}

fuzz_target!(|input: &[u8]| {
    to_acceptor(input);
    to_initiator(input);
});

/// The next message of the input, given what the machine said last and what a stranger would say.
fn next_message(input: &mut &[u8], own: &Message, stranger: &Message) -> Option<Vec<u8>> {
    let (&length, rest) = input.split_first()?;
    *input = rest;
    Some(match length {
        255 => own.to_vec(),
        254 => stranger.to_vec(),
        _ => {
            let (bytes, rest) = input.split_at(usize::from(length).min(input.len()));
            *input = rest;
            bytes.to_vec()
        }
    })
}

fn to_acceptor(mut input: &[u8]) {
    let mut acceptor = Acceptor::new(Proof::Node(Psk([7; 32])), NodeId::of_name("b"));
    let (mut stranger, mut says) = Initiator::new(config(Psk([8; 32])), [3; 32]);
    let mut own = Message::new();
    while let Some(bytes) = next_message(&mut input, &own, &says) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let wanted = acceptor.wanted();
            let Ok((taken, step)) = acceptor.feed(rest) else {
                return;
            };
            assert!(taken <= rest.len() && (taken >= 1 || step.is_some() || wanted == 0));
            rest = &rest[taken..];
            match step {
                None => break,
                Some(AcceptorStep::Hello(_)) => {
                    assert!(!acceptor.is_vouched_for(), "authenticated without the key");
                    match acceptor.challenge(Version::V3, params(), [2; 32]) {
                        Ok(Answer::Challenge(message)) => {
                            if let Ok((_, Some(InitiatorStep::Send(proof)))) = stranger.feed(&message) {
                                says = proof;
                            }
                            own = message;
                        }
                        Ok(Answer::VersionMismatch(_)) | Err(_) => return,
                    }
                }
                Some(AcceptorStep::Proven(_)) => panic!("authenticated without the key"),
                Some(AcceptorStep::WrongKey(_)) => return,
            }
        }
    }
}

fn to_initiator(mut input: &[u8]) {
    let (mut initiator, hello) = Initiator::new(config(Psk([7; 32])), [1; 32]);
    let mut stranger = Acceptor::new(Proof::Node(Psk([8; 32])), NodeId::of_name("b"));
    let mut says = Message::new();
    if let Ok((_, Some(AcceptorStep::Hello(_)))) = stranger.feed(&hello)
        && let Ok(Answer::Challenge(message)) = stranger.challenge(Version::V3, params(), [2; 32])
    {
        says = message;
    }
    let mut own = hello;
    while let Some(bytes) = next_message(&mut input, &own, &says) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok((taken, step)) = initiator.feed(rest) else {
                return;
            };
            assert!(taken <= rest.len());
            rest = &rest[taken..];
            match step {
                None => break,
                Some(InitiatorStep::Send(proof)) => {
                    if let Ok((_, Some(AcceptorStep::WrongKey(message)))) = stranger.feed(&proof) {
                        says = message;
                    }
                    own = proof;
                }
                Some(InitiatorStep::Done { .. }) => panic!("authenticated without the key"),
                Some(InitiatorStep::Refused { verified, .. }) => {
                    assert!(!verified, "vouched for without the key");
                    return;
                }
            }
        }
    }
}
