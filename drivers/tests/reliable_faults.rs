//! Reliable lanes over simulated paths that lose, reorder, double and corrupt: what arrives is identical,
//! nothing stalls, and the goodput is printed beside what the path could carry.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use dwcp_drivers::frame::{Frame, FramePools, FramePoolsConfig};
use dwcp_drivers::lane::{LaneClosed, LaneEvent, LaneGroup, LaneId};
use dwcp_drivers::loopback::FaultRates;
use dwcp_drivers::reliable::port::DatagramPort;
use dwcp_drivers::reliable::simulated::{Link, SimulatedNetwork, SimulatedPort};
use dwcp_drivers::reliable::{
    Congestion, Meeting, Protection, ReliableConfig, ReliableEndpoint, ReliableLanes,
};
use dwcp_hugepages::arena::BackingPolicy;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const STEP_NS: u64 = 20_000;

fn pools(small: usize, medium: usize, large: usize) -> FramePools {
    FramePools::new(&FramePoolsConfig {
        small,
        medium,
        large,
        backing: BackingPolicy::Ordinary,
    })
    .unwrap()
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 4789))
}

/// The bytes of frame `seed`.
fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// One side of a path.
struct Side {
    group: ReliableLanes<SimulatedPort>,
    lane: LaneId,
    sends: FramePools,
    /// A frame that found the lane full.
    refused: Option<Frame>,
    lands: FramePools,
    events: Vec<LaneEvent>,
    sent: u64,
    got: u64,
    closed: Option<LaneClosed>,
}

impl Side {
    fn new(port: SimulatedPort, meeting: Meeting, plan: &Plan) -> Self {
        let config = ReliableConfig {
            congestion: plan.congestion,
            window_bytes_max: plan.window_bytes_max,
            silence_max: plan.silence_max,
            ..ReliableConfig::default()
        };
        let mut group = ReliableLanes::new(port, config).unwrap();
        let lands = plan.lands.clone();
        let endpoint = ReliableEndpoint {
            meeting,
            connection: 77,
            secret: [5; 32],
            protection: plan.protection,
        };
        let lane = group.add(endpoint, &lands).unwrap();
        Self {
            group,
            lane,
            sends: pools(256, 128, 80),
            refused: None,
            lands,
            events: Vec::with_capacity(64),
            sent: 0,
            got: 0,
            closed: None,
        }
    }

    /// The next frame, if there is a buffer for it.
    fn filled(&self, len: usize) -> Option<Frame> {
        let mut frame = self.sends.take(len)?;
        fill(self.sent, &mut frame.payload_mut()[..len]);
        Some(frame.freeze(len).unwrap())
    }

    /// Offers frames while they are taken.
    fn offer(&mut self, frames: u64, len: impl Fn(u64) -> usize) {
        while self.sent < frames
            && let Some(frame) = self.refused.take().or_else(|| self.filled(len(self.sent)))
        {
            if let Err(refused) = self.group.submit(self.lane, frame) {
                self.refused = Some(refused.frame);
                return;
            }
            self.sent += 1;
        }
    }

    /// Polls once and checks what came.
    fn turn(&mut self, len: impl Fn(u64) -> usize, expected: &mut Vec<u8>) {
        self.group.poll(&mut self.events);
        for event in self.events.drain(..) {
            match event {
                LaneEvent::Frame { frame, .. } => {
                    expected.resize(len(self.got), 0);
                    fill(self.got, expected);
                    assert!(frame.bytes() == &expected[..], "frame {} differs", self.got);
                    self.got += 1;
                }
                LaneEvent::Closed { reason, .. } => {
                    assert_eq!(self.closed.replace(reason), None);
                }
                LaneEvent::Writable { .. } => {}
            }
        }
    }
}

/// One run.
struct Plan {
    forth: Link,
    back: Link,
    seed: u64,
    congestion: Congestion,
    protection: Protection,
    window_bytes_max: usize,
    silence_max: Duration,
    lands: FramePools,
    frames: u64,
    /// Simulated time that is more than enough.
    limit_ms: u64,
}

struct Outcome {
    goodput_bytes_per_s: f64,
    retransmits: u32,
    sent: u64,
    lost: u64,
    forged: u64,
}

