//! A data plane at work is seen at work: its counters say where its time and its bytes went, and a flame
//! graph of it shows every stage, while it carries what it is given unchanged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use dwcp_api::Stage;
use dwcp_controlplane::profile::{Profile, Request, record};
use dwcp_dataplane::stream::testing::{RAM_SECTION, StreamBuilder};
use dwcp_lab::watchdog::{Watchdog, poll_until};
use dwcp_tests::pair::{Pair, PairOptions, noise};
use dwcp_tests::plane::Plane;

const PAGES: u64 = 1024;
const LIMIT: Duration = Duration::from_secs(300);

/// Pages of every kind as one part of a stream.
fn part(seed: u8) -> Vec<u8> {
    let mut builder = StreamBuilder::empty();
    builder.part(RAM_SECTION);
    let mut name = Some("pc.ram");
    for index in 0..PAGES {
        let mut page: [u8; 4096] = noise(index % 64 + 1, 4096).try_into().unwrap();
        match index % 4 {
            0 => {
                builder.zero(name.take(), index);
                continue;
            }
            1 => page[512..].fill(7),
            _ => page[usize::from(seed)] ^= 0x55,
        }
        builder.page(name.take(), index, &page);
        if index % 4 == 1 {
            // And once more, changed a little: on a near path few batches are looked into, and each is to have
            // some of every kind.
            page[9] ^= 1;
            builder.page(None, index, &page);
        }
    }
    builder.ram_eos();
    builder.finish()
}

/// Carries parts through `pair` while `look` looks. Gives the bytes that went in, which are those that
/// came out.
fn carry_while<T: Send>(pair: &Pair, look: impl FnOnce() -> T + Send) -> (u64, T) {
    let stop = AtomicBool::new(false);
    let mut client = pair.connect();
    let mut prologue = StreamBuilder::new();
    prologue.command(1, &[]).command(2, &1u32.to_be_bytes());
    prologue.ram_start(&[("pc.ram", PAGES * 4096)]);
    client.write_all(prologue.bytes()).unwrap();
    let mut server = pair.accept();
    let parts = [part(0), part(100)];
    thread::scope(|scope| {
        let written = scope.spawn(|| {
            let mut hash = blake3::Hasher::new();
            let mut bytes = prologue.bytes().len() as u64;
            hash.update(prologue.bytes());
            for part in parts.iter().cycle() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                client.write_all(part).unwrap();
                hash.update(part);
                bytes += part.len() as u64;
            }
            client.shutdown(Shutdown::Write).unwrap();
            (bytes, hash.finalize())
        });
        let read = scope.spawn(move || {
            let mut hash = blake3::Hasher::new();
            let mut buffer = vec![0; 1 << 20];
            loop {
                match server.read(&mut buffer).unwrap() {
                    0 => return hash.finalize(),
                    bytes => hash.update(&buffer[..bytes]),
                };
            }
        });
        let seen = look();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (bytes, sent) = written.join().unwrap();
        assert_eq!(sent, read.join().unwrap(), "bytes changed on their way");
        (bytes, seen)
    })
}

fn spent(plane: &Plane, stage: Stage) -> u64 {
    plane.counter_of(0, &format!("stage_{stage}_ns_total"))
}

