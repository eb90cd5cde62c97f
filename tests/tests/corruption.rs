//! A thousand ways to damage what two data planes say to each other: whatever happens, the receiving
//! hypervisor gets the sent bytes from the first on and no other, or all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::mitm::{Damage, Fault, Way};
use dwcp_tests::pair::{Pair, PairOptions, noise};

const CASES: u64 = 1_000;
/// Lanes of a session of [`Pair`].
const LANES: u64 = 4;

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// A stream with pages that repeat, change and do not shrink, so that every encoding has its part.
fn stream() -> Vec<u8> {
    let random = noise(7, 40 * 4096);
    let pages: Vec<[u8; 4096]> = random
        .chunks_exact(4096)
        .enumerate()
        .map(|(index, chunk)| {
            let mut page: [u8; 4096] = chunk.try_into().unwrap();
            if index % 2 == 0 {
                page[512..].fill(index as u8 + 1);
            }
            page
        })
        .collect();
    let mut changed = pages.clone();
    changed.iter_mut().for_each(|page| page[9] ^= 1);
    let sent: Vec<(u64, &[u8; 4096])> = (0..240)
        .map(|n: u64| {
            let from = if n < 120 { &pages } else { &changed };
            (n % 120, &from[(n * 7 % 40) as usize])
        })
        .collect();
    StreamBuilder::precopy(&sent, &noise(8, 30_000))
}

enum Outcome {
    Whole,
    Prefix,
}

fn one_case(pair: &Pair, stream: &[u8], fault: Fault) -> Outcome {
    pair.mitm().add(fault);
    let mut client = pair.connect();
    let to_send = stream.to_vec();
    let sender = std::thread::spawn(move || {
        // A session that fails closed closes this connection: then writing ends early.
        let _ = client.write_all(&to_send);
        let _ = client.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
    });
    let mut got = Vec::new();
    if let Some(mut server) = pair.accept_within(Duration::from_secs(8)) {
        server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        match server.read_to_end(&mut got) {
            Ok(_) => {}
            Err(error) => assert!(
                error.kind() == std::io::ErrorKind::ConnectionReset,
                "the session hangs: {error} ({fault:?})"
            ),
        }
        drop(server);
    }
    sender.join().unwrap();
    assert!(got.len() <= stream.len(), "{} bytes out of {} ({fault:?})", got.len(), stream.len());
    assert!(got == stream[..got.len()], "wrong bytes were released ({fault:?})");
    if got.len() == stream.len() { Outcome::Whole } else { Outcome::Prefix }
}

#[test]
fn a_thousand_damaged_sessions_release_no_wrong_byte() {
    let pair =
        Pair::start(PairOptions { mitm: true, resume_limit_ms: 4_000, ..PairOptions::default() });
    let stream = stream();
    let mut dice = Dice(0x5eed_0001);
    let (mut whole, mut prefix) = (0, 0);
    for case in 0..CASES {
        let damage = match case % 4 {
            0 => Damage::Corrupt,
            1 => Damage::Drop(1 + dice.below(3_000)),
            2 => Damage::Repeat(1 + dice.below(3_000)),
            _ => Damage::Swap(1 + dice.below(3_000)),
        };
        let forward = dice.below(4) != 0;
        let fault = Fault {
            // The lanes of this session are dialled next.
            connection: pair.mitm().connections() + dice.below(LANES),
            way: if forward { Way::Forward } else { Way::Backward },
            offset: if forward { dice.below(60_000) } else { dice.below(400) },
            damage,
        };
        match one_case(&pair, &stream, fault) {
            Outcome::Whole => whole += 1,
            Outcome::Prefix => prefix += 1,
        }
    }
    let struck = pair.mitm().struck();
    println!("{CASES} cases: {struck} faults struck, {prefix} sessions failed closed, {whole} arrived whole");
    // A fault beyond the last byte of its lane strikes nothing; one in a handshake costs a lane.
    assert!(struck > CASES / 2, "only {struck} faults struck");
    assert!(prefix > CASES / 10, "only {prefix} sessions noticed");
    pair.stop();
}