impl Plan {
    fn new(link: Link, seed: u64) -> Self {
        Self {
            forth: link,
            back: link,
            seed,
            congestion: Congestion::Cubic,
            protection: Protection::Tagged,
            window_bytes_max: 6 << 20,
            silence_max: Duration::from_secs(10),
            lands: pools(2048, 512, 96),
            frames: 100,
            limit_ms: 60_000,
        }
    }

    fn sides(&self) -> (SimulatedNetwork, Side, Side) {
        let network = SimulatedNetwork::default();
        let near = network.port(address(1), self.forth, self.seed);
        let far = network.port(address(2), self.back, self.seed + 1000);
        let a = Side::new(near, Meeting::Connect(address(2)), self);
        let b = Side::new(far, Meeting::Accept, self);
        (network, a, b)
    }

    /// Sends frames one way, finishes, and checks that all is there and both sides agree that it is.
    fn run(&self, len: impl Fn(u64) -> usize) -> Outcome {
        let (network, mut a, mut b) = self.sides();
        let (before_a, before_b) = (a.lands.available(), b.lands.available());
        let sends = a.sends.available();
        let mut expected = Vec::new();
        let mut finished_ns = 0;
        let mut retransmits = 0;
        let bytes: u64 = (0..self.frames).map(|at| len(at) as u64).sum();
        while a.closed.is_none() || b.closed.is_none() {
            a.offer(self.frames, &len);
            if a.sent == self.frames {
                a.group.finish(a.lane);
            }
            a.turn(|_| 0, &mut expected);
            b.turn(&len, &mut expected);
            if let Some(stats) = a.group.stats(a.lane) {
                retransmits = stats.retransmits;
            }
            if b.got == self.frames && finished_ns == 0 {
                finished_ns = network.now_ns();
            }
            network.advance(STEP_NS);
            assert!(
                network.now_ns() < self.limit_ms * MS,
                "a stall: {} of {} frames after {} ms; {:?}",
                b.got,
                self.frames,
                self.limit_ms,
                a.group.stats(a.lane),
            );
        }
        assert_eq!(b.got, self.frames);
        assert_eq!(a.closed, Some(LaneClosed::Finished));
        assert_eq!(b.closed, Some(LaneClosed::Finished));
        assert_eq!(a.sends.available(), sends);
        assert_eq!(
            (a.lands.available(), b.lands.available()),
            (before_a, before_b)
        );
        let carried = network.carried();
        Outcome {
            goodput_bytes_per_s: bytes as f64 * 1e9 / finished_ns as f64,
            retransmits,
            sent: carried.sent,
            lost: carried.lost + carried.overflowed,
            forged: b.group.dropped().forged + a.group.dropped().forged,
        }
    }
}

/// 100 MB/s, a queue of one bandwidth-delay product and at least 200 kB.
fn link(max_payload: usize, rtt_ms: u64, faults: FaultRates) -> Link {
    Link {
        max_payload,
        rate_bytes_per_s: 100_000_000,
        overhead_bytes: 42,
        delay_ns: rtt_ms * MS / 2,
        queue_bytes: (100_000 * rtt_ms).max(200_000),
        late_ns: (rtt_ms * MS / 4).max(300_000),
        faults,
    }
}

fn share(ppm: u32, corrupt: bool) -> FaultRates {
    FaultRates {
        drop_ppm: ppm,
        repeat_ppm: ppm,
        swap_ppm: ppm,
        delay_ppm: 0,
        corrupt_ppm: if corrupt { ppm } else { 0 },
        cut_ppm: 0,
    }
}

#[test]
fn a_clean_path_is_filled() {
    for congestion in [Congestion::Cubic, Congestion::Bbr] {
        let mut plan = Plan::new(link(4160, 2, FaultRates::default()), 1);
        plan.congestion = congestion;
        plan.frames = 400;
        let outcome = plan.run(|_| 256 << 10);
        println!(
            "clean, 100 MB/s, 2 ms, {congestion:?}: {:.1} MB/s, {} of {} lost",
            outcome.goodput_bytes_per_s / 1e6,
            outcome.lost,
            outcome.sent
        );
        assert!(outcome.goodput_bytes_per_s > 85e6);
    }
}

