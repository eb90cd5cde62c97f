//! The controller over paths that are computed: what each lane can carry, what all can, noise.

use super::{Load, PathKind, StreamLimits, Streams};

const MS: u64 = 1_000_000;
const LOOK_NS: u64 = 20 * MS;

fn limits(lanes_min: u16, lanes_start: u16, lanes_max: u16) -> StreamLimits {
    StreamLimits {
        lanes_min,
        lanes_start,
        lanes_max,
    }
}

/// SplitMix64 (Steele et al., OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A path: bytes a second that a lane carries, that all carry, and that each lane costs the processor.
#[derive(Clone, Copy, Debug)]
struct Path {
    lane: u64,
    line: u64,
    cost_per_lane: u64,
    rtt_ns: u64,
    noise_percent: u64,
}

impl Path {
    fn rate(&self, lanes: u16) -> u64 {
        let lanes = u64::from(lanes);
        let all = (self.lane * lanes).min(self.line);
        all.saturating_sub(self.cost_per_lane * lanes)
    }

    fn best(&self, range: (u16, u16)) -> (u16, u64) {
        (range.0..=range.1)
            .map(|lanes| (lanes, self.rate(lanes)))
            .fold(
                (range.0, 0),
                |best, one| if one.1 > best.1 { one } else { best },
            )
    }
}

struct World {
    path: Path,
    streams: Streams,
    random: Random,
    now_ns: u64,
    sent_bytes: u64,
    /// Lanes take some round trips to start: the rate follows.
    speed: u64,
}

impl World {
    fn new(path: Path, limits: StreamLimits, seed: u64) -> Self {
        let mut streams = Streams::new(limits);
        streams.set_kind(PathKind::by_rtt(Some(path.rtt_ns / 1000)));
        Self {
            path,
            streams,
            random: Random(seed),
            now_ns: 0,
            sent_bytes: 0,
            speed: 0,
        }
    }

    fn pass(&mut self, ms: u64, load: Load) {
        let end_ns = self.now_ns + ms * MS;
        while self.now_ns < end_ns {
            let goal = self.path.rate(self.streams.lanes());
            let gone = LOOK_NS.min(self.path.rtt_ns * 2) * 256 / (self.path.rtt_ns * 2);
            self.speed = (self.speed * (256 - gone) + goal * gone) / 256;
            let noise = self.path.noise_percent;
            let part = 100 + self.random.below(2 * noise + 1) - noise;
            if load != Load::Nothing {
                self.sent_bytes += self.speed * part / 100 * LOOK_NS / 1_000_000_000;
            }
            self.now_ns += LOOK_NS;
            let lanes = self
                .streams
                .look(self.now_ns, self.sent_bytes, load, self.path.rtt_ns);
            let (least, most) = self.streams.limits.range(self.streams.kind);
            assert!(
                (least.min(self.streams.limits.lanes_start)..=most).contains(&lanes),
                "{lanes} lanes are outside {least}..={most}"
            );
        }
    }
}

const FAR: Path = Path {
    lane: 2_000_000,
    line: 25_000_000,
    cost_per_lane: 0,
    rtt_ns: 80 * MS,
    noise_percent: 5,
};

#[test]
fn lanes_are_added_while_each_carries_a_part_and_not_beyond() {
    let mut world = World::new(FAR, limits(0, 8, 64), 1);
    world.pass(20_000, Load::Lanes);
    // Thirteen fill this line, and the range of such a path ends at sixteen.
    let lanes = world.streams.lanes();
    assert!((12..=16).contains(&lanes), "{lanes}");
}

#[test]
fn lanes_that_carry_nothing_more_are_taken_back() {
    let full = Path {
        lane: 25_000_000,
        ..FAR
    };
    let mut world = World::new(full, limits(0, 16, 16), 2);
    world.pass(120_000, Load::Lanes);
    assert!(world.streams.lanes() <= 8, "{}", world.streams.lanes());
    assert!(world.streams.lanes() >= 4);
}

