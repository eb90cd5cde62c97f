//! Once reliable lanes run, frames cost no allocation, lost datagrams included.
#![allow(clippy::unwrap_used)]

mod counting;

use std::sync::atomic::Ordering;

use counting::ALLOCATIONS;
use dwcp_drivers::MAX_FRAME_BYTES;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneEvent, LaneGroup};
use dwcp_drivers::loopback::{FaultMangler, FaultRates};
use dwcp_drivers::reliable::memory::MemoryNetwork;
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;

fn run(congestion: Congestion, protection: Protection, faults: FaultRates) {
    let network = MemoryNetwork::new(4096, 4160);
    let config = ReliableConfig {
        congestion,
        ..ReliableConfig::default()
    };
    let group = |seed| {
        let port = network.port().unwrap();
        let address = port.address();
        let port = port.mangled(Box::new(FaultMangler::new(seed, faults)));
        (ReliableLanes::new(port, config.clone()).unwrap(), address)
    };
    let ((mut a, _), (mut b, far)) = (group(1), group(2));
    let pools = |small, medium, large| {
        FramePools::new(&FramePoolsConfig {
            small,
            medium,
            large,
            backing: BackingPolicy::Ordinary,
        })
        .unwrap()
    };
    let (sends, lands) = (pools(64, 64, 16), pools(64, 64, 32));
    let end = |meeting| ReliableEndpoint {
        meeting,
        connection: 1,
        secret: [1; 32],
        protection,
    };
    let near = a.add(end(Meeting::Connect(far)), &lands).unwrap();
    let far = b.add(end(Meeting::Accept), &lands).unwrap();
    let mut events: Vec<LaneEvent> = Vec::with_capacity(64);
    let mut carry = |frames: usize| {
        let (mut sent, mut got) = (0, 0);
        while got < frames {
            while sent < frames
                && let Some(mut frame) = sends.take([100, 4096, 60_000, MAX_FRAME_BYTES][sent % 4])
            {
                let len = [100, 4096, 60_000, MAX_FRAME_BYTES][sent % 4];
                frame.payload_mut()[len - 1] = sent as u8;
                if a.submit(near, frame.freeze(len).unwrap()).is_err() {
                    break;
                }
                sent += 1;
            }
            a.poll(&mut events);
            b.poll(&mut events);
            for event in events.drain(..) {
                if let LaneEvent::Frame { lane, frame } = event {
                    assert_eq!((lane, frame.bytes()[frame.len() - 1]), (far, got as u8));
                    got += 1;
                }
            }
            if b.prepare_park() {
                std::thread::yield_now();
            }
        }
    };
    carry(80);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    carry(400);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(allocations, 0, "{congestion:?} {protection:?} {faults:?}");
}

#[test]
fn frames_cost_no_allocation() {
    let faulty = FaultRates {
        drop_ppm: 10_000,
        repeat_ppm: 10_000,
        swap_ppm: 10_000,
        ..FaultRates::default()
    };
    for faults in [FaultRates::default(), faulty] {
        run(Congestion::Cubic, Protection::Tagged, faults);
        run(Congestion::Bbr, Protection::Sealed, faults);
        run(Congestion::Cubic, Protection::Headers, faults);
    }
}
