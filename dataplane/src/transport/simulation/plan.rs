//! What a seed decides.
//!
//! In: a seed. Out: a [`Plan`]: the link, the streams, and what befalls them at which moment.
//! Promise: a plan whose link is never gone for longer than the resume limit leaves the session a
//! way to finish, so that a run which does not is a fault of the transport.

use super::super::{MAX_CHANNELS, Version};
use super::random::Random;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// Before and after a long cut nothing else goes wrong: the silence counts as one.
const CALM_BEFORE_NS: u64 = 10 * SECOND;
const CALM_AFTER_NS: u64 = 3 * SECOND;
/// The first lane has this long between two faults, so that some lane always carries.
const FIRST_LANE_APART_NS: u64 = 7 * SECOND;
/// A side that is 0 sends the stream, 1 receives it.
pub const SOURCE: usize = 0;
pub const DESTINATION: usize = 1;

/// What befalls a world.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A connection is lost with all that it carries. Each end notices after its own time, or never.
    CutLane {
        lane: u16,
        noticed_after_ns: [Option<u64>; 2],
        /// Dials fail for so long.
        dead_for_ns: u64,
    },
    /// A connection carries nothing this way for a while, or, with `u64::MAX`, never again.
    StallLane {
        lane: u16,
        from_side: usize,
        for_ns: u64,
    },
    /// Nothing passes. Connections live on with what they carry, or are lost unnoticed.
    CutLink { for_ns: u64, resets: bool },
    /// All lanes fail together and come back over another driver.
    FallBack { delay_ns: u64, lane_bytes_s: u64 },
    /// The rollback switch of one host.
    AllowV3 { side: usize, allowed: bool },
    /// How many lanes one host uses from now on; the source dials what is missing.
    ActiveLanes { side: usize, lanes: u16 },
    /// What may lie in a lane from now on.
    LaneBacklog { side: usize, bytes: usize },
    /// The far hypervisor takes nothing from a channel.
    StopTaking { channel: u16, for_ns: u64 },
    /// One host takes nothing out of the sequence: it has no buffer to decode into.
    StopDecoding { side: usize, for_ns: u64 },
}

/// See the module. Pairs are by side, or by the side that sends.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub channels: u16,
    /// Raw bytes of each channel.
    pub stream_bytes: [u64; 2],
    pub batch_bytes_max: u64,
    /// The hypervisor offers its bytes evenly over this time.
    pub offer_ns: u64,
    /// Raw bytes for each byte on the wire.
    pub ratio: u64,
    pub lanes: u16,
    pub lanes_active: u16,
    pub delay_ns: u64,
    pub jitter_ns: u64,
    /// Each lane is longer than the one before by this.
    pub skew_ns: u64,
    pub lane_bytes_s: u64,
    /// The last lane is slower by this factor.
    pub last_lane_slower: u64,
    pub lane_backlog_bytes: usize,
    pub window_floor_bytes: u64,
    pub window_limit_bytes: u64,
    pub resume_limit_ns: u64,
    pub agreed: Version,
    /// Bytes that the far hypervisor takes in a second.
    pub take_bytes_s: u64,
    /// The last channel's bytes go by express, and a lane is kept for them.
    pub express: bool,
    /// The first channel's bytes are taken when all others' are.
    pub barrier: bool,
    /// One frame in so many comes again later.
    pub repeats_one_in: u64,
    /// One submission in so many is refused by the lane.
    pub refusals_one_in: u64,
    /// Work within this time is done in one turn.
    pub turn_ns: u64,
    /// Lanes are looked at this often.
    pub check_every_ns: u64,
    pub events: Vec<(u64, Event)>,
}

