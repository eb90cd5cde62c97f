//! Which lane takes the next frame, and which lane has stopped moving.
//!
//! In: lanes coming up and going down, how many may be used, each one's backlog. Out: the lane to
//! write to. Promise: a lane that is down is never chosen, one under suspicion only when nothing
//! else is up, and one beyond the active count only when none within is up.

use super::super::{LaneIx, Nanos};

/// After a suspicion that was wrong the next one waits twice as long, up to this many times.
const MAX_PATIENCE_DOUBLINGS: u32 = 5;
/// So many batches in a row that were answered in time halve the patience again.
const PROMPT_BATCHES: u32 = 16;

#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    up: bool,
    suspect: bool,
    suspicions: u32,
    /// Of first and repeated sends that the peer is not known to have.
    on_the_way_bytes: u64,
    /// Batches answered in time since the last suspicion, or since the patience was halved.
    prompt: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Lanes {
    lanes: Box<[Lane]>,
    active: usize,
    last_used: usize,
    control_frames: u64,
    /// The last lane in use is for express batches and control frames alone, if there are two.
    keeps_express: bool,
}

impl Lanes {
    /// All down; at most `lanes_max` will ever exist.
    #[must_use]
    pub fn new(lanes_max: usize, active: usize) -> Self {
        let lanes = vec![Lane::default(); lanes_max.max(1)].into_boxed_slice();
        Self {
            lanes,
            active: active.max(1),
            last_used: 0,
            control_frames: 0,
            keeps_express: false,
        }
    }

    /// Uses lanes below `active` from now on.
    pub fn set_active(&mut self, active: usize) {
        self.active = active.max(1);
    }

    /// Keeps a lane free for express batches from now on.
    pub const fn keep_express_lane(&mut self) {
        self.keeps_express = true;
    }

    /// The lane kept free, if it moves and is not the only one.
    fn express_lane(&self) -> Option<LaneIx> {
        if !self.keeps_express {
            return None;
        }
        let mut moving = self
            .lanes
            .iter()
            .enumerate()
            .take(self.active)
            .filter(|(_, lane)| lane.up && !lane.suspect)
            .map(|(index, _)| LaneIx(index as u16));
        // The first is for everything else.
        moving.next()?;
        moving.next_back()
    }

    /// `lane` may be written to; false when there is no such lane.
    pub fn up(&mut self, lane: LaneIx) -> bool {
        let Some(state) = self.lanes.get_mut(usize::from(lane.0)) else {
            return false;
        };
        state.up = true;
        state.suspect = false;
        true
    }

    /// `lane` is gone.
    pub fn down(&mut self, lane: LaneIx) {
        if let Some(state) = self.lanes.get_mut(usize::from(lane.0)) {
            state.up = false;
            state.suspect = false;
        }
    }

    /// Marks `lane` as one that does not move; true when that is news.
    pub fn suspect(&mut self, lane: LaneIx) -> bool {
        let Some(state) = self.lanes.get_mut(usize::from(lane.0)) else {
            return false;
        };
        let news = state.up && !state.suspect;
        if news {
            state.suspect = true;
            state.suspicions = (state.suspicions + 1).min(MAX_PATIENCE_DOUBLINGS);
            state.prompt = 0;
        }
        news
    }

    /// A frame was handed to `lane`.
    pub fn add_on_the_way(&mut self, lane: LaneIx, bytes: u64) {
        if let Some(state) = self.lanes.get_mut(usize::from(lane.0)) {
            state.on_the_way_bytes += bytes;
        }
    }

    /// A frame that `lane` had is no longer waited for.
    pub fn take_off_the_way(&mut self, lane: LaneIx, bytes: u64) {
        if let Some(state) = self.lanes.get_mut(usize::from(lane.0)) {
            state.on_the_way_bytes = state.on_the_way_bytes.saturating_sub(bytes);
        }
    }

    /// Bytes handed to `lane` that the peer is not known to have.
    #[must_use]
    pub fn on_the_way_bytes(&self, lane: LaneIx) -> u64 {
        self.lanes
            .get(usize::from(lane.0))
            .map_or(0, |state| state.on_the_way_bytes)
    }

    /// A batch that went over `lane` once was answered; `in_time` says whether that was too soon for any
    /// suspicion. A line that recovered is not watched as patiently for ever as while it was slow.
    pub fn answered(&mut self, lane: LaneIx, in_time: bool) {
        let Some(state) = self.lanes.get_mut(usize::from(lane.0)) else {
            return;
        };
        state.prompt = if in_time { state.prompt + 1 } else { 0 };
        if state.prompt >= PROMPT_BATCHES {
            state.prompt = 0;
            state.suspicions = state.suspicions.saturating_sub(1);
        }
    }

