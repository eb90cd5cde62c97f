//! A peer process is killed (SIGKILL) at every step of its work on a shared segment; the survivor
//! must find what was published, all of it and nothing else, and must not hang.
//!
//! The peer is this test binary again, started with a role in its environment and a socket as its
//! standard input. It does its step, says so over the socket, and waits to be killed.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwcp_hugepages::counters::{Counter, SeqCell};
use dwcp_hugepages::doorbell::{Doorbell, ParkFlag};
use dwcp_hugepages::ring::{Consumer, Full, Producer, RingMem};
use dwcp_hugepages::scm::{ScmError, recv_with_fds, send_with_fds};
use dwcp_hugepages::segment::{PeerAccess, Segment, SegmentLayout};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

type Record = [u64; 8];
type Progress = [u64; 4];

const ROLE: &str = "DWCP_TEST_PEER_ROLE";
const SLOTS: u32 = 4;
const RING_BYTES: usize = RingMem::bytes_needed::<Record>(SLOTS);
/// Peer to survivor.
const UP: usize = 0;
/// Survivor to peer.
const DOWN: usize = RING_BYTES;
const FLAG: usize = 2 * RING_BYTES;
const COUNTER: usize = FLAG + 64;
const CELL: usize = COUNTER + 64;
const CELL_WORDS: usize = size_of::<SeqCell<Progress>>() / 8;
const LAYOUT: SegmentLayout = SegmentLayout {
    magic: 7,
    abi: 1,
    layout_hash: 7,
    body_bytes: CELL + CELL_WORDS * 8,
};

fn record(number: u64) -> Record {
    std::array::from_fn(|word| number * 100 + word as u64)
}

/// Not a test of its own: what the peer process runs. Without a role it does nothing.
#[test]
fn peer_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    // Dies with the survivor, should that one fail.
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).unwrap();
    let stdin = std::io::stdin();
    let (_, fds) = recv_with_fds(stdin.as_fd(), &mut [0; 16], 2).unwrap();
    let [memory, event]: [OwnedFd; 2] = fds.try_into().unwrap();
    let segment = Arc::new(Segment::attach(memory, LAYOUT, PeerAccess::ReadWrite).unwrap());
    let bell = Doorbell::attach(segment.shared::<ParkFlag>(FLAG).unwrap(), event).unwrap();
    let say = || send_with_fds(stdin.as_fd(), b"done", &[]).unwrap();
    let body = segment.body();
    let mut up = Producer::<Record>::new(ring(&segment, UP), SLOTS).unwrap();
    let mut down = Consumer::<Record>::new(ring(&segment, DOWN), SLOTS).unwrap();
    match role.as_str() {
        "before-write" => assert_eq!(up.push_slice(&[record(0), record(1)]), 2),
        "written-not-published" => {
            assert_eq!(up.push_slice(&[record(0), record(1)]), 2);
            let third = UP + RingMem::RECORDS_OFFSET + 2 * size_of::<Record>();
            let words = body.slice_at::<AtomicU64>(third, 5).unwrap();
            words
                .iter()
                .for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        }
        "published" => assert_eq!(up.push_slice(&[record(0), record(1), record(2)]), 3),
        "popped" => {
            assert_eq!(down.pop(), Ok(Some(record(0))));
            assert_eq!(down.pop(), Ok(Some(record(1))));
        }
        "parked" => {
            bell.prepare_park();
            say();
            bell.park(Duration::MAX).unwrap();
        }
        "about-to-park" => bell.prepare_park(),
        "mid-seqlock" => {
            let cell = body.at::<SeqCell<Progress>>(CELL).unwrap();
            cell.write(&[5; 4]);
            // Version 2 goes into the first cell, right behind the version word; half of it.
            let words = body.slice_at::<AtomicU64>(CELL + 8, 2).unwrap();
            words
                .iter()
                .for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            body.at::<Counter>(COUNTER).unwrap().add(3);
        }
        role => panic!("no such role: {role}"),
    }
    say();
    loop {
        std::thread::park();
    }
}

fn ring(segment: &Arc<Segment>, offset: usize) -> RingMem {
    RingMem::in_segment(Arc::clone(segment), offset)
}

