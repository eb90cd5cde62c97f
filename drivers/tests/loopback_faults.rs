//! Faults on a lane in memory are those that were asked for, and no others.
#![allow(clippy::unwrap_used, clippy::panic)]

use dwcp_drivers::frame::{FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup};
use dwcp_drivers::loopback::{Fate, FaultMangler, FaultRates, LoopbackEndpoint, LoopbackLanes};
use dwcp_hugepages::arena::BackingPolicy;

/// Sends frames 0, 1, 2… with these fates, ends the lane, and tells what arrived and how it ended.
fn carry(frames: u8, mangler: impl FnMut(&[u8]) -> Fate + Send + 'static) -> (Vec<u8>, LaneClosed) {
    let backing = BackingPolicy::Ordinary;
    let pools = FramePools::new(&FramePoolsConfig {
        small: 512,
        medium: 0,
        large: 0,
        backing,
    })
    .unwrap();
    let (mut a, mut b) = (LoopbackLanes::new().unwrap(), LoopbackLanes::new().unwrap());
    let clean = |_: &[u8]| Fate::Pass;
    let (near, far) = LoopbackEndpoint::mangled_pair(Box::new(mangler), Box::new(clean));
    let (near, _far) = (a.add(near, &pools).unwrap(), b.add(far, &pools).unwrap());
    let mut events = Vec::with_capacity(16);
    for at in 0..frames {
        if a.submit(near, pools.copy(&[at]).unwrap()).is_err() {
            break; // cut
        }
        if at % 8 == 7 {
            a.poll(&mut events);
        }
    }
    a.finish(near);
    let mut got = Vec::new();
    loop {
        events.clear();
        a.poll(&mut events);
        events.clear();
        b.poll(&mut events);
        for event in events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => got.extend_from_slice(frame.bytes()),
                LaneEvent::Closed { reason, .. } => return (got, reason),
                LaneEvent::Writable { .. } => panic!("nothing was refused"),
            }
        }
    }
}

fn at(wanted: u8, fate: Fate) -> impl FnMut(&[u8]) -> Fate + Send + 'static {
    move |bytes: &[u8]| if bytes[0] == wanted { fate } else { Fate::Pass }
}

#[test]
fn each_fate_does_what_it_says() {
    let finished = LaneClosed::Finished;
    assert_eq!(
        carry(4, |_: &[u8]| Fate::Pass),
        (vec![0, 1, 2, 3], finished)
    );
    assert_eq!(carry(4, at(1, Fate::Drop)), (vec![0, 2, 3], finished));
    assert_eq!(
        carry(4, at(1, Fate::Repeat)),
        (vec![0, 1, 1, 2, 3], finished)
    );
    assert_eq!(carry(4, at(1, Fate::Swap)), (vec![0, 2, 1, 3], finished));
    assert_eq!(carry(4, at(3, Fate::Swap)), (vec![0, 1, 2, 3], finished));
    assert_eq!(
        carry(4, at(1, Fate::Delay { polls: 9 })),
        (vec![0, 1, 2, 3], finished)
    );
    assert_eq!(
        carry(4, at(2, Fate::Corrupt { at: 5, xor: 0x80 })),
        (vec![0, 1, 0x82, 3], finished)
    );
    let (got, reason) = carry(4, at(2, Fate::Cut));
    assert!(got.len() <= 2);
    assert_eq!(
        reason,
        LaneClosed::Failed {
            errno: libc::ECONNRESET
        }
    );
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let rates = FaultRates {
        drop_ppm: 50_000,
        repeat_ppm: 50_000,
        swap_ppm: 50_000,
        delay_ppm: 50_000,
        corrupt_ppm: 50_000,
        cut_ppm: 0,
    };
    let run = |seed| {
        let mut mangler = FaultMangler::new(seed, rates);
        carry(200, move |bytes: &[u8]| {
            dwcp_drivers::loopback::Mangler::frame(&mut mangler, bytes)
        })
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert_ne!(run(1).0, (0..200).collect::<Vec<u8>>());
}