    /// How many times longer than usual to wait before suspecting `lane`.
    #[must_use]
    pub fn patience(&self, lane: LaneIx) -> u64 {
        self.lanes
            .get(usize::from(lane.0))
            .map_or(1, |state| 1 << state.suspicions)
    }

    /// Is `lane` up and above suspicion?
    #[must_use]
    pub fn is_trusted(&self, lane: LaneIx) -> bool {
        self.lanes
            .get(usize::from(lane.0))
            .is_some_and(|state| state.up && !state.suspect)
    }

    /// Is any lane up and above suspicion?
    #[must_use]
    pub fn has_trusted(&self) -> bool {
        self.lanes.iter().any(|state| state.up && !state.suspect)
    }

    /// Lanes that are up.
    #[must_use]
    pub fn count_up(&self) -> usize {
        self.lanes.iter().filter(|state| state.up).count()
    }

    /// The lane with the least backlog under `limit_bytes`; among equals the one after the lane
    /// chosen last, so that idle lanes take turns.
    pub fn choose(
        &mut self,
        limit_bytes: usize,
        backlog_bytes: &mut impl FnMut(LaneIx) -> usize,
    ) -> Option<LaneIx> {
        let spared = self.express_lane();
        let chosen = self.least_loaded(self.last_used + 1, &mut |lane| {
            Some(backlog_bytes(lane))
                .filter(|&backlog| backlog < limit_bytes && spared != Some(lane))
        })?;
        self.last_used = chosen;
        Some(LaneIx(chosen as u16))
    }

    /// Of the lanes with a backlog under `limit_bytes` the one with the least on the way.
    pub fn choose_emptiest(
        &mut self,
        limit_bytes: usize,
        backlog_bytes: &mut impl FnMut(LaneIx) -> usize,
    ) -> Option<LaneIx> {
        let spared = self.express_lane();
        let chosen = self.least_loaded(self.last_used + 1, &mut |lane| {
            (backlog_bytes(lane) < limit_bytes && spared != Some(lane))
                .then(|| self.on_the_way_bytes(lane))
        })?;
        self.last_used = chosen;
        Some(LaneIx(chosen as u16))
    }

    /// The lane for an express batch: the one that is kept free, or the one that will write it soonest.
    pub fn choose_for_express(
        &self,
        backlog_bytes: &mut impl FnMut(LaneIx) -> usize,
    ) -> Option<LaneIx> {
        self.express_lane().or_else(|| {
            let load = &mut |lane| Some(backlog_bytes(lane));
            let chosen = self.least_loaded(self.last_used + 1, load)?;
            Some(LaneIx(chosen as u16))
        })
    }

    /// The same for a control frame, whatever the backlog; equals are taken in no regular order.
    /// In turns, PINGs and their answers could each meet the same dead lanes again and again.
    pub fn choose_for_control(
        &mut self,
        backlog_bytes: &mut impl FnMut(LaneIx) -> usize,
    ) -> Option<LaneIx> {
        self.control_frames = self.control_frames.wrapping_add(1);
        // A counter through the mixing of SplitMix64 (Steele et al., OOPSLA 2014): its upper bits are even.
        let mixed = self.control_frames.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let first = (mixed >> 33) as usize;
        let chosen = self.least_loaded(first, &mut |lane| Some(backlog_bytes(lane)))?;
        Some(LaneIx(chosen as u16))
    }

    /// Of the best class of lanes that has any up, and those with a load; among equals the nearest from
    /// `first` on.
    fn least_loaded<L: Ord + Copy>(
        &self,
        first: usize,
        load: &mut impl FnMut(LaneIx) -> Option<L>,
    ) -> Option<usize> {
        let lanes = &self.lanes;
        let any = |class: &dyn Fn(usize, &Lane) -> bool| {
            lanes
                .iter()
                .enumerate()
                .any(|(index, lane)| class(index, lane))
        };
        let active = self.active;
        let best = |index: usize, lane: &Lane| lane.up && !lane.suspect && index < active;
        let trusted = |_: usize, lane: &Lane| lane.up && !lane.suspect;
        let last_resort = |_: usize, lane: &Lane| lane.up;
        let class: &dyn Fn(usize, &Lane) -> bool = if any(&best) {
            &best
        } else if any(&trusted) {
            &trusted
        } else {
            &last_resort
        };
        let count = lanes.len();
        (0..count)
            .map(|step| (first + step) % count)
            .filter(|&index| class(index, &lanes[index]))
            .filter_map(|index| Some((load(LaneIx(index as u16))?, index)))
            .min_by_key(|&(load, _)| load)
            .map(|(_, index)| index)
    }
}

/// The round trip, smoothed as TCP does it (RFC 6298: one eighth of each new sample).
#[derive(Debug, Clone, Copy, Default)]
pub struct SmoothedRtt {
    mean_ns: Option<u64>,
    least_ns: Option<u64>,
    newest: Option<(Nanos, u64)>,
}

