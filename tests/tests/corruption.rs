//! A thousand ways to damage what two data planes say to each other: whatever happens, the receiving
//! hypervisor gets the sent bytes from the first on and no other; all of them only if the sender's
//! connection is not ended as a failure at the same time, for then the guest would run twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dwcp_api::command::{Command, Verdict};
use dwcp_api::session::SessionSnapshot;
use dwcp_api::{Failure, SessionState};
use dwcp_dataplane::stream::testing::StreamBuilder;
use dwcp_lab::mitm::{Damage, Fault, Way};
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

const CASES: u64 = 1_000;
/// Pairs at work at once: most cases wait for a time-out, which costs no processor.
const PAIRS: u64 = 8;
/// No case may hang for longer.
const CASE_LIMIT: Duration = Duration::from_secs(60);

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
fn built_stream() -> Vec<u8> {
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

/// What a real QEMU sends for a small guest that sits in its firmware.
fn recorded_stream() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("migration");
    let listener = UnixListener::bind(&path).unwrap();
    let mut qemu = Process::new("qemu-system-x86_64")
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-m", "16", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-system-x86_64 must be installed for this test");
    let mut monitor = qemu.stdin.take().unwrap();
    let mut replies = BufReader::new(qemu.stdout.take().unwrap());
    let uri = format!(r#"{{"uri":"unix:{}"}}"#, path.display());
    let fast = r#"{"max-bandwidth":1000000000}"#;
    for (command, arguments) in [
        ("qmp_capabilities", "{}"),
        ("migrate-set-parameters", fast),
        ("migrate", uri.as_str()),
    ] {
        writeln!(
            monitor,
            r#"{{"execute":"{command}","arguments":{arguments}}}"#
        )
        .unwrap();
        loop {
            let mut reply = String::new();
            assert!(replies.read_line(&mut reply).unwrap() > 0, "QEMU is gone");
            assert!(!reply.contains(r#""error""#), "{command}: {reply}");
            if reply.contains(r#""return""#) {
                break;
            }
        }
    }
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(CASE_LIMIT)).unwrap();
    let mut recorded = Vec::new();
    stream.read_to_end(&mut recorded).unwrap();
    let _ = qemu.kill();
    let _ = qemu.wait();
    assert!(
        recorded.starts_with(b"QEVM") && recorded.len() > 200_000,
        "{} bytes",
        recorded.len()
    );
    recorded
}

/// Two data planes with a man between them, and a control plane at each.
struct Bench {
    pair: Pair,
    source: Plane,
    destination: Plane,
}

/// How a case ended.
struct Outcome {
    source: SessionSnapshot,
    destination: Option<SessionSnapshot>,
    was_undecided: bool,
    delivered: usize,
    batches_v3: u64,
}

/// One case at work.
struct Case<'a> {
    bench: &'a mut Bench,
    stream: &'a [u8],
    client: UnixStream,
    sent: usize,
    server: Option<UnixStream>,
    got: Vec<u8>,
    client_ended: bool,
    server_ended: bool,
}

/// What one read came to.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

