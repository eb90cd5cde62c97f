//! At the border to the control plane: garbage on the attach socket and in shared memory is dropped or
//! answered with an error, nobody takes the place of who is attached, sessions go on, and afterwards a
//! fresh control plane is let in.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use dwcp_api::command::{Command, CommandRecord, SessionLimits, Verdict};
use dwcp_api::layout::{COMMAND_RING_OFFSET, event_ring_offset, rings_layout, switches_layout};
use dwcp_api::text::Text;
use dwcp_api::{Failure, SessionId, SessionState, Version};
use dwcp_hugepages::scm;
use dwcp_hugepages::segment::SegmentError;
use dwcp_lab::watchdog::poll_until;
use dwcp_tests::pair::{PairOptions, noise};
use dwcp_tests::plane::{Plane, Turned, knock};
use zerocopy::FromBytes;

use crate::beside::{Stage, resident_bytes};

const PATIENCE: Duration = Duration::from_secs(60);
/// Place of the consumer's index in a ring.
const CONSUMER_OFFSET: usize = 128;

/// The control plane at the source is attached: its commands are carried out.
fn check_attached(stage: &mut Stage) {
    let limit = Command::Limit {
        session: stage.id,
        rate_limit_bytes_per_s: 0,
    };
    assert_eq!(stage.source.command(&limit).0, Failure::None);
}

/// Attaches anew and does something that needs commands, answers and the session table.
fn check_fresh(stage: &mut Stage) {
    let generation = stage.source.generation();
    stage.source.reattach();
    assert!(stage.source.generation() > generation);
    let picture = stage
        .source
        .session(stage.id)
        .expect("the session is still in the table");
    assert_eq!(picture.state(), Some(SessionState::Active), "{picture:#?}");
    check_attached(stage);
    stage.source.allow_v3(true);
    stage.beside.check_moves();
}

