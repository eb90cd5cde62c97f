//! What needs a look inside of a lane between two devices, at 10.77.0.1 and 10.77.0.2: the virtual machine
//! of the lab has them.

use super::*;
use crate::frame::FramePoolsConfig;
use crate::port::Port;
use crate::rdma::{RdmaOptions, RdmaPort, TOKEN_BYTES};
use dwcp_hugepages::arena::BackingPolicy;

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: [u8; TOKEN_BYTES] = [5; TOKEN_BYTES];

fn pools() -> FramePools {
    FramePools::new(&FramePoolsConfig {
        small: 64,
        medium: 16,
        large: 16,
        backing: BackingPolicy::Ordinary,
    })
    .unwrap()
}

#[test]
fn a_queue_pair_in_error_ends_its_lane_on_both_sides() {
    let mut port = RdmaPort::new(RdmaOptions {
        backing: BackingPolicy::Ordinary,
    });
    port.open(PortConfig::default()).unwrap();
    port.start().unwrap();
    let connector = port.connector().unwrap();
    let mut listener = connector.listen(([10, 77, 0, 2], 0).into()).unwrap();
    let to = listener.local_addr();
    let (near, far) = std::thread::scope(|scope| {
        let asked = &mut listener;
        let far = scope.spawn(move || {
            let request = asked.next(PATIENCE).unwrap().unwrap();
            request.accept(PATIENCE).unwrap()
        });
        let from = Some(([10, 77, 0, 1], 0).into());
        let near = connector.connect(from, to, &TOKEN, PATIENCE).unwrap();
        (near, far.join().unwrap())
    });
    let (sends, lands) = (pools(), pools());
    let all = (sends.available(), lands.available());
    let (mut a, mut b) = (port.lanes().unwrap(), port.lanes().unwrap());
    let (near, far) = (a.add(near, &lands).unwrap(), b.add(far, &lands).unwrap());
    let (mut events, mut ends) = (Vec::with_capacity(64), Vec::new());
    let (start, mut got, mut failed) = (Instant::now(), 0, false);
    while ends.len() < 2 {
        assert!(start.elapsed() < PATIENCE, "{ends:?} after {got} frames");
        for (side, lane) in [(&mut a, near), (&mut b, far)] {
            for bytes in [300, 70_000] {
                if let Some(frame) = sends.take(bytes) {
                    let _ = side.submit(lane, frame.freeze(bytes).unwrap());
                }
            }
            side.poll(&mut events);
            for event in events.drain(..) {
                match event {
                    LaneEvent::Frame { .. } => got += 1,
                    LaneEvent::Closed { reason, .. } => ends.push(reason),
                    LaneEvent::Writable { .. } => {}
                }
            }
        }
        if got >= 50 && !failed {
            failed = true;
            a.slots.get_mut(near).unwrap().pair_mut().fail();
        }
    }
    // The device gives back what it was to do; the peer is told by the connection's end.
    let reset = LaneClosed::Failed {
        errno: libc::ECONNRESET,
    };
    assert_eq!(ends, [reset, reset]);
    assert_eq!(
        (sends.available(), lands.available()),
        all,
        "buffers are lost"
    );
    drop((a, b));
    port.drain(Duration::ZERO).unwrap();
}