fn read_some(stream: &mut UnixStream, chunk: &mut [u8]) -> Got {
    match stream.read(chunk) {
        Ok(0) => Got::End,
        Ok(bytes) => Got::Bytes(bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Got::End,
        Err(error) => panic!("{error}"),
    }
}

impl Case<'_> {
    /// Moves bytes without waiting. Says whether any moved.
    fn step(&mut self, chunk: &mut [u8]) -> bool {
        let mut moved = false;
        if self.sent < self.stream.len() {
            match self.client.write(&self.stream[self.sent..]) {
                Ok(bytes) => (self.sent, moved) = (self.sent + bytes, true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The session failed closed.
                Err(_) => self.sent = self.stream.len(),
            }
            if self.sent == self.stream.len() {
                let _ = self.client.shutdown(Shutdown::Write);
            }
        }
        if self.server.is_none() {
            self.server = self.bench.pair.accept_within(Duration::ZERO);
            if let Some(server) = &self.server {
                server.set_nonblocking(true).unwrap();
            }
        }
        if let Some(server) = self.server.as_mut().filter(|_| !self.server_ended) {
            match read_some(server, chunk) {
                Got::Bytes(bytes) => {
                    self.got.extend_from_slice(&chunk[..bytes]);
                    moved = true;
                }
                Got::Nothing => {}
                Got::End => {
                    self.server_ended = true;
                    let _ = server.shutdown(Shutdown::Write);
                }
            }
        }
        if !self.client_ended {
            match read_some(&mut self.client, chunk) {
                Got::Bytes(bytes) => panic!("{bytes} bytes came back that nobody sent"),
                Got::Nothing => {}
                Got::End => self.client_ended = true,
            }
        }
        moved
    }

    /// Runs until both sessions have ended and the last byte was read.
    fn run(&mut self, fault: Fault) -> Outcome {
        let mut chunk = vec![0; 256 << 10];
        let begun = Instant::now();
        let mut was_undecided = false;
        loop {
            if self.step(&mut chunk) {
                continue;
            }
            let source = self.bench.source.sessions().pop();
            let id = source.as_ref().map(|picture| picture.id);
            let destination = id.and_then(|id| self.bench.destination.session(id));
            let state = |picture: &Option<SessionSnapshot>| picture.as_ref()?.state();
            let is_over = |state: Option<SessionState>| state.is_some_and(SessionState::is_final);
            if state(&source) == Some(SessionState::Undecided) {
                // An end that the receiving hypervisor made itself comes after it has everything.
                assert!(
                    !self.client_ended || self.got.len() == self.stream.len(),
                    "the sending hypervisor was let go undecided ({fault:?})"
                );
                was_undecided = true;
                let session = source.unwrap().id;
                // Here nothing loads the guest at the destination, so it stays.
                let verdict = Command::Resolve {
                    session,
                    verdict: Verdict::GuestStays,
                };
                let (failure, detail) = self.bench.source.command(&verdict);
                assert_eq!(failure, Failure::None, "{detail}");
            } else if is_over(state(&source)) {
                match state(&destination) {
                    // The source gave up before its peer heard a word.
                    Some(SessionState::Waiting) => {
                        let session = destination.unwrap().id;
                        self.bench.destination.command(&Command::Cancel { session });
                    }
                    Some(other) if !other.is_final() => {}
                    _ if self.server.is_some() && !self.server_ended => {}
                    _ => {
                        let source = source.unwrap();
                        return Outcome {
                            batches_v3: source.batches_v3,
                            source,
                            destination,
                            was_undecided,
                            delivered: self.got.len(),
                        };
                    }
                }
            }
            assert!(
                begun.elapsed() < CASE_LIMIT,
                "hangs after {} of {} bytes ({fault:?}): source {source:#?} destination {destination:#?}",
                self.got.len(),
                self.stream.len(),
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Bench {
    fn start(core: usize) -> Self {
        let options = PairOptions {
            mitm: true,
            resume_limit_ms: 4_000,
            core,
            ..PairOptions::default()
        };
        let pair = Pair::start(options);
        let source = Plane::attach(&pair.source_control());
        let destination = Plane::attach(&pair.destination_control());
        Self {
            pair,
            source,
            destination,
        }
    }

    /// Ends it; the faults that struck.
    fn stop(self) -> u64 {
        let struck = self.pair.mitm().struck();
        assert!(!self.pair.is_broken(), "a worker ended");
        self.pair.stop();
        struck
    }

    fn case(&mut self, stream: &[u8], v3: bool, fault: Fault) -> Outcome {
        for plane in [&mut self.source, &mut self.destination] {
            // A lane that was on its way may have opened a session whose source had given up.
            for picture in plane.sessions() {
                plane.command(&Command::Cancel {
                    session: picture.id,
                });
                plane.command(&Command::Forget {
                    session: picture.id,
                });
            }
            plane.allow_v3(v3);
        }
        while self.pair.accept_within(Duration::ZERO).is_some() {}
        self.pair.mitm().add(fault);
        let client = self.pair.connect();
        client.set_nonblocking(true).unwrap();
        let mut case = Case {
            bench: self,
            stream,
            client,
            sent: 0,
            server: None,
            got: Vec::with_capacity(stream.len()),
            client_ended: false,
            server_ended: false,
        };
        let outcome = case.run(fault);
        let Case {
            got,
            server,
            client,
            ..
        } = case;
        drop((server, client));
        check(&outcome, &got, stream, fault);
        for (plane, picture) in [
            (&mut self.source, Some(&outcome.source)),
            (&mut self.destination, outcome.destination.as_ref()),
        ] {
            if let Some(picture) = picture {
                let (failure, detail) = plane.command(&Command::Forget {
                    session: picture.id,
                });
                assert_eq!(failure, Failure::None, "{detail}");
            }
        }
        self.pair.mitm().cut();
        outcome
    }
}

fn check(outcome: &Outcome, got: &[u8], stream: &[u8], fault: Fault) {
    let Outcome {
        source,
        destination,
        was_undecided,
        ..
    } = outcome;
    assert!(
        got.len() <= stream.len(),
        "{} bytes out of {} ({fault:?})",
        got.len(),
        stream.len()
    );
    assert!(
        got == &stream[..got.len()],
        "wrong bytes were released ({fault:?})"
    );
    if source.state() == Some(SessionState::Completed) {
        assert!(
            got.len() == stream.len(),
            "completed with {} bytes ({fault:?})",
            got.len()
        );
        return;
    }
    assert_ne!(
        source.failure(),
        Failure::None,
        "failed without a reason ({fault:?})"
    );
    assert!(
        *was_undecided || got.len() < stream.len(),
        "the source was let go on although the destination has it all ({fault:?}): \
         {source:#?} {destination:#?}"
    );
}

fn fault(pair: &Pair, dice: &mut Dice, case: u64, v3: bool) -> Fault {
    let length = 1 + dice.below(3_000);
    let damage = match case % 9 {
        0 | 1 => Damage::Corrupt,
        2 | 3 => Damage::Drop(length),
        4 | 5 => Damage::Repeat(length),
        6 | 7 => Damage::Swap(length),
        _ => Damage::Cut,
    };
    let forward = dice.below(4) != 0;
    let reach = match (forward, dice.below(8)) {
        // The handshake and the first frame's head.
        (_, 0) => 300,
        (true, 1..5) => 2_000,
        (true, _) => 40_000,
        (false, _) => 500,
    };
    // Most bytes go over the first lanes.
    let lanes = if dice.below(2) == 0 {
        2
    } else if v3 {
        4
    } else {
        8
    };
    Fault {
        // The lanes of this session are dialled next.
        connection: pair.mitm().connections() + dice.below(lanes),
        way: if forward { Way::Forward } else { Way::Backward },
        offset: dice.below(reach),
        damage,
    }
}

/// What a pair's cases came to.
#[derive(Default)]
struct Tally {
    ends: BTreeMap<String, u64>,
    whole: u64,
    undecided: u64,
    with_v3: u64,
    delivered: usize,
    struck: u64,
}

fn run_pair(number: u64, streams: &[Vec<u8>]) -> Tally {
    let core = usize::try_from(number).unwrap();
    let mut bench = Bench::start(core);
    let mut dice = Dice(0x5eed_0001 + number * 7_919);
    let mut tally = Tally::default();
    for case in (number..CASES).step_by(usize::try_from(PAIRS).unwrap()) {
        let v3 = dice.below(2) == 0;
        let stream = &streams[usize::try_from(dice.below(streams.len() as u64)).unwrap()];
        let fault = fault(&bench.pair, &mut dice, case, v3);
        let outcome = bench.case(stream, v3, fault);
        let name = |picture: &SessionSnapshot| match picture.failure() {
            Failure::None => "completed".to_owned(),
            failure => failure.to_string(),
        };
        let other = outcome
            .destination
            .as_ref()
            .map_or("never opened".to_owned(), name);
        *tally
            .ends
            .entry(format!("{} / {other}", name(&outcome.source)))
            .or_default() += 1;
        tally.whole += u64::from(outcome.delivered == stream.len());
        tally.undecided += u64::from(outcome.was_undecided);
        tally.with_v3 += u64::from(outcome.batches_v3 > 0);
        tally.delivered += outcome.delivered;
        if outcome.destination.is_none() {
            // A lane that is still on its way may open it yet, and connect to the hypervisor.
            tally.struck += std::mem::replace(&mut bench, Bench::start(core)).stop();
        }
    }
    tally.struck += bench.stop();
    tally
}

#[test]
fn a_thousand_damaged_sessions_release_no_wrong_byte() {
    let streams = [built_stream(), recorded_stream()];
    println!(
        "streams of {} and {} bytes",
        streams[0].len(),
        streams[1].len()
    );
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let pairs: Vec<_> = (0..PAIRS)
            .map(|number| (number, &streams))
            .map(|(number, streams)| scope.spawn(move || run_pair(number, streams)))
            .collect();
        pairs.into_iter().map(|pair| pair.join().unwrap()).collect()
    });
    let mut sum = Tally::default();
    for tally in tallies {
        for (end, count) in tally.ends {
            *sum.ends.entry(end).or_default() += count;
        }
        sum.whole += tally.whole;
        sum.undecided += tally.undecided;
        sum.with_v3 += tally.with_v3;
        sum.delivered += tally.delivered;
        sum.struck += tally.struck;
    }
    println!(
        "{CASES} cases, {} faults struck; {} streams arrived whole, {} sources were undecided, {} \
         sessions sent v3, {} bytes released, none wrong",
        sum.struck, sum.whole, sum.undecided, sum.with_v3, sum.delivered,
    );
    for (end, count) in &sum.ends {
        println!("{count:5} source / destination: {end}");
    }
    let failed: u64 = sum
        .ends
        .iter()
        .filter(|(end, _)| !end.starts_with("completed"))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(sum.ends.values().sum::<u64>(), CASES);
    // A fault beyond the last byte of its lane strikes nothing; one in a handshake costs a lane.
    assert!(sum.struck > CASES / 2, "only {} faults struck", sum.struck);
    assert!(failed > CASES / 10, "only {failed} sessions noticed");
    assert!(
        sum.with_v3 > CASES / 4,
        "only {} sessions sent v3",
        sum.with_v3
    );
    assert!(
        sum.whole > CASES / 10,
        "only {} sessions survived their fault",
        sum.whole
    );
}