#[test]
fn counters_say_where_time_and_bytes_went() {
    let _watchdog = Watchdog::new("counters", LIMIT);
    let pair = Pair::start(PairOptions::default());
    let source = Plane::attach(&pair.source_control());
    let destination = Plane::attach(&pair.destination_control());
    source.allow_v3(true);
    let ((), before_ns) = ((), dwcp_api::monotonic_ns());
    let busy = |plane: &Plane| -> u64 { Stage::ALL.iter().map(|s| spent(plane, *s)).sum() };
    let all = |plane: &Plane| {
        busy(plane) + plane.counter_of(0, "idle_ns_total") + plane.counter_of(0, "parked_ns_total")
    };
    let before = all(&source);
    let (bytes, ()) = carry_while(&pair, || thread::sleep(Duration::from_secs(1)));
    let came_out =
        || (destination.counter_of(0, "hypervisor_bytes_out_total") == bytes).then_some(());
    poll_until(LIMIT, came_out).expect("bytes that came out are not counted");
    let passed_ns = dwcp_api::monotonic_ns() - before_ns;

    let of = |plane: &Plane, name: &str| plane.counter_of(0, name);
    assert_eq!(of(&source, "hypervisor_bytes_in_total"), bytes);
    assert_eq!(
        of(&source, "raw_bytes_v1_total") + of(&source, "raw_bytes_v3_total"),
        bytes
    );
    assert_eq!(of(&destination, "decoded_bytes_out_total"), bytes);
    assert_eq!(
        of(&source, "batches_encoded_total"),
        of(&destination, "batches_decoded_total")
    );
    assert_eq!(
        of(&source, "encoded_bytes_v1_total") + of(&source, "encoded_bytes_v3_total"),
        of(&destination, "decoded_bytes_in_total") + header_bytes(&source)
    );
    for kind in ["zero", "duplicate", "delta"] {
        assert!(of(&source, &format!("pages_{kind}_total")) > 0, "{kind}");
    }
    assert!(of(&source, "frames_sent_total") >= of(&source, "batches_encoded_total"));
    for (plane, stages) in [
        (
            &source,
            [Stage::Intake, Stage::Stream, Stage::Codec, Stage::Lanes],
        ),
        (
            &destination,
            [
                Stage::Transport,
                Stage::Decode,
                Stage::Release,
                Stage::Lanes,
            ],
        ),
    ] {
        for stage in stages {
            assert!(spent(plane, stage) > 0, "{stage}");
        }
        assert!(spent(plane, Stage::Engine) < busy(plane));
    }
    assert_eq!(
        spent(&source, Stage::Decode) + spent(&source, Stage::Release),
        0
    );
    // All of a worker's time is somewhere: not more than passed, and hardly less.
    let counted = all(&source) - before;
    assert!(
        counted <= passed_ns + 100_000_000,
        "{counted} of {passed_ns}"
    );
    assert!(counted >= passed_ns / 2, "{counted} of {passed_ns}");
    pair.stop();
}

/// What headers add to the payloads: every encoded batch has one.
fn header_bytes(source: &Plane) -> u64 {
    let header = dwcp_dataplane::transport::wire::BATCH_HEADER_BYTES as u64;
    source.counter_of(0, "batches_encoded_total") * header
}

#[test]
fn a_flame_graph_shows_every_stage_of_a_data_plane_at_work() {
    let _watchdog = Watchdog::new("flame graph", LIMIT);
    let pair = Pair::start(PairOptions::default());
    let source = Plane::attach(&pair.source_control());
    source.allow_v3(true);
    let request = Request {
        pid: std::process::id(),
        duration: Duration::from_secs(3),
        hz: 499,
    };
    let stop = AtomicBool::new(false);
    let (_, profile) = carry_while(&pair, || record(request, &stop));
    // The suite runs as root, which may look at any process.
    let profile: Profile = profile.unwrap_or_else(|error| panic!("no samples: {error}"));
    let text = profile.folded.text();
    let of_workers: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("worker-0;"))
        .collect();
    assert!(
        profile.folded.total() > 100,
        "{} samples",
        profile.folded.total()
    );
    for stage in ["intake", "codec", "lanes", "decode", "release", "engine"] {
        let label = format!(";[{stage}];");
        assert!(
            of_workers.iter().any(|line| line.contains(&label)),
            "{stage} is not in\n{text}"
        );
    }
    let unwound = |line: &&&str| line.contains("Worker") && line.contains("run");
    let whole = of_workers.iter().filter(unwound).count();
    assert!(
        whole * 10 >= of_workers.len() * 9,
        "{whole} of {} stacks reach the worker's loop:\n{text}",
        of_workers.len()
    );
    let picture = dwcp_controlplane::profile::svg(&profile, "test");
    assert!(picture.contains("<title>[codec]") && picture.ends_with("</svg>\n"));
    pair.stop();
}

#[test]
fn a_process_that_is_gone_is_an_error_with_a_word() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let request = Request {
        pid: child.id(),
        duration: Duration::from_secs(1),
        hz: 99,
    };
    let error = record(request, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.code(), "profile_process_gone", "{error}");
    assert!(!error.cure().is_empty());
}