#[test]
fn a_second_control_plane_is_told_that_the_place_is_taken() {
    let mut stage = Stage::start(PairOptions::default());
    let path = stage.pair.source_control();
    for _ in 0..50 {
        assert_eq!(Plane::try_attach(&path).err(), Some(Turned::Busy));
    }
    // The first is as well attached as before.
    check_attached(&mut stage);
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn packets_that_nobody_asked_for_are_dropped() {
    let mut stage = Stage::start(PairOptions::default());
    let (null, _other) = rustix::pipe::pipe().unwrap();
    for round in 0..500u64 {
        let packet = noise(round + 1, 1 + (round as usize * 37) % 3_000);
        let fds: Vec<_> = (0..round % 4).map(|_| null.as_fd()).collect();
        let sent = poll_until(PATIENCE, || {
            match scm::send_with_fds(&stage.source.socket, &packet, &fds) {
                Ok(()) => Some(()),
                Err(error) => {
                    assert_eq!(error, scm::ScmError::WouldBlock);
                    None
                }
            }
        });
        assert!(
            sent.is_some(),
            "the data plane stopped reading at packet {round}"
        );
    }
    check_attached(&mut stage);
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn a_storm_of_visitors_passes() {
    let mut stage = Stage::start(PairOptions::default());
    let (source, destination) = (
        stage.pair.source_control(),
        stage.pair.destination_control(),
    );
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = (resident_bytes(), descriptors());
    // While somebody is attached, and while nobody is.
    stage.destination.leave();
    for round in 0..600 {
        let visitors: Vec<Option<OwnedFd>> = [&source, &destination]
            .into_iter()
            .map(|path| knock(path))
            .collect();
        if round % 3 == 0 {
            for visitor in visitors.iter().flatten() {
                let _ = scm::send_with_fds(visitor, b"let me in", &[]);
            }
        }
    }
    stage.destination.reattach();
    let left = poll_until(PATIENCE, || (descriptors() <= before.1 + 10).then_some(()));
    assert!(
        left.is_some(),
        "{} descriptors, {} before",
        descriptors(),
        before.1
    );
    assert!(resident_bytes().saturating_sub(before.0) < 64 << 20);
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn records_of_noise_are_answered_with_an_error() {
    let mut stage = Stage::start(PairOptions::default());
    let before = resident_bytes();
    for round in 0..2_000u64 {
        let bytes = noise(round + 1, size_of::<CommandRecord>());
        let record = CommandRecord::read_from_bytes(&bytes).unwrap();
        stage.source.push(&record);
        if round % 10 == 0 {
            let (failure, detail) = stage.source.answer(record.id());
            assert_eq!(failure, Failure::BadCommand, "{detail}");
            assert!(!detail.is_empty());
        }
    }
    // Of a known kind, with noise in every other field.
    for round in 0..600u64 {
        let mut bytes = noise(round + 9_000, size_of::<CommandRecord>());
        let kind = 1 + round as u32 % 6;
        bytes[24..28].copy_from_slice(&kind.to_le_bytes());
        let record = CommandRecord::read_from_bytes(&bytes).unwrap();
        stage.source.push(&record);
        let (failure, _) = stage.source.answer(record.id());
        // A path of noise is a path, until it is to be connected to; and to forget what is not there
        // is as good as done.
        let fine = match kind {
            2 => failure != Failure::System,
            6 => failure == Failure::None,
            _ => failure == Failure::BadCommand,
        };
        assert!(fine, "{kind}: {failure}");
    }
    for picture in stage.source.sessions() {
        if picture.id != stage.id {
            let session = picture.id;
            assert_eq!(picture.state(), Some(SessionState::Waiting), "{picture:#?}");
            assert_eq!(
                stage.source.command(&Command::Cancel { session }).0,
                Failure::None
            );
            assert_eq!(
                stage.source.command(&Command::Forget { session }).0,
                Failure::None
            );
        }
    }
    assert!(resident_bytes().saturating_sub(before) < 64 << 20);
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn commands_that_make_no_sense_are_refused_by_name() {
    let mut stage = Stage::start(PairOptions::default());
    let id = stage.id;
    let nobody = SessionId([9; 16]);
    let open = |session, listen: &str, peer: &str| Command::OpenSource {
        session,
        listen: Text::new(listen).unwrap(),
        peer: Text::new(peer).unwrap(),
        peer_node: Text::EMPTY,
        max_version: Version::V3,
        limits: SessionLimits::default(),
    };
    let connect = Text::new("/nowhere/to/be/found").unwrap();
    let limits = SessionLimits::default();
    let cases = [
        (Command::Cancel { session: nobody }, Failure::BadCommand),
        (
            Command::Resolve {
                session: nobody,
                verdict: Verdict::GuestMoved,
            },
            Failure::BadCommand,
        ),
        (
            Command::Resolve {
                session: id,
                verdict: Verdict::GuestMoved,
            },
            Failure::BadCommand,
        ),
        (
            Command::Resolve {
                session: id,
                verdict: Verdict::GuestStays,
            },
            Failure::BadCommand,
        ),
        (
            Command::Limit {
                session: nobody,
                rate_limit_bytes_per_s: 1,
            },
            Failure::BadCommand,
        ),
        (Command::Forget { session: id }, Failure::BadCommand),
        (
            Command::OpenDestination {
                session: id,
                connect,
                limits,
            },
            Failure::BadCommand,
        ),
        (open(nobody, "/tmp/x", "nobody"), Failure::BadCommand),
        (
            open(nobody, "/tmp/x", "10.0.0.1:99999"),
            Failure::BadCommand,
        ),
        (
            open(nobody, "/nowhere/to/be/found", "127.0.0.1:1"),
            Failure::System,
        ),
        (
            open(
                nobody,
                stage.pair.source_control().to_str().unwrap(),
                "127.0.0.1:1",
            ),
            Failure::System,
        ),
    ];
    for (command, expected) in cases {
        let (failure, detail) = stage.source.command(&command);
        assert_eq!(failure, expected, "{command:?}: {detail}");
        assert!(!detail.is_empty(), "{command:?}");
        assert!(
            stage.source.session(nobody).is_none(),
            "{command:?} opened a session"
        );
    }
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn an_index_that_cannot_be_costs_the_liar_its_place() {
    let mut stage = Stage::start(PairOptions::default());
    for lie in [65, 1 << 20, 1 << 63, u64::MAX, u64::MAX - 63] {
        let index = stage
            .source
            .rings
            .body()
            .at::<AtomicU64>(COMMAND_RING_OFFSET)
            .unwrap();
        index.store(lie, Ordering::Release);
        stage.source.bell.ring();
        // Its socket is closed, so there is room for another while it still holds its end.
        let fresh = Plane::attach(&stage.pair.source_control());
        assert!(fresh.generation() > stage.source.generation());
        drop(std::mem::replace(&mut stage.source, fresh));
        check_fresh(&mut stage);
    }
    stage.finish();
}

#[test]
fn spoiled_rings_and_flags_harm_only_who_spoils_them() {
    let mut stage = Stage::start(PairOptions::default());
    for round in 0..20u64 {
        // Everything the peer may write, but for the index that ends the attach.
        let garbage = noise(round + 1, rings_layout().body_bytes & !7);
        let body = stage.source.rings.body();
        let words = body.slice_at::<AtomicU64>(0, garbage.len() / 8).unwrap();
        for (at, bytes) in garbage.chunks_exact(8).enumerate() {
            if at * 8 != COMMAND_RING_OFFSET {
                words[at].store(
                    u64::from_le_bytes(bytes.try_into().unwrap()),
                    Ordering::Relaxed,
                );
            }
        }
        let own = body
            .at::<AtomicU64>(event_ring_offset() + CONSUMER_OFFSET)
            .unwrap();
        own.store(u64::MAX / 2 + round, Ordering::Release);
        let index = body.at::<AtomicU64>(COMMAND_RING_OFFSET).unwrap();
        // So many records of noise are there to be read.
        index.store(64, Ordering::Release);
        rustix::io::write(stage.source.bell.fd(), &1u64.to_ne_bytes()).unwrap();
        check_fresh(&mut stage);
    }
    stage.finish();
}

#[test]
fn noise_in_the_switch_words_reads_as_v1() {
    let mut stage = Stage::start(PairOptions::default());
    for round in 0..50u64 {
        let garbage = noise(round + 1, switches_layout().body_bytes);
        let body = stage.source.switches().body();
        let words = body.slice_at::<AtomicU32>(0, garbage.len() / 4).unwrap();
        for (word, bytes) in words.iter().zip(garbage.chunks_exact(4)) {
            word.store(
                u32::from_le_bytes(bytes.try_into().unwrap()),
                Ordering::Relaxed,
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    stage.beside.check_moves();
    let first = stage.source.session(stage.id).unwrap();
    stage.beside.check_moves();
    stage
        .source
        .wait("batches in v1 and no more in v3", |picture| {
            picture.batches_v1 > first.batches_v1 && picture.batches_v3 == first.batches_v3
        });
    stage.source.allow_v3(true);
    stage
        .source
        .wait("v3 again", |picture| picture.batches_v3 > first.batches_v3);
    check_fresh(&mut stage);
    stage.finish();
}

#[test]
fn the_peer_can_neither_write_nor_shrink_what_it_may_only_read() {
    let mut stage = Stage::start(PairOptions::default());
    // Each descriptor that crosses the border, by its name in /proc.
    let rings = stage.source.rings.fd();
    assert!(rustix::fs::ftruncate(rings, 0).is_err());
    assert!(rustix::fs::ftruncate(rings, 1 << 30).is_err());
    assert!(rustix::fs::ftruncate(stage.source.switches().fd(), 0).is_err());
    let stats = stage.source.stats().fd();
    assert!(rustix::fs::ftruncate(stats, 0).is_err());
    assert!(rustix::io::pwrite(stats, b"all is well", 64).is_err());
    let taken = stats.try_clone_to_owned().unwrap();
    let again = dwcp_hugepages::segment::Segment::attach(
        taken,
        dwcp_api::layout::stats_layout(),
        dwcp_hugepages::segment::PeerAccess::ReadWrite,
    );
    assert!(
        matches!(again, Err(SegmentError::SealedReadOnly)),
        "{again:?}"
    );
    let link = format!("/proc/self/fd/{}", stats.as_raw_fd());
    assert!(
        std::fs::read_link(link)
            .unwrap()
            .to_string_lossy()
            .contains("memfd:dwcp-stats")
    );
    check_fresh(&mut stage);
    stage.finish();
}
