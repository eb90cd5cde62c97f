//! The border to the data plane, against one that lies, is slow, hangs up or dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test file uses its part of the kit")]
mod jobs_kit;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use dwcp_api::attach::{BUSY_MAGIC, DROP_MAGIC, Escrow, Greeting, KEEP_MAGIC};
use dwcp_api::command::Command;
use dwcp_api::event::{Event, EventRecord};
use dwcp_api::layout::{COMMAND_SLOTS, SESSIONS_OFFSET, event_ring_offset};
use dwcp_api::session::SessionSnapshot;
use dwcp_api::switches::Component;
use dwcp_api::text::Text;
use dwcp_api::{Failure, SessionId, Version, monotonic_ns};
use dwcp_controlplane::host::{Host, HostError, HostStatus};
use dwcp_hugepages::counters::SeqCell;
use dwcp_hugepages::scm::send_with_fds;
use dwcp_hugepages::segment::Segment;
use jobs_kit::fake::{Door, Guest, stats};
use jobs_kit::{DataPlane, WATCHDOG};
use zerocopy::IntoBytes;

const SESSION: SessionId = SessionId([5; 16]);
const LIMIT: Command = Command::Limit {
    session: SESSION,
    rate_limit_bytes_per_s: 1,
};

/// Not a test: the way into the process that stands in for the data plane.
#[test]
fn fake_data_plane() {
    jobs_kit::fake_entry();
}

/// What a test makes the data plane do, on a thread of its own.
type Act = Box<dyn FnOnce(&Door, &Segment) + Send>;

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    acts: Sender<Act>,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dp.sock");
        let door = Door::open(&path);
        let (acts, todo): (Sender<Act>, Receiver<Act>) = channel();
        thread::spawn(move || {
            let stats = stats();
            for act in todo {
                act(&door, &stats);
            }
        });
        let (host, _task) = Host::spawn(path.clone());
        Self {
            _dir: dir,
            path,
            acts,
            host,
        }
    }

    fn act(&self, act: impl FnOnce(&Door, &Segment) + Send + 'static) {
        self.acts.send(Box::new(act)).unwrap();
    }

    /// Admits the control plane with a changed greeting and hands the connection out.
    fn admit(&self, change: impl FnOnce(&mut Greeting) + Send + 'static) -> Receiver<Guest> {
        let (give, take) = channel();
        self.act(move |door, stats| {
            // Dropped where nobody takes it: that hangs up.
            let _ = give.send(door.admit(stats, change).unwrap());
        });
        take
    }

    async fn status(&self, wanted: impl Fn(&HostStatus) -> bool) -> HostStatus {
        let mut changes = self.host.status_changes();
        let found = tokio::time::timeout(WATCHDOG, changes.wait_for(|status| wanted(status)));
        found.await.expect("watchdog").unwrap().clone()
    }

    async fn attached(&self) -> HostStatus {
        self.status(|status| matches!(status, HostStatus::Connected { .. }))
            .await
    }

    async fn refused(&self, words: &str) {
        self.status(
            |status| matches!(status, HostStatus::Disconnected { reason, .. } if reason.contains(words)),
        )
        .await;
    }
}

/// Blocks until the guest is handed out.
fn guest(taken: &Receiver<Guest>) -> Guest {
    taken.recv_timeout(WATCHDOG).unwrap()
}

#[tokio::test]
async fn a_greeting_that_disagrees_is_refused_and_tried_again() {
    let scene = Scene::new();
    assert!(matches!(
        scene.host.sessions(),
        Err(HostError::Disconnected(_))
    ));
    assert!(scene.host.with_switches(|_| ()).is_err());
    for (change, words) in [
        (
            (|g| g.magic = BUSY_MAGIC) as fn(&mut Greeting),
            "another control plane",
        ),
        (|g| g.abi += 1, "install both from one release"),
        (|g| g.layout_hash += 1, "layout"),
        (|g| g.generation = 0, "generation"),
        (|g| g.workers = 1000, "workers"),
    ] {
        let taken = scene.admit(change);
        scene.refused(words).await;
        drop(guest(&taken));
    }
    let _taken = scene.admit(|_| ());
    let HostStatus::Connected {
        generation, listen, ..
    } = scene.attached().await
    else {
        panic!()
    };
    assert_eq!((generation, listen.as_str()), (1, "127.0.0.1:1"));
}