impl Plan {
    /// Three channels over four lanes of 50 MiB/s and 5 ms, and nothing goes wrong.
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            channels: 3,
            stream_bytes: [24 << 20, 1 << 20],
            batch_bytes_max: 256 << 10,
            offer_ns: 0,
            ratio: 1,
            lanes: 4,
            lanes_active: 4,
            delay_ns: 5 * MS,
            jitter_ns: 0,
            skew_ns: 0,
            lane_bytes_s: 50 << 20,
            last_lane_slower: 1,
            lane_backlog_bytes: 512 << 10,
            window_floor_bytes: 1 << 20,
            window_limit_bytes: 8 << 20,
            resume_limit_ns: 30 * SECOND,
            agreed: Version::V3,
            take_bytes_s: 1 << 40,
            express: false,
            barrier: false,
            repeats_one_in: 0,
            refusals_one_in: 0,
            turn_ns: MS / 10,
            check_every_ns: 20 * MS,
            events: Vec::new(),
        }
    }

    /// The world of `seed`.
    pub fn from_seed(seed: u64) -> Self {
        let r = &mut Random(seed);
        let lanes = r.within(1, 8) as u16;
        let batch_bytes_max = r.scaled(1 << 10, 256 << 10);
        let all_bytes = batch_bytes_max * r.scaled(20, 400);
        let many = r.one_in(40);
        let channels = if many {
            r.within(65, 80)
        } else {
            r.within(1, 5)
        };
        let offer_ns = if r.percent(25) {
            0
        } else {
            r.scaled(50 * MS, 6 * SECOND)
        };
        let ratio = r.within(1, 8);
        let needed_bytes_s = all_bytes / ratio * 1000 / (offer_ns / MS).max(200);
        let lane_bytes_s = (needed_bytes_s * r.scaled(10, 80) / 10 / u64::from(lanes)).max(4 << 20);
        let window_floor_bytes = r.scaled(32 << 10, 1 << 20);
        let delay_ns = r.scaled(MS / 50, 100 * MS);
        let mut plan = Self {
            seed,
            channels: channels as u16,
            stream_bytes: [all_bytes / channels, all_bytes / channels / r.within(4, 64)],
            batch_bytes_max,
            offer_ns,
            ratio,
            lanes,
            lanes_active: r.within(1, u64::from(lanes)) as u16,
            delay_ns,
            jitter_ns: delay_ns / r.within(1, 20),
            skew_ns: if r.percent(30) { delay_ns / 2 } else { 0 },
            lane_bytes_s,
            last_lane_slower: if r.percent(20) { r.within(2, 16) } else { 1 },
            lane_backlog_bytes: r.scaled(8 << 10, 512 << 10) as usize,
            window_floor_bytes,
            window_limit_bytes: r.scaled(window_floor_bytes, 8 << 20),
            resume_limit_ns: if r.percent(50) {
                10 * SECOND
            } else {
                30 * SECOND
            },
            agreed: if r.one_in(12) {
                Version::V1
            } else {
                Version::V3
            },
            take_bytes_s: if r.percent(30) {
                needed_bytes_s * ratio / 2 + (1 << 20)
            } else {
                1 << 40
            },
            express: seed.is_multiple_of(3),
            barrier: r.percent(20),
            repeats_one_in: if r.percent(40) { r.within(5, 50) } else { 0 },
            refusals_one_in: if r.percent(20) { r.within(10, 100) } else { 0 },
            turn_ns: r.scaled(MS / 20, 2 * MS),
            check_every_ns: r.within(20 * MS, 80 * MS),
            events: Vec::new(),
        };
        plan.choose_events(r);
        plan
    }

    /// Do the bytes of this channel go by express?
    pub fn is_express(&self, side: usize, channel: usize) -> bool {
        self.express && side == SOURCE && channel > 0 && channel + 1 == usize::from(self.channels)
    }

    /// How long the streams take at least, more or less.
    fn span_ns(&self) -> u64 {
        let lanes = u64::from(self.lanes_active);
        let wire_bytes = self.stream_bytes[SOURCE] * u64::from(self.channels) / self.ratio;
        let write_ns = wire_bytes * 1000 / (self.lane_bytes_s * lanes / MS).max(1);
        self.offer_ns.max(write_ns) + 8 * self.delay_ns
    }

    fn choose_events(&mut self, r: &mut Random) {
        let span_ns = self.span_ns();
        let limit_ns = self.resume_limit_ns;
        let cut_ns = match r.below(100) {
            0..50 => None,
            50..72 => Some(r.within(100 * MS, 1900 * MS)),
            72..88 => Some(r.within(2 * SECOND, limit_ns - 2 * SECOND)),
            _ => Some(r.within(limit_ns + 3 * SECOND, limit_ns + 10 * SECOND)),
        };
        let mut calm = 0..0;
        if let Some(for_ns) = cut_ns {
            let at_ns = r.within(span_ns / 20, span_ns);
            let resets = r.percent(50);
            self.events.push((at_ns, Event::CutLink { for_ns, resets }));
            if for_ns > 2 * SECOND {
                calm = at_ns.saturating_sub(CALM_BEFORE_NS)..at_ns + for_ns + CALM_AFTER_NS;
                // What two seconds leave must cover the last words before and the dial after.
                self.delay_ns = self.delay_ns.min(50 * MS);
                self.skew_ns = self.skew_ns.min(10 * MS);
                self.jitter_ns = self.jitter_ns.min(10 * MS);
            }
        }
        let mut first_lane_free_at = 0;
        for _ in 0..r.below(16) {
            let at_ns = r.below(span_ns * 3 / 2);
            let event = self.choose_event(r);
            let lane = match event {
                Event::CutLane { lane, .. } | Event::StallLane { lane, .. } => Some(lane),
                Event::FallBack { .. } => Some(0),
                _ => None,
            };
            if lane.is_some() && calm.contains(&at_ns) {
                continue;
            }
            if lane == Some(0) {
                if at_ns < first_lane_free_at {
                    continue;
                }
                first_lane_free_at = at_ns + FIRST_LANE_APART_NS;
            }
            self.events.push((at_ns, event));
        }
        self.events.sort_by_key(|(at_ns, _)| *at_ns);
    }

    fn choose_event(&self, r: &mut Random) -> Event {
        let lane = r.below(u64::from(self.lanes)) as u16;
        let side = r.below(2) as usize;
        let mut noticed = || r.percent(70).then(|| r.scaled(MS, 3 * SECOND));
        match (noticed(), noticed(), r.below(20)) {
            (a, b, 0..6) => Event::CutLane {
                lane,
                noticed_after_ns: [a, b],
                dead_for_ns: match lane {
                    0 => r.scaled(MS, 3 * SECOND),
                    _ => r.scaled(MS, 20 * SECOND),
                },
            },
            (_, _, 6..10) => Event::StallLane {
                lane,
                from_side: side,
                for_ns: if r.percent(20) {
                    u64::MAX
                } else {
                    r.scaled(20 * MS, 6 * SECOND)
                },
            },
            (_, _, 10..14) => Event::AllowV3 {
                side: if r.percent(80) { SOURCE } else { side },
                allowed: r.percent(40),
            },
            (_, _, 14..16) => Event::ActiveLanes {
                side,
                lanes: r.within(1, u64::from(self.lanes)) as u16,
            },
            (_, _, 16) => Event::LaneBacklog {
                side,
                bytes: r.scaled(8 << 10, 512 << 10) as usize,
            },
            (_, _, 17) => Event::StopTaking {
                channel: r.below(u64::from(self.channels)) as u16,
                for_ns: r.scaled(20 * MS, 20 * SECOND),
            },
            (_, _, 18) => Event::StopDecoding {
                side,
                for_ns: r.scaled(20 * MS, 5 * SECOND),
            },
            _ => Event::FallBack {
                delay_ns: r.scaled(MS / 50, 50 * MS),
                lane_bytes_s: self.lane_bytes_s * r.within(1, 4) / 2,
            },
        }
    }

    /// Must this session end without having finished, if it has not before?
    pub fn fatal_cut(&self) -> Option<u64> {
        self.events.iter().find_map(|(at_ns, event)| match event {
            Event::CutLink { for_ns, .. } if *for_ns > self.resume_limit_ns => Some(*at_ns),
            _ => None,
        })
    }
}

const _: () = assert!(80 < MAX_CHANNELS);