impl SmoothedRtt {
    /// One more round trip, from `sent` to `now`.
    pub fn sample(&mut self, sent: Nanos, now: Nanos) {
        let sample_ns = now.since(sent);
        self.newest = Some((sent, sample_ns));
        self.mean_ns = Some(
            self.mean_ns
                .map_or(sample_ns, |mean| mean - mean / 8 + sample_ns / 8),
        );
        self.least_ns = Some(
            self.least_ns
                .map_or(sample_ns, |least| least.min(sample_ns)),
        );
    }

    /// The mean, when there was any sample.
    #[must_use]
    pub fn ns(self) -> Option<u64> {
        self.mean_ns
    }

    /// The newest: when it began, and how long it took.
    #[must_use]
    pub const fn newest(self) -> Option<(Nanos, u64)> {
        self.newest
    }

    /// The shortest since this was last asked.
    pub const fn take_least_ns(&mut self) -> Option<u64> {
        self.least_ns.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_lane_is_taken_and_idle_ones_take_turns() {
        let mut lanes = Lanes::new(4, 4);
        assert_eq!(lanes.choose(100, &mut |_| 0), None);
        for lane in 0..4 {
            assert!(lanes.up(LaneIx(lane)));
        }
        assert!(!lanes.up(LaneIx(4)));
        let turns: Vec<u16> = (0..5)
            .map(|_| lanes.choose(100, &mut |_| 0).unwrap().0)
            .collect();
        assert_eq!(turns, [1, 2, 3, 0, 1]);
        let backlog = [90, 50, 20, 70];
        let mut of = |lane: LaneIx| backlog[usize::from(lane.0)];
        assert_eq!(lanes.choose(100, &mut of), Some(LaneIx(2)));
        assert_eq!(lanes.choose(20, &mut of), None);
    }

    #[test]
    fn control_frames_reach_every_lane_whatever_is_sent_between() {
        for frames_between in 0..12 {
            let mut lanes = Lanes::new(5, 5);
            (0..5).for_each(|lane| assert!(lanes.up(LaneIx(lane))));
            let mut met = [false; 5];
            for _ in 0..200 {
                let lane = lanes.choose_for_control(&mut |_| 0).unwrap();
                met[usize::from(lane.0)] = true;
                for _ in 0..frames_between {
                    lanes.choose_for_control(&mut |_| 0).unwrap();
                }
            }
            assert_eq!(met, [true; 5], "{frames_between}");
        }
    }

    #[test]
    fn patience_grows_with_suspicions_and_shrinks_with_prompt_answers() {
        let mut lanes = Lanes::new(2, 2);
        let lane = LaneIx(1);
        for _ in 0..7 {
            lanes.up(lane);
            assert!(lanes.suspect(lane));
        }
        assert_eq!(lanes.patience(lane), 32);
        (0..PROMPT_BATCHES - 1).for_each(|_| lanes.answered(lane, true));
        lanes.answered(lane, false);
        lanes.answered(lane, true);
        assert_eq!(lanes.patience(lane), 32, "not in a row");
        (0..PROMPT_BATCHES - 1).for_each(|_| lanes.answered(lane, true));
        assert_eq!(lanes.patience(lane), 16);
        (0..PROMPT_BATCHES * 9).for_each(|_| lanes.answered(lane, true));
        assert_eq!(lanes.patience(lane), 1);
        assert_eq!(lanes.patience(LaneIx(0)), 1, "the others are not concerned");
        lanes.answered(LaneIx(9), true);
    }

    #[test]
    fn down_suspect_and_inactive_lanes_are_avoided_in_that_order() {
        let mut lanes = Lanes::new(3, 2);
        (0..3).for_each(|lane| assert!(lanes.up(LaneIx(lane))));
        let chosen = |lanes: &mut Lanes| lanes.choose(100, &mut |_| 0);
        lanes.down(LaneIx(0));
        assert_eq!(chosen(&mut lanes), Some(LaneIx(1)));
        assert!(lanes.suspect(LaneIx(1)) && !lanes.suspect(LaneIx(1)));
        assert_eq!(
            chosen(&mut lanes),
            Some(LaneIx(2)),
            "beyond the active ones, but moving"
        );
        lanes.down(LaneIx(2));
        assert_eq!(chosen(&mut lanes), Some(LaneIx(1)), "the last resort");
        lanes.set_active(3);
        lanes.up(LaneIx(2));
        assert_eq!(chosen(&mut lanes), Some(LaneIx(2)));
        assert_eq!(lanes.count_up(), 2);
        assert_eq!(
            (lanes.patience(LaneIx(0)), lanes.patience(LaneIx(1))),
            (1, 2)
        );
    }
}
