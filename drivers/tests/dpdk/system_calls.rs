//! Once frames flow over a lane, neither worker asks the kernel for anything.

use std::time::Instant;

use dwcp_drivers::dpdk::carrier::Carrier;
use dwcp_drivers::dpdk::device::MemifRole;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId};
use dwcp_drivers::reliable::{
    Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;
use dwcp_lab::syscalls::SyscallCounter;

use crate::scene::{PATIENCE, Side, given_socket, host, memif, plan, role, start};

const FRAME_BYTES: usize = 4096;
/// Frames before the first look at the count, and between the two.
const WARM_UP: u64 = 1000;
const COUNTED: u64 = 20_000;
/// What both workers together may spend on them: far less than a call for each batch, which is at most
/// [`BATCH`] frames.
const CALLS_MAX: u64 = 8;
const BATCH: u64 = 256;
const _: () = assert!(CALLS_MAX * 8 < COUNTED / BATCH);

/// A worker with one lane; the port goes last.
struct Worker {
    group: ReliableLanes<Carrier>,
    lane: LaneId,
    pools: FramePools,
    events: Vec<LaneEvent>,
    /// Frames that arrived.
    got: u64,
    start: Instant,
    _port: dwcp_drivers::dpdk::port::PacketPort,
}

impl Worker {
    fn new(side: Side, meeting: Meeting) -> Self {
        let Side {
            datagrams,
            mut port,
        } = side;
        let start = Instant::now();
        while !port.tend() {
            assert!(start.elapsed() < PATIENCE, "the other side does not come");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let config = ReliableConfig {
            queue_frames_max: BATCH as u16,
            ..ReliableConfig::default()
        };
        let mut group = ReliableLanes::new(Carrier::new(datagrams), config).unwrap();
        let pools = FramePools::new(&FramePoolsConfig {
            small: 16,
            medium: 256,
            large: 0,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap();
        let endpoint = ReliableEndpoint {
            meeting,
            connection: 1,
            secret: [3; 32],
            protection: Protection::Tagged,
        };
        let lane = group.add(endpoint, &pools).unwrap();
        Self {
            group,
            lane,
            pools,
            events: Vec::with_capacity(64),
            got: 0,
            start,
            _port: port,
        }
    }

    /// One turn, as a worker does that never parks. Frames must come in order. Some: the lane is over.
    fn turn(&mut self) -> Option<LaneClosed> {
        assert!(self.start.elapsed() < PATIENCE, "frames do not flow");
        self.group.poll(&mut self.events);
        let mut over = None;
        for event in self.events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => {
                    assert_eq!(frame.len(), FRAME_BYTES);
                    assert_eq!(frame.bytes()[..8], self.got.to_le_bytes());
                    self.got += 1;
                }
                LaneEvent::Closed { reason, .. } => over = Some(reason),
                LaneEvent::Writable { .. } => {}
            }
        }
        over
    }

    /// Sends frames of these numbers, and waits until the peer has them.
    fn send(&mut self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let mut frame = loop {
                match self.pools.take(FRAME_BYTES) {
                    Some(frame) => break frame,
                    None => assert_eq!(self.turn(), None),
                }
            };
            frame.payload_mut()[..8].copy_from_slice(&number.to_le_bytes());
            let mut frame = frame.freeze(FRAME_BYTES).unwrap();
            while let Err(refused) = self.group.submit(self.lane, frame) {
                frame = refused.frame;
                assert_eq!(self.turn(), None);
            }
        }
        while self.group.backlog_bytes(self.lane) > 0
            || self.group.stats(self.lane).unwrap().unacked_segments > 0
        {
            assert_eq!(self.turn(), None);
        }
    }

    /// Receives until there were as many frames.
    fn receive(&mut self, until: u64) {
        while self.got < until {
            assert_eq!(self.turn(), None);
        }
    }

    fn finish(mut self) {
        self.group.finish(self.lane);
        loop {
            if let Some(reason) = self.turn() {
                return assert_eq!(reason, LaneClosed::Finished);
            }
        }
    }
}

#[test]
fn frames_cost_no_system_call() {
    if role().is_some() {
        let device = memif(&given_socket(), MemifRole::Client);
        let mut far = Worker::new(Side::open(&device, &plan(), 2), Meeting::Accept);
        far.receive(WARM_UP);
        let mut counter = SyscallCounter::of_this_thread().unwrap();
        far.receive(WARM_UP + COUNTED);
        let calls = counter.since_last_look().unwrap();
        assert!(calls <= CALLS_MAX, "{calls} system calls to receive");
        return far.finish();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("memif.sock");
    let side = Side::open(&memif(&socket, MemifRole::Server), &plan(), 1);
    let test = "system_calls::frames_cost_no_system_call";
    let mut other = start(test, "receive", &socket);
    let mut near = Worker::new(side, Meeting::Connect(host(2, false)));
    near.send(0..WARM_UP);
    let mut counter = SyscallCounter::of_this_thread().unwrap();
    near.send(WARM_UP..WARM_UP + COUNTED);
    let calls = counter.since_last_look().unwrap();
    assert!(calls <= CALLS_MAX, "{calls} system calls to send");
    near.finish();
    assert!(other.wait().success());
}
