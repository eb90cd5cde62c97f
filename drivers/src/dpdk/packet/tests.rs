//! What is built is understood; what strangers make does no harm.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::Mac;
use super::build::{Headers, answer, question};
use super::parse::{DropCounts, Dropped, Heard, Local, parse};

const NEAR: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn far() -> Local {
    Local {
        mac: FAR,
        v4: Some("10.0.0.2".parse().unwrap()),
        v6: Some("fd00::2".parse().unwrap()),
        ports: 4800..=4803,
    }
}

fn sockets(six: bool) -> (SocketAddr, SocketAddr) {
    let (from, to) = if six {
        ("[fd00::1]:4801", "[fd00::2]:4802")
    } else {
        ("10.0.0.1:4801", "10.0.0.2:4802")
    };
    (from.parse().unwrap(), to.parse().unwrap())
}

/// A whole datagram frame, and where its payload begins.
fn frame(six: bool, payload: &[u8]) -> (Vec<u8>, usize) {
    let (from, to) = sockets(six);
    let headers = Headers::new((NEAR, from), FAR, to).unwrap();
    let start = headers.len_bytes();
    let mut frame = vec![0xaa; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    let length = headers.finish(&mut frame, payload.len()).unwrap();
    assert_eq!(length, frame.len());
    (frame, start)
}

#[test]
fn a_datagram_arrives_as_it_was_built() {
    for six in [false, true] {
        for bytes in [1, 2, 3, 1472, 4160, 9000] {
            let payload: Vec<u8> = (0..bytes).map(|n| (n * 7) as u8).collect();
            let (mut frame, start) = frame(six, &payload);
            // Ethernet pads short frames.
            frame.resize(frame.len().max(60), 0);
            let (from, to) = sockets(six);
            let expected = Heard::Datagram {
                from,
                to_port: to.port(),
                payload: start..start + bytes,
            };
            assert_eq!(parse(&frame, &far(), false), Ok(expected), "{six} {bytes}");
            assert_eq!(&frame[start..start + bytes], &payload[..]);
        }
    }
}

#[test]
fn questions_and_answers_are_understood() {
    let mut buffer = [0; 128];
    for (near, wanted) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (near, wanted): (IpAddr, IpAddr) = (near.parse().unwrap(), wanted.parse().unwrap());
        let length = question(&mut buffer, NEAR, near, wanted).unwrap();
        let heard = parse(&buffer[..length], &far(), false);
        let asked = Heard::Asked {
            ip: near,
            mac: NEAR,
        };
        assert_eq!(heard, Ok(asked));
        // And back: the one who asked hears the answer.
        let length = answer(&mut buffer, FAR, wanted, (NEAR, near)).unwrap();
        let asker = Local {
            mac: NEAR,
            v4: Some("10.0.0.1".parse().unwrap()),
            v6: Some("fd00::1".parse().unwrap()),
            ports: 1..=1,
        };
        let answered = Heard::Answered {
            ip: wanted,
            mac: FAR,
        };
        assert_eq!(parse(&buffer[..length], &asker, false), Ok(answered));
        let stranger = Local {
            v4: Some("10.0.0.9".parse().unwrap()),
            v6: Some("fd00::9".parse().unwrap()),
            ..asker
        };
        let length = question(&mut buffer, NEAR, near, wanted).unwrap();
        let heard = parse(&buffer[..length], &stranger, false);
        assert_eq!(heard, Err(Dropped::OtherHost));
    }
}

#[test]
fn buffers_that_are_too_small_give_nothing() {
    let (from, to) = sockets(false);
    let headers = Headers::new((NEAR, from), FAR, to).unwrap();
    let room = headers.len_bytes() + 10;
    assert_eq!(headers.finish(&mut vec![0; room], 11), None);
    assert_eq!(
        headers.finish(&mut vec![0; 70_000], 65_600),
        None,
        "16 bits"
    );
    assert!(Headers::new((NEAR, from), FAR, sockets(true).1).is_none());
    for (near, wanted) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        let (near, wanted) = (near.parse().unwrap(), wanted.parse().unwrap());
        assert_eq!(question(&mut [0; 41], NEAR, near, wanted), None);
    }
}

/// Changes one byte of a good frame and says what must come of it.
fn spoilt(six: bool, at: usize, value: u8) -> Result<(), Dropped> {
    let (mut frame, _) = frame(six, b"a payload of some length");
    frame[at] = value;
    parse(&frame, &far(), false).map(|_| ())
}

#[test]
fn each_kind_of_damage_has_its_reason() {
    assert_eq!(spoilt(false, 5, 9), Err(Dropped::OtherHost), "Ethernet to");
    assert_eq!(spoilt(false, 6, 1), Err(Dropped::BadSource), "from a group");
    assert_eq!(spoilt(false, 13, 9), Err(Dropped::OtherProtocol));
    assert_eq!(spoilt(false, 14, 0x65), Err(Dropped::BadHeader), "version");
    assert_eq!(
        spoilt(false, 14, 0x44),
        Err(Dropped::BadHeader),
        "too short"
    );
    assert_eq!(spoilt(false, 14, 0x4f), Err(Dropped::Short), "options");
    assert_eq!(
        spoilt(false, 16, 9),
        Err(Dropped::Short),
        "longer than it is"
    );
    assert_eq!(spoilt(false, 22, 9), Err(Dropped::Checksum), "hops");
    assert_eq!(spoilt(false, 33, 9), Err(Dropped::OtherHost), "IP to");
    assert_eq!(spoilt(false, 37, 9), Err(Dropped::OtherPort));
    assert_eq!(spoilt(false, 39, 7), Err(Dropped::BadHeader), "UDP length");
    assert_eq!(spoilt(false, 38, 9), Err(Dropped::Short), "UDP length");
    assert_eq!(spoilt(true, 14, 0x40), Err(Dropped::BadHeader), "version");
    assert_eq!(spoilt(true, 18, 9), Err(Dropped::Short));
    assert_eq!(spoilt(true, 20, 6), Err(Dropped::OtherProtocol));
    assert_eq!(spoilt(true, 22, 0xff), Err(Dropped::BadSource));
    assert_eq!(spoilt(true, 30, 9), Err(Dropped::Checksum), "source");
    assert_eq!(spoilt(true, 70, 9), Err(Dropped::Checksum), "payload");
    let (mut no_sum, _) = frame(true, b"payload");
    no_sum[60..62].fill(0);
    assert_eq!(parse(&no_sum, &far(), false), Err(Dropped::Checksum));
}

