//! Once lanes run, frames cost no allocation.
#![allow(clippy::unwrap_used)]

mod counting;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use counting::ALLOCATIONS;
use dwcp_drivers::MAX_FRAME_BYTES;
use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneEvent, LaneGroup};
use dwcp_drivers::port::{Port, PortConfig};
use dwcp_drivers::tcp::{RecvMode, SendMode, TcpOptions, TcpPort};
use dwcp_hugepages::arena::BackingPolicy;

fn run(recv: RecvMode, send: SendMode) {
    let mut port = TcpPort::new(TcpOptions {
        recv,
        send,
        backing: BackingPolicy::Ordinary,
    });
    port.open(PortConfig::default()).unwrap();
    port.start().unwrap();
    let (mut a, mut b) = (port.lanes().unwrap(), port.lanes().unwrap());
    let pools = || {
        let backing = BackingPolicy::Ordinary;
        FramePools::new(&FramePoolsConfig {
            small: 8,
            medium: 8,
            large: 16,
            backing,
        })
        .unwrap()
    };
    let (sends, lands) = (pools(), pools());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    let near = a.add(OwnedFd::from(near), &lands).unwrap();
    let far = b.add(OwnedFd::from(far), &lands).unwrap();
    let mut events: Vec<LaneEvent> = Vec::with_capacity(16);
    let mut carry = |frames: usize| {
        let (mut sent, mut got) = (0, 0);
        while got < frames {
            if sent < frames
                && let Some(mut frame) =
                    sends.take([100, 60_000, 500_000, MAX_FRAME_BYTES][sent % 4])
            {
                let len = frame.capacity();
                frame.payload_mut()[len - 1] = sent as u8;
                // Full or not, the frame is dropped at the end, and the lane goes on.
                sent += usize::from(a.submit(near, frame.freeze(len).unwrap().clone()).is_ok());
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
    carry(40);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    carry(200);
    assert_eq!(
        ALLOCATIONS.load(Ordering::Relaxed) - before,
        0,
        "{recv:?} {send:?}"
    );
}

#[test]
fn frames_cost_no_allocation() {
    for recv in [RecvMode::SingleShot, RecvMode::Multishot] {
        for send in [SendMode::Copy, SendMode::ZeroCopy] {
            run(recv, send);
        }
    }
}
