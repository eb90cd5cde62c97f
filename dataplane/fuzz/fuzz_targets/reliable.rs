//! Any datagrams to a reliable lane: garbage is counted and harms nothing; a peer that has the secret and
//! breaks every rule ends its own lane at worst.
//!
//! Input: a list of steps. 0: garbage, its length in two bytes, the bytes. 1: a datagram with a right tag:
//! kind, flags in two bytes, how far its number is from the last, length in two bytes, body. 2: time goes
//! on, by two bytes of milliseconds. 3: a frame is sent, its length in two bytes.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use dwcp_drivers::MAX_FRAME_BYTES;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneEvent, LaneGroup, LaneId, Polled};
use dwcp_drivers::reliable::hostile::HostilePeer;
use dwcp_drivers::reliable::port::DatagramPort;
use dwcp_drivers::reliable::{
    Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;
use libfuzzer_sys::fuzz_target;

const MAX_PAYLOAD: u16 = 1472;
/// Polls until a lane must rest: what its windows hold, and its probes.
const POLLS_MAX: usize = 4096;

/// What comes in, what went out last, and the time.
#[derive(Default)]
struct Wire {
    coming: VecDeque<Vec<u8>>,
    gone: Vec<u8>,
    now_ns: u64,
}

#[derive(Clone, Default)]
struct Port(Rc<RefCell<Wire>>);

impl DatagramPort for Port {
    fn max_payload(&self) -> usize {
        MAX_PAYLOAD.into()
    }

    fn now_ns(&self) -> u64 {
        self.0.borrow().now_ns
    }

    fn recv(&mut self, sink: &mut impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let Some(mut datagram) = self.0.borrow_mut().coming.pop_front() else {
            return 0;
        };
        sink(peer(), &mut datagram);
        1
    }

    fn send(&mut self, to: SocketAddr, fill: &mut impl FnMut(&mut [u8]) -> usize) -> bool {
        assert_eq!(to, peer(), "a lane speaks to its peer only");
        let mut datagram = vec![0; MAX_PAYLOAD.into()];
        let len = fill(&mut datagram);
        assert!(len <= datagram.len());
        datagram.truncate(len);
        self.0.borrow_mut().gone = datagram;
        true
    }

    fn flush(&mut self) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn prepare_park(&mut self) -> bool {
        true
    }
}

fn peer() -> SocketAddr {
    ([10, 0, 0, 1], 4790).into()
}

/// The lane under test and what the peer made of it.
struct Scene {
    wire: Port,
    group: ReliableLanes<Port>,
    pools: FramePools,
    lane: LaneId,
    closed: bool,
    peer: HostilePeer,
    number: u64,
}

impl Scene {
    fn new(protection: Protection) -> Self {
        let wire = Port::default();
        wire.0.borrow_mut().now_ns = 1_000_000;
        let config = ReliableConfig {
            lanes_max: 1,
            window_bytes_max: 256 << 10,
            ..ReliableConfig::default()
        };
        let mut group = ReliableLanes::new(wire.clone(), config).expect("a fitting port");
        let pools = FramePools::new(&FramePoolsConfig {
            small: 8,
            medium: 4,
            large: 2,
            backing: BackingPolicy::Ordinary,
        })
        .expect("memory");
        let endpoint = || ReliableEndpoint {
            meeting: Meeting::Accept,
            connection: 7,
            secret: [9; 32],
            protection,
        };
        let lane = group.add(endpoint(), &pools).expect("room for one lane");
        let mut scene = Self {
            wire,
            group,
            pools,
            lane,
            closed: false,
            peer: HostilePeer::new(&endpoint(), ([10, 0, 0, 2], 4790).into(), MAX_PAYLOAD),
            number: 0,
        };
        let hello = scene.peer.hello();
        scene.hear(hello);
        let mut welcome = scene.wire.0.borrow().gone.clone();
        assert!(scene.peer.hear(&mut welcome), "no WELCOME");
        scene
    }

    /// Polls until the lane rests.
    fn settle(&mut self) {
        let mut events = Vec::with_capacity(16);
        for _ in 0..POLLS_MAX {
            let polled = self.group.poll(&mut events);
            for event in events.drain(..) {
                assert!(!self.closed, "news of a lane that is closed");
                match event {
                    LaneEvent::Frame { lane, frame } => {
                        assert_eq!(lane, self.lane);
                        assert!(frame.bytes().len() <= MAX_FRAME_BYTES);
                    }
                    LaneEvent::Closed { .. } => self.closed = true,
                    LaneEvent::Writable { .. } => {}
                }
            }
            if polled == Polled::Idle && self.wire.0.borrow().coming.is_empty() {
                return;
            }
        }
        panic!("the lane does not come to rest");
    }

    fn dropped(&self) -> u64 {
        let dropped = self.group.dropped();
        dropped.short
            + dropped.unknown_format
            + dropped.unknown_connection
            + dropped.forged
            + dropped.replayed
            + dropped.malformed
            + dropped.early
    }

    fn hear(&mut self, datagram: Vec<u8>) {
        self.wire.0.borrow_mut().coming.push_back(datagram);
        self.settle();
    }

    /// Does what the input says; none: it has ended.
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.byte()? % 4 {
            0 => {
                let garbage = input.bytes()?.to_vec();
                let before = self.dropped();
                self.hear(garbage);
                assert!(!self.closed, "garbage ended a lane");
                assert_eq!(self.dropped(), before + 1, "garbage is not counted");
            }
            1 => {
                let (kind, flags) = (input.byte()?, input.u16()?);
                let step = i64::from(input.byte()?.cast_signed());
                self.number = self.number.wrapping_add_signed(step);
                let body = input.bytes()?;
                let said = self.peer.say(kind, flags, self.number, body);
                self.hear(said);
            }
            2 => {
                self.wire.0.borrow_mut().now_ns += u64::from(input.u16()?) * 1_000_000;
                self.settle();
            }
            _ => {
                let frame = self.pools.copy(&vec![5; input.u16()?.into()]);
                if let Some(frame) = frame {
                    let _ = self.group.submit(self.lane, frame);
                }
                self.settle();
            }
        }
        (!self.closed).then_some(())
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// As many as two bytes say, or all there are.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(bytes)
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let protection = match input.byte() {
        Some(byte) if byte % 3 == 1 => Protection::Sealed,
        Some(byte) if byte % 3 == 2 => Protection::Headers,
        _ => Protection::Tagged,
    };
    let mut scene = Scene::new(protection);
    while scene.step(&mut input).is_some() {}
});