/// So many of a million datagrams meet each fault, with payloads of a plain wire, of ours and of a jumbo wire.
fn each_fault(ppm: u32, congestion: Congestion) {
    for (payload, frame) in [(1472, 300_000), (4160, 4096), (8900, 60_000)] {
        let mut plan = Plan::new(link(payload, 2, share(ppm, true)), 11);
        plan.congestion = congestion;
        plan.protection = if frame == 4096 {
            Protection::Headers
        } else {
            Protection::Sealed
        };
        plan.frames = 20_000_000 / frame as u64;
        let outcome = plan.run(|_| frame);
        println!(
            "{}% lost, doubled, overtaken and corrupted each, payload {payload}, frames {frame}, \
             {congestion:?}: {:.1} MB/s of 100, {} sent again, {} of {} lost, {} forged",
            ppm / 10_000,
            outcome.goodput_bytes_per_s / 1e6,
            outcome.retransmits,
            outcome.lost,
            outcome.sent,
            outcome.forged,
        );
        assert!(outcome.lost > 0 && outcome.forged > 0 && outcome.retransmits > 0);
    }
}

#[test]
fn one_percent_of_each_fault_changes_nothing_under_cubic() {
    each_fault(10_000, Congestion::Cubic);
}

#[test]
fn five_percent_of_each_fault_change_nothing_under_cubic() {
    each_fault(50_000, Congestion::Cubic);
}

#[test]
fn one_and_five_percent_of_each_fault_change_nothing_under_bbr() {
    for ppm in [10_000, 50_000] {
        each_fault(ppm, Congestion::Bbr);
    }
}

#[test]
fn a_long_lossy_path_is_where_bbr_is_for() {
    let goodput = |congestion| {
        let mut plan = Plan::new(link(4160, 40, share(10_000, false)), 3);
        plan.congestion = congestion;
        plan.window_bytes_max = 16 << 20;
        plan.frames = 30;
        let outcome = plan.run(|_| 256 << 10);
        println!(
            "40 ms, 1 % lost, doubled and overtaken each, {congestion:?}: {:.1} MB/s of 100",
            outcome.goodput_bytes_per_s / 1e6
        );
        outcome.goodput_bytes_per_s
    };
    let (cubic, bbr) = (goodput(Congestion::Cubic), goodput(Congestion::Bbr));
    assert!(bbr > cubic);
}

#[test]
fn reordering_alone_costs_little() {
    let faults = FaultRates {
        swap_ppm: 50_000,
        ..FaultRates::default()
    };
    let mut plan = Plan::new(link(4160, 2, faults), 5);
    plan.frames = 400;
    let outcome = plan.run(|_| 256 << 10);
    println!(
        "5 % overtaken, Cubic: {:.1} MB/s of 100, {} sent again of {}",
        outcome.goodput_bytes_per_s / 1e6,
        outcome.retransmits,
        outcome.sent
    );
    assert!(outcome.goodput_bytes_per_s > 60e6);
    assert!(u64::from(outcome.retransmits) < outcome.sent / 50);
}

#[test]
fn few_buffers_slow_a_lossy_lane_and_never_stop_it() {
    for (small, medium) in [(1, 0), (2, 0), (0, 3)] {
        let mut plan = Plan::new(link(1472, 2, share(20_000, true)), 7);
        plan.lands = pools(small, medium, 0);
        plan.frames = 300;
        plan.run(|at| 1 + (at as usize * 677) % 2000);
    }
}

#[test]
fn a_path_that_dies_ends_the_lane_on_both_sides() {
    let mut dead = link(4160, 2, FaultRates::default());
    dead.faults.cut_ppm = 5_000;
    let mut plan = Plan::new(dead, 9);
    plan.silence_max = Duration::from_secs(2);
    let (network, mut a, mut b) = plan.sides();
    let mut expected = Vec::new();
    while a.closed.is_none() || b.closed.is_none() {
        a.offer(u64::MAX, |_| 50_000);
        a.turn(|_| 0, &mut expected);
        b.turn(|_| 50_000, &mut expected);
        network.advance(STEP_NS);
        assert!(network.now_ns() < 20_000 * MS, "nobody noticed");
    }
    let silent = LaneClosed::Failed {
        errno: libc::ETIMEDOUT,
    };
    assert!(a.closed == Some(silent) || b.closed == Some(silent));
    let ends = [a.closed, b.closed];
    let failed = |end: &Option<LaneClosed>| matches!(end, Some(LaneClosed::Failed { .. }));
    assert!(ends.iter().all(failed), "{ends:?}");
    assert!(b.got < a.sent);
}