/// What is left when the peer has done its step and was killed.
struct Survivor {
    segment: Arc<Segment>,
    bell: Doorbell,
    up: Consumer<Record>,
    down: Producer<Record>,
}

/// Kills the peer even when the test fails first.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a peer with `sent` records waiting for it, lets it do its step, and kills it.
fn survive(role: &str, sent: u64) -> Survivor {
    let segment = Segment::create("peer death", LAYOUT, 1, PeerAccess::ReadWrite).unwrap();
    let segment = Arc::new(segment);
    let bell = Doorbell::with_flag(segment.shared::<ParkFlag>(FLAG).unwrap()).unwrap();
    let up = Consumer::new(ring(&segment, UP), SLOTS).unwrap();
    let mut down = Producer::new(ring(&segment, DOWN), SLOTS).unwrap();
    (0..sent).for_each(|number| down.push(&record(number)).unwrap());

    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    // A watchdog against a peer that hangs, not a measure of how fast it is.
    set_socket_timeout(&ours, Timeout::Recv, Some(Duration::from_secs(120))).unwrap();
    let peer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "peer_process", "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peer = Killed(peer);
    send_with_fds(&ours, b"hello", &[segment.fd(), bell.fd()]).unwrap();
    let (length, _) = recv_with_fds(&ours, &mut [0; 16], 0).expect("the peer failed its step");
    assert_eq!(length, 4);
    if role == "parked" {
        // Let it get into the kernel; either side of that instant is a fair place to die.
        std::thread::sleep(Duration::from_millis(50));
    }
    peer.0.kill().unwrap();
    peer.0.wait().unwrap();
    // The socket tells of the death, after what was said before it.
    assert_eq!(
        recv_with_fds(&ours, &mut [0; 16], 0).unwrap_err(),
        ScmError::Eof
    );
    Survivor {
        segment,
        bell,
        up,
        down,
    }
}

/// Exactly `published` records, in order, then an empty ring that is not in error.
fn assert_pops(up: &mut Consumer<Record>, published: u64) {
    for number in 0..published {
        assert_eq!(up.pop(), Ok(Some(record(number))));
    }
    assert_eq!(up.pop(), Ok(None));
    assert!(up.is_empty());
}

/// Exactly `room` more records fit, then a full ring that is not in error.
fn assert_pushes(down: &mut Producer<Record>, room: usize) {
    assert_eq!(down.push_slice(&[record(9); 2 * SLOTS as usize]), room);
    assert_eq!(down.push(&record(9)), Err(Full));
    assert_eq!(down.check(), Ok(()));
}

#[test]
fn producer_dies_before_it_writes() {
    assert_pops(&mut survive("before-write", 0).up, 2);
}

#[test]
fn producer_dies_between_write_and_publish() {
    assert_pops(&mut survive("written-not-published", 0).up, 2);
}

#[test]
fn producer_dies_after_it_published() {
    assert_pops(&mut survive("published", 0).up, 3);
}

#[test]
fn consumer_dies_with_records_left() {
    let mut survivor = survive("popped", 3);
    assert_pushes(&mut survivor.down, 3);
    assert_pops(&mut survivor.up, 0);
}

#[test]
fn consumer_dies_while_parked() {
    for role in ["parked", "about-to-park"] {
        let mut survivor = survive(role, 1);
        assert_pushes(&mut survivor.down, 3);
        assert!(survivor.bell.ring(), "the dead one had announced its sleep");
        assert!(!survivor.bell.ring());
        assert_eq!(survivor.down.check(), Ok(()));
    }
}

#[test]
fn writer_dies_in_the_middle_of_a_coherent_group() {
    let survivor = survive("mid-seqlock", 0);
    let body = survivor.segment.body();
    let cell = body.at::<SeqCell<Progress>>(CELL).unwrap();
    assert_eq!(cell.read(), Ok([5; 4]));
    assert_eq!(cell.version(), 1);
    assert_eq!(body.at::<Counter>(COUNTER).unwrap().get(), 3);
    // The half-written words are there: the test did reach the step it is about.
    assert_eq!(
        body.at::<AtomicU64>(CELL + 8)
            .unwrap()
            .load(Ordering::Relaxed),
        u64::MAX
    );
}