#[test]
fn a_fragment_is_told_from_a_packet_that_must_not_be_cut() {
    let (mut bytes, _) = frame(false, b"first half");
    // More fragments, with the header's checksum made right again.
    bytes[20] = 0x20;
    bytes[24..26].fill(0);
    let sum = super::checksum::Sum::new().over(&bytes[14..34]).finish();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(parse(&bytes, &far(), false), Err(Dropped::Fragment));
}

#[test]
fn a_udp_checksum_over_ipv4_counts_when_there_is_one() {
    let (mut bytes, start) = frame(false, b"with a checksum");
    let udp_bytes = (bytes.len() - 34) as u16;
    let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let sum = super::checksum::pseudo_v4(from, to, 17, udp_bytes).over(&bytes[34..]);
    bytes[40..42].copy_from_slice(&sum.finish().to_be_bytes());
    assert!(parse(&bytes, &far(), false).is_ok());
    bytes[start] ^= 1;
    assert_eq!(parse(&bytes, &far(), false), Err(Dropped::Checksum));
    assert!(parse(&bytes, &far(), true).is_ok(), "the device has looked");
}

#[test]
fn neighbour_discovery_keeps_its_rules() {
    let mut good = [0; 128];
    let (near, wanted) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
    let length = question(&mut good, NEAR, near, wanted).unwrap();
    let heard = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        // All but the last is caught with a right checksum only.
        bytes[56..58].fill(0);
        let sum = super::checksum::pseudo_v6(
            "fd00::1".parse().unwrap(),
            "ff02::1:ff00:2".parse().unwrap(),
            58,
            32,
        );
        let sum = sum.over(&bytes[54..length]).finish();
        bytes[56..58].copy_from_slice(&sum.to_be_bytes());
        parse(&bytes[..length], &far(), false).map(|_| ())
    };
    assert_eq!(heard(54, 135), Ok(()));
    assert_eq!(heard(21, 254), Err(Dropped::BadNeighbour), "from afar");
    assert_eq!(heard(55, 1), Err(Dropped::BadNeighbour), "code");
    assert_eq!(heard(78, 9), Err(Dropped::BadNeighbour), "no address");
    assert_eq!(heard(79, 0), Err(Dropped::BadNeighbour), "no length");
    assert_eq!(heard(79, 2), Err(Dropped::BadNeighbour), "too long");
    assert_eq!(heard(80, 3), Err(Dropped::BadNeighbour), "of a group");
    assert_eq!(heard(54, 128), Err(Dropped::OtherProtocol), "an echo");
}

#[test]
fn every_reason_has_a_counter_of_its_own() {
    let mut counts = DropCounts::default();
    for (times, reason) in Dropped::ALL.into_iter().enumerate() {
        for _ in 0..times {
            counts.count(reason);
        }
    }
    for (times, reason) in Dropped::ALL.into_iter().enumerate() {
        assert_eq!(counts.of(reason), times as u64, "{reason:?}");
    }
    assert_eq!(counts.total(), 36);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, &far(), false);
    }

    /// One wrong byte: what is given out in spite of it lies inside the frame, and what a checksum
    /// covers is never given out wrong.
    #[test]
    fn a_wrong_byte_never_gives_wrong_bytes(
        six: bool,
        payload in proptest::collection::vec(any::<u8>(), 1..300),
        at in 0usize..400,
        value: u8,
        cut in 0usize..400,
    ) {
        let (mut bytes, start) = frame(six, &payload);
        let at = at % bytes.len();
        bytes[at] = value;
        let cut = bytes.len() - cut % bytes.len();
        if let Ok(Heard::Datagram { payload: got, .. }) = parse(&bytes[..cut], &far(), false) {
            prop_assert!(got.start >= start && got.end <= cut);
            if six {
                prop_assert_eq!(&bytes[got], &payload[..]);
            }
        }
    }

    /// The same behind a header that passes: all the way into the messages about neighbours.
    #[test]
    fn any_message_about_neighbours_is_read_or_dropped(
        body in proptest::collection::vec(any::<u8>(), 0..96),
        kind in 133u8..138,
    ) {
        let mut bytes = [0; 128];
        let (near, wanted) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        question(&mut bytes, NEAR, near, wanted).unwrap();
        let mut bytes = bytes[..54].to_vec();
        bytes.extend_from_slice(&body);
        bytes[18..20].copy_from_slice(&(body.len() as u16).to_be_bytes());
        if body.len() >= 4 {
            bytes[54] = kind;
            bytes[56..58].fill(0);
            let sum = super::checksum::pseudo_v6(
                "fd00::1".parse().unwrap(),
                "ff02::1:ff00:2".parse().unwrap(),
                58,
                body.len() as u16,
            );
            let sum = sum.over(&bytes[54..]).finish();
            bytes[56..58].copy_from_slice(&sum.to_be_bytes());
        }
        let _ = parse(&bytes, &far(), false);
    }
}