#[test]
fn an_idle_lane_stays_and_goes_on() {
    let plan = Plan::new(link(1472, 10, share(10_000, false)), 13);
    let (network, mut a, mut b) = plan.sides();
    let mut expected = Vec::new();
    for pause in 0..4 {
        a.offer(10 * (pause + 1), |_| 3000);
        let until_ns = network.now_ns() + 25_000 * MS;
        while network.now_ns() < until_ns {
            a.turn(|_| 0, &mut expected);
            b.turn(|_| 3000, &mut expected);
            network.advance(500_000);
        }
        assert_eq!((a.closed, b.closed), (None, None), "25 s of silence above");
        assert_eq!(b.got, 10 * (pause + 1));
    }
}

#[test]
fn strangers_and_replays_are_counted_and_change_nothing() {
    let plan = Plan::new(link(1472, 2, FaultRates::default()), 17);
    let (network, mut a, mut b) = plan.sides();
    let mut stranger = network.port(address(3), plan.forth, 1);
    let mut expected = Vec::new();
    let mut state = 1u64;
    for round in 0..3000u64 {
        a.offer(round / 10, |_| 2000);
        a.turn(|_| 0, &mut expected);
        b.turn(|_| 2000, &mut expected);
        stranger.send(address(2), &mut |buf| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let len = (state >> 33) as usize % 1472;
            fill(state, &mut buf[..len]);
            if round % 3 > 0 && len > 20 {
                // A header that fits, under a tag that does not.
                let header = [1, (round % 6) as u8, 1, 0, 77, 0, 0, 0, 0, 0, 0, 0];
                buf[..12].copy_from_slice(&header);
                buf[12..20].copy_from_slice(&(round % 50).to_le_bytes());
                if round % 3 == 2 {
                    buf[4] = 78;
                }
            }
            len
        });
        network.advance(100_000);
    }
    while b.got < a.sent {
        a.turn(|_| 0, &mut expected);
        b.turn(|_| 2000, &mut expected);
        network.advance(STEP_NS);
    }
    let dropped = b.group.dropped();
    println!("{dropped:?}");
    assert!(dropped.short > 0 && dropped.unknown_format > 0 && dropped.unknown_connection > 0);
    assert!(dropped.forged > 0 && dropped.replayed > 0);
    assert_eq!((a.closed, b.closed), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any faults, sizes, payloads, memory and rules: identical and finished.
    #[test]
    fn any_schedule_is_survived(
        seed in any::<u32>(),
        (drop_ppm, repeat_ppm, swap_ppm) in (0u32..150_000, 0u32..100_000, 0u32..200_000),
        (delay_ppm, corrupt_ppm) in (0u32..100_000, 0u32..60_000),
        rtt_ms in 0u64..60,
        payload in prop::sample::select(vec![1200usize, 1472, 4160, 8900]),
        lens in prop::collection::vec(1usize..60_000, 1..12),
        bbr in any::<bool>(),
        protection in prop::sample::select(vec![
            Protection::Tagged,
            Protection::Sealed,
            Protection::Headers,
        ]),
        buffers in 1usize..8,
    ) {
        let faults = FaultRates { drop_ppm, repeat_ppm, swap_ppm, delay_ppm, corrupt_ppm, cut_ppm: 0 };
        let mut plan = Plan::new(link(payload, rtt_ms, faults), seed.into());
        plan.congestion = if bbr { Congestion::Bbr } else { Congestion::Cubic };
        plan.protection = protection;
        plan.lands = pools(buffers, buffers, buffers);
        plan.silence_max = Duration::from_secs(60);
        plan.frames = 3 * lens.len() as u64;
        plan.limit_ms = 600_000;
        plan.run(|at| lens[at as usize % lens.len()]);
    }
}