#[tokio::test]
async fn words_are_stored_and_figures_read_in_place() {
    let scene = Scene::new();
    let _taken = scene.admit(|_| ());
    scene.attached().await;
    scene
        .host
        .with_switches(|words| words.set_component(Component::Hde, Version::V3))
        .unwrap();
    let (give, take) = channel();
    scene.act(move |door, stats| {
        give.send(door.words().component(Component::Hde)).unwrap();
        let mut snapshot = SessionSnapshot::FREE;
        snapshot.id = SESSION;
        snapshot.rtt_us = 42;
        let cell: &SeqCell<SessionSnapshot> = stats.body().at(SESSIONS_OFFSET).unwrap();
        cell.write(&snapshot);
        give.send(Version::V1).unwrap();
    });
    assert_eq!(take.recv_timeout(WATCHDOG).unwrap(), Version::V3);
    take.recv_timeout(WATCHDOG).unwrap();
    assert_eq!(scene.host.session(SESSION).unwrap().unwrap().rtt_us, 42);
    assert_eq!(scene.host.sessions().unwrap().len(), 1);
    assert_eq!(scene.host.workers().unwrap().len(), 1);
    assert!(scene.host.session(SessionId([1; 16])).unwrap().is_none());
}

#[tokio::test]
async fn commands_are_answered_refused_or_do_not_fit() {
    let scene = Scene::new();
    let taken = scene.admit(|_| ());
    scene.attached().await;
    let mut guest = guest(&taken);
    // As many as fit, then one more.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..COMMAND_SLOTS {
        let host = scene.host.clone();
        waiting.spawn(async move { host.command(LIMIT).await });
    }
    // Each of them gets its turn; the scheduler looks up after some dozens.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.host.command(LIMIT).await, Err(HostError::Full));
    let mut ids = vec![];
    while let Some(record) = guest.commands.pop().unwrap() {
        assert_eq!(record.decode().unwrap(), LIMIT);
        ids.push(record.id());
    }
    assert_eq!(ids.len(), COMMAND_SLOTS as usize);
    // An answer to nobody, and one that is no event at all, disturb nothing.
    ids.insert(0, 1);
    let mut garbage = EventRecord::encode(0, &answer(ids[1], Failure::None));
    garbage.as_mut_bytes()[32] = 99;
    guest.events.push(&garbage).unwrap();
    for (turn, id) in ids.iter().enumerate() {
        let failure = if turn % 2 == 0 {
            Failure::None
        } else {
            Failure::Limit
        };
        let record = EventRecord::encode(monotonic_ns(), &answer(*id, failure));
        guest.events.push(&record).unwrap();
        guest.event_bell.ring();
    }
    let (mut good, mut bad) = (0, 0);
    while let Some(outcome) = waiting.join_next().await {
        match outcome.unwrap() {
            Ok(()) => good += 1,
            Err(HostError::Refused {
                failure: Failure::Limit,
                detail,
            }) if detail == "why" => bad += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((good, bad), (COMMAND_SLOTS / 2, COMMAND_SLOTS / 2));
    // Nobody takes this one.
    assert_eq!(scene.host.command(LIMIT).await, Err(HostError::TimedOut(5)));
}

fn answer(command_id: u64, failure: Failure) -> Event {
    Event::Answer {
        command_id,
        session: SESSION,
        failure,
        detail: Text::clipped("why"),
    }
}

#[tokio::test]
async fn a_hang_up_is_no_death_and_the_escrow_stays() {
    let scene = Scene::new();
    let taken = scene.admit(|greeting| greeting.instance = 7);
    scene.attached().await;
    let first = guest(&taken);
    let (ours, mut hypervisor) = UnixStream::pair().unwrap();
    let mut packet = Escrow {
        magic: KEEP_MAGIC,
        session: SESSION,
        channel: 0,
        role: 1,
    };
    send_with_fds(&first.socket, packet.as_bytes(), &[ours.as_fd()]).unwrap();
    // Noise on the socket is skipped.
    send_with_fds(&first.socket, b"noise", &[]).unwrap();
    drop(ours);
    let host = scene.host.clone();
    let command = tokio::spawn(async move { host.command(LIMIT).await });
    eventually(|| scene.host.escrow_holds(SESSION)).await;
    drop(first);
    assert!(matches!(
        command.await.unwrap(),
        Err(HostError::Disconnected(_))
    ));
    scene
        .status(|status| matches!(status, HostStatus::Disconnected { .. }))
        .await;
    assert!(!scene.host.has_ended(7), "its process, this one, lives");
    assert!(scene.host.escrow_holds(SESSION));

    let taken = scene.admit(|greeting| (greeting.instance, greeting.generation) = (7, 2));
    scene.attached().await;
    let second = guest(&taken);
    assert!(!scene.host.has_ended(7) && scene.host.escrow_holds(SESSION));
    drop(second);
    scene
        .status(|status| matches!(status, HostStatus::Disconnected { .. }))
        .await;
    let taken = scene.admit(|greeting| greeting.instance = 8);
    scene.attached().await;
    assert!(
        scene.host.has_ended(7),
        "another data plane listens in its place"
    );
    assert!(scene.host.escrow_holds(SESSION), "nobody has decided yet");

    packet.magic = DROP_MAGIC;
    send_with_fds(&guest(&taken).socket, packet.as_bytes(), &[]).unwrap();
    eventually(|| !scene.host.escrow_holds(SESSION)).await;
    assert_eq!(
        hypervisor.read(&mut [0; 1]).unwrap(),
        0,
        "the last copy is gone"
    );
}

#[tokio::test]
async fn a_ring_that_lies_ends_the_attach() {
    let scene = Scene::new();
    let taken = scene.admit(|_| ());
    scene.attached().await;
    let guest = guest(&taken);
    let index: &AtomicU64 = guest.rings.body().at(event_ring_offset()).unwrap();
    index.store(u64::MAX / 2, Ordering::Release);
    guest.event_bell.ring();
    scene.refused("drop it and attach anew").await;
    let _taken = scene.admit(|_| ());
    scene.attached().await;
}

#[tokio::test]
async fn a_death_is_known_without_a_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dp.sock");
    let mut plane = DataPlane::start(&path);
    let (host, _task) = Host::spawn(path);
    let mut changes = host.status_changes();
    let found = changes
        .wait_for(|status| status.instance().is_some())
        .await
        .unwrap()
        .instance();
    let instance = found.unwrap();
    assert!(!host.has_ended(instance));
    plane.kill();
    changes
        .wait_for(|status| status.instance().is_none())
        .await
        .unwrap();
    assert!(host.has_ended(instance));
    assert!(host.last_session(SESSION).is_none());
}

#[tokio::test]
async fn nobody_listening_is_said_with_its_cure() {
    let scene = Scene::new();
    let (host, _task) = Host::spawn(scene.path.with_extension("none"));
    let mut changes = host.status_changes();
    changes
        .wait_for(|status| {
            matches!(status, HostStatus::Disconnected { reason, .. } if reason.contains("start dwcp-dataplane"))
        })
        .await
        .unwrap();
}

async fn eventually(look: impl Fn() -> bool) {
    let waited = async {
        while !look() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WATCHDOG, waited)
        .await
        .expect("watchdog");
}