#[test]
fn what_is_no_measure_of_the_lanes_changes_nothing() {
    for load in [Load::Nothing, Load::HeldBack] {
        let mut world = World::new(FAR, limits(0, 8, 64), 3);
        world.pass(60_000, load);
        assert_eq!(
            (world.streams.lanes(), world.streams.changes()),
            (8, (0, 0))
        );
    }
}

#[test]
fn a_trial_that_a_limit_or_a_pause_interrupts_is_taken_back() {
    for load in [Load::Nothing, Load::HeldBack] {
        let mut world = World::new(FAR, limits(0, 8, 64), 4);
        while world.streams.lanes() == 8 {
            world.pass(20, Load::Lanes);
        }
        world.pass(1_000, load);
        assert_eq!(world.streams.lanes(), 8, "{load:?}");
    }
}

#[test]
fn the_operator_and_the_peer_have_the_last_word() {
    let of = |limits: StreamLimits, kind| limits.range(kind);
    assert_eq!(of(limits(0, 8, 64), PathKind::Internet), (4, 16));
    assert_eq!(of(limits(0, 8, 64), PathKind::Datacenter), (4, 64));
    assert_eq!(of(limits(32, 32, 512), PathKind::Datacenter), (32, 512));
    assert_eq!(of(limits(24, 24, 64), PathKind::Internet), (24, 24));
    assert_eq!(of(limits(8, 8, 64).within(3), PathKind::Internet), (3, 3));
    assert_eq!(Streams::new(limits(0, 8, 64).within(3)).lanes(), 3);
    let mut one = Streams::new(limits(1, 1, 1));
    one.set_kind(PathKind::Datacenter);
    assert_eq!(one.lanes(), 1);
    let mut many = Streams::new(limits(0, 40, 64));
    many.set_kind(PathKind::Internet);
    assert_eq!(many.lanes(), 16, "a far path takes no more");
    let mut near = Streams::new(limits(0, 16, 64));
    near.set_kind(PathKind::Datacenter);
    assert_eq!(near.lanes(), 8, "a near path begins at once");
    near.set_kind(PathKind::Internet);
    near.set_kind(PathKind::Datacenter);
    assert_eq!(near.lanes(), 8, "halved once");
}

#[test]
fn paths_by_their_round_trip() {
    assert_eq!(PathKind::by_rtt(None), PathKind::Hybrid);
    assert_eq!(PathKind::by_rtt(Some(9_999)), PathKind::Datacenter);
    assert_eq!(PathKind::by_rtt(Some(10_000)), PathKind::Hybrid);
    assert_eq!(PathKind::by_rtt(Some(50_000)), PathKind::Hybrid);
    assert_eq!(PathKind::by_rtt(Some(50_001)), PathKind::Internet);
}

/// Two thousand paths: near and far, wide and thin, with lanes that carry much or little. After two minutes
/// the rate is near the best that any number of lanes in the range has, and no trial runs away.
#[test]
fn on_any_path_the_rate_comes_near_the_best_there_is() {
    for seed in 0..2_000_u64 {
        let mut random = Random(seed);
        let line = 1_000_000 << random.below(11);
        let path = Path {
            lane: line / (1 + random.below(24)) + 1,
            line,
            cost_per_lane: line / 2_000 * random.below(4),
            rtt_ns: MS << random.below(9),
            noise_percent: random.below(11),
        };
        let limits = limits(0, 8, 64);
        let mut world = World::new(path, limits, seed);
        world.pass(120_000, Load::Lanes);
        let range = limits.range(world.streams.kind);
        let (best_lanes, best) = path.best(range);
        let rates: Vec<u64> = (0..40)
            .map(|_| {
                world.pass(1_000, Load::Lanes);
                path.rate(world.streams.lanes())
            })
            .collect();
        let mean = rates.iter().sum::<u64>() / rates.len() as u64;
        assert!(
            mean * 100 >= best * 85,
            "seed {seed}: {path:?}: {mean} instead of {best} with {best_lanes}, at {}",
            world.streams.lanes()
        );
    }
}
